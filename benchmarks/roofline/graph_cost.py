# SPDX-License-Identifier: Apache-2.0
"""Operations and bytes of an ONNX graph at given sizes, counted from the graph itself.

:func:`fixed` gives the dynamic dimensions numbers, inlines the function bodies of the custom ops
and computes what is then a constant (positions, masks, shape arithmetic): an engine built for
these sizes does that once.  :func:`count` goes over the nodes that are left.

Conventions, the usual ones of a roofline (Williams, Waterman and Patterson, 2009):

- a multiply-add is two operations; the bias of a Conv or Gemm counts as nothing, since it starts
  the sum.  So products agree with ``torch.utils.flop_counter``;
- any other arithmetic is one operation an element, however long a GPU takes for it (``exp`` counts
  as ``add``); Softmax is 5 (maximum, difference, exp, sum, quotient), LayerNormalization 8 (mean,
  difference, square, mean, root, quotient, scale, shift), ReduceL2 2, BatchNormalization 2.
  Moving, choosing and converting data is none;
- every node reads each of its inputs once and writes its outputs once, Slice, Split and Gather
  only the part they take; Reshape and its kind are names and move nothing.

Needs ``onnx``.  An operator that is not in these tables is an error, never a silent zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, inliner, numpy_helper
from onnx.reference import ReferenceEvaluator

from runtime.backends.base import OP_DOMAIN
from runtime.errors import ModelError

PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
# fmt: off
POINTWISE = frozenset((
    "Abs", "Add", "Clip", "Cos", "Div", "Erf", "Exp", "Less", "Log", "Max", "Min", "Mul", "Neg",
    "Pow", "Reciprocal", "Relu", "Sigmoid", "Sin", "Sqrt", "Sub", "Tanh",
))  # one operation an element of the output
REDUCING = {
    "BatchNormalization": 2, "GlobalAveragePool": 1, "LayerNormalization": 8, "ReduceL2": 2,
    "ReduceMax": 1, "ReduceMean": 1, "ReduceMin": 1, "ReduceSum": 1, "Softmax": 5,
}  # so many operations an element of the input
MOVES = frozenset((
    "Cast", "CastLike", "Concat", "Expand", "Gather", "Pad", "Slice", "Split", "Tile", "Transpose",
    "Where",
))
# fmt: on
PARTS = frozenset({"Gather", "Slice", "Split"})  # read no more than they write
VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """A tensor between nodes: its shape and the ONNX type of its elements."""

    shape: Shape
    kind: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * int(helper.tensor_dtype_to_np_dtype(self.kind).itemsize)


@dataclass(frozen=True)
class Cost:
    """What one node does.  ``reads``, ``writes`` and ``weights`` are bytes by value."""

    name: str  # of its first output
    operator: str
    custom: str  # the output of the custom op that it is a part of; "" for none
    product_flops: int  # of matrix products and convolutions
    half: bool  # these are in fp16, and a matrix product: work for tensor cores
    other_flops: int
    weights: Mapping[str, int]
    reads: Mapping[str, int]
    writes: Mapping[str, int]


@dataclass(frozen=True)
class Graph:
    """A counted graph; its own inputs and outputs in bytes by value."""

    costs: tuple[Cost, ...]  # in the order of the graph
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


def fixed(model: ModelProto, sizes: Mapping[str, int]) -> tuple[ModelProto, dict[str, str]]:
    """A copy of ``model`` at fixed sizes, inlined and with its constants computed.

    ``sizes`` are those of the dynamic dimensions by name (``N``; ``B``, ``T``).  The second value
    says for each node, by the name of its first output, of which custom op's body it is: by that
    op's output.

    Raises :class:`ModelError` for a dynamic dimension without a size, or a size below 1.
    """
    sized = ModelProto()
    sized.CopyFrom(model)
    del sized.graph.value_info[:]
    for value in (*sized.graph.input, *sized.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes and dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    for value in sized.graph.input:
        if any(dim.dim_value < 1 for dim in value.type.tensor_type.shape.dim):
            raise ModelError(f"input {value.name} has a dimension without a size; given: {sizes}")
    ends = {
        node.output[0]: set(node.input) for node in sized.graph.node if node.domain == OP_DOMAIN
    }
    flat = inliner.inline_local_functions(sized)
    bodies = _bodies(flat, ends)
    while _fold(flat):
        pass
    return flat, bodies


def count(model: ModelProto, sizes: Mapping[str, int]) -> Graph:
    """The cost of every node of ``model`` at these sizes; see :func:`fixed`.

    Raises :class:`ModelError` for an operator that is not known here and for a shape that cannot be
    told.
    """
    flat, bodies = fixed(model, sizes)
    values = _values(flat)
    weights = {t.name: Value(tuple(t.dims), t.data_type) for t in flat.graph.initializer}
    same = {name: name for name in (*values, *weights)}  # views are other names of one value
    costs = []
    for node in flat.graph.node:
        taken = [same[name] for name in node.input if name]
        if node.op_type in VIEWS:
            same[node.output[0]] = taken[0]
            continue
        made = {name: _known(values, name) for name in node.output if name}
        shapes = [weights.get(name) or _known(values, name) for name in node.input if name]
        product, other = operations(node, shapes, list(made.values()))
        reads = {name: _known(values, name).bytes for name in taken if name not in weights}
        if node.op_type in PARTS:
            reads = {name: sum(v.bytes for v in made.values()) for name in list(reads)[:1]}
        costs.append(
            Cost(
                name=node.output[0],
                operator=node.op_type,
                custom=bodies.get(node.output[0], ""),
                product_flops=product,
                half=shapes[0].kind == TensorProto.FLOAT16 and not _depthwise(node, shapes),
                other_flops=other,
                weights={name: weights[name].bytes for name in taken if name in weights},
                reads=reads,
                writes={name: value.bytes for name, value in made.items()},
            )
        )
    return Graph(
        tuple(costs),
        {value.name: values[value.name].bytes for value in flat.graph.input},
        {same[value.name]: values[value.name].bytes for value in flat.graph.output},
    )


def operations(node: NodeProto, taken: Sequence[Value], made: Sequence[Value]) -> tuple[int, int]:
    """Operations of a node in products and in other arithmetic, by the module's conventions."""
    kind, out = node.op_type, made[0].elements
    if kind == "MatMul":
        return 2 * out * taken[0].shape[-1], 0
    if kind == "Gemm":
        return 2 * out * taken[0].shape[0 if _attribute(node, "transA", 0) else 1], 0
    if kind == "Conv":  # W [Cout, Cin / groups, kernel...]
        return 2 * out * math.prod(taken[1].shape[1:]), 0
    if kind in POINTWISE:
        return 0, out
    if kind in REDUCING:
        return 0, REDUCING[kind] * taken[0].elements
    if kind in ("AveragePool", "MaxPool"):
        return 0, out * math.prod(_attribute(node, "kernel_shape", ()))
    if kind in MOVES:
        return 0, 0
    raise ModelError(f"the operations of {kind} are not known: add it to {__name__}")


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _depthwise(node: NodeProto, taken: Sequence[Value]) -> bool:
    """A convolution of single channels is no matrix product."""
    return node.op_type == "Conv" and taken[1].shape[1] == 1 and _attribute(node, "group", 1) > 1


