# SPDX-License-Identifier: Apache-2.0
"""Cameras: OpenCV's capture replaced by a mock, and OpenCV itself on a file in a camera's place."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import runtime.media.camera
from runtime.errors import MediaError
from runtime.media import LiveSource, VideoChunk
from runtime.media.camera import CameraSource, camera_index
from runtime.media.feed import Feed
from tests.runtime.clips import write_clip


class MockCapture:
    """Gives three pictures, blue in OpenCV's order, then none."""

    opened, pictures, stamp_s = True, 3, float("nan")
    made: int = 0

    def __init__(self, index: int) -> None:
        type(self).made += 1
        self.index, self.left, self.released = index, self.pictures, False

    def isOpened(self) -> bool:
        return self.opened

    def get(self, key: int) -> float:
        sizes = {cv2.CAP_PROP_FRAME_WIDTH: 64.0, cv2.CAP_PROP_FRAME_HEIGHT: 48.0}
        if key == cv2.CAP_PROP_POS_MSEC:
            return self.stamp_s * 1000
        return sizes.get(key, float("nan"))

    def set(self, key: int, value: float) -> bool:
        return key == cv2.CAP_PROP_BUFFERSIZE

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


def read(source: CameraSource, pictures: int) -> list[VideoChunk]:
    found = []
    for chunk in source:
        assert isinstance(chunk, VideoChunk)
        found.append(chunk)
        if len(found) == pictures:
            source.close()
    return found


def test_pictures_are_rgb_with_rising_times(camera: type[MockCapture]) -> None:
    with CameraSource(0) as source:
        assert isinstance(source, LiveSource)
        chunks = read(source, 3)
    assert source.info.name == "camera:0"
    assert (source.info.has_audio, source.info.fps) == (False, None)
    times = [c.t_s for c in chunks]
    assert times[0] == 0.0
    assert times == sorted(times)
    assert chunks[0].frame[0, 0].tolist() == [0, 0, 200]
    assert chunks[0].captured_s == pytest.approx(time.monotonic(), abs=5)
    assert source.warnings == []


def test_an_unplugged_camera_is_said_and_opened_again(camera: type[MockCapture]) -> None:
    notes: list[str] = []
    with CameraSource(0, notice=notes.append) as source:
        chunks = read(source, 8)
    assert len(chunks) == 8
    assert camera.made == 3
    times = [c.t_s for c in chunks]
    assert times[3] - times[2] >= 0.25  # the pause before it is tried again
    assert times == sorted(times)
    assert notes[0] == (
        "camera:0: it stopped giving pictures (unplugged, or taken by another program); "
        "trying again"
    )
    assert notes[1].startswith("camera:0: back after 0.")
    assert source.outages == 2
    assert "lost 2 times" in source.warnings[0]


def test_a_camera_that_stays_away_is_tried_until_it_is_closed(camera: type[MockCapture]) -> None:
    with CameraSource(0) as source, Feed(source) as feed:
        while feed.get(5.0) is not None and feed.waiting:
            pass
        camera.opened = False
        made = camera.made
        deadline = time.monotonic() + 10
        while camera.made < made + 2 and time.monotonic() < deadline:
            feed.get(0.05)
        assert camera.made >= made + 2
        assert not feed.ended
    assert feed.error is None


def test_the_drivers_timestamp_is_the_moment_of_capture(
    camera: type[MockCapture], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(camera, "stamp_s", now - 0.08)
    with CameraSource(0) as source:
        assert read(source, 1)[0].captured_s == pytest.approx(now - 0.08, abs=1e-4)
    monkeypatch.setattr(camera, "stamp_s", 1.7e9)  # the time of day: another clock
    with CameraSource(0) as source:
        assert read(source, 1)[0].captured_s == pytest.approx(time.monotonic(), abs=0.5)


def test_opencv_reads_a_file_in_a_cameras_place(tmp_path: Path) -> None:
    """No camera and no v4l2 loop here: OpenCV's own reading of a file-backed device."""
    clip = write_clip(tmp_path / "camera.avi", seconds=1.0)
    with CameraSource(0, device=clip) as source:
        assert (source.info.width, source.info.height) == (160, 120)
        chunks = read(source, 30)  # it ends after 25: unplugged, and plugged in again
    assert source.outages == 1
    red, blue = chunks[0].frame[60, 20], chunks[0].frame[60, 140]
    assert red[0] > 100 > red[2]
    assert blue[2] > 100 > blue[0]


def test_a_camera_in_use_is_one_line(camera: type[MockCapture]) -> None:
    camera.opened = False
    with pytest.raises(MediaError, match="camera 0 cannot be opened"):
        CameraSource(0)


def test_a_camera_that_gives_nothing_is_one_line(camera: type[MockCapture]) -> None:
    camera.pictures = 0
    with CameraSource(0) as source, pytest.raises(MediaError, match="before it gave anything"):
        list(source)


@pytest.mark.skipif(Path("/dev/video97").exists(), reason="there is a camera 97")
def test_no_camera_is_one_line_and_nothing_of_opencv(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MediaError, match="camera") as caught:
        CameraSource(97)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
