# SPDX-License-Identifier: Apache-2.0
"""Cameras, with OpenCV's capture replaced by a mock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import runtime.media.camera
from runtime.errors import MediaError
from runtime.media import VideoChunk
from runtime.media.camera import CameraSource, camera_index


class MockCapture:
    """Gives three pictures, blue in OpenCV's order, then none."""

    opened, pictures = True, 3

    def __init__(self, index: int) -> None:
        self.index, self.left, self.released = index, self.pictures, False

    def isOpened(self) -> bool:
        return self.opened

    def get(self, key: int) -> float:
        sizes = {cv2.CAP_PROP_FRAME_WIDTH: 64.0, cv2.CAP_PROP_FRAME_HEIGHT: 48.0}
        return sizes.get(key, float("nan"))

    def read(self) -> tuple[bool, Any]:
        self.left -= 1
        blue = np.zeros((48, 64, 3), np.uint8)
        blue[:, :, 0] = 200
        return (True, blue) if self.left >= 0 else (False, None)

    def release(self) -> None:
        self.released = True


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> type[MockCapture]:
    class Capture(MockCapture):
        pass

    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    monkeypatch.setattr(runtime.media.camera.sys, "platform", "darwin")  # no /dev to look at
    return Capture


@pytest.mark.parametrize(
    ("source", "index"),
    [("camera", 0), ("0", 0), ("2", 2), ("/dev/video3", 3), ("clip.mp4", None), ("cameras", None)],
)
def test_names_of_cameras(source: str, index: int | None) -> None:
    assert camera_index(source) == index


def test_pictures_are_rgb_with_rising_times(camera: type[MockCapture]) -> None:
    with CameraSource(0) as source:
        chunks = list(source)
    assert source.info.name == "camera:0"
    assert (source.info.has_audio, source.info.fps) == (False, None)
    times = [c.t_s for c in chunks]
    assert times[0] == 0.0
    assert times == sorted(times)
    first = chunks[0]
    assert isinstance(first, VideoChunk)
    assert first.frame[0, 0].tolist() == [0, 0, 200]
    assert source.warnings == ["the camera stopped giving pictures"]


def test_a_camera_in_use_is_one_line(camera: type[MockCapture]) -> None:
    camera.opened = False
    with pytest.raises(MediaError, match="camera 0 cannot be opened"):
        CameraSource(0)


def test_a_camera_that_gives_nothing_is_one_line(camera: type[MockCapture]) -> None:
    camera.pictures = 0
    with CameraSource(0) as source, pytest.raises(MediaError, match="gives no picture"):
        list(source)


@pytest.mark.skipif(Path("/dev/video97").exists(), reason="there is a camera 97")
def test_no_camera_is_one_line_and_nothing_of_opencv(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MediaError, match="camera") as caught:
        CameraSource(97)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
