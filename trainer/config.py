# SPDX-License-Identifier: Apache-2.0
"""One configuration for every form of the model: presets, ablation arms, open readings.

``msct`` follows the paper (Res2Net-50 26w-4s at 112 px, 6 blocks); ``msct-tiny`` is the edge
default.  What the paper leaves open is an option here, never a second copy of the network.

Sources: MSCT (arXiv 2604.07741) for the architecture and the ablation; MRDF (Zou et al., 2024)
for C, h and the heads; Differential Transformer (Ye et al., 2025) for the learned lambda.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from runtime.errors import UsageError, UserError
from runtime.spec import ModelSpec

SelfAttention = Literal["mssa", "sa"]
CrossAttention = Literal["dca", "ca"]
DcaReading = Literal["softmax_then_subtract", "subtract_then_softmax", "no_softmax"]
LambdaKind = Literal["fixed", "learned"]
WaveletPosition = Literal["features", "rgb", "off"]
Pooling = Literal["mean", "flatten"]


class ConfigError(UserError):
    """A model configuration whose parts contradict each other."""


@dataclass(frozen=True)
class BackboneConfig:
    """Res2Net (Gao et al., 2021), 2-D, applied to each frame; the defaults are Res2Net-50 26w-4s.

    A block of stage s has ``scale`` splits of ``widths[s]`` channels and ``outputs[s]`` channels
    out; stages 2 to 4 halve the plane.  ``pooling`` turns the last map into one vector: the mean
    over the plane (the paper's source), or all its positions side by side (keeps where the mouth
    is, for crops so small that the last map has 2 x 2 positions).
    """

    stem_channels: int = 64
    stem_kernel: int = 7
    stem_stride: int = 2
    stem_pool: bool = True  # 3x3 max pool of stride 2 behind the first convolution
    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (26, 52, 104, 208)
    outputs: tuple[int, ...] = (256, 512, 1024, 2048)
    scale: int = 4
    wtconv: WaveletPosition = "features"  # behind the first convolution, on raw RGB, or absent
    wtconv_levels: int = 3
    wtconv_kernel: int = 5
    cbam: bool = True  # after every stage but the last
    cbam_reduction: int = 16
    pooling: Pooling = "mean"

    def __post_init__(self) -> None:
        if not len(self.depths) == len(self.widths) == len(self.outputs) > 0:
            raise ConfigError("backbone: depths, widths and outputs need one entry a stage")
        if self.scale < 2:
            raise ConfigError(f"backbone: scale must be at least 2, not {self.scale}")
        if self.stem_kernel % 2 == 0 or self.wtconv_kernel % 2 == 0:
            raise ConfigError("backbone: stem_kernel and wtconv_kernel must be odd")
        if self.wtconv_levels < 1:
            raise ConfigError("backbone: wtconv_levels must be at least 1 (or set wtconv='off')")

    @property
    def stride(self) -> int:  # pixels of the crop per position of the last map, along one side
        stem = self.stem_stride * (2 if self.stem_pool else 1)
        return stem * 2 ** (len(self.depths) - 1)


@dataclass(frozen=True)
class ModelConfig:
    """The whole network.  Dimensions as in the code: C channels, h heads, E align_dim."""

    name: str = "msct"
    crop_px: int = 112
    audio_dim: int = 104
    channels: int = 512  # C
    heads: int = 8  # h
    blocks: int = 6
    ffn_ratio: int = 4
    dropout: float = 0.1
    backbone: BackboneConfig = field(default_factory=BackboneConfig)

    self_attention: SelfAttention = "mssa"
    mssa_kernels: tuple[int, ...] = (1, 3, 5, 7)  # unstated in the paper
    cross_attention: CrossAttention = "dca"
    dca_reading: DcaReading = "softmax_then_subtract"  # the best supported of three
    lambda_kind: LambdaKind = "fixed"
    lambda_value: float = 1.0  # the paper's, where lambda_kind is "fixed"
    match_capacity: bool = False  # "ca" with a wider FFN: as many parameters as "dca"

    align_dim: int = 64  # E
    align_kernel: int = 5  # tokens, of each temporal convolution of the align heads
    align_layers: int = 2
    inject_alignment: bool = False  # ours, not the paper's: see trainer.model.msct.Fusion
    inject_lags: int = 0  # tokens each way of the injected lag curve; 0: align tokens alone
    lag_evidence: int = 0  # tokens each way where the lag curve's peak speaks for a pair; 0: off
    geometry_dim: int = 0  # G: the frame encoder reads and follows the face itself; 0: it does not

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            owner: Any = self if hasattr(self, name) else self.backbone
            if getattr(owner, name) not in choices:
                raise ConfigError(
                    f"{name}: {getattr(owner, name)!r} is not one of {', '.join(choices)}"
                )
        if self.channels % self.heads or (self.channels // self.heads) % 2:
            raise ConfigError("channels must be an even multiple of heads")
        if self.self_attention == "mssa" and self.heads % 4:
            raise ConfigError(f"mssa splits the heads in four groups: {self.heads} heads do not")
        if len(self.mssa_kernels) != 4 or any(k < 1 or k % 2 == 0 for k in self.mssa_kernels):
            raise ConfigError("mssa_kernels must be four odd sizes")
        if self.align_kernel % 2 == 0 or self.align_layers < 1:
            raise ConfigError("align_kernel must be odd and align_layers at least 1")
        if self.inject_lags and not self.inject_alignment:
            raise ConfigError("inject_lags needs inject_alignment")
        if self.lag_evidence and not 0 < self.lag_evidence < self.inject_lags:
            raise ConfigError("lag_evidence needs an inject_lags that reaches further")
        if self.match_capacity and self.cross_attention != "ca":
            raise ConfigError("match_capacity is a control for cross_attention='ca'")
        if self.lambda_kind == "learned" and (
            self.cross_attention != "dca" or self.dca_reading != "softmax_then_subtract"
        ):
            raise ConfigError(
                "lambda_kind='learned' needs 'dca' with dca_reading='softmax_then_subtract'"
            )
        if self.crop_px % self.backbone.stride and self.backbone.pooling == "flatten":
            raise ConfigError(
                f"crop_px must be a multiple of {self.backbone.stride} where pooling is 'flatten'"
            )
        if self.geometry_dim < 0:
            raise ConfigError("geometry_dim must be 0 (no heads) or more")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError("dropout must be in [0, 1)")

    @property
    def head_dim(self) -> int:  # D
        return self.channels // self.heads

    @property
    def ffn_dim(self) -> int:
        # DCA has one C x C projection more than CA; C/2 more hidden units cost the same.
        return self.ffn_ratio * self.channels + (self.channels // 2 if self.match_capacity else 0)

    def model_spec(self) -> ModelSpec:
        """The shapes that the device needs."""
        return ModelSpec(
            name=self.name,
            channels=self.channels,
            heads=self.heads,
            blocks=self.blocks,
            align_dim=self.align_dim,
            geometry_dim=self.geometry_dim,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; :meth:`from_dict` reads it back, through JSON as well."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Raises :class:`ConfigError` for unknown fields or values."""
        values = dict(data)
        if isinstance(values.get("backbone"), Mapping):
            values["backbone"] = _fill(BackboneConfig, values["backbone"])
        config: ModelConfig = _fill(cls, values)
        return config


