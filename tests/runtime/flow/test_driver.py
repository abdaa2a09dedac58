# SPDX-License-Identifier: Apache-2.0
"""Several streams in one process: the same verdicts, shared calls, fairness, visible shedding."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import runtime.flow.pictures
from benchmarks.stream.paced import PacedSource
from runtime.closing import Closing
from runtime.errors import MediaError, UsageError
from runtime.flow import driver, model_calls, session, stream_run, summary
from runtime.flow.driver import STEPS_DOWN, LoadChange, Outcome, Stream, run, run_many
from runtime.flow.model_calls import Encode, Fuse, serve
from runtime.flow.pictures import Load
from runtime.flow.sink import Collector
from runtime.interrupt import Interrupt
from runtime.judging.verdict import Verdict
from runtime.media import AudioChunk, Chunk, MediaInfo, VideoChunk
from runtime.media.feed import Feed
from runtime.media.file import FileSource
from tests.runtime.doubles import SPEC, MockBackend, MockTracker, picture, speech
from tests.runtime.scenes import speakers
from tests.waiting import patient


class Clip(Closing):
    """A file in memory: ``tokens`` pictures and their sound, ``start`` tokens into the script."""

    live = False
    damaged = 0
    warnings: list[str] = []  # noqa: RUF012

    def __init__(
        self, name: str, tokens: int, start: int = 0, error_at: int | None = None, late: int = 0
    ) -> None:
        self.info = MediaInfo(name, True, True, 64, 48, 25.0, None)
        self._tokens, self._start, self._error_at, self._late = tokens, start, error_at, late

    def __iter__(self) -> Iterator[Chunk]:
        samples = speech(self._start + self._tokens, late_tokens=self._late)[self._start * 640 :]
        for t in range(self._tokens):
            if t == self._error_at:
                raise MediaError(f"{self.info.name}: torn")
            yield VideoChunk(t / 25, lambda t=t: picture(self._start + t))
            yield AudioChunk(t / 25, samples[t * 640 : t * 640 + 640])

    def close(self) -> None:
        pass


class Clock:
    """Stands in for the module ``time``: it goes on only where a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    perf_counter = monotonic


class Camera(Clip):
    """A live source whose chunks come when they happen, on the test's clock."""

    live = True

    def __init__(self, clock: Clock, name: str, seconds: float, start: int = 0) -> None:
        super().__init__(name, round(seconds * 25), start)
        self.clock, self.began_s = clock, clock.now_s

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in super().__iter__():
            yield replace(chunk, captured_s=self.began_s + chunk.t_s)


class TimedFeed:
    """A feed on the test's clock: as :class:`runtime.media.feed.Feed`, without a thread."""

    MAX_PICTURES = 32

    def __init__(self, source: Camera, *, sample_rate_hz: int, changed: object) -> None:
        assert sample_rate_hz == SPEC.audio.sample_rate_hz
        self._clock, self._coming, self._queue = source.clock, list(source), list[Chunk]()
        self.error: BaseException | None = None
        self.drops: dict[str, int] = {}

    def get(self, timeout_s: float) -> Chunk | None:
        assert not timeout_s
        self._arrive()
        return self._queue.pop(0) if self._queue else None

    def take_reading_s(self) -> float:
        return 0.0

    lossless = False

    @property
    def ready(self) -> bool:
        self._arrive()
        return bool(self._queue) or self.ended

    @property
    def ended(self) -> bool:
        return not self._queue and not self._coming

    def quiet_until_s(self, kind: type[Chunk]) -> float | None:
        return None

    def close(self) -> None:
        pass

    def _arrive(self) -> None:
        while self._coming and (self._coming[0].captured_s or 0.0) <= self._clock.now_s:
            self._queue.append(self._coming.pop(0))
        pictures = [c for c in self._queue if isinstance(c, VideoChunk)]
        for old in pictures[: max(0, len(pictures) - self.MAX_PICTURES)]:
            self._queue.remove(old)
            self.drops["queue_full"] = self.drops.get("queue_full", 0) + 1


