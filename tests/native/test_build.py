# SPDX-License-Identifier: Apache-2.0
"""The build: what it leaves alone, what it finds, what the plugin library is, where it is found."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from runtime.backends import native
from runtime.errors import DependencyError, UsageError
from tests.native import cmake

needs_cmake = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("c++") is None,
    reason="cmake or a C++ compiler is not installed",
)


def configure(folder: Path, *definitions: str, **environment: str) -> tuple[int, str]:
    """Exit code and output of CMake's first step."""
    done = subprocess.run(
        ["cmake", "-S", str(cmake.ROOT), "-B", str(folder), "-DMSCT_BINDINGS=OFF"]
        + [f"-D{definition}" for definition in definitions],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment},
        text=True,
        check=False,
    )
    return done.returncode, " ".join(done.stdout.split())


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.thorough
@needs_cmake
class TestConfigure:
    def test_cuda_is_not_looked_for_unless_it_is_asked_for(self, tmp_path):
        called = tmp_path / "called"
        nvcc = script(tmp_path / "nvcc", f'touch "{called}"; exit 1')
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        code, output = configure(tmp_path / "b", PATH=path, CUDACXX=str(nvcc))
        assert code == 0, output
        assert not called.exists()
        built = (tmp_path / "b" / "_native_build.py").read_text(encoding="utf-8")
        assert "MSCT_CUDA=OFF" in built

    def test_architectures_that_nvcc_does_not_know_are_left_out_and_named(self, tmp_path):
        nvcc = script(tmp_path / "nvcc", "echo compute_80 compute_87 compute_101; exit 0")
        definitions = [f"CMAKE_CUDA_COMPILER={nvcc}", "MSCT_CUDA=ON"]
        _, output = configure(tmp_path / "b", *definitions, "MSCT_CUDA_ARCHITECTURES=110;80;120;87")
        assert "left out, nvcc does not know them: 120" in output
        assert "compiling CUDA for 80;87;101, with PTX of 80" in output  # Thor was 101 before 13.0

    def test_an_nvcc_that_knows_none_of_them_is_an_error(self, tmp_path):
        nvcc = script(tmp_path / "nvcc", "echo compute_50 compute_52; exit 0")
        definitions = [f"CMAKE_CUDA_COMPILER={nvcc}", "MSCT_CUDA=ON"]
        code, output = configure(tmp_path / "b", *definitions, "MSCT_CUDA_ARCHITECTURES=80;87")
        assert code != 0
        assert "knows none of 80;87, only 50;52" in output

    def test_an_architecture_that_is_none_is_an_error(self, tmp_path):
        nvcc = script(tmp_path / "nvcc", "echo compute_80; exit 0")
        definitions = [f"CMAKE_CUDA_COMPILER={nvcc}", "MSCT_CUDA=ON"]
        code, output = configure(tmp_path / "b", *definitions, "MSCT_CUDA_ARCHITECTURES=sm_80")
        assert code != 0
        assert "sm_80 is no compute capability like 87" in output

    def test_headers_are_taken_from_tensorrt_root_and_checked(self, tmp_path):
        if reason := cmake.why_not():
            pytest.skip(reason)
        include = tmp_path / "TensorRT" / "include"
        include.mkdir(parents=True)
        definitions = ["MSCT_CUDA=ON", "MSCT_CUDA_ARCHITECTURES=87"]

        def with_version(text: str | None) -> tuple[int, str]:
            if text is not None:
                (include / "NvInfer.h").touch()
                (include / "NvInferVersion.h").write_text(text, encoding="utf-8")
            root = f"TENSORRT_ROOT={include.parent}"
            return configure(tmp_path / "b", *definitions, root)

        code, output = with_version(None)
        assert code != 0
        assert "holds no NvInfer.h: correct it or unset it" in output
        code, output = with_version("#define NV_TENSORRT_MAJOR 8\n#define NV_TENSORRT_MINOR 5\n")
        assert code != 0
        assert "TensorRT 8.5" in output
        assert "has no IPluginV3" in output
        named = "#define TRT_MAJOR_ENTERPRISE 11\n#define TRT_MINOR_ENTERPRISE 5\n"
        code, output = with_version(named + "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE\n")
        assert code == 0, output
        assert f"TensorRT 11.5 headers in {include}" in output
        code, output = with_version("#define TRT_MAJOR_RTX 1\n#define TRT_MINOR_RTX 4\n")
        assert code == 0, output
        assert "TensorRT RTX 1.4 headers" in output


