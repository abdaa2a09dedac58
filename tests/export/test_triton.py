# SPDX-License-Identifier: Apache-2.0
"""The Triton repository, against Triton's own schema and against the graphs in it.

No server runs here: what Triton checks when it loads a model (names, types, ranks and sizes of the
configuration against those of the graph) is done with ONNX Runtime and the schema that
``tritonclient`` carries.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx", reason="onnx is not installed (extra export)")

from export import triton
from export.builder import profiles
from export.manifest import write_manifest
from runtime.backends.manifest import (
    ENGINE_FILES,
    TENSORRT,
    TENSORRT_RTX,
    EngineFacts,
    PluginFacts,
    this_platform,
)
from runtime.spec import METADATA_KEY, PairSpec
from tests.export import synthetic

ROLES = ("frame_encoder", "fusion")


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


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_pair(tmp_path_factory.mktemp("pair"))


def parse(schema: Any, path: Path) -> Any:
    """Raises on an unknown field, a wrong type or a value that no enumeration has."""
    from google.protobuf import text_format

    return text_format.Parse(path.read_text(encoding="utf-8"), schema.ModelConfig())


def run(*arguments: Any) -> int:
    return triton.main([str(a) for a in arguments])


def facts(flavour: str = TENSORRT, *, plugins: bool = False) -> EngineFacts:
    return EngineFacts(
        flavour=flavour,
        version="10.3.0",
        compute_capabilities=("8.7",),
        platform=this_platform(),
        precision="fp32",
        int8_encoder=False,
        plugins=PluginFacts("libmsct_plugins.so", "0" * 64, {"fusion": 2}) if plugins else None,
        profiles=profiles(synthetic.SPEC, window_tokens=50, max_batch=3),
    )


def engine_folder(folder: Path, found: EngineFacts) -> Path:
    """A pair with two "engines", as build_engine leaves them."""
    synthetic.write_pair(folder)
    for name in ENGINE_FILES:
        (folder / name).write_bytes(b"engine " + name.encode())
    names = ("frame_encoder.onnx", "fusion.onnx", *ENGINE_FILES)
    about = {"backend": found.flavour, "engine": found.to_dict()}
    write_manifest(folder, names, synthetic.SPEC, about)
    return folder


def check_against_graph(config: Any, schema: Any, graph: Path) -> None:
    """What Triton's ONNX Runtime backend checks when it loads a model."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    types = {schema.TYPE_UINT8: "tensor(uint8)", schema.TYPE_FP32: "tensor(float)"}
    for configured, existing in (
        (config.input, session.get_inputs()),
        (config.output, session.get_outputs()),
    ):
        assert {t.name for t in configured} == {t.name for t in existing}
        by_name = {t.name: t for t in existing}
        for tensor in configured:
            graph_shape = [d if isinstance(d, int) else -1 for d in by_name[tensor.name].shape]
            assert [-1, *tensor.dims] == graph_shape, tensor.name  # the batch, then what is said
            assert types[tensor.data_type] == by_name[tensor.name].type


@pytest.mark.parametrize("which", ["shipped", "synthetic"])
def test_the_files_follow_tritons_schema_and_describe_their_graphs(
    which: str, schema: Any, pair: Path, real_pair: Path, tmp_path: Path
) -> None:
    output = tmp_path / "repository"
    model = pair if which == "synthetic" else real_pair
    assert run("--model", model, "--output", output, "--allow-untrained") == 0
    for role in ROLES:
        config = parse(schema, output / role / "config.pbtxt")
        assert (config.name, config.backend) == (role, "onnxruntime")
        assert config.max_batch_size == 32
        assert config.HasField("dynamic_batching")
        assert [(g.count, g.kind) for g in config.instance_group] == [
            (1, schema.ModelInstanceGroup.KIND_CPU)
        ]
        graph = output / role / "1" / "model.onnx"
        assert graph.read_bytes() == (model / f"{role}.onnx").read_bytes()
        check_against_graph(config, schema, graph)


