# SPDX-License-Identifier: Apache-2.0
"""What files and network streams share: PyAV's frames become RGB pictures and mono sound."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from runtime.errors import MediaError
from runtime.media import Frame, Samples
from runtime.media.downmix import Downmix
from runtime.media.picking import Tracks, pick
from runtime.optional import optional

MAX_PIXELS = 36_000_000  # a little above 8K (7680 x 4320); one decoded frame takes 54 MB
MAX_SIDE_PX = 1920  # longer frames are scaled down to this side
MIN_FPS, MAX_FPS = 0.1, 1000.0  # a nominal frame rate beyond these is not believed
MAX_STREAMS = 64  # in one container; broadcasts have a few dozen
MIN_SOUND_HZ = 4_000  # telephony has 8000; one byte at 1 Hz would become 16000 samples
MAX_SOUND_HZ = 768_000  # four times what studios use
DECODER_THREADS = 2  # a 640x480 stream needs a small share of one
OUT_OF_PHASE = (
    "the channels of the sound are out of phase and cancel each other out when they are mixed: "
    "channel {} is heard alone"
)
DISPLAY_MATRIX = "DISPLAYMATRIX"
SQUARE = Fraction(1)  # the pixels of almost everything
# of a pixel, width to height; what is sold has 6:11 (704x288) to 32:11 (352x576 of a wide picture)
MIN_PIXEL_ASPECT, MAX_PIXEL_ASPECT = Fraction(1, 4), Fraction(4)


class Resampler:
    """Mono float32 at one rate, also when the input's format changes on the way.

    Parameters
    ----------
    rate_hz : of what comes out
    hold : may the beginning of the sound be held back until it is known whether its channels
        cancel each other out (:mod:`runtime.media.downmix`)?  Of a file, not of a live source
    notice : is told once, in a line, that they do
    """

    def __init__(
        self,
        av: Any,
        rate_hz: int,
        *,
        hold: bool = False,
        notice: Callable[[str], None] | None = None,
    ) -> None:
        self._av = av
        self._rate_hz = rate_hz
        self._hold, self._notice = hold, notice
        self._format: tuple[Any, ...] | None = None
        self._inner: Any = None  # mono at any rate -> mono at ours
        self._unpack: Any = None  # any format -> float32, interleaved
        self._downmix: Downmix | None = None

    def push(self, frame: Any) -> list[Any]:
        """Raises PyAV's FFmpegError for a layout of channels that there is not; the next may do."""
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        done = []
        try:
            if form != self._format:
                done = self.finish()
                self._begin(frame)
                self._format = form
            return done + self._resampled(frame)
        except self._av.FFmpegError:
            self._format = self._inner = self._downmix = None
            raise

    def finish(self) -> list[Any]:
        if self._inner is None:
            return []
        done = []
        if self._downmix is not None:
            done = self._mono(self._unpack.resample(None))
            done += self._joined(self._downmix.finish())
        return done + list(self._inner.resample(None))

    def _begin(self, frame: Any) -> None:
        make, layout, rate_hz = self._av.AudioResampler, frame.layout, frame.sample_rate
        self._inner, self._downmix = None, None
        if layout.nb_channels > 1:
            self._unpack = make(format="flt", layout=layout, rate=rate_hz)
            self._downmix = Downmix(self._weights(layout, rate_hz), rate_hz, hold=self._hold)
        self._inner = make(format="flt", layout="mono", rate=self._rate_hz)
        self._source_hz = rate_hz

    def _weights(self, layout: Any, rate_hz: int) -> list[float]:
        """Of the channels in FFmpeg's own downmix: what it makes of each one alone."""
        channels = layout.nb_channels
        ones = np.eye(channels, dtype=np.float32).reshape(1, -1)  # sample i: channel i alone
        frame = self._av.AudioFrame.from_ndarray(ones, "flt", layout.name)
        frame.sample_rate = rate_hz
        mono = self._av.AudioResampler(format="flt", layout="mono", rate=rate_hz)
        mixed = [f.to_ndarray().reshape(-1) for f in (*mono.resample(frame), *mono.resample(None))]
        return np.concatenate(mixed)[:channels].tolist()  # type: ignore[no-any-return]

    def _resampled(self, frame: Any) -> list[Any]:
        if self._downmix is None:
            return list(self._inner.resample(frame))
        return self._mono(self._unpack.resample(frame))

    def _mono(self, frames: Iterable[Any]) -> list[Any]:
        """Frames of interleaved float32 -> what comes out for them."""
        assert self._downmix is not None
        done: list[Any] = []
        for frame in frames:
            channels = frame.to_ndarray().reshape(frame.samples, -1).T  # [c, n]
            tag = (frame.pts, frame.time_base)
            done += self._joined(self._downmix.push(np.ascontiguousarray(channels), tag))
        return done

    def _joined(self, pieces: Iterable[tuple[Any, Samples]]) -> list[Any]:
        assert self._downmix is not None
        if self._downmix.ever is not None and self._notice is not None:
            self._notice(OUT_OF_PHASE.format(self._downmix.ever + 1))
            self._notice = None
        done: list[Any] = []
        for (pts, time_base), samples in pieces:
            if not samples.size:
                continue
            frame = self._av.AudioFrame.from_ndarray(samples[None], "flt", "mono")
            frame.sample_rate, frame.pts = self._source_hz, pts
            if time_base:
                frame.time_base = time_base
            done += self._inner.resample(frame)
        return done


