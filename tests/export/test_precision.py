# SPDX-License-Identifier: Apache-2.0
"""fp16 typed in the graph: where half precision is, where it must not be, what it costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="typing a graph needs onnx (.[export])")

from onnx import ModelProto, TensorProto, helper, numpy_helper  # noqa: E402

from export.precision import (  # noqa: E402
    check,
    custom_op_nodes,
    fp16_spec,
    read_spec,
    to_fp16,
)
from runtime.errors import ModelError  # noqa: E402
from tests.export import synthetic  # noqa: E402

FP32, FP16 = TensorProto.FLOAT, TensorProto.FLOAT16
FLOATS = {FP32: "fp32", FP16: "fp16"}


def types(model: ModelProto) -> dict[str, int]:
    """Element type of every value of the main graph, by ONNX's own inference."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = [*graph.input, *graph.output, *graph.value_info]
    found = {v.name: v.type.tensor_type.elem_type for v in values}
    return found | {t.name: t.data_type for t in graph.initializer}


def computes_in(model: ModelProto) -> list[tuple[str, str]]:
    """Operator and type of each node that computes with floats, casts left out."""
    known = types(model)
    return [
        (node.op_type, FLOATS[known[node.output[0]]])
        for node in model.graph.node
        if node.op_type != "Cast" and known[node.output[0]] in FLOATS
    ]


@pytest.fixture(scope="module")
def encoder() -> ModelProto:
    return to_fp16(synthetic.frame_encoder())


@pytest.fixture(scope="module")
def fusion() -> ModelProto:
    return to_fp16(synthetic.fusion())


def graph_of(*text: str, **weights: np.ndarray) -> ModelProto:
    """A model of one graph in ONNX's text form, with the synthetic spec."""
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 18]>' + "\n".join(text))
    tensors = [numpy_helper.from_array(np.asarray(value), key) for key, value in weights.items()]
    model.graph.initializer.extend(tensors)
    helper.set_model_props(model, {"msct.spec": synthetic.SPEC.to_json()})
    check(model)
    return model


def test_graph_inputs_and_outputs_keep_their_types(encoder: ModelProto, fusion: ModelProto) -> None:
    for typed, original in (
        (encoder, synthetic.frame_encoder()),
        (fusion, synthetic.fusion()),
    ):
        assert list(typed.graph.input) == list(original.graph.input)
        assert list(typed.graph.output) == list(original.graph.output)


def test_the_first_node_is_still_the_cast_of_the_frames(encoder: ModelProto) -> None:
    first = encoder.graph.node[0]
    assert (first.op_type, list(first.input)) == ("Cast", ["frames"])


def test_half_precision_starts_at_the_convolution(encoder: ModelProto) -> None:
    assert computes_in(encoder) == [
        ("Transpose", "fp32"),
        ("Mul", "fp32"),
        ("Conv", "fp16"),
        ("Relu", "fp16"),
        ("ReduceMean", "fp32"),
        ("Gemm", "fp16"),
        ("LayerNormalization", "fp32"),
    ]


def test_products_are_half_precision(fusion: ModelProto) -> None:
    kinds = {kind for op, kind in computes_in(fusion) if op in ("MatMul", "Gemm", "Conv")}
    assert kinds == {"fp16"}


@pytest.mark.parametrize(
    "op", ["LayerNormalization", "ReduceL2", "ReduceSum", "ReduceMean", "Sin", "Cos", "Div"]
)
def test_norms_sums_and_positions_are_not(fusion: ModelProto, op: str) -> None:
    kinds = [kind for name, kind in computes_in(fusion) if name == op]
    assert kinds
    assert set(kinds) == {"fp32"}


def test_positions_are_fp32_up_to_where_they_are_added(fusion: ModelProto) -> None:
    known = types(fusion)
    for name in ("time", "angle", "sine", "cosine", "positions", "rates"):
        assert known[name] == FP32


def test_the_cosine_in_front_of_sync_is_fp32(fusion: ModelProto) -> None:
    known = types(fusion)
    for name in ("nv1", "na1", "product", "sync"):
        assert known[name] == FP32


def test_lam_stays_float32_and_all_else_of_the_custom_ops_follows(fusion: ModelProto) -> None:
    known = types(fusion)
    nodes = {node.op_type: node for node in fusion.graph.node if node.domain == "msct"}
    attention = nodes["DifferentialCrossAttention"]
    assert [known[name] for name in attention.input] == [FP16] * 4 + [FP32]
    assert attention.input[4] == "lam"
    assert {known[name] for name in nodes["MultiScaleKeyConv"].input} == {FP16}
    assert {known[node.output[0]] for node in nodes.values()} == {FP16}


