# SPDX-License-Identifier: Apache-2.0
"""The graph that is parsed for plugins: bodies gone, nodes that name their plugin."""

from __future__ import annotations

import pytest

onnx = pytest.importorskip("onnx", reason="needs onnx (.[export])")

from export.plugin_graph import custom_ops, with_plugins  # noqa: E402
from export.precision import to_fp16  # noqa: E402
from tests.export import synthetic  # noqa: E402


def attributes(model: onnx.ModelProto) -> list[dict[str, object]]:
    return [
        {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for node in model.graph.node
        if node.domain == "msct"
    ]


def test_custom_ops_are_counted_by_name() -> None:
    expected = {"DifferentialCrossAttention": 1, "MultiScaleKeyConv": 1}
    assert custom_ops(synthetic.fusion()) == expected
    assert custom_ops(synthetic.frame_encoder()) == {}


def test_bodies_go_and_the_nodes_name_version_and_namespace() -> None:
    made = with_plugins(synthetic.fusion())
    assert not made.functions
    for found in attributes(made):
        assert found["plugin_version"] == b"1"
        assert found["plugin_namespace"] == b"msct"


def test_the_ops_own_attributes_stay() -> None:
    conv, attention = attributes(with_plugins(synthetic.fusion()))
    assert conv["kernel_sizes"] == [1, 3, 5, 7]
    assert conv["prefix_tokens"] == 1
    assert attention["scale"] == pytest.approx(0.35)


def test_everything_else_is_the_same() -> None:
    model = synthetic.fusion()
    made = with_plugins(model)
    assert list(made.graph.initializer) == list(model.graph.initializer)
    assert [n.input for n in made.graph.node] == [n.input for n in model.graph.node]
    assert made.metadata_props == model.metadata_props
    assert made.opset_import == model.opset_import


def test_the_original_is_left_alone() -> None:
    model = synthetic.fusion()
    before = model.SerializeToString(deterministic=True)
    with_plugins(model)
    assert model.SerializeToString(deterministic=True) == before


def test_doing_it_twice_changes_nothing() -> None:
    once = with_plugins(to_fp16(synthetic.fusion()))
    assert with_plugins(once) == once


def test_other_functions_stay() -> None:
    model = synthetic.fusion()
    other = onnx.parser.parse_function(
        '<domain: "msct", opset_import: ["" : 18]> Unused (x) => (y) { y = Identity (x) }'
    )
    model.functions.append(other)
    assert [f.name for f in with_plugins(model).functions] == ["Unused"]
