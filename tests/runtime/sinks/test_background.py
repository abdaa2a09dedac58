# SPDX-License-Identifier: Apache-2.0
"""A sink in the background: slow, hanging or broken, it stalls nobody; what it loses is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import runtime.flow.pictures
from runtime import interrupt
from runtime.errors import UserError
from runtime.flow.driver import run
from runtime.flow.sink import MediaSink, Picture, StartSink
from runtime.flow.summary import Summary
from runtime.judging.verdict import Verdict
from runtime.media import AudioChunk
from runtime.sinks import background as module
from runtime.sinks.background import Background, MediaBackground, Worker, in_background
from tests.runtime.doubles import MockBackend, MockTracker
from tests.runtime.flow.test_run import Kept, Live, Watching
from tests.runtime.judging.test_verdict import verdict
from tests.runtime.sinks.test_terminal import summary
from tests.waiting import patient, pause


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a hanging sink waits for; opened at the end, so that no thread is left behind."""
    event = threading.Event()
    yield event
    event.set()


class Hanging(Kept):
    def __init__(self, gate: threading.Event) -> None:
        super().__init__()
        self.gate = gate
        self.reached = threading.Event()

    def write(self, verdict: Verdict) -> None:
        self.reached.set()
        self.gate.wait()
        super().write(verdict)


class Raising(Kept):
    def __init__(self, error: Exception, after: int = 0) -> None:
        super().__init__()
        self.error, self.after = error, after

    def write(self, verdict: Verdict) -> None:
        if len(self.verdicts) >= self.after:
            raise self.error
        super().write(verdict)


def worker(told: list[str] | None = None, **options: Any) -> Worker:
    return Worker("--output", tell=(told if told is not None else []).append, **options)


def picture(size: tuple[int, int] = (8, 8)) -> Picture:
    return Picture("a.mp4", 0.0, np.zeros((*size, 3), np.uint8), [])


def test_everything_arrives_in_order_and_nothing_is_noted() -> None:
    kept = Kept()
    made = Background(kept, worker())
    verdicts = [verdict(t_end_s=float(i)) for i in range(50)]
    for v in verdicts:
        made.write(v)
    made.worker.close()
    assert kept.verdicts == verdicts
    assert made.worker.notes() == []
    assert made.worker.error is None


def test_a_media_sink_stays_one_and_a_plain_one_is_not_sent_pictures() -> None:
    assert isinstance(in_background(Watching(), "x", live=True), MediaSink)
    assert not isinstance(in_background(Kept(), "x", live=True), MediaSink)


def test_media_and_the_summary_go_through() -> None:
    watching = Watching()
    made = MediaBackground(watching, worker())
    made.picture(picture())
    made.sound("a.mp4", AudioChunk(0.0, np.zeros(7, np.float32)))
    made.end(summary())
    made.worker.close()
    assert (len(watching.pictures), watching.samples) == (1, 7)
    assert watching.summaries == [summary()]


def test_the_summary_at_the_start_goes_through() -> None:
    class Starting(Kept):
        begun: Summary | None = None

        def begin(self, summary: Summary) -> None:
            self.begun = summary

    sink, s = Starting(), summary()
    made = in_background(sink, "x", live=True)
    assert isinstance(made, StartSink)
    made.begin(s)
    assert sink.begun is s
    in_background(Kept(), "x", live=True).begin(s)  # a sink that does not ask is not told


def test_a_hanging_sink_does_not_stall_a_live_stream(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.flow.pictures, "FaceTracker", lambda spec: MockTracker())
    hanging, kept, told = Hanging(gate), Kept(), []  # type: ignore[var-annotated]
    made = Background(hanging, worker(told, max_items=4))
    start = time.perf_counter()
    result = run(Live(100), MockBackend(), sinks=[made, kept])
    made.worker.close(drain_s=0.1)
    assert time.perf_counter() - start < patient(5)
    assert len(kept.verdicts) == result.stats.verdicts == 11
    assert hanging.verdicts == []
    (note,) = made.worker.notes()
    assert told == ["--output: not done 0.1 s after the end: given up"]
    # One is in its hands, four wait, and of eleven the others found the queue full.
    assert "6 verdicts (queue full)" in note
    assert "5 verdicts (given up at the end)" in note


