# SPDX-License-Identifier: Apache-2.0
"""Pictures of a camera through OpenCV, on the monotonic clock.  It has no sound."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from runtime.errors import DependencyError, MediaError
from runtime.media import AudioChunk, Frame, MediaInfo, VideoChunk

MAX_FPS = 1000.0


def camera_index(source: str) -> int | None:
    """``camera`` -> 0, ``2`` -> 2, ``/dev/video2`` -> 2; None: not a camera."""
    if source == "camera":
        return 0
    found = re.fullmatch(r"(?:/dev/video)?(\d{1,3})", source)
    return int(found[1]) if found else None


class CameraSource:
    """Iterates over a camera's pictures until it stops giving any.

    Raises :class:`MediaError` where there is no such camera or it gives no picture, and
    :class:`DependencyError` without OpenCV.
    """

    live = True

    def __init__(self, index: int = 0) -> None:
        self._cv2 = _import_cv2()
        self._index = index
        self.damaged = 0
        self.warnings: list[str] = []
        device = Path(f"/dev/video{index}")
        if sys.platform.startswith("linux") and not device.exists():
            raise MediaError(
                f"no camera: {device} does not exist; connect one or give a file as the source"
            )
        self._capture: Any = self._open()
        if not self._capture.isOpened():
            self.close()
            raise MediaError(
                f"camera {index} cannot be opened: it is in use, or this user may not read it"
            )
        fps = float(self._capture.get(self._cv2.CAP_PROP_FPS))
        self.info = MediaInfo(
            name=f"camera:{index}",
            has_video=True,
            has_audio=False,
            width=int(self._capture.get(self._cv2.CAP_PROP_FRAME_WIDTH)),
            height=int(self._capture.get(self._cv2.CAP_PROP_FRAME_HEIGHT)),
            fps=fps if 0 < fps <= MAX_FPS else None,
            duration_s=None,
        )

    def __iter__(self) -> Iterator[VideoChunk | AudioChunk]:
        start = None
        while True:
            good, bgr = self._capture.read()
            now = time.monotonic()
            if not good:
                if start is None:
                    raise MediaError(f"camera {self._index} gives no picture; is it in use?")
                self.warnings.append("the camera stopped giving pictures")
                return
            start = now if start is None else start
            yield VideoChunk(now - start, partial(_to_rgb, bgr))

    def __enter__(self) -> CameraSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._capture.release()

    def _open(self) -> Any:
        """OpenCV writes what it tried to standard error; our one line says more."""
        logging = self._cv2.utils.logging
        level = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
        try:
            return self._cv2.VideoCapture(self._index)
        finally:
            logging.setLogLevel(level)


def _to_rgb(bgr: Frame) -> Frame:  # [H, W, 3]
    return np.ascontiguousarray(bgr[:, :, ::-1])


def _import_cv2() -> Any:
    try:
        import cv2
    except ImportError as err:
        raise DependencyError("OpenCV is needed for a camera: pip install '.[cpu]'") from err
    return cv2
