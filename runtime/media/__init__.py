# SPDX-License-Identifier: Apache-2.0
"""Sources of media: files and network streams (PyAV), cameras (OpenCV, GStreamer), microphones.

A source is a context manager that yields :class:`VideoChunk` and :class:`AudioChunk` in the order
in which they were decoded, on one clock: ``t_s`` counts stream seconds from the earliest start of
its streams.  Of a live source ``captured_s`` is the same moment on this machine's monotonic clock.
Importing this package needs NumPy alone; PyAV, OpenCV and PortAudio are loaded when a source is
opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]  # [H, W, 3] RGB
Samples = NDArray[np.float32]  # [n] mono in [-1, 1]


@dataclass(frozen=True)
class VideoChunk:
    """One picture.  ``frame`` is converted to RGB when first read: a skipped one costs nothing."""

    t_s: float
    convert: Callable[[], Frame]
    captured_s: float | None = None  # time.monotonic() at capture, as far as it is known; live only

    @cached_property
    def frame(self) -> Frame:  # [H, W, 3]
        """RGB, upright and with square pixels: what the file says of both has been applied."""
        return self.convert()


@dataclass(frozen=True)
class AudioChunk:
    """Consecutive samples; ``t_s`` is the time of the first one."""

    t_s: float
    samples: Samples  # [n]
    captured_s: float | None = None  # of the first sample


Chunk = VideoChunk | AudioChunk


@dataclass(frozen=True)
class MediaInfo:
    """What a container says of itself; ``None`` where it says nothing that can be believed."""

    name: str
    has_video: bool
    has_audio: bool
    width: int  # 0 without video; as coded, before rotation and the pixels' aspect
    height: int
    fps: float | None
    duration_s: float | None


class Source(Protocol):
    """What :mod:`runtime.flow.stream_run` reads from."""

    @property
    def live(self) -> bool:
        """Does it go on until somebody stops it?"""
        ...

    @property
    def info(self) -> MediaInfo: ...

    @property
    def damaged(self) -> int:
        """Frames, packets and timestamps so far that were repaired or dropped."""
        ...

    @property
    def warnings(self) -> list[str]:
        """What a person should know about the source, one line each; complete at its end."""
        ...

    def __iter__(self) -> Iterator[VideoChunk | AudioChunk]: ...

    def __enter__(self) -> Source: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def close(self) -> None: ...


@dataclass
class ClockReport:
    """What is known of a live source's clocks; None where it was not measured."""

    drift_ppm: float | None = None  # of the sound against this machine; > 0: it is fast
    jitter_ms: float | None = None  # standard deviation of the sound's times around that line


@runtime_checkable
class LiveSource(Source, Protocol):
    """A source that goes on until somebody stops it, and survives its own failures.

    ``close`` may be called from any thread, also while another one iterates: the iteration then
    ends by itself within the source's read timeout.
    """

    @property
    def paced(self) -> bool:
        """Do chunks come when they happen (camera, RTSP)?  False: they are fetched (HLS)."""
        ...

    @property
    def patience_s(self) -> float:
        """A modality that is silent for longer than this is taken to have nothing to say."""
        ...

    @property
    def drops(self) -> Mapping[str, int]:
        """What the source itself dropped or lost so far, by cause."""
        ...

    @property
    def clock(self) -> ClockReport: ...


__all__ = [
    "AudioChunk",
    "Chunk",
    "ClockReport",
    "Frame",
    "LiveSource",
    "MediaInfo",
    "Samples",
    "Source",
    "VideoChunk",
]
