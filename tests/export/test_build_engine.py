# SPDX-License-Identifier: Apache-2.0
"""The command line that builds what a device runs, on a pair that needs no torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="writing a pair for the test needs onnx (.[export])")
pytest.importorskip("onnxruntime", reason="needs ONNX Runtime (.[cpu])")

from export import build_engine, choice, pair, parity  # noqa: E402
from runtime import models  # noqa: E402
from runtime.backends import cuda  # noqa: E402
from runtime.backends.onnx import OnnxBackend, read_pair  # noqa: E402
from tests.export import synthetic  # noqa: E402

PAIR = ("frame_encoder.onnx", "fusion.onnx")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detection sees no GPU and no TensorRT: auto means ONNX Runtime (test_engines.py: engines)."""
    monkeypatch.setattr(choice, "installed", lambda flavour: False)
    monkeypatch.setattr(cuda, "device_count", lambda: 0)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def shipped(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if the default preset came with the synthetic pair."""
    home = tmp_path / "models"
    shutil.copytree(original, home / models.DEFAULT_PRESET)
    monkeypatch.setattr(models, "_HERE", home)
    return home


def run(*args: str | Path) -> int:
    return build_engine.main([str(arg) for arg in args])


def failure(capsys: pytest.CaptureFixture[str], code: int, *args: str | Path) -> str:
    """Run what must fail; the one line it says."""
    assert run(*args) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1, said.err
    assert said.err.startswith("error: ")
    return said.err


class TestFromAnOnnxPair:
    def test_fp32_copies_the_pair_byte_for_byte(self, original: Path, tmp_path: Path) -> None:
        assert run("--onnx", original, "--output", tmp_path / "out") == 0
        for name in PAIR:
            assert (tmp_path / "out" / name).read_bytes() == (original / name).read_bytes()

    def test_the_report(self, original: Path, tmp_path: Path) -> None:
        output, path = tmp_path / "out", tmp_path / "report.json"
        args = ("--onnx", original, "--fp16", "--backend", "onnx", "--output", output)
        assert run(*args, "--report", path) == 0
        report = json.loads(path.read_text())
        assert report["backend"] == "onnx"
        assert report["precision"] == "fp16"
        assert report["plugin_layers"] == 0
        assert report["custom_op_nodes"] == 2
        assert report["engine_bytes"] == sum((output / name).stat().st_size for name in PAIR)
        assert report["build_s"] > 0
        assert 0 < report["parity"]["max_probability_difference"] <= 0.01
        assert report["model_id"] == "mini-01234567-fp16"
        assert report["trained"] is True

    @pytest.mark.parametrize("option", ["--fp16", "--half"])
    def test_fp16_gives_a_pair_that_the_runtime_loads(
        self, original: Path, tmp_path: Path, option: str
    ) -> None:
        assert run("--onnx", original, option, "--output", tmp_path / "out") == 0
        with OnnxBackend(tmp_path / "out", threads=1) as backend:
            assert backend.spec.precision == "fp16"
            frames = np.zeros((2, synthetic.SIDE, synthetic.SIDE, 3), np.uint8)
            assert backend.encode(frames).dtype == np.float32

    def test_fp16_of_an_fp16_pair_is_that_pair(self, original: Path, tmp_path: Path) -> None:
        first, second = tmp_path / "first", tmp_path / "second"
        assert run("--onnx", original, "--fp16", "--output", first) == 0
        assert run("--onnx", first, "--fp16", "--output", second) == 0
        for name in PAIR:
            assert (first / name).read_bytes() == (second / name).read_bytes()

    def test_two_builds_give_the_same_bytes(self, original: Path, tmp_path: Path) -> None:
        for name in ("first", "second"):
            assert run("--onnx", original, "--fp16", "--output", tmp_path / name) == 0
        for name in (*PAIR, "manifest.json"):
            first, second = (tmp_path / f / name for f in ("first", "second"))
            assert first.read_bytes() == second.read_bytes()

    def test_the_manifest_fits_the_files(self, original: Path, tmp_path: Path) -> None:
        assert run("--onnx", original, "--fp16", "--output", tmp_path / "out") == 0
        spec, _ = read_pair(tmp_path / "out")  # checks the hashes
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        assert manifest["precision"] == spec.precision == "fp16"
        assert manifest["backend"] == "onnx"

    def test_no_torch_is_imported(self, original: Path, tmp_path: Path) -> None:
        program = (
            "import sys\n"
            "sys.modules['torch'] = None\n"
            "sys.modules['trainer'] = None\n"
            "from export.build_engine import main\n"
            "sys.exit(main(sys.argv[1:]))\n"
        )
        args = ["--onnx", str(original), "--fp16", "--output", str(tmp_path / "out")]
        args += ["--backend", "onnx"]
        done = subprocess.run(
            [sys.executable, "-c", program, *args],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "mini-01234567-fp16, fp16, backend onnx" in done.stdout


class TestDefaults:
    def test_without_options_the_shipped_preset_is_built(
        self, shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert run("--fp16") == 0
        assert read_pair(tmp_path / "engines" / "mini-fp16-onnx")[0].precision == "fp16"

    def test_auto_says_what_it_chose_and_why(
        self, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("--onnx", original, "--output", tmp_path / "out") == 0
        assert "backend onnx (auto: no NVIDIA GPU here, no Tens" in capsys.readouterr().out

    def test_random_weights_are_said(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pair = synthetic.write_pair(tmp_path / "in", synthetic.other_pair(trained=False))
        assert run("--onnx", pair, "--output", tmp_path / "out") == 0
        assert "random weights (trained: false)" in capsys.readouterr().out


class TestBadInput:
    @pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
    def test_a_backend_that_is_not_installed(
        self, capsys: pytest.CaptureFixture[str], original: Path, tmp_path: Path, backend: str
    ) -> None:
        args = ("--onnx", original, "--backend", backend, "--output", tmp_path / "out")
        assert f"pip install '.[{backend}]'" in failure(capsys, 1, *args)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("option", "values"),
        [
            ("--plugins", ["on"]),
            ("--plugin-library", ["lib.so"]),
            ("--max-batch", ["2"]),
            ("--window", ["2"]),
            ("--timing-cache", ["timings"]),
            ("--target-sm", ["8.6", "8.9"]),
        ],
    )
    @pytest.mark.parametrize("backend", ["onnx", "auto"])
    def test_options_of_engines_are_not_ignored(
        self, capsys: pytest.CaptureFixture[str], backend: str, option: str, values: list[str]
    ) -> None:
        text = failure(capsys, 2, "--backend", backend, option, *values)
        assert f"{option} is for engines, and this builds none (backend onnx, " in text

    def test_plugins_off_is_what_onnx_does_anyway(self, original: Path, tmp_path: Path) -> None:
        args = ("--onnx", original, "--plugins", "off", "--output", tmp_path / "out")
        assert run(*args) == 0

    @pytest.mark.parametrize(
        ("args", "text"),
        [
            (["--preset", "huge"], "unknown preset 'huge'; there are: msct, msct-tiny"),
            (["--checkpoint", "none.safetensors"], "no such checkpoint: none.safetensors"),
            (["--onnx", "nowhere"], "no such folder: nowhere"),
            (["--backend", "cuda"], "invalid choice: 'cuda'"),
            (["--onnx", "a", "--checkpoint", "b"], "not allowed with argument"),
            (["--int9"], "unrecognized arguments: --int9"),
            (["--int8"], "--int8 and --calibration PATH... go together"),
            (["--calibration", "a"], "--int8 and --calibration PATH... go together"),
            (["--int8", "--calibration", "nowhere"], "no such file or folder: nowhere"),
        ],
    )
    def test_usage(self, capsys: pytest.CaptureFixture[str], args: list[str], text: str) -> None:
        assert text in failure(capsys, 2, *args)

    def test_a_preset_without_weights_needs_torch(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        monkeypatch.delitem(sys.modules, "export.graphs", raising=False)
        assert "pip install '.[cpu,train,export]'" in failure(capsys, 1, "--preset", "msct")

    def test_fp16_needs_onnx(
        self,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        original: Path,
        tmp_path: Path,
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnx", None)
        args = ("--onnx", original, "--fp16", "--output", tmp_path / "out")
        assert "pip install '.[export]'" in failure(capsys, 1, *args)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("damage", ["cut", "swap", "two pairs", "external"])
    def test_bad_pairs(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, damage: str
    ) -> None:
        pair = synthetic.write_pair(tmp_path / "in")
        encoder, fusion = (pair / name for name in PAIR)
        if damage == "cut":
            fusion.write_bytes(fusion.read_bytes()[:-9])
            expected = "is damaged or no ONNX file"
        elif damage == "swap":
            data = encoder.read_bytes()
            encoder.write_bytes(fusion.read_bytes())
            fusion.write_bytes(data)
            expected = "swapped"
        elif damage == "two pairs":
            other = synthetic.fusion(synthetic.other_pair(pair_id="another"))
            fusion.write_bytes(other.SerializeToString())
            expected = "different pairs"
        else:
            model = synthetic.fusion()
            model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
            fusion.write_bytes(model.SerializeToString())
            expected = "keeps tensors in other files"
        assert expected in failure(capsys, 1, "--onnx", pair, "--output", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_file_for_a_folder(
        self, capsys: pytest.CaptureFixture[str], original: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "out").write_text("in the way")
        text = failure(capsys, 1, "--onnx", original, "--output", tmp_path / "out")
        assert f"cannot write to {tmp_path / 'out'}" in text

    def test_a_report_that_cannot_be_written_is_said_before_anything_is_built(
        self, capsys: pytest.CaptureFixture[str], original: Path, tmp_path: Path
    ) -> None:
        args = ("--onnx", original, "--output", tmp_path / "out", "--report", tmp_path)
        assert f"cannot write {tmp_path}: it is a folder" in failure(capsys, 1, *args)
        assert not (tmp_path / "out").exists()

    def test_the_source_is_never_overwritten(
        self, capsys: pytest.CaptureFixture[str], original: Path
    ) -> None:
        text = failure(capsys, 2, "--onnx", original, "--fp16", "--output", original)
        assert "would overwrite" in text

    def test_a_pair_that_differs_too_much_is_not_written(
        self,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        original: Path,
        tmp_path: Path,
    ) -> None:
        monkeypatch.setattr(pair, "PROBABILITY_LIMIT_FP16", 1e-12)
        args = ("--onnx", original, "--fp16", "--output", tmp_path / "out")
        assert "nothing was written" in failure(capsys, 1, *args)
        assert list(tmp_path.iterdir()) == []

    def test_a_clip_that_is_not_there(
        self, capsys: pytest.CaptureFixture[str], original: Path, tmp_path: Path
    ) -> None:
        args = ("--onnx", original, "--output", tmp_path / "out", "--parity-clip", "no.mp4")
        code = run(*args)
        said = capsys.readouterr()
        assert code in (1, 2)
        assert said.err.count("\n") == 1
        assert "no.mp4" in said.err


def test_interruption_writes_nothing(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    original: Path,
    tmp_path: Path,
) -> None:
    def stop(*args: object, **kwargs: object) -> parity.Parity:
        raise KeyboardInterrupt

    monkeypatch.setattr(pair, "compare", stop)
    args = ("--onnx", original, "--output", tmp_path / "out")
    assert "interrupted; nothing was written" in failure(capsys, 130, *args)
    assert list(tmp_path.iterdir()) == []
