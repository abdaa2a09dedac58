# SPDX-License-Identifier: Apache-2.0
"""The benchmark of face detectors: pictures by construction, counts by a detector that is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
pytest.importorskip("dlib", reason="dlib is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

from benchmarks import faces  # noqa: E402
from benchmarks.faces import HEIGHT, WIDTH, Sample, hits, measure, paste, scenery  # noqa: E402
from tests.runtime.faces.test_tracker import frames_of  # noqa: E402

RED = (255, 0, 0)


def sample(*, turned: bool = False, at: tuple[int, int] = (150, 60)) -> Sample:
    """A "face": a red square of 100 pixels in a picture of 400 x 300."""
    picture = np.full((300, 400, 3), 90, np.uint8)
    picture[at[1] : at[1] + 100, at[0] : at[0] + 100] = RED
    return Sample(picture, (*at, at[0] + 100, at[1] + 100), turned)


def red_box(frame: np.ndarray):
    red = (frame[..., 0].astype(int) > 200) & (frame[..., 1] < 60) & (frame[..., 2] < 60)
    ys, xs = np.nonzero(red)
    return (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else None


@pytest.mark.parametrize("size", [20, 32, 60, 125])
def test_a_pasted_face_is_as_wide_as_asked_and_where_it_is_said_to_be(size: int):
    rng = np.random.default_rng(size)
    ground = np.full((HEIGHT, WIDTH, 3), 30, np.uint8)
    for _ in range(20):
        frame, box = paste(sample(), size, ground, rng)
        assert frame.shape == (HEIGHT, WIDTH, 3)
        np.testing.assert_allclose(red_box(frame), box, atol=1.5)
        assert box[2] - box[0] == pytest.approx(size)
        assert box[0] >= 0 <= box[1]
        assert box[2] <= WIDTH
        assert box[3] <= HEIGHT
    assert (ground == 30).all()


def test_the_edge_of_what_is_pasted_is_soft():
    ground = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    frame, box = paste(sample(), 100, ground, np.random.default_rng(5))
    row = frame[int(box[1] + box[3]) // 2, : int(box[0]), 1].astype(int)
    assert (np.diff(row[row > 0]) <= 90 / 10).all()


def test_found_means_the_middle_and_the_size():
    truth = (100.0, 100.0, 140.0, 160.0)
    assert hits([(100, 100, 140, 150)], truth) == (True, 0)
    assert hits([], truth) == (False, 0)
    assert hits([(200, 200, 240, 240)], truth) == (False, 1)
    assert hits([(110, 120, 125, 135)], truth) == (False, 1)  # less than half as wide
    assert hits([(70, 80, 160, 190)], truth) == (False, 1)  # more than twice
    assert hits([(105, 105, 135, 150), (0, 0, 40, 40)], truth) == (True, 1)


@pytest.mark.parametrize("at", [(0, 0), (150, 60), (300, 0), (150, 200)])
def test_scenery_never_shows_the_face(at: tuple[int, int]):
    rng = np.random.default_rng(1)
    for _ in range(10):
        found = scenery(sample(at=at), rng)
        assert found is not None
        assert found.shape == (HEIGHT, WIDTH, 3)
        assert red_box(found) is None


def test_a_face_that_fills_its_picture_leaves_no_scenery():
    full = Sample(np.zeros((100, 100, 3), np.uint8), (5, 0, 95, 100), False)
    assert scenery(full, np.random.default_rng(0)) is None


def grey(rng: np.random.Generator) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), 90, np.uint8)


def test_shares_false_finds_and_times_are_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(faces, "MADE", {"noise": grey})  # no red in it

    def perfect(frame: np.ndarray):
        box = red_box(frame)
        return [] if box is None else [(box, 0.65)]

    def blind(frame: np.ndarray):
        return [((0, 0, 9, 9), 0.9)]

    group = [sample(), sample(turned=True)]
    looks = {"perfect": perfect, "blind": blind, "dlib": perfect}
    rows = measure(group, looks, np.random.default_rng(0), sizes=(60, 200, 400), empty=10)
    right = rows["perfect from 0.6"]["counts"]
    assert right["60"] == {"pictures": 2, "found": 2, "others": 0}
    assert right["60 turned"] == right["60 frontal"] == {"pictures": 1, "found": 1, "others": 0}
    assert "200" not in right  # it would have to be enlarged
    assert right["400"]["pictures"] == 2  # the largest may be
    assert rows["perfect from 0.7"]["counts"]["60"] == {"pictures": 2, "found": 0, "others": 0}
    wrong = rows["blind from 0.7"]["counts"]
    assert wrong["60"] == {"pictures": 2, "found": 0, "others": 2}
    assert wrong["empty"] == {"pictures": 10, "found": 0, "others": 10}
    assert sum(c["pictures"] for k, c in wrong.items() if k.startswith("empty ")) == 10
    assert rows["dlib"]["counts"]["60"]["pictures"] == 1  # of every fifth picture
    assert rows["blind from 0.7"]["cpu_ms"] >= 0
    lines = {line.split("|")[1].strip(): line for line in faces.table(rows)}
    assert "| 1000.0 |" in lines["blind from 0.7"]
    assert "| 100.0 |" in lines["perfect from 0.6"]


def test_the_command_measures_photographs_and_writes_where_it_ran(
    grid_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    photos = tmp_path / "photos"
    photos.mkdir()
    frame = frames_of(grid_clip, 1)[0]
    assert cv2.imwrite(str(photos / "a.png"), frame[..., ::-1])
    (photos / "b.png").write_bytes(b"no picture")
    output = tmp_path / "faces.json"
    options = ["--photos", str(photos), "--detail", "320", "--empty", "4", "--output", str(output)]
    assert faces.main(options) == 0
    result = json.loads(output.read_text("utf-8"))
    assert result["benchmark"] == "faces"
    assert result["boxes"] == "detector"
    assert result["faces"] == 1
    assert result["machine"]["cores"] >= 1
    assert result["detectors"]["short-range 320 from 0.6"]["counts"]["60"]["found"] == 1
    assert "| dlib |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [([], 2, "--photos"), (["--photos", "none"], 2, "none"), (["--photos", "."], 2, "no ")],
)
def test_no_faces_are_one_line(
    options: list[str], code: int, said: str, tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert faces.main(options) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
