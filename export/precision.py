# SPDX-License-Identifier: Apache-2.0
"""fp16 typed in the ONNX graph itself, for strongly typed engines and for ONNX Runtime alike.

Half precision starts at a matrix product or convolution and flows through the element-wise and
data-moving nodes behind it, until a node that needs fp32: LayerNormalization, softmax, sums,
powers, roots, trigonometry (so the positions), and the cosines and norms in front of ``sync``,
``align_v`` and ``align_a``.  Casts stand where the type changes; nothing else is touched.  Graph
inputs and outputs keep their types (float32, ``frames`` uint8), and ``lam`` of
DifferentialCrossAttention stays float32.  The custom ops' function bodies are generic in their
type (CastLike) and do their softmax in fp32 themselves.  Where a graph is quantised
(:mod:`export.quantize`), the scales of its Q/DQ pairs take the type of what they scale.

Tools that convert by a list of blocked nodes (onnxconverter-common 1.16) know no model-local
functions and would compute positions in half precision; for a flat graph this pass is shorter
than the work around them.  It needs ``onnx`` and NumPy, no torch.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from runtime.backends.base import OP_DOMAIN
from runtime.errors import ModelError
from runtime.spec import METADATA_KEY, PairSpec

FP32, FP16 = TensorProto.FLOAT, TensorProto.FLOAT16
QDQ_FP16_OPSET = 19  # from here on the scales of Q and DQ may be fp16
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear")
_SUFFIX = {FP32: "fp32", FP16: "fp16"}
_FP16_MAX = float(np.finfo(np.float16).max)  # 65504

# Half precision starts here ...
_STARTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# ... flows through these, when a tensor that is no constant brings it ...
# fmt: off
_ARITHMETIC = frozenset((
    "Abs", "Add", "AveragePool", "Clip", "Div", "Elu", "Erf", "Gelu", "GlobalAveragePool",
    "GlobalMaxPool", "HardSigmoid", "HardSwish", "LeakyRelu", "Max", "MaxPool", "Min", "Mul",
    "Neg", "PRelu", "ReduceMax", "ReduceMin", "Relu", "Sigmoid", "Sub", "Tanh", "Where",
))
_MOVES = frozenset((
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
    "Identity", "Pad", "Reshape", "ScatterElements", "ScatterND", "Slice", "SpaceToDepth",
    "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze",
))
# fmt: on
# ... is no matter to these ...
_ANY_INPUT = frozenset({"Cast", "Shape", "Size"})
# ... and ends at everything else.  In front of these outputs arithmetic stays in fp32:
_FP32_OUTPUTS = ("sync", "align_v", "align_a")
# Custom ops: which inputs follow the type; the rest (lam) is float32 always.
_CUSTOM_INPUTS = {"DifferentialCrossAttention": 4, "MultiScaleKeyConv": 9}


def to_fp16(model: ModelProto) -> ModelProto:
    """A copy of ``model`` typed fp16, checked; the argument is left alone.

    The spec in its metadata says ``precision: fp16``, and its pair_id and model_id end in
    ``-fp16``: a half of this pair never goes with a half of the fp32 one.

    Raises
    ------
    ModelError
        If the graph has control flow, types that this pass does not know, or weights beyond
        half precision's range.
    """
    typed = ModelProto()
    typed.CopyFrom(model)
    _Typing(typed).run()
    restamp(typed, fp16_spec(read_spec(typed)))
    check(typed)
    return typed


def fp16_spec(spec: PairSpec) -> PairSpec:
    """The spec of the fp16 form of a pair."""
    return dataclasses.replace(
        spec,
        precision=spec.precision.replace("fp32", "fp16"),
        pair_id=f"{spec.pair_id}-fp16",
        model_id=f"{spec.model_id}-fp16",
    )


def read_spec(model: ModelProto) -> PairSpec:
    """The spec in a model's metadata; raises :class:`ModelError` if there is none."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return PairSpec.from_json(entry.value)
    raise ModelError(f"the ONNX file carries no {METADATA_KEY} in its metadata")


def restamp(model: ModelProto, spec: PairSpec) -> None:
    """Replace the spec in a model's metadata."""
    del model.metadata_props[:]
    helper.set_model_props(model, {METADATA_KEY: spec.to_json()})


def check(model: ModelProto) -> None:
    """ONNX's own full check and strict shape inference; raises :class:`ModelError`."""
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        first = str(err).strip().splitlines()[0]
        raise ModelError(f"the graph does not pass ONNX's own check ({first})") from err


def custom_op_nodes(model: ModelProto) -> int:
    """How many nodes of the graph are custom ops."""
    return sum(node.domain == OP_DOMAIN for node in model.graph.node)


