# SPDX-License-Identifier: Apache-2.0
"""Live runs from source to sinks: outages, lag, signals, a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import runtime.flow.pictures
from runtime.errors import MediaError
from runtime.flow.driver import run
from runtime.flow.session import Session
from runtime.flow.sink import Collector
from runtime.flow.summary import LagMeter
from runtime.interrupt import Interrupt
from runtime.judging.verdict import Verdict
from runtime.media import AudioChunk, Chunk, ClockReport, VideoChunk
from tests.runtime.clips import write_clip
from tests.runtime.doubles import MockBackend, MockTracker, picture, speech
from tests.runtime.live_server import Response, http_server
from tests.runtime.media.test_feed import ScriptedLive, both
from tests.waiting import pause, wait_for

REPOSITORY = Path(__file__).resolve().parents[3]
SOUND = speech(600)


@pytest.fixture(autouse=True)
def _mock_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.flow.pictures, "FaceTracker", lambda spec: MockTracker())


def real_time(
    tokens: range, start_s: float, *, video: bool = True, audio: bool = True, speed: float = 1.0
) -> Iterator[Chunk]:
    """Pictures and sound of these tokens, each when its time has come."""
    for t in tokens:
        due = start_s + t / 25 / speed
        pause(due - time.monotonic())
        if video:
            yield VideoChunk(t / 25, lambda t=t: picture(t), captured_s=due)
        if audio:
            yield AudioChunk(t / 25, SOUND[t * 640 : t * 640 + 640], captured_s=due)


def reasons(verdicts: list[Verdict], start_s: float, end_s: float) -> set[str]:
    """Of the windows that lie in or reach into the span."""
    hit = [v for v in verdicts if v.t_end_s > start_s and v.t_start_s < end_s]
    assert hit
    return {str(v.reason or v.label) for v in hit}


# What does not come


@pytest.mark.thorough
def test_windows_of_an_outage_abstain_while_it_lasts() -> None:
    start = time.monotonic()
    seen: list[tuple[float, Verdict]] = []

    class Timed:
        def write(self, verdict: Verdict) -> None:
            seen.append((time.monotonic() - start, verdict))

    def script() -> Iterator[Chunk]:
        yield from real_time(range(60), start)
        yield from real_time(range(125, 190), start)  # nothing for 2.6 s

    result = run(ScriptedLive(script(), patience_s=0.3), MockBackend(), sinks=[Timed()])
    verdicts = [v for _, v in seen]
    assert reasons(verdicts, 2.6, 4.9) == {"too_many_drops"}
    assert [str(v.label) for v in verdicts if v.t_end_s <= 2.4] == ["real"] * 3
    assert str(verdicts[-1].label) == "real"
    ends = [v.t_end_s for v in verdicts]
    assert ends == sorted(ends)
    during = [(at, v) for at, v in seen if 2.9 < v.t_end_s < 3.9]
    assert len(during) == 5
    assert all(at - v.t_end_s < 1.5 for at, v in during)  # said at their time, not afterwards
    assert result.ended == "the source ended"
    assert result.drops == {"decode_error": 2}


@pytest.mark.thorough
def test_sound_that_drops_out_is_no_audio_and_does_not_hold_verdicts_up() -> None:
    start = time.monotonic()

    def script() -> Iterator[Chunk]:
        yield from real_time(range(60), start)
        yield from real_time(range(60, 130), start, audio=False)
        yield from real_time(range(130, 200), start)

    kept = Collector()
    run(ScriptedLive(script(), patience_s=0.3), MockBackend(), sinks=[kept])
    assert reasons(kept.verdicts, 2.6, 5.0) == {"no_audio"}
    assert [str(v.label) for v in kept.verdicts if v.t_end_s <= 2.4] == ["real"] * 3
    assert str(kept.verdicts[-1].label) == "real"
    assert str(kept.verdicts[-1].reason) == "None"


@pytest.mark.thorough
def test_a_live_source_with_sound_that_never_comes() -> None:
    start = time.monotonic()
    kept = Collector()
    script = real_time(range(75), start, audio=False)
    run(ScriptedLive(script, patience_s=0.3), MockBackend(), sinks=[kept])
    assert {str(v.reason) for v in kept.verdicts} == {"no_audio"}
    assert len(kept.verdicts) == 6


def test_advancing_a_session_is_exact_and_leaves_no_clock_error() -> None:
    """Sound until token 60 and from 90 on; told in steps that nothing comes in between."""
    session = Session(MockBackend(), source="door", tracker=MockTracker())
    verdicts: list[Verdict] = []
    for t in range(200):
        verdicts += session.push_video(t / 25, picture(t))
        if t < 60 or t >= 90:
            verdicts += session.push_audio(t / 25, SOUND[t * 640 : t * 640 + 640])
        elif t % 4 == 0 and t < 85:
            verdicts += session.advance(audio_s=t / 25)
    verdicts += session.finish()
    assert [str(v.reason or v.label) for v in verdicts if v.t_start_s >= 90 / 25] == ["real"] * 13
    assert reasons(verdicts, 61 / 25, 89 / 25) == {"no_audio"}
    assert session.stats.clock_corrections == 0
    assert session.stats.late == 0


@pytest.mark.parametrize(("gap", "anew"), [(70, False), (80, True)])
def test_after_an_outage_nothing_of_a_face_is_left_and_no_id_lasts_over_three_seconds(
    gap: int, anew: bool
) -> None:
    """A face keeps its id for 3 s (75 tokens) while it is lost; one that was followed, as well."""
    tracker = MockTracker()
    session = Session(MockBackend(), source="door", tracker=tracker)

    def push(tokens: range) -> None:
        for t in tokens:
            session.push_video(t / 25, picture(t))
            session.push_audio(t / 25, SOUND[t * 640 : t * 640 + 640])

    push(range(60))
    end_s = (60 + gap) / 25
    session.advance(video_s=end_s, audio_s=end_s)
    assert not session._pictures.rings, "rings are emptied by the windows that pass"
    push(range(60 + gap, 62 + gap))
    assert list(session._pictures.rings[0].widths_px) == [60 + gap]
    assert tracker.resets == (1 if anew else 0)


def test_advancing_never_takes_back_what_came() -> None:
    session = Session(MockBackend(), source="door", tracker=MockTracker())
    for chunk in both(60):
        if isinstance(chunk, VideoChunk):
            session.push_video(chunk.t_s, chunk.convert)
        else:
            session.push_audio(chunk.t_s, chunk.samples)
    assert session.advance(video_s=1.0, audio_s=1.0) == []
    assert session.stats.gaps == 0


# Lag


def test_lag_and_its_slope() -> None:
    meter = LagMeter()
    assert meter.report() is None
    for i in range(600):  # two minutes, five verdicts a second, 3 ms a minute worse
        now = 100 + i / 5
        meter.add(now, now - 0.040 - 0.003 * (i / 5 / 60))
    report = meter.report()
    assert report is not None
    assert report.slope_ms_per_min == pytest.approx(3.0, abs=0.01)
    assert report.median_ms == pytest.approx(43.0, abs=0.1)
    assert report.p99_ms == pytest.approx(45.9, abs=0.1)


def test_a_short_run_has_no_slope() -> None:
    meter = LagMeter()
    for i in range(50):
        meter.add(100 + i / 5, 100 + i / 5 - 0.04)
    report = meter.report()
    assert report is not None
    assert report.slope_ms_per_min is None


@pytest.mark.thorough
def test_lag_offset_and_clocks_of_a_live_run_are_in_the_summary() -> None:
    source = ScriptedLive(real_time(range(100), time.monotonic()))
    source.clock = ClockReport(drift_ppm=12.0, jitter_ms=0.4)
    result = run(source, MockBackend())
    assert result.lag is not None
    assert 0 <= result.lag.median_ms < 2000
    assert result.av_offset_ms == 0.0
    data = json.loads(json.dumps(result.to_dict()))
    assert data["clock"] == {"drift_ppm": 12.0, "jitter_ms": 0.4}
    assert data["offsets_ms"] == {"0": sum(result.offsets_ms.values())}


# Ends


def test_an_interrupt_ends_a_live_run_with_its_reason_and_summary() -> None:
    interrupt = Interrupt()
    threading.Timer(2.5, interrupt.ask, ["SIGTERM"]).start()
    kept = Collector()
    source = ScriptedLive(real_time(range(600), time.monotonic()))
    result = run(source, MockBackend(), sinks=[kept], interrupt=interrupt)
    assert result.ended == "SIGTERM"
    assert source.closed
    assert 0 < len(kept.verdicts) == result.stats.verdicts < 10


def test_an_error_of_a_live_source_is_raised() -> None:
    source = ScriptedLive([*both(10), MediaError("gone for good")])
    with pytest.raises(MediaError, match="gone for good"):
        run(source, MockBackend())


# As a command

COMMAND = """
    import sys, resource
    import runtime.flow.pictures
    from runtime import command, interrupt
    from runtime.stream import __main__ as stream
    from tests.runtime.doubles import MockBackend, MockTracker
    interrupt.install()
    limit = int(sys.argv.pop(1))
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    command.load_backend = lambda *_: MockBackend()
    runtime.flow.pictures.FaceTracker = lambda spec: MockTracker()
    interrupt.leave(stream.main)