def test_the_length_of_a_window_is_left_open(schema: Any, pair: Path, tmp_path: Path) -> None:
    run("--model", pair, "--output", tmp_path / "r")
    config = parse(schema, tmp_path / "r" / "fusion" / "config.pbtxt")
    assert {t.name: list(t.dims) for t in config.input} == {"visual": [-1, 32], "audio": [-1, 104]}


def test_a_client_finds_the_spec_in_the_configuration(
    schema: Any, pair: Path, tmp_path: Path
) -> None:
    run("--model", pair, "--output", tmp_path / "r")
    for role in ROLES:
        config = parse(schema, tmp_path / "r" / role / "config.pbtxt")
        text = config.parameters[METADATA_KEY].string_value
        assert PairSpec.from_json(text) == synthetic.SPEC


def test_the_manifest_has_the_hash_of_every_file(pair: Path, tmp_path: Path) -> None:
    output = tmp_path / "r"
    run("--model", pair, "--output", output)
    listed = json.loads((output / "manifest.json").read_text())["files"]
    written = {
        p.relative_to(output).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in output.rglob("*")
        if p.is_file() and p.name != "manifest.json"
    }
    assert len(written) == 4
    assert {name: about["sha256"] for name, about in listed.items()} == written


def test_the_options_arrive_in_the_file(schema: Any, pair: Path, tmp_path: Path) -> None:
    run("--model", pair, "--output", tmp_path / "r", "--device", "gpu", "--instances", 2,
        "--max-batch", 8, "--queue-delay-us", 250)  # fmt: skip
    config = parse(schema, tmp_path / "r" / "fusion" / "config.pbtxt")
    assert config.max_batch_size == 8
    assert config.dynamic_batching.max_queue_delay_microseconds == 250
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, schema.ModelInstanceGroup.KIND_GPU)
    assert "intra_op_thread_count" not in config.parameters


def test_engines_are_served_as_plans_with_the_batch_they_were_built_for(
    schema: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = engine_folder(tmp_path / "engines", facts(plugins=True))
    output = tmp_path / "r"
    assert run("--model", model, "--output", output) == 0
    most = {"frame_encoder": 50, "fusion": 3}
    for role in ROLES:
        config = parse(schema, output / role / "config.pbtxt")
        assert (config.backend, config.max_batch_size) == ("tensorrt", most[role])
        assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
        plan = output / role / "1" / "model.plan"
        assert plan.read_bytes() == (model / f"{role}.engine").read_bytes()
    said = capsys.readouterr().out
    assert "TensorRT 10.3.0" in said
    assert "--backend-config=tensorrt,plugins=/path/to/libmsct_plugins.so" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "cpu"], "run on a GPU"),
        (["--max-batch", "4"], "for ONNX graphs"),
    ],
)
def test_options_that_engines_do_not_have_are_usage_errors(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = engine_folder(tmp_path / "engines", facts())
    assert run("--model", model, "--output", tmp_path / "r", *arguments) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_engines_of_tensorrt_rtx_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = engine_folder(tmp_path / "engines", facts(TENSORRT_RTX))
    assert run("--model", model, "--output", tmp_path / "r") == 2
    assert "TensorRT-RTX" in capsys.readouterr().err


def test_a_replaced_engine_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = engine_folder(tmp_path / "engines", facts())
    (model / ENGINE_FILES[1]).write_bytes(b"another")
    assert run("--model", model, "--output", tmp_path / "r") == 1
    assert "SHA-256" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_random_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = synthetic.write_pair(tmp_path / "pair", synthetic.other_pair(trained=False))
    assert run("--model", model, "--output", tmp_path / "r") == 2
    assert "weights are random" in capsys.readouterr().err


def test_an_output_that_exists_is_left_alone(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    assert run("--model", pair, "--output", tmp_path) == 2
    assert "exists" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]
