# SPDX-License-Identifier: Apache-2.0
"""Pictures of a camera through OpenCV, on the monotonic clock.  It has no sound of its own."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import MediaError
from runtime.media import Chunk, Frame, MediaInfo, VideoChunk
from runtime.media.decoding import SQUARE, believable_aspect, believable_fps, shown_size
from runtime.media.live import Notice, Reconnecting, silent
from runtime.optional import optional

MAX_RATIO = 1e6  # neither side of a pixel's aspect is larger
MAX_DRIVER_AGE_S = 1.0  # a driver's timestamp older than this counts on another clock


def camera_index(source: str) -> int | None:
    """``camera`` -> 0, ``2`` -> 2, ``/dev/video2`` -> 2; None: not a camera."""
    if source == "camera":
        return 0
    found = re.fullmatch(r"(?:/dev/video)?(\d{1,3})", source)
    return int(found[1]) if found else None


def camera_name(index: int) -> str:
    return f"camera:{index}"


class CameraSource(Reconnecting[Any]):
    """Iterates over a camera's pictures until it is closed; unplugged, it is opened again.

    Raises :class:`MediaError` where there is no such camera or it gives no picture at first, and
    :class:`DependencyError` without OpenCV.  ``device`` is for what stands in for a camera in a
    test: a file that OpenCV can read.
    """

    ended = "it stopped giving pictures (unplugged, or taken by another program)"

    def __init__(
        self,
        index: int = 0,
        *,
        name: str | None = None,
        notice: Notice = silent,
        device: Path | None = None,
    ) -> None:
        super().__init__(name or camera_name(index), notice)
        self._cv2 = import_cv2("a camera")
        self._index = index
        self._device = device
        self._start_s: float | None = None
        capture = self._begin()
        self.info = MediaInfo(
            name=self.name,
            has_video=True,
            has_audio=False,
            width=int(capture.get(self._cv2.CAP_PROP_FRAME_WIDTH)),
            height=int(capture.get(self._cv2.CAP_PROP_FRAME_HEIGHT)),
            fps=believable_fps(float(capture.get(self._cv2.CAP_PROP_FPS))),
            duration_s=None,
        )

    def _connect(self) -> Any:
        node = Path(f"/dev/video{self._index}")
        if self._device is None and sys.platform.startswith("linux") and not node.exists():
            raise MediaError(
                f"no camera: {node} does not exist; connect one or give a file as the source"
            )
        capture = self._open()
        if not capture.isOpened():
            capture.release()
            raise MediaError(
                f"camera {self._index} cannot be opened: it is in use, or this user may not read it"
            )
        capture.set(self._cv2.CAP_PROP_BUFFERSIZE, 1)  # where the driver knows it: the newest
        return capture

    def _chunks(self, handle: Any) -> Iterator[Chunk]:
        aspect = self._pixel_aspect(handle)
        while True:
            good, bgr = handle.read()
            now = time.monotonic()
            if not good:
                return
            taken_s = self._captured(handle, now)
            if self._start_s is None:
                self._start_s = taken_s
            show = partial(self._to_rgb, bgr, aspect)
            yield VideoChunk(taken_s - self._start_s, show, taken_s)

    def _captured(self, capture: Any, now: float) -> float:
        """V4L2 stamps pictures with the monotonic clock; else the moment of arrival."""
        stamp_s = float(capture.get(self._cv2.CAP_PROP_POS_MSEC)) / 1000
        return stamp_s if 0 <= now - stamp_s <= MAX_DRIVER_AGE_S else now

    def _pixel_aspect(self, capture: Any) -> Fraction:
        """Square where the driver says nothing, as most."""
        width, height = (
            capture.get(key) for key in (self._cv2.CAP_PROP_SAR_NUM, self._cv2.CAP_PROP_SAR_DEN)
        )
        stated = 0 < width < MAX_RATIO and 0 < height < MAX_RATIO  # a NaN is neither
        return believable_aspect(Fraction(width) / Fraction(height) if stated else None)

    def _to_rgb(self, bgr: Frame, aspect: Fraction) -> Frame:  # [H, W, 3]
        if aspect != SQUARE:
            size = shown_size(bgr.shape[1], bgr.shape[0], aspect)
            bgr = self._cv2.resize(bgr, size, interpolation=self._cv2.INTER_LINEAR)
        return np.ascontiguousarray(bgr[:, :, ::-1])

    def _release(self, handle: Any) -> None:
        handle.release()

    def _open(self) -> Any:
        """OpenCV writes what it tried to standard error; our one line says more."""
        logging = self._cv2.utils.logging
        level = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
        try:
            return self._cv2.VideoCapture(str(self._device) if self._device else self._index)
        finally:
            logging.setLogLevel(level)


def import_cv2(purpose: str) -> Any:
    with optional(f"for {purpose}"):
        import cv2
    return cv2
