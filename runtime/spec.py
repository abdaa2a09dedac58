# SPDX-License-Identifier: Apache-2.0
"""Everything that training and the device must agree on, written once.

A trained model carries one :class:`PairSpec` as JSON in the ``metadata_props`` of both its ONNX
files (key :data:`METADATA_KEY`); the trainer and the exporter write it, the runtime reads it and
never restates it.  Units are in the names; ``*_tokens`` count positions of the shared 25 Hz grid.

Sources: audio features after AV-HuBERT (Shi et al., 2022): 25 ms window, 10 ms hop, 26 log-mel
filters, 4 frames stacked; face template from dlib's 5-point mean face.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from runtime.errors import UserError

FRAME_ENCODER_FILE = "frame_encoder.onnx"
FUSION_FILE = "fusion.onnx"

METADATA_KEY = "msct.spec"  # where the JSON of a PairSpec lives in an ONNX file
SPEC_VERSION = 2
SCHEMA_VERSION = 1  # of a verdict
INT8_SUFFIX = "+int8"
FACE_STAGES = ("dlib", "encoder")  # what finds the points by which a crop is cut
FAKE = 1  # index of "fake" in every pair of logits

# What a frame encoder with heads gives as ``points`` [N, P, 2], in this order; left and right as
# seen in the picture.  The lips are their outline, from left to right between the two corners.
FACE_POINTS = (
    "left_eye",  # the middle between its corners
    "right_eye",
    "nose",  # its base
    "left_mouth",
    "right_mouth",
    *(f"upper_lip_{i}" for i in range(1, 10)),
    *(f"lower_lip_{i}" for i in range(1, 10)),
)


class SpecError(UserError):
    """A spec that cannot be read, or whose parts contradict each other."""


@dataclass(frozen=True)
class AudioSpec:
    """Log-mel tokens, pinned to kaldi-native-fbank's options.  Samples are mono in [-1, 1]."""

    sample_rate_hz: int = 16_000
    window_ms: float = 25.0
    hop_ms: float = 10.0
    window_type: str = "povey"
    mel_bins: int = 26
    low_hz: float = 20.0
    high_hz: float = 8_000.0
    preemphasis: float = 0.97
    remove_dc: bool = True
    dither: float = 0.0  # kaldi's default dithers: two runs would differ
    snip_edges: bool = True
    stack: int = 4  # frames per token
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.sample_rate_hz <= 0 or self.mel_bins <= 0 or self.stack <= 0:
            raise SpecError("AudioSpec: sample_rate_hz, mel_bins and stack must be positive")
        if self.dither != 0.0:
            raise SpecError("AudioSpec: dither must be 0, or two runs of one file differ")

    @property
    def token_dim(self) -> int:  # 104
        return self.mel_bins * self.stack

    @property
    def hop_samples(self) -> int:  # 160
        return round(self.sample_rate_hz * self.hop_ms / 1000)

    @property
    def window_samples(self) -> int:  # 400
        return round(self.sample_rate_hz * self.window_ms / 1000)

    @property
    def token_samples(self) -> int:  # 640, one token every 40 ms
        return self.hop_samples * self.stack

    @property
    def token_span_samples(self) -> int:  # 880, the samples that one token reads
        return self.token_samples - self.hop_samples + self.window_samples

    @property
    def token_hz(self) -> float:  # 25.0
        return self.sample_rate_hz / self.token_samples


@dataclass(frozen=True)
class FaceSpec:
    """Detection, tracking and alignment of face crops (RGB, uint8, square)."""

    stage: str = "dlib"  # of FACE_STAGES: whose crops the model was trained on
    crop_px: int = 64
    crop_padding: float = 0.15  # around dlib's 5-point mean face, as a share of its side
    detect_width_px: int = 640  # frames are resized to this width for detection
    track_every_tokens: int = 2  # between two updates of the box; landmarks are found in each
    detect_every_tokens: int = 15  # between two runs of the detector while a face is tracked
    rescan_every_tokens: int = 30  # of the whole picture for further faces, meanwhile
    search_every_tokens: int = 5  # the same while no face is tracked
    min_detection_score: float = 0.0  # dlib HOG + SVM margin
    min_track_quality: float = 6.0  # dlib's peak-to-side-lobe ratio
    min_face_px: int = 40  # width of the face in source pixels; smaller ones abstain
    landmark_smoothing: float = 0.6  # weight of the new landmarks in the running mean
    max_faces: int = 4

    def __post_init__(self) -> None:
        if self.stage not in FACE_STAGES:
            raise SpecError(
                f"FaceSpec.stage must be one of {', '.join(FACE_STAGES)}, not {self.stage}"
            )
        if self.crop_px < 32 or self.crop_px % 16:
            raise SpecError(
                f"FaceSpec.crop_px must be a multiple of 16 from 32, not {self.crop_px}"
            )


@dataclass(frozen=True)
class ModelSpec:
    """Shapes of the two graphs."""

    name: str = "msct-tiny"
    channels: int = 128  # C, width of the visual features and of the transformer
    heads: int = 4
    blocks: int = 2
    align_dim: int = 64  # E, of align_v and align_a
    geometry_dim: int = 0  # G: the frame encoder reads and follows the face; 0: it does not


