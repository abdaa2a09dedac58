# SPDX-License-Identifier: Apache-2.0
"""What is drawn over a picture: where, in which colour, and also without colours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.faces import Face
from runtime.faces.align import MEAN_FACE
from runtime.judging.verdict import Label, Reason
from runtime.sinks.overlay import COLOURS, MAX_LONG_PX, SPAN_S, Overlay, outcome
from tests.runtime.sinks.test_terminal import at

pytest.importorskip("cv2", reason="OpenCV is not installed")

Image = np.ndarray[Any, Any]


def face(box: tuple[float, float, float, float], track_id: int = 3) -> Face:
    crop = np.zeros((64, 64, 3), np.uint8)
    return Face(track_id, crop, box, MEAN_FACE * 40, box[2] - box[0], 1.0)


def grey(height: int, width: int) -> Image:
    return np.full((height, width, 3), 128, np.uint8)


def near(image: Image, colour: tuple[int, int, int], tolerance: int = 12) -> Image:
    return np.asarray(np.abs(image.astype(int) - colour).max(-1) <= tolerance)


def extent(mask: Image) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero(mask)
    return int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())


@pytest.mark.parametrize(("height", "width"), [(540, 720), (1080, 1920), (288, 360), (720, 405)])
def test_the_box_lies_where_the_face_is_at_any_size(height: int, width: int) -> None:
    overlay = Overlay(width, height, 0.2)
    box = (0.30 * width, 0.35 * height, 0.55 * width, 0.70 * height)
    image = overlay.draw(grey(height, width), 0.5, [face(box)])
    drawn = near(image[: overlay.height * 8 // 10], COLOURS[None])
    scale = overlay.width / width
    # The tag above the box has its colour as well; the box itself is what is below its upper edge.
    edge = round(box[1] * scale)
    x0, _, x1, y1 = extent(drawn[edge + 3 :])
    line = 2 + 2.5 * min(height, width) * scale / 540  # a stroke's width
    for found, wanted in ((x0, box[0]), (x1, box[2]), (y1 + edge + 3, box[3])):
        assert found == pytest.approx(wanted * scale, abs=line)


def test_small_pictures_grow_so_that_text_is_crisp_and_huge_ones_shrink() -> None:
    small, huge = Overlay(320, 240, 0.2), Overlay(3840, 2160, 0.2)
    assert (small.width, small._picture_height) == (720, 540)
    assert (huge.width, huge._picture_height) == (MAX_LONG_PX, 1080)
    assert all(side % 2 == 0 for o in (small, huge) for side in (o.width, o.height))


@pytest.mark.parametrize("label", [Label.REAL, Label.FAKE])
def test_the_box_takes_the_colour_of_the_label(label: Label) -> None:
    overlay = Overlay(720, 540, 0.2)
    overlay.take(at(2.0, label, 0.9))
    image = overlay.draw(grey(540, 720), 2.1, [face((200, 150, 400, 380))])
    left_edge = image[260:300, 198:203]
    assert near(left_edge, COLOURS[label]).any(axis=1).all()


def test_a_verdict_that_is_too_old_no_longer_speaks_for_the_face() -> None:
    overlay = Overlay(720, 540, 0.2)
    overlay.take(at(2.0, Label.FAKE, 0.9))
    image = overlay.draw(grey(540, 720), 3.2, [face((200, 150, 400, 380))])
    assert near(image[260:300, 198:203], COLOURS[None]).any()
    assert not near(image[:540], COLOURS[Label.FAKE]).any()


def test_no_colour_stands_alone() -> None:
    assert outcome(at(2.0, Label.FAKE, 0.934)) == "FAKE 0.93"
    assert outcome(at(2.0, Label.REAL, 0.1)) == "real 0.10"
    assert (
        outcome(at(2.0, Label.ABSTAIN, None, reason=Reason.OUT_OF_DOMAIN))
        == "abstain: out of domain"
    )
    assert outcome(None) == "listening"
    # Lightness differs as well, so the labels are told apart in black and white.
    light = sorted(np.dot(COLOURS[label], (0.3, 0.59, 0.11)) for label in Label)
    assert min(np.diff(light)) > 10


def test_the_strip_shows_the_last_seconds_with_now_at_the_right() -> None:
    overlay = Overlay(720, 540, 0.2)
    for i in range(60):
        overlay.take(at(2.0 + 0.2 * i, Label.FAKE if i >= 55 else Label.REAL, 0.9))
    now = 2.0 + 0.2 * 59
    strip = overlay.draw(grey(540, 720), now, [])[540 + 30 :]
    fake, real = near(strip, COLOURS[Label.FAKE]), near(strip, COLOURS[Label.REAL])
    per_s = (720 - 8 - 76) / SPAN_S
    x0, _, x1, _ = extent(fake)
    assert x1 == pytest.approx(720 - 8, abs=2)
    assert x1 - x0 == pytest.approx(5 * 0.2 * per_s, abs=3)
    assert extent(real)[0] == pytest.approx(76, abs=2)
    assert extent(real)[2] == pytest.approx(x0, abs=2)


@pytest.mark.thorough
def test_what_is_older_than_the_strip_is_forgotten() -> None:
    overlay = Overlay(720, 540, 0.2)
    for i in range(1000):
        overlay.take(at(2.0 + 0.2 * i, Label.REAL, 0.1, face_id=i // 100))
        overlay.draw(grey(54, 72), 2.0 + 0.2 * i, [])
    assert sum(len(v) for v in overlay._history.values()) <= SPAN_S / 0.2 + 1


def test_an_abstention_is_hatched_not_filled() -> None:
    overlay = Overlay(720, 540, 0.2)
    for i in range(20):
        overlay.take(at(2.0 + 0.2 * i, Label.ABSTAIN, None, reason=Reason.NO_FACE, face_id=None))
    strip = overlay.draw(grey(540, 720), 5.8, [])[540 + 30 :, -150:-10]
    hatched = near(strip, (123, 123, 123))
    row = hatched[hatched.any(axis=1).argmax() + 5]
    assert int(np.abs(np.diff(row.astype(int))).sum()) >= 4  # on, off, on, off


def test_faces_at_the_rim_and_outside_are_drawn_without_a_complaint() -> None:
    overlay = Overlay(640, 480, 0.2)
    overlay.take(at(2.0, Label.FAKE, 0.9))
    boxes = [(-80.0, -60.0, 90.0, 110.0), (560.0, 400.0, 720.0, 560.0), (0.0, 0.0, 640.0, 480.0)]
    for box in boxes:
        image = overlay.draw(grey(480, 640), 2.0, [face(box)])
        assert near(image, COLOURS[Label.FAKE]).sum() > 100


def test_a_picture_of_another_size_is_fitted_in_with_its_boxes() -> None:
    overlay = Overlay(640, 480, 0.2)  # drawn at 720x540
    tall = grey(960, 480)  # is fitted to 270x540, from x = 225
    image = overlay.draw(tall, 0.0, [face((0.0, 0.0, 480.0, 960.0))])
    assert near(image[300, :225], (20, 24, 29)).mean() > 0.95
    assert near(image[300, 235:330], (128, 128, 128)).all()
    assert near(image[250:350, 222:230], COLOURS[None]).any(axis=1).all()


def test_the_picture_itself_is_not_written_to() -> None:
    picture = grey(540, 720)
    Overlay(720, 540, 0.2).draw(picture, 0.0, [face((100, 100, 300, 300))])
    assert (picture == 128).all()
