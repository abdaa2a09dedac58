# SPDX-License-Identifier: Apache-2.0
"""An archive: the rows, the journal that survives a kill, the tables, and the command through Ray.

All but the last class run the workers' code in this process, with a mock model; the last one is
the real thing: Ray, the shipped model, SIGKILL.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import runtime.flow.pictures
from runtime.errors import DependencyError, UsageError, UserError
from runtime.scan import __main__ as scan
from runtime.scan import clips as scan_clips
from runtime.scan.clips import TIMING_COLUMNS, Clip, Scorer, Settings, Work, lost_row
from runtime.scan.journal import Journal
from runtime.scan.table import COLUMNS, write_tables
from tests.runtime.clips import Extra, write_clip, write_tracks
from tests.runtime.doubles import SPEC, MockBackend, MockTracker, speech
from tests.waiting import patient, wait_for

pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (extra scan)")

REPOSITORY = Path(__file__).resolve().parents[3]
SETTINGS = Settings("mock-1", "mock", "fp32", 50, 5, True)
WORK = Work(None, "auto", None, None, None, SPEC.stream, SETTINGS)


class Killed(BaseException):
    """Ends the scan as a kill would: nothing of the scan handles it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips, one that is no media, and a file that is none of our business."""
    root = tmp_path_factory.mktemp("archive")
    (root / "deep" / "er").mkdir(parents=True)
    write_clip(root / "b.mp4")
    write_clip(root / "a.mkv", seconds=2.4, sound=speech(60))
    write_clip(root / "deep" / "short.mp4", seconds=1.0)
    write_clip(root / "deep" / "er" / "mute.MP4", sound=None)
    (root / "deep" / "broken.mp4").write_text("no media")
    (root / "notes.txt").write_text("none of ours")
    return root


@pytest.fixture
def mocked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A mock model, and workers in this process; ``scored`` is what they were given."""
    state: dict[str, Any] = {"spec": SPEC, "scored": [], "die_after": None, "lost": set(),
                             "taken_along": set()}  # fmt: skip

    def load(*_: Any) -> MockBackend:
        return MockBackend(state["spec"])

    @contextlib.contextmanager
    def engine(options: Any) -> Iterator[tuple[Any, int]]:
        yield None, options.workers or 2

    def scored(
        ray: Any, clips: Sequence[Clip], work: Work, workers: int, queued: int
    ) -> Iterator[Any]:
        scorer = Scorer(work)
        for done, clip in enumerate(reversed(clips)):  # workers end in any order
            if state["die_after"] == done:
                raise state.get("death", Killed)
            state["scored"].append(clip.path)
            if clip.path not in state["lost"] | (state["taken_along"] if queued > 1 else set()):
                yield scorer.score(clip)

    monkeypatch.setattr(scan_clips, "load_backend", load)
    monkeypatch.setattr(scan, "load_backend", load)
    monkeypatch.setattr(scan, "_engine", engine)
    monkeypatch.setattr(scan, "_scored", scored)
    monkeypatch.setattr(runtime.flow.pictures, "FaceTracker", lambda spec: MockTracker())
    return state


def run(*arguments: Any) -> int:
    return scan.main([str(a) for a in arguments])


def rows(path: Path) -> list[dict[str, Any]]:
    """The table without what may differ between two runs."""
    found: list[dict[str, Any]] = pq.read_table(path).drop_columns(list(TIMING_COLUMNS)).to_pylist()
    return found


def clips_in(folder: Path) -> list[Clip]:
    return scan_clips.find_clips(folder, scan.MEDIA_SUFFIXES)


