# SPDX-License-Identifier: Apache-2.0
"""The doctor: what it finds, that nothing it meets stops it, and what its exit code says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import runtime.models
from runtime.backends import cuda
from runtime.doctor import __main__ as doctor
from runtime.doctor import checks
from runtime.doctor.checks import Check, Finding, Missing, State, examine
from tests.runtime.fake_gpu import Code, FakeDriver

REPOSITORY = Path(__file__).resolve().parents[3]
HEAVY = ("av", "cv2", "dlib", "kaldi_native_fbank", "onnxruntime", "rich", "ray", "pyarrow")


def found(name: str) -> Finding:
    (check,) = [c for c in (*checks.CHECKS, *checks.JETSON) if c.name == name]
    return examine(check)


def test_an_outcome_is_ok_missing_or_broken_in_one_line_with_its_remedy() -> None:
    def raises(error: Exception) -> Any:
        def look() -> str:
            raise error

        return examine(Check("thing", "a purpose", "a remedy", look))[1:5]

    good = examine(Check("thing", "a purpose", "a remedy", lambda: "1.2"))
    assert good[1:5] == (State.OK, "1.2", "a purpose", "")
    assert raises(Missing("none")) == (State.MISSING, "none", "a purpose", "a remedy")
    assert raises(OSError("gone\nfor good"))[:2] == (State.BROKEN, "gone for good")
    assert raises(ZeroDivisionError())[:2] == (State.BROKEN, "ZeroDivisionError")


@pytest.mark.parametrize("state", [State.MISSING, State.BROKEN])
def test_what_the_default_path_needs_decides(state: State) -> None:
    good = Finding("a", State.OK, "", "", "", needed=True)
    assert doctor.default_path_works([good, good._replace(state=state, needed=False)])
    assert not doctor.default_path_works([good, good._replace(state=state)])


def test_json_has_every_check_and_the_answer(capfd: pytest.CaptureFixture[str]) -> None:
    code = doctor.main(["--json"])
    report = json.loads(capfd.readouterr().out)
    assert report["works"] == (code == 0)
    names = [check["name"] for check in report["checks"]]
    assert names == [check.name for check in checks.checks(run=False)]
    assert {check["state"] for check in report["checks"]} <= {"ok", "missing", "broken"}


def test_with_nothing_but_numpy_it_says_what_to_install() -> None:
    program = (
        "import importlib.abc, sys\n"
        "class Block(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {HEAVY!r}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from runtime.doctor.__main__ import main\n"
        "sys.exit(main([]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True,
        timeout=60, check=False, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    (at,) = [i for i, line in enumerate(lines) if "ONNX Runtime  " in line]
    assert "for running the model: pip install '.[cpu]'" in lines[at + 1]
    assert lines[-1] == "files cannot be judged: see above"


class TestModels:
    def test_shipped_hashes_are_verified(self, real_pair: Path) -> None:
        finding = found("models")
        assert finding.state is State.OK
        assert "SHA-256 verified" in finding.detail

    def test_a_changed_file_is_broken(
        self, real_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copytree(real_pair, tmp_path / "msct-tiny")
        damaged = tmp_path / "msct-tiny" / "fusion.onnx"
        data = bytearray(damaged.read_bytes())
        data[len(data) // 2] ^= 1
        damaged.write_bytes(data)
        monkeypatch.setattr(runtime.models, "_HERE", tmp_path)
        finding = found("models")
        assert finding.state is State.BROKEN
        assert finding.needed
        assert "fusion.onnx" in finding.detail

    def test_an_installation_without_weights_is_missing_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runtime.models, "_HERE", tmp_path)
        assert found("models").state is State.MISSING


class TestGpu:
    def test_name_capability_driver_and_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Driver(FakeDriver):
            def cuDriverGetVersion(self) -> tuple[Code, int]:
                return Code.CUDA_SUCCESS, 12060

        driver = Driver()
        monkeypatch.setattr(cuda, "device_count", lambda: 1)
        monkeypatch.setattr(cuda, "_bindings", lambda: driver)
        finding = found("NVIDIA GPU")
        assert finding.detail == (
            "Fake GPU (compute capability 8.6, driver for CUDA 12.6, 1.1 GB free)"
        )
        assert driver.live == {}  # nothing is kept

    def test_a_gpu_without_the_bindings_is_broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cuda, "device_count", lambda: 1)
        monkeypatch.setattr(cuda, "_MODULES", ("no_such_module",))
        finding = found("NVIDIA GPU")
        assert finding.state is State.BROKEN
        assert "1 found by the driver" in finding.detail
        assert "pip install '.[cuda]'" in finding.detail


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="device files are Linux's")
class TestDevices:
    def test_cameras_by_number(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in (10, 2, 0):
            (tmp_path / f"video{number}").touch()
        monkeypatch.setattr(checks, "DEVICES", tmp_path)
        names = [Path(p).name for p in found("cameras").detail.split(", ")]
        assert names == ["video0", "video2", "video10"]

    def test_a_camera_that_may_not_be_read_is_broken(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "video0").touch()
        monkeypatch.setattr(checks, "DEVICES", tmp_path)
        monkeypatch.setattr(os, "access", lambda *_: False)
        finding = found("cameras")
        assert finding.state is State.BROKEN
        assert "usermod -aG video" in finding.remedy

    def test_a_jetson_tells_its_release(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        release = tmp_path / "nv_tegra_release"
        release.write_text("# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic\n")
        assert "power mode" not in [check.name for check in checks.checks(run=False)]
        monkeypatch.setattr(checks, "TEGRA_RELEASE", release)
        assert found("Jetson").detail == "R36 (release), REVISION: 4.0"
        assert "power mode" in [check.name for check in checks.checks(run=False)]

    def test_a_program_that_fails_is_broken_with_what_it_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = tmp_path / "gst-launch-1.0"
        program.write_text("#!/bin/sh\necho 'no registry' >&2\nexit 3\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        finding = found("GStreamer")
        assert finding.state is State.BROKEN
        assert "no registry" in finding.detail


def test_run_proves_the_whole_path(real_pair: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--run", "--json"]) == 0
    checks: list[dict[str, Any]] = json.loads(capfd.readouterr().out)["checks"]
    proof = checks[-1]
    assert proof["name"] == "test run"
    assert proof["state"] == "ok", proof["detail"]
    assert "CPUExecutionProvider" in proof["detail"]


def test_a_model_that_answers_nonsense_fails_the_run(
    real_pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from runtime.backends.onnx import OnnxBackend

    real = OnnxBackend.fuse
    monkeypatch.setattr(
        OnnxBackend,
        "fuse",
        lambda self, v, a: real(self, v, a)._replace(logits_av=np.full((1, 2), np.nan)),
    )
    (check,) = [c for c in checks.checks(run=True) if c.name == "test run"]
    assert examine(check).state is State.BROKEN
