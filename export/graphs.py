# SPDX-License-Identifier: Apache-2.0
"""The trained network -> the two ONNX files.  The only module of this package that needs torch.

``frame_encoder.onnx``: frames uint8 [N, H, W, 3] -> visual [N, C]; its first node is Cast, since
TensorRT-RTX takes uint8 nowhere else.  An encoder that follows the face gives ``geometry`` [N, G],
``points`` [N, P, 2] and ``presence`` [N] besides.  ``fusion.onnx``: visual [B, T, C], audio
[B, T, A] -> the seven outputs.  N, B and T are dynamic.

Each custom op is one node of domain ``msct`` with a model-local function body from
:func:`trainer.model.ops.onnx_functions`, so the file runs in any ONNX runtime.  Both files carry
the whole spec in their metadata and the same pair_id, a hash of weights and spec; equal weights
give equal bytes, and nothing in them names the machine that made them.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import onnx
import torch
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto
from torch import Tensor, nn

import trainer.model.ops
from export import precision
from export.manifest import staged_folder, write_manifest
from export.parity import LOGIT_LIMIT_FP32, Parity, Window, compare, summary
from runtime.backends.base import (
    FRAME_ENCODER_INPUTS,
    FUSION_INPUTS,
    FUSION_OUTPUTS,
    OP_DOMAIN,
    OP_VERSION,
    encoder_outputs,
)
from runtime.backends.onnx import OnnxBackend
from runtime.errors import ModelError
from runtime.spec import FRAME_ENCODER_FILE, FUSION_FILE, FaceSpec, PairSpec
from trainer.config import ModelConfig, preset
from trainer.model.checkpoint import load_checkpoint
from trainer.model.msct import MSCT, FrameEncoder
from trainer.scoring.windows import TorchPair

OPSET = 18  # every TensorRT from 10.0 on reads it
IR_VERSION = 10
UNTRAINED_SEED = 0

Progress = Callable[[str], None]


class ExportedPair(NamedTuple):
    """What :func:`export_pair` wrote."""

    frame_encoder: Path
    fusion: Path
    manifest: Path
    spec: PairSpec
    parity: Parity


def from_checkpoint(path: Path) -> tuple[MSCT, PairSpec]:
    """The network of a checkpoint and its spec; without one in the file, an untrained one's."""
    model, config, spec = load_checkpoint(path)
    return model, spec if spec is not None else _default_spec(config)


