# SPDX-License-Identifier: Apache-2.0
"""The detector: its arithmetic against plain float64 loops, faces of a real clip, no faces."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import ModelError, UsageError
from runtime.faces.detector import (
    MODEL_FILE,
    POINTS,
    SAME_FACE_IOU,
    Detector,
    Layout,
    anchors,
    decode,
    melt,
    tiles,
)
from runtime.models import shipped_presets
from tests.runtime.faces.test_tracker import frames_of

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

FULL = Layout(192, 32, ((4, 1),))
SHORT = Layout(128, 16, ((8, 2), (16, 6)))


@pytest.fixture(scope="module")
def detector():
    with Detector() as found:
        yield found


@pytest.fixture(scope="module")
def frame(grid_clip: Path) -> np.ndarray:
    return frames_of(grid_clip, 1)[0]  # 288 x 360: one face, to the camera


@pytest.fixture(scope="module")
def face(detector: Detector, frame: np.ndarray):
    (found,) = detector.find(frame)
    return found


def middle(box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


# --- arithmetic -----------------------------------------------------------------------------


def test_the_grid_of_the_full_range_model_is_48_by_48_with_one_anchor_a_cell():
    found = anchors(FULL, 192, 192)
    assert found.shape == (2304, 2)
    np.testing.assert_array_equal(found[0], [2, 2])
    np.testing.assert_array_equal(found[1], [6, 2])  # x first
    np.testing.assert_array_equal(found[48], [2, 6])
    np.testing.assert_array_equal(found[-1], [190, 190])


def test_the_grids_of_the_short_range_model_are_those_of_mediapipe():
    found = anchors(SHORT, 128, 128)
    assert found.shape == (16 * 16 * 2 + 8 * 8 * 6, 2)
    np.testing.assert_array_equal(found[:3], [[4, 4], [4, 4], [12, 4]])
    np.testing.assert_array_equal(found[512:519], [[8, 8]] * 6 + [[24, 8]])


def overlap_reference(a, b) -> float:
    w = min(a[1][0], b[1][0]) - max(a[0][0], b[0][0])
    h = min(a[1][1], b[1][1]) - max(a[0][1], b[0][1])
    inner = w * h if w > 0 and h > 0 else 0.0

    def area(box):
        return (box[1][0] - box[0][0]) * (box[1][1] - box[0][1])

    return inner / (area(a) + area(b) - inner)


def find_reference(raw, logits, size, min_score):
    """MediaPipe's decoding and weighted suppression, one number after the other."""
    cells = []
    index = 0
    for y in range(size[0] // 4):
        for x in range(size[1] // 4):
            score = 1 / (1 + np.exp(-min(max(float(logits[index]), -100.0), 100.0)))
            at = np.array([x * 4 + 2.0, y * 4 + 2.0])
            values = raw[index].astype(np.float64).reshape(8, 2)
            if score >= min_score and (values[1] > 0).all():
                centre = values[0] + at
                points = [values[k] + at for k in range(2, 8)]
                box = [centre - values[1] / 2, centre + values[1] / 2]
                cells.append((score, np.array([*box, *points])))
            index += 1
    cells.sort(key=lambda c: -c[0])
    out = []
    while cells:
        first = cells[0]
        close = [c for c in cells if overlap_reference(first[1], c[1]) > SAME_FACE_IOU]
        cells = [c for c in cells if overlap_reference(first[1], c[1]) <= SAME_FACE_IOU]
        total = sum(c[0] for c in close)
        out.append((sum(c[0] * c[1] for c in close) / total, first[0]))
    return out


@pytest.mark.parametrize("seed", range(4))
def test_decoding_and_suppression_equal_plain_loops_in_float64(seed: int):
    rng = np.random.default_rng(seed)
    size = (64, 96)
    cells = 16 * 24
    raw = rng.normal(0, 6, (cells, 16)).astype(np.float32)
    raw[:, 2:4] = rng.uniform(-3, 40, (cells, 2))  # some have no size
    logits = rng.normal(-1, 2, cells).astype(np.float32)
    logits[:2] = 1e6, -1e6  # clipped, no overflow
    found = melt(*decode(raw, logits, FULL, size, 0.6))
    wanted = find_reference(raw, logits, size, 0.6)
    assert len(found) == len(wanted) > 3
    for (pairs, score), (pairs_wanted, score_wanted) in zip(found, wanted, strict=True):
        np.testing.assert_allclose(pairs, pairs_wanted, atol=1e-9)
        assert score == pytest.approx(score_wanted, abs=1e-12)


def test_what_is_not_a_number_is_no_face():
    raw = np.ones((384, 16), np.float32)
    logits = np.full(384, -9, np.float32)
    logits[:3] = np.nan, 9, 9
    raw[1, 0], raw[2, 5] = np.nan, np.inf
    assert melt(*decode(raw, logits, FULL, (64, 96), 0.6)) == []


@pytest.mark.parametrize(("height", "width"), [(480, 640), (1, 1), (7, 10_000)])
def test_tiles_cover_the_picture_and_overlap(height: int, width: int):
    found = tiles(height, width, 2, 3, 0.2)
    assert len(found) == 6
    assert found[0][:2] == (0, 0)
    np.testing.assert_allclose(found[-1][2:], (width, height))
    first, second = found[0], found[1]
    np.testing.assert_allclose(first[2] - second[0], 0.2 * (first[2] - first[0]))


# --- faces ----------------------------------------------------------------------------------


def test_a_face_its_box_and_its_points(detector: Detector, frame: np.ndarray, face):
    x0, y0, x1, y1 = face.box
    assert 0.8 < face.score <= 1
    assert face.points.shape == (6, 2) == (len(POINTS), 2)
    assert ((face.points >= [x0, y0]) & (face.points <= [x1, y1]))[:4].all()
    at = dict(zip(POINTS, face.points, strict=True))
    assert at["right_ear"][0] < at["right_eye"][0] < at["nose"][0]  # the person's own right
    assert at["nose"][0] < at["left_eye"][0] < at["left_ear"][0]
    assert at["right_eye"][1] < at["nose"][1] < at["mouth"][1]
    # dlib looks at the same picture
    from runtime.faces.tracker import FaceTracker
    from runtime.spec import FaceSpec

    (other,) = FaceTracker(FaceSpec()).update(frame, 0)
    eyes = face.points[:2]
    np.testing.assert_allclose(eyes, other.landmarks[:2], atol=0.12 * other.width_px)


def test_no_face_in_black_white_noise_and_text(detector: Detector):
    rng = np.random.default_rng(0)
    page = np.full((480, 640, 3), 255, np.uint8)
    for y in range(20, 480, 24):
        cv2.putText(page, "Ob O8 (oo) @ 0:0 % &", (4, y), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0, 0, 0))
    empty = [
        np.zeros((480, 640, 3), np.uint8), np.full((480, 640, 3), 255, np.uint8),
        rng.integers(0, 256, (480, 640, 3), dtype=np.uint8), page,
    ]  # fmt: skip
    for picture in empty:
        assert detector.find(picture) == []


@pytest.mark.parametrize(("gone", "min_score"), [(6, 0.6), (3, 0.35)])
@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
def test_a_face_partly_out_of_the_picture_is_found_where_it_is(
    side: str, gone: int, min_score: float, frame: np.ndarray, face
):
    """A sixth of it is gone, or a third: of that the detector is less sure than it must be by
    itself, and right about the place."""
    x, y = (round(v) for v in middle(face.box))
    w = round(face.box[2] - face.box[0])
    kept = w // 2 - w // gone  # beyond the middle
    left, top = (x - kept if side == "left" else 0), (y - kept if side == "top" else 0)
    right, bottom = (x + kept if side == "right" else 360), (y + kept if side == "bottom" else 288)
    part = np.ascontiguousarray(frame[top:bottom, left:right])
    with Detector(min_score=min_score) as detector:
        found = detector.find(part)
    assert found
    np.testing.assert_allclose(found[0].points[2] + [left, top], face.points[2], atol=0.2 * w)


def test_a_grey_picture_has_the_same_face(detector: Detector, frame: np.ndarray, face):
    grey = np.repeat(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    (found,) = detector.find(grey)
    np.testing.assert_allclose(found.box, face.box, atol=0.08 * (face.box[2] - face.box[0]))


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 10_000), (10_000, 1), (7, 640), (33, 41), (0, 5), (5, 0)]
)
def test_tiny_and_odd_pictures_do_no_harm(shape: tuple[int, int], detector: Detector):
    assert detector.find(np.zeros((*shape, 3), np.uint8)) == []


