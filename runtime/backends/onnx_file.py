# SPDX-License-Identifier: Apache-2.0
"""What an ONNX file says about itself, read from its bytes before any library opens it.

ONNX lets a tensor name another file to read its values from; readers of that have let models out
of their folder (CVE-2022-25882, CVE-2024-27318).  A device has no ``onnx`` package and ONNX
Runtime follows such names while it loads, so this module walks the protobuf wire format itself,
through every place where a tensor can be, and reports what it finds.  It keeps no weights and
takes milliseconds.

It also finds what none of our graphs has and what could keep a device busy for ever: graphs inside
of nodes (Loop, Scan, If), functions that call functions (a few lines of them stand for a billion
nodes), sparse tensors and tensors that claim more values than their file could hold.

Source: ``onnx.proto3`` of ONNX 1.23 (field numbers below); protobuf's encoding guide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4 (groups) are not used
_MAX_DEPTH = 64  # of subgraphs in subgraphs
MAX_FIELDS = 500_000  # seconds of walking at most; the larger file of msct-tiny has 12,000
_VALUES_A_BYTE = 8  # at most: no type of ONNX takes less than a bit
_CONTROL_FLOW = frozenset(["If", "Loop", "Scan", "SequenceMap"])

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
_FUNCTION_OPSET, _FUNCTION_DOMAIN, _NODE_TYPE, _NODE_DOMAIN = 9, 10, 4, 7
_TENSOR_DIMS = 1
_GRAPH_INPUT, _GRAPH_OUTPUT = 11, 12


@dataclass
class OnnxFile:
    """The parts of a model that decide whether it may be opened."""

    metadata: dict[str, str] = field(default_factory=dict)
    opsets: dict[str, int] = field(default_factory=dict)  # domain ("" is ONNX's own) -> newest
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    node_domains: Counter[str] = field(default_factory=Counter)  # nodes by domain, bodies included
    function_domains: set[str] = field(default_factory=set)
    control_flow: set[str] = field(default_factory=set)  # operators with graphs of their own
    has_external_data: bool = False
    has_graph: bool = False
    has_sparse: bool = False
    has_false_sizes: bool = False  # a tensor of more values than the file could hold
    functions_call: bool = False  # a function's body has nodes that are no standard operators
    size_bytes: int = 0
    fields: int = 0  # seen so far


class WireError(ValueError):
    """Bytes that are no protobuf message."""


def read_onnx(data: bytes) -> OnnxFile:
    """Raises :class:`WireError` for bytes that are not an ONNX model (text, cut short, damaged)."""
    found = OnnxFile(size_bytes=len(data))
    try:
        _walk(memoryview(data), "Model", found, 0)
        for number, value in _fields(memoryview(data), found):
            if number == _MODEL_GRAPH:
                found.has_graph = True
                for n, entry in _fields(_message(value), found):
                    if n == _GRAPH_INPUT:
                        found.inputs.append(_text(entry, 1, found))
                    elif n == _GRAPH_OUTPUT:
                        found.outputs.append(_text(entry, 1, found))
            elif number == _MODEL_OPSET:
                _add_opset(found, value)
            elif number == _MODEL_FUNCTION:
                found.function_domains.add(_text(value, _FUNCTION_DOMAIN, found))
                for n, entry in _fields(_message(value), found):
                    if n == _FUNCTION_OPSET:
                        _add_opset(found, entry)
            elif number == _MODEL_METADATA:
                found.metadata[_text(value, 1, found)] = _text(value, 2, found)
    except UnicodeDecodeError as err:
        raise WireError("text in it is not UTF-8") from err
    if not found.has_graph:
        raise WireError("it holds no graph")
    return found


def _walk(
    message: memoryview, kind: str, found: OnnxFile, depth: int, *, in_function: bool = False
) -> None:
    if depth > _MAX_DEPTH:
        raise WireError("its graphs are nested too deeply")
    children = _CHILDREN[kind]
    in_function = in_function or kind == "Function"
    values = 1  # of a tensor
    if kind == "Node":
        domain = _text(message, _NODE_DOMAIN, found)
        operator = _text(message, _NODE_TYPE, found)
        found.node_domains[domain] += 1
        found.functions_call |= in_function and domain not in ("", "ai.onnx")
        if operator in _CONTROL_FLOW:
            found.control_flow.add(operator)
    elif kind == "Sparse":
        found.has_sparse = True
    for number, value in _fields(message, found):
        if kind == "Tensor":
            if number == _TENSOR_DIMS:
                values *= _product(value)
            if number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value != 0):
                found.has_external_data = True
        elif number in children:
            if kind == "Attribute" and children[number] == "Graph":
                found.control_flow.add("a graph in a node")
            _walk(_message(value), children[number], found, depth + 1, in_function=in_function)
    found.has_false_sizes |= values > _VALUES_A_BYTE * found.size_bytes


def _product(value: int | memoryview) -> int:
    """Of one dimension, or of several that are packed."""
    if isinstance(value, int):
        return value
    product, at = 1, 0
    while at < len(value):
        size, at = _varint(value, at)
        product = min(product * size, 1 << 64)
    return product


def _fields(message: memoryview, found: OnnxFile) -> Iterator[tuple[int, int | memoryview]]:
    """Field number and value (an integer, or the bytes of a string, message or fixed number)."""
    at, end = 0, len(message)
    while at < end:
        found.fields += 1
        if found.fields > MAX_FIELDS:
            raise WireError("it has more parts than any model")
        tag, at = _varint(message, at)
        wire = tag & 7
        if tag >> 3 == 0:
            raise WireError("it is no protobuf message")
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


def _text(value: int | memoryview, number: int, found: OnnxFile) -> str:
    """The string in field ``number`` of a message, '' if it has none; the last one counts."""
    values = [v for n, v in _fields(_message(value), found) if n == number]
    return bytes(_message(values[-1])).decode() if values else ""


def _add_opset(found: OnnxFile, value: int | memoryview) -> None:
    domain = _text(value, 1, found)
    domain = "" if domain == "ai.onnx" else domain
    fields = _fields(_message(value), found)
    versions = [v for n, v in fields if n == 2 and isinstance(v, int)]
    if not versions:
        raise WireError("an operator set has no version")
    found.opsets[domain] = max(versions[-1], found.opsets.get(domain, 0))
