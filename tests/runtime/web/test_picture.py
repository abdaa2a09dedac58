# SPDX-License-Identifier: Apache-2.0
"""The live picture: small, and faces hidden where that was asked for."""

from __future__ import annotations

import io
from dataclasses import replace

import av
import numpy as np
import pytest

from runtime.web.picture import MAX_WIDTH_PX, to_jpeg
from tests.runtime.web.serving import picture


def decoded(jpeg: bytes) -> np.ndarray:
    with av.open(io.BytesIO(jpeg)) as file:
        return next(file.decode(video=0)).to_ndarray(format="rgb24")


def detail(pixels: np.ndarray) -> float:
    """How much neighbours differ, on average."""
    return float(np.abs(np.diff(pixels.astype(float), axis=1)).mean())


def test_a_picture_becomes_jpeg_in_its_colours() -> None:
    shown = picture(faces=0)
    shown.frame[:] = (200, 40, 10)
    pixels = decoded(to_jpeg(shown))
    assert pixels.shape == (48, 64, 3)
    assert np.allclose(pixels.mean((0, 1)), (200, 40, 10), atol=4)


def test_a_large_one_is_scaled_down() -> None:
    large = replace(picture(faces=0), frame=np.zeros((1080, 1920, 3), np.uint8))
    assert decoded(to_jpeg(large)).shape == (360, MAX_WIDTH_PX, 3)


def test_a_hidden_face_keeps_a_few_blocks_and_the_rest_stays_sharp() -> None:
    shown = picture(faces=1)
    shown.frame[40:, :] = 255 * (np.indices((8, 64)).sum(0) % 2)[..., None]  # below the face
    before = shown.frame.copy()
    plain, hidden = decoded(to_jpeg(shown)), decoded(to_jpeg(shown, blur=True))
    assert detail(plain[12:28, 16:32]) > 100
    assert detail(hidden[12:28, 16:32]) < 25
    assert detail(hidden[42:, :]) == pytest.approx(detail(plain[42:, :]), rel=0.1)
    assert np.array_equal(shown.frame, before), "the frame is shared and must not change"


def test_without_a_followed_face_everything_is_coarse() -> None:
    """There may be a face that has not been found yet."""
    shown = replace(picture(faces=1), faces=())
    assert detail(decoded(to_jpeg(shown, blur=True))[12:28, 16:32]) < 100
    big = np.zeros((240, 320, 3), np.uint8)
    big[:] = 255 * (np.indices((240, 320)).sum(0) % 2)[..., None]
    assert detail(decoded(to_jpeg(replace(shown, frame=big), blur=True))) < 10


def test_a_hidden_face_at_the_border_is_cut_off_there() -> None:
    shown = picture(faces=1)
    edge = replace(shown.faces[0], box=(-20.0, -20.0, 10.0, 10.0))
    outside = replace(shown.faces[0], box=(-90.0, -90.0, -60.0, -60.0))
    assert decoded(to_jpeg(replace(shown, faces=[edge, outside]), blur=True)).shape == (48, 64, 3)
