# SPDX-License-Identifier: Apache-2.0
"""Sources of media: files (PyAV) and cameras (OpenCV).

A source is a context manager that yields :class:`VideoChunk` and :class:`AudioChunk` in the order
in which they were decoded, on one clock: ``t_s`` counts stream seconds from the earliest start of
its streams.  Importing this package needs NumPy alone; PyAV and OpenCV are loaded when a source is
opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]  # [H, W, 3] RGB
Samples = NDArray[np.float32]  # [n] mono in [-1, 1]


@dataclass(frozen=True)
class VideoChunk:
    """One picture.  ``frame`` is converted to RGB when first read: a skipped one costs nothing."""

    t_s: float
    convert: Callable[[], Frame]

    @cached_property
    def frame(self) -> Frame:  # [H, W, 3]
        """Upright RGB pixels: the rotation stored in the file has been applied."""
        return self.convert()


@dataclass(frozen=True)
class AudioChunk:
    """Consecutive samples; ``t_s`` is the time of the first one."""

    t_s: float
    samples: Samples  # [n]


@dataclass(frozen=True)
class MediaInfo:
    """What a container says of itself; ``None`` where it says nothing that can be believed."""

    name: str
    has_video: bool
    has_audio: bool
    width: int  # 0 without video; as coded, before rotation
    height: int
    fps: float | None
    duration_s: float | None


class Source(Protocol):
    """What :mod:`runtime.pipeline` reads from."""

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


__all__ = ["AudioChunk", "Frame", "MediaInfo", "Samples", "Source", "VideoChunk"]
