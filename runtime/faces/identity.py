# SPDX-License-Identifier: Apache-2.0
"""Which face is which: prediction by motion, a cheap look at appearance, and the assignment.

A face that is lost (turned away, behind something, behind somebody) keeps its id for
:data:`REACQUIRE_TOKENS`.  A face that is found gets the id of a lost one only where that one can be
by now, at about its size, and when it looks like it.  What is remembered of the looks are colour
histograms of a few crops, as long as the id may come back: enough to tell the people of one picture
apart from one second to the next.  They are no identity and leave the process in no form.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the frame

REACQUIRE_TOKENS = 75  # 3 s at 25 Hz: how long a lost face may come back under its id
# Distance of two crops' colours from which they show different people.  Crops of one person, by
# each of 7 GRID speakers in one studio, differ by at most 0.011, those of two by at least 0.032;
# from one picture to the next a face that turns changes by at most 0.013 (the sample clip).
OTHER_LOOKS = 0.03
# Correlation of two aligned crops from which they show one face, whatever the light has done to its
# colours: of one GRID speaker, 3 tokens apart, at least 0.895; of two speakers at most 0.859.
SAME_STRUCTURE = 0.88
STRUCTURE_PX = 16
STRUCTURE_TOKENS = 3  # how old the crop may be that a new one is compared with
NEW_VIEW = 0.015  # a crop this far from what is remembered is remembered, too: another side
MAX_VIEWS = 6
RECENT_RATE = 0.5  # weight of a new crop in the running mean of the newest ones
BINS = 6  # of each of red, green and blue
SAME_SIZE = 1.6  # ratio of widths within which a face can be the same
GATE_WIDTHS = 0.6  # how far from its prediction a lost face can be, in its widths, at once ...
GATE_WIDTHS_PER_TOKEN = 0.05  # ... and how much farther with each token
MAX_GATE_WIDTHS = 3.0
VELOCITY_RATE = 0.3  # weight of a new step in the running mean of the motion
COAST_TOKENS = 15  # for so long a lost face is taken to move on as it did
SAME_FACE_IOU = 0.3  # what is found, and a face that is followed
DUPLICATE_IOU = 0.5  # two faces that overlap more are one, followed twice
OVERLAP_IOU = 0.05  # from here a crop may show both faces, and what they look like is not learnt
LOST_LOOK_TOKENS = 5  # between two looks for a lost face


class Looks:
    """What a face has looked like: a running mean of the newest crops, and a few views before."""

    def __init__(self, colours: Float32) -> None:
        self._recent = colours
        self._views: deque[Float32] = deque([colours], maxlen=MAX_VIEWS)

    def distance(self, colours: Float32) -> float:
        """Of a crop from the nearest view: 0 for an equal one, 1 where no colour is shared.

        One minus Bhattacharyya's coefficient.
        """
        return 1 - max(float(view @ colours) for view in (self._recent, *self._views))

    def learn(self, colours: Float32) -> None:
        """A crop that is known to be this face's."""
        if self.distance(colours) > NEW_VIEW:
            self._views.append(colours)
        mean = self._recent + RECENT_RATE * (colours - self._recent)
        self._recent = (mean / np.linalg.norm(mean)).astype(np.float32)


def colours_of(crop: UInt8, cv2: Any) -> Float32:
    """An aligned crop [S, S, 3] -> square roots of the shares of its colours, unit norm [216]."""
    counts = cv2.calcHist([crop], [0, 1, 2], None, [BINS] * 3, [0, 256] * 3).ravel()
    shares: Float32 = np.sqrt(counts / counts.sum(), dtype=np.float32)
    return shares


def structure_of(crop: UInt8, cv2: Any) -> Float32:
    """An aligned crop [S, S, 3] -> its small grey picture, mean 0 and norm 1: [256].

    A factor and a constant on the brightness, as an automatic exposure makes them, change nothing.
    """
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    size = (STRUCTURE_PX, STRUCTURE_PX)
    small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    small -= small.mean()
    structure: Float32 = small / max(float(np.linalg.norm(small)), 1e-6)
    return structure