class TimedCondition:
    """A condition whose waits take the test's time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> None:
        until_s = self._clock.now_s + timeout_s
        while not condition() and self._clock.now_s < until_s:
            self._clock.now_s += 0.001


class SlowTracker(MockTracker):
    """Takes its time for every picture."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self._clock, self.seconds = clock, seconds

    def update(self, frame: np.ndarray[Any, Any], token: int) -> Any:
        self._clock.now_s += self.seconds
        return super().update(frame, token)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (driver, stream_run, session, summary, model_calls):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(driver, "Feed", TimedFeed)
    waits = SimpleNamespace(Condition=lambda: TimedCondition(clock))
    monkeypatch.setattr(driver, "threading", waits)
    return clock


def use_trackers(monkeypatch: pytest.MonkeyPatch, *trackers: MockTracker) -> None:
    """One for each stream, in order; further ones are plain."""
    left = list(trackers)
    monkeypatch.setattr(
        runtime.flow.pictures, "FaceTracker", lambda spec: left.pop(0) if left else MockTracker()
    )


@pytest.fixture
def _trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    use_trackers(monkeypatch)


def live(name: str, seconds: float, start: int = 0) -> PacedSource:
    return PacedSource(
        lambda: Clip(name, round(seconds * 25) + 1, start), name=name, seconds=seconds
    )


def together(
    sources: Sequence[Any], backend: Any = None, **options: Any
) -> tuple[list[Outcome], list[list[Verdict]]]:
    sinks = [Collector() for _ in sources]
    streams = [Stream(source, [sink]) for source, sink in zip(sources, sinks, strict=True)]
    outcomes = run_many(streams, backend or MockBackend(), **options)
    return outcomes, [sink.verdicts for sink in sinks]


def timeless(verdicts: list[Verdict]) -> list[Verdict]:
    return [replace(v, latency_ms=0.0) for v in verdicts]


def clips() -> list[Clip]:
    return [Clip("a", 80), Clip("b", 110, 40, late=2), Clip("c", 63, 7), Clip("short", 20)]


# The same results


@pytest.mark.usefixtures("_trackers")
def test_each_stream_gets_the_verdicts_that_it_gets_alone() -> None:
    alone = []
    for clip in clips():
        sink = Collector()
        run(clip, MockBackend(), sinks=[sink])
        alone.append(timeless(sink.verdicts))
    outcomes, verdicts = together(clips())
    assert [timeless(v) for v in verdicts] == alone
    assert [len(v) for v in verdicts] == [7, 13, 3, 1]
    assert [o.summary.source for o in outcomes] == ["a", "b", "c", "short"]
    assert all(o.error is None for o in outcomes)


@pytest.mark.usefixtures("_trackers")
def test_streams_share_the_models_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    # However busy the machine is: no request is served early, no reader is behind.
    monkeypatch.setattr(driver, "BATCH_WAIT_S", 10.0)
    get = Feed.get
    monkeypatch.setattr(Feed, "get", lambda feed, timeout_s: get(feed, 10.0))
    backend = MockBackend()
    together([Clip(str(i), 100) for i in range(4)], backend)
    assert sum(backend.encoded) == 400
    assert max(backend.encoded) == 4 * SPEC.stream.hop_tokens
    windows = [len(visual) for visual, _ in backend.fused]
    assert sum(windows) == 4 * 11
    assert len(windows) <= 22


def test_a_real_model_gives_each_stream_what_it_gets_alone(real_pair: Path, grid_dir: Path) -> None:
    """Within 1e-5: rows of a batch do not see each other, only rounding differs."""
    from runtime.backends.onnx import OnnxBackend

    paths = speakers(grid_dir)[:2]
    with OnnxBackend(real_pair, threads=1) as backend:
        alone = []
        for path in paths:
            sink = Collector()
            with FileSource(path) as source:
                run(source, backend, sinks=[sink])
            alone.append(sink.verdicts)
        sources = [FileSource(path) for path in paths]
        _, verdicts = together(sources, backend)
        for source in sources:
            source.close()
    for one, many in zip(alone, verdicts, strict=True):
        assert len(one) == len(many) >= 5
        for a, b in zip(one, many, strict=True):
            assert (a.t_end_s, a.face_id, a.label, a.reason) == (
                b.t_end_s, b.face_id, b.label, b.reason
            )  # fmt: skip
            for name in ("p_fake", "p_fake_video", "p_fake_audio", "sync"):
                assert getattr(b, name) == pytest.approx(getattr(a, name), abs=1e-5)


