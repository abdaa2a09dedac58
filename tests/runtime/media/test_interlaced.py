# SPDX-License-Identifier: Apache-2.0
"""Interlaced pictures: the fields of one are 20 ms apart, and what moves must not be combed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from runtime.media import Frame, VideoChunk
from runtime.media.file import FileSource
from runtime.media.network import NetworkSource
from runtime.media.sandbox.reader import IsolatedFile
from tests.runtime.live_server import Response, http_server

SIZE = (720, 576)
BAR_PX, STEP_PX = 80, 12  # a white bar, and how far it moves from field to field
LENGTH = 20  # pictures
PAL = {
    "mpeg2video": {"flags": "+ilme+ildct", "b": "8000000"},
    "libx264": {"x264-params": "tff=1:qp=16", "preset": "ultrafast"},
}


def moment(field: int) -> Frame:
    """The bar on blue as it is at that field's time."""
    picture = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    picture[..., 2] = 128
    picture[:, 40 + field * STEP_PX : 40 + field * STEP_PX + BAR_PX] = 255
    return picture


def write_pal(path: Path, codec: str, *, interlaced: bool = True) -> Path:
    """576 lines, 25 pictures a second of two fields, the upper one first."""
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=25)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.options = PAL[codec] if interlaced else {"b": "8000000"}
        for i in range(LENGTH):
            woven = moment(2 * i)
            if interlaced:
                woven[1::2] = moment(2 * i + 1)[1::2]
            frame = av.VideoFrame.from_ndarray(woven, "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def combing(picture: Frame) -> float:
    """How much each line differs from the mean of its neighbours, in levels."""
    lines = picture.astype(float).mean(axis=2)
    return float(np.abs(lines[1:-1] - (lines[:-2] + lines[2:]) / 2).mean())


def bar(picture: Frame) -> tuple[float, float]:
    """Its left and right edge, in pixels."""
    bright = np.flatnonzero(picture[..., 0].mean(axis=0) > 127)
    return float(bright[0]), float(bright[-1] + 1)


def read(path: Path, way: str) -> list[tuple[float, Frame]]:
    """Times and pictures."""
    if way == "http":
        with (
            http_server([Response(path.read_bytes(), chunked=True)]) as url,
            NetworkSource(url) as source,
        ):
            return [(c.t_s, c.frame) for c in source if isinstance(c, VideoChunk)]
    with (FileSource if way == "inline" else IsolatedFile)(path) as source:
        return [(c.t_s, c.frame) for c in source if isinstance(c, VideoChunk)]


@pytest.mark.parametrize("codec", list(PAL))
@pytest.mark.parametrize("way", ["inline", "process", "http"])
def test_what_moves_has_one_place_in_each_picture(codec: str, way: str, tmp_path: Path) -> None:
    path = write_pal(tmp_path / "pal.ts", codec)
    found = read(path, way)
    assert len(found) == LENGTH
    assert np.allclose(np.diff([t for t, _ in found]), 0.04, atol=1e-3)
    for i, (_, picture) in enumerate(found):
        assert picture.shape == (576, 720, 3)
        assert combing(picture) < 1.0
        left = 40 + 2 * i * STEP_PX
        assert bar(picture) == pytest.approx((left, left + BAR_PX), abs=2)
    blue = found[0][1][100, 500].astype(int)
    assert np.abs(blue - (0, 0, 128)).max() <= 6, "the colours are those of the picture"


def test_the_clip_is_combed_unless_something_is_done(tmp_path: Path) -> None:
    path = write_pal(tmp_path / "pal.ts", "mpeg2video")
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert all(f.interlaced_frame for f in frames)
    assert combing(frames[5].to_ndarray(format="rgb24")) > 5.0


def test_pictures_that_are_not_interlaced_keep_every_line(tmp_path: Path) -> None:
    path = write_pal(tmp_path / "progressive.ts", "mpeg2video", interlaced=False)
    with av.open(str(path)) as container:
        plain = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    found = [picture for _, picture in read(path, "inline")]
    assert all(np.array_equal(a, b) for a, b in zip(plain, found, strict=True))
