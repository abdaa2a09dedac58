# SPDX-License-Identifier: Apache-2.0
"""Pictures of a camera through OpenCV, on the monotonic clock.  It has no sound of its own."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import DependencyError, MediaError
from runtime.media import Chunk, Frame, MediaInfo, VideoChunk
from runtime.media.decoding import believable_fps
from runtime.media.live import Notice, Reconnecting, silent

MAX_DRIVER_AGE_S = 1.0  # a driver's timestamp older than this counts on another clock


def camera_index(source: str) -> int | None:
    """``camera`` -> 0, ``2`` -> 2, ``/dev/video2`` -> 2; None: not a camera."""
    if source == "camera":
        return 0
    found = re.fullmatch(r"(?:/dev/video)?(\d{1,3})", source)
    return int(found[1]) if found else None


class CameraSource(Reconnecting[Any]):
    """Iterates over a camera's pictures until it is closed; unplugged, it is opened again.

    Raises :class:`MediaError` where there is no such camera or it gives no picture at first, and
    :class:`DependencyError` without OpenCV.  ``device`` is for what stands in for a camera in a
    test: a file that OpenCV can read.
    """

    ended = "it stopped giving pictures (unplugged, or taken by another program)"

    def __init__(
        self, index: int = 0, *, notice: Notice = silent, device: Path | None = None
    ) -> None:
        super().__init__(f"camera:{index}", notice)
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
        while True:
            good, bgr = handle.read()
            now = time.monotonic()
            if not good:
                return
            taken_s = self._captured(handle, now)
            if self._start_s is None:
                self._start_s = taken_s
            yield VideoChunk(taken_s - self._start_s, partial(_to_rgb, bgr), taken_s)

    def _captured(self, capture: Any, now: float) -> float:
        """V4L2 stamps pictures with the monotonic clock; else the moment of arrival."""
        stamp_s = float(capture.get(self._cv2.CAP_PROP_POS_MSEC)) / 1000
        return stamp_s if 0 <= now - stamp_s <= MAX_DRIVER_AGE_S else now

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


def _to_rgb(bgr: Frame) -> Frame:  # [H, W, 3]
    return np.ascontiguousarray(bgr[:, :, ::-1])


def import_cv2(purpose: str) -> Any:
    try:
        import cv2
    except ImportError as err:
        raise DependencyError(f"OpenCV is needed for {purpose}: pip install '.[cpu]'") from err
    return cv2
