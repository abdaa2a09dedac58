# SPDX-License-Identifier: Apache-2.0
"""Real engines, built by TensorRT-RTX through the command line: it needs no GPU for that.

Running them does; tests/gpu/test_engine.py does it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx", reason="writing a pair for the test needs onnx (.[export])")
pytest.importorskip("onnxruntime", reason="needs ONNX Runtime (.[cpu])")

from export import build_engine, builder, engines  # noqa: E402
from export.choice import RTX_DEFAULT_TARGETS, Target  # noqa: E402
from runtime.backends import cuda  # noqa: E402
from runtime.backends.manifest import (  # noqa: E402
    checked_bytes,
    engine_facts,
    read_manifest,
    this_platform,
)
from runtime.backends.onnx import read_pair  # noqa: E402
from runtime.errors import ModelError  # noqa: E402
from runtime.models import DEFAULT_PRESET, shipped_presets  # noqa: E402
from tests.export import synthetic  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PAIR = ["frame_encoder.onnx", "fusion.onnx"]
ENGINES = ["frame_encoder.engine", "fusion.engine"]
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="building engines needs TensorRT-RTX (.[tensorrt-rtx])",
)
needs_shipped = pytest.mark.skipif(
    DEFAULT_PRESET not in shipped_presets(), reason=f"{DEFAULT_PRESET} ships no weights here"
)
pytestmark = [pytest.mark.tensorrt, needs_rtx]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detection sees none: the same engines everywhere, for the named GPUs."""
    monkeypatch.setattr(cuda, "device_count", lambda: 0)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def without_plugins(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder and report of one build for one GPU."""
    folder = tmp_path_factory.mktemp("engines")
    args = ["--onnx", original, "--fp16", "--plugins", "off", "--target-sm", "8.9", "8.6"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "device_count", lambda: 0)
        assert run(*args, "--output", folder / "out", "--report", folder / "report.json") == 0
    return folder


def run(*args: str | Path, backend: str = "tensorrt-rtx") -> int:
    return build_engine.main([*map(str, args), "--backend", backend])


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


class TestWithoutPlugins:
    def test_the_folder_holds_the_pair_the_engines_and_the_manifest(
        self, without_plugins: Path
    ) -> None:
        found = sorted(path.name for path in (without_plugins / "out").iterdir())
        assert found == sorted([*PAIR, *ENGINES, "manifest.json"])

    def test_the_report(self, without_plugins: Path) -> None:
        report, out = report_of(without_plugins), without_plugins / "out"
        assert report["backend"] == "tensorrt-rtx"
        assert report["precision"] == "fp16"
        assert report["plugin_layers"] == 0
        assert report["engine"]["plugin_layers"] == {"frame_encoder": 0, "fusion": 0}
        assert report["engine_bytes"] == sum((out / name).stat().st_size for name in ENGINES) > 0
        assert report["build_s"] > sum(report["engine"]["build_s"].values()) > 0
        assert report["parity"]["engine"] == "engine not run: no GPU here"
        (check,) = report["parity"]["checks"]
        assert check["form"] == "written fp16 pair"
        assert 0 < check["max_probability_difference"] <= 0.01
        assert report["versions"]["tensorrt-rtx"] == report["engine"]["version"]

    def test_the_manifest_is_what_the_runtime_reads(self, without_plugins: Path) -> None:
        out = without_plugins / "out"
        manifest = read_manifest(out)
        facts = engine_facts(manifest)
        assert facts is not None
        assert manifest["backend"] == facts.flavour == "tensorrt-rtx"
        assert manifest["parity"]["engine"] == "engine not run: no GPU here"
        assert facts.compute_capabilities == ("8.6", "8.9")
        assert facts.platform == this_platform()
        assert facts.precision == read_pair(out)[0].precision == "fp16"
        assert not facts.int8_encoder
        assert facts.plugins is None
        assert facts.profiles["fusion"]["visual"]["max"] == [4, 511, synthetic.C]
        for name in [*PAIR, *ENGINES]:
            assert checked_bytes(out, name, manifest)

    def test_a_tampered_engine_is_not_read(self, without_plugins: Path, tmp_path: Path) -> None:
        out = shutil.copytree(without_plugins / "out", tmp_path / "out")
        data = bytearray((out / "fusion.engine").read_bytes())
        data[len(data) // 2] ^= 1
        (out / "fusion.engine").write_bytes(data)
        with pytest.raises(ModelError, match=r"fusion\.engine is not the file .*SHA-256 differs"):
            checked_bytes(out, "fusion.engine", read_manifest(out))

    def test_a_new_build_leaves_nothing_of_the_old_one(
        self, without_plugins: Path, original: Path, tmp_path: Path
    ) -> None:
        out = shutil.copytree(without_plugins / "out", tmp_path / "out")
        assert run("--onnx", original, "--output", out, backend="onnx") == 0
        assert sorted(path.name for path in out.iterdir()) == sorted([*PAIR, "manifest.json"])


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_with_plugins_every_custom_op_is_a_plugin_layer(
    original: Path, tmp_path: Path, plugin_library_path: Path, precision: str
) -> None:
    half = ["--fp16"] if precision == "fp16" else []
    args = ["--onnx", original, *half, "--plugin-library", plugin_library_path]
    assert run(*args, "--output", tmp_path / "out", "--report", tmp_path / "report.json") == 0
    report = report_of(tmp_path)
    assert report["plugin_layers"] == report["custom_op_nodes"] == 2
    manifest = read_manifest(tmp_path / "out")
    facts = engine_facts(manifest)
    assert facts is not None
    assert facts.plugins is not None
    assert facts.plugins.layers == {"frame_encoder": 0, "fusion": 2}
    assert facts.plugins.library == plugin_library_path.name
    assert facts.compute_capabilities == RTX_DEFAULT_TARGETS
    parsed = onnx.load_from_string(checked_bytes(tmp_path / "out", "fusion.plugins.onnx", manifest))
    assert not parsed.functions
    assert onnx.load(tmp_path / "out" / "fusion.onnx").functions  # runs in ONNX Runtime


def test_a_pair_without_custom_ops_needs_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the ablation arms without both modules are; any file stands for the library."""
    folder = synthetic.write_pair(tmp_path / "in")
    model = onnx.load(folder / "fusion.onnx")
    for node in model.graph.node:
        if node.domain == "msct":
            copy = onnx.helper.make_node("Identity", [node.input[0]], list(node.output))
            node.CopyFrom(copy)
    del model.functions[:], model.opset_import[1:]
    (folder / "fusion.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "lib.so").write_text("never opened")
    args = ["--onnx", folder, "--plugin-library", tmp_path / "lib.so", "--target-sm", "8.6"]
    assert run(*args, "--output", tmp_path / "out") == 0
    facts = engine_facts(read_manifest(tmp_path / "out"))
    assert facts is not None
    assert facts.plugins is None


@pytest.mark.thorough
@needs_shipped
def test_the_shipped_preset_with_plugins(tmp_path: Path, plugin_library_path: Path) -> None:
    args = ["--fp16", "--plugin-library", plugin_library_path, "--target-sm", "8.6"]
    assert run(*args, "--output", tmp_path / "out", "--report", tmp_path / "report.json") == 0
    report = report_of(tmp_path)
    assert report["plugin_layers"] == 8  # two a modality and block
    assert report["engine"]["plugin_layers"] == {"frame_encoder": 0, "fusion": 8}


@pytest.mark.thorough
def test_the_papers_model_has_24_plugin_layers(tmp_path: Path, plugin_library_path: Path) -> None:
    """Its fusion alone, with random weights: six blocks, two modalities, two modules each."""
    for name in ("torch", "onnxscript"):
        pytest.importorskip(name, reason=f"exporting needs {name} (.[train,export])")
    from export import graphs
    from export.plugin_graph import custom_ops, with_plugins
    from export.precision import to_fp16

    network, spec = graphs.untrained("msct")
    model = with_plugins(to_fp16(graphs.fusion_model(network, spec)))
    file, ops = tmp_path / "fusion.plugins.onnx", custom_ops(model)
    file.write_bytes(model.SerializeToString())
    shapes = builder.profiles(spec, window_tokens=50, max_batch=4)
    graph = builder.Graph("fusion", file, tmp_path / ENGINES[1], shapes["fusion"], ops)
    target = Target(("8.6",), here=False)
    built = builder.build(
        builder.Request("tensorrt-rtx", (graph,), target, plugin_library_path), lambda what: None
    )
    assert ops == {"DifferentialCrossAttention": 12, "MultiScaleKeyConv": 12}
    assert built.layers == {"fusion": 24}
    assert graph.engine.stat().st_size > 1e8


class TestBadInput:
    def fails(self, capsys: pytest.CaptureFixture[str], code: int, *args: str | Path) -> str:
        assert run(*args) == code
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1, said.err
        return said.err

    @pytest.mark.parametrize(
        ("args", "text"),
        [
            (["--target-sm", "9.0"], "builds ahead of time for 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"),
            (["--target-sm", "7.5"], "--target-sm 7.5 needs --fp16"),
            (["--window", "20.5"], "--window 20.5 does not fit: an engine takes 0.04 to 20.44 s"),
            (["--window", "0"], "--window 0 does not fit"),
            (["--window", "nan"], "--window nan does not fit"),
            (["--max-batch", "0"], "--max-batch must be from 1 to 256, not 0"),
            (["--timing-cache", "x"], "--timing-cache is for TensorRT: TensorRT-RTX times nothing"),
            (["--plugin-library", "no.so"], "exclude each other"),
        ],
    )
    def test_usage(
        self,
        capsys: pytest.CaptureFixture[str],
        original: Path,
        tmp_path: Path,
        args: list[str],
        text: str,
    ) -> None:
        common = ["--onnx", original, "--plugins", "off", "--output", tmp_path / "out"]
        assert text in self.fails(capsys, 2, *common, *args)
        assert list(tmp_path.iterdir()) == []

    def test_a_library_that_is_not_there(
        self, capsys: pytest.CaptureFixture[str], original: Path, tmp_path: Path
    ) -> None:
        args = ["--onnx", original, "--plugin-library", tmp_path / "no.so"]
        assert "no plugin library" in self.fails(capsys, 2, *args, "--output", tmp_path / "out")

    def test_no_library_was_built(
        self,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        original: Path,
        tmp_path: Path,
    ) -> None:
        """Made up: the library's name is one that nobody builds."""
        from runtime.backends import native

        monkeypatch.delenv(native.PLUGIN_LIBRARY_VARIABLE, raising=False)
        monkeypatch.setattr(native, "PLUGIN_LIBRARY", "libnobody.so")
        text = self.fails(capsys, 1, "--onnx", original, "--output", tmp_path / "out")
        assert "`make native` builds them" in text
        assert "`--plugins off` does without" in text
        assert list(tmp_path.iterdir()) == []

    def test_a_library_that_is_none(
        self, capsys: pytest.CaptureFixture[str], original: Path, tmp_path: Path
    ) -> None:
        library = tmp_path / "lib.so"
        library.write_text("no library")
        args = ["--onnx", original, "--plugin-library", library, "--output", tmp_path / "out"]
        text = self.fails(capsys, 1, *args)
        assert f"finds no plugin DifferentialCrossAttention in {library}" in text
        assert "make native" in text
        assert list(tmp_path.iterdir()) == [library]

    def test_a_graph_that_tensorrt_refuses(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        """ONNX Runtime counts unique values; TensorRT has no such layer."""
        folder = synthetic.write_pair(tmp_path / "in")
        model = onnx.load(folder / "fusion.onnx")
        model.graph.node.append(onnx.helper.make_node("Unique", ["visual"], ["unique"], name="u"))
        (folder / "fusion.onnx").write_bytes(model.SerializeToString())
        args = ["--onnx", folder, "--plugins", "off", "--output", tmp_path / "out"]
        text = self.fails(capsys, 1, *args)
        assert "cannot read fusion.onnx: node u (Unique)" in text
        assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_interruption_leaves_nothing(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    original: Path,
    tmp_path: Path,
) -> None:
    """At the first word of the process that builds."""
    build = builder.build

    def interrupted(request: builder.Request, step: object) -> builder.Built:
        def stop(what: str) -> None:
            raise KeyboardInterrupt

        return build(request, stop)

    monkeypatch.setattr(builder, "build", interrupted)
    args = ["--onnx", original, "--plugins", "off", "--output", tmp_path / "out"]
    assert run(*args) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
def test_neither_torch_nor_the_trainer_is_needed(original: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "if __name__ == '__main__':\n"
        "    sys.modules['torch'] = sys.modules['trainer'] = None\n"
        "    from export.build_engine import main\n"
        "    sys.exit(main(sys.argv[1:]))\n"
    )
    script = tmp_path / "build.py"  # a file: the process that builds imports its parent's
    script.write_text(program)
    args = ["--onnx", original, "--fp16", "--backend", "tensorrt-rtx", "--plugins", "off"]
    done = subprocess.run(
        [sys.executable, script, *args, "--target-sm", "8.6", "--output", tmp_path / "out"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "mini-01234567-fp16, fp16, backend tensorrt-rtx (asked for)" in done.stdout


class TestTheCheckOfTheEngine:
    """On a machine with a GPU that is made up: what is run, and what happens to a bad one."""

    @pytest.fixture
    def gpu(self, monkeypatch: pytest.MonkeyPatch, original: Path) -> None:
        """The target's GPU seems to be here, and the backend to be the source in ONNX Runtime."""
        from runtime.backends import tensorrt
        from runtime.backends.onnx import OnnxBackend

        def opened(folder: Path, *, plugin_library: Path | None) -> OnnxBackend:
            assert engine_facts(read_manifest(folder)) is not None
            assert plugin_library is None
            return OnnxBackend(original, threads=1)

        monkeypatch.setattr(engines, "why_not_run", lambda target: None)
        monkeypatch.setattr(tensorrt, "TensorRTBackend", opened)

    def test_its_result_is_in_report_and_manifest(
        self, gpu: None, original: Path, tmp_path: Path
    ) -> None:
        args = ["--onnx", original, "--plugins", "off", "--target-sm", "8.6"]
        assert run(*args, "--output", tmp_path / "out", "--report", tmp_path / "report.json") == 0
        parity = report_of(tmp_path)["parity"]
        assert parity["engine"] == "compared"
        assert [check["form"] for check in parity["checks"]] == [
            "written fp32 pair",
            "TensorRT-RTX fp32 engine",
        ]
        assert read_manifest(tmp_path / "out")["parity"] == parity

    def test_an_engine_beyond_the_limit_is_not_written(
        self,
        gpu: None,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        original: Path,
        tmp_path: Path,
    ) -> None:
        monkeypatch.setattr(engines, "LOGIT_LIMIT_ENGINE_FP32", -1.0)
        args = ["--onnx", original, "--plugins", "off", "--target-sm", "8.6"]
        assert run(*args, "--output", tmp_path / "out") == 1
        assert "TensorRT-RTX fp32 engine differs from source fp32" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_a_gpu_that_it_is_not_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from tests.export.test_choice import FakeDevice

        monkeypatch.setattr(cuda, "device_count", lambda: 1)
        monkeypatch.setattr(cuda, "Device", FakeDevice)
        expected = "engine not run: the GPU here has compute capability 8.7, the engine is for 8.6"
        assert engines.why_not_run(Target(("8.6",), here=False)) == expected
        assert engines.why_not_run(Target(("8.6", "8.7"), here=False)) is None
