# SPDX-License-Identifier: Apache-2.0
"""From a source through a session to sinks.

A file is read as fast as it can be decoded and nothing is dropped: one thread, one loop.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from runtime.backends.base import Backend
from runtime.errors import UsageError
from runtime.faces import Face
from runtime.media import AudioChunk, Frame, MediaInfo, Source, VideoChunk
from runtime.session import Session, Stats
from runtime.sinks import MediaSink, Picture, Sink, StartSink
from runtime.spec import StreamSpec
from runtime.verdict import Label, Verdict


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

    def add(self, verdict: Verdict) -> None:
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
        return {**asdict(self), "coverage": self.stats.coverage}


def run(
    source: Source,
    backend: Backend,
    *,
    sinks: Sequence[Sink] = (),
    stream: StreamSpec | None = None,
    with_audio: bool = True,
    name: str | None = None,
) -> Summary:
    """Read ``source`` to its end; every verdict goes to every sink as soon as it is made.

    ``name`` is what verdicts call the source; by default what the source calls itself.
    A live source also ends with Ctrl-C: what was waiting is judged and the summary returned.

    Raises :class:`UsageError` when nothing is left to judge, :class:`runtime.errors.MediaError`
    from the source and :class:`runtime.errors.DependencyError` from the session.
    """
    info = source.info
    name = info.name if name is None else name
    has_audio = with_audio and info.has_audio
    if not info.has_video and not has_audio:
        raise UsageError(f"{info.name}: no pictures, and its sound was not asked for")
    media_sinks = [sink for sink in sinks if isinstance(sink, MediaSink)]

    def show(t_s: float, frame: Frame, faces: Sequence[Face]) -> None:
        for sink in media_sinks:
            sink.picture(Picture(name, t_s, frame, faces))

    session = Session(
        backend,
        source=name,
        stream=stream,
        has_video=info.has_video,
        has_audio=has_audio,
        on_picture=show if media_sinks else None,
    )
    summary = Summary(name, backend.spec.model_id, backend.provider, info, session.stats)
    for sink in sinks:
        if isinstance(sink, StartSink):
            sink.begin(summary)
    start = time.perf_counter()

    def publish(verdicts: list[Verdict]) -> None:
        for verdict in verdicts:
            summary.add(verdict)
            for sink in sinks:
                sink.write(verdict)

    try:
        for chunk in _timed(source, session.stats):
            if isinstance(chunk, VideoChunk):
                summary.media_s = max(summary.media_s, chunk.t_s + 1 / (info.fps or 25.0))
                publish(session.push_video(chunk.t_s, chunk.convert))
            elif has_audio:
                seconds = chunk.samples.size / backend.spec.audio.sample_rate_hz
                summary.media_s = max(summary.media_s, chunk.t_s + seconds)
                for sink in media_sinks:
                    sink.sound(name, chunk)
                publish(session.push_audio(chunk.t_s, chunk.samples))
    except KeyboardInterrupt:
        if not source.live:
            raise
    publish(session.finish())
    summary.damaged, summary.warnings = source.damaged, list(source.warnings)
    summary.wall_s = time.perf_counter() - start
    for sink in media_sinks:
        sink.end(summary)
    return summary


def _timed(source: Source, stats: Stats) -> Iterator[VideoChunk | AudioChunk]:
    """The source's chunks; the time it takes to make them counts as decoding."""
    chunks = iter(source)
    while True:
        start = time.perf_counter()
        chunk = next(chunks, None)
        stats.seconds["decode"] += time.perf_counter() - start
        if chunk is None:
            return
        yield chunk
