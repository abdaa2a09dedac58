# SPDX-License-Identifier: Apache-2.0
"""Faces in a picture: found, followed, told apart, aligned to crops."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.faces.align import Float64, UInt8
from runtime.faces.identity import Box


@dataclass(frozen=True)
class Face:
    """One face in one picture."""

    track_id: int
    crop: UInt8  # [crop_px, crop_px, 3] RGB, aligned
    box: Box
    landmarks: Float64  # [3, 2] pixels of the frame: left and right eye as seen, base of the nose
    width_px: float  # of the box, in source pixels
    confidence: float  # margin of the detection that last confirmed the face, 0 and up
    turn_deg: float = 0.0  # of the head to a side, 0 and up; approximate
