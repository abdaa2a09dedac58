# SPDX-License-Identifier: Apache-2.0
"""INT8 for the frame encoder: explicit Q/DQ pairs around its dense convolutions.

ONNX Runtime's own quantizer does the work; scales of the weights are per output channel, of the
activations from the extremes that the calibration frames gave.  Biases and everything else stay as
they are, and so do convolutions of few input channels (the stem, the depthwise ones of the
wavelets, CBAM's spatial ones), which cost little.  Two forms:

- for engines: activations symmetric int8, which is what TensorRT takes, and only the inputs of the
  convolutions, whose results then go on in the type of the graph;
- for ONNX Runtime on the CPU: activations unsigned, inputs and outputs, which is what its integer
  convolutions take.

On msct-tiny clipping the activations (percentile, entropy) was no better than their extremes.
Whether a quantised model is good enough is for :mod:`export.build_engine` to say, on clips that
the calibration did not see.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from export.parity import Window
from export.precision import QDQ_FP16_OPSET, check, read_spec, restamp
from runtime import interrupt, leftovers
from runtime.backends.base import FRAME_ENCODER_INPUTS
from runtime.errors import ModelError
from runtime.optional import optional
from runtime.spec import INT8_SUFFIX, PairSpec

MIN_INPUT_CHANNELS = 16  # of a convolution that is quantised
CALIBRATION_BATCH = 10  # frames a run
HELD_OUT_EVERY = 4  # of the calibration clips, one in so many is kept for the check


def int8_spec(spec: PairSpec) -> PairSpec:
    """The spec of a pair whose frame encoder is quantised."""
    return dataclasses.replace(
        spec,
        precision=f"{spec.precision}{INT8_SUFFIX}",
        pair_id=f"{spec.pair_id}-int8",
        model_id=f"{spec.model_id}-int8",
    )


def to_int8(
    model: ModelProto, frames: Sequence[NDArray[np.uint8]], *, for_engine: bool
) -> ModelProto:
    """A copy of an fp32 frame encoder with Q/DQ pairs, calibrated on ``frames`` [n, H, W, 3] each.

    Raises :class:`DependencyError` where ONNX Runtime's quantizer is missing, :class:`ModelError`
    if there is nothing to quantise.
    """
    with optional("for --int8", extra="cpu,export"):
        from onnxruntime import quantization
    named = ModelProto()
    named.CopyFrom(model)
    for i, node in enumerate(named.graph.node):
        node.name = node.name or f"{node.op_type}_{i}"  # the quantizer goes by names
    dense = _dense_convolutions(named)
    if not dense:
        raise ModelError("int8: the frame encoder has no convolution to quantise")
    for opset in named.opset_import:
        if opset.domain == "":
            opset.version = max(opset.version, QDQ_FP16_OPSET)

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = _batches(frames)

        def get_next(self) -> Any:
            interrupt.check()
            return next(self.batches, None)

    with leftovers.folder("msct-int8-") as folder, _quiet():
        path = folder / "int8.onnx"
        quantization.quantize_static(
            named,
            path,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            nodes_to_quantize=dense,
            per_channel=True,
            activation_type=getattr(quantization.QuantType, "QInt8" if for_engine else "QUInt8"),
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": for_engine,
                "OpTypesToExcludeOutputQuantization": ["Conv"] if for_engine else [],
                "QuantizeBias": False,
            },
        )
        made = onnx.load_from_string(path.read_bytes())
    spec = int8_spec(read_spec(model))
    made.producer_name, made.producer_version = model.producer_name, model.producer_version
    made.ir_version = model.ir_version
    del made.graph.value_info[:]
    restamp(made, spec)
    check(made)
    return made


def restamped(model: ModelProto) -> ModelProto:
    """The fusion of a pair whose frame encoder was quantised: as it was, with the new spec."""
    made = ModelProto()
    made.CopyFrom(model)
    restamp(made, int8_spec(read_spec(model)))
    return made


def split_clips(clips: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Calibration clips and clips for the check; at least one of each of two or more."""
    held = list(clips[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]) or list(clips[-1:])
    return [clip for clip in clips if clip not in held], held


def check_windows(windows: Sequence[Window]) -> list[Window]:
    """Each window with its own sound, with another's (a forgery of sorts), and with none."""
    others = [*windows[1:], *windows[:1]]
    silent = [window._replace(audio=np.zeros_like(window.audio)) for window in windows]
    swapped = [a._replace(audio=b.audio) for a, b in zip(windows, others, strict=True)]
    return [*windows, *swapped, *silent]


def _dense_convolutions(model: ModelProto) -> list[str]:
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and shapes.get(node.input[1], [0, 0])[1] >= MIN_INPUT_CHANNELS
    ]


def _batches(frames: Iterable[NDArray[np.uint8]]) -> Iterator[dict[str, NDArray[np.uint8]]]:
    for some in frames:
        for at in range(0, len(some), CALIBRATION_BATCH):
            yield {FRAME_ENCODER_INPUTS[0]: some[at : at + CALIBRATION_BATCH]}


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer advises other tools through the root logger; what matters raises."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
