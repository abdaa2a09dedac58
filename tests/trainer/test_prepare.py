# SPDX-License-Identifier: Apache-2.0
"""Preparing: the runtime's own features, every label, and nothing lost to kills, crashes or a full
disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import MediaError, UserError
from runtime.sound.tokens import tokenize
from runtime.spec import AudioSpec, FaceSpec
from tests.conftest import REPOSITORY
from tests.runtime.clips import write_clip
from tests.trainer.fakeavceleb import write_fakeavceleb, write_talking
from trainer.data.clips import find_faces, read_clip
from trainer.data.parallel import WorkerDied, over_processes
from trainer.data.prepared import PreparedSet
from trainer.data.silence import silence_tokens
from trainer.prepare import Journal, by_reason, longest_stretch, main, prepare

SPEC = AudioSpec()

# The command with a face tracker that follows the middle of the picture: any clip will do, and
# fast.  Workers import this file too, so they have the same tracker.
DRIVER = """
import os, signal, sys
sys.path.insert(0, {repository!r})
import cv2
import trainer.data.clips
import trainer.prepare
from runtime.faces import Face

class Middle:
    def __init__(self, spec):
        self.side = spec.crop_px
    def reset(self):
        pass
    def update(self, frame, token):
        crop = cv2.resize(frame, (self.side, self.side))
        return [Face(0, crop, (0, 0, 9, 9), None, 9.0, 1.0)]

trainer.data.clips.FaceTracker = Middle
read = trainer.prepare.read_faces

def read_faces(path, *rest):
    if "crash" in path.name:
        os.kill(os.getpid(), signal.SIGSEGV)
    once = path.with_suffix(".once")
    if once.exists():
        once.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return read(path, *rest)

