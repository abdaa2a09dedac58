# SPDX-License-Identifier: Apache-2.0
"""What takes verdicts, each as it comes, in order.

A sink that also shows or keeps media is a :class:`MediaSink`: of each picture that was searched
for faces it gets the pixels and the faces, of the sound what the model hears, and at the end the
summary.  Nothing of it is kept unless the sink was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from runtime.judging.verdict import Verdict
from runtime.media import AudioChunk, Frame

if TYPE_CHECKING:
    from runtime.faces import Face
    from runtime.flow.summary import Summary
    from runtime.flow.windows import WindowRecord


@dataclass(frozen=True)
class Picture:
    """One picture that the grid used, and the faces that were followed in it."""

    source: str  # what verdicts call the stream
    t_s: float  # stream seconds, of the token that it shows
    frame: Frame  # [H, W, 3] RGB; shared, so not to be written to
    faces: Sequence[Face]  # ``track_id`` is the verdicts' ``face_id``


class Sink(Protocol):
    def write(self, verdict: Verdict) -> None: ...


@runtime_checkable
class MediaSink(Sink, Protocol):
    """A sink that wants the media, too."""

    def picture(self, picture: Picture) -> None: ...

    def sound(self, source: str, chunk: AudioChunk) -> None:
        """What the session hears: mono at the model's rate, in order."""
        ...

    def end(self, summary: Summary) -> None:
        """A source has ended; nothing more of it comes."""
        ...


@runtime_checkable
class ScoresSink(Sink, Protocol):
    """A sink that wants to know what each verdict was made of, before it gets the verdict."""

    def scores(self, record: WindowRecord) -> None: ...


@runtime_checkable
class StartSink(Sink, Protocol):
    """A sink that wants to know what is about to be judged."""

    def begin(self, summary: Summary) -> None:
        """``summary`` is the run's own: its counters go on counting."""
        ...


class Collector:
    """A sink that keeps the verdicts."""

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []

    def write(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
