# SPDX-License-Identifier: Apache-2.0
"""Forged pictures: a visible trace in the face, nothing elsewhere, and a record of it all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.faces import Face
from trainer.data import forgeries
from trainer.data.clips import Clip

LANDMARKS = np.array([[62.0, 48.0], [98.0, 48.0], [80.0, 76.0]])  # eyes and nose base
CENTRE = (slice(55, 75), slice(70, 90))  # of the face
MOUTH = (slice(82, 96), slice(72, 88))
EYES = (slice(40, 54), slice(58, 104))


def face_clip(seed: int = 0, tokens: int = 30, tint: int = 0) -> tuple[Clip, list[Face | None]]:
    """A smooth background with a textured head that nods by up to four pixels."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(40, 200, (80, 70, 3)).astype(np.float32)
    texture = cv2.GaussianBlur(texture, (0, 0), 1.5) + tint
    frames, faces = [], []
    for i in range(tokens):
        frame = np.full((140, 160, 3), 120, np.uint8)
        move = i % 5
        frame[30:110, 45 + move : 115 + move] = np.clip(texture, 0, 255)
        crop = np.zeros((64, 64, 3), np.uint8)
        landmarks = LANDMARKS + np.array([move, 0])
        frames.append(frame)
        faces.append(Face(0, crop, (50, 30, 110, 90), landmarks, 60.0, 1.0))
    return Clip(Path("x.mp4"), frames, np.zeros(tokens * 640, np.float32)), faces


def change(before: list[Any], after: list[Any]) -> Any:
    return np.abs(np.stack(after).astype(int) - np.stack(before)).max(-1)  # [T, H, W]


def self_blend(seed: int) -> tuple[Clip, list[Any], dict[str, Any]]:
    clip, faces = face_clip()
    out, params = forgeries.self_blend(clip, faces, np.random.default_rng(seed))
    return clip, out, params


def face_swap(seed: int) -> tuple[Clip, list[Any], dict[str, Any]]:
    clip, faces = face_clip()
    donor, donor_faces = face_clip(seed=1)
    rng = np.random.default_rng(seed)
    return clip, *forgeries.face_swap(clip, faces, donor, donor_faces, 0, rng)


def mouth_replay(seed: int) -> tuple[Clip, list[Any], dict[str, Any]]:
    clip, faces = face_clip()
    donor, donor_faces = face_clip(seed=1)
    rng = np.random.default_rng(seed)
    return clip, *forgeries.mouth_replay(clip, faces, donor, donor_faces, 7, rng)


@pytest.mark.parametrize("method", [self_blend, face_swap, mouth_replay])
class TestEveryMethod:
    @pytest.mark.parametrize("seed", range(4))
    def test_the_background_stays_as_it_is(self, method: Callable[..., Any], seed: int):
        clip, out, _ = method(seed)
        moved = change(clip.frames, out)
        assert moved[:, :, :25].max() == 0
        assert moved[:, :, 145:].max() == 0
        assert moved[:, :8].mean() < 1  # the soft edge of the largest mask ends here

    def test_one_seed_is_one_forgery(self, method: Callable[..., Any]):
        (_, first, a), (_, again, b), (_, other, c) = method(3), method(3), method(4)
        assert np.array_equal(first, again)
        assert a == b
        assert not np.array_equal(first, other)
        assert a != c


class TestSelfBlend:
    @pytest.mark.parametrize("seed", range(8))
    def test_the_trace_is_always_visible_in_its_region(self, seed: int):
        clip, out, params = self_blend(seed)
        where = MOUTH if params["region"] == "lower" else CENTRE
        moved = change(clip.frames, out)[(slice(None), *where)]
        assert moved.mean() > 3

    @pytest.mark.thorough
    def test_the_leading_disturbance_is_from_the_strong_half_of_its_range(self):
        seen = set()
        for seed in range(30):
            params = self_blend(seed)[2]
            seen.add(params["lead"])
            if params["lead"] == "colour":
                assert abs(params["light"]) >= 9
            elif params["lead"] == "place":
                assert min(abs(v) for v in params["shift"]) >= 0.035
            else:
                assert params["downscale"] >= 2.5
        assert seen == {"colour", "place", "resolution"}

    def test_tokens_without_a_face_stay_as_they_are(self):
        clip, faces = face_clip()
        missing = [None if 10 <= i < 20 else f for i, f in enumerate(faces)]
        out, _ = forgeries.self_blend(clip, missing, np.random.default_rng(0))
        assert all(np.array_equal(out[i], clip.frames[i]) for i in range(10, 20))
        assert not np.array_equal(out[5], clip.frames[5])


class TestFaceSwap:
    @pytest.mark.parametrize("seed", range(4))
    def test_the_face_is_the_donors_and_the_mouth_is_not(self, seed: int):
        clip, out, params = face_swap(seed)
        donor = face_clip(seed=1)[0]
        mine, theirs = (np.stack(c.frames)[:, 55:75, 70:90].ravel() for c in (clip, donor))
        swapped = np.stack(out)[:, 55:75, 70:90].ravel()
        assert np.corrcoef(swapped, theirs)[0, 1] > 0.6 * params["strength"]
        assert np.corrcoef(swapped, mine)[0, 1] < 0.5
        assert change(clip.frames, out)[(slice(None), *MOUTH)].mean() < 8

    def test_a_donor_of_another_colour_takes_on_the_faces_own(self):
        clip, faces = face_clip()
        donor, donor_faces = face_clip(seed=1, tint=50)
        out, _ = forgeries.face_swap(clip, faces, donor, donor_faces, 0, np.random.default_rng(0))
        mine, swapped = np.stack(clip.frames)[:, 50:78, 66:94], np.stack(out)[:, 50:78, 66:94]
        assert abs(mine.mean() - swapped.mean()) < 15


class TestMouthReplay:
    @pytest.mark.parametrize("seed", range(4))
    def test_the_mouth_changes_and_the_eyes_do_not(self, seed: int):
        clip, out, params = mouth_replay(seed)
        moved = change(clip.frames, out)
        assert moved[(slice(None), *MOUTH)].mean() > 5
        assert moved[(slice(None), *EYES)].max() <= 1
        assert params["offset_tokens"] == 7

    def test_another_moment_of_a_still_clip_is_the_clip_itself(self):
        clip, faces = face_clip()
        clip.frames = [clip.frames[0]] * len(clip.frames)
        still = [faces[0]] * len(faces)
        rng = np.random.default_rng(1)
        out, _ = forgeries.mouth_replay(clip, still, clip, still, 11, rng)
        assert all(np.array_equal(frame, out[0]) for frame in out)


def test_a_deformed_oval_keeps_its_centre_and_loses_its_symmetry():
    face = face_clip()[1][0]
    assert face is not None
    plain = forgeries.oval((140, 160), face, forgeries.MOUTH, 0.0)
    bent = forgeries.oval((140, 160), face, forgeries.MOUTH, 0.0, [0.2] + [0.0] * 7)
    assert plain[88, 80] == bent[88, 80] == 1
    assert plain.sum() > 100
    assert np.abs(plain - bent).sum() > 0.05 * plain.sum()


def test_wander_is_slow_and_has_the_size_asked_for():
    noise = forgeries._wander(20_000, 1, 2.0, np.random.default_rng(0))[:, 0]
    assert noise.std() == pytest.approx(2.0, rel=0.05)
    assert np.corrcoef(noise[1:], noise[:-1])[0, 1] == pytest.approx(0.9, abs=0.02)
