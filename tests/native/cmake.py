# SPDX-License-Identifier: Apache-2.0
"""The CUDA build as the tests run it: configured and compiled by CMake, once a folder."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "tests-native"
LIBRARY = "libmsct_plugins.so"
ARCHITECTURES = "MSCT_TEST_CUDA_ARCHITECTURES"  # environment variable, as in "80;87;110"
DEFAULT_ARCHITECTURES = "80;87;110"
TIMEOUT_S = 1200


def architectures() -> list[int]:
    chosen = os.environ.get(ARCHITECTURES) or DEFAULT_ARCHITECTURES
    return [int(number) for number in chosen.replace(",", ";").split(";")]


def nvcc() -> str | None:
    """Where CMake would find it."""
    candidates = [os.environ.get("CUDACXX"), "nvcc", "/usr/local/cuda/bin/nvcc"]
    return next((found for c in candidates if c and (found := shutil.which(c))), None)


def why_not() -> str | None:
    """Why CUDA cannot be compiled here, or None where it can."""
    if not sys.platform.startswith("linux"):
        return "the CUDA kernels are compiled on Linux only"
    if shutil.which("cmake") is None:
        return "cmake is not installed"
    if nvcc() is None:
        return "nvcc is not installed"
    if not any(shutil.which(c) for c in (os.environ.get("CXX"), "c++", "g++") if c):
        return "no C++ compiler is installed"
    return None


def build(folder: Path = FOLDER) -> Path:
    """Bring the kernels up to date, in the plugin library and in a Python module of their own.

    Either is left out where what it needs is missing: TensorRT's headers, pybind11.

    Two test runs of one checkout wait for one another.  Raises AssertionError with the end of the
    log where the build fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_suffix(".lock")):
        chosen = ";".join(map(str, architectures()))
        # A changed choice of headers must be seen: they are looked for anew each time.
        definitions = ["-DMSCT_CUDA=ON", *_bindings(), "-UMSCT_TENSORRT_INCLUDE"]
        definitions += [f"-DMSCT_CUDA_ARCHITECTURES={chosen}"]
        definitions += [f"-DPython_EXECUTABLE={sys.executable}"]
        _run(["cmake", "-S", str(ROOT), "-B", str(folder), *definitions])
        jobs = str(len(os.sched_getaffinity(0)))
        _run(["cmake", "--build", str(folder), "--parallel", jobs])
    return folder


def python_module(folder: Path) -> Path | None:
    """runtime._native with the CUDA kernels, where pybind11 and Python's headers were there."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    path = folder / f"_native{suffix}"
    return path if path.is_file() else None


def facts(folder: Path) -> dict[str, Any]:
    """What the build says of itself: architectures, compilers, TensorRT's headers."""
    return json.loads((folder / "cuda_build.json").read_text(encoding="utf-8"))


def _bindings() -> list[str]:
    if importlib.util.find_spec("pybind11") is None:
        return ["-DMSCT_BINDINGS=OFF"]
    command = [sys.executable, "-m", "pybind11", "--cmakedir"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return ["-DMSCT_BINDINGS=ON", f"-Dpybind11_DIR={done.stdout.strip()}"]


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout[-4000:]}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
