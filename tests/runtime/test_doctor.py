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
from runtime import doctor, health
from runtime.backends import cuda
from runtime.health import Check, Finding, Missing, State, examine
from tests.runtime.fake_gpu import Code, FakeDriver

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = ("av", "cv2", "dlib", "kaldi_native_fbank", "onnxruntime", "rich", "ray", "pyarrow")


def found(name: str) -> Finding:
    (check,) = [c for c in (*health.CHECKS, *health.JETSON) if c.name == name]
    return examine(check)


def raising(error: BaseException) -> Check:
    def look() -> str:
        raise error

    return Check("thing", "a purpose", "a remedy", look)


class TestAChecksOutcome:
    def test_what_it_found_needs_no_remedy(self) -> None:
        finding = examine(Check("thing", "a purpose", "a remedy", lambda: "1.2"))
        assert (finding.state, finding.detail, finding.remedy) == (State.OK, "1.2", "")

    def test_what_is_missing_comes_with_the_command_that_installs_it(self) -> None:
        finding = examine(raising(Missing("not installed")))
        assert (finding.state, finding.remedy) == (State.MISSING, "a remedy")

    def test_a_check_may_know_a_better_remedy(self) -> None:
        assert examine(raising(Missing("not installed", "another"))).remedy == "another"

    @pytest.mark.parametrize(
        "error", [OSError("gone\nfor good"), ImportError("x"), ZeroDivisionError(), ValueError("y")]
    )
    def test_whatever_else_it_raises_is_one_line(self, error: Exception) -> None:
        finding = examine(raising(error))
        assert finding.state is State.BROKEN
        assert finding.detail
        assert "\n" not in finding.detail


class TestExitCode:
    @pytest.mark.parametrize("state", [State.MISSING, State.BROKEN])
    def test_what_the_default_path_needs_decides(self, state: State) -> None:
        good = Finding("a", State.OK, "", "", needed=True)
        assert doctor.default_path_works([good, Finding("b", state, "", "")])
        assert not doctor.default_path_works([good, Finding("b", state, "", "", needed=True)])

    def test_a_complete_installation_is_0(self, capfd: pytest.CaptureFixture[str]) -> None:
        for name in HEAVY[:6]:
            pytest.importorskip(name, reason=f"{name} is not installed (extra cpu)")
        assert doctor.main([]) == 0
        assert "files can be judged on the CPU" in capfd.readouterr().out

    def test_json_has_every_check_and_the_answer(self, capfd: pytest.CaptureFixture[str]) -> None:
        code = doctor.main(["--json"])
        report = json.loads(capfd.readouterr().out)
        assert report["works"] == (code == 0)
        names = [check["name"] for check in report["checks"]]
        assert names == [check.name for check in health.checks(run=False)]
        assert {check["state"] for check in report["checks"]} <= {"ok", "missing", "broken"}

    def test_with_nothing_but_numpy_it_says_what_to_install(self) -> None:
        program = (
            "import importlib.abc, sys\n"
            "class Block(importlib.abc.MetaPathFinder):\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            f"        if name.split('.')[0] in {HEAVY!r}:\n"
            "            raise ModuleNotFoundError(name)\n"
            "sys.meta_path.insert(0, Block())\n"
            "from runtime import doctor\n"
            "sys.exit(doctor.main([]))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True,
            timeout=60, check=False, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert done.stderr == ""
        lines = done.stdout.splitlines()
        assert any("ONNX Runtime" in line and "pip install '.[cpu]'" in line for line in lines)
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
    def test_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cuda, "device_count", lambda: 0)
        assert found("NVIDIA GPU").state is State.MISSING

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
        monkeypatch.setattr(health, "DEVICES", tmp_path)
        names = [Path(p).name for p in found("cameras").detail.split(", ")]
        assert names == ["video0", "video2", "video10"]

    def test_a_camera_that_may_not_be_read_is_broken(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "video0").touch()
        monkeypatch.setattr(health, "DEVICES", tmp_path)
        monkeypatch.setattr(os, "access", lambda *_: False)
        finding = found("cameras")
        assert finding.state is State.BROKEN
        assert "usermod -aG video" in finding.remedy

    def test_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(health, "DEVICES", tmp_path)
        assert found("cameras").state is State.MISSING

    def test_a_jetson_tells_its_release(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        release = tmp_path / "nv_tegra_release"
        release.write_text("# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic\n")
        monkeypatch.setattr(health, "TEGRA_RELEASE", release)
        assert found("Jetson").detail == "R36 (release), REVISION: 4.0"
        assert "power mode" in [check.name for check in health.checks(run=False)]

    def test_elsewhere_a_jetsons_parts_are_not_missing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(health, "TEGRA_RELEASE", tmp_path / "none")
        assert "power mode" not in [check.name for check in health.checks(run=False)]

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
    (check,) = [c for c in health.checks(run=True) if c.name == "test run"]
    assert examine(check).state is State.BROKEN
