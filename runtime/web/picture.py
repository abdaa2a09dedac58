# SPDX-License-Identifier: Apache-2.0
"""One picture for the page: JPEG, with faces hidden where that was asked for.

Boxes and labels are drawn in the browser, from the numbers beside the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime.flow.sink import Picture
from runtime.media import Frame
from runtime.optional import optional

MAX_WIDTH_PX = 640
JPEG_QUALITY = 80
HIDDEN_FACE_BLOCKS = 7  # across a hidden face: too few for a likeness, enough to see it move
HIDDEN_MARGIN = 0.35  # of the box's size on each side: hair, ears and chin lie outside the box
Region = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels


def to_jpeg(picture: Picture, *, blur: bool = False) -> bytes:
    """At most :data:`MAX_WIDTH_PX` wide.

    ``blur`` leaves a few coarse blocks of each face that is followed.  Where none is (yet), there
    may be one all the same, so the whole picture becomes as coarse.
    """
    cv2 = _import_cv2()
    frame = picture.frame
    height, width = frame.shape[:2]
    if width > MAX_WIDTH_PX:
        size = (MAX_WIDTH_PX, max(1, round(height * MAX_WIDTH_PX / width)))
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    if blur:
        scale = frame.shape[1] / width
        regions = hidden_regions(picture, scale, frame.shape[:2])
        frame = hide(frame, regions) if regions else coarse(frame, frame.shape[1] // 24)
    good, data = cv2.imencode(
        ".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    assert good, frame.shape
    return bytes(data)


def hidden_regions(picture: Picture, scale: float, size: tuple[int, ...]) -> list[Region]:
    """The faces' boxes with their margins, in a picture ``scale`` times as large; size: (H, W)."""
    regions = []
    for face in picture.faces:
        x0, y0, x1, y1 = (v * scale for v in face.box)
        dx, dy = HIDDEN_MARGIN * (x1 - x0), HIDDEN_MARGIN * (y1 - y0)
        left, top = max(0, int(x0 - dx)), max(0, int(y0 - dy))
        right, bottom = min(size[1], int(x1 + dx) + 1), min(size[0], int(y1 + dy) + 1)
        if right > left and bottom > top:
            regions.append((left, top, right, bottom))
    return regions


def hide(frame: Frame, regions: Sequence[Region]) -> Frame:
    """A copy of which the regions are coarse; frame: [H, W, 3]."""
    out = frame.copy()
    for left, top, right, bottom in regions:
        block_px = max(right - left, bottom - top) // HIDDEN_FACE_BLOCKS
        out[top:bottom, left:right] = coarse(out[top:bottom, left:right], block_px)
    return out


def coarse(frame: Frame, block_px: int) -> Frame:  # [H, W, 3]
    """Blocks of one colour each, the mean of what they replace."""
    cv2 = _import_cv2()
    height, width = frame.shape[:2]
    block_px = max(1, block_px)
    few = (max(1, -(-width // block_px)), max(1, -(-height // block_px)))
    small = cv2.resize(frame, few, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


def _import_cv2() -> Any:
    with optional("for the page", extra="cpu,web"):
        import cv2
    return cv2
