# SPDX-License-Identifier: Apache-2.0
"""Detection, tracking and alignment: geometry by construction, faces on real clips."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from runtime.faces.align import NOSE_DEPTH, align, similarity, template, turn_deg
from runtime.faces.identity import REACQUIRE_TOKENS
from runtime.faces.tracker import EAGER_SEARCHES, FINE_SEARCH, FaceTracker
from runtime.judging.decision import MAX_TURN_DEG
from runtime.media import VideoChunk
from runtime.media.file import FileSource
from runtime.spec import FaceSpec, SpecError
from tests.runtime.scenes import pictures, speakers, turned, walk

SPEC = FaceSpec()


def frames_of(path: Path, count: int) -> list[np.ndarray]:
    frames = []
    with FileSource(path) as source:
        for chunk in source:
            if isinstance(chunk, VideoChunk):
                frames.append(chunk.frame)
            if len(frames) == count:
                break
    return frames


def test_similarity_recovers_a_known_rotation_scale_and_shift():
    rng = np.random.default_rng(0)
    source = rng.uniform(0, 100, (3, 2))
    a, b = 1.7 * math.cos(0.3), 1.7 * math.sin(0.3)
    target = source @ np.array([[a, b], [-b, a]]) + [12.0, -5.0]
    np.testing.assert_allclose(similarity(source, target), [[a, -b, 12.0], [b, a, -5.0]], atol=1e-9)


@pytest.mark.parametrize("shrink", [0.7, 1.0, 2.0, 3.4, 9.0])
def test_landmarks_land_on_the_template_at_every_size(shrink: float):
    """Three coloured discs at the landmarks of a large, rotated face end up where they must."""
    import cv2

    target = template(SPEC)
    rotation = np.array([[math.cos(0.2), -math.sin(0.2)], [math.sin(0.2), math.cos(0.2)]])
    landmarks = (target - 32) @ rotation.T * shrink + 32 * shrink + 20
    side = int(64 * shrink + 60)
    for point, want in zip(landmarks, target, strict=True):
        frame = np.zeros((side, side, 3), np.uint8)
        centre = tuple(round(v * 16) for v in point)
        cv2.circle(frame, centre, int(3 * shrink * 16), (255, 255, 255), -1, cv2.LINE_AA, 4)
        crop = align(frame, landmarks, SPEC)[..., 0].astype(float)
        assert crop.shape == (64, 64)
        ys, xs = np.mgrid[:64, :64]
        centroid = np.array([(xs * crop).sum(), (ys * crop).sum()]) / crop.sum()
        np.testing.assert_allclose(centroid, want, atol=0.35)


def test_a_large_face_is_averaged_down_not_sampled():
    """One-pixel stripes at eight times the size become grey, not aliases of themselves."""
    frame = np.zeros((600, 600, 3), np.uint8)
    frame[:, ::2] = 255
    landmarks = template(SPEC) * 8 + 40
    assert align(frame, landmarks, SPEC).std() < 6


def test_a_picture_without_a_face_has_none():
    rng = np.random.default_rng(1)
    tracker = FaceTracker(SPEC)
    for token in range(3):
        assert tracker.update(rng.integers(0, 255, (240, 320, 3), dtype=np.uint8), token) == []


@pytest.mark.parametrize("shape", [(1, 1), (7, 640), (33, 41)])
def test_tiny_and_odd_pictures_do_no_harm(shape: tuple[int, int]):
    tracker = FaceTracker(SPEC)
    assert tracker.update(np.zeros((*shape, 3), np.uint8), 0) == []


def test_the_sample_clip_has_two_faces_with_lasting_ids(sample_clip: Path):
    tracker = FaceTracker(SPEC)
    seen = [tracker.update(f, i) for i, f in enumerate(frames_of(sample_clip, 60))]
    late = seen[30:]
    assert all({0, 1} <= {f.track_id for f in faces} for faces in late)
    first = [f for faces in late for f in faces if f.track_id == 0]
    assert all(SPEC.min_face_px <= f.width_px <= 65 for f in first)
    assert all(f.crop.shape == (64, 64, 3) and f.crop.dtype == np.uint8 for f in first)


def test_two_runs_give_the_same_crops(sample_clip: Path):
    frames = frames_of(sample_clip, 20)
    runs = []
    for _ in range(2):
        tracker = FaceTracker(SPEC)
        runs.append([f.crop for i, x in enumerate(frames) for f in tracker.update(x, i)])
    assert len(runs[0]) == len(runs[1]) > 0
    assert all(np.array_equal(a, b) for a, b in zip(*runs, strict=True))


def test_trackers_share_the_detector_and_nothing_else(grid_clip: Path, sample_clip: Path):
    """Two streams in turn, of different sizes: each has the crops that it has alone."""
    clips = [frames_of(path, 20) for path in (grid_clip, sample_clip)]

    def crops(trackers: list[FaceTracker]) -> list[np.ndarray]:
        turns = [(i, k) for i in range(20) for k in range(len(trackers))]
        return [f.crop for i, k in turns for f in trackers[k].update(clips[k][i], i)]

    together = crops([FaceTracker(SPEC), FaceTracker(SPEC)])
    first = crops([FaceTracker(SPEC)])
    clips.reverse()
    alone = [c.tobytes() for c in [*first, *crops([FaceTracker(SPEC)])]]
    assert len(first) == 20 < len(alone)
    assert sorted(c.tobytes() for c in together) == sorted(alone)
    assert FaceTracker(SPEC)._detector is FaceTracker(SPEC)._detector


@pytest.mark.parametrize(("max_faces", "searches"), [(1, 1), (4, 2)])
def test_nobody_is_searched_for_who_could_not_be_followed(
    grid_clip: Path, monkeypatch: pytest.MonkeyPatch, max_faces: int, searches: int
):
    tracker, seen = FaceTracker(FaceSpec(max_faces=max_faces)), []
    detect = tracker._detect

    def counted(grey: np.ndarray, scale: float, origin: tuple[int, int]) -> object:
        seen.append(grey.shape)
        return detect(grey, scale, origin)

    monkeypatch.setattr(tracker, "_detect", counted)
    frames = frames_of(grid_clip, 35)
    for token, frame in enumerate(frames):
        assert len(tracker.update(frame, token)) == 1
    assert seen.count(frames[0].shape[:2]) == searches


def ids(tracker: FaceTracker, frames: list[np.ndarray], start: int = 0) -> list[set[int]]:
    return [{f.track_id for f in tracker.update(x, start + i)} for i, x in enumerate(frames)]


def test_a_face_that_comes_back_in_time_keeps_its_id_and_later_does_not(grid_clip: Path):
    frames = frames_of(grid_clip, 20)
    blank = np.full_like(frames[0], 90)
    for away, expected in ((40, {0}), (REACQUIRE_TOKENS + 10, {1})):
        tracker = FaceTracker(SPEC)
        assert ids(tracker, frames[:10]) == [{0}] * 10
        assert ids(tracker, [blank] * away, 10)[-1] == set()
        assert ids(tracker, frames[10:], 10 + away)[-1] == expected


def test_an_id_is_never_given_to_another_person(grid_dir: Path):
    """Somebody else takes the same place at once, or after a second: the hardest case."""
    people = [frames_of(path, 8) for path in speakers(grid_dir)]
    blank = np.full_like(people[0][0], 90)
    for a, b in zip(people, [*people[1:], people[0]], strict=True):
        for away in (0, 25) if a is people[0] else (0,):
            tracker = FaceTracker(SPEC)
            assert ids(tracker, a)[-1] == {0}
            after = ids(tracker, [*[blank] * away, *b], len(a))
            assert not any(0 in found for found in after[away:])
            assert after[-1] == {1}


@pytest.mark.parametrize("factor", [0.6, 0.85, 1.2])
def test_other_light_makes_nobody_another_person(grid_clip: Path, factor: float):
    """A lamp is switched, or an automatic exposure steps: every colour changes at once."""
    tracker, ids, given = FaceTracker(FaceSpec()), set(), 0
    for token, frame in enumerate(pictures(grid_clip, 60)):
        lit = frame if token // 13 % 2 == 0 else np.clip(frame * factor, 0, 255).astype(np.uint8)
        found = tracker.update(lit, token)
        ids |= {face.track_id for face in found}
        given += len(found)
    assert (ids, given) == ({0}, 60)


def test_two_people_who_cross_keep_their_ids(grid_dir: Path):
    """They walk through each other's place; the nearer one hides the other for half a second."""
    a, b = (pictures(speakers(grid_dir)[i]) for i in (0, 1))
    frames = walk([(a, lambda t: 40 + 5 * min(t, 82)), (b, lambda t: 450 - 5 * min(t, 82))], 92)
    tracker = FaceTracker(SPEC)
    places = [
        {f.track_id: f.box[0] for f in tracker.update(frame, i)} for i, frame in enumerate(frames)
    ]
    assert set(places[10]) == set(places[-1]) == {0, 1}
    first, second = sorted(places[10], key=lambda face_id: places[10][face_id])  # left, right
    assert places[-1][first] > places[-1][second]  # and now the other way round
    assert any(len(found) == 1 for found in places[30:60])  # one was hidden