def _fill(cls: type[Any], data: Mapping[str, Any]) -> Any:
    unknown = sorted(set(data) - {f.name for f in dataclasses.fields(cls)})
    if unknown:
        raise ConfigError(f"{cls.__name__}: unknown fields {', '.join(unknown)}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


_CHOICES: dict[str, tuple[str, ...]] = {
    "self_attention": typing.get_args(SelfAttention),
    "cross_attention": typing.get_args(CrossAttention),
    "dca_reading": typing.get_args(DcaReading),
    "lambda_kind": typing.get_args(LambdaKind),
    "wtconv": typing.get_args(WaveletPosition),
    "pooling": typing.get_args(Pooling),
}

_TINY_BACKBONE = BackboneConfig(
    stem_channels=48,
    stem_kernel=7,
    stem_stride=4,
    stem_pool=False,
    depths=(1, 1, 1, 1),
    widths=(16, 28, 48, 64),
    outputs=(64, 144, 256, 320),
    wtconv_levels=2,
    wtconv_kernel=3,
    pooling="flatten",
)

PRESETS: dict[str, ModelConfig] = {
    "msct": ModelConfig(),
    "msct-tiny": ModelConfig(
        name="msct-tiny",
        crop_px=64,
        channels=128,
        heads=4,
        blocks=2,
        ffn_ratio=2,
        backbone=_TINY_BACKBONE,
        inject_alignment=True,
        inject_lags=15,
        lag_evidence=5,  # runtime.spec.StreamSpec.max_transport_tokens
    ),
}

# The rows of the paper's Table 2, and the control that it lacks: overrides for preset().
ABLATION_ARMS: dict[str, dict[str, Any]] = {
    "ca+sa": {"cross_attention": "ca", "self_attention": "sa"},
    "ca+mssa": {"cross_attention": "ca", "self_attention": "mssa"},
    "dca+sa": {"cross_attention": "dca", "self_attention": "sa"},
    "dca+mssa": {"cross_attention": "dca", "self_attention": "mssa"},
    "ca-matched+sa": {"cross_attention": "ca", "self_attention": "sa", "match_capacity": True},
    "ca-matched+mssa": {"cross_attention": "ca", "self_attention": "mssa", "match_capacity": True},
}


def preset(name: str, **overrides: Any) -> ModelConfig:
    """A preset by name, some fields replaced.

    A mapping for ``backbone`` replaces only the backbone's fields that it names.

    Raises
    ------
    UsageError
        For an unknown preset.
    ConfigError
        For unknown fields, or fields that contradict each other.
    """
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}; there are: {', '.join(PRESETS)}")
    values = PRESETS[name].to_dict()
    backbone = overrides.pop("backbone", None)
    if isinstance(backbone, BackboneConfig):
        values["backbone"] = backbone
    elif backbone is not None:
        values["backbone"] = {**values["backbone"], **backbone}
    return ModelConfig.from_dict({**values, **overrides})