def test_a_picture_10_000_pixels_wide_is_looked_at(detector: Detector, frame: np.ndarray, face):
    wide = np.zeros((288, 10_000, 3), np.uint8)
    wide[:, 9_000:9_360] = frame
    found = detector.find(wide, (8_900, 0, 9_500, 288))
    assert len(found) == 1
    assert middle(found[0].box)[0] == pytest.approx(9_000 + middle(face.box)[0], abs=10)
    assert detector.find(wide) == []  # a face of 2 pixels: no harm, no find


def small_face(frame: np.ndarray, face, width_px: float) -> tuple[np.ndarray, tuple[float, float]]:
    scale = width_px / (face.box[2] - face.box[0])
    part = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    picture = np.full((480, 640, 3), 120, np.uint8)
    picture[300 : 300 + part.shape[0], 400 : 400 + part.shape[1]] = part
    x, y = middle(face.box)
    return picture, (400 + x * scale, 300 + y * scale)


def test_a_small_face_is_found_with_more_detail_in_a_region_and_in_tiles(
    detector: Detector, frame: np.ndarray, face
):
    picture, at = small_face(frame, face, 24)
    assert detector.find(picture, detail=128) == []  # 5 pixels for the network
    for found in (
        detector.find(picture, detail=640),
        detector.find(picture, (360, 260, 560, 420)),
        detector.find_all(picture, tiles(480, 640, 2, 2, 0.2), detail=384),
    ):
        (small,) = found
        np.testing.assert_allclose(middle(small.box), at, atol=4)


