# SPDX-License-Identifier: Apache-2.0
"""From a source through a session to sinks.

A file is read as fast as it can be decoded and nothing is dropped: one thread, one loop.  A live
source is read by a thread of its own (:class:`runtime.media.feed.Feed`): what cannot be judged in
time is dropped and counted, what does not come is not waited for, and how far the verdicts are
behind the world is measured (:class:`LagMeter`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from runtime.backends.base import Backend
from runtime.errors import UsageError
from runtime.faces import Face
from runtime.interrupt import Interrupt
from runtime.media import (
    AudioChunk,
    Chunk,
    ClockReport,
    Frame,
    LiveSource,
    MediaInfo,
    Source,
    VideoChunk,
)
from runtime.media.feed import Feed
from runtime.model_calls import Steps, drive
from runtime.session import OnJudged, OnScores, Session, Stats
from runtime.sinks import MediaSink, Picture, Sink, StartSink
from runtime.spec import StreamSpec
from runtime.verdict import Label, Verdict

POLL_S = 0.1  # how soon a live run notices that it was asked to end, or that nothing comes
LOOK_S = 1.0  # between two looks at what a live source lost, for those who watch the run
MIN_SLOPE_S = 30.0  # a slope over less says nothing
KEPT_LAGS = 10_000  # for the percentiles: about half an hour's
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class LagReport:
    """How far verdicts were behind the world: from the capture of their last evidence."""

    median_ms: float  # of the last half an hour
    p99_ms: float
    slope_ms_per_min: float | None  # over the whole run; None when it was too short


class LagMeter:
    """Lag over a run of any length in constant memory."""

    def __init__(self) -> None:
        self._lags_ms = np.zeros(KEPT_LAGS)  # a ring
        self._added = 0
        self._start_s: float | None = None
        self._sums = np.zeros(5)  # n, x, y, xx, xy with x in minutes and y in ms
        self._last_s = 0.0

    def add(self, now_s: float, captured_s: float) -> None:
        """Both in monotonic seconds."""
        if self._start_s is None:
            self._start_s = now_s
        self._last_s = now_s
        lag_ms, minutes = (now_s - captured_s) * 1e3, (now_s - self._start_s) / 60
        self._lags_ms[self._added % KEPT_LAGS] = lag_ms
        self._added += 1
        self._sums += (1, minutes, lag_ms, minutes * minutes, minutes * lag_ms)

    def report(self) -> LagReport | None:
        if self._start_s is None:
            return None
        n, x, y, xx, xy = self._sums.tolist()
        spread = xx - x * x / n
        long_enough = self._last_s - self._start_s >= MIN_SLOPE_S and spread > 0
        median_ms, p99_ms = np.percentile(self._lags_ms[: self._added], (50, 99)).tolist()
        return LagReport(median_ms, p99_ms, (xy - x * y / n) / spread if long_enough else None)


@dataclass(frozen=True)
class FakeSpan:
    """Overlapping windows of one face that were judged fake, together; stream seconds."""

    face_id: int | None
    start_s: float
    end_s: float


@dataclass
class Summary:
    """What is left to say when a source has ended."""

    source: str
    model_id: str
    provider: str
    info: MediaInfo
    stats: Stats
    spans: list[FakeSpan] = field(default_factory=list)
    highest_p_fake: float | None = None  # of the windows with a verdict
    damaged: int = 0
    warnings: list[str] = field(default_factory=list)
    media_s: float = 0.0  # stream seconds read
    wall_s: float = 0.0
    ended: str = ""  # why a live source ended: the name of a signal, or what the source says
    drops: dict[str, int] = field(default_factory=dict)  # of a live source, by cause
    lag: LagReport | None = None  # of a live source
    shed_s: float = 0.0  # seconds in which less than everything was done, to keep up
    clock: ClockReport = field(default_factory=ClockReport)  # of a live source
    offsets_ms: dict[float, int] = field(default_factory=dict)  # measured A/V offset -> windows

    @property
    def av_offset_ms(self) -> float | None:
        """Median of the measured A/V offset, apart from any verdict; above 0: the sound is late."""
        left = sum(self.offsets_ms.values()) / 2
        for offset_ms, windows in sorted(self.offsets_ms.items()):
            left -= windows
            if left <= 0:
                return offset_ms
        return None

    def add(self, verdict: Verdict) -> None:
        if verdict.av_offset_ms is not None:
            windows = self.offsets_ms.get(verdict.av_offset_ms, 0)
            self.offsets_ms[verdict.av_offset_ms] = windows + 1
        if verdict.label is Label.ABSTAIN or verdict.p_fake is None:
            return
        self.highest_p_fake = max(self.highest_p_fake or 0.0, verdict.p_fake)
        if verdict.label is not Label.FAKE:
            return
        for i, span in enumerate(self.spans):
            if span.face_id == verdict.face_id and verdict.t_start_s <= span.end_s:
                self.spans[i] = FakeSpan(span.face_id, span.start_s, verdict.t_end_s)
                return
        self.spans.append(FakeSpan(verdict.face_id, verdict.t_start_s, verdict.t_end_s))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = asdict(self)
        plain["offsets_ms"] = {f"{ms:g}": n for ms, n in sorted(self.offsets_ms.items())}
        return {**plain, "coverage": self.stats.coverage, "av_offset_ms": self.av_offset_ms}


def run(
    source: Source,
    backend: Backend,
    *,
    sinks: Sequence[Sink] = (),
    stream: StreamSpec | None = None,
    with_audio: bool = True,
    name: str | None = None,
    interrupt: Interrupt | None = None,
    on_scores: OnScores | None = None,
    on_judged: OnJudged | None = None,
) -> Summary:
    """Read ``source`` to its end; every verdict goes to every sink as soon as it is made.

    ``name`` is what verdicts call the source; by default what the source calls itself.
    A live source also ends with Ctrl-C, or when ``interrupt`` asks: what was waiting is judged and
    the summary returned.  ``on_scores`` and ``on_judged`` are the session's.

    Raises :class:`UsageError` when nothing is left to judge, :class:`runtime.errors.MediaError`
    from the source and :class:`runtime.errors.DependencyError` from the session.
    """
    one = StreamRun(source, backend, sinks, stream, with_audio, name, on_scores, on_judged)
    start = time.perf_counter()
    try:
        if source.live:
            _read_live(one, source, interrupt or Interrupt())
        else:
            for chunk in _timed(source, one.session.stats):
                one.take(chunk)
    except KeyboardInterrupt:
        if not source.live:
            raise
        one.summary.ended = INTERRUPTED
    return one.finish(time.perf_counter() - start)


class StreamRun:
    """A session, its sinks and its summary; :func:`run` and :mod:`runtime.scheduler` feed it."""

    def __init__(
        self,
        source: Source,
        backend: Backend,
        sinks: Sequence[Sink],
        stream: StreamSpec | None,
        with_audio: bool,
        name: str | None,
        on_scores: OnScores | None = None,
        on_judged: OnJudged | None = None,
    ) -> None:
        info = source.info
        self._source, self.backend, self._sinks = source, backend, sinks
        self._name = name = info.name if name is None else name
        self.has_video, self.has_audio = info.has_video, with_audio and info.has_audio
        if not self.has_video and not self.has_audio:
            raise UsageError(f"{info.name}: no pictures, and its sound was not asked for")
        self._media_sinks = [sink for sink in sinks if isinstance(sink, MediaSink)]
        self.rate_hz = backend.spec.audio.sample_rate_hz
        self.session = Session(
            backend,
            source=name,
            stream=stream,
            has_video=self.has_video,
            has_audio=self.has_audio,
            on_picture=self._show if self._media_sinks else None,
            on_scores=on_scores,
            on_judged=on_judged,
        )
        stats = self.session.stats
        self.summary = Summary(name, backend.spec.model_id, backend.provider, info, stats)
        self._lag = LagMeter()
        for sink in sinks:
            if isinstance(sink, StartSink):
                sink.begin(self.summary)

    def take(self, chunk: Chunk) -> None:
        """Judge with one chunk more."""
        self.publish(drive(self.take_steps(chunk), self.backend), chunk.captured_s)

    def take_steps(self, chunk: Chunk) -> Steps:
        """The same, step by step; whoever runs it publishes the verdicts."""
        arrival = None
        if chunk.captured_s is not None:  # waiting in a queue is part of the latency
            arrival = time.perf_counter() - max(0.0, time.monotonic() - chunk.captured_s)
        if isinstance(chunk, VideoChunk):
            self._reached(chunk.t_s + 1 / (self._source.info.fps or 25.0))
            return self.session.video_steps(chunk.t_s, chunk.convert, arrival)
        if not self.has_audio:
            return _nothing()
        self._reached(chunk.t_s + chunk.samples.size / self.rate_hz)
        for sink in self._media_sinks:
            sink.sound(self._name, chunk)
        return self.session.audio_steps(chunk.t_s, chunk.samples, arrival)

    def publish(self, verdicts: list[Verdict], captured_s: float | None = None) -> None:
        """``captured_s``: when a live source captured what these verdicts were waiting for."""
        for verdict in verdicts:
            self.summary.add(verdict)
            for sink in self._sinks:
                sink.write(verdict)
        if verdicts and captured_s is not None:
            self._lag.add(time.monotonic(), captured_s)

    def look_at(self, feed: Feed) -> None:
        """Takes over what the feed of a live source knows so far: drops and clock."""
        self.summary.drops = feed.drops
        if isinstance(self._source, LiveSource):
            self.summary.clock = self._source.clock

    def finish(self, wall_s: float) -> Summary:
        self.publish(self.session.finish())
        return self.end(wall_s)

    def end(self, wall_s: float) -> Summary:
        """The session has finished: what is left to say, also to the sinks."""
        summary = self.summary
        summary.damaged, summary.warnings = self._source.damaged, list(self._source.warnings)
        summary.wall_s, summary.lag = wall_s, self._lag.report()
        for sink in self._media_sinks:
            sink.end(summary)
        return summary

    def _show(self, t_s: float, frame: Frame, faces: Sequence[Face]) -> None:
        for sink in self._media_sinks:
            sink.picture(Picture(self._name, t_s, frame, faces))

    def _reached(self, t_s: float) -> None:
        self.summary.media_s = max(self.summary.media_s, t_s)


def _nothing() -> Steps:
    """No work."""
    yield from ()
    return []


def _read_live(one: StreamRun, source: Source, interrupt: Interrupt) -> None:
    """Until the source ends or ``interrupt`` asks; an error of the source is raised."""
    interrupt.graceful = True
    looked_s = time.monotonic()
    try:
        with Feed(source, sample_rate_hz=one.rate_hz) as feed:
            try:
                while not interrupt.asked and not feed.ended:
                    chunk = feed.get(POLL_S)
                    if chunk is not None:
                        one.take(chunk)
                    _go_on_without(one, feed)
                    if time.monotonic() - looked_s >= LOOK_S:
                        looked_s = time.monotonic()
                        one.look_at(feed)
                if feed.error is not None and not interrupt.asked:
                    raise feed.error
            finally:
                one.look_at(feed)
        one.summary.ended = interrupt.reason if interrupt.asked else "the source ended"
    finally:
        interrupt.graceful = False


def _go_on_without(one: StreamRun, feed: Feed) -> None:
    """What a live source has not sent for longer than its patience is not waited for."""
    steps = go_on_without(one, feed)
    if steps is not None:
        one.publish(drive(steps, one.backend))


def go_on_without(one: StreamRun, feed: Feed) -> Steps | None:
    """The work that needs no waiting any more; None where everything flows."""
    video_s = feed.quiet_until_s(VideoChunk) if one.has_video else None
    audio_s = feed.quiet_until_s(AudioChunk) if one.has_audio else None
    if video_s is None and audio_s is None:
        return None
    return one.session.advance_steps(video_s=video_s, audio_s=audio_s)


def _timed(source: Source, stats: Stats) -> Iterator[Chunk]:
    """The source's chunks; the time it takes to make them counts as decoding."""
    chunks = iter(source)
    while True:
        start = time.perf_counter()
        chunk = next(chunks, None)
        stats.seconds["decode"] += time.perf_counter() - start
        if chunk is None:
            return
        yield chunk