trainer.prepare.read_faces = read_faces
if "FILE_LIMIT" in os.environ:
    import resource
    limit = int(os.environ["FILE_LIMIT"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
if __name__ == "__main__":
    sys.exit(trainer.prepare.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("driver") / "driver.py"
    path.write_text(DRIVER.format(repository=str(REPOSITORY)))
    return path


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clips of three people, one of them unreadable, one without sound."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(8):
        path = folder / f"p{i % 3}" / f"c{i}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_clip(path, seconds=1.5, fps=(25, 30, 24, 12.5)[i % 4], size=(320, 240))
    (folder / "p0" / "broken.mp4").write_bytes(b"no media" * 99)
    write_clip(folder / "p1" / "mute.mp4", seconds=1.5, sound=None)
    return folder


@pytest.fixture(scope="module")
def whole(driver: Path, many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``many``, prepared by a run that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole")
    assert run(driver, many, output)[0] == 0
    return output


def start(driver: Path, data: Path, output: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, driver, "--data", data, "--output", output, "--workers", "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(driver: Path, data: Path, output: Path, **environment: str) -> tuple[int, str, str]:
    process = start(driver, data, output, **environment)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def contents(output: Path) -> dict[str, str]:
    """Hash of the index and of every array; the journal's order is chance."""
    hashes = {"index": hashlib.sha256((output / "index.json").read_bytes()).hexdigest()}
    for path in sorted((output / "arrays").rglob("*")):
        if path.is_file():
            with np.load(path) as arrays:
                for name, value in arrays.items():
                    key = f"{path.relative_to(output)}/{name}"
                    hashes[key] = hashlib.sha256(value.tobytes()).hexdigest()
    return hashes


def lines(output: Path) -> int:
    journal = output / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.is_file() else -1


class TestFeatures:
    def test_the_arrays_are_what_the_runtime_makes_of_the_clip(self, tmp_path: Path):
        path = write_talking(tmp_path / "clips" / "anna" / "a.mp4", 3, 1, silence_s=0.3)
        index = prepare(tmp_path / "clips", tmp_path / "out", workers=0)
        clip = read_clip(path, SPEC)
        faces = [f.crop for f in find_faces(clip, FaceSpec()) if f is not None]
        assert len(faces) == clip.tokens == 60
        with np.load(tmp_path / "out" / index["clips"][0]["array"]) as arrays:
            np.testing.assert_array_equal(arrays["crops"], np.stack(faces))
            sound = tokenize(clip.audio, SPEC)
            np.testing.assert_array_equal(arrays["tokens"], sound.tokens)
            np.testing.assert_array_equal(arrays["level_dbfs"], sound.level_dbfs)
            assert arrays["audio"].dtype == np.int16
            np.testing.assert_allclose(arrays["audio"] / 32768, clip.audio, atol=2**-15)

    def test_trimmed_tokens_are_those_of_the_trimmed_sound(self, tmp_path: Path):
        path = write_talking(tmp_path / "clips" / "a.mp4", 3, 1, silence_s=0.3)
        prepare(tmp_path / "clips", tmp_path / "out", workers=0)
        audio = read_clip(path, SPEC).audio
        n = silence_tokens(audio, SPEC)
        assert 4 <= n <= 8  # 0.3 s, but for what the codec smears into it
        trimmed = PreparedSet(tmp_path / "out", protocol="all", trimmed=True).clips[0]
        wanted = tokenize(audio[640 * n :], SPEC).tokens
        np.testing.assert_allclose(trimmed.tokens, wanted, atol=1e-5, rtol=0)
        assert len(trimmed.crops) == len(wanted) == 60 - n
        assert len(trimmed.audio) == 640 * len(wanted)

    @pytest.mark.parametrize("fps", [12.5, 23.976, 29.97, 50.0])
    def test_any_frame_rate_comes_onto_the_grid(self, tmp_path: Path, fps: float):
        write_talking(tmp_path / "clips" / "a.mp4", 3, 1, fps=fps)
        row = prepare(tmp_path / "clips", tmp_path / "out", workers=0)["clips"][0]
        assert row["fps"] == pytest.approx(fps, abs=0.01)
        assert abs(row["tokens"] - 60) <= 1
        assert (row["width"], row["height"]) == (240, 180)
        assert row["file_bytes"] == (tmp_path / "clips" / "a.mp4").stat().st_size
        total = (row["video_bit_rate"] + row["audio_bit_rate"]) * 2.4 / 8
        assert 0.8 * row["file_bytes"] < total <= 1.02 * row["file_bytes"]

    def test_a_grid_clip_keeps_every_face(self, grid_dir: Path, tmp_path: Path):
        speaker = tmp_path / "grid" / "s1"
        speaker.mkdir(parents=True)
        for path in sorted((grid_dir / "s1").glob("*.mpg"))[:2]:
            (speaker / path.name).symlink_to(path)
        index = prepare(tmp_path / "grid", tmp_path / "out", workers=0)
        assert index["layout"] == "genuine"
        assert [(r["identity"], r["tokens"], r["start_token"]) for r in index["clips"]] == [
            ("s1", 75, 0)
        ] * 2


class TestStretch:
    def test_short_gaps_are_bridged_and_ends_filled(self):
        start, run = longest_stretch([None, 1, None, None, None, *[2] * 30, None], 3)
        assert start == 0
        assert run.tolist() == [1, 1, 1, 1, 1, *[2] * 30, 2]

    def test_a_longer_gap_keeps_the_longest_side(self):
        start, run = longest_stretch([*[1] * 30, *[None] * 4, *[2] * 40, *[None] * 9], 3)
        assert (start, run.tolist()) == (34, [2] * 40)

    @pytest.mark.parametrize("crops", [[None] * 60, []])
    def test_no_face_is_a_reason(self, crops: list[Any]):
        with pytest.raises(MediaError, match="no face found"):
            longest_stretch(crops, 3)

    def test_faces_for_less_than_a_second_are_a_reason(self):
        with pytest.raises(MediaError, match="a face for less than 25 tokens on end"):
            longest_stretch([*[1] * 24, *[None] * 30], 3)


class TestFakeAVCeleb:
    @pytest.mark.thorough
    def test_the_whole_set_by_the_command_with_every_label(self, tmp_path: Path, capsys):
        built = write_fakeavceleb(tmp_path / "FakeAVCeleb_v1.2", people=3, seconds=1.2)
        output = tmp_path / "out"
        assert main(["--data", str(built.root), "--output", str(output), "--workers", "2"]) == 0
        index = json.loads((output / "index.json").read_text())
        rows = {r["file"]: r for r in index["clips"]}
        assert (index["version"], index["layout"]) == (3, "fakeavceleb")
        assert sorted(rows) == sorted(built.files)
        plain = {}  # of two rows for one file the one with the plainer method
        for row in built.rows:
            file = f"{row[9].removeprefix('FakeAVCeleb/')}/{row[8]}"
            plain[file] = min(plain.get(file, row), row, key=lambda r: len(r[3]))
        for file, row in rows.items():
            assert row["method"] == plain[file][3]
            assert row["category"] == plain[file][5]
            assert row["groups"] == {"race": plain[file][6], "gender": plain[file][7]}
            assert row["identity"] == plain[file][0]
            assert row["split"] is None
        assert index["dropped"] == {
            built.missing: "meta_data.csv names it, but the file is missing"
        }
        text = capsys.readouterr().out
        assert "21 clips, 3 people" in text
        assert re.search(r"frame rates, all brought to 25 Hz: 20 at 25\.0, 1 at (29\.9|30)", text)
        assert "1  meta_data.csv names it, but the file is missing, e.g. " + built.missing in text
        assert "name a file again (1 with all the same, 1 with another method)" in text
        data = PreparedSet(output, protocol="subject-disjoint")
        assert {c.split for c in data.clips} == {"train", "val", "test"}
        assert data.left_out > 0  # those that lend from somebody in another split


class TestResume:
    @pytest.mark.thorough
    @pytest.mark.parametrize("finished", [0, 1, 4, 8])
    def test_a_kill_and_a_rerun_give_what_no_kill_gives(
        self, driver: Path, many: Path, whole: Path, tmp_path: Path, finished: int
    ):
        """Killed when the journal has so many clips, and once more soon after."""
        broken = tmp_path / "broken"
        for extra in (0, 1):
            process = start(driver, many, broken)
            deadline = time.monotonic() + 200
            while lines(broken) < 1 + min(finished + extra, 10):
                assert time.monotonic() < deadline
                if process.poll() is not None:
                    break
                time.sleep(0.002)
            process.kill()
            process.communicate()
        code, out, err = run(driver, many, broken)
        assert (code, err) == (0, "")
        assert "8 clips, 3 people" in out
        assert contents(broken) == contents(whole)
        assert not list(broken.rglob("*.part*"))

    def test_what_is_done_is_not_read_again(self, driver: Path, many: Path, tmp_path: Path):
        assert run(driver, many, tmp_path / "out")[0] == 0
        index = (tmp_path / "out" / "index.json").read_bytes()
        times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "arrays").rglob("*.npz")}
        assert len(times) == 8
        size = lines(tmp_path / "out")
        assert run(driver, many, tmp_path / "out")[0] == 0
        assert {p: p.stat().st_mtime_ns for p in times} == times
        assert lines(tmp_path / "out") == size == 11
        assert (tmp_path / "out" / "index.json").read_bytes() == index

    @pytest.mark.thorough
    def test_a_line_torn_by_a_kill_is_written_again(self, driver: Path, many: Path, tmp_path):
        assert run(driver, many, tmp_path / "out")[0] == 0
        before = contents(tmp_path / "out")
        journal = tmp_path / "out" / "journal.jsonl"
        whole = journal.read_bytes()
        journal.write_bytes(whole[:-40])
        assert run(driver, many, tmp_path / "out")[0] == 0
        assert contents(tmp_path / "out") == before
        assert sorted(journal.read_bytes().splitlines()) == sorted(whole.splitlines())

    def test_other_crops_and_changed_clips_are_made_anew(self, tmp_path: Path):
        clips, output = tmp_path / "clips", tmp_path / "out"
        write_talking(clips / "anna" / "a.mp4", 3, 1, seconds=1.2)
        write_talking(clips / "ben" / "b.mp4", 4, 2, seconds=1.2)
        prepare(clips, output, workers=0)
        write_talking(clips / "anna" / "a.mp4", 3, 1, seconds=1.6)
        rows = prepare(clips, output, workers=0)["clips"]
        assert [r["tokens"] for r in rows] == [40, 30]
        index = prepare(clips, output, workers=0, face=FaceSpec(crop_px=32))
        assert index["crop_px"] == 32
        data = PreparedSet(output, protocol="all", lazy=False)
        assert {c.crops.shape[1] for c in data.clips} == {32}

    @pytest.mark.thorough
    def test_a_stopped_run_leaves_no_index_that_does_not_fit(self, driver: Path, many, tmp_path):
        assert run(driver, many, tmp_path / "out")[0] == 0
        next((tmp_path / "out" / "arrays").rglob("*.npz")).unlink()
        code, _, _ = run(driver, many, tmp_path / "out", FILE_LIMIT="20000")
        assert code == 1
        assert not (tmp_path / "out" / "index.json").exists()


class TestMishaps:
    def test_a_clip_that_crashes_the_decoder_is_named_and_the_rest_goes_on(
        self, driver: Path, many: Path, tmp_path: Path
    ):
        folder = tmp_path / "clips"
        folder.mkdir()
        for i, name in enumerate(("a", "crash", "z")):
            (folder / f"{name}.mp4").symlink_to(many / f"p{i}" / f"c{i}.mp4")
        code, out, _ = run(driver, folder, tmp_path / "out")
        assert code == 0
        index = json.loads((tmp_path / "out" / "index.json").read_text())
        assert [r["file"] for r in index["clips"]] == ["a.mp4", "z.mp4"]
        reason = "the process that read it died (killed by SIGSEGV)"
        assert index["dropped"] == {"crash.mp4": reason}
        assert f"1  {reason}, e.g. crash.mp4" in out

    def test_a_worker_killed_from_outside_loses_nothing(
        self, driver: Path, many: Path, tmp_path: Path
    ):
        folder = tmp_path / "clips"
        folder.mkdir()
        for i, name in enumerate(("a", "b")):
            (folder / f"{name}.mp4").write_bytes((many / f"p{i}" / f"c{i}.mp4").read_bytes())
        (folder / "b.once").touch()
        assert run(driver, folder, tmp_path / "out")[0] == 0
        assert not (folder / "b.once").exists()
        index = json.loads((tmp_path / "out" / "index.json").read_text())
        assert [r["file"] for r in index["clips"]] == ["a.mp4", "b.mp4"]
        assert index["dropped"] == {}

    @pytest.mark.thorough
    def test_a_full_disk_is_one_line_and_nothing_is_half_written(
        self, driver: Path, many: Path, whole: Path, tmp_path: Path
    ):
        """A limit on the size of a file stops numpy in the middle of an array."""
        output = tmp_path / "out"
        code, out, err = run(driver, many, output, FILE_LIMIT="300000")
        assert (code, out.strip()) == (1, "")
        assert err.count("\n") == 1
        assert "cannot write to" in err
        assert "free some space and run the same command again" in err
        assert [p.name for p in output.rglob("*") if p.is_file()] == ["journal.jsonl"]
        assert run(driver, many, output)[0] == 0
        assert contents(output) == contents(whole)

    def test_a_journal_line_that_is_cut_short_by_a_full_disk_is_no_line(self, tmp_path: Path):
        """A file takes what fits; the next run starts behind the last whole line."""
        path = tmp_path / "journal.jsonl"
        with Journal(path, 64, {}) as journal:
            journal.write({"file": "a"})
            real = journal._file

            class Full:
                close = real.close

                def write(self, text: bytes) -> int:
                    return real.write(text[:5])

            journal._file = Full()
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                journal.write({"file": "b"})
        with Journal(path, 64, {}) as journal:
            assert list(journal.lines) == ["a"]
            journal.write({"file": "c"})
        with Journal(path, 64, {}) as journal:
            assert list(journal.lines) == ["a", "c"]
        with Journal(path, 32, {}) as journal:  # other crops
            assert journal.lines == {}

    def test_a_disk_that_fills_up_at_the_index_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        write_talking(tmp_path / "clips" / "a.mp4", 3, 1, seconds=1.2)

        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", full)
            with pytest.raises(UserError, match=r"cannot write .*index\.json \(No space left"):
                prepare(tmp_path / "clips", tmp_path / "out", workers=0)
        assert len(prepare(tmp_path / "clips", tmp_path / "out", workers=0)["clips"]) == 1

    def test_unreadable_clips_are_dropped_with_their_reasons(
        self, driver: Path, many: Path, tmp_path: Path
    ):
        code, out, _ = run(driver, many, tmp_path / "out")
        assert code == 0
        dropped = json.loads((tmp_path / "out" / "index.json").read_text())["dropped"]
        assert sorted(dropped) == ["p0/broken.mp4", "p1/mute.mp4"]
        assert dropped["p0/broken.mp4"].startswith("not a media file that can be read")
        assert dropped["p1/mute.mp4"] == "training clips need a picture and sound"
        assert "2 dropped (index.json names them all):" in out
        assert "12.5" in out

    def test_a_folder_where_nothing_can_be_used_is_an_error(self, tmp_path: Path, capsys):
        (tmp_path / "clips").mkdir()
        (tmp_path / "clips" / "a.mp4").write_bytes(b"no media" * 99)
        arguments = ["--data", str(tmp_path / "clips"), "--output", str(tmp_path / "out")]
        assert main([*arguments, "--workers", "0"]) == 1
        assert "no clip could be used: not a media file" in capsys.readouterr().err

    def test_a_damaged_journal_is_named(self, tmp_path: Path):
        write_talking(tmp_path / "clips" / "a.mp4", 3, 1, seconds=1.2)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "journal.jsonl").write_text("{]\n")
        with pytest.raises(UserError, match=r"journal\.jsonl is damaged .*delete it"):
            prepare(tmp_path / "clips", tmp_path / "out", workers=0)

    def test_reasons_that_differ_in_numbers_are_counted_as_one(self):
        dropped = {"a": "picture missing at token 7", "b": "picture missing at token 9", "c": "no"}
        assert by_reason(dropped) == {"picture missing at token N": ["a", "b"], "no": ["c"]}


def work(what: str) -> str:
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "raise":
        raise MediaError("as told")
    return what.upper()


# Workers that say who they are, then sleep.
ENDLESS = """
import os, pathlib, sys, time
sys.path.insert(0, {repository!r})
from trainer.data.parallel import over_processes

def sleep(folder):
    (folder / f"{{os.getpid()}}.pid").touch()
    time.sleep(600)

if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    list(over_processes(sleep, [(i, (folder,)) for i in range(2)], workers=2, title=""))
"""


def wait_for(find: Callable[[], list[Any]], *, count: int) -> list[Any]:
    deadline = time.monotonic() + 120
    while len(found := find()) < count:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # one that ended and that nobody has waited for is a zombie
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z" if stat.exists() else True
    except (FileNotFoundError, ProcessLookupError):
        return False


class TestProcesses:
    def test_only_the_item_that_kills_its_workers_is_lost(self):
        items = [(name, (name,)) for name in ("a", "die", "b", "c")]
        results = dict(over_processes(work, items, workers=2, title="", isolated=True))
        died = results.pop("die")
        assert results == {"a": "A", "b": "B", "c": "C"}
        assert isinstance(died, WorkerDied)
        assert str(died) == "the process that read it died (killed by SIGKILL)"

    def test_one_isolated_worker_outlives_nothing_but_goes_on(self):
        items = [(name, (name,)) for name in ("die", "b")]
        results = dict(over_processes(work, items, workers=1, title="", isolated=True))
        assert isinstance(results["die"], WorkerDied)
        assert results["b"] == "B"

    @pytest.mark.parametrize("workers", [0, 1, 2])
    def test_an_exception_arrives_as_it_was_raised(self, workers: int):
        items = [(name, (name,)) for name in ("a", "raise")]
        with pytest.raises(MediaError, match="as told"):
            list(over_processes(work, items, workers=workers, title=""))

    def test_workers_end_with_a_parent_that_is_killed(self, tmp_path: Path):
        """In the middle of their work, which would take ten minutes."""
        script = tmp_path / "parent.py"
        script.write_text(ENDLESS.format(repository=str(REPOSITORY)))
        parent = subprocess.Popen([sys.executable, script, tmp_path])
        try:
            started = wait_for(lambda: [*tmp_path.glob("*.pid")], count=2)
            workers = [int(path.stem) for path in started]
            assert parent.poll() is None
            assert all(is_alive(pid) for pid in workers)
        finally:
            parent.kill()
            parent.wait()
        assert wait_for(lambda: [pid for pid in workers if not is_alive(pid)], count=2) == workers

    def test_workers_that_cannot_start_blame_no_clip(self, tmp_path: Path):
        script = tmp_path / "unguarded.py"
        script.write_text(
            f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
            "from trainer.data.parallel import over_processes\n"
            "print(list(over_processes(len, [('a', ('a',))], workers=2, title='')))\n"
        )
        done = subprocess.run(
            [sys.executable, script], capture_output=True, text=True, check=False, timeout=240
        )
        assert done.returncode == 1
        assert "a worker process cannot start (exit code 1)" in done.stderr