def test_windows_of_different_lengths_do_not_share_a_call() -> None:
    backend = MockBackend()
    rng = np.random.default_rng(0)

    def fuse(rows: int, t: int) -> Fuse:
        return Fuse(rng.random((rows, t, 16), np.float32), rng.random((rows, t, 104), np.float32))

    frames = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    requests = [fuse(1, 50), Encode(frames), fuse(2, 25), fuse(1, 50), Encode(frames[:1])]
    replies = serve(backend, requests)
    assert [len(visual) for visual, _ in backend.fused] == [2, 2]
    assert backend.encoded == [4]
    for request, reply in zip(requests, replies, strict=True):
        (alone,) = serve(MockBackend(), [request])
        if isinstance(request, Encode):
            np.testing.assert_array_equal(reply.output, alone.output)
        else:
            for a, b in zip(reply.output, alone.output, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-6)


# Ends and failures


@pytest.mark.usefixtures("_trackers")
def test_a_stream_that_fails_does_not_stop_the_others() -> None:
    ended: list[int] = []
    outcomes, verdicts = together(
        [Clip("torn", 90, error_at=70), Clip("whole", 90)],
        on_end=lambda index, outcome: ended.append(index),
    )
    assert str(outcomes[0].error) == "torn: torn"
    assert outcomes[1].error is None
    assert sorted(ended) == [0, 1]
    assert len(verdicts[0]) == 5  # what it had shown until then is judged
    assert len(verdicts[1]) == 9


@pytest.mark.usefixtures("_trackers")
def test_a_broken_sink_ends_its_stream_alone() -> None:
    class Broken(Collector):
        def write(self, verdict: Verdict) -> None:
            raise OSError("no space left")

    kept = Collector()
    outcomes = run_many(
        [Stream(Clip("a", 60), [Broken()]), Stream(Clip("b", 60), [kept])], MockBackend()
    )
    assert isinstance(outcomes[0].error, OSError)
    assert len(kept.verdicts) == 3


@pytest.mark.usefixtures("_trackers")
def test_an_error_of_the_model_is_raised() -> None:
    class Broken(MockBackend):
        def fuse(self, visual: Any, audio: Any) -> Any:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        together([Clip("a", 60), Clip("b", 60)], Broken())


def test_nothing_to_judge_is_a_usage_error() -> None:
    clip = Clip("radio", 60)
    clip.info = replace(clip.info, has_video=False)
    with pytest.raises(UsageError, match="no pictures"):
        run_many([Stream(clip, with_audio=False)], MockBackend())


@pytest.mark.usefixtures("_trackers")
def test_an_interrupt_ends_all_live_streams_with_their_summaries() -> None:
    interrupt = Interrupt()
    seen = 0

    class Asking(Collector):
        def write(self, verdict: Verdict) -> None:
            nonlocal seen
            seen += 1
            if seen == 3:
                interrupt.ask("SIGTERM")

    streams = [Stream(live(name, 60.0), [Asking()]) for name in "ab"]
    start = time.monotonic()
    outcomes = run_many(streams, MockBackend(), interrupt=interrupt)
    assert time.monotonic() - start < patient(10)
    assert [o.summary.ended for o in outcomes] == ["SIGTERM"] * 2
    assert all(o.error is None and o.summary.lag is not None for o in outcomes)


# Live: keeping up, and what is left out where that cannot be


@pytest.mark.usefixtures("_trackers")
def test_live_streams_that_keep_up_leave_nothing_out(clock: Clock) -> None:
    changes: list[LoadChange] = []
    outcomes, verdicts = together(
        [Camera(clock, "a", 5.0), Camera(clock, "b", 5.0, 30)], on_load=changes.append
    )
    assert changes == []
    for outcome, found in zip(outcomes, verdicts, strict=True):
        summary = outcome.summary
        assert (summary.stats.shed_windows, summary.stats.shed_pictures) == (0, 0)
        assert (summary.drops, summary.shed_s, summary.ended) == ({}, 0.0, "the source ended")
        assert len(found) == 16
        assert all(v.reason is None for v in found)
        assert summary.lag is not None
        assert summary.lag.p99_ms < 50


