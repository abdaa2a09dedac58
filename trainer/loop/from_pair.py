# SPDX-License-Identifier: Apache-2.0
"""The weights of an exported pair, back in the network, for ``trainer.fit --init msct-tiny``.

Most weights keep their names in the ONNX files.  Of the others the exporter keeps the order: the
n-th matrix product with a constant belongs to the n-th call of an ``nn.Linear``.  What it folds
cannot be told apart again, but means the same:

- a batch normalisation that is part of a convolution becomes one that changes nothing but adds the
  bias (mean 0, variance 1 - eps).  So its statistics are not those of any data: train with
  ``frozen_norm``, as the recipe ``finetune`` does;
- the scales of a wavelet convolution stay as a new network has them, the weights are divided.

At the end network and pair must agree on random input, or the weights are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from runtime.errors import ModelError
from runtime.models import PRESETS, model_dir
from runtime.optional import optional
from runtime.spec import FRAME_ENCODER_FILE, FUSION_FILE
from trainer.config import ModelConfig
from trainer.model.msct import MSCT
from trainer.model.wavelet import WTConv
from trainer.scoring.windows import TorchPair

if TYPE_CHECKING:
    from onnx import GraphProto

MAX_DIFFERENCE = 1e-4  # of any output, as after the export
AGAIN = "choose --preset as the pair was made, or train from its checkpoint"

Float32 = npt.NDArray[np.float32]
Calls = list[tuple[str, nn.Module]]


def is_pair(given: Path) -> bool:
    """A folder, or the name of a preset; a checkpoint is a file."""
    return given.is_dir() or (str(given) in PRESETS and not given.exists())


def load_pair(given: Path | str, cfg: ModelConfig) -> MSCT:
    """The network of a pair of graphs in fp32, in eval mode.

    given : a shipped preset's name, or a folder with a pair
    cfg : the configuration that the pair was exported with; the pair does not hold all of it

    Raises
    ------
    UsageError
        Where there is no such pair.
    ModelError
        For a pair of another configuration, precision or exporter.
    DependencyError
        Without ``onnx`` or ``onnxruntime``.
    """
    with optional("to start from a pair", extra="train,export,cpu"):
        import onnx

        from runtime.backends.onnx import OnnxBackend
    folder = model_dir(given)
    with OnnxBackend(folder, threads=1) as backend:  # checks both files
        spec = backend.spec
        if spec.model != cfg.model_spec() or spec.face.crop_px != cfg.crop_px:
            raise ModelError(f"{folder} holds {spec.model}, not {cfg.model_spec()}; {AGAIN}")
        model = MSCT(cfg).eval()
        frames = torch.zeros(1, cfg.crop_px, cfg.crop_px, 3, dtype=torch.uint8)
        tokens = torch.zeros(1, 2, cfg.channels), torch.zeros(1, 2, cfg.audio_dim)
        for part, file, inputs in (
            (model.frame_encoder, FRAME_ENCODER_FILE, (frames,)),
            (model.fusion, FUSION_FILE, tokens),
        ):
            graph = onnx.load(folder / file).graph
            part.load_state_dict(_Weights(folder / file, graph, part, _calls(part, inputs)).read())
        difference = _difference(TorchPair(model), backend, cfg)
    if not difference <= MAX_DIFFERENCE:
        raise ModelError(
            f"{folder}: the network differs from the pair by {difference:.2g} with its weights; "
            f"{AGAIN}"
        )
    return model


def _calls(module: nn.Module, inputs: tuple[Tensor, ...]) -> Calls:
    """The leaves of the module, in the order in which they are called."""
    calls: Calls = []

    def watch(name: str, leaf: nn.Module) -> Any:
        return leaf.register_forward_hook(lambda *_: calls.append((name, leaf)))

    hooks = [watch(n, leaf) for n, leaf in module.named_modules() if not list(leaf.children())]
    with torch.inference_mode():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    return calls


def _difference(mine: TorchPair, theirs: Any, cfg: ModelConfig) -> float:
    """The largest of any output, on seeded random input; NaN where either gives none."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (30, cfg.crop_px, cfg.crop_px, 3), dtype=np.uint8)
    audio = rng.standard_normal((2, 15, cfg.audio_dim), dtype=np.float32)
    found = []
    for pair in (mine, theirs):
        visual = pair.encode(frames)
        found.append([visual, *pair.fuse(visual.reshape(2, 15, -1), audio)])
    return float(max(np.abs(a - b).max() for a, b in zip(*found, strict=True)))


