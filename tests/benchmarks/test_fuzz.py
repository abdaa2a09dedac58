# SPDX-License-Identifier: Apache-2.0
"""The fuzzer: mutants are the same every time, no outcome is missed, and the product holds."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.fuzz import __main__ as fuzz
from benchmarks.fuzz import mutants
from benchmarks.fuzz.__main__ import FuzzError, Result, Worker, judge_one, summarise
from benchmarks.fuzz.mutants import DAMAGE, RECIPES, Seed, make_seeds, mutant
from benchmarks.fuzz.worker import Judged, answer
from runtime.errors import EXIT_ERROR, EXIT_OK, MediaError

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc"
)
SEEDS = [
    Seed("a.mp4", b"\0\0\0\x20ftypisom" + b"\0\0\0\x6cmoovmvhd" + bytes(range(256)) * 8),
    Seed("b.wav", b"RIFF....WAVEfmt " + bytes(range(255, -1, -1)) * 8),
]


# --- mutants --------------------------------------------------------------------------------


def test_a_mutant_follows_from_seed_and_number_alone() -> None:
    backwards = {number: mutant(SEEDS, 3, number) for number in reversed(range(200))}
    for number in range(200):
        assert mutant(SEEDS, 3, number) == backwards[number]


def test_mutants_differ_from_each_other_and_between_seeds() -> None:
    here = {mutant(SEEDS, 0, number).data for number in range(200)}
    assert len(here) > 150  # of clips of 2 kB, which some damage leaves empty
    assert len(here & {mutant(SEEDS, 1, number).data for number in range(200)}) < 10


def test_every_kind_of_damage_takes_part_and_is_named() -> None:
    damage = " ".join(mutant(SEEDS, 0, number).description for number in range(300))
    for words in (
        *("bits flipped", "overwritten with noise", "overwritten with another clip", "cut off at"),
        *("removed", "times more", "swapped", "another clip behind it", "on another clip from"),
        *("extreme fields: 0x", "zeros from", "a.mp4 as .wav", "b.wav as .txt"),
    ):
        assert words in damage


@pytest.mark.parametrize("damage", sorted(set(DAMAGE), key=lambda d: d.__name__))
@pytest.mark.parametrize("data", [b"", b"x", b"RIFF", b"moov" * 3])
def test_what_is_left_of_a_clip_can_be_damaged_again(
    damage: Callable[..., str], data: bytes
) -> None:
    import random

    for number in range(50):
        assert damage(bytearray(data), random.Random(number), b"other clip")


def test_a_mutant_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutants, "MAX_BYTES", 5000)
    large = [Seed("large.avi", bytes(4999))]
    assert max(len(mutant(large, 0, number).data) for number in range(100)) == 5000


@pytest.fixture(scope="module")
def seeds(sample_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Seed]:
    return make_seeds([sample_clip], tmp_path_factory.mktemp("seeds"))


@pytest.mark.thorough
def test_the_clips_are_the_same_bytes_each_time(sample_clip: Path, tmp_path: Path) -> None:
    """Apart from H.264 and AAC: on a busy machine x264 and FFmpeg's AAC were seen to give other
    bytes in the first round of a process, which is why the results name each clip's hash."""
    seeds = make_seeds([sample_clip], tmp_path)
    again = make_seeds([sample_clip], tmp_path)
    assert [s.name for s in seeds[: len(RECIPES)]] == [r.name for r in RECIPES]
    assert [s.name for s in again] == [s.name for s in seeds]
    steady = {r.name for r in RECIPES if r.picture != "libx264"}
    assert len(steady) >= 10
    for before, now in zip(seeds, again, strict=True):
        assert before.data == now.data or before.name not in steady, before.name


# --- outcomes -------------------------------------------------------------------------------


def outcome(judge: Callable[[Path], Judged], memory_mb: float = 1e5) -> tuple[str, str]:
    found = answer(judge, Path("clip.mp4"), memory_mb)
    return found["outcome"], found["detail"]


def test_what_a_living_worker_tells_apart() -> None:
    def raises(err: Exception) -> Callable[[Path], Judged]:
        def judge(path: Path) -> Judged:
            raise err

        return judge

    assert outcome(lambda path: Judged("abstained", "too_short", 1.0)) == ("abstained", "too_short")
    assert outcome(raises(MediaError("clip.mp4: damaged"))) == ("error", "clip.mp4: damaged")
    assert outcome(raises(MediaError("two\nlines")))[0] == "traceback"
    assert outcome(raises(MediaError("")))[0] == "traceback"
    assert outcome(raises(MemoryError()))[0] == "memory"
    kind, trace = outcome(raises(ZeroDivisionError("of course")))
    assert kind == "traceback"
    assert trace.endswith("ZeroDivisionError: of course")
    kind, detail = outcome(lambda path: Judged("verdict", "fine", 1.0), memory_mb=1.0)
    assert kind == "memory"
    assert "MB resident (verdict: fine)" in detail


WORKER = """
import os, signal, sys, time, warnings
from benchmarks.fuzz.worker import Judged, serve
def judge(path):
    word = path.read_text()
    if word == "crash": os.kill(os.getpid(), signal.SIGSEGV)
    if word == "exit": sys.exit(5)
    if word == "hang": time.sleep(60)
    if word == "raise": raise KeyError(word)
    if word == "warn": warnings.warn("overflow", RuntimeWarning)
    if word == "grow": return Judged("verdict", str(len(bytes(600_000_000))), 0.0)
    print("this is no answer")
    return Judged("verdict", word, 2.0)
serve(judge, 300)
"""


@pytest.fixture
def worker() -> Iterator[Worker]:
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", WORKER]
    found = Worker(command, limit_s=2.0)
    yield found
    found.close()