def test_a_signal_ends_the_wait_for_what_is_left(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is over, and nobody has heard the signal yet."""
    hanging, told = Hanging(gate), []  # type: ignore[var-annotated]
    made = Background(hanging, worker(told))
    made.write(verdict())
    assert hanging.reached.wait(5)
    monkeypatch.setattr(interrupt._state, "first", "SIGINT")
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        made.worker.close()  # DRAIN_S is 20
    assert time.perf_counter() - start < patient(2)
    made.worker.close(0.0)
    assert told == ["--output: not done 0 s after the end: given up"]


def test_what_a_slow_sink_cannot_take_is_counted() -> None:
    class Slow(Kept):
        def write(self, verdict: Verdict) -> None:
            pause(0.02)
            super().write(verdict)

    slow = Slow()
    made = Background(slow, worker(max_items=2))
    for _ in range(20):
        made.write(verdict())
    made.worker.close()
    lost = made.worker.lost["verdict", "queue full"]
    assert lost > 0
    assert len(slow.verdicts) + lost == 20
    assert made.worker.notes() == [f"--output: lost: {lost} verdicts (queue full)"]
    assert made.worker.error is None  # slow is not broken


def test_a_file_waits_for_a_slow_sink_and_loses_nothing() -> None:
    class Slow(Kept):
        def write(self, verdict: Verdict) -> None:
            pause(0.01)
            super().write(verdict)

    slow = Slow()
    made = Background(slow, worker(max_items=2, patience_s=5.0))
    for _ in range(20):
        made.write(verdict())
    made.worker.close()
    assert len(slow.verdicts) == 20
    assert made.worker.notes() == []


def test_a_file_does_not_wait_for_ever(gate: threading.Event) -> None:
    told: list[str] = []
    hanging = Hanging(gate)
    made = Background(hanging, worker(told, max_items=1, patience_s=0.2))
    start = time.perf_counter()
    made.write(verdict())
    assert hanging.reached.wait(5)
    for _ in range(50):
        made.write(verdict())
    assert 0.2 <= time.perf_counter() - start < patient(2)  # waited once, not fifty times
    assert told == ["--output: took nothing for 0.2 s: switched off"]
    assert made.worker.lost["verdict", "switched off"] == 51


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("cannot write x: no space left on device"), "cannot write x: no space left"),
        (ZeroDivisionError("division\nby zero"), "ZeroDivisionError: division by zero"),
    ],
)
def test_a_sink_that_raises_is_switched_off_with_one_line(error: Exception, words: str) -> None:
    told: list[str] = []
    raising = Raising(error, after=2)
    made = Background(raising, worker(told, patience_s=5.0))
    for _ in range(9):
        made.write(verdict())
    made.worker.close()
    made.write(verdict())
    assert len(raising.verdicts) == 2
    assert made.worker.error is not None
    assert len(told) == 1
    assert words in told[0]
    assert "\n" not in told[0]
    assert made.worker.lost["verdict", "switched off"] == 8
    assert made.worker.notes()[0].startswith(told[0])


def test_the_line_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    made = in_background(Raising(UserError("no")), "--report", live=True)
    made.write(verdict())
    made.worker.close()
    assert capsys.readouterr().err == "warning: --report: no: switched off\n"


def test_pictures_in_the_queue_are_bounded_in_bytes(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PICTURE_BYTES", 1000)
    watching = Watching()
    hanging = Hanging(gate)
    watching.write = hanging.write  # type: ignore[method-assign]
    made = MediaBackground(watching, worker())
    made.write(verdict())
    assert hanging.reached.wait(5)
    for _ in range(10):
        made.picture(picture())  # 192 bytes each
    made.write(verdict())
    assert made.worker.lost == {("picture", "queue full"): 5}
    gate.set()
    made.worker.close()
    assert len(watching.pictures) == 5


def test_a_picture_larger_than_the_bound_goes_through_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_PICTURE_BYTES", 1000)
    watching = Watching()
    made = MediaBackground(watching, worker(patience_s=5.0))
    for _ in range(3):
        made.picture(picture((40, 40)))
    made.worker.close()
    assert len(watching.pictures) == 3


def test_the_summary_finds_room_in_a_full_queue(gate: threading.Event) -> None:
    watching = Watching()
    hanging = Hanging(gate)
    watching.write = hanging.write  # type: ignore[method-assign]
    made = MediaBackground(watching, worker(max_items=1))
    for _ in range(5):
        made.write(verdict())
    made.end(summary())
    gate.set()
    made.worker.close()
    assert watching.summaries == [summary()]


def test_abandoning_waits_for_nothing(gate: threading.Event) -> None:
    hanging = Hanging(gate)
    made = Background(hanging, worker())
    for _ in range(5):
        made.write(verdict())
    assert hanging.reached.wait(5)
    start = time.perf_counter()
    made.worker.abandon()
    assert time.perf_counter() - start < patient(5)  # DRAIN_S is 20


def test_a_sink_that_never_got_anything_starts_no_thread() -> None:
    before = threading.active_count()
    made = in_background(Kept(), "x", live=False)
    made.worker.close()
    assert threading.active_count() == before