def untrained(config: ModelConfig | str, seed: int = UNTRAINED_SEED) -> tuple[MSCT, PairSpec]:
    """A network of seeded random weights; its spec says ``trained: false``.

    ``config`` may be a preset's name; :class:`runtime.errors.UsageError` if there is none such.
    """
    if isinstance(config, str):
        config = preset(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MSCT(config).eval()
    return model, _default_spec(config)


def _default_spec(config: ModelConfig) -> PairSpec:
    return PairSpec(model=config.model_spec(), face=FaceSpec(crop_px=config.crop_px), trained=False)


def export_pair(
    model: MSCT,
    spec: PairSpec,
    folder: Path,
    *,
    real: Sequence[Window] = (),
    progress: Progress = lambda step: None,
) -> ExportedPair:
    """Write the fp32 pair and its manifest to ``folder``, after a parity check against torch.

    Parameters
    ----------
    model
        Left as it is; a copy in evaluation mode, float32, on the CPU is exported.
    spec
        Its pair_id, model_id and precision are replaced.
    folder
        Appears, or changes, only if everything succeeded.
    real
        Windows of real input for the parity check, beside the random ones.

    Raises
    ------
    ModelError
        If spec and model disagree, or the graph breaks a rule of the design.
    ParityError
        If ONNX Runtime's logits differ from torch's by more than 1e-4.
    """
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    spec = identify(model, spec)
    with staged_folder(folder) as staging:
        progress("export frame encoder")
        _save(frame_encoder_model(model, spec), staging / FRAME_ENCODER_FILE)
        progress("export fusion")
        _save(fusion_model(model, spec), staging / FUSION_FILE)
        progress("compare with torch")
        with OnnxBackend(staging) as backend:
            parity = compare(
                backend,
                TorchPair(model),
                spec,
                names=("ONNX Runtime fp32", "torch fp32"),
                real=real,
            )
        parity.check(logits=LOGIT_LIMIT_FP32)
        facts = {"backend": "onnx", "parity": summary([parity])}
        names = (FRAME_ENCODER_FILE, FUSION_FILE)
        manifest = write_manifest(staging, names, spec, facts)
    return ExportedPair(
        folder / FRAME_ENCODER_FILE, folder / FUSION_FILE, folder / manifest.name, spec, parity
    )


def identify(model: MSCT, spec: PairSpec) -> PairSpec:
    """The spec with pair_id and model_id set: a hash of the weights, the config and the spec."""
    config = model.cfg
    if spec.model != config.model_spec() or spec.face.crop_px != config.crop_px:
        raise ModelError(
            f"spec and model disagree: the spec is for {spec.model} with {spec.face.crop_px} px "
            f"crops, the model is {config.model_spec()} with {config.crop_px} px"
        )
    if spec.audio.token_dim != config.audio_dim:
        raise ModelError(
            f"spec and model disagree: audio tokens are {spec.audio.token_dim} wide in the spec "
            f"and {config.audio_dim} in the model"
        )
    spec = dataclasses.replace(spec, pair_id="", model_id="", precision="fp32")
    digest = hashlib.sha256(spec.to_json().encode())
    digest.update(json.dumps(config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    pair_id = digest.hexdigest()[:16]
    return dataclasses.replace(spec, pair_id=pair_id, model_id=f"{spec.model.name}-{pair_id[:8]}")


def frame_encoder_model(model: MSCT, spec: PairSpec) -> ModelProto:
    """The frame encoder as a checked ONNX model with metadata."""
    side = spec.face.crop_px
    frames = torch.zeros(3, side, side, 3, dtype=torch.uint8)
    encoder = model.frame_encoder
    program = _export(
        _Following(encoder) if spec.model.geometry_dim else encoder,
        (frames,),
        FRAME_ENCODER_INPUTS,
        encoder_outputs(spec),
        ({0: torch.export.Dim("N", min=1)},),
    )
    first = program.graph.node[0]
    if first.op_type != "Cast" or list(first.input) != list(FRAME_ENCODER_INPUTS):
        raise ModelError(
            f"the frame encoder starts with {first.op_type}, not with the Cast of its uint8 "
            "frames, which TensorRT-RTX refuses: convert the frames before anything else"
        )
    return _finish(program, spec)


def fusion_model(model: MSCT, spec: PairSpec) -> ModelProto:
    """The transformer as a checked ONNX model with metadata and function bodies."""
    visual = torch.zeros(2, 7, spec.model.channels)
    audio = torch.zeros(2, 7, spec.audio.token_dim)
    dims = {0: torch.export.Dim("B", min=1), 1: torch.export.Dim("T", min=1)}
    program = _export(
        _Outputs(model.fusion), (visual, audio), FUSION_INPUTS, FUSION_OUTPUTS, (dims, dict(dims))
    )
    return _finish(program, spec)


class _Following(nn.Module):
    """A frame encoder with all that it says, as a plain tuple."""

    def __init__(self, encoder: FrameEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.encoder.follow(frames))


class _Outputs(nn.Module):
    """The fusion with the outputs of the design only, as a plain tuple."""

    def __init__(self, fusion: nn.Module) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, ...]:
        out = self.fusion(visual, audio)
        return tuple(getattr(out, name) for name in FUSION_OUTPUTS)


def _export(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: tuple[object, ...],
) -> ModelProto:
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            inputs,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=dynamic_shapes,
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter talks of its own internals; what matters raises."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _finish(model: ModelProto, spec: PairSpec) -> ModelProto:
    """Function bodies, metadata, no traces of the exporting machine; then ONNX's own checks."""
    _strip(model)
    used = {node.op_type for node in model.graph.node if node.domain == OP_DOMAIN}
    bodies = [f for f in trainer.model.ops.onnx_functions(OPSET) if f.name in used]
    missing = used - {f.name for f in bodies}
    if missing:
        raise ModelError(f"no function body for the custom op {', '.join(sorted(missing))}")
    model.functions.extend(bodies)
    foreign = {node.domain for node in model.graph.node} - {"", OP_DOMAIN}
    if foreign:
        raise ModelError(f"the exported graph uses foreign operators of {', '.join(foreign)}")
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    if used:
        model.opset_import.append(onnx.helper.make_opsetid(OP_DOMAIN, OP_VERSION))
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "msct", ""
    precision.restamp(model, spec)
    precision.check(model)
    return model


def _strip(model: ModelProto) -> None:
    """Remove what the exporter notes for debugging: stack traces, paths, module names."""
    model.doc_string = ""
    graph: GraphProto = model.graph
    graph.doc_string = ""
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:]
    noted: list[NodeProto | FunctionProto] = [*graph.node, *model.functions]
    noted += [node for function in model.functions for node in function.node]
    for entry in (*noted, *graph.input, *graph.output, *graph.initializer):
        entry.doc_string = ""
        del entry.metadata_props[:]


def _save(model: ModelProto, path: Path) -> None:
    path.write_bytes(model.SerializeToString(deterministic=True))