@pytest.mark.thorough
def test_a_worker_that_dies_or_hangs_is_told_apart_and_replaced(
    worker: Worker, tmp_path: Path
) -> None:
    def judge(word: str) -> tuple[str, str]:
        path = tmp_path / "clip.txt"
        path.write_text(word)
        found = worker.judge(path)
        return found["outcome"], found["detail"]

    assert judge("fine") == ("verdict", "fine")
    assert judge("raise")[0] == "traceback"
    assert judge("warn")[0] == "traceback"
    assert judge("grow")[0] == "memory"
    assert worker.starts == 1  # it survives all of these
    kind, said = judge("crash")
    assert kind == "crash"
    assert said.startswith("SIGSEGV")
    assert "in judge" in said  # where it was
    assert judge("exit") == ("crash", "exit code 5")
    assert judge("hang") == ("hang", "not done after 2 s")
    assert judge("fine") == ("verdict", "fine")
    assert worker.starts == 4


def test_a_worker_is_renewed_before_it_can_be_worn_out(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "RENEW_AFTER", 2)
    (tmp_path / "clip.txt").write_text("fine")
    for _ in range(5):
        assert worker.judge(tmp_path / "clip.txt")["outcome"] == "verdict"
    assert worker.starts == 3


def test_a_worker_that_cannot_begin_is_an_error() -> None:
    worker = Worker([sys.executable, "-c", "raise SystemExit('no model')"], limit_s=1.0)
    with pytest.raises(FuzzError, match="no model"):
        worker.judge(Path("clip.mp4"))


def test_a_failing_mutant_is_kept_and_can_be_made_again(tmp_path: Path) -> None:
    class Crashing(Worker):
        def judge(self, path: Path) -> dict[str, object]:
            assert path.is_file()
            return {"outcome": "crash", "detail": "SIGSEGV", "seconds": 0.5}

    result = judge_one(Crashing([], 1.0), SEEDS, 5, 17, tmp_path, tmp_path / "kept")
    (kept,) = (tmp_path / "kept").iterdir()
    assert kept.read_bytes() == mutant(SEEDS, 5, result.number).data
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_the_summary_counts_and_names() -> None:
    results = [
        Result(0, "a.mp4", "cut", "verdict", "", 0.2, 200.0, 2.2),
        Result(1, "a.mp4", "cut", "error", "/x/mutant-0-000001.mp4: no media 17", 0.1, 210.0),
        Result(2, "b.wav", "cut", "error", "/x/mutant-0-000002.wav: no media 4", 0.1, 220.0),
        Result(3, "b.wav", "flip", "hang", "not done", 20.0),
    ]
    result = summarise(results)
    assert result["counts"] == {
        "verdict": 1, "abstained": 0, "error": 2, "traceback": 0, "crash": 0, "hang": 1, "memory": 0
    }  # fmt: skip
    assert result["by_clip"]["b.wav"] == {"error": 1, "hang": 1}
    assert result["errors"] == {"FILE: no media N": 2}
    assert (result["seconds"]["max"], result["seconds"]["max_of"]) == (20.0, 3)
    assert result["memory_mb"]["max_of"] == 2
    assert [f["number"] for f in result["failures"]] == [3]


# --- the command ----------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.timeout(180)
def test_thirty_mutants_of_a_real_clip(
    sample_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fuzz.json"
    code = fuzz.main(
        ["--clips", str(sample_clip), "--count", "30", "--jobs", "1", "--output", str(out),
         "--limit-s", "100"]  # a busy machine is no hang
    )  # fmt: skip
    said = capsys.readouterr()
    assert code == EXIT_OK, said.out
    result = json.loads(out.read_text())
    assert sum(result["counts"].values()) == 30
    assert result["counts"]["error"] > 0
    assert result["counts"]["abstained"] > 0
    assert result["failures"] == []
    assert "30 mutants of" in said.out


def test_a_failure_is_the_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [sys.executable, "-c", WORKER.replace("path.read_text()", "1 / 0")]
    monkeypatch.setattr(fuzz, "worker_command", lambda *options: broken)
    monkeypatch.setattr(fuzz, "make_seeds", lambda clips, folder: SEEDS)
    code = fuzz.main(["--clips", __file__, "--count", "2", "--jobs", "2"])
    assert code == EXIT_ERROR
    assert "traceback: mutant 1" in capsys.readouterr().out


def test_only_as_many_as_fit_into_the_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = [sys.executable, "-c", WORKER.replace("path.read_text()", "time.sleep(0.1)")]
    monkeypatch.setattr(fuzz, "worker_command", lambda *options: slow)
    monkeypatch.setattr(fuzz, "make_seeds", lambda clips, folder: SEEDS)
    out = tmp_path / "fuzz.json"
    arguments = ["--clips", __file__, "--count", "1000", "--minutes", "0.01", "--output", str(out)]
    assert fuzz.main(arguments) == EXIT_OK
    assert 0 < sum(json.loads(out.read_text())["counts"].values()) < 100


def test_one_mutant_alone_runs_here_and_lets_a_traceback_through(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: str, decoder: str) -> Callable[[Path], Judged]:
        return lambda path: Judged("verdict", str(path.stat().st_size // 0), 0.0)

    monkeypatch.setattr("benchmarks.fuzz.worker.product", broken)
    monkeypatch.setattr(fuzz, "make_seeds", lambda clips, folder: SEEDS)
    assert fuzz.main(["--clips", __file__, "--only", "7"]) == 1
    out, err = capsys.readouterr()
    assert mutant(SEEDS, 0, 7).description in out
    assert "\nTraceback" in err
    assert err.splitlines()[-1].startswith("ZeroDivisionError")
