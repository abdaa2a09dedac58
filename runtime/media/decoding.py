# SPDX-License-Identifier: Apache-2.0
"""What files and network streams share: PyAV's frames become RGB pictures and mono sound."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from runtime.errors import DependencyError, MediaError
from runtime.media import Frame, Samples

MAX_PIXELS = 36_000_000  # a little above 8K (7680 x 4320); one decoded frame takes 54 MB
MAX_SIDE_PX = 1920  # longer frames are scaled down to this side
MIN_FPS, MAX_FPS = 0.1, 1000.0  # a nominal frame rate beyond these is not believed
MAX_STREAMS = 64  # in one container; broadcasts have a few dozen
MIN_SOUND_HZ = 4_000  # telephony has 8000; one byte at 1 Hz would become 16000 samples
MAX_SOUND_HZ = 768_000  # four times what studios use
DECODER_THREADS = 2  # a 640x480 stream needs a small share of one
DISPLAY_MATRIX = "DISPLAYMATRIX"


class Resampler:
    """Mono float32 at one rate, also when the input's format changes on the way."""

    def __init__(self, av: Any, rate_hz: int) -> None:
        self._av = av
        self._rate_hz = rate_hz
        self._format: tuple[Any, ...] | None = None
        self._inner: Any = None

    def push(self, frame: Any) -> list[Any]:
        """Raises PyAV's FFmpegError for a layout of channels that there is not; the next may do."""
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        done = []
        if form != self._format:
            done = self.finish()
            self._inner = self._av.AudioResampler(format="flt", layout="mono", rate=self._rate_hz)
            self._format = form
        try:
            return done + list(self._inner.resample(frame))
        except self._av.FFmpegError:
            self._format = self._inner = None
            raise

    def finish(self) -> list[Any]:
        return list(self._inner.resample(None)) if self._inner is not None else []


def import_av() -> Any:
    try:
        import av
        import av.stream
        import av.video.reformatter
    except ImportError as err:
        raise DependencyError("PyAV is needed to read media files: pip install '.[cpu]'") from err
    return av


def pick_streams(av: Any, container: Any, name: str, *, thread_type: str) -> tuple[Any, Any]:
    """The first moving picture (cover art is none) and the first sound with a decoder, or None.

    ``thread_type``: AUTO decodes several frames at once, SLICE adds no delay.  Raises
    :class:`MediaError` where there is neither, or frames are too large.
    """
    streams = container.streams
    attached = av.stream.Disposition.attached_pic
    videos = [
        s for s in streams.video if s.codec_context is not None and not s.disposition & attached
    ]
    audios = [s for s in streams.audio if s.codec_context is not None]
    video, audio = (videos or [None])[0], (audios or [None])[0]
    if video is None and audio is None:
        raise MediaError(f"{name}: holds neither pictures nor sound that can be decoded")
    if video is not None:
        check_size(name, video.codec_context.width, video.codec_context.height)
        video.thread_type = thread_type
        video.codec_context.thread_count = min(DECODER_THREADS, os.cpu_count() or 1)
        # pictures may grow on the way: the decoder refuses them before it asks for their memory
        video.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return video, audio


def next_packet(packets: Iterator[Any]) -> Any:
    """Of a container's ``demux``; None at its end.

    Where streams appear while a file is read (MPEG-TS, FLV), PyAV looks for the last packets of
    them as well, at the end, in its list of those that were there when it was opened.
    """
    try:
        return next(packets, None)
    except IndexError:
        return None


def nominal_fps(stream: Any) -> float | None:
    """What a video stream (or None) says of its frame rate, where that can be believed."""
    rate = (stream.average_rate or stream.guessed_rate) if stream is not None else None
    return believable_fps(float(rate)) if rate else None


def believable_fps(fps: float) -> float | None:
    """``fps``, or None where no camera has such a rate."""
    return fps if MIN_FPS <= fps <= MAX_FPS else None


def is_sound_rate(rate_hz: int) -> bool:
    """Is it one that sound has?  Frames with another one are damaged, and not to be resampled."""
    return MIN_SOUND_HZ <= rate_hz <= MAX_SOUND_HZ


def clean_samples(frame: Any) -> Samples:  # [n]
    """Sound decoded from damaged data can hold NaN and values far outside [-1, 1]."""
    samples: Samples = frame.to_ndarray().reshape(-1).astype(np.float32, copy=False)
    if np.abs(samples).max(initial=0.0) <= 1.0:  # also says that none is NaN
        return samples
    return np.clip(np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0), -1.0, 1.0)


def check_size(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise MediaError(
            f"{name}: frames of {width}x{height} pixels are beyond the limit of "
            f"{MAX_PIXELS // 1_000_000} megapixels; scale the video down first"
        )


class RgbConverter:
    """Frames of one source -> RGB, at most :data:`MAX_SIDE_PX` long, the way they are to be shown.

    One scaler for all frames, in one thread.  By default PyAV makes one for each frame, which keeps
    threads of its own for as long as the frame lives: ten times the work, and hundreds of threads.

    How a picture is to be turned is read once, and again where its angle changes: PyAV 18 puts a
    frame whose side data was looked at in a reference cycle, so that it keeps its memory until the
    garbage collector comes by, which under a steady stream is seldom.
    """

    def __init__(self, av: Any) -> None:
        self._scaler = av.video.reformatter.VideoReformatter()
        self._lock = threading.Lock()  # chunks may be read by any thread
        self._angle: int | None = None  # of the frame whose matrix this is; None: none seen yet
        self._matrix: bytes | None = None

    def __call__(self, frame: Any) -> Frame:  # [H, W, 3]
        scale = min(1.0, MAX_SIDE_PX / max(frame.width, frame.height))
        with self._lock:
            if frame.rotation != self._angle:
                found = frame.side_data.get(DISPLAY_MATRIX)
                self._angle = frame.rotation
                self._matrix = None if found is None else bytes(found)
            matrix = self._matrix
            scaled = self._scaler.reformat(
                frame,
                width=max(1, round(frame.width * scale)),
                height=max(1, round(frame.height * scale)),
                format="rgb24",
                threads=1,
            )
        rgb: Frame = scaled.to_ndarray()
        return rgb if matrix is None else _display(rgb, matrix)


def _display(rgb: Frame, matrix: bytes) -> Frame:
    """Applies a QuickTime display matrix: quarter turns and mirrorings, the nearest one.

    The matrix is nine int32 ``a b u; c d v; x y w``: a pixel (p, q) is shown at
    (a p + c q + x, b p + d q + y).
    """
    a, b, _, c, d = (float(v) for v in np.frombuffer(matrix, dtype="=i4")[:5])
    if abs(b) + abs(c) > abs(a) + abs(d):  # a quarter turn: columns become rows
        rgb, a, d = rgb.transpose(1, 0, 2), c, b
    if a < 0:
        rgb = rgb[:, ::-1]
    if d < 0:
        rgb = rgb[::-1]
    return np.ascontiguousarray(rgb)


def reason_of(err: BaseException) -> str:
    """FFmpeg's own words, without the path that PyAV appends."""
    text = getattr(err, "strerror", None) or str(err)
    return str(text).splitlines()[0] if text else type(err).__name__
