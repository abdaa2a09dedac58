# SPDX-License-Identifier: Apache-2.0
"""The command: a site file from genuine footage, whole or not at all; what streams make of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime.flow.pictures
from benchmarks.site import Elsewhere
from runtime import command
from runtime.calibrate import __main__ as calibrate
from runtime.calibrate.__main__ import statements
from runtime.calibrate.site import SiteCalibration
from runtime.media import AudioChunk, ClockReport, MediaInfo, VideoChunk
from runtime.media.file import FileSource
from runtime.spec import PairSpec
from runtime.stream import __main__ as stream
from tests.runtime.calibrate.test_site import SITE
from tests.runtime.clips import write_clip
from tests.runtime.doubles import (
    CODES,
    SPEC,
    MockBackend,
    MockTracker,
    brightness,
    picture,
    speech,
    with_calibration,
)
from tests.waiting import pause

RATE = 0.2  # needs 4 blocks of 4 s
SECONDS = 17
REPOSITORY = Path(__file__).resolve().parents[3]


def talk(path: Path, seconds: int = SECONDS, late: int = 0, wrong: Sequence[int] = ()) -> Path:
    """A clip whose pictures show the codes that its sound says, but for the tokens ``wrong``."""

    def show(i: int, size: tuple[int, int]) -> np.ndarray[Any, Any]:
        code = int(CODES[i])
        return np.full(
            (size[1], size[0], 3), brightness((code + 4) % 8 if i in wrong else code), np.uint8
        )

    sound = speech(25 * seconds, late_tokens=late)
    return write_clip(path, seconds=seconds, size=(64, 48), picture=show, sound=sound)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talk(tmp_path_factory.mktemp("talk") / "talk.mkv")


@pytest.fixture(scope="module")
def made(clip: Path) -> Path:
    """A site file of :data:`SPEC` made of the clip."""
    output = clip.parent / "site.json"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(command, "load_backend", lambda *_: MockBackend())
        monkeypatch.setattr(runtime.flow.pictures, "FaceTracker", lambda spec: MockTracker())
        assert run("--source", clip, "--false-alarm-rate", RATE, "--output", output) == 0
    return output


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> dict[str, PairSpec]:
    """A mock model and a mock tracker; the dictionary holds the model's spec."""
    asked = {"spec": SPEC}
    monkeypatch.setattr(command, "load_backend", lambda *_: MockBackend(asked["spec"]))
    monkeypatch.setattr(runtime.flow.pictures, "FaceTracker", lambda spec: MockTracker())
    return asked


def run(*arguments: Any) -> int:
    return calibrate.main([str(a) for a in arguments])


def one_line(capfd: pytest.CaptureFixture[str]) -> str:
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def verdicts(*arguments: Any, folder: Path) -> list[dict[str, Any]]:
    """What ``runtime.stream`` says."""
    target = folder / "verdicts.jsonl"
    assert stream.main([str(a) for a in (*arguments, "--jsonl", target, "--quiet")]) in (0, 3)
    return [json.loads(line) for line in target.read_text().splitlines()]


# What it does