class _Typing:
    """One pass over a flat graph in its topological order."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.graph: GraphProto = model.graph
        self.opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        for node in self.graph.node:
            if any(a.HasField("g") or a.graphs for a in node.attribute):
                raise ModelError(f"fp16: node {node.name} ({node.op_type}) has a subgraph")
        self.floats = _float_values(model)  # names of the values that are float32 now
        self.constants = {t.name: t for t in self.graph.initializer if t.data_type == FP32}
        self.types: dict[str, int] = {}  # float value -> its type in the new graph
        self.casts: dict[tuple[str, int], str] = {}
        self.nodes: list[NodeProto] = []

    def run(self) -> None:
        graph = self.graph
        _constants_to_initializers(graph, self.constants)
        protected = _protected(graph)
        self.types = {v.name: FP32 for v in graph.input if v.name in self.floats}
        outputs = {v.name for v in graph.output if v.name in self.floats}
        renamed = {name: f"{name}/{_SUFFIX[FP16]}" for name in outputs}
        for old in graph.node:
            if old.op_type == "Constant":
                continue  # an initializer now
            node = NodeProto()
            node.CopyFrom(old)
            kind = self.kind(node, protected)
            follows = _following_inputs(node, self.opset)
            for i, name in enumerate(node.input if node.op_type not in _ANY_INPUT else ()):
                if name in self.types or name in self.constants:
                    node.input[i] = self.as_type(name, kind if i in follows else FP32)
            for i, name in enumerate(node.output):
                if name not in self.floats:
                    continue
                self.types[name] = kind
                if kind == FP16 and name in outputs:
                    node.output[i] = renamed[name]
                    self.casts[name, FP16] = renamed[name]
            self.nodes.append(node)
            for name in node.output:  # a graph output in fp16: its float32 copy has the old name
                original = next((o for o in outputs if renamed[o] == name), None)
                if original is not None:
                    self.nodes.append(_cast(name, original, FP32))
                    self.types[original] = FP32
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        used = {name for node in graph.node for name in node.input}
        kept = [t for t in graph.initializer if t.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)

    def kind(self, node: NodeProto, protected: set[str]) -> int:
        """The type in which a node computes."""
        if node.domain == OP_DOMAIN:
            return FP16
        if node.op_type in _QUANTIZED and self.opset >= QDQ_FP16_OPSET:
            # a DQ stands in front of a convolution, or gives back what its Q took
            quantizes = node.op_type == "QuantizeLinear"
            return self.types.get(node.input[0], FP32) if quantizes else FP16
        if not any(name in self.floats for name in node.output):
            return FP32
        if node.op_type in _STARTS:
            return FP16
        if node.op_type not in _MOVES and (
            node.op_type not in _ARITHMETIC or node.output[0] in protected
        ):
            return FP32
        return FP16 if any(self.types.get(name) == FP16 for name in node.input) else FP32

    def as_type(self, name: str, kind: int) -> str:
        """The name of a value in the wanted type, a cast added if it has another."""
        if name in self.constants:
            return name if kind == FP32 else self.half_constant(name)
        if self.types[name] == kind:
            return name
        if (name, kind) not in self.casts:
            self.casts[name, kind] = f"{name}/{_SUFFIX[kind]}"
            self.nodes.append(_cast(name, self.casts[name, kind], kind))
        return self.casts[name, kind]

    def half_constant(self, name: str) -> str:
        if (name, FP16) not in self.casts:
            values = numpy_helper.to_array(self.constants[name])
            if values.size and not np.abs(values).max() <= _FP16_MAX:
                raise ModelError(
                    f"fp16: weights {name} go beyond {_FP16_MAX:.0f} or are not finite"
                )
            half = f"{name}/{_SUFFIX[FP16]}"
            self.graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), half))
            self.casts[name, FP16] = half
        return self.casts[name, FP16]


def _cast(source: str, target: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"Cast/{target}", to=kind)


def _float_values(model: ModelProto) -> set[str]:
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = [*inferred.input, *inferred.output, *inferred.value_info]
    known = {v.name for v in values if v.type.tensor_type.elem_type}
    for node in inferred.node:
        for name in node.output:
            if name and name not in known:
                raise ModelError(f"fp16: the type of {name} ({node.op_type}) cannot be inferred")
    floats = {v.name for v in values if v.type.tensor_type.elem_type == FP32}
    return floats | {t.name for t in inferred.initializer if t.data_type == FP32}


def _constants_to_initializers(graph: GraphProto, constants: dict[str, TensorProto]) -> None:
    for node in graph.node:
        if node.op_type != "Constant":
            continue
        (attribute,) = node.attribute
        if attribute.name == "value":
            tensor = TensorProto()
            tensor.CopyFrom(attribute.t)
        elif attribute.name.startswith(("value_float", "value_int")):
            value = helper.get_attribute_value(attribute)
            dtype = np.float32 if "float" in attribute.name else np.int64
            tensor = numpy_helper.from_array(np.asarray(value, dtype))
        else:
            raise ModelError(f"fp16: constant {node.name} is neither a tensor nor a number")
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        if tensor.data_type == FP32:
            constants[tensor.name] = tensor


def _protected(graph: GraphProto) -> set[str]:
    """Values in front of the fp32 outputs, up to a product, a LayerNorm or a sum of two values."""
    made_by = {name: node for node in graph.node for name in node.output}
    todo = [v.name for v in graph.output if v.name in _FP32_OUTPUTS]
    found: set[str] = set()
    while todo:
        name = todo.pop()
        node = made_by.get(name)
        if name in found or node is None or node.domain == OP_DOMAIN:
            continue
        if node.op_type in _STARTS or node.op_type == "LayerNormalization":
            continue
        if node.op_type in ("Add", "Sub") and all(i in made_by for i in node.input):
            continue  # a residual: what lies before it is no part of the norm or cosine
        found.add(name)
        todo.extend(node.input)
    return found


def _following_inputs(node: NodeProto, opset: int) -> set[int]:
    """Positions of the inputs that must have the type of the (first) output."""
    if node.domain == OP_DOMAIN:
        if node.op_type not in _CUSTOM_INPUTS:
            raise ModelError(f"fp16: unknown custom op {node.op_type}")
        return set(range(min(len(node.input), _CUSTOM_INPUTS[node.op_type])))
    if node.op_type == "QuantizeLinear":
        return {0, 1} if opset >= QDQ_FP16_OPSET else set()  # values and scale; the output is int8
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    kind = schema.outputs[0].type_str
    last = len(schema.inputs) - 1
    return {i for i in range(len(node.input)) if schema.inputs[min(i, last)].type_str == kind}
