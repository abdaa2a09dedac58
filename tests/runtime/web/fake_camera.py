# SPDX-License-Identifier: Apache-2.0
"""Chromium with a camera and a microphone that play a clip."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

RATE_HZ = 48_000
FPS = 25
FLAGS = (
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--no-sandbox",
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def fake_camera(clip: Path, folder: Path, *, seconds: float = 10.0) -> list[str]:
    """The flags of a Chromium whose camera and microphone play ``clip``, over and over.

    The clip is written out ``seconds`` long, as the two kinds of file that Chromium reads.
    """
    pictures, sound = decode(clip)
    video, audio = folder / "camera.y4m", folder / "microphone.wav"
    count = round(seconds * FPS)
    with av.open(str(video), "w", format="yuv4mpegpipe") as out:
        stream: Any = out.add_stream("wrapped_avframe", rate=FPS)
        stream.width, stream.height = pictures[0].width, pictures[0].height
        stream.pix_fmt = "yuv420p"
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(pictures[i % len(pictures)].to_ndarray(), "yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    # Cut or filled to the length of the pictures, so that both stay together when they repeat.
    once = np.zeros(round(len(pictures) / FPS * RATE_HZ), np.int16)
    once[: min(len(once), len(sound))] = sound[: len(once)]
    with wave.open(str(audio), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(np.resize(once, round(seconds * RATE_HZ)).tobytes())
    return [
        *FLAGS,
        f"--use-file-for-fake-video-capture={video}",
        f"--use-file-for-fake-audio-capture={audio}",
    ]


def decode(clip: Path) -> tuple[list[Any], np.ndarray[Any, Any]]:
    """Its pictures (yuv420p) and its sound, int16 [n] at 48 kHz mono."""
    pictures: list[Any] = []
    pieces: list[Any] = []
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
    with av.open(str(clip)) as file:
        for frame in file.decode(video=0, audio=0):
            if isinstance(frame, av.VideoFrame):
                pictures.append(frame.reformat(format="yuv420p"))
            else:
                pieces += resampler.resample(frame)
    pieces += resampler.resample(None)
    assert pictures, f"no pictures in {clip}"
    return pictures, np.concatenate([p.to_ndarray().reshape(-1) for p in pieces])