def test_custom_nodes_and_bodies_are_kept_as_they_are(fusion: ModelProto) -> None:
    original = synthetic.fusion()
    assert custom_op_nodes(fusion) == custom_op_nodes(original) == 2
    assert list(fusion.functions) == list(original.functions)
    assert list(fusion.opset_import) == list(original.opset_import)


def test_weights_are_stored_once_in_the_type_that_is_used(fusion: ModelProto) -> None:
    stored = {t.name: t.data_type for t in fusion.graph.initializer}
    assert stored["head_w/fp16"] == FP16
    assert "head_w" not in stored
    assert stored["lam"] == FP32
    assert len(fusion.SerializeToString()) < 0.75 * len(synthetic.fusion().SerializeToString())


def test_a_value_is_cast_once_for_all_that_read_it(fusion: ModelProto) -> None:
    casts = [(n.input[0], n.attribute[0].i) for n in fusion.graph.node if n.op_type == "Cast"]
    assert len(casts) == len(set(casts))


def test_the_spec_says_so_and_the_pair_is_another(fusion: ModelProto) -> None:
    assert read_spec(fusion) == fp16_spec(synthetic.SPEC)
    assert read_spec(fusion).precision == "fp16"
    assert read_spec(fusion).pair_id == "0123456789abcdef-fp16"


def test_the_original_is_left_alone_and_the_result_is_the_same_every_time() -> None:
    original = synthetic.fusion()
    before = original.SerializeToString(deterministic=True)
    first, second = (to_fp16(original).SerializeToString(deterministic=True) for _ in range(2))
    assert original.SerializeToString(deterministic=True) == before
    assert first == second


def test_a_value_that_is_read_and_given_out_is_both(tmp_path: Path) -> None:
    model = graph_of(
        "g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) {",
        "  y = MatMul (x, w)",
        "  z = MatMul (y, w)",
        "}",
        w=np.eye(4, dtype=np.float32),
    )
    typed = to_fp16(model)
    assert [node.op_type for node in typed.graph.node] == [
        "Cast",
        "MatMul",
        "Cast",
        "MatMul",
        "Cast",
    ]
    assert {v.type.tensor_type.elem_type for v in typed.graph.output} == {FP32}


def test_shapes_are_read_without_a_cast() -> None:
    model = graph_of(
        "g (float[N, 4] x) => (int64[2] s) {",
        "  y = MatMul (x, w)",
        "  s = Shape (y)",
        "}",
        w=np.eye(4, dtype=np.float32),
    )
    assert [node.op_type for node in to_fp16(model).graph.node] == ["Cast", "MatMul", "Shape"]


def test_a_constant_node_becomes_an_initializer() -> None:
    model = graph_of(
        "g (float[N, 4] x) => (float[N, 4] y) {",
        "  two = Constant <value_float = 2.0> ()",
        "  h = MatMul (x, w)",
        "  y = Mul (h, two)",
        "}",
        w=np.eye(4, dtype=np.float32),
    )
    typed = to_fp16(model)
    assert "Constant" not in {node.op_type for node in typed.graph.node}
    assert ("Mul", "fp16") in [
        (n.op_type, FLOATS[types(typed)[n.output[0]]]) for n in typed.graph.node
    ]


class TestRefused:
    def test_weights_beyond_half_precision(self) -> None:
        model = graph_of(
            "g (float[N, 1] x) => (float[N, 1] y) { y = MatMul (x, w) }",
            w=np.full((1, 1), 1e6, np.float32),
        )
        with pytest.raises(ModelError, match="weights w go beyond 65504"):
            to_fp16(model)

    def test_control_flow(self) -> None:
        model = graph_of(
            "g (bool c, float[N] x) => (float[N] y) {",
            "  y = If (c) <then_branch = a () => (float[N] p) { p = Identity (x) },",
            "              else_branch = b () => (float[N] q) { q = Neg (x) }>",
            "}",
        )
        with pytest.raises(ModelError, match="has a subgraph"):
            to_fp16(model)

    def test_a_custom_op_it_does_not_know(self) -> None:
        model = synthetic.fusion()
        node = next(n for n in model.graph.node if n.op_type == "MultiScaleKeyConv")
        body = next(f for f in model.functions if f.name == "MultiScaleKeyConv")
        node.op_type = body.name = "Unheard"
        with pytest.raises(ModelError, match="unknown custom op Unheard"):
            to_fp16(model)

    def test_a_model_without_a_spec(self) -> None:
        model = synthetic.frame_encoder()
        model.ClearField("metadata_props")
        with pytest.raises(ModelError, match=r"carries no msct\.spec"):
            to_fp16(model)

    def test_a_graph_that_onnx_itself_refuses(self) -> None:
        model = synthetic.frame_encoder()
        model.graph.node[3].input[1] = "nowhere"
        with pytest.raises(ModelError, match="does not pass ONNX's own check") as caught:
            check(model)
        assert "\n" not in str(caught.value)
