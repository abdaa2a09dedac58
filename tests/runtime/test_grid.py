# SPDX-License-Identifier: Apache-2.0
"""The 25 Hz grid: every token once, in order, with the picture a viewer would see."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.grid import GridItem, TimelineError, VideoGrid


def run(times: list[float], end_s: float | None = None) -> list[GridItem[float]]:
    grid: VideoGrid[float] = VideoGrid()
    items = [item for t in times for item in grid.push(t, t)]
    return items + grid.finish(end_s)


def test_25_fps_maps_one_to_one():
    times = [i / 25 for i in range(75)]
    items = run(times)
    assert [i.token for i in items] == list(range(75))
    assert [i.frame for i in items] == times
    assert all(i.fresh for i in items)


def test_12_fps_repeats_a_picture_and_says_so():
    items = run([i / 12.5 for i in range(10)])
    assert [i.fresh for i in items[:6]] == [True, False] * 3


def test_50_fps_uses_every_other_picture_and_counts_the_rest():
    grid: VideoGrid[int] = VideoGrid()
    items = [item for i in range(100) for item in grid.push(i / 50, i)]
    items += grid.finish()
    assert [i.token for i in items] == list(range(50))
    assert all(i.fresh for i in items)
    assert grid.skipped == 50


def test_a_gap_repeats_three_tokens_and_then_has_no_picture():
    items = run([0.0, 0.04, 0.40])
    frames = [i.frame for i in items]
    assert frames[:5] == [0.0, 0.04, 0.04, 0.04, 0.04]  # token 4 is 3 tokens after the picture
    assert frames[5:10] == [None] * 5
    assert frames[10] == 0.40


def test_a_late_start_has_tokens_without_a_picture():
    items = run([0.2, 0.24])
    assert [i.frame for i in items] == [None] * 5 + [0.2, 0.24]


def test_the_end_can_be_given():
    assert len(run([0.0, 0.04], end_s=1.0)) == 25


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.04, 0.0])
def test_a_bad_timestamp_is_refused_and_changes_nothing(bad: float):
    grid: VideoGrid[str] = VideoGrid()
    grid.push(0.0, "a")
    grid.push(0.04, "b")
    with pytest.raises(TimelineError):
        grid.push(bad, "bad")
    assert [i.frame for i in grid.push(0.08, "c")] == ["b"]


@given(st.lists(st.floats(0.001, 0.3), min_size=1, max_size=60))
def test_variable_rate_gives_every_token_once_with_the_last_picture_in_time(steps: list[float]):
    times = [0.0]
    for step in steps:
        times.append(times[-1] + step)
    items = run(times)
    assert [i.token for i in items] == list(range(len(items)))
    assert abs(len(items) / 25 - (times[-1] + 0.04)) <= 0.0401
    for item in items:
        shown = [t for t in times if t <= item.token / 25 + 0.02 + 1e-9]
        if shown[-1] < item.token / 25 - 0.12 - 1e-6:
            assert item.frame is None
        elif item.frame is not None:
            assert math.isclose(item.frame, shown[-1], abs_tol=1e-6)
