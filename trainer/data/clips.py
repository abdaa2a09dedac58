# SPDX-License-Identifier: Apache-2.0
"""A clip in memory, on the runtime's own 25 Hz grid, and back to a file.

Reading goes through :mod:`runtime.media`, :mod:`runtime.timeline` and :mod:`runtime.faces`, so a
training clip is what the device would have seen.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.audio import AudioTokens, tokenize
from runtime.errors import MediaError
from runtime.faces import Face, FaceTracker
from runtime.media import VideoChunk
from runtime.media.file import FileSource
from runtime.spec import AudioSpec, FaceSpec
from runtime.timeline import TimelineError, VideoGrid

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

VIDEO_SUFFIXES = frozenset({".mp4", ".mpg", ".mpeg", ".avi", ".mov", ".mkv", ".webm", ".m4v"})
MAX_CLIP_S = 120.0


@dataclass
class Clip:
    """Pictures and sound of one piece of a file; both start at the piece's time 0."""

    path: Path
    frames: list[UInt8]  # one a token, each [H, W, 3] RGB
    audio: Float32  # [n] mono at 16 kHz, n = 640 per token
    faces: list[Face | None] | None = None  # the longest-lived face, one entry a token

    @property
    def tokens(self) -> int:
        return len(self.frames)


def read_clip(
    path: Path, audio_spec: AudioSpec, *, start_s: float = 0.0, duration_s: float = MAX_CLIP_S
) -> Clip:
    """Decode ``[start_s, start_s + duration_s)`` of a file with picture and sound.

    Raises :class:`runtime.errors.MediaError` where one of the two is missing or has a gap.
    """
    grid: VideoGrid[VideoChunk] = VideoGrid(audio_spec.token_hz)
    first = round(start_s * audio_spec.token_hz)
    last = first + round(duration_s * audio_spec.token_hz)
    frames: list[UInt8] = []
    sound: list[tuple[float, Float32]] = []
    with FileSource(path, sample_rate_hz=audio_spec.sample_rate_hz) as source:
        if not (source.info.has_video and source.info.has_audio):
            raise MediaError(f"{path.name}: training clips need a picture and sound")

        def take(items: list[Any]) -> None:
            for item in items:
                if first <= item.token < last:
                    if item.frame is None:
                        raise MediaError(f"{path.name}: picture missing at token {item.token}")
                    frames.append(item.frame.frame)

        for chunk in source:
            if isinstance(chunk, VideoChunk):
                try:
                    take(grid.push(chunk.t_s, chunk))
                except TimelineError:
                    continue  # a repeated timestamp: the grid shows the picture before it
            else:
                sound.append((chunk.t_s, chunk.samples))
        take(grid.finish())
    length = len(frames) * audio_spec.token_samples
    audio = np.zeros(length, np.float32)
    for t_s, samples in sound:
        at = round((t_s - first / audio_spec.token_hz) * audio_spec.sample_rate_hz)
        lo, hi = max(at, 0), min(at + len(samples), length)
        if lo < hi:
            audio[lo:hi] = samples[lo - at : hi - at]
    if not frames or not sound:
        raise MediaError(f"{path.name}: no picture or no sound could be decoded")
    return Clip(path, frames, audio)


def find_faces(clip: Clip, spec: FaceSpec) -> list[Face | None]:
    """The face that is there longest, one entry a token; remembered in ``clip.faces``."""
    if clip.faces is None:
        tracker = FaceTracker(spec)
        found: list[dict[int, Face]] = []
        for token, frame in enumerate(clip.frames):
            found.append({face.track_id: face for face in tracker.update(frame, token)})
        lengths: dict[int, int] = {}
        for faces in found:
            for track_id in faces:
                lengths[track_id] = lengths.get(track_id, 0) + 1
        main = max(lengths, key=lambda k: (lengths[k], -k), default=-1)
        clip.faces = [faces.get(main) for faces in found]
    return clip.faces


def audio_tokens(clip: Clip, spec: AudioSpec) -> AudioTokens:
    """[T, 104] for the T tokens of the clip."""
    return tokenize(clip.audio, spec)


def write_clip(
    path: Path,
    frames: list[UInt8],
    audio: Float32,
    audio_spec: AudioSpec,
    *,
    crf: int = 20,
    audio_bit_rate: int = 64_000,
) -> None:
    """frames [H, W, 3] at 25 Hz and mono audio -> MP4 (H.264, AAC).  Atomic: whole or not at all.

    Odd sides lose their last row or column (4:2:0 sampling).
    """
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    height, width = (side - side % 2 for side in frames[0].shape[:2])
    try:
        with av.open(str(temporary), "w", format="mp4") as container:
            video: Any = container.add_stream("libx264", rate=Fraction(audio_spec.token_hz))
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
            video.options = {"crf": str(crf), "preset": "veryfast"}
            video.codec_context.thread_count = 1  # the same bytes on every machine
            sound: Any = container.add_stream("aac", rate=audio_spec.sample_rate_hz)
            sound.codec_context.layout = "mono"
            sound.codec_context.bit_rate = audio_bit_rate
            for i, rgb in enumerate(frames):
                picture = av.VideoFrame.from_ndarray(
                    np.ascontiguousarray(rgb[:height, :width]), format="rgb24"
                )
                picture.pts, picture.time_base = i, Fraction(1, round(audio_spec.token_hz))
                container.mux(video.encode(picture))
            container.mux(video.encode(None))
            for at in range(0, len(audio), 1024):  # AAC's frame size
                block = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(audio[None, at : at + 1024]), format="fltp", layout="mono"
                )
                block.sample_rate, block.pts = audio_spec.sample_rate_hz, at
                block.time_base = Fraction(1, audio_spec.sample_rate_hz)
                container.mux(sound.encode(block))
            container.mux(sound.encode(None))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
