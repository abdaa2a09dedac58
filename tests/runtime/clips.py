# SPDX-License-Identifier: Apache-2.0
"""Media files made by PyAV for the tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.stream
import numpy as np

TICKS_HZ = 1000  # of the picture's timestamps


def plain_picture(index: int, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """size (width, height): left half red, right half blue, brighter from frame to frame."""
    width, height = size
    frame = np.zeros((height, width, 3), np.uint8)
    frame[:, : width // 2, 0] = 128 + index % 100
    frame[:, width // 2 :, 2] = 128 + index % 100
    return frame


def tone(seconds: float, rate_hz: int = 16_000, pitch_hz: float = 440.0) -> np.ndarray[Any, Any]:
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * pitch_hz * t)).astype(np.float32)


def write_clip(
    path: Path,
    *,
    seconds: float = 3.0,
    fps: float = 25.0,
    times_ms: Sequence[int] | None = None,
    size: tuple[int, int] = (160, 120),
    video: bool = True,
    sound: np.ndarray[Any, Any] | str | None = "tone",
    sound_starts_ms: int = 0,
    codec: str = "mpeg4",
    pix_fmt: str = "yuv420p",
    picture: Callable[[int, tuple[int, int]], np.ndarray[Any, Any]] = plain_picture,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    rate: int | Fraction | None = None,
    gop: int | None = None,
    sound_codec: str | None = None,
) -> Path:
    """A clip with pictures at ``times_ms`` (default: ``fps`` for ``seconds``) and mono sound."""
    if times_ms is None:
        times_ms = [round(i * 1000 / fps) for i in range(round(seconds * fps))]
    samples = tone(seconds) if isinstance(sound, str) else sound
    with av.open(str(path), "w", options=options or {}) as out:
        stream: Any = None
        if video:
            stream = out.add_stream(codec, rate=rate or Fraction(fps).limit_denominator(1000))
            stream.width, stream.height = size
            stream.pix_fmt = pix_fmt
            stream.codec_context.time_base = Fraction(1, TICKS_HZ)
            if gop is not None:  # a key picture every so many
                stream.codec_context.gop_size = gop
                stream.codec_context.options = {"sc_threshold": "0"}  # and none in between
            if rotation:
                stream.set_display_rotation(rotation)
        audio: Any = None
        if samples is not None:
            audio = out.add_stream(sound_codec or _sound_codec(path), rate=16_000)
            audio.layout = "mono"
        packets: list[Any] = []
        for i, t in enumerate(times_ms if video else []):
            frame = av.VideoFrame.from_ndarray(picture(i, size), "rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = t, Fraction(1, TICKS_HZ)
            packets += stream.encode(frame)
        if video:
            packets += stream.encode(None)
        if samples is not None:
            packets += _encode_sound(audio, samples, sound_starts_ms)
        for packet in sorted(packets, key=lambda p: float(p.dts * p.time_base)):
            out.mux(packet)
    return path


def _sound_codec(path: Path) -> str:
    return {".wav": "pcm_s16le", ".mkv": "pcm_s16le", ".mov": "pcm_s16le"}.get(path.suffix, "aac")


def _encode_sound(stream: Any, samples: np.ndarray[Any, Any], start_ms: int) -> list[Any]:
    packets: list[Any] = []
    form = "s16" if "pcm" in stream.codec_context.name else "fltp"
    if form == "s16":
        samples = (samples * 32767).astype(np.int16)
    for at in range(0, len(samples), 1024):
        frame = av.AudioFrame.from_ndarray(samples[None, at : at + 1024], form, "mono")
        frame.sample_rate = 16_000
        frame.pts, frame.time_base = start_ms * 16 + at, Fraction(1, 16_000)
        packets += stream.encode(frame)
    return packets + list(stream.encode(None))


@dataclass(frozen=True)
class Extra:
    """One track of :func:`write_tracks`: a colour (0 red, 1 green, 2 blue) or a pitch."""

    colour: int | None = None
    pitch_hz: float | None = None
    default: bool = False
    cover: bool = False  # of a colour: one picture, attached
    described: bool = False  # of a pitch: for people who cannot see
    language: str = ""


def write_tracks(
    path: Path,
    tracks: Sequence[Extra],
    *,
    seconds: float = 1.0,
    options: dict[str, str] | None = None,
) -> Path:
    """Several pictures (64x48, 25 a second) and sounds (mono, 16 kHz) in one file."""
    flags = av.stream.Disposition
    with av.open(str(path), "w", options=options or {}) as out:
        packets: list[Any] = []
        for track in tracks:
            stream: Any
            if track.colour is not None:
                stream = out.add_stream("mjpeg" if track.cover else "mpeg4", rate=25)
                stream.width, stream.height = 64, 48
                stream.pix_fmt = "yuvj420p" if track.cover else "yuv420p"
            else:
                stream = out.add_stream("aac", rate=16_000, layout="mono")
            stream.disposition = (
                flags.default * track.default
                | flags.attached_pic * track.cover
                | flags.visual_impaired * track.described
            )
            if track.language:
                stream.metadata["language"] = track.language
            if track.pitch_hz is not None:
                packets += _encode_sound(stream, tone(seconds, pitch_hz=track.pitch_hz), 0)
                continue
            picture = np.zeros((48, 64, 3), np.uint8)
            picture[..., track.colour] = 255
            for i in range(1 if track.cover else round(25 * seconds)):
                frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = i, Fraction(1, 25)
                packets += stream.encode(frame)
            packets += stream.encode(None)
        for packet in sorted(packets, key=lambda p: float(p.dts * p.time_base)):
            out.mux(packet)
    return path


def loudest_hz(samples: np.ndarray[Any, Any], rate_hz: int = 16_000) -> float:
    """The pitch of a tone."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.fft.rfftfreq(len(samples), 1 / rate_hz)[spectrum.argmax()])