def _bodies(flat: ModelProto, ends: Mapping[str, set[str]]) -> dict[str, str]:
    """Backwards from each custom op's output to its inputs."""
    made_by = {name: node for node in flat.graph.node for name in node.output}
    found: dict[str, str] = {}
    for end, inputs in ends.items():
        todo = [end]
        while todo:
            name = todo.pop()
            node = made_by.get(name)
            if name in inputs or node is None or node.output[0] in found:
                continue
            found[node.output[0]] = end
            todo.extend(node.input)
    return found


def _values(flat: ModelProto) -> dict[str, Value]:
    """Every value whose whole shape is known."""
    try:
        graph = onnx.shape_inference.infer_shapes(flat, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as err:
        raise ModelError(f"shapes cannot be inferred ({str(err).splitlines()[0]})") from err
    found = {}
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
        if kind.HasField("shape") and kind.elem_type and min(dims, default=0) >= 0:
            found[value.name] = Value(tuple(dims), kind.elem_type)
    return found


def _known(values: Mapping[str, Value], name: str) -> Value:
    if name not in values:
        raise ModelError(f"the shape of {name} cannot be told at these sizes")
    return values[name]


def _fold(flat: ModelProto) -> bool:
    """Replace nodes by their results where these are constant; were there any?"""
    values = _values(flat)
    constants = {t.name: t for t in flat.graph.initializer}
    outputs = {value.name for value in flat.graph.output}
    left = []
    for node in flat.graph.node:
        results = None if outputs.intersection(node.output) else _result(node, constants, values)
        if results is None:
            left.append(node)
            continue
        for name, array in zip(node.output, results, strict=True):
            constants[name] = numpy_helper.from_array(np.asarray(array), name)
            flat.graph.initializer.append(constants[name])
    folded = len(left) < len(flat.graph.node)
    del flat.graph.node[:]
    flat.graph.node.extend(left)
    used = {name for node in left for name in node.input}
    kept = [t for t in flat.graph.initializer if t.name in used]
    del flat.graph.initializer[:]
    flat.graph.initializer.extend(kept)
    return folded


def _result(
    node: NodeProto, constants: Mapping[str, TensorProto], values: Mapping[str, Value]
) -> list[Any] | None:
    """What a node computes from constants alone; None where it does not."""
    inputs = [name for name in node.input if name]
    if node.op_type == "Shape" and inputs[0] in values:
        shape = values[inputs[0]].shape
        ends = slice(_attribute(node, "start", 0), _attribute(node, "end", len(shape)))
        return [np.array(shape[ends], np.int64)]
    if node.op_type == "CastLike" and inputs[0] in constants:
        like = constants[inputs[1]].data_type if inputs[1] in constants else None
        like = like or (values[inputs[1]].kind if inputs[1] in values else None)
        if like is None:
            return None
        node = helper.make_node("Cast", inputs[:1], list(node.output), to=like)
        inputs = inputs[:1]
    if not all(name in constants for name in inputs):
        return None
    feeds = {name: numpy_helper.to_array(constants[name]) for name in inputs}
    graph = helper.make_graph(
        [node],
        "constant",
        [helper.make_tensor_value_info(n, constants[n].data_type, None) for n in feeds],
        [helper.make_empty_tensor_value_info(n) for n in node.output],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    return ReferenceEvaluator(model).run(None, feeds)