"""


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that gives six seconds and then holds the line, again and again."""
    body = write_clip(tmp_path_factory.mktemp("live") / "clip.ts", seconds=6).read_bytes()
    with http_server([Response(body, hang=True)] * 50) as url:
        yield url


def start(url: str, jsonl: Path, *, limit_bytes: int = 0) -> subprocess.Popen[str]:
    """The command with a mock model; ``limit_bytes``: of a file, as on a disk that is full."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(COMMAND), str(limit_bytes), "--source",
         url.replace("//", "//user:secret@"), "--jsonl", str(jsonl)],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_lines(path: Path, n: int) -> None:
    wait_for(lambda: path.exists() and path.read_text().count("\n") >= n, "verdicts")


def whole_lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_live_command_cleanly(
    number: signal.Signals, endless: str, tmp_path: Path
) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text('{"older": 1}\n{"torn')
    child = start(endless, target)
    wait_for_lines(target, 6)
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert child.returncode in (0, 3), err
    assert f"ended: {number.name}; lag " in out
    assert "secret" not in out + err
    text = target.read_text()
    assert text.startswith('{"older": 1}\n{"torn\n{"schema_version"')  # nothing is lost
    assert len([json.loads(line) for line in text.splitlines()[2:]]) >= 4
    assert list(tmp_path.iterdir()) == [target]


def test_the_second_signal_ends_at_once(endless: str, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    child = start(endless, target)
    wait_for_lines(target, 2)
    os.kill(child.pid, signal.SIGINT)
    os.kill(child.pid, signal.SIGTERM)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err.splitlines()[-1]) == (130, "interrupted")
    whole_lines(target)


def test_a_killed_process_leaves_whole_lines(endless: str, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    child = start(endless, target)
    wait_for_lines(target, 5)
    child.kill()
    child.communicate()
    assert len(whole_lines(target)) >= 5


def test_a_full_disk_is_one_line_and_leaves_whole_lines(endless: str, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    child = start(endless, target, limit_bytes=1500)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 1
    errors = [line for line in err.splitlines() if not line.startswith("note: ")]
    why = f"cannot write {target}: file too large: switched off"
    assert errors == [f"warning: --jsonl {target}: {why}"]
    assert "ended: --jsonl cannot be written; lag " in out
    assert 2 <= len(whole_lines(target)) <= 5


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_that_is_full_is_one_line(endless: str) -> None:
    child = start(endless, Path("/dev/full"))
    _, err = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "warning: --jsonl /dev/full: cannot write /dev/full: no space left on device" in err
    assert "Traceback" not in err
