# SPDX-License-Identifier: Apache-2.0
"""The graph that TensorRT parses when our kernels are to run instead of the function bodies.

Whether a parser takes a plugin or a model-local function for a node has changed three times
between TensorRT 10.0 and 10.15, without a word in its log.  A graph without the bodies, whose
nodes name the plugin's version and namespace, leaves every version one choice.
"""

from __future__ import annotations

from collections.abc import Set

from onnx import ModelProto, helper

from runtime.backends.base import OP_DOMAIN, OP_VERSION

PLUGIN_ATTRIBUTES = {"plugin_version": str(OP_VERSION), "plugin_namespace": OP_DOMAIN}


def custom_ops(model: ModelProto) -> dict[str, int]:
    """Custom op -> number of its nodes in the graph; none in most frame encoders."""
    names = [node.op_type for node in model.graph.node if node.domain == OP_DOMAIN]
    return {name: names.count(name) for name in sorted(set(names))}


def with_plugins(model: ModelProto) -> ModelProto:
    """A copy whose custom ops are plugins: bodies dropped, version and namespace on the nodes."""
    made = ModelProto()
    made.CopyFrom(model)
    _drop_bodies(made, custom_ops(model).keys())
    for node in made.graph.node:
        if node.domain == OP_DOMAIN:
            kept = [a for a in node.attribute if a.name not in PLUGIN_ATTRIBUTES]
            del node.attribute[:]
            node.attribute.extend(kept)
            node.attribute.extend(
                helper.make_attribute(*item) for item in PLUGIN_ATTRIBUTES.items()
            )
    return made


def _drop_bodies(model: ModelProto, ops: Set[str]) -> None:
    kept = [f for f in model.functions if not (f.domain == OP_DOMAIN and f.name in ops)]
    del model.functions[:]
    model.functions.extend(kept)