@dataclass(frozen=True)
class StreamSpec:
    """Windows on the 25 Hz grid, and the rules that turn scores into verdicts."""

    window_tokens: int = 50
    hop_tokens: int = 5
    max_gap_tokens: int = 3  # a gap this long repeats the last feature, a longer one abstains
    max_lag_tokens: int = 15  # range in which the A/V offset is measured
    max_transport_tokens: int = 5  # +-200 ms: ordinary transport, compensated and reported apart
    forged_shift_tokens: int = 10  # from here an offset is never compensated
    av_offset_tokens: int = 0  # of this site, > 0: late sound; compensated from the first window
    min_lag_confidence: float = 0.12  # peak over median of the lag curve
    speech_level_dbfs: float = -50.0  # a token at or above it counts as sound
    min_speech_fraction: float = 0.2  # of a window's tokens
    smoothing: float = 0.5  # weight of the new window in the running logit of p_fake
    hysteresis: float = 0.05  # in probability, around the threshold

    def __post_init__(self) -> None:
        if not 0 < self.hop_tokens <= self.window_tokens:
            raise SpecError("StreamSpec: hop_tokens must be from 1 to window_tokens")
        if self.max_lag_tokens >= self.window_tokens:
            raise SpecError("StreamSpec: max_lag_tokens must be less than window_tokens")
        if not 0 < self.smoothing <= 1:
            raise SpecError("StreamSpec: smoothing must be in (0, 1]")
        if abs(self.av_offset_tokens) > self.max_transport_tokens:
            raise SpecError("StreamSpec: av_offset_tokens must be within max_transport_tokens")


@dataclass(frozen=True)
class Calibration:
    """Fitted on validation data apart from training; identity values mean 'not calibrated'."""

    temperature_av: float = 1.0
    temperature_v: float = 1.0
    temperature_a: float = 1.0
    bias_av: float = 0.0  # added to the difference of logits after the temperature
    bias_v: float = 0.0
    bias_a: float = 0.0
    threshold: float = 0.5  # on calibrated p_fake
    false_alarm_rate: float | None = None  # the rate on validation at which threshold was chosen
    min_clarity: float = 0.0  # of judging.offset.clarity; a window below it is out of domain


@dataclass(frozen=True)
class PairSpec:
    """The one copy of a model pair's parameters; travels in the ONNX metadata."""

    model: ModelSpec = field(default_factory=ModelSpec)
    audio: AudioSpec = field(default_factory=AudioSpec)
    face: FaceSpec = field(default_factory=FaceSpec)
    stream: StreamSpec = field(default_factory=StreamSpec)
    calibration: Calibration = field(default_factory=Calibration)
    trained: bool = False  # False: random weights, refused by runtime.stream
    pair_id: str = ""  # the same in both files of a pair
    model_id: str = ""  # what verdicts name, e.g. "msct-tiny-3f9a1c2b"
    precision: str = "fp32"  # or fp16; INT8_SUFFIX behind it: with a quantised frame encoder
    version: int = SPEC_VERSION

    def __post_init__(self) -> None:
        if self.face.stage == "encoder" and not self.model.geometry_dim:
            raise SpecError("PairSpec: a frame encoder without points cannot follow a face")

    @property
    def int8(self) -> bool:
        """Is the frame encoder quantised?"""
        return self.precision.endswith(INT8_SUFFIX)

    def to_json(self) -> str:
        """One line of JSON, keys sorted: equal specs give equal text."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> PairSpec:
        """Raises :class:`SpecError` for text that is no spec, or is one of another version."""
        try:
            data = json.loads(text)
        except (RecursionError, TypeError, ValueError) as err:
            raise SpecError(
                f"the model's spec is not JSON ({err}); export the model again"
            ) from err
        if not isinstance(data, dict) or data.get("version") != SPEC_VERSION:
            found = data.get("version") if isinstance(data, dict) else type(data).__name__
            raise SpecError(
                f"the model's spec has version {found!r}, this runtime reads {SPEC_VERSION}; "
                "python -m export.respec FOLDER --output NEW writes a pair of an older version "
                "anew, weights untouched"
            )
        return build(cls, data)

    @classmethod
    def from_older_json(cls, text: str) -> PairSpec:
        """As :meth:`from_json`, of this version or an older one: what it did not say is as it was.

        Version 1 had neither ``face.stage`` nor ``model.geometry_dim``.
        """
        try:
            data = json.loads(text)
        except (RecursionError, TypeError, ValueError):
            data = None
        if isinstance(data, dict) and data.get("version") == 1:
            text = json.dumps({**data, "version": SPEC_VERSION})
        return cls.from_json(text)


_T = TypeVar("_T")


def build(cls: type[_T], data: Any) -> _T:
    """A dataclass out of what JSON gives: objects, numbers, text, null, and maps of those.

    Raises :class:`SpecError` for an unknown or a missing field and for a value of another type.
    """
    if not isinstance(data, dict):
        raise SpecError(f"{cls.__name__}: expected an object, found {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - names)
    if unknown:
        raise SpecError(f"{cls.__name__}: unknown fields {', '.join(unknown)}")
    missing = sorted(
        f.name
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.name not in data
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    )
    if missing:
        raise SpecError(f"{cls.__name__}: no {', '.join(missing)}")
    kwargs = {name: _convert(f"{cls.__name__}.{name}", hints[name], v) for name, v in data.items()}
    return cls(**kwargs)


def _convert(where: str, hint: Any, value: Any) -> Any:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # JSON has them of any size
        raise SpecError(f"{where}: a number beyond all bounds")
    if dataclasses.is_dataclass(hint):
        return build(hint, value)  # type: ignore[arg-type]
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
        return _convert(where, hint, value)
    if origin is dict and isinstance(value, dict):
        inner = typing.get_args(hint)[1]
        return {key: _convert(f"{where}.{key}", inner, v) for key, v in value.items()}
    if origin is dict:
        raise SpecError(f"{where}: expected an object, found {value!r}")
    if hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise SpecError(f"{where}: expected {hint.__name__}, found {value!r}")
