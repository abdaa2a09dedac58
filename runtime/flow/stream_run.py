# SPDX-License-Identifier: Apache-2.0
"""One stream on its way from chunks to sinks: its session, its summary, its lag.

:mod:`runtime.flow.driver` feeds it.  How far the verdicts of a live source are behind the world is
measured (:class:`runtime.flow.summary.LagMeter`), and what does not come for longer than the
source's patience is not waited for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from runtime.backends.base import Backend
from runtime.errors import UsageError
from runtime.faces import Face
from runtime.flow.model_calls import Steps
from runtime.flow.session import OnJudged, OnScores, Session
from runtime.flow.sink import MediaSink, Picture, ScoresSink, Sink, StartSink
from runtime.flow.summary import LagMeter, Summary
from runtime.flow.windows import WindowRecord
from runtime.judging.verdict import Verdict
from runtime.media import (
    AudioChunk,
    Chunk,
    Frame,
    LiveSource,
    Source,
    VideoChunk,
)
from runtime.media.feed import Feed
from runtime.spec import StreamSpec


class StreamRun:
    """A session, its sinks and its summary."""

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
            raise UsageError(f"{name}: no pictures, and its sound was not asked for")
        self._media_sinks = [sink for sink in sinks if isinstance(sink, MediaSink)]
        self._on_scores: list[OnScores] = [s.scores for s in sinks if isinstance(s, ScoresSink)]
        self._on_scores += [] if on_scores is None else [on_scores]
        self.rate_hz = backend.spec.audio.sample_rate_hz
        self.session = Session(
            backend,
            source=name,
            stream=stream,
            has_video=self.has_video,
            has_audio=self.has_audio,
            on_picture=self._show if self._media_sinks else None,
            on_scores=self._tell_scores if self._on_scores else None,
            on_judged=on_judged,
        )
        stats = self.session.stats
        self.summary = Summary(name, backend.spec.model_id, backend.provider, info, stats)
        self._lag = LagMeter()
        for sink in sinks:
            if isinstance(sink, StartSink):
                sink.begin(self.summary)

    def take_steps(self, chunk: Chunk) -> Steps:
        """The work on one chunk more; whoever runs it publishes the verdicts."""
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

    def quiet_steps(self, feed: Feed) -> Steps | None:
        """The work that needs no waiting any more; None where everything flows."""
        video_s = feed.quiet_until_s(VideoChunk) if self.has_video else None
        audio_s = feed.quiet_until_s(AudioChunk) if self.has_audio else None
        if video_s is None and audio_s is None:
            return None
        return self.session.advance_steps(video_s=video_s, audio_s=audio_s)

    def look_at(self, feed: Feed) -> None:
        """Takes over what the feed knows so far: time to decode, drops and clock."""
        self.session.stats.seconds["decode"] += feed.take_reading_s()
        self.summary.drops = feed.drops
        if isinstance(self._source, LiveSource):
            self.summary.clock = self._source.clock

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

    def _tell_scores(self, record: WindowRecord) -> None:
        for tell in self._on_scores:
            tell(record)

    def _reached(self, t_s: float) -> None:
        self.summary.media_s = max(self.summary.media_s, t_s)


def _nothing() -> Steps:
    """No work."""
    yield from ()
    return []
