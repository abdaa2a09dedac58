# SPDX-License-Identifier: Apache-2.0
"""Two processes (gloo, on a CPU) against one, on the same global batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra: pip install '.[train]'")

from runtime.errors import UsageError
from tests.trainer.prepared import write_noise_set
from trainer.loop.distributed import Group, run_together

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.timeout(700),
]
SPLITS = {"a": "train", "b": "train", "c": "val", "d": "test"}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where the processes left what they computed, and the exit codes of those that failed."""
    folder = tmp_path_factory.mktemp("together")
    data = write_noise_set(folder / "set", splits=SPLITS, tokens=45, crop_px=32)
    script = Path(__file__).with_name("fit_together.py")
    done = subprocess.run(
        [sys.executable, script, data, folder / "out"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stdout


def arrays(folder: Path, case: str, size: int, rank: int) -> dict[str, Any]:
    with np.load(folder / f"{case}-{size}-{rank}.npz") as file:
        return {k: file[k] for k in file.files}


@pytest.mark.parametrize("case", ["align", "joint", "parts"])
def test_loss_and_gradients_are_those_of_one_process(ran: tuple[Path, str], case: str):
    alone = arrays(ran[0], case, 1, 0)
    compared = [k for k in alone if not k.startswith(("weight/", "average/"))]
    gradients = [k for k in compared if k.startswith("gradient/")]
    assert len(gradients) > 3 * 20
    assert max(float(np.abs(alone[k]).max()) for k in gradients) > 1e-2
    for rank in (0, 1):
        shared = arrays(ran[0], case, 2, rank)
        assert set(shared) == set(alone)
        for name in compared:
            np.testing.assert_allclose(shared[name], alone[name], atol=1e-5, rtol=1e-5)


def test_a_batch_in_parts_is_the_batch(ran: tuple[Path, str]):
    whole, parts = arrays(ran[0], "joint", 1, 0), arrays(ran[0], "parts", 1, 0)
    for name in whole:
        if name.startswith("gradient/"):
            np.testing.assert_allclose(parts[name], whole[name], atol=1e-5, rtol=1e-5)


def test_processes_with_statistics_of_their_own_keep_one_model(ran: tuple[Path, str]):
    """Each CPU process normalises by its part of the batch: not one process's gradients, but the
    same weights and the same running statistics in both."""
    alone = arrays(ran[0], "own-statistics", 1, 0)
    one, other = (arrays(ran[0], "own-statistics", 2, rank) for rank in (0, 1))
    for name, value in one.items():
        assert np.array_equal(value, other[name]), name
    moved = [k for k in one if "running_mean" in k]
    assert moved
    assert any(not np.array_equal(one[k], alone[k]) for k in moved)


def test_a_run_of_two_processes_is_written_once(ran: tuple[Path, str]):
    folder = ran[0] / "run"
    assert json.loads((folder / "metrics.json").read_text())["test"]["identities"] == 1
    environment = json.loads((folder / "environment.json").read_text())
    assert [s["processes"] for s in environment["starts"]] == [2]
    steps = [json.loads(x)["step"] for x in (folder / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert len(steps) == 8 + 4  # a line a step, a line a validation


def test_an_error_in_one_process_ends_both_with_one_line(ran: tuple[Path, str]):
    assert ran[1].strip() == "codes [1, 1]"
    text = (ran[0] / "failure.txt").read_text()
    assert text == "trainer.fit: process 1: the disk of this process is full\n"


def test_a_batch_that_cannot_be_dealt_is_refused():
    group = Group(rank=1, size=3)
    assert group.part(12) == range(4, 8)
    with pytest.raises(UsageError, match="multiple of 6"):
        group.part(9, pieces=2)


def test_an_environment_that_describes_no_group_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert run_together("cpu", lambda group: 0, "trainer.fit") == 2
    assert "torchrun" in capsys.readouterr().err
