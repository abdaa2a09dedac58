# SPDX-License-Identifier: Apache-2.0
"""One clip, looped and transcoded to the length and size that a benchmark asks for."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import UsageError
from runtime.grid import VideoGrid
from runtime.media import AudioChunk, VideoChunk
from runtime.media.local_files import ffmpeg_name
from runtime.optional import optional

FPS = 25
SOURCE_RATE_HZ = 16_000
SOUND_RATE_HZ = 48_000  # what cameras and files have: the stream must resample it


def write_loop(source: Path, target: Path, *, seconds: float, width: int, height: int) -> None:
    """Transcode ``source``, repeated to ``seconds``, into ``target`` at 25 frames a second.

    Pictures are fitted into ``width`` x ``height`` with black bars, so faces keep their shape.
    Those of one pass are encoded once and their packets repeated.  As cameras send them, there is
    a key picture every two seconds at least, and none that refers to a later one.

    Raises :class:`runtime.errors.MediaError` from the source, :class:`UsageError` if it has no
    picture or no sound.
    """
    with optional("to write a clip"):
        import av

    wanted = math.ceil(seconds * FPS)  # frames
    with av.open(ffmpeg_name(target), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "bf": "0"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.gop_size = 2 * FPS
        fast = {"aac_coder": "fast"}
        audio = container.add_stream("aac", rate=SOUND_RATE_HZ, layout="stereo", options=fast)
        samples: list[NDArray[np.float32]] = []
        packets: list[Any] = []  # one a picture
        for number, item in enumerate(islice(pictures_and_sound(source, samples), wanted)):
            picture = av.VideoFrame.from_ndarray(fit(item, width, height), format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, FPS)
            packets += video.encode(picture)
        packets += video.encode()
        if not packets or not samples:
            raise UsageError(f"{source}: the benchmark needs a clip with picture and sound")
        once = [(bytes(packet), packet.is_keyframe) for packet in packets]
        length = len(once) * SOURCE_RATE_HZ // FPS
        sound = np.concatenate(samples)[:length]
        sound = np.pad(sound, (0, length - len(sound)))
        for start in range(0, wanted, len(once)):
            frames = min(len(once), wanted - start)
            for number, (data, is_key) in enumerate(once[:frames], start):
                packet = av.Packet(data)
                packet.stream, packet.time_base = video, Fraction(1, FPS)
                packet.pts = packet.dts = number
                packet.is_keyframe = is_key
                container.mux(packet)
            block = av.AudioFrame.from_ndarray(
                sound[None, : frames * SOURCE_RATE_HZ // FPS], format="flt", layout="mono"
            )
            block.sample_rate, block.pts = SOURCE_RATE_HZ, start * SOURCE_RATE_HZ // FPS
            block.time_base = Fraction(1, SOURCE_RATE_HZ)
            container.mux(audio.encode(block))
        container.mux(audio.encode())


def pictures_and_sound(
    source: Path, samples: list[NDArray[np.float32]]
) -> Iterator[NDArray[np.uint8]]:
    """Pictures of one pass at 25 Hz; its sound is appended to ``samples`` on the way."""
    from runtime.media.file import FileSource

    grid: VideoGrid[NDArray[np.uint8]] = VideoGrid(float(FPS))
    last: NDArray[np.uint8] | None = None
    with FileSource(source, sample_rate_hz=SOURCE_RATE_HZ) as media:
        for chunk in media:
            if isinstance(chunk, AudioChunk):
                samples.append(chunk.samples)
            elif isinstance(chunk, VideoChunk):
                for item in grid.push(chunk.t_s, chunk.frame):
                    last = item.frame if item.frame is not None else last
                    if last is not None:
                        yield last
    for item in grid.finish():
        last = item.frame if item.frame is not None else last
        if last is not None:
            yield last


def fit(frame: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] scaled to fit, centred on black [height, width, 3]."""
    import cv2

    scale = min(width / frame.shape[1], height / frame.shape[0])
    w, h = max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale))
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - h) // 2, (width - w) // 2
    canvas[top : top + h, left : left + w] = cv2.resize(frame, (w, h))
    return canvas


def parse_size(text: str) -> tuple[int, int]:
    """``640x480`` -> (640, 480); even sides, as H.264 wants them."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    width, height = (int(side) for side in match.groups()) if match else (0, 0)
    if width < 64 or height < 64 or width % 2 or height % 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, both even and from 64")
    return width, height


def parse_seconds(text: str) -> float:
    """Seconds from 1 to 3600."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 1 to 3600")
    return seconds
