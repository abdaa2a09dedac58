# SPDX-License-Identifier: Apache-2.0
"""docs/deploy/triton, against Triton's own schema and against the graphs that ship.

No server runs here: what Triton checks when it loads a model (names, types, ranks and sizes of the
configuration against those of the graph) is done with ONNX Runtime and the schema that
``tritonclient`` carries.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest

CONFIGURATIONS = Path(__file__).resolve().parents[1] / "docs" / "deploy" / "triton"


@pytest.fixture(scope="module")
def schema() -> Any:
    """``model_config.proto`` as Python, out of tritonclient, without the gRPC it would import."""
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("tritonclient is not installed (extra dev)")
    path = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():  # protobuf, of code generated for its last major version
        warnings.simplefilter("ignore", UserWarning)
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("role", ["frame_encoder", "fusion"])
def test_a_configuration_fits_the_schema_and_the_graph(
    role: str, schema: Any, real_pair: Path
) -> None:
    import onnxruntime
    from google.protobuf import text_format

    text = (CONFIGURATIONS / role / "config.pbtxt").read_text(encoding="utf-8")
    config = text_format.Parse(text, schema.ModelConfig())  # raises on an unknown field or value
    assert config.name == role
    graph = onnxruntime.InferenceSession(
        str(real_pair / f"{role}.onnx"), providers=["CPUExecutionProvider"]
    )
    types = {"tensor(uint8)": schema.TYPE_UINT8, "tensor(float)": schema.TYPE_FP32}
    for configured, existing in (
        (config.input, graph.get_inputs()),
        (config.output, graph.get_outputs()),
    ):
        shapes = {
            t.name: (types[t.type], [d if isinstance(d, int) else -1 for d in t.shape])
            for t in existing
        }
        # the batch comes first in the graph and is not said in the configuration
        assert {t.name: (t.data_type, [-1, *t.dims]) for t in configured} == shapes
