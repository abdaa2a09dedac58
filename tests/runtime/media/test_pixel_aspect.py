# SPDX-License-Identifier: Apache-2.0
"""Pictures whose pixels are not square come out with true proportions, wherever that is stated."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from runtime.media import Frame, Source, VideoChunk
from runtime.media.camera import CameraSource
from runtime.media.decoding import MAX_SIDE_PX, SQUARE, believable_aspect, shown_size
from runtime.media.file import FileSource
from runtime.media.network import NetworkSource
from runtime.media.sandbox.reader import IsolatedFile
from tests.runtime.live_server import Response, http_server

Size = tuple[int, int]  # width, height
FORMATS = [  # as coded, aspect of a pixel, as shown
    ((704, 288), Fraction(6, 11), (704, 528)),  # 2CIF, of many recorders
    ((352, 576), Fraction(24, 11), (768, 576)),  # half D1
    ((720, 576), Fraction(16, 15), (768, 576)),  # PAL
    ((720, 576), Fraction(64, 45), (1024, 576)),  # PAL, wide
    ((1440, 1080), Fraction(4, 3), (1920, 1080)),  # HDV
]


def disc(coded: Size, shown: Size) -> Frame:
    """A white disc that is round in the picture as it is shown, squeezed into the coded one."""
    width, height = shown
    round_ = np.zeros((height, width, 3), np.uint8)
    cv2.circle(round_, (width // 2, height // 2), height // 3, (255, 255, 255), -1)
    return cv2.resize(round_, coded, interpolation=cv2.INTER_AREA).astype(np.uint8)


def write_disc(
    path: Path,
    coded: Size,
    aspect: Fraction | None,
    shown: Size,
    *,
    codec: str = "libx264",
    of_container: Fraction | None = None,
    frames: int = 5,
    first: int = 0,
    sound: bool = False,
) -> Path:
    """``aspect`` stands in the pictures (H.264, MPEG-2), ``of_container`` in the container.

    ``sound``: a second of silence goes with them.
    """
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height = coded
        stream.pix_fmt = "yuv420p"
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        packets: list[Any] = []
        stream.codec_context.open()
        if of_container is not None:  # the encoder has written its own by now
            stream.codec_context.sample_aspect_ratio = of_container
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(disc(coded, shown), "rgb24")
            frame.pts, frame.time_base = first + i, Fraction(1, 25)
            packets += stream.encode(frame.reformat(format="yuv420p"))
        packets += stream.encode(None)
        if sound:
            audio = out.add_stream("pcm_s16le", rate=16_000, layout="mono")
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.int16), "s16", "mono")
            silence.sample_rate, silence.pts = 16_000, 0
            packets += audio.encode(silence)
        out.mux(packets)
    return path


def pictures(source: Source) -> list[Frame]:
    with source:
        return [c.frame for c in source if isinstance(c, VideoChunk)]


def proportions(frame: Frame) -> float:
    """Of the disc: its width over its height."""
    ys, xs = np.nonzero(frame[..., 1] > 127)
    return float((np.ptp(xs) + 1) / (np.ptp(ys) + 1))


def assert_true(found: list[Frame], shown: Size) -> None:
    assert found
    for frame in found:
        assert frame.shape == (shown[1], shown[0], 3)
        assert proportions(frame) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(("coded", "aspect", "shown"), FORMATS)
def test_a_squeezed_picture_has_true_proportions(
    tmp_path: Path, coded: Size, aspect: Fraction, shown: Size
) -> None:
    path = write_disc(tmp_path / "clip.mkv", coded, aspect, shown)
    assert_true(pictures(FileSource(path)), shown)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_the_aspect_may_stand_in_the_container_alone(tmp_path: Path, suffix: str) -> None:
    coded, aspect, shown = FORMATS[0]
    path = write_disc(tmp_path / f"clip{suffix}", coded, None, shown, of_container=aspect)
    assert_true(pictures(FileSource(path)), shown)


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".ts", "libx264"), (".mpg", "mpeg2video"), (".h264", "libx264")]
)
def test_the_aspect_may_stand_in_the_pictures_alone(
    tmp_path: Path, suffix: str, codec: str
) -> None:
    coded, aspect, shown = FORMATS[3] if codec == "mpeg2video" else FORMATS[1]
    path = write_disc(tmp_path / f"clip{suffix}", coded, aspect, shown, codec=codec)
    assert_true(pictures(FileSource(path)), shown)


def test_where_both_say_something_the_container_is_right(tmp_path: Path) -> None:
    """As for players."""
    coded, aspect, shown = FORMATS[1]
    path = write_disc(tmp_path / "clip.mp4", coded, Fraction(12, 11), shown, of_container=aspect)
    assert_true(pictures(FileSource(path)), shown)


def test_the_decoder_in_its_own_process_does_the_same(tmp_path: Path) -> None:
    coded, aspect, shown = FORMATS[0]
    path = write_disc(tmp_path / "clip.mkv", coded, aspect, shown)
    assert_true(pictures(IsolatedFile(path)), shown)


def test_the_aspect_may_change_on_the_way(tmp_path: Path) -> None:
    body = b""
    for i, (coded, aspect, shown) in enumerate(FORMATS[:2]):
        path = write_disc(tmp_path / f"{i}.ts", coded, aspect, shown, frames=10, first=10 * i)
        body += path.read_bytes()
    both = tmp_path / "both.ts"
    both.write_bytes(body)
    found = pictures(FileSource(both))
    assert {f.shape[:2] for f in found} == {(528, 704), (576, 768)}
    assert [proportions(f) for f in found] == pytest.approx([1.0] * len(found), abs=0.01)


def test_a_network_stream_is_scaled_alike(tmp_path: Path) -> None:
    coded, aspect, shown = FORMATS[0]
    body = write_disc(tmp_path / "clip.ts", coded, aspect, shown, frames=30).read_bytes()
    found: list[Frame] = []
    with (
        http_server([Response(body, hang=True)]) as url,
        NetworkSource(url, stall_s=1.0) as source,
    ):
        for chunk in source:
            assert isinstance(chunk, VideoChunk)
            found.append(chunk.frame)
            if len(found) == 10:
                break
    assert_true(found, shown)


def test_a_camera_that_states_its_aspect_is_scaled_alike(tmp_path: Path) -> None:
    """OpenCV on a file in a camera's place."""
    coded, aspect, shown = FORMATS[0]
    path = write_disc(tmp_path / "clip.mp4", coded, None, shown, of_container=aspect)
    with CameraSource(device=path) as source:
        first = next(iter(source))
        assert isinstance(first, VideoChunk)
        assert_true([first.frame], shown)


