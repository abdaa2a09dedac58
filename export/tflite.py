# SPDX-License-Identifier: Apache-2.0
"""Reads TFLite files: the flatbuffer's tables, and tensors as dense arrays.

No more than a converter of small float models needs, with numpy alone.  What is read here has been
checked against a hash: it is not for files of strangers.  Sources: the layout of flatbuffers
(google.github.io/flatbuffers/flatbuffers_internals.html); names and numbers of fields
(tensorflow/lite/schema/schema.fbs); what DENSIFY does (tensorflow/lite/kernels/internal/utils/
sparsity_format_converter.h).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import ModelError

Array = npt.NDArray[Any]

IDENTIFIER = b"TFL3"
OPERATORS = {
    0: "ADD", 2: "CONCATENATION", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 5: "DEPTH_TO_SPACE",
    6: "DEQUANTIZE", 17: "MAX_POOL_2D", 19: "RELU", 22: "RESHAPE", 23: "RESIZE_BILINEAR",
    34: "PAD", 124: "DENSIFY",
}  # fmt: skip
# schema.fbs, in the order of its fields: (name, format of a scalar)
OPTIONS: dict[str, list[tuple[str, str]]] = {
    "ADD": [("activation", "i1")],
    "CONCATENATION": [("axis", "<i4"), ("activation", "i1")],
    "CONV_2D": [("padding", "i1"), ("stride_w", "<i4"), ("stride_h", "<i4"), ("activation", "i1")],
    "DEPTHWISE_CONV_2D": [("padding", "i1"), ("stride_w", "<i4"), ("stride_h", "<i4"),
                          ("multiplier", "<i4"), ("activation", "i1")],
    "DEPTH_TO_SPACE": [("block", "<i4")],
    "MAX_POOL_2D": [("padding", "i1"), ("stride_w", "<i4"), ("stride_h", "<i4"),
                    ("width", "<i4"), ("height", "<i4"), ("activation", "i1")],
    "RESIZE_BILINEAR": [("", "<i4"), ("", "<i4"), ("align_corners", "i1"), ("half_pixel", "i1")],
}  # fmt: skip
DTYPES = {0: "<f4", 1: "<f2", 2: "<i4"}
_INDEX_DTYPES = {1: "<i4", 2: "<u2", 3: "u1"}  # of the vectors of a sparse dimension
_DENSE, _SPARSE_CSR = 0, 1


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    data: Array | None  # None: it is computed


@dataclass(frozen=True)
class Operator:
    kind: str
    inputs: list[int]
    outputs: list[int]
    options: dict[str, int]


@dataclass(frozen=True)
class Graph:
    tensors: list[Tensor]
    operators: list[Operator]
    inputs: list[int]
    outputs: list[int]


class _Table:
    """A table of a flatbuffer: its fields are found through a list of offsets."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._fields = at - self._number(at, "<i4")
        self._size = self._number(self._fields, "<u2")

    def scalar(self, field: int, kind: str, default: int = 0) -> int:
        at = self._where(field)
        return default if at is None else self._number(at, kind)

    def table(self, field: int) -> _Table | None:
        at = self._where(field)
        return None if at is None else _Table(self._data, self._follow(at))

    def tables(self, field: int) -> list[_Table]:
        return [_Table(self._data, self._follow(at)) for at in self._items(field, 4)]

    def vector(self, field: int, dtype: str) -> Array:
        items = self._items(field, np.dtype(dtype).itemsize)
        return np.frombuffer(self._data, dtype, len(items), items.start if items else 0)

    def _where(self, field: int) -> int | None:
        entry = 4 + 2 * field
        offset = self._number(self._fields + entry, "<u2") if entry < self._size else 0
        return self._at + offset if offset else None

    def _items(self, field: int, size: int) -> range:
        at = self._where(field)
        if at is None:
            return range(0)
        start = self._follow(at)
        first, count = start + 4, self._number(start, "<u4")
        return range(first, first + size * count, size)

    def _follow(self, at: int) -> int:
        return at + self._number(at, "<u4")

    def _number(self, at: int, kind: str) -> int:
        return int(np.frombuffer(self._data, kind, 1, at)[0])