@pytest.mark.usefixtures("mocked")
class TestTheTable:
    def test_one_row_a_clip_sorted_by_path(self, folder: Path, tmp_path: Path) -> None:
        assert run(folder, "--output", tmp_path / "out.parquet") == 1
        table = rows(tmp_path / "out.parquet")
        assert [row["path"] for row in table] == [
            "a.mkv", "b.mp4", "deep/broken.mp4", "deep/er/mute.MP4", "deep/short.mp4",
        ]  # fmt: skip

    def test_a_clip_that_cannot_be_read_is_a_row_with_its_error(
        self, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        run(folder, "--output", tmp_path / "out.parquet")
        broken = rows(tmp_path / "out.parquet")[2]
        assert broken["error"].startswith("not a media file")
        assert str(folder) not in broken["error"]
        assert (broken["windows"], broken["coverage"], broken["duration_s"]) == (0, 0.0, None)
        assert "1 of 5 clips not read" in capfd.readouterr().out

    def test_what_a_row_says_is_what_the_stream_says(self, folder: Path, tmp_path: Path) -> None:
        from runtime.flow.driver import run as stream
        from runtime.flow.sink import Collector
        from runtime.media.file import FileSource

        run(folder, "--output", tmp_path / "out.parquet")
        row = next(r for r in rows(tmp_path / "out.parquet") if r["path"] == "b.mp4")
        kept = Collector()
        with FileSource(folder / "b.mp4") as source:
            summary = stream(source, MockBackend(), sinks=[kept])
        total = len(kept.verdicts)
        assert total == 6
        assert row["windows"] == total
        assert row["coverage"] == round(summary.stats.coverage, 6)
        for label in ("real", "fake", "abstain"):
            counted = sum(v.label.value == label for v in kept.verdicts)
            assert row[f"share_{label}"] == pytest.approx(counted / total, abs=1e-6)
        spans = [(s["face_id"], s["start_s"], s["end_s"]) for s in row["fake_spans"]]
        assert spans == [(s.face_id, s.start_s, s.end_s) for s in summary.spans]
        assert row["duration_s"] == pytest.approx(summary.media_s, abs=1e-6)
        assert (row["model_id"], row["provider"]) == ("mock-1", "mock")

    def test_reasons_are_counted(self, folder: Path, tmp_path: Path) -> None:
        run(folder, "--output", tmp_path / "out.parquet")
        table = {row["path"]: row["reasons"] for row in rows(tmp_path / "out.parquet")}
        assert table["deep/short.mp4"] == [{"reason": "too_short", "windows": 1}]
        assert {r["reason"] for r in table["deep/er/mute.MP4"]} == {"no_audio"}

    def test_the_csv_says_the_same(self, folder: Path, tmp_path: Path) -> None:
        run(folder, "--output", tmp_path / "out.parquet")
        with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as handle:
            texts = list(csv.DictReader(handle))
        table = pq.read_table(tmp_path / "out.parquet").to_pylist()
        assert list(texts[0]) == list(COLUMNS) == list(table[0])
        for text, row in zip(texts, table, strict=True):
            for name, value in row.items():
                expected = json.dumps(value) if isinstance(value, list) and value else value
                assert text[name] == ("" if expected in (None, []) else str(expected)), name

    def test_a_name_is_no_formula_in_the_csv(self, tmp_path: Path) -> None:
        clip = Clip("=HYPERLINK(1).mp4", b"/x", 1, 1)
        row = {**lost_row(clip, "@m"), "av_offset_median_ms": -40.0, "error": "-x; =1"}
        write_tables(tmp_path / "out.parquet", [row])
        line = (tmp_path / "out.csv").read_text().splitlines()[1]
        assert line.startswith('"\'=HYPERLINK(1).mp4","\'-x; =1",')  # all of it in quotes
        with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as handle:
            (text,) = csv.DictReader(handle)
        assert (text["model_id"], text["av_offset_median_ms"]) == ("'@m", "-40.0")
        (kept,) = pq.read_table(tmp_path / "out.parquet").to_pylist()
        assert kept["path"] == "=HYPERLINK(1).mp4"

    def test_columns_have_their_types_also_where_nothing_was_read(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "x.mp4").write_text("no media")
        assert run(tmp_path / "in", "--output", tmp_path / "out.parquet") == 1
        schema = pq.read_schema(tmp_path / "out.parquet")
        assert str(schema.field("highest_p_fake").type) == "double"
        assert str(schema.field("windows").type) == "int64"
        assert "face_id: int64" in str(schema.field("fake_spans").type)


class TestResuming:
    @pytest.mark.thorough
    @pytest.mark.parametrize("after", [0, 1, 3, 4])
    def test_killed_and_resumed_equals_a_run_without_the_kill(
        self, after: int, folder: Path, tmp_path: Path, mocked: dict[str, Any]
    ) -> None:
        run(folder, "--output", tmp_path / "whole.parquet")
        mocked.update(die_after=after, scored=[])
        with pytest.raises(Killed):
            run(folder, "--output", tmp_path / "killed.parquet")
        assert len(mocked["scored"]) == after
        assert not (tmp_path / "killed.parquet").exists()
        mocked.update(die_after=None)
        run(folder, "--output", tmp_path / "killed.parquet")
        assert len(mocked["scored"]) == 5  # each once
        assert rows(tmp_path / "killed.parquet") == rows(tmp_path / "whole.parquet")

    def test_interrupted_it_says_what_is_kept(
        self, folder: Path, tmp_path: Path, mocked: dict[str, Any],
        capfd: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        mocked.update(die_after=2, death=KeyboardInterrupt)
        assert run(folder, "--output", tmp_path / "out.parquet") == 130
        assert "2 of 5 clips are kept" in capfd.readouterr().err

    @pytest.mark.thorough
    def test_a_finished_scan_again_scores_nothing(
        self, folder: Path, tmp_path: Path, mocked: dict[str, Any]
    ) -> None:
        run(folder, "--output", tmp_path / "out.parquet")
        before = pq.read_table(tmp_path / "out.parquet")
        mocked["scored"].clear()
        assert run(folder, "--output", tmp_path / "out.parquet") == 1
        assert mocked["scored"] == []
        assert pq.read_table(tmp_path / "out.parquet").equals(before)

    @pytest.mark.thorough
    @pytest.mark.usefixtures("mocked")
    def test_tracks_are_chosen_and_results_of_other_tracks_are_refused(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        folder, out = tmp_path / "clips", tmp_path / "out.parquet"
        folder.mkdir()
        write_tracks(
            folder / "two.mkv",
            [Extra(colour=0), *(Extra(pitch_hz=hz, default=hz > 500) for hz in (300.0, 1200.0))],
            seconds=2.4,
        )
        write_clip(folder / "one.mkv", seconds=2.4)
        assert run(folder, "--output", out) in (0, 3)
        one, two = rows(out)
        assert one["warnings"] == []
        assert "a:1 (aac, default) is taken" in two["warnings"][0]
        assert run(folder, "--output", out, "--audio-track", 1) == 2
        assert "audio_track None, now 1" in capfd.readouterr().err
        other = tmp_path / "other.parquet"
        assert run(folder, "--output", other, "--audio-track", 1) == 1
        one, two = rows(other)
        assert one["error"] == (
            "--audio-track 1: there is no sound a:1 that can be judged; it has a:0 (pcm_s16le)"
        )
        assert (two["error"], two["warnings"]) == (None, [])

    def test_a_clip_that_changed_is_scored_anew_and_one_that_went_is_no_row(
        self, tmp_path: Path, mocked: dict[str, Any]
    ) -> None:
        root = tmp_path / "in"
        root.mkdir()
        for name in ("a.mp4", "b.mp4", "c.mp4"):
            write_clip(root / name, seconds=1.0)
        run(root, "--output", tmp_path / "out.parquet")
        (root / "a.mp4").unlink()
        os.utime(root / "b.mp4", ns=(1, 1))
        mocked["scored"].clear()
        run(root, "--output", tmp_path / "out.parquet")
        assert mocked["scored"] == ["b.mp4"]
        assert [row["path"] for row in rows(tmp_path / "out.parquet")] == ["b.mp4", "c.mp4"]

    def test_results_of_another_model_are_refused(
        self, folder: Path, tmp_path: Path, mocked: dict[str, Any],
        capfd: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        run(folder, "--output", tmp_path / "out.parquet")
        mocked["spec"] = replace(SPEC, model_id="mock-2", pair_id="other")
        mocked["scored"].clear()
        assert run(folder, "--output", tmp_path / "out.parquet") == 2
        assert "model_id mock-1, now mock-2" in capfd.readouterr().err
        assert mocked["scored"] == []

    def test_results_of_other_windows_are_refused(
        self, folder: Path, tmp_path: Path, mocked: dict[str, Any]
    ) -> None:
        run(folder, "--output", tmp_path / "out.parquet")
        assert run(folder, "--output", tmp_path / "out.parquet", "--hop", 0.4) == 2

    def test_a_clip_whose_worker_died_is_a_row_and_is_tried_again(
        self, folder: Path, tmp_path: Path, mocked: dict[str, Any]
    ) -> None:
        mocked["lost"].add("b.mp4")
        assert run(folder, "--output", tmp_path / "out.parquet") == 1
        assert "the worker died" in rows(tmp_path / "out.parquet")[1]["error"]
        mocked["lost"].clear()
        mocked["scored"].clear()
        run(folder, "--output", tmp_path / "out.parquet")
        assert mocked["scored"] == ["b.mp4"]
        assert rows(tmp_path / "out.parquet")[1]["error"] is None

    def test_a_clip_that_waited_at_a_worker_that_died_is_scored_in_the_second_pass(
        self, folder: Path, tmp_path: Path, mocked: dict[str, Any]
    ) -> None:
        mocked["lost"].add("b.mp4")
        mocked["taken_along"].add("a.mkv")
        run(folder, "--output", tmp_path / "out.parquet")
        first, second = rows(tmp_path / "out.parquet")[:2]
        assert (first["error"], second["error"] is None) == (None, False)
        assert mocked["scored"][-2:] == ["b.mp4", "a.mkv"]


class TestJournal:
    def row(self, key: str) -> dict[str, Any]:
        return {"key": key, **dict.fromkeys(COLUMNS)}

    def test_a_line_cut_short_by_a_kill_is_dropped_and_the_next_one_is_whole(
        self, tmp_path: Path
    ) -> None:
        with Journal(tmp_path, SETTINGS) as journal:
            journal.add(self.row("a"))
            journal.add(self.row("b"))
        file = tmp_path / "rows.jsonl"
        for cut in (1, 40, len(json.dumps(self.row("b")))):
            whole = file.read_bytes()
            file.write_bytes(whole[:-cut])
            with Journal(tmp_path, SETTINGS) as journal:
                assert list(journal.kept) == ["a"]
                journal.add(self.row("b"))
            assert file.read_bytes() == whole

    def test_a_damaged_line_is_named(self, tmp_path: Path) -> None:
        with Journal(tmp_path, SETTINGS) as journal:
            journal.add(self.row("a"))
        with (tmp_path / "rows.jsonl").open("a") as handle:
            handle.write('{"key": "b"}\n')
        with pytest.raises(UserError, match="line 3 is damaged"):
            Journal(tmp_path, SETTINGS)

    def test_the_rows_of_an_earlier_version_are_another_scans(self, tmp_path: Path) -> None:
        (tmp_path / "rows.jsonl").write_text(json.dumps(self.row("a")) + "\n")
        with pytest.raises(UsageError, match=r"another scan \(model_id None, now .* remove that"):
            Journal(tmp_path, SETTINGS)

    def test_two_scans_at_once_are_refused(self, tmp_path: Path) -> None:
        with (
            Journal(tmp_path, SETTINGS),
            pytest.raises(UsageError, match="another scan is writing"),
        ):
            Journal(tmp_path, SETTINGS)
        Journal(tmp_path, SETTINGS).__exit__(None, None, None)  # and the lock is given back

    def test_it_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match="cannot write"):
            Journal(tmp_path / "file" / "parts", SETTINGS)


def _clip_and_notes(folder: Path) -> None:
    for name in ("a.mp4", "notes"):
        (folder / name).touch()


@pytest.mark.usefixtures("mocked")
class TestExitCodesAndErrors:
    def test_every_clip_was_read_is_0(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        write_clip(tmp_path / "in" / "a.mp4")
        assert run(tmp_path / "in", "--output", tmp_path / "out.parquet") == 0

    def test_only_abstentions_are_3(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        write_clip(tmp_path / "in" / "a.mp4", seconds=1.0)
        assert run(tmp_path / "in", "--output", tmp_path / "out.parquet") == 3

    @pytest.mark.parametrize(
        ("errors", "fakes", "coverage", "asked", "code"),
        [
            (False, False, 0.5, True, 0),
            (False, True, 0.5, True, 4),
            (False, True, 0.5, False, 0),
            (True, True, 0.5, True, 1),
            (False, False, 0.0, False, 3),
        ],
    )
    def test_which_code_wins(
        self, errors: bool, fakes: bool, coverage: float, asked: bool, code: int
    ) -> None:
        good = {"error": None, "fake_spans": [], "coverage": coverage}
        other = {"error": "x" if errors else None, "fake_spans": [1] if fakes else [],
                 "coverage": coverage}  # fmt: skip
        assert scan.exit_code([good, other], fail_on_fake=asked) == code

    @pytest.mark.parametrize(
        ("make", "output", "code", "said"),
        [
            (lambda p: None, "out.parquet", 2, "no media files"),
            (lambda p: p.rmdir(), "out.parquet", 2, "no such folder"),
            (lambda p: (p / "a.mp4").touch(), "out.csv", 2, "must end in .parquet"),
            (lambda p: (p / "a.mp4").touch(), "in/a.mp4/out.parquet", 2, "which is read"),
            (_clip_and_notes, "in/notes/out.parquet", 1, "cannot write"),
        ],
        ids=["no media", "no folder", "wrong suffix", "below a clip", "unwritable"],
    )
    def test_one_line_says_what_is_wrong(
        self, make: Any, output: str, code: int, said: str, tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        (tmp_path / "in").mkdir()
        make(tmp_path / "in")
        assert run(tmp_path / "in", "--output", tmp_path / output) == code
        error = capfd.readouterr().err
        assert error.startswith("error: ")
        assert said in error
        assert error.count("\n") == 1

    def test_random_weights_are_refused(
        self, folder: Path, tmp_path: Path, mocked: dict[str, Any]
    ) -> None:
        mocked["spec"] = replace(SPEC, trained=False)
        assert run(folder, "--output", tmp_path / "out.parquet") == 2
        assert run(folder, "--output", tmp_path / "out.parquet", "--allow-untrained") == 1


class TestTheClustersAddress:
    def test_where_nothing_listens_it_is_said_in_seconds(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))  # bound, not listening: nobody else's meanwhile
            start = time.monotonic()
            with pytest.raises(UserError, match="does not answer"):
                scan._check_address(f"127.0.0.1:{free.getsockname()[1]}")
        assert time.monotonic() - start < patient(10)

    def test_where_something_listens_ray_is_asked(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            for scheme in ("", "ray://"):
                scan._check_address(f"{scheme}127.0.0.1:{server.getsockname()[1]}")
        scan._check_address("auto")

    @pytest.mark.parametrize("text", ["local", "", "here", "http://a:1/b", "a:b", "a:123456"])
    def test_what_is_no_address_is_a_usage_error(self, text: str) -> None:
        with pytest.raises(UsageError, match="HOST:PORT"):
            scan._check_address(text)


@pytest.mark.parametrize("error", [Exception("slow\nthe node timed out"), ConnectionError("gone")])
def test_a_ray_that_does_not_start_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**options: Any) -> None:
        assert options["_node_ip_address"] == "127.0.0.1"
        assert options["include_dashboard"] is False
        raise error

    stopped: list[bool] = []
    fake: Any = ModuleType("ray")
    fake.data, fake.init, fake.shutdown = ModuleType("ray.data"), init, lambda: stopped.append(True)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.data", fake.data)
    options = scan.parser().parse_args(["folder", "--output", "out.parquet"])
    for name in scan._PRIVATE:  # what it sets is taken back after the test
        monkeypatch.setenv(name, "0")
    with (
        pytest.raises(UserError, match="Ray on this machine does not start"),
        scan._engine(options),
    ):
        pass
    assert stopped == [True]


class TestAWorker:
    def item(self, folder: Path) -> dict[str, Any]:
        return vars(clips_in(folder)[0])

    def test_an_error_of_ours_is_a_row_too(
        self, folder: Path, mocked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def bug(*_: Any, **__: Any) -> None:
            raise ZeroDivisionError("oh")

        monkeypatch.setattr("runtime.flow.driver.run", bug)
        answer = Scorer(WORK)(self.item(folder))
        assert "unexpected ZeroDivisionError: oh" in json.loads(answer["row"])["error"]

    def test_what_is_missing_on_the_machine_ends_the_scan(
        self, folder: Path, mocked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def missing(*_: Any, **__: Any) -> None:
            raise DependencyError("dlib is not installed")

        monkeypatch.setattr("runtime.flow.driver.run", missing)
        assert Scorer(WORK)(self.item(folder)) == {"fatal": "dlib is not installed", "row": ""}

    def test_another_model_on_another_machine_ends_the_scan(
        self, folder: Path, mocked: dict[str, Any]
    ) -> None:
        mocked["spec"] = replace(SPEC, pair_id="other", model_id="mock-2")
        assert "found the model mock-2" in Scorer(WORK)(self.item(folder))["fatal"]

    @pytest.mark.skipif(sys.platform == "win32", reason="file names that are no text")
    def test_a_name_that_is_no_text(
        self, folder: Path, mocked: dict[str, Any], tmp_path: Path
    ) -> None:
        (tmp_path / os.fsdecode(b"caf\xe9.mp4")).symlink_to(folder / "b.mp4")
        (clip,) = clips_in(tmp_path)
        assert clip.path == "caf\ufffd.mp4"
        assert json.loads(Scorer(WORK)(vars(clip))["row"])["windows"] == 6


def command(
    folder: Path, output: Path, *options: str, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "runtime.scan", str(folder), "--output", str(output), "--workers",
         "2", *options],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=540)
    return process.returncode, out, err


def journal_lines(output: Path) -> int:
    file = output.with_name(output.name + ".parts") / "rows.jsonl"
    return len(file.read_bytes().splitlines()) - 1 if file.exists() else 0  # the settings


@pytest.fixture(scope="module")
def plain_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long enough that a kill hits the middle: nobody's face, so nearly all is decoding."""
    root = tmp_path_factory.mktemp("clips")
    for index in range(10):
        write_clip(root / f"{index}.mp4", seconds=2.0 + index / 10)
    (root / "broken.mp4").write_text("no media")
    return root


@pytest.fixture(scope="module")
def on_a_cluster(
    plain_clips: Path, real_pair: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tuple[int, str, str], Path, str]:
    """What a scan on somebody else's cluster of one node said, its table, and what the cluster
    said once the scan was gone.  It asks for a token."""
    environment = {
        **os.environ,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
    }
    program = (
        "import sys, ray\n"
        "ray.init(address='local', num_cpus=2, include_dashboard=False,\n"
        "         object_store_memory=100 << 20, log_to_driver=False)\n"
        "print(ray.get_runtime_context().gcs_address, flush=True)\n"
        "sys.stdin.read()\n"
        "print(ray.is_initialized() and ray.cluster_resources()['CPU'])\n"
    )
    cluster = subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, text=True, env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        output = tmp_path_factory.mktemp("cluster") / "out.parquet"
        said = finish(command(plain_clips, output, "--ray", address, environment=environment))
        alive, _ = cluster.communicate("", timeout=60)
        return said, output, alive.strip()
    finally:
        cluster.kill()
        cluster.wait()


@pytest.mark.thorough
@pytest.mark.timeout(1800)  # Ray starts four times: seconds, or minutes on a busy machine
@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed (extra scan)"
)
class TestWithRay:
    def test_on_a_cluster_that_runs_already(
        self, on_a_cluster: tuple[tuple[int, str, str], Path, str]
    ) -> None:
        (code, out, err), output, alive = on_a_cluster
        assert code == 1, err  # the broken one
        assert "11 clips scored by 2 workers" in out
        table = {row["path"]: row for row in rows(output)}
        assert [p for p, row in table.items() if row["error"]] == ["broken.mp4"]
        assert sum(row["windows"] for row in table.values()) > 10
        assert alive == "2.0"  # it goes on afterwards

    def test_killed_and_resumed_equals_a_run_without_the_kill(
        self,
        plain_clips: Path,
        on_a_cluster: tuple[tuple[int, str, str], Path, str],
        tmp_path: Path,
    ) -> None:
        psutil = pytest.importorskip("psutil", reason="psutil is not installed (extra dev)")
        _, whole, _ = on_a_cluster
        killed = tmp_path / "killed.parquet"
        process = command(plain_clips, killed)
        wait_for(lambda: journal_lines(killed) >= 3 or process.poll() is not None, "three rows")
        family = psutil.Process(process.pid).children(recursive=True)
        listening = {
            connection.laddr.ip
            for member in [psutil.Process(process.pid), *family]
            for connection in _connections(psutil, member)
            if connection.status == psutil.CONN_LISTEN
        }
        process.send_signal(signal.SIGKILL)
        finish(process)
        assert process.returncode == -signal.SIGKILL
        assert 3 <= journal_lines(killed) < 11
        assert not killed.exists()
        assert listening
        assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        _, alive = psutil.wait_procs(family, timeout=120)
        assert alive == []  # Ray goes when the command goes

        code, out, err = finish(command(plain_clips, killed))
        assert code == 1, err  # the broken one
        assert err == ""
        assert "taken from" in out
        assert rows(killed) == rows(whole)
        assert len(rows(whole)) == 11

    def test_a_clip_that_kills_its_worker_costs_that_clip_alone(
        self, plain_clips: Path, real_pair: Path, tmp_path: Path
    ) -> None:
        """The worker is restarted, the clip tried again, the others are not harmed."""
        program = (
            "import os, sys\n"
            "from runtime.scan import __main__ as scan, clips as scan_clips\n"
            "class Crashing(scan_clips.Scorer):\n"
            "    def score(self, clip):\n"
            "        with open(sys_argv[-1], 'a') as log: log.write(clip.path + '\\n')\n"
            "        if clip.path == '3.mp4': os._exit(9)\n"
            "        return super().score(clip)\n"
            "sys_argv = sys.argv\n"
            "scan.Scorer = Crashing\n"
            "sys.exit(scan.main(sys.argv[1:-1]))\n"
        )
        output, log = tmp_path / "out.parquet", tmp_path / "log"
        done = subprocess.run(
            [sys.executable, "-c", program, str(plain_clips), "--output", str(output), "--workers",
             "2", str(log)],
            cwd=REPOSITORY, capture_output=True, text=True, timeout=540, check=False,
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert output.exists(), done.stderr
        table = {row["path"]: row for row in rows(output)}
        assert "the worker died" in table["3.mp4"]["error"]
        assert [p for p, row in table.items() if row["error"]] == ["3.mp4", "broken.mp4"]
        assert log.read_text().splitlines().count("3.mp4") >= 2
        assert journal_lines(output) == 10


def _connections(psutil: Any, member: Any) -> list[Any]:
    try:
        return list(member.net_connections(kind="inet"))
    except psutil.Error:  # it ended meanwhile
        return []