@pytest.mark.parametrize("degrees", [0, 20, 40])
def test_the_turn_is_measured_from_eyes_and_nose_and_rolling_changes_nothing(degrees: int):
    yaw, roll = math.radians(degrees), math.radians(15)
    nose = (NOSE_DEPTH * math.sin(yaw), 0.77)
    points = np.array([[-0.5 * math.cos(yaw), 0], [0.5 * math.cos(yaw), 0], nose]) * 60
    rotation = np.array([[math.cos(roll), -math.sin(roll)], [math.sin(roll), math.cos(roll)]])
    assert turn_deg(points @ rotation.T + 200) == pytest.approx(degrees, abs=0.01)
    assert turn_deg(points * [-1, 1]) == pytest.approx(degrees, abs=0.01)


def test_a_head_that_turns_away_is_seen_to(grid_dir: Path):
    frame = pictures(speakers(grid_dir)[1], 1)[0]
    (front,) = FaceTracker(SPEC).update(frame, 0)
    eyes = front.landmarks[:2, 0]
    (away,) = FaceTracker(SPEC).update(
        turned(frame, -45, float(eyes.mean()), 1.25 * float(eyes[1] - eyes[0])), 0
    )
    assert front.turn_deg < 15
    assert away.turn_deg > MAX_TURN_DEG