def import_av() -> Any:
    with optional("to read media files"):
        import av
        import av.filter
        import av.stream
        import av.video.reformatter
    return av


def pick_streams(
    av: Any, container: Any, name: str, *, thread_type: str, tracks: Tracks | None = None
) -> tuple[Any, Any]:
    """Picture and sound to judge (:mod:`runtime.media.picking`), each None where there is none.

    ``thread_type``: AUTO decodes several frames at once, SLICE adds no delay.  Raises
    :class:`MediaError` where there is neither, or frames are too large, and :class:`UsageError`
    where one of ``tracks`` is not there.
    """
    picked = pick(av, container, name, tracks or Tracks())
    video, audio = (None if track is None else track.stream for track in picked)
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


def believable_aspect(ratio: Fraction | None) -> Fraction:
    """A pixel's width to its height; square where nothing is said, or what no camera has."""
    return ratio if ratio and MIN_PIXEL_ASPECT <= ratio <= MAX_PIXEL_ASPECT else SQUARE


def shown_size(width: int, height: int, aspect: Fraction = SQUARE) -> tuple[int, int]:
    """Width and height of the picture as it is shown, with square pixels, of what is coded.

    The side that pixels are too short for grows, so that nothing is lost, and the whole is scaled
    down to :data:`MAX_SIDE_PX`.  ``aspect`` is one of :func:`believable_aspect`.
    """
    wide, high = width * max(aspect, SQUARE), height * max(1 / aspect, SQUARE)
    scale = min(SQUARE, MAX_SIDE_PX / max(wide, high))
    return max(1, round(wide * scale)), max(1, round(high * scale))


class PixelAspect:
    """The pixels' aspect of one stream's pictures, which may change on the way.

    It stands in the container, in the pictures or in both.  Where both say something the container
    is right, as for players; else what the pictures say at the moment counts.
    """

    def __init__(self, stream: Any) -> None:
        self._codec = stream.codec_context
        self._stated = stream.sample_aspect_ratio  # by the container, else by the first pictures
        self._fixed = self._stated if self._stated != self._codec.sample_aspect_ratio else None
        self._now = self._read()

    def of(self, frame: Any) -> Fraction:
        """Of a frame that was decoded just now."""
        # with several threads the decoder may already be at the next size: then what was, counts
        if (frame.width, frame.height) == (self._codec.width, self._codec.height):
            self._now = self._read()
        return self._now

    def _read(self) -> Fraction:
        return believable_aspect(self._fixed or self._codec.sample_aspect_ratio or self._stated)


class OneMoment:
    """Interlaced pictures -> their upper field; others as they are.

    The two fields of a camera that takes 50 a second are 20 ms apart, so that whatever moves is
    combed, faces above all.  One field is one moment: as good for what follows as filters that
    combine both (bwdif, yadif), which wait for the next picture besides.  Where the lower field
    comes first (DV) it is 20 ms late.
    """

    def __init__(self, av: Any) -> None:
        self._av = av
        self._graph: Any = None
        self._form: tuple[Any, ...] | None = None

    def __call__(self, frame: Any) -> Any:
        if not frame.interlaced_frame or frame.height < 2:
            return frame
        form = (frame.format.name, frame.width, frame.height)
        if form != self._form:
            self._graph, self._form = self._upper_field(*form), form
        self._graph.push(frame)
        return self._graph.pull()

    def _upper_field(self, pixels: str, width: int, height: int) -> Any:
        graph = self._av.filter.Graph()
        graph.threads = 1
        source = graph.add_buffer(
            width=width, height=height, format=pixels, time_base=Fraction(1, 90_000)
        )
        field, sink = graph.add("field", "top"), graph.add("buffersink")
        source.link_to(field)
        field.link_to(sink)
        graph.configure()
        return graph


class RgbConverter:
    """Frames of one source -> RGB, at most :data:`MAX_SIDE_PX` long, the way they are to be shown:
    upright and with square pixels.

    One scaler for all frames, in one thread.  By default PyAV makes one for each frame, which keeps
    threads of its own for as long as the frame lives: ten times the work, and hundreds of threads.

    How a picture is to be turned is read once, and again where its angle changes: PyAV 18 puts a
    frame whose side data was looked at in a reference cycle, so that it keeps its memory until the
    garbage collector comes by, which under a steady stream is seldom.
    """

    def __init__(self, av: Any) -> None:
        self._scaler = av.video.reformatter.VideoReformatter()
        self._one_moment = OneMoment(av)
        self._lock = threading.Lock()  # chunks may be read by any thread
        self._angle: int | None = None  # of the frame whose matrix this is; None: none seen yet
        self._matrix: bytes | None = None

    def __call__(self, frame: Any, aspect: Fraction = SQUARE) -> Frame:  # [H, W, 3]
        width, height = shown_size(frame.width, frame.height, aspect)
        with self._lock:
            if frame.rotation != self._angle:
                found = frame.side_data.get(DISPLAY_MATRIX)
                self._angle = frame.rotation
                self._matrix = None if found is None else bytes(found)
            matrix = self._matrix
            scaled = self._scaler.reformat(
                self._one_moment(frame),
                width=width,
                height=height,
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
