# SPDX-License-Identifier: Apache-2.0
"""One session with TensorRT and the plugin library, in a process of its own.

    session.py FLAVOUR LIBRARY

``FLAVOUR`` is ``tensorrt`` or ``tensorrt_rtx``.  Standard input is one JSON request, standard
output ends with one JSON answer.  TensorRT ends a process on some errors: the caller then sees no
answer.  Nothing but NVIDIA's interface lies between this and the plugin library.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from export.builder import name_rtx_library

FLAVOUR, LIBRARY = sys.argv[1:3]
SCRATCH = tempfile.TemporaryDirectory()
if FLAVOUR == "tensorrt_rtx":
    name_rtx_library(Path(SCRATCH.name))
trt: Any = importlib.import_module(FLAVOUR)
NUMPY = {"FLOAT32": np.float32, "FLOAT64": np.float64, "INT32": np.int32, "INT64": np.int64}


class Log(trt.ILogger):
    """Keeps what TensorRT says: pairs of severity and text."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[tuple[str, str]] = []

    def log(self, severity: Any, message: str) -> None:
        self.lines.append((severity.name, message))


def registry() -> dict[str, Any]:
    """What the registry knows after the library was loaded once, and once more."""
    own = trt.get_plugin_registry()
    first = own.load_library(LIBRARY)
    again = own.load_library(LIBRARY)
    creators = [c for c in own.all_creators if c.plugin_namespace == "msct"]
    fields = {c.name: [[f.name, f.type.name, f.size] for f in c.field_names] for c in creators}
    return {
        "version": trt.__version__,
        "loaded": first is not None,
        "loaded again": again is not None,
        "creators": [[c.name, c.plugin_version] for c in creators],
        "kinds": [c.interface_info.kind for c in creators],
        "fields": fields,
    }


def create(op: str, fields: list[tuple[str, str, list[float]]]) -> Any:
    own = trt.get_plugin_registry()
    creator = own.get_creator(op, "1", "msct")
    values = [(name, kind, np.asarray(data, NUMPY[kind])) for name, kind, data in fields]
    collection = trt.PluginFieldCollection(
        [trt.PluginField(n, v, getattr(trt.PluginFieldType, k)) for n, k, v in values]
    )
    return creator.create_plugin("layer", collection, trt.TensorRTPhase.BUILD)


def new_network(builder: Any) -> Any:
    """Strongly typed: the only kind from TensorRT 11 on, where the flag may be gone."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if flag is None else 1 << int(flag))


def parse(network: Any, model: str, log: Log) -> list[str]:
    """The parser's errors; none if all is well."""
    parser = trt.OnnxParser(network, log)
    if parser.parse(Path(model).read_bytes()):
        return []
    return [parser.get_error(i).desc() for i in range(parser.num_errors)] or ["no reason given"]


def add_plugin(network: Any, request: dict[str, Any]) -> None:
    """The same layer without a parser."""
    plugin = create(request["op"], request["fields"])
    inputs = [
        network.add_input(name, getattr(trt.DataType, kind), shape)
        for name, kind, shape in request["inputs"]
    ]
    layer = network.add_plugin_v3(inputs, [], plugin)
    network.mark_output(layer.get_output(0))


def build(builder: Any, network: Any, request: dict[str, Any]) -> bytes | None:
    config = builder.create_builder_config()
    if target := request.get("target"):  # ahead of time, with no GPU: TensorRT-RTX only
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    dynamic = [tensor for tensor in inputs if -1 in tensor.shape]
    if dynamic:
        profile = builder.create_optimization_profile()
        for tensor in dynamic:
            profile.set_shape(tensor.name, *request["profile"])
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    return None if engine is None else bytes(engine)


def main() -> None:
    request = json.load(sys.stdin)
    if request["action"] == "registry":
        print(json.dumps(registry()))
        return
    log = Log()
    builder = trt.Builder(log)
    loaded = trt.get_plugin_registry().load_library(LIBRARY)
    assert loaded is not None, "the registry did not take the library"
    answer: dict[str, Any] = {}
    if request["action"] == "create":
        answer["created"] = create(request["op"], request["fields"]) is not None
    else:
        network = new_network(builder)
        if "model" in request:
            answer["parser"] = parse(network, request["model"], log)
        else:
            add_plugin(network, request)
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        answer["layers"] = [layer.type.name for layer in layers]
        if network.num_outputs:
            out = network.get_output(0)
            answer["output"] = [out.dtype.name, list(out.shape)]
        if not answer.get("parser"):
            engine = build(builder, network, request)
            answer["bytes"] = 0 if engine is None else len(engine)
            if engine is not None:
                Path(request["engine"]).write_bytes(engine)
    answer["errors"] = [text for severity, text in log.lines if severity.endswith("ERROR")]
    print(json.dumps(answer))


main()
