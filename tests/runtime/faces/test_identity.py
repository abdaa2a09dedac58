# SPDX-License-Identifier: Apache-2.0
"""Which face is which: assignment, motion, looks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from runtime.faces.identity import (
    COAST_TOKENS,
    MAX_VIEWS,
    OTHER_LOOKS,
    Looks,
    Motion,
    apart,
    assign,
    colours_of,
    iou,
)


def crop(*colour: int) -> np.ndarray[Any, Any]:
    return np.full((64, 64, 3), colour, np.uint8)


def half(a: tuple[int, int, int], b: tuple[int, int, int], share: float) -> np.ndarray[Any, Any]:
    out = crop(*a)
    out[round(64 * share) :] = b
    return out


def colours(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import cv2

    return colours_of(image, cv2)


INF = math.inf


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ([], []),
        ([[]], [None]),
        ([[1.0, 2.0]], [0]),
        ([[0.1, 0.2], [0.15, 0.9]], [1, 0]),  # together cheaper than the cheapest pair alone
        ([[INF, INF], [1.0, INF]], [None, 0]),
        ([[0.1], [0.2]], [0, None]),
        ([[0.1, INF], [0.2, 50.0]], [0, 1]),  # two that come back are better than one
    ],
)
def test_assign(costs: list[list[float]], expected: list[int | None]) -> None:
    assert assign(costs) == expected


def test_assign_agrees_with_trying_every_permutation() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        costs = rng.random((3, 4)).tolist()
        best = min(
            itertools.permutations(range(4), 3),
            key=lambda choice: sum(costs[i][c] for i, c in enumerate(choice)),
        )
        assert assign(costs) == list(best)


def test_motion_goes_on_for_a_while_and_then_stays() -> None:
    motion = Motion((0, 0, 100, 100), 0)
    for t in range(1, 41):
        motion.moved_to((4 * t, 0, 4 * t + 100, 100), t)
    assert motion.velocity[0] == pytest.approx(4, abs=0.01)
    assert motion.predicted(45)[0] == pytest.approx(180, abs=0.1)
    assert motion.predicted(400) == motion.predicted(40 + COAST_TOKENS)


def test_a_lost_face_comes_back_near_its_prediction_at_its_size() -> None:
    motion = Motion((100, 100, 200, 200), 10)
    assert motion.reaches((150, 100, 250, 200), 10)
    assert not motion.reaches((250, 100, 350, 200), 10)
    assert motion.reaches((250, 100, 350, 200), 35)  # with time it can be farther
    assert not motion.reaches((600, 100, 700, 200), 85)
    assert not motion.reaches((100, 100, 300, 300), 10)  # twice the size is somebody else


def test_looks_remember_several_sides_of_a_face_and_no_more_than_a_few() -> None:
    skin, wall = (200, 150, 120), (20, 60, 90)
    looks = Looks(colours(half(skin, wall, 1.0)))
    for share in np.linspace(1.0, 0.4, 40):  # turns, a little with each picture
        seen = colours(half(skin, wall, float(share)))
        looks.learn(seen)
    assert looks.distance(colours(half(skin, wall, 0.4))) < OTHER_LOOKS
    assert looks.distance(colours(half(skin, wall, 0.55))) < OTHER_LOOKS
    assert looks.distance(colours(half(skin, wall, 0.0))) > OTHER_LOOKS
    assert len(looks._views) <= MAX_VIEWS


def test_distance_of_looks_is_none_for_the_same_and_one_for_nothing_in_common() -> None:
    red, blue = colours(crop(250, 0, 0)), colours(crop(0, 0, 250))
    assert Looks(red).distance(red) == pytest.approx(0, abs=1e-6)
    assert Looks(red).distance(blue) == pytest.approx(1, abs=1e-6)


def test_boxes() -> None:
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0
    assert apart((0, 0, 10, 10), (3, 4, 13, 14)) == 5