class _Weights:
    """Of one graph, under the names of its module."""

    def __init__(self, path: Path, graph: GraphProto, module: nn.Module, calls: Calls) -> None:
        from onnx import numpy_helper

        self.path, self.graph, self.module, self.calls = path, graph, module, calls
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.state = module.state_dict()
        self.found: dict[str, Float32] = {}  # by the module's names
        self.named: set[str] = set()  # constants of the graph that have those names, too

    def read(self) -> dict[str, Tensor]:
        if any(constant.dtype == np.float16 for constant in self.constants.values()):
            raise ModelError(f"{self.path} holds float16 weights; give the pair in fp32")
        for name in self.state:  # the fusion's names begin with that of the module around it
            for key in (name, f"fusion.{name}"):
                if key in self.constants:
                    self.found[name] = self.constants[key]
                    self.named.add(key)
        self._linear()
        self._layer_norm()
        self._folded()
        self._wavelets()
        return {name: self._tensor(name, mine) for name, mine in self.state.items()}

    def _tensor(self, name: str, mine: Tensor) -> Tensor:
        if name.endswith("num_batches_tracked"):
            return mine
        found = self.found.get(name)
        if found is None or found.dtype != np.float32 or found.shape != tuple(mine.shape):
            what = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise ModelError(
                f"{self.path}: {what} in place of {name}, float32 {list(mine.shape)}; {AGAIN}"
            )
        return torch.from_numpy(found.copy())

    def _paired(self, kind: type[nn.Module], nodes: list[Any]) -> Iterator[tuple[str, Any]]:
        names = [name for name, leaf in self.calls if isinstance(leaf, kind)]
        if len(names) != len(nodes):
            raise ModelError(
                f"{self.path}: {len(nodes)} nodes for {len(names)} calls of {kind.__name__}: the "
                f"pair was made by another configuration or exporter; {AGAIN}"
            )
        return zip(names, nodes, strict=True)

    def _linear(self) -> None:
        """Products with a constant matrix, and the constant that is added to them."""
        products = [
            node
            for node in self.graph.node
            if node.op_type in ("MatMul", "Gemm")
            and self.constants.get(node.input[1], np.empty(0)).ndim == 2
        ]
        added = {
            name: other
            for node in self.graph.node
            if node.op_type == "Add"
            for name, other in (tuple(node.input), tuple(node.input)[::-1])
            if other in self.constants
        }
        for name, node in self._paired(nn.Linear, products):
            weight = self.constants[node.input[1]]
            upright = any(a.name == "transB" and a.i == 1 for a in node.attribute)
            self.found[f"{name}.weight"] = weight if upright else weight.T
            bias = node.input[2] if len(node.input) > 2 else added.get(node.output[0])
            nothing = np.zeros(len(self.found[f"{name}.weight"]), np.float32)  # is left out
            self.found[f"{name}.bias"] = self.constants.get(bias, nothing)

    def _layer_norm(self) -> None:
        nodes = [node for node in self.graph.node if node.op_type == "LayerNormalization"]
        for name, node in self._paired(nn.LayerNorm, nodes):
            for part, constant in zip(("weight", "bias"), node.input[1:], strict=True):
                self.found[f"{name}.{part}"] = self.constants[constant]

    def _folded(self) -> None:
        """Batch normalisations that became the bias of the convolution before them."""
        for (conv, _), (name, norm) in zip(self.calls, self.calls[1:], strict=False):
            bias = self.constants.get(f"{conv}.weight_bias")
            if bias is None or not isinstance(norm, nn.BatchNorm2d):
                continue
            ones = np.ones_like(bias)
            self.found |= {
                f"{name}.weight": ones,
                f"{name}.bias": bias,
                f"{name}.running_mean": 0 * ones,
                f"{name}.running_var": ones - np.float32(norm.eps),
            }

    def _wavelets(self) -> None:
        """Each a convolution a level, then the base: what has no name, in this order."""
        nameless = [
            [self.constants[name] for name in node.input[1:]]
            for node in self.graph.node
            if node.op_type == "Conv" and node.input[1] in self.constants.keys() - self.named
        ]
        for name, module in self.module.named_modules():
            if not isinstance(module, WTConv):
                continue
            levels, nameless = nameless[: len(module.levels)], nameless[len(module.levels) :]
            scales = [scale.detach().numpy() for scale in module.level_scales]
            for i, (scale, (weight, *_)) in enumerate(zip(scales, levels, strict=False)):
                self.found[f"{name}.levels.{i}.weight"] = _divided(weight, scale)
                self.found[f"{name}.level_scales.{i}"] = scale
            scale, base = module.base_scale.detach().numpy(), nameless[:1]
            for weight, bias in base:
                self.found[f"{name}.base.weight"] = _divided(weight, scale)
                self.found[f"{name}.base.bias"] = _divided(bias, scale)
                self.found[f"{name}.base_scale"] = scale
            nameless = nameless[1:]


def _divided(values: Float32, scale: Float32) -> Float32:
    """[n, ...] by [n]; as they are where n is another one, which is told later."""
    if len(values) != len(scale):
        return values
    return values / scale.reshape(-1, *[1] * (values.ndim - 1))


def start_weights(given: Path, cfg: ModelConfig) -> MSCT:
    """Of ``--init``: a checkpoint's file, a pair's folder, or the name of a shipped preset."""
    from trainer.model.checkpoint import load_checkpoint

    if is_pair(given):
        return load_pair(given, cfg)
    model, _, _ = load_checkpoint(given, expect=cfg)
    return model
