# SPDX-License-Identifier: Apache-2.0
"""The kernels under compute-sanitizer: no access out of bounds, no race, nothing uninitialised."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCHES = 96  # of tests/gpu/sanitized.py: 4 lengths, 4 widths, 3 types, 2 kernels
SUMMARY = {
    "memcheck": r"ERROR SUMMARY: 0 errors",
    "racecheck": r"RACECHECK SUMMARY: 0 hazards",
    "synccheck": r"ERROR SUMMARY: 0 errors",
    "initcheck": r"ERROR SUMMARY: 0 errors",
}


def sanitizer() -> str:
    for candidate in ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer"):
        if found := shutil.which(candidate):
            return found
    pytest.skip("compute-sanitizer is not installed")


@pytest.mark.thorough
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("tool", SUMMARY)
def test_compute_sanitizer_finds_nothing(tool):
    command = [sanitizer(), "--tool", tool, "--error-exitcode", "99"]
    done = subprocess.run(
        [*command, sys.executable, "-m", "tests.gpu.sanitized"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if "Device not supported" in done.stdout:
        pytest.skip("compute-sanitizer does not support this device or its sandbox")
    assert done.returncode == 0, done.stdout[-4000:]
    assert f"launches: {LAUNCHES}\n" in done.stdout, done.stdout[-4000:]
    assert re.search(SUMMARY[tool], done.stdout), done.stdout[-4000:]