def test_small_faces_are_found_by_the_fine_search(sample_clip: Path):
    """At half the size the larger face is about 25 pixels: found, and for the session to refuse."""
    import cv2

    tracker = FaceTracker(SPEC)
    small = [cv2.resize(f, None, fx=0.55, fy=0.55) for f in frames_of(sample_clip, 30)]
    faces = [f for i, x in enumerate(small) for f in tracker.update(x, i)]
    assert faces
    assert all(f.width_px < SPEC.min_face_px for f in faces)


def test_an_empty_room_is_searched_finely_less_and_less_often(monkeypatch: pytest.MonkeyPatch):
    """A camera may be left on for a week; the fine search costs four times the other."""
    tracker = FaceTracker(SPEC)
    widths: list[float] = []

    def detect(grey, scale, origin):
        widths.append(round(scale * grey.shape[1]))
        return []

    monkeypatch.setattr(tracker, "_detect", detect)
    room = np.zeros((480, 640, 3), np.uint8)
    for token in range(150):
        tracker.update(room, token)
    coarse, fine = SPEC.detect_width_px, round(SPEC.detect_width_px * FINE_SEARCH)
    assert len(widths) == 150 // SPEC.search_every_tokens
    assert widths[:EAGER_SEARCHES] == [coarse, fine] * (EAGER_SEARCHES // 2)
    later = widths[EAGER_SEARCHES:]
    assert [i for i, w in enumerate(later, EAGER_SEARCHES + 1) if w == fine] == [10, 15, 20, 25, 30]
    tracker.reset()  # a new shot: somebody may be far away
    widths.clear()
    for token in range(150, 160):
        tracker.update(room, token)
    assert widths == [coarse, fine]


def test_every_frame_of_a_grid_clip_has_its_face(grid_clip: Path):
    tracker = FaceTracker(SPEC)
    for token, frame in enumerate(frames_of(grid_clip, 75)):
        faces = tracker.update(frame, token)
        assert [f.track_id for f in faces] == [0]
        assert 90 < faces[0].width_px < 150


@pytest.mark.parametrize("crop_px", [16, 63, 100])
def test_a_crop_size_the_encoder_cannot_take_is_refused(crop_px: int):
    with pytest.raises(SpecError, match="crop_px"):
        FaceSpec(crop_px=crop_px)
