# SPDX-License-Identifier: Apache-2.0
"""The command line: sources, outputs, exit codes, and one clear line when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import runtime.flow.pictures
from runtime import command
from runtime.errors import ModelError, UsageError
from runtime.media.open import expand_sources
from runtime.stream import __main__ as stream
from tests.runtime.clips import Extra, write_clip, write_tracks
from tests.runtime.doubles import SPEC, MockBackend, MockTracker, with_calibration

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A mock model and a mock tracker; the dictionary says how the model was asked for."""
    asked: dict[str, Any] = {"spec": SPEC}

    def load(
        name: str | None,
        backend: str,
        provider: str | None,
        threads: int | None,
        plugin_library: Path | None,
    ) -> MockBackend:
        asked.update(name=name, backend=backend, provider=provider, threads=threads)
        asked["plugin_library"] = plugin_library
        if "error" in asked:
            raise asked["error"]
        return MockBackend(asked["spec"])

    monkeypatch.setattr(command, "load_backend", load)
    monkeypatch.setattr(runtime.flow.pictures, "FaceTracker", lambda spec: MockTracker())
    return asked


def run(*arguments: Any) -> int:
    return stream.main([str(a) for a in arguments])


def one_line(capfd: pytest.CaptureFixture[str]) -> str:
    """What went to standard error: a single line, which starts with "error:"."""
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


# What it does