def read(data: bytes) -> Graph:
    """The first subgraph; raises :class:`ModelError` for what is no TFLite file, or not known."""
    if data[4:8] != IDENTIFIER:
        raise ModelError("this is no TFLite file")
    model = _Table(data, int(np.frombuffer(data, "<u4", 1)[0]))
    graph = model.tables(2)[0]
    buffers = model.tables(4)
    # one byte was not enough for all operators: the newer field holds the larger numbers
    codes = [max(c.scalar(0, "i1"), c.scalar(3, "<i4")) for c in model.tables(1)]
    return Graph(
        tensors=[_tensor(t, buffers) for t in graph.tables(0)],
        operators=[_operator(o, codes) for o in graph.tables(3)],
        inputs=graph.vector(1, "<i4").tolist(),
        outputs=graph.vector(2, "<i4").tolist(),
    )


def _tensor(table: _Table, buffers: list[_Table]) -> Tensor:
    name = table.vector(3, "u1").tobytes().decode()
    shape = tuple(table.vector(0, "<i4").tolist())
    kind = table.scalar(1, "i1")
    content = buffers[table.scalar(2, "<u4")].vector(0, "u1").tobytes()
    if not content:
        return Tensor(name, shape, None)
    if kind not in DTYPES:
        raise ModelError(f"{name}: numbers of type {kind} are not known")
    values = np.frombuffer(content, DTYPES[kind])
    sparsity = table.table(6)
    return Tensor(name, shape, densify(values, shape, sparsity) if sparsity else
                  values.reshape(shape))  # fmt: skip


def densify(values: Array, shape: tuple[int, ...], sparsity: Any) -> Array:
    """Values of a tensor in TACO's format -> [*shape]; its zeros are not kept.

    Each dimension in turn is dense (all its indices) or compressed (a list of those in use).
    """
    order = sparsity.vector(0, "<i4").tolist()
    levels = sparsity.tables(2)
    if order != list(range(len(shape))) or len(levels) != len(shape):
        raise ModelError("sparse tensors with blocks, or in another order, are not known")
    position = np.zeros(1, np.int64)  # of each entry so far within its level
    index: list[Array] = []  # of each entry so far, one array a dimension
    for size, level in zip(shape, levels, strict=True):
        kind = level.scalar(0, "i1")
        if kind == _DENSE:
            counts = np.full(len(position), size)
            own = np.tile(np.arange(size), len(position))
            following = (position[:, None] * size + np.arange(size)).ravel()
        elif kind == _SPARSE_CSR:
            segments = _indices(level, 2)
            counts = segments[position + 1] - segments[position]
            starts = np.repeat(segments[position] - np.cumsum(counts) + counts, counts)
            following = starts + np.arange(counts.sum())
            own = _indices(level, 4)[following]
        else:
            raise ModelError(f"sparse dimensions of kind {kind} are not known")
        index = [np.repeat(i, counts) for i in index] + [own]
        position = following
    dense = np.zeros(shape, values.dtype)
    dense[tuple(index)] = values[position]
    return dense


def _indices(level: _Table, field: int) -> npt.NDArray[np.int64]:
    kind, vector = level.scalar(field, "u1"), level.table(field + 1)
    if vector is None or kind not in _INDEX_DTYPES:
        raise ModelError("a sparse dimension without its indices")
    return vector.vector(0, _INDEX_DTYPES[kind]).astype(np.int64)


def _operator(table: _Table, codes: list[int]) -> Operator:
    code = codes[table.scalar(0, "<u4")]
    if code not in OPERATORS:
        raise ModelError(f"operator {code} of TFLite is not known here")
    kind, options = OPERATORS[code], table.table(4)
    fields = OPTIONS.get(kind, [])
    return Operator(
        kind=kind,
        inputs=table.vector(1, "<i4").tolist(),
        outputs=table.vector(2, "<i4").tolist(),
        options=dict(_options(options, fields)) if options else {},
    )


def _options(table: _Table, fields: list[tuple[str, str]]) -> Iterator[tuple[str, int]]:
    for number, (name, kind) in enumerate(fields):
        if name:
            yield name, table.scalar(number, kind)
