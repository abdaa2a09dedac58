# SPDX-License-Identifier: Apache-2.0
"""trainer.face.mesh: which landmarks mean what, and the geometry that is made of them."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.spec import FACE_POINTS
from tests.trainer.face_double import mesh
from trainer.face.mesh import (
    MIRRORED_POINTS,
    MOVING,
    RIGID,
    GeometryBasis,
    face_points,
    fit_basis,
    fit_template,
    head_turn_deg,
    mirrored,
    shapes,
    similarity_3d,
)


def rotation(rng: np.random.Generator, degrees: float) -> np.ndarray:
    axis = rng.standard_normal(3)
    x, y, z = axis / np.linalg.norm(axis)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def mirror_image(landmarks: np.ndarray) -> np.ndarray:
    """As the teacher would see the mirrored picture, in the landmarks that anything here reads."""
    out = np.zeros_like(landmarks)
    for group in (RIGID, MOVING):
        order = [group[i] for i in mirrored(group)]
        out[..., list(group), :] = landmarks[..., order, :] * [-1, 1, 1]
    return out


class TestLandmarks:
    def test_51_points_move_and_19_do_not(self):
        assert len(set(MOVING)) == 51
        assert len(set(RIGID)) == 19
        assert not set(MOVING) & set(RIGID)

    @pytest.mark.parametrize("group", [MOVING, RIGID])
    def test_the_mirror_image_of_the_mirror_image_is_the_point_itself(self, group):
        order = mirrored(group)
        assert sorted(order) == list(range(len(group)))
        assert [order[i] for i in order] == list(range(len(group)))

    def test_left_and_right_lie_mirrored_in_a_symmetric_face(self):
        face = mesh(0.1)
        for group in (MOVING, RIGID):
            rows = face[list(group)]
            np.testing.assert_allclose(rows[mirrored(group)] * [-1, 1, 1], rows, atol=1e-12)


class TestFacePoints:
    def test_their_order_is_that_of_the_spec_and_left_is_left_in_the_picture(self):
        points = dict(zip(FACE_POINTS, face_points(mesh(0.0)), strict=True))
        np.testing.assert_allclose(points["left_eye"], [-0.225, -0.1])
        np.testing.assert_allclose(points["right_eye"], [0.225, -0.1])
        np.testing.assert_allclose(points["nose"], [0.0, 0.15])
        np.testing.assert_allclose(points["left_mouth"], [-0.18, 0.3])
        across = [points[f"upper_lip_{i}"][0] for i in range(1, 10)]
        assert across == sorted(across)
        assert points["upper_lip_5"][1] < points["lower_lip_5"][1]

    def test_mirrored_they_stand_under_each_others_names(self):
        points = face_points(mesh(0.2))
        np.testing.assert_allclose(points[MIRRORED_POINTS] * [-1, 1], points, atol=1e-12)
        assert FACE_POINTS[MIRRORED_POINTS[FACE_POINTS.index("upper_lip_1")]] == "upper_lip_9"
        assert FACE_POINTS[MIRRORED_POINTS[FACE_POINTS.index("left_mouth")]] == "right_mouth"


@pytest.fixture(scope="module")
def basis() -> GeometryBasis:
    faces = [np.stack([mesh(o) for o in np.linspace(0, 0.3, 12)]) for _ in range(2)]
    return fit_basis(faces, [1.0, 3.0], 4, fit_template(np.concatenate(faces)))


class TestGeometry:
    def test_a_similarity_in_space_is_found_again(self):
        rng = np.random.default_rng(0)
        source = rng.standard_normal((1, 19, 3))
        turn = rotation(rng, 40)
        scale, found, shift = similarity_3d(source, 2.5 * source[0] @ turn.T + [1, 2, 3])
        assert scale[0] == pytest.approx(2.5)
        np.testing.assert_allclose(found[0], turn, atol=1e-12)
        np.testing.assert_allclose(shift[0], [1, 2, 3], atol=1e-12)

    def test_pose_size_and_place_of_the_head_change_nothing(self, basis):
        rng = np.random.default_rng(1)
        face = mesh(0.15)
        moved = np.stack(
            [40 * s * face @ rotation(rng, 35).T + rng.normal(0, 90, 3) for s in (0.5, 1, 3)]
        )
        expected = np.repeat(basis.of(face[None]), 3, axis=0)
        np.testing.assert_allclose(basis.of(moved), expected, atol=1e-4)

    def test_the_mouths_opening_is_the_first_component(self, basis):
        openings = np.linspace(0, 0.3, 7)
        first = basis.of(np.stack([mesh(o) for o in openings]))[:, 0]
        assert abs(np.corrcoef(first, openings)[0, 1]) > 0.9999

    def test_components_have_unit_spread_within_clips(self, basis):
        """Openings evenly from 0 to 0.3: what the basis was fitted on."""
        first = basis.of(np.stack([mesh(o) for o in np.linspace(0, 0.3, 12)]))[:, 0]
        assert first.std() == pytest.approx(1.0, rel=1e-3)

    def test_what_differs_between_clips_alone_is_no_movement(self):
        wide = mesh(0.0) * [1.0, 1.2, 1.0]
        faces = [np.stack([mesh(0.0)] * 3), np.stack([wide] * 3)]
        basis = fit_basis(faces, [1.0, 1.0], 2, fit_template(np.concatenate(faces)))
        np.testing.assert_allclose(basis.spread, 1e-6, rtol=1)  # the floor: nothing moved

    def test_a_component_that_hardly_moves_is_not_blown_up(self, basis):
        assert basis.spread[1:].min() >= 0.009 * basis.spread[0]

    def test_mirrored_it_is_that_of_the_mirror_image(self):
        rng = np.random.default_rng(2)
        faces = np.stack([mesh(o) + rng.normal(0, 0.02, (478, 3)) for o in np.linspace(0, 0.3, 9)])
        basis = fit_basis([faces], [1.0], 6, fit_template(faces))
        np.testing.assert_allclose(
            basis.of(faces, mirror=True), basis.of(mirror_image(faces)), atol=1e-4
        )
        assert np.abs(basis.of(faces, mirror=True) - basis.of(faces)).max() > 0.1

    def test_it_comes_back_from_json(self, basis):
        again = GeometryBasis.from_dict(basis.to_dict())
        faces = mesh(0.1)[None]
        np.testing.assert_allclose(again.of(faces), basis.of(faces), atol=1e-4)

    def test_shapes_are_in_units_of_the_rigid_points(self):
        template = fit_template(np.stack([mesh(0.0)] * 2))
        assert (template**2).sum(-1).mean() == pytest.approx(1.0)
        assert shapes(mesh(0.0)[None], template).shape == (1, 51, 3)


@pytest.mark.parametrize("turn", [-30.0, 0.0, 20.0])
def test_how_far_a_head_is_turned(turn):
    template = fit_template(np.stack([mesh(0.0)] * 2))
    assert head_turn_deg(mesh(0.1, turn)[None], template)[0] == pytest.approx(turn, abs=0.5)