@dataclass
class Motion:
    """Where a face is and where it goes: centre, width, and centre per token."""

    box: Box
    token: int
    velocity: tuple[float, float] = (0.0, 0.0)  # pixels per token

    def moved_to(self, box: Box, token: int) -> None:
        """The face is at ``box``."""
        tokens = token - self.token
        if tokens > 0:
            (x0, y0), (x1, y1) = centre(self.box), centre(box)
            step = ((x1 - x0) / tokens, (y1 - y0) / tokens)
            self.velocity = (
                self.velocity[0] + VELOCITY_RATE * (step[0] - self.velocity[0]),
                self.velocity[1] + VELOCITY_RATE * (step[1] - self.velocity[1]),
            )
        self.box, self.token = box, token

    def predicted(self, token: int) -> Box:
        """Its box at ``token``, moving on for at most :data:`COAST_TOKENS`."""
        tokens = min(max(0, token - self.token), COAST_TOKENS)
        dx, dy = self.velocity[0] * tokens, self.velocity[1] * tokens
        return self.box[0] + dx, self.box[1] + dy, self.box[2] + dx, self.box[3] + dy

    def gate_px(self, token: int) -> float:
        """How far from the prediction it can be."""
        widths = GATE_WIDTHS + GATE_WIDTHS_PER_TOKEN * max(0, token - self.token)
        return min(widths, MAX_GATE_WIDTHS) * width(self.box)

    def reaches(self, box: Box, token: int) -> bool:
        """Can it be at ``box`` by now, by place and size?"""
        ratio = width(box) / max(width(self.box), 1e-6)
        if not 1 / SAME_SIZE <= ratio <= SAME_SIZE:
            return False
        return apart(self.predicted(token), box) <= self.gate_px(token)


def shows_another(
    looks: Looks, before: UInt8 | None, crop: UInt8, colours: Float32, tokens: int, cv2: Any
) -> bool:
    """Does a crop where a face is followed show another one?  Other light alone does not.

    before : the face's crop of so many ``tokens`` ago, both [S, S, 3]; colours : of ``crop``
    """
    if looks.distance(colours) <= OTHER_LOOKS:
        return False
    if before is None or tokens > STRUCTURE_TOKENS:
        return True
    return float(structure_of(crop, cv2) @ structure_of(before, cv2)) < SAME_STRUCTURE


def recognised(
    found: Sequence[tuple[Box, Float32]], lost: Sequence[tuple[Looks, Motion]], token: int
) -> list[int | None]:
    """Of each face that is found (its box and colours) which lost one it is, or None."""

    def cost(box: Box, colours: Float32, looks: Looks, motion: Motion) -> float:
        distance = looks.distance(colours)
        possible = distance <= OTHER_LOOKS and motion.reaches(box, token)
        return distance if possible else math.inf

    return assign([[cost(*item, *known) for known in lost] for item in found])


def assign(costs: Sequence[Sequence[float]]) -> list[int | None]:
    """For each row a column of its own, or None: as many as possible, and then the cheapest way.

    ``costs`` [rows][columns], inf where a pair cannot be.  Every way is tried: there are a handful.
    """

    def ways(row: int, taken: frozenset[int]) -> Iterator[tuple[int, float, list[int | None]]]:
        if row == len(costs):
            yield 0, 0.0, []
            return
        for left, cost, rest in ways(row + 1, taken):
            yield left + 1, cost, [None, *rest]
        for column, price in enumerate(costs[row]):
            if column not in taken and math.isfinite(price):
                for left, cost, rest in ways(row + 1, taken | {column}):
                    yield left, cost + price, [column, *rest]

    return min(ways(0, frozenset()), key=lambda way: way[:2])[2]


def centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def width(box: Box) -> float:
    return box[2] - box[0]


def apart(a: Box, b: Box) -> float:
    """Distance of the centres."""
    (ax, ay), (bx, by) = centre(a), centre(b)
    return math.hypot(ax - bx, ay - by)


def iou(a: Box, b: Box) -> float:
    """Intersection over union."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    both = wide * high
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return both / (area - both)
