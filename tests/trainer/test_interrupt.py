# SPDX-License-Identifier: Apache-2.0
"""Real signals to the trainer's and the exporter's commands; :mod:`tests.runtime.test_interrupt`
has those to the product's, and those during an import."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.clips import write_clip
from tests.runtime.test_interrupt import (
    PATIENCE_S,
    REPOSITORY,
    children,
    end_of,
    gone,
    importing,
)
from tests.trainer.prepared import write_noise_set
from tests.waiting import wait_for

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="children are read from /proc")


def command(module: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


@LINUX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=["SIGINT", "SIGHUP"])
def test_workers_that_are_just_being_started_say_nothing(
    number: signal.Signals, tmp_path: Path
) -> None:
    """A terminal's signal is the whole group's: one line, of the command alone."""
    for person in "abc":
        (tmp_path / "clips" / person).mkdir(parents=True)
        write_clip(tmp_path / "clips" / person / "clip.mp4", seconds=1)
    process = command("trainer.prepare", "--data", tmp_path / "clips", "--output", tmp_path / "out")
    workers = wait_for(lambda: found if len(found := children(process.pid)) > 2 else None,
                       "two workers and the tracker of multiprocessing")  # fmt: skip
    os.killpg(process.pid, number)
    line = "trainer.prepare: stopped; the same command goes on from here\n"
    assert end_of(process) == (130, line)
    assert list(tmp_path.rglob(".*")) == []
    wait_for(lambda: all(map(gone, workers)), "the workers' end")


def test_a_worker_that_is_ended_takes_its_parts_of_files_along(tmp_path: Path) -> None:
    program = """if True:
        import sys, time
        from pathlib import Path
        from runtime import interrupt, leftovers
        interrupt.install_in_worker()
        with leftovers.part_of(Path(sys.argv[1])) as part:
            part.touch()
            print("ready", flush=True)
            time.sleep(300)
    """
    worker = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "out.npz")],
                              cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    worker.send_signal(signal.SIGINT)  # its parent's affair
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=PATIENCE_S)
    assert worker.returncode == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
def test_training_stops_with_130_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra train)")
    splits = {"a": "train", "b": "train", "c": "val", "d": "test"}
    data = write_noise_set(tmp_path / "set", splits=splits)
    run = tmp_path / "run"
    process = command("trainer.fit", "--data", data, "--output", run, "--preset", "msct-tiny",
                      "--align-steps", 2, "--joint-steps", 10_000, "--batch", 4,
                      "--threads", 1, "--save-every", 1)  # fmt: skip
    log = run / "log.jsonl"
    wait_for(lambda: process.poll() is not None or (log.exists() and log.stat().st_size), "a step")
    process.send_signal(signal.SIGTERM)
    code, err = end_of(process)
    assert (code, err) == (
        130, "trainer.fit: stopped; --resume continues from the last saved step\n"
    )  # fmt: skip
    assert list(run.glob(".*")) == []
    assert json.loads(log.read_text().splitlines()[0])["step"] == 1


def test_an_export_that_is_stopped_leaves_no_folder(real_pair: Path, tmp_path: Path) -> None:
    """In the middle of its work: onnx is imported once the folder to write in is there."""
    pytest.importorskip("onnx", reason="onnx is not installed (extra export)")
    process = importing("onnx", "export.build_engine", "--onnx", real_pair, "--fp16", "--backend",
                        "onnx", "--output", tmp_path / "out")  # fmt: skip
    process.send_signal(signal.SIGHUP)
    assert process.stdin is not None
    process.stdin.write("go on\n")
    assert end_of(process) == (130, "error: interrupted; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_a_distillation_ends_between_two_steps_or_pictures(tmp_path: Path) -> None:
    from tests.trainer import face_double

    films = tmp_path / "films"
    for source in ("one", "two", "three"):
        face_double.write_film(films / source / "person" / "film.mp4", [0.15, 0.2, 0.25] * 10)
    teacher = face_double.environment(tmp_path / "teacher")
    process = command("trainer.distil", "--clips", films, "--teacher-env", teacher, "--steps",
                      "100000", "--batch", "16", "--output", tmp_path / "out")  # fmt: skip
    wait_for(lambda: (tmp_path / "out" / "environment.json").exists() or None, "its beginning")
    process.send_signal(signal.SIGTERM)
    code, said = end_of(process)
    assert code == 130
    assert "stopped; the same command goes on from here" in said
    assert not [p for p in tmp_path.rglob("*") if ".part" in p.name]
