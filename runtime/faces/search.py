# SPDX-License-Identifier: Apache-2.0
"""From the detector's faces to those that a follower begins with."""

from __future__ import annotations

import functools
import threading

import numpy as np

from runtime.faces.align import UInt8
from runtime.faces.detector import POINTS, Detection, Detector
from runtime.faces.follower import Find, Found

# The detector knows the nose's tip, a follower its base, which stands so far on the way to the
# mouth; the encoder's own points mend the rest.
NOSE_BASE = 0.35
_RIGHT, _LEFT, _NOSE, _MOUTH = (POINTS.index(n) for n in ("right_eye", "left_eye", "nose", "mouth"))


def found(detection: Detection) -> Found:
    """The person's right eye is the left one of the picture."""
    points = detection.points
    base = points[_NOSE] + NOSE_BASE * (points[_MOUTH] - points[_NOSE])
    landmarks = np.stack([points[_RIGHT], points[_LEFT], base])  # [3, 2]
    return Found(detection.box, detection.score, landmarks)


@functools.cache
def shared_search() -> Find:
    """One detector for all streams of a process, which keeps nothing from picture to picture."""
    detector, detecting = Detector(), threading.Lock()

    def find(frame: UInt8) -> list[Found]:
        with detecting:
            return [found(detection) for detection in detector.find(frame)]

    return find