def test_a_machine_that_cannot_keep_up_does_less_step_by_step_and_says_so(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """70 ms a picture where 40 ms are there: every second picture is what can be done."""
    use_trackers(monkeypatch, SlowTracker(clock, 0.07))
    changes: list[LoadChange] = []
    outcomes, (verdicts,) = together([Camera(clock, "door", 30.0)], on_load=changes.append)
    summary = outcomes[0].summary
    assert [c.load for c in changes[:3]] == list(STEPS_DOWN[1:4])  # windows first, then pictures
    assert str(changes[0]).startswith("door: 0.")
    assert str(changes[0]).endswith("one window of 2 and every picture from now on")
    assert summary.stats.shed_windows > 50
    assert summary.stats.shed_pictures > 200
    assert 20 < summary.shed_s <= 31
    settled = [v for v in verdicts if v.t_end_s > 15]
    assert len(settled) >= 15
    assert all(v.reason is None for v in settled)  # pictures are left out evenly: no gap
    assert max(v.latency_ms for v in settled) < 700


def test_what_even_the_last_step_cannot_do_the_queue_drops(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    use_trackers(monkeypatch, SlowTracker(clock, 0.3))
    outcomes, (verdicts,) = together([Camera(clock, "door", 20.0)])
    assert outcomes[0].summary.drops["queue_full"] > 0
    assert verdicts[-1].t_end_s > 19.0
    assert max(v.latency_ms for v in verdicts) < 4000  # the lag does not grow with the stream


def test_a_stream_that_needs_too_much_does_not_starve_the_others(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    use_trackers(monkeypatch, SlowTracker(clock, 0.06), SlowTracker(clock, 0.004))
    changes: list[LoadChange] = []
    outcomes, verdicts = together(
        [Camera(clock, "heavy", 20.0), Camera(clock, "light", 20.0)], on_load=changes.append
    )
    heavy, light = (outcome.summary for outcome in outcomes)
    assert {c.source for c in changes} == {"heavy"}
    assert (light.stats.shed_windows, light.stats.shed_pictures, light.drops) == (0, 0, {})
    assert heavy.stats.shed_pictures > 0
    assert len(verdicts[1]) == 91
    assert max(v.latency_ms for v in verdicts[1]) < 600
    assert max(v.latency_ms for v in verdicts[1] if v.t_end_s > 5) < 200


def test_equal_streams_share_what_there_is(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Four streams of which two would be too many: all of them get verdicts, equally often."""
    use_trackers(monkeypatch, *(SlowTracker(clock, 0.025) for _ in range(4)))
    outcomes, verdicts = together([Camera(clock, name, 28.0) for name in "abcd"])
    for outcome, found in zip(outcomes, verdicts, strict=True):
        assert outcome.summary.stats.shed_pictures > 0
        late = [v for v in found if v.t_end_s > 18]
        assert len(late) >= 10
        assert sum(v.reason is None for v in late) >= 0.9 * len(late)


def test_when_there_is_time_again_everything_is_judged_again(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    tracker = SlowTracker(clock, 0.06)
    use_trackers(monkeypatch, tracker)
    changes: list[LoadChange] = []

    def relieve(change: LoadChange) -> None:
        changes.append(change)
        if change.load.pictures > 1:
            tracker.seconds = 0.0

    together([Camera(clock, "door", 40.0)], on_load=relieve)
    assert [c.load for c in changes] == [*STEPS_DOWN[1:4], *STEPS_DOWN[2::-1]]
    assert not changes[-1].less
    assert str(changes[-1]) == "door: keeping up, so every window and every picture from now on"


def test_without_time_to_spare_nothing_is_taken_up_again(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """30 of 40 ms at every second picture: all of them would be too much, so it stays."""
    use_trackers(monkeypatch, SlowTracker(clock, 0.06))
    changes: list[LoadChange] = []
    together([Camera(clock, "door", 30.0)], on_load=changes.append)
    assert [c.load for c in changes] == list(STEPS_DOWN[1:4])


@pytest.mark.thorough
@pytest.mark.usefixtures("_trackers")
def test_files_beside_a_live_stream_use_what_it_leaves() -> None:
    """On the real clock and with real threads."""
    ended: list[int] = []
    outcomes, verdicts = together(
        [live("camera", 4.0), Clip("file", 60)],
        on_end=lambda index, outcome: ended.append(index),
    )
    assert ended == [1, 0]
    assert len(verdicts[1]) == 3
    assert outcomes[0].summary.ended == "the source ended"
    assert verdicts[0][-1].t_end_s == 4.0
    assert outcomes[0].summary.lag is not None


def test_a_load_is_counted_from_one() -> None:
    with pytest.raises(ValueError, match="from 1"):
        Load(hops=0)
    assert max(load.pictures for load in STEPS_DOWN) <= SPEC.stream.max_gap_tokens