def test_near_and_far_faces_are_found_in_one_call(detector: Detector, frame: np.ndarray, face):
    """The one fills the picture, the other is a fifteenth of it wide."""
    near = cv2.resize(frame, None, fx=3.2, fy=3.2)[:900]  # 1152 wide
    picture = np.full((900, 1500, 3), 120, np.uint8)
    picture[:, :1152] = near
    scale = 0.6
    far = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    picture[600 : 600 + far.shape[0], 1200 : 1200 + far.shape[1]] = far
    x, y = middle(face.box)
    found = sorted(detector.find(picture), key=lambda d: d.box[0])
    assert len(found) == 2
    np.testing.assert_allclose(middle(found[0].box), (3.2 * x, 3.2 * y), atol=30)
    np.testing.assert_allclose(middle(found[1].box), (1200 + scale * x, 600 + scale * y), atol=9)


def test_a_face_in_two_tiles_is_one(detector: Detector, frame: np.ndarray, face):
    (found,) = detector.find_all(frame, [(0, 0, 360, 288), (0, 0, 350, 280)])
    np.testing.assert_allclose(found.box, face.box, atol=0.08 * (face.box[2] - face.box[0]))


def test_a_region_that_lies_outside_is_empty(detector: Detector, frame: np.ndarray):
    assert detector.find(frame, (400, 0, 500, 100)) == []
    assert detector.find(frame, (-50, -50, -1, -1)) == []
    assert detector.find(frame, (90, 90, 10, 10)) == []
    with pytest.raises(UsageError, match="finite"):
        detector.find(frame, (0, 0, float("nan"), 9))


# --- what can be wrong ----------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"no model", MODEL_FILE.read_bytes()[:50_000]])
def test_a_broken_file_is_one_line(content: bytes, tmp_path: Path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"export\.face_detector") as caught:
        Detector(path)
    assert str(caught.value).count("\n") == 0
    assert str(path) in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path):
    with pytest.raises(ModelError, match=r"cannot read .*export\.face_detector"):
        Detector(tmp_path / "none.onnx")


def test_another_model_is_none(tmp_path: Path):
    other = MODEL_FILE.parents[1] / shipped_presets()[0] / "frame_encoder.onnx"
    with pytest.raises(ModelError, match="no face detector of this project"):
        Detector(other)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"side_px": 0, "multiple_px": 32, "cells": [[4, 1]]}',
     '{"side_px": 192, "multiple_px": 32, "cells": []}',
     '{"side_px": 192, "multiple_px": 32, "cells": [4, 1]}'],
)  # fmt: skip
def test_a_layout_that_cannot_be_is_refused(text: str):
    with pytest.raises(ValueError):  # noqa: PT011  each in other words
        Layout.from_json(text)


def test_a_layout_goes_to_json_and_back():
    assert Layout.from_json(SHORT.to_json()) == SHORT
    assert json.loads(SHORT.to_json())["side_px"] == 128


@pytest.mark.parametrize(
    "options", [{"threads": 0}, {"min_score": 0.0}, {"min_score": 1.0}, {"min_score": float("nan")}]
)
def test_wrong_options_are_said(options: dict):
    with pytest.raises(UsageError):
        Detector(**options)


@pytest.mark.parametrize("detail", [0, -1, 100_000])
def test_a_detail_without_end_is_refused(detail: int, detector: Detector, frame: np.ndarray):
    with pytest.raises(UsageError, match="detail"):
        detector.find(frame, detail=detail)