# What cannot be is taken for square


@pytest.mark.parametrize(
    ("width", "height"), [(0, 0), (0, 7), (7, 0), (1, 1000), (1000, 1), (2**31 - 1, 1), (1, 5)]
)
def test_a_hostile_ratio_is_not_believed(tmp_path: Path, width: int, height: int) -> None:
    coded, aspect, shown = FORMATS[0]
    path = write_disc(tmp_path / "clip.mp4", coded, None, shown, of_container=aspect)
    data = path.read_bytes()
    at = data.index(b"pasp") + 4
    path.write_bytes(
        data[:at] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + data[at + 8 :]
    )
    found = pictures(FileSource(path))
    assert {f.shape for f in found} == {(288, 704, 3)}


@pytest.mark.parametrize("ratio", [None, Fraction(0), Fraction(1, 5), Fraction(5), Fraction(-1)])
def test_what_no_camera_has_is_square(ratio: Fraction | None) -> None:
    assert believable_aspect(ratio) == SQUARE


@pytest.mark.parametrize("aspect", [Fraction(1, 4), Fraction(6, 11), SQUARE, Fraction(4)])
@pytest.mark.parametrize("coded", [(1, 1), (16, 4000), (8000, 4000), (640, 480)])
def test_no_side_is_longer_than_the_limit_and_nothing_is_lost(
    coded: Size, aspect: Fraction
) -> None:
    width, height = shown_size(*coded, aspect)
    assert 1 <= min(width, height) <= max(width, height) <= MAX_SIDE_PX
    if max(coded) <= MAX_SIDE_PX / 4:
        assert width >= coded[0]
        assert height >= coded[1]
        true = Fraction(*coded) * aspect
        assert abs(width - height * true) <= max(1, true)  # to a pixel