class TestLauncher:
    LAUNCHER = cmake.ROOT / "csrc" / "cmake" / "ptxas-log.sh"

    def launch(self, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
        if shutil.which("sh") is None:
            pytest.skip("no POSIX shell")
        return subprocess.run(
            ["sh", str(self.LAUNCHER), str(folder / "ptxas"), *command],
            capture_output=True,
            text=True,
            check=False,
        )

    def test_the_report_goes_into_the_log_and_warnings_to_the_terminal(self, tmp_path):
        nvcc = script(
            tmp_path / "nvcc", 'echo "ptxas info    : Used 8 registers" >&2; echo "warning: w" >&2'
        )
        done = self.launch(tmp_path, str(nvcc), "-c", "a/kernel.cu")
        assert done.returncode == 0
        assert done.stderr == "warning: w\n"
        log = (tmp_path / "ptxas" / "kernel.cu.log").read_text(encoding="utf-8")
        assert log == "ptxas info    : Used 8 registers\nwarning: w\n"

    def test_a_failed_compilation_stays_one_and_leaves_no_log(self, tmp_path):
        nvcc = script(tmp_path / "nvcc", 'echo "error: e" >&2; exit 3')
        done = self.launch(tmp_path, str(nvcc), "-c", "kernel.cu")
        assert done.returncode == 3
        assert done.stderr == "error: e\n"
        assert list((tmp_path / "ptxas").iterdir()) == []


class TestPluginLibrary:
    def readelf(self, option: str, library: Path) -> str:
        if shutil.which("readelf") is None:
            pytest.skip("readelf is not installed")
        command = ["readelf", "--wide", option, str(library)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def test_it_shows_two_functions_and_nothing_else(self, plugin_library_path):
        rows = [row.split() for row in self.readelf("--dyn-syms", plugin_library_path).splitlines()]
        shown = {
            row[7]
            for row in rows
            if len(row) > 7 and row[4] in ("GLOBAL", "WEAK") and row[6] not in ("UND", "Ndx")
        }
        assert shown == {"getCreators", "setLoggerFinder"}

    def test_it_needs_no_library_of_cuda_or_tensorrt(self, plugin_library_path):
        rows = self.readelf("--dynamic", plugin_library_path).splitlines()
        needed = {row.split("[")[1].rstrip("]") for row in rows if "(NEEDED)" in row}
        assert needed
        assert not {name for name in needed if "nv" in name or "cu" in name}


class TestWhereItIsFound:
    @pytest.fixture(autouse=True)
    def nowhere(self, tmp_path, monkeypatch):
        """A runtime without a library anywhere."""
        package = tmp_path / "checkout" / "runtime" / "backends"
        package.mkdir(parents=True)
        monkeypatch.setattr(native, "__file__", str(package / "native.py"))
        monkeypatch.setattr(native, "_build_facts", lambda: None)
        monkeypatch.delenv(native.PLUGIN_LIBRARY_VARIABLE, raising=False)

    def library(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / native.PLUGIN_LIBRARY
        path.touch()
        return path

    def test_the_named_one_wins_then_the_variable_then_the_installed_then_the_built(
        self, tmp_path, monkeypatch
    ):
        built = self.library(tmp_path / "checkout" / "build" / "native")
        assert native.plugin_library() == built
        installed = self.library(tmp_path / "checkout" / "runtime")
        assert native.plugin_library() == installed
        variable = self.library(tmp_path / "variable")
        monkeypatch.setenv(native.PLUGIN_LIBRARY_VARIABLE, str(variable))
        assert native.plugin_library() == variable
        named = self.library(tmp_path / "named")
        assert native.plugin_library(named) == named

    def test_an_editable_install_has_it_beside_the_compiled_module(self, tmp_path, monkeypatch):
        class Build:
            __file__ = str(tmp_path / "site" / "runtime" / "_native_build.py")
            PLUGINS_REASON = ""

        library = self.library(tmp_path / "site" / "runtime")
        monkeypatch.setattr(native, "_build_facts", lambda: Build)
        assert native.plugin_library() == library

    def test_a_named_one_that_does_not_exist_is_a_usage_error(self, tmp_path, monkeypatch):
        with pytest.raises(UsageError, match=r"none\.so is no file; `make native` builds one"):
            native.plugin_library(tmp_path / "none.so")
        monkeypatch.setenv(native.PLUGIN_LIBRARY_VARIABLE, str(tmp_path / "gone.so"))
        with pytest.raises(UsageError, match=r"gone\.so \(\$MSCT_PLUGIN_LIBRARY\) is no file"):
            native.plugin_library()

    def test_without_one_the_error_says_what_to_do(self, monkeypatch, tmp_path):
        with pytest.raises(DependencyError, match=r"`make native` builds them, `--plugins off`"):
            native.plugin_library()

        class Build:
            __file__ = str(tmp_path / "_native_build.py")
            PLUGINS_REASON = "TensorRT's headers were not found"

        monkeypatch.setattr(native, "_build_facts", lambda: Build)
        with pytest.raises(DependencyError, match="headers were not found; `make native`"):
            native.plugin_library()
