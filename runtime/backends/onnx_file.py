# SPDX-License-Identifier: Apache-2.0
"""What an ONNX file says about itself, read from its bytes before any library opens it.

ONNX lets a tensor name another file to read its values from; readers of that have let models out
of their folder (CVE-2022-25882, CVE-2024-27318).  A device has no ``onnx`` package and ONNX
Runtime follows such names while it loads, so this module walks the protobuf wire format itself,
through every place where a tensor can be, and reports what it finds.  It keeps no weights and
takes milliseconds.

Source: ``onnx.proto3`` of ONNX 1.23 (field numbers below); protobuf's encoding guide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4 (groups) are not used
_MAX_DEPTH = 64  # of subgraphs in subgraphs

# message -> field number -> message in that field: every path by which a tensor can be reached
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_MODEL_GRAPH, _MODEL_OPSET, _MODEL_METADATA, _MODEL_FUNCTION = 7, 8, 14, 25
_FUNCTION_OPSET, _NODE_DOMAIN = 9, 7
_GRAPH_INPUT, _GRAPH_OUTPUT = 11, 12


@dataclass
class OnnxFile:
    """The parts of a model that decide whether it may be opened."""

    metadata: dict[str, str] = field(default_factory=dict)
    opsets: dict[str, int] = field(default_factory=dict)  # domain ("" is ONNX's own) -> newest
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    node_domains: Counter[str] = field(default_factory=Counter)  # nodes by domain, bodies included
    has_external_data: bool = False
    has_graph: bool = False


class WireError(ValueError):
    """Bytes that are no protobuf message."""


def read_onnx(data: bytes) -> OnnxFile:
    """Raises :class:`WireError` for bytes that are not an ONNX model (text, cut short, damaged)."""
    found = OnnxFile()
    try:
        _walk(memoryview(data), "Model", found, 0)
        for number, value in _fields(memoryview(data)):
            if number == _MODEL_GRAPH:
                found.has_graph = True
                for n, entry in _fields(_message(value)):
                    if n == _GRAPH_INPUT:
                        found.inputs.append(_text(entry, 1))
                    elif n == _GRAPH_OUTPUT:
                        found.outputs.append(_text(entry, 1))
            elif number == _MODEL_OPSET:
                _add_opset(found, value)
            elif number == _MODEL_FUNCTION:
                for n, entry in _fields(_message(value)):
                    if n == _FUNCTION_OPSET:
                        _add_opset(found, entry)
            elif number == _MODEL_METADATA:
                found.metadata[_text(value, 1)] = _text(value, 2)
    except UnicodeDecodeError as err:
        raise WireError("text in it is not UTF-8") from err
    if not found.has_graph:
        raise WireError("it holds no graph")
    return found


def _walk(message: memoryview, kind: str, found: OnnxFile, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise WireError("its graphs are nested too deeply")
    children = _CHILDREN[kind]
    if kind == "Node":
        found.node_domains[_text(message, _NODE_DOMAIN)] += 1
    for number, value in _fields(message):
        if kind == "Tensor":
            if number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value != 0):
                found.has_external_data = True
        elif number in children:
            _walk(_message(value), children[number], found, depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field number and value (an integer, or the bytes of a string, message or fixed number)."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if wire == _BYTES:
            size, at = _varint(message, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise WireError("it is no protobuf message")
        if at + size > end:
            raise WireError("it is cut short")
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise WireError("it is cut short or no protobuf message")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise WireError("a number stands where a message belongs")
    return value


def _text(value: int | memoryview, number: int) -> str:
    """The string in field ``number`` of a message, '' if it has none; the last one counts."""
    found = [v for n, v in _fields(_message(value)) if n == number]
    return bytes(_message(found[-1])).decode() if found else ""


def _add_opset(found: OnnxFile, value: int | memoryview) -> None:
    domain = _text(value, 1)
    domain = "" if domain == "ai.onnx" else domain
    versions = [v for n, v in _fields(_message(value)) if n == 2 and isinstance(v, int)]
    if not versions:
        raise WireError("an operator set has no version")
    found.opsets[domain] = max(versions[-1], found.opsets.get(domain, 0))
