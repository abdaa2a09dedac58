# SPDX-License-Identifier: Apache-2.0
"""trainer.face.throw: crops thrown about, their points with them."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.faces.align import similarity, template
from runtime.spec import FACE_POINTS, FaceSpec
from trainer.face.crops import margin_spec
from trainer.face.mesh import MIRRORED_POINTS
from trainer.face.throw import (
    MAX_SCALE,
    MAX_SHIFT,
    MAX_TURN_DEG,
    Throw,
    cut,
    disturb,
    draw_nothing,
    draw_throw,
    move_points,
)

SPEC = FaceSpec()
SIDE = SPEC.crop_px
MARGIN = margin_spec(SPEC)
NOMINAL = similarity(template(MARGIN), template(SPEC))


@pytest.mark.parametrize("seed", range(6))
def test_a_dot_lands_where_its_point_says(seed):
    rng = np.random.default_rng(seed)
    throw = draw_throw(rng)
    matrix = throw.matrix(NOMINAL, SIDE)
    points = np.tile(np.array([[70.0, 75.0]]), (len(FACE_POINTS), 1))
    stored = np.zeros((MARGIN.crop_px, MARGIN.crop_px, 3), np.uint8)
    stored[73:78, 68:73] = 255  # around x 70, y 75
    light = cut(stored, matrix, SIDE)[..., 0].astype(float)
    y, x = np.indices(light.shape)
    found = [(light * x).sum() / light.sum(), (light * y).sum() / light.sum()]
    moved = move_points(points, matrix, mirror=throw.mirror)
    np.testing.assert_allclose(moved[0], found, atol=0.25)


def test_nothing_thrown_is_the_crop_that_the_runtime_cuts():
    np.testing.assert_allclose(Throw().matrix(NOMINAL, SIDE), NOMINAL, atol=1e-9)
    eyes_and_nose = template(MARGIN) @ NOMINAL[:, :2].T + NOMINAL[:, 2]
    np.testing.assert_allclose(eyes_and_nose, template(SPEC), atol=1e-9)


def test_in_the_mirror_left_is_still_left():
    points = np.zeros((len(FACE_POINTS), 2))
    points[:, 0] = np.arange(len(FACE_POINTS))
    matrix = np.array([[-1.0, 0, SIDE - 1], [0, 1, 0]])
    moved = move_points(points, matrix, mirror=True)
    np.testing.assert_allclose(moved[:, 0], SIDE - 1 - points[MIRRORED_POINTS, 0])


def test_throws_reach_their_limits_and_no_further():
    rng = np.random.default_rng(0)
    throws = [draw_throw(rng) for _ in range(3000)]
    for values, limit in (
        ([t.shift[0] for t in throws], MAX_SHIFT),
        ([np.log(t.scale) for t in throws], np.log1p(MAX_SCALE)),
        ([t.turn_deg for t in throws], MAX_TURN_DEG),
    ):
        assert 0.85 * limit < np.abs(values).max() <= limit
    assert 0.45 < np.mean([t.mirror for t in throws]) < 0.55


def test_a_thrown_crop_lies_inside_what_is_stored():
    """But for the far corners of a crop that is shifted, shrunk and turned all at once."""
    corners = np.array([[0.0, 0], [SIDE - 1, 0], [0, SIDE - 1], [SIDE - 1, SIDE - 1]])
    rng = np.random.default_rng(1)
    outside = []
    for _ in range(500):
        matrix = np.vstack([draw_throw(rng).matrix(NOMINAL, SIDE), [0, 0, 1]])
        back = np.c_[corners, np.ones(4)] @ np.linalg.inv(matrix).T
        outside.append(((back[:, :2] < 0) | (back[:, :2] > MARGIN.crop_px - 1)).any())
    assert np.mean(outside) < 0.1


def test_what_disturbs_keeps_shape_and_kind_and_depends_on_the_draw_alone():
    crop = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    before = crop.copy()
    for seed in range(60):
        out = disturb(crop, np.random.default_rng(seed))
        assert out.shape == crop.shape
        assert out.dtype == np.uint8
        np.testing.assert_array_equal(out, disturb(crop, np.random.default_rng(seed)))
    np.testing.assert_array_equal(crop, before)


def test_made_crops_without_a_face_are_never_twice_the_same():
    rng = np.random.default_rng(0)
    made = [draw_nothing(SIDE, rng) for _ in range(20)]
    assert all(x.shape == (SIDE, SIDE, 3) for x in made)
    assert len({x.tobytes() for x in made}) == 20
