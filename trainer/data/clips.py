# SPDX-License-Identifier: Apache-2.0
"""A clip in memory, on the runtime's own 25 Hz grid, and back to a file.

Reading goes through :mod:`runtime.media`, :mod:`runtime.grid` and :mod:`runtime.faces.tracker`, so
a training clip is what the device would have seen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime import leftovers
from runtime.errors import MediaError
from runtime.faces import Face
from runtime.faces.stage import Tracker
from runtime.faces.tracker import FaceTracker
from runtime.grid import TimelineError, VideoGrid
from runtime.media import VideoChunk
from runtime.media.decoding import pick_streams
from runtime.media.file import READ_OPTIONS, FileSource
from runtime.media.local_files import ffmpeg_name
from runtime.spec import AudioSpec, FaceSpec

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


@dataclass
class FaceClip:
    """The main face of a file and its sound, without the pictures they came from."""

    crops: list[UInt8 | None]  # one a token, each [H, W, 3] RGB; None: no face
    audio: Float32  # [n] mono at 16 kHz, n = 640 per token
    facts: MediaFacts


@dataclass(frozen=True)
class MediaFacts:
    """What a file is, apart from what it shows."""

    file_bytes: int
    video_bit_rate: int
    audio_bit_rate: int
    fps: float | None  # as the file declares it; None: it does not
    width: int
    height: int
    duration_s: float  # of what was read
    damaged: int  # packets and timestamps that were dropped or repaired
    cut: bool  # longer than MAX_CLIP_S: the rest was not read


def read_clip(
    path: Path, audio_spec: AudioSpec, *, start_s: float = 0.0, duration_s: float = MAX_CLIP_S
) -> Clip:
    """Decode ``[start_s, start_s + duration_s)`` of a file with picture and sound.

    Raises :class:`runtime.errors.MediaError` where one of the two is missing or has a gap.
    """
    frames: list[UInt8] = []
    with _open(path, audio_spec) as source:
        audio = _decode(source, path, audio_spec, start_s, duration_s, frames.append)
    return Clip(path, frames, audio)


def read_faces(
    path: Path, audio_spec: AudioSpec, face_spec: FaceSpec, encoder: Path | None = None
) -> FaceClip:
    """Decode a file once, keeping of each picture only the faces.

    encoder : of :mod:`trainer.distil`, which follows the faces where the stage is ``encoder``

    Raises :class:`runtime.errors.MediaError` as :func:`read_clip` does.
    """
    if encoder is None:
        tracker: Tracker = _tracker(face_spec)
    else:
        from trainer.face.following import fresh_stage

        tracker = fresh_stage(encoder, face_spec)
    found: list[dict[int, UInt8]] = []

    def look(frame: UInt8) -> None:
        found.append({f.track_id: f.crop for f in tracker.update(frame, len(found))})

    with _open(path, audio_spec) as source:
        audio = _decode(source, path, audio_spec, 0.0, MAX_CLIP_S, look)
        seconds = len(audio) / audio_spec.sample_rate_hz
        video_bytes, audio_bytes = _packet_bytes(path)
        whole_s = max(source.info.duration_s or 0.0, seconds)
        facts = MediaFacts(
            file_bytes=path.stat().st_size,
            video_bit_rate=round(8 * video_bytes / whole_s),
            audio_bit_rate=round(8 * audio_bytes / whole_s),
            fps=round(source.info.fps, 3) if source.info.fps else None,
            width=source.info.width,
            height=source.info.height,
            duration_s=round(seconds, 3),
            damaged=source.damaged,
            cut=whole_s > MAX_CLIP_S + 1.0,
        )
    main = _longest(found)
    return FaceClip([faces.get(main) for faces in found], audio, facts)


def _open(path: Path, audio_spec: AudioSpec) -> FileSource:
    source = FileSource(path, sample_rate_hz=audio_spec.sample_rate_hz)
    if not (source.info.has_video and source.info.has_audio):
        source.close()
        raise MediaError(f"{path.name}: training clips need a picture and sound")
    return source


def _decode(
    source: FileSource,
    path: Path,
    audio_spec: AudioSpec,
    start_s: float,
    duration_s: float,
    visit: Callable[[UInt8], None],
) -> Float32:
    """Calls ``visit`` with the picture of each token; returns their sound, 640 samples each."""
    grid: VideoGrid[VideoChunk] = VideoGrid(audio_spec.token_hz)
    first = round(start_s * audio_spec.token_hz)
    last = first + round(duration_s * audio_spec.token_hz)
    end_s = last / audio_spec.token_hz + 1.0  # a second later nothing can belong to the piece
    tokens = 0
    sound: list[tuple[float, Float32]] = []

    def take(items: list[Any]) -> None:
        nonlocal tokens
        for item in items:
            if first <= item.token < last:
                if item.frame is None:
                    raise MediaError(f"{path.name}: picture missing at token {item.token}")
                visit(item.frame.frame)
                tokens += 1

    reached = {True: 0.0, False: 0.0}  # is it a picture? -> seconds
    for chunk in source:
        is_picture = isinstance(chunk, VideoChunk)
        reached[is_picture] = chunk.t_s
        if min(reached.values()) > end_s:
            break
        if isinstance(chunk, VideoChunk):
            try:
                take(grid.push(chunk.t_s, chunk))
            except TimelineError:
                continue  # a repeated timestamp: the grid shows the picture before it
        else:
            sound.append((chunk.t_s, chunk.samples))
    take(grid.finish())
    if not tokens or not sound:
        raise MediaError(f"{path.name}: no picture or no sound could be decoded")
    length = tokens * audio_spec.token_samples
    audio = np.zeros(length, np.float32)
    for t_s, samples in sound:
        at = round((t_s - first / audio_spec.token_hz) * audio_spec.sample_rate_hz)
        lo, hi = max(at, 0), min(at + len(samples), length)
        if lo < hi:
            audio[lo:hi] = samples[lo - at : hi - at]
    return audio


def _packet_bytes(path: Path) -> tuple[int, int]:
    """Compressed bytes of the tracks that :class:`FileSource` reads; nothing is decoded."""
    import av

    sizes = {"video": 0, "audio": 0}
    name = ffmpeg_name(path)
    with av.open(name, options=dict(READ_OPTIONS), metadata_errors="replace") as container:
        streams = pick_streams(av, container, path.name, thread_type="AUTO")
        try:
            for packet in container.demux(*streams):
                sizes[packet.stream.type] += packet.size
        except av.FFmpegError:
            pass  # the container breaks off here, as it did when it was decoded
    return sizes["video"], sizes["audio"]


def find_faces(clip: Clip, spec: FaceSpec) -> list[Face | None]:
    """The face that is there longest, one entry a token; remembered in ``clip.faces``."""
    if clip.faces is None:
        tracker = _tracker(spec)
        found: list[dict[int, Face]] = []
        for token, frame in enumerate(clip.frames):
            found.append({face.track_id: face for face in tracker.update(frame, token)})
        main = _longest(found)
        clip.faces = [faces.get(main) for faces in found]
    return clip.faces


def _tracker(spec: FaceSpec) -> FaceTracker:
    """A tracker that knows no face.  One a process serves clip after clip: to load dlib's models
    takes as long as to follow a face for two seconds."""
    tracker = _loaded_tracker(spec)
    tracker.reset()
    return tracker


@functools.lru_cache(maxsize=1)
def _loaded_tracker(spec: FaceSpec) -> FaceTracker:
    return FaceTracker(spec)


def _longest(found: Sequence[Mapping[int, Any]]) -> int:
    """The track that is in most tokens, the older one of two; -1 where there is none."""
    lengths: dict[int, int] = {}
    for faces in found:
        for track_id in faces:
            lengths[track_id] = lengths.get(track_id, 0) + 1
    return max(lengths, key=lambda k: (lengths[k], -k), default=-1)


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
    height, width = (side - side % 2 for side in frames[0].shape[:2])
    with (
        leftovers.part_of(path) as temporary,
        av.open(ffmpeg_name(temporary), "w", format="mp4") as container,
    ):
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
