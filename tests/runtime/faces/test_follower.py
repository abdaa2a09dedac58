# SPDX-License-Identifier: Apache-2.0
"""Faces followed by the points of the last crop, on drawn faces whose places are known exactly.

The encoder is a mock that reads the drawn points out of the crop, as a perfect one would; the
detector another, which gives the drawn places with an error, or nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="needs OpenCV")

from runtime.backends.base import FaceOutput  # noqa: E402
from runtime.faces.align import align, template  # noqa: E402
from runtime.faces.follower import FaceFollower, FollowedFace, Found, box_of  # noqa: E402
from runtime.faces.identity import REACQUIRE_TOKENS  # noqa: E402
from runtime.spec import FACE_POINTS, FaceSpec  # noqa: E402

SPEC = FaceSpec(stage="encoder")
assert FACE_POINTS[:3] == ("left_eye", "right_eye", "nose")
SKIN = {"anna": (200, 150, 120), "ben": (120, 160, 90), "cleo": (90, 90, 170)}
MARK = {"anna": (0.0, -0.95), "ben": (-0.75, 0.35), "cleo": (0.75, 0.35)}  # in eye distances
EYE_PX = 40.0  # between the eyes
INK = ((255, 0, 0), (0, 255, 0), (0, 0, 255))  # left eye, right eye, nose
SHAPE = (360, 640, 3)


@dataclass(frozen=True)
class Drawn:
    who: str
    x: float
    y: float
    scale: float = 1.0
    roll_deg: float = 0.0

    @property
    def landmarks(self) -> np.ndarray:  # [3, 2]
        unit = np.array([[-0.5, -0.35], [0.5, -0.35], [0.0, 0.42]]) * EYE_PX * self.scale
        a = math.radians(self.roll_deg)
        turn = np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
        return unit @ turn.T + (self.x, self.y)


def draw(faces: Sequence[Drawn], shade: int = 60) -> np.ndarray:
    picture = np.full(SHAPE, shade, np.uint8)
    for face in faces:
        size = EYE_PX * face.scale
        middle = (round(face.x), round(face.y))
        cv2.circle(picture, middle, round(1.6 * size), SKIN[face.who], -1)
        mark = tuple(round(c + size * m) for c, m in zip(middle, MARK[face.who], strict=True))
        cv2.circle(picture, mark, round(0.4 * size), (20, 20, 20), -1)
        for (x, y), ink in zip(face.landmarks, INK, strict=True):
            cv2.circle(picture, (round(x), round(y)), max(3, round(0.14 * size)), ink, -1)
    return picture


def encoder(crops: np.ndarray) -> FaceOutput:
    """A mock: each point where its ink is, of several the one nearest to where it should be; no
    face where ink of one colour is missing."""
    n = len(crops)
    points = np.zeros((n, len(FACE_POINTS), 2), np.float32)
    presence = np.zeros(n, np.float32)
    for i, crop in enumerate(crops.astype(int)):
        found = 0
        for channel, expected in enumerate(template(SPEC)):
            others = np.delete(crop, channel, axis=2).max(2)
            ink = ((crop[..., channel] > 180) & (others < 80)).astype(np.uint8)
            count, _, _, spots = cv2.connectedComponentsWithStats(ink)
            if count > 1:  # 0 is what is no ink
                spot = min(spots[1:], key=lambda at: float(np.linalg.norm(at - expected)))
                points[i, channel] = spot
                found += 1
        presence[i] = found == len(INK)
    visual = crops.mean((1, 2)).astype(np.float32)
    return FaceOutput(visual, visual[:, :2], points, presence)


@dataclass
class Scene:
    """A follower with its doubles: what is shown, what the detector may see, what was asked."""

    faces: list[Drawn] = field(default_factory=list)
    blind: bool = False  # the detector finds nobody
    error_px: float = 0.0  # of the detector
    searches: int = 0
    calls: list[int] = field(default_factory=list)  # crops in each
    token: int = -1
    spec: FaceSpec = SPEC

    def __post_init__(self) -> None:
        self.follower = FaceFollower(self.spec, self.find)

    def find(self, frame: np.ndarray) -> list[Found]:
        self.searches += 1
        found = []
        for n, face in enumerate([] if self.blind else self.faces):
            at = face.landmarks + self.error_px * (-1) ** n
            found.append(Found(box_of(at), 0.9 - 0.1 * n, at))
        return found

    def show(self, *faces: Drawn, picture: np.ndarray | None = None) -> list[FollowedFace]:
        self.token += 1
        self.faces = list(faces)
        steps = self.follower.update_steps(draw(faces) if picture is None else picture, self.token)
        try:
            crops = next(steps)
            while True:
                self.calls.append(len(crops))
                crops = steps.send(encoder(crops))
        except StopIteration as end:
            return end.value


def error_px(face: FollowedFace, drawn: Drawn) -> float:
    return float(np.abs(face.landmarks - drawn.landmarks).max())


# One face


def test_a_face_is_found_and_its_crop_lies_on_the_template() -> None:
    scene, drawn = Scene(), Drawn("anna", 300, 180)
    (face,) = scene.show(drawn)
    assert face.track_id == 0
    assert error_px(face, drawn) < 1.0
    np.testing.assert_array_equal(face.crop, align(draw([drawn]), drawn.landmarks, SPEC))
    seen = encoder(face.crop[None]).points[0]
    np.testing.assert_allclose(seen[[0, 1, 2]], template(SPEC), atol=1.0)
    np.testing.assert_array_equal(face.visual, encoder(face.crop[None]).visual[0])
    assert face.width_px == pytest.approx(EYE_PX / 0.5255, rel=0.05)


@pytest.mark.parametrize("error", [4.0, 10.0])
def test_what_a_rough_detection_misses_is_cut_again_in_the_same_picture(error: float) -> None:
    scene, drawn = Scene(error_px=error), Drawn("anna", 300, 180)
    (face,) = scene.show(drawn)
    assert error_px(face, drawn) < 1.5
    assert scene.calls == ([1, 1] if error > 5 else [1])


@pytest.mark.parametrize("speed", [1, 4, 8])
def test_a_face_that_moves_is_followed_without_the_detector(speed: int) -> None:
    scene = Scene()
    for i in range(30):
        drawn = Drawn("anna", 150 + speed * i, 180 + 0.5 * speed * i)
        (face,) = scene.show(drawn)
        scene.blind = True
        assert face.track_id == 0
        assert error_px(face, drawn) < 0.35 * EYE_PX
    assert error_px(face, drawn) < 4  # the speed is known by now
    assert scene.searches == 1


def test_a_face_that_comes_nearer_and_rolls_is_followed() -> None:
    scene = Scene()
    for i in range(60):
        drawn = Drawn("anna", 320, 180, 0.6 + 0.02 * i, 30 * math.sin(i / 12))
        (face,) = scene.show(drawn)
        scene.blind = True
        assert error_px(face, drawn) < 0.2 * EYE_PX * drawn.scale
    assert face.width_px > 2.5 * 0.6 * EYE_PX / 0.5255


def test_nobody_is_looked_for_rarely_and_a_call_has_no_crops() -> None:
    scene = Scene()
    for _ in range(26):
        assert scene.show() == []
    assert scene.searches == 1 + 25 // SPEC.search_every_tokens
    assert scene.calls == []


def test_while_a_face_is_followed_the_detector_looks_seldom() -> None:
    scene = Scene()
    for _ in range(SPEC.rescan_every_tokens * 2 + 1):
        scene.show(Drawn("anna", 300, 180))
    assert scene.searches == 3


def test_a_detection_that_is_no_face_is_dropped_at_once() -> None:
    scene = Scene()
    scene.faces = [Drawn("anna", 300, 180)]
    scene.token += 1
    steps = scene.follower.update_steps(np.full(SHAPE, 60, np.uint8), scene.token)
    crops = next(steps)
    with pytest.raises(StopIteration) as end:
        steps.send(encoder(crops))
    assert end.value.value == []
    scene.blind = True
    assert scene.show() == []
    assert scene.calls == []


# Lost and back


def gone_for(tokens: int) -> tuple[Scene, list[FollowedFace]]:
    scene = Scene()
    for _ in range(10):
        scene.show(Drawn("anna", 300, 180))
    for _ in range(tokens):
        assert scene.show() == []
    for _ in range(6):
        back = scene.show(Drawn("anna", 310, 182))
    return scene, back


@pytest.mark.parametrize("tokens", [1, 2, 5, 40, REACQUIRE_TOKENS - 8])
def test_a_face_that_comes_back_keeps_its_id(tokens: int) -> None:
    _, (face,) = gone_for(tokens)
    assert face.track_id == 0
    assert error_px(face, Drawn("anna", 310, 182)) < 2


def test_a_face_that_was_away_for_longer_is_a_new_one() -> None:
    _, (face,) = gone_for(REACQUIRE_TOKENS + 10)
    assert face.track_id == 1


def test_a_short_blink_asks_no_detector() -> None:
    scene = Scene()
    for i in range(20):
        faces = [Drawn("anna", 300, 180)]
        picture = draw(faces)
        if i in (8, 9):  # two pictures in which nothing can be read
            picture[:] = 60
        scene.show(*faces, picture=picture)
    assert scene.searches == 1


def test_another_person_in_the_same_place_after_a_cut_is_somebody_else() -> None:
    scene = Scene()
    for _ in range(10):
        scene.show(Drawn("anna", 300, 180))
    ids = [[f.track_id for f in scene.show(Drawn("ben", 300, 180))] for _ in range(8)]
    assert [0] not in ids
    assert ids[-1] == [1]
    back = [[f.track_id for f in scene.show(Drawn("anna", 300, 180))] for _ in range(8)]
    assert back[-1] == [0]
    assert [1] not in back


def test_other_light_alone_is_the_same_person() -> None:
    scene = Scene()
    drawn = Drawn("anna", 300, 180)
    for i in range(30):
        picture = draw([drawn]).astype(float)
        picture[picture.max(2) < 230] *= 1 - 0.015 * i  # all but the ink
        shown = scene.show(drawn, picture=picture.astype(np.uint8))
    assert [f.track_id for f in shown] == [0]


def test_a_face_that_leaves_the_picture_is_lost() -> None:
    scene = Scene()
    for i in range(60):
        shown = scene.show(Drawn("anna", 560 + 6 * i, 180))
    assert shown == []


def test_half_a_face_at_the_border_is_no_stop() -> None:
    scene = Scene()
    for x in (0, 5, 635, 639):
        scene.show(Drawn("anna", x, 180))
        scene.follower.reset()


# Several


def test_two_faces_share_one_call() -> None:
    scene = Scene()
    both = Drawn("anna", 180, 180), Drawn("ben", 460, 180)
    for _ in range(5):
        shown = scene.show(*both)
    assert [f.track_id for f in shown] == [0, 1]
    assert scene.calls[1:] == [2] * 4


def test_two_that_cross_keep_their_ids() -> None:
    scene = Scene()
    ids: list[dict[int, float]] = []
    for i in range(90):
        x = 120 + 4.5 * i
        anna, ben = Drawn("anna", x, 150), Drawn("ben", 640 - x, 215)
        shown = scene.show(ben, anna)  # anna in front
        ids.append({f.track_id: f.landmarks[:, 0].mean() for f in shown})
    first, last = ids[5], ids[-1]
    left = min(first, key=first.__getitem__)
    assert set(first) == {0, 1}
    assert last[left] > 320, "who began on the left ends on the right"
    assert set().union(*ids) == {0, 1}


def test_one_face_followed_twice_becomes_one() -> None:
    scene = Scene()
    anna = Drawn("anna", 300, 180)
    scene.show(anna, Drawn("ben", 420, 180))
    for i in range(40):  # ben goes behind anna and the track of ben lands on her
        shown = scene.show(Drawn("ben", 420 - 3 * i, 180), anna)
    assert [f.track_id for f in shown] == [0]


def test_no_more_faces_than_the_spec_allows() -> None:
    scene = Scene(spec=FaceSpec(stage="encoder", max_faces=2))
    many = [Drawn(who, 130 + 190 * i, 180) for i, who in enumerate(SKIN)]
    assert len(scene.show(*many)) == 2
    for _ in range(SPEC.rescan_every_tokens + 1):
        assert len(scene.show(*many)) == 2


def test_the_same_pictures_give_the_same_faces() -> None:
    runs = []
    for _ in range(2):
        scene = Scene()
        runs.append(
            [
                [
                    (f.track_id, *f.landmarks.ravel())
                    for f in scene.show(Drawn("anna", 200 + i, 180))
                ]
                for i in range(12)
            ]
        )
    assert runs[0] == runs[1]