@pytest.mark.usefixtures("model")
def test_a_site_file_and_a_table(
    clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "site.json"
    assert run("--source", clip, "--false-alarm-rate", RATE, "--output", output) == 0
    out, err = capfd.readouterr()
    assert err == ""
    for part in ("mock-1 on mock", "in 4 blocks of 4 s", "A/V offset", "+0 ms", "rank 4 of 4",
                 "moved sound found", "4 of 4", f"--site {output}"):  # fmt: skip
        assert part in out
    site = SiteCalibration.read(output)
    assert (site.pair_id, site.source_kind, site.recordings) == ("mock", "file", 1)
    assert site.duration_s == pytest.approx(SECONDS, abs=0.1)
    assert (site.blocks, site.used_windows, site.offset.found) == (4, 44, True)
    assert site.threshold.false_alarm_rate == RATE
    assert (site.threshold.alarms_before, site.threshold.shifted_after) == (0, 4)


def test_the_file_holds_numbers_and_no_names(clip: Path, made: Path) -> None:
    text = made.read_text()
    assert len(text) < 3000
    assert not any(part in text for part in (clip.name, str(clip.parent), "embedding", "visual"))


@pytest.mark.thorough
def test_false_alarms_before_and_after(
    clip: Path, tmp_path: Path, model: dict[str, PairSpec], capfd: pytest.CaptureFixture[str]
) -> None:
    """A model that calls everything here fake: p_fake is 0.62 and, twice, a little higher."""
    model["spec"] = with_calibration(bias_av=4.5)
    worse = talk(tmp_path / "worse.mkv", wrong=[*range(60, 90, 5), *range(250, 280, 5)])
    output = tmp_path / "site.json"
    assert run("--source", worse, "--false-alarm-rate", RATE, "--output", output) == 0
    assert "does not work at this site" in capfd.readouterr().out
    site = SiteCalibration.read(output)
    assert (site.threshold.alarms_before, site.threshold.alarms_after) == (4, 0)
    assert 0.7 < site.threshold.threshold < 0.95

    before = verdicts("--source", clip, folder=tmp_path)
    after = verdicts("--source", clip, "--site", output, folder=tmp_path)
    assert {v["label"] for v in before} == {"fake"}
    assert {v["label"] for v in after} == {"real"}
    assert [v["p_fake"] for v in before] == [v["p_fake"] for v in after]
    assert [set(v) for v in before] == [set(v) for v in after]
    assert {v["model_id"] for v in after} == {"mock-1"}


@pytest.mark.thorough
@pytest.mark.usefixtures("model")
def test_a_constant_offset_is_compensated_from_the_first_window(tmp_path: Path) -> None:
    clip = talk(tmp_path / "late.mkv", late=3)
    output = tmp_path / "site.json"
    assert run("--source", clip, "--false-alarm-rate", RATE, "--output", output) == 0
    site = SiteCalibration.read(output)
    assert (site.offset.tokens, site.offset.ms) == (3, 120.0)
    assert "before_offset_was_known" not in site.left_out  # a file is read once more
    assert site.threshold.alarms_before == 0
    before = verdicts("--source", clip, folder=tmp_path)
    after = verdicts("--source", clip, "--site", output, folder=tmp_path)
    assert (before[0]["label"], after[0]["label"]) == ("fake", "real")
    assert {v["av_offset_ms"] for v in (*before, *after)} == {120.0}


@pytest.mark.usefixtures("model")
def test_several_sources_are_several_recordings(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for i in range(4):
        talk(folder / f"{i}.mkv", seconds=3)
    output = tmp_path / "site.json"
    assert run("--source", folder, "--false-alarm-rate", RATE, "--output", output) == 0
    site = SiteCalibration.read(output)
    assert (site.recordings, site.blocks, site.used_windows) == (4, 4, 24)


@pytest.mark.usefixtures("model")
def test_the_header_of_a_stream_names_the_calibration(
    clip: Path, made: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stream.main(["--source", str(clip), "--site", str(made), "--quiet"])
    assert SiteCalibration.read(made).headline in capfd.readouterr().out


# What it refuses, each with one line, and writes nothing


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seconds": 6}, "needs 4 blocks of 4 s with a verdict, 6 s of footage gave 1"),
        ({"late": 8}, "320 ms late"),
        ({"silent": True}, "(no_speech): let the person speak"),
        ({"faceless": True}, "(no_face): let a face look into the camera"),
        ({"soundless": True}, "has no sound"),
        ({"noise": True}, "matched at no common offset"),
    ],
)
def test_footage_that_cannot_calibrate(
    options: dict[str, Any],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: dict[str, PairSpec],
    capfd: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "site.json"
    output.write_text("as it was")
    if options.pop("faceless", False):
        monkeypatch.setattr(
            runtime.flow.pictures, "FaceTracker", lambda spec: MockTracker(lambda t: [])
        )
    size, path = {"seconds": SECONDS, "size": (64, 48)}, tmp_path / "clip.mkv"
    if options.pop("silent", False):
        write_clip(path, sound=np.zeros(16_000 * SECONDS, np.float32), **size)
    elif options.pop("soundless", False):
        write_clip(path, sound=None, **size)
    elif options.pop("noise", False):  # and the model cannot read it
        model["spec"] = with_calibration(min_clarity=1.5)
        hiss = np.random.default_rng(0).normal(0, 0.1, 16_000 * SECONDS).astype(np.float32)
        write_clip(path, sound=hiss, **size)
    else:
        talk(path, **options)
    assert run("--source", path, "--false-alarm-rate", RATE, "--output", output) == 1
    assert words in one_line(capfd)
    assert output.read_text() == "as it was"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mkv", "site.json"]


@pytest.mark.usefixtures("model")
def test_wrong_options_are_found_before_anything_is_recorded(
    clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for arguments, words in [
        (["--output", clip.parent], "is a folder"),
        (["--output", clip / "site.json"], f"cannot write in {clip}"),
        (["--audio", "none"], "needs picture and sound"),
    ]:
        assert run("--source", clip, *arguments) == 2
        out, err = capfd.readouterr()
        assert (out, words in err, err.count("\n")) == ("", True, 1)


@pytest.mark.parametrize("option", [("--false-alarm-rate", "0"), ("--false-alarm-rate", "0.6"),
                                    ("--duration", "-1"), ("--duration", "nan")])  # fmt: skip
def test_numbers_out_of_range_are_a_usage_error(option: tuple[str, str], clip: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        run("--source", clip, *option)
    assert caught.value.code == 2


def test_a_stream_refuses_a_site_file_of_another_model(
    clip: Path, made: Path, model: dict[str, PairSpec], capfd: pytest.CaptureFixture[str]
) -> None:
    model["spec"] = PairSpec.from_json(
        SPEC.to_json().replace('"pair_id": "mock"', '"pair_id": "x"')
    )
    assert stream.main(["--source", str(clip), "--site", str(made)]) == 1
    assert "calibrate again" in one_line(capfd)


@pytest.mark.usefixtures("model")
def test_a_stream_refuses_a_damaged_site_file_and_other_windows(
    clip: Path, made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert stream.main(["--source", str(clip), "--site", str(made), "--hop", "0.4"]) == 1
    assert "windows of 2 s every 0.2 s, not of 2 s every 0.4 s" in one_line(capfd)
    output = tmp_path / "site.json"
    output.write_text(made.read_text()[:500])
    assert stream.main(["--source", str(clip), "--site", str(output)]) == 1
    assert f"{output} is no site calibration" in one_line(capfd)


# Live sources


class Camera:
    """A camera with a microphone that talks without end, or until somebody presses Ctrl-C, and
    waits until somebody listens."""

    live = True
    paced = False
    patience_s = 10.0
    drops: dict[str, int] = {}  # noqa: RUF012
    clock = ClockReport()
    damaged = 0
    info = MediaInfo("camera:0", True, True, 64, 48, 25.0, None)

    def __init__(self, *, late: int = 0, interrupted_after_s: float = 1e9) -> None:
        self.warnings: list[str] = []
        self._late, self._until = late, interrupted_after_s

    def __iter__(self) -> Iterator[VideoChunk | AudioChunk]:
        sound = speech(1000, late_tokens=self._late)
        for token in range(1000):
            if token / 25 >= self._until:
                raise KeyboardInterrupt
            yield VideoChunk(token / 25, lambda token=token: picture(token))
            yield AudioChunk(token / 25, sound[640 * token : 640 * (token + 1)])

    def close(self) -> None:
        pass

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.usefixtures("model")
def test_a_live_source_is_recorded_for_the_duration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = Camera(late=2)
    monkeypatch.setattr(calibrate, "open_input", lambda name, *_: camera)
    output = tmp_path / "site.json"
    arguments = ("--source", "camera", "--duration", 20, "--false-alarm-rate", RATE)
    assert run(*arguments, "--output", output) == 0
    site = SiteCalibration.read(output)
    assert (site.source_kind, site.blocks) == ("camera", 5)
    assert site.duration_s == pytest.approx(20, abs=0.1)
    assert (site.offset.tokens, site.left_out["before_offset_was_known"]) == (2, 3)


@pytest.mark.usefixtures("model")
def test_an_interrupted_recording_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    camera = Camera(interrupted_after_s=30.0)  # enough footage, but not what was asked for
    monkeypatch.setattr(calibrate, "open_input", lambda name, *_: camera)
    output = tmp_path / "site.json"
    arguments = ("--source", "camera", "--duration", 35, "--false-alarm-rate", RATE)
    assert run(*arguments, "--output", output) == 130
    assert capfd.readouterr().err == "interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_a_source_is_named_by_its_kind_only() -> None:
    kinds = {name: calibrate.source_kind(name, Camera()) for name in ("camera", "/dev/video0")}
    assert set(kinds.values()) == {"camera"}
    assert calibrate.source_kind("RTSP://user:secret@10.0.0.1/door", Camera()) == "rtsp"


def test_a_threshold_that_finds_little_is_said_to() -> None:
    blind = replace(SITE, threshold=replace(SITE.threshold, threshold=0.99, shifted_after=3))
    assert any("finds little: of 29" in line for line in statements(blind))
    assert not any("finds little" in line for line in statements(SITE))


# The real model


@pytest.mark.thorough
def test_sigint_in_a_real_run_leaves_nothing(
    grid_dir: Path, real_pair: Path, tmp_path: Path
) -> None:
    output = tmp_path / "site.json"
    command = [sys.executable, "-m", "runtime.calibrate", "--source", str(grid_dir / "s1"),
               "--model", str(real_pair), "--output", str(output)]  # fmt: skip
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("model ")  # it reads the first clip now
        pause(1.0)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (130, "interrupted")
    assert list(tmp_path.iterdir()) == []


def elsewhere(monkeypatch: pytest.MonkeyPatch, **changes: float) -> None:
    """From now on every file is heard in another room, or by another microphone."""

    def open_input(name: str, *_: object) -> Elsewhere:
        sound = {"snr_db": None, "below_hz": None, **changes}
        return Elsewhere(FileSource(name), rate_hz=16_000, **sound)

    monkeypatch.setattr(calibrate, "open_input", open_input)
    monkeypatch.setattr(stream, "open_input", open_input)


@pytest.fixture(scope="module")
def person(grid_dir: Path) -> list[Path]:
    """Clips of one person of the GRID corpus."""
    clips = sorted((grid_dir / "s1").glob("*.mpg"))[1::25]
    if len(clips) < 4:
        pytest.skip(f"no clips in {grid_dir / 's1'}")
    return clips[:4]


@pytest.mark.thorough
def test_a_real_persons_clips_give_a_threshold_that_accuses_none_of_them(
    person: list[Path], real_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, new = [person[0], *person[2:]], person[1]
    elsewhere(monkeypatch, snr_db=25.0)
    model, output = ("--model", real_pair), tmp_path / "site.json"
    sources = [part for path in own for part in ("--source", path)]
    assert run(*sources, *model, "--false-alarm-rate", 0.25, "--output", output) == 0
    site = SiteCalibration.read(output)
    assert (site.blocks, site.offset.found) == (3, True)
    assert site.threshold.alarms_after == 0
    assert site.threshold.shifted_after == site.threshold.shifted > 0
    after = verdicts("--source", new, *model, "--site", output, folder=tmp_path)
    assert "fake" not in {v["label"] for v in after}


@pytest.mark.thorough
def test_the_demos_clip_is_too_little_and_said_to_be(
    sample_clip: Path, real_pair: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "site.json"
    assert run("--source", sample_clip, "--model", real_pair, "--output", output) == 1
    error = one_line(capfd)
    assert "needs 19 blocks of 4 s with a verdict, 9 s of footage gave 0" in error
    assert "lips and voice matched at no common offset" in error
    assert not output.exists()