def test_a_file_gives_a_timeline_and_a_summary(
    clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("--source", clip) == 0
    out, err = capfd.readouterr()
    assert err == ""
    for part in (str(clip), "160x120 at 25 fps", "mock-1 on mock", "2.8 s", "6 windows", "100%"):
        assert part in out


@pytest.mark.thorough
def test_of_several_tracks_the_default_one_is_judged_and_one_can_choose(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracks = [Extra(colour=0), Extra(colour=2, default=True), Extra(pitch_hz=440.0)]
    path = write_tracks(tmp_path / "two.mkv", tracks, seconds=2.4)
    assert run("--source", path) in (0, 3)
    assert "2 picture tracks: v:1 (mpeg4, default) is taken" in capfd.readouterr().out
    assert run("--source", path, "--video-track", 0) in (0, 3)
    assert "picture tracks" not in capfd.readouterr().out
    assert run("--source", path, "--video-track", 2) == 2
    assert one_line(capfd) == (
        f"error: {path}: --video-track 2: there is no picture v:2 that can be judged; it has "
        "v:0 (mpeg4), v:1 (mpeg4, default)\n"
    )


@pytest.mark.parametrize("number", ["-1", "x", "1.5", "99999", ""])
def test_what_is_no_number_of_a_track(
    clip: Path, number: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run("--source", clip, f"--audio-track={number}")
    assert caught.value.code == 2
    assert "is not the number of a track, from 0" in capfd.readouterr().err


def test_json_lines_in_a_file(clip: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    assert run("--source", clip, "--jsonl", target) == 0
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert len(lines) == 6
    assert {line["source"] for line in lines} == {str(clip)}
    assert [line["t_end_s"] for line in lines] == [2.0, 2.2, 2.4, 2.6, 2.8, 3.0]


def test_json_lines_on_standard_output_are_alone_there(
    clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("--source", clip, "--jsonl", "-") == 0
    out, err = capfd.readouterr()
    assert len([json.loads(line) for line in out.splitlines()]) == 6
    assert "mock-1 on mock" in err


def without_latency(path: Path) -> list[dict[str, Any]]:
    return [{**json.loads(line), "latency_ms": 0} for line in path.read_text().splitlines()]


def test_the_same_file_twice_is_the_same_apart_from_latency(clip: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run("--source", clip, "--jsonl", tmp_path / name, "--quiet")
    assert without_latency(tmp_path / "a") == without_latency(tmp_path / "b")


def test_quiet_keeps_the_provider_and_the_summary(
    clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run("--source", clip, "--quiet")
    out = capfd.readouterr().out
    assert "mock-1 on mock" in out
    assert "6 windows" in out
    assert "2.8 s  " not in out


def test_window_and_hop_in_seconds(clip: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    run("--source", clip, "--jsonl", target, "--window", 1.2, "--hop", 0.6)
    ends = [json.loads(line)["t_end_s"] for line in target.read_text().splitlines()]
    assert ends == [1.2, 1.8, 2.4, 3.0]


def test_options_reach_the_model(clip: Path, backend: dict[str, Any]) -> None:
    run("--source", clip, "--model", "other", "--provider", "cuda:1", "--threads", 2)
    assert (backend["name"], backend["provider"], backend["threads"]) == ("other", "cuda:1", 2)
    run("--source", clip, "--backend", "tensorrt", "--plugin-library", "plugins.so")
    assert (backend["backend"], backend["plugin_library"]) == ("tensorrt", Path("plugins.so"))
    assert (backend["name"], backend["provider"], backend["threads"]) == (None, None, None)


def test_without_sound(clip: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    assert run("--source", clip, "--audio", "none", "--jsonl", target) == 3
    assert {d["reason"] for d in without_latency(target)} == {"no_audio"}


# Several sources


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folder")
    (root / "deeper").mkdir()
    write_clip(root / "b.mp4")
    write_clip(root / "a.mkv")
    write_clip(root / "deeper" / "c.mov")
    (root / "notes.txt").write_text("no media")
    return root


def names(sources: list[str]) -> list[str]:
    return [Path(s).name for s in sources]


def test_a_folder_a_glob_and_several_files(folder: Path) -> None:
    assert names(expand_sources([str(folder)])) == ["a.mkv", "b.mp4", "c.mov"]
    assert names(expand_sources([str(folder / "*.m*")])) == ["a.mkv", "b.mp4"]
    assert names(expand_sources([str(folder / "**" / "*.mov")])) == ["c.mov"]
    both = [str(folder / "b.mp4"), str(folder)]
    assert names(expand_sources(both)) == ["b.mp4", "a.mkv", "c.mov"]
    assert expand_sources(["camera", "0", "/dev/video7"]) == ["camera", "0", "/dev/video7"]


def test_several_sources_end_with_a_table(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.jsonl"
    assert run("--source", folder, "--jsonl", target) == 0
    table = capfd.readouterr().out.splitlines()[-6:]
    assert "highest p_fake" in table[0]
    assert [line.split()[1:3] for line in table[2:5]] == [["6", "0"]] * 3
    assert names([d["source"] for d in without_latency(target)][::6]) == ["a.mkv", "b.mp4", "c.mov"]


def test_one_bad_source_of_several_is_reported_and_the_others_judged(
    clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_text("text")
    target = tmp_path / "out.jsonl"
    assert run("--source", bad, "--source", clip, "--jsonl", target) == 1
    out, err = capfd.readouterr()
    assert err.startswith(f"error: {bad}")
    assert "not read" in out
    assert {d["source"] for d in without_latency(target)} == {str(clip)}


# Exit codes


def test_every_window_abstained_is_3(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        runtime.flow.pictures, "FaceTracker", lambda spec: MockTracker(lambda t: [])
    )
    assert run("--source", clip) == 3


def test_a_fake_is_0_unless_it_was_asked_for(clip: Path, backend: dict[str, Any]) -> None:
    backend["spec"] = with_calibration(bias_av=50.0)
    assert run("--source", clip) == 0
    assert run("--source", clip, "--fail-on-fake") == 4
    backend["spec"] = with_calibration(bias_av=-50.0)
    assert run("--source", clip, "--fail-on-fake") == 0


def test_interrupted_leaves_nothing(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MockTracker, "update", interrupt)
    assert run("--source", clip, "--jsonl", tmp_path / "out.jsonl") == 130
    assert list(tmp_path.iterdir()) == []
    assert "interrupted" in capfd.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--source", "x", "--hop", "0"],
        ["--source", "x", "--hop", "nan"],
        ["--source", "x", "--threads", "0"],
        ["--source", "x", "--provider", "abacus"],
        ["--source", "x", "--provider", "cuda:x"],
        ["--source", "x", "--backend", "abacus"],
        ["--source", "x", "--unknown"],
        ["--source", "x", "--audio", "loud"],
        ["--source", "x", "--audio", "mic:"],
        ["--source", "x", "--rtsp-transport", "pigeon"],
    ],
)
def test_wrong_options_are_2(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert "Traceback" not in capfd.readouterr().err


def test_window_and_hop_that_contradict_each_other_are_2(
    clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("--source", clip, "--window", 1.0, "--hop", 1.5) == 2
    assert "at most a window" in one_line(capfd)
    assert run("--source", clip, "--window", 0.2, "--hop", 0.2) == 2
    assert "at least 0.64 s" in one_line(capfd)


def test_an_untrained_model_is_refused_with_2(
    clip: Path, backend: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    backend["spec"] = replace(SPEC, trained=False)
    assert run("--source", clip) == 2
    assert "--allow-untrained" in one_line(capfd)
    assert run("--source", clip, "--allow-untrained") == 0
    assert "RANDOM WEIGHTS" in capfd.readouterr().out


def test_a_model_that_cannot_be_loaded(
    clip: Path, backend: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    for error, code in ((ModelError("damaged"), 1), (UsageError("unknown preset"), 2)):
        backend["error"] = error
        assert run("--source", clip) == code
        assert str(error) in one_line(capfd)


# Bad input: name -> (what makes it, exit code, words of the line)

BAD: dict[str, tuple[Callable[[Path], Any], int, str]] = {
    "missing": (lambda p: None, 2, "no such file"),
    "text": (lambda p: p.write_text("not a video\n" * 99), 1, "not a media file"),
    "empty": (lambda p: p.touch(), 1, "empty"),
    "empty_folder": (lambda p: p.mkdir(), 2, "holds no media files"),
    "truncated": (
        lambda p: p.write_bytes(write_clip(p.with_name("whole.mp4")).read_bytes()[:9000]),
        1,
        "cut off",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, code, words = BAD[kind]
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    source = tmp_path / "in" / "clip.mp4"
    make(source)
    assert run("--source", source, "--jsonl", tmp_path / "out" / "out.jsonl") == code
    assert words in one_line(capfd)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_glob_without_matches_is_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--source", tmp_path / "*.mp4") == 2
    assert "no file matches" in one_line(capfd)


def test_a_url_of_another_kind_is_2_and_its_password_is_not_repeated(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run("--source", "ftp://user:secret@host/live") == 2
    assert "secret" not in one_line(capfd)


def test_a_server_that_is_not_there_is_1_and_its_password_is_not_repeated(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run("--source", "rtsp://user:secret@127.0.0.1:9/live?token=secret") == 1
    error = one_line(capfd)
    assert "rtsp://127.0.0.1:9/live: cannot be opened (Connection refused)" in error
    assert "secret" not in error


def test_files_in_parallel_give_what_they_give_one_after_the_other(
    clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = write_clip(tmp_path / "other.mkv", seconds=2.5)
    results = []
    for name, more in (("alone", []), ("together", ["--parallel"])):
        target = tmp_path / name
        assert run("--source", clip, "--source", other, "--jsonl", target, *more) == 0
        results.append(sorted(without_latency(target), key=lambda v: (v["source"], v["t_end_s"])))
    assert results[0] == results[1]
    assert len(results[1]) == 6 + 3
    out = capfd.readouterr().out
    assert f"real  {other}" in out or f"fake  {other}" in out  # a row says whose it is


def test_a_live_source_that_cannot_be_opened_does_not_stop_the_others(
    clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("--source", clip, "--source", "rtsp://127.0.0.1:9/live") == 1
    out, err = capfd.readouterr()
    assert "rtsp://127.0.0.1:9/live: cannot be opened" in err
    assert "6 windows" in out
    assert "not read" in out


def test_a_microphone_does_not_go_with_a_file(
    clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("--source", clip, "--audio", "mic") == 2
    assert "not with a file" in one_line(capfd)


@pytest.mark.skipif(Path("/dev/video0").exists(), reason="there is a camera")
def test_no_camera_is_1(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--source", "camera") == 1
    assert "no camera" in one_line(capfd) or "cannot be opened" in one_line(capfd)


def test_an_unwritable_output_is_1_before_anything_is_judged(
    clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("--source", clip, "--jsonl", tmp_path / "none" / "out.jsonl") == 1
    out, err = capfd.readouterr()
    assert "cannot write" in err
    assert "windows" not in out


@pytest.mark.parametrize("options", [{"sound": None}, {"video": False}], ids=["mute", "radio"])
def test_half_a_clip_abstains_with_3(options: dict[str, Any], tmp_path: Path) -> None:
    half = write_clip(tmp_path / "half.mp4", **options)
    assert run("--source", half, "--jsonl", tmp_path / "out.jsonl") == 3
    found = without_latency(tmp_path / "out.jsonl")
    assert {d["reason"] for d in found} == {"no_audio" if "sound" in options else "no_face"}


# As a command


def test_help_is_quick_and_needs_nothing_but_numpy() -> None:
    blocked = ("av", "cv2", "dlib", "onnxruntime", "rich", "torch", "kaldi_native_fbank")
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({blocked!r}))\n"  # importing one of them now fails
        "from runtime.stream.__main__ import main\n"
        "main(['--help'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--fail-on-fake" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="file names that are no text")
def test_odd_file_names_on_a_terminal_without_unicode(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io
    import os

    odd = tmp_path / os.fsdecode(b"caf\xc3\xa9 \xff [b].mp4")
    odd.symlink_to(clip)
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert run("--source", odd, "--jsonl", tmp_path / "out.jsonl") == 0
    sys.stdout.flush()
    assert "[b].mp4" in raw.getvalue().decode("ascii")
    assert without_latency(tmp_path / "out.jsonl")[0]["source"].endswith("caf\u00e9 ? [b].mp4")


def test_the_real_command_on_a_real_clip(real_pair: Path, grid_clip: Path, tmp_path: Path) -> None:
    """The whole path with nothing replaced, twice: the same lines apart from latency."""
    for name in ("a", "b"):
        done = subprocess.run(
            [sys.executable, "-m", "runtime.stream", "--source", str(grid_clip), "--model",
             str(real_pair), "--allow-untrained", "--threads", "1", "--jsonl",
             str(tmp_path / name)],
            cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode in (0, 3), done.stderr
        assert done.stderr == ""
    lines = without_latency(tmp_path / "a")
    assert lines == without_latency(tmp_path / "b")
    assert len(lines) == 6
    assert all(line["face_id"] is not None for line in lines)
    assert all(line["p_fake_video"] is not None for line in lines)
