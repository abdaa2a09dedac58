# SPDX-License-Identifier: Apache-2.0
"""The annotated video: what the model saw, with its verdicts drawn in and the original sound.

Pictures are those of the 25 Hz grid, at their stream time; a gap stays a gap, the picture before it
stands.  The sound of a file is copied packet by packet, with the same zero as the pictures; that of
a live source is what the model hears, encoded as AAC.  A picture shows the newest verdict whose
window had ended by then, so pictures wait for it, up to :data:`MAX_HELD`.

The file appears when its source has ended, whole or not at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import DependencyError
from runtime.media import AudioChunk, Samples
from runtime.media.decoding import MAX_STREAMS, next_packet
from runtime.media.file import FORMATS, OriginalSound
from runtime.sinks import Picture
from runtime.sinks.output import PendingFile
from runtime.sinks.overlay import Overlay
from runtime.verdict import Verdict

if TYPE_CHECKING:
    from runtime.pipeline import Summary

ENCODERS = ("libx264", "h264")  # the second: whatever H.264 encoder this FFmpeg has
QUALITY = {"preset": "veryfast", "crf": "21", "bf": "0"}
MAX_HELD = 25  # pictures that wait for their verdict
MAX_EARLY_S = 10.0  # of sound kept before the first picture
GAP_S = 0.02  # in the sound, from which on silence is filled in


class VideoSink:
    """One source's annotated MP4.

    Parameters
    ----------
    target : the file
    token_hz : of the grid
    hop_s : time between verdicts
    sound_hz : rate of what :meth:`sound` brings; None: the video has no sound
    original : the sound of a file, to be copied instead

    Raises :class:`runtime.sinks.jsonl.OutputError` where the target cannot be written, and
    :class:`DependencyError` without PyAV or an H.264 encoder.
    """

    def __init__(
        self,
        target: Path,
        *,
        token_hz: float,
        hop_s: float,
        sound_hz: int | None = None,
        original: OriginalSound | None = None,
    ) -> None:
        self._av, self._encoder = _import_av()
        self._file = PendingFile(target)
        self._hz, self._hop_s = round(token_hz), hop_s
        self._sound_hz, self._original = sound_hz, original
        self._held: deque[Picture] = deque()
        self._verdicts: deque[Verdict] = deque()  # not yet drawn
        self._judged_s = 0.0  # end of the newest verdict
        self._early: deque[AudioChunk] = deque()  # sound before the first picture
        self._out: Any = None
        self._overlay: Overlay | None = None
        self._copied: _CopiedSound | None = None
        self._heard: _HeardSound | None = None
        self._last_pts = -1
        self.notes: list[str] = []

    def write(self, verdict: Verdict) -> None:
        self._verdicts.append(verdict)
        self._judged_s = max(self._judged_s, verdict.t_end_s)
        self._draw_ready()

    def picture(self, picture: Picture) -> None:
        self._held.append(picture)
        self._draw_ready()

    def sound(self, source: str, chunk: AudioChunk) -> None:
        if self._sound_hz is None:
            return
        if self._out is not None:
            self._hear(chunk)
            return
        self._early.append(chunk)
        while self._early[-1].t_s - self._early[0].t_s > MAX_EARLY_S:
            self._early.popleft()

    def end(self, summary: Summary) -> None:
        """Finish the file; without a picture there is none."""
        while self._held and not self._file.given_up:
            self._draw(self._held.popleft())
        if self._file.given_up:
            return
        if self._out is None:
            self._file.discard()
            self.notes.append("no picture was judged, so no video was written")
            return
        try:
            self._mux(self._video.encode(None))
            if self._copied is not None:
                self._mux(self._copied.until(float("inf")))
                self.notes += self._copied.notes
                self._copied.close()
            if self._heard is not None:
                self._mux(self._heard.finish())
            self._out.close()
        except OSError as err:
            self.abandon()
            raise self._file.failure(err) from None
        self._out = None
        self._file.commit()

    def abandon(self) -> None:
        """Leave no file behind."""
        self._file.discard()

    def _draw_ready(self) -> None:
        """Draw what no coming verdict will change: the next one ends a hop after the newest."""
        while self._held and (
            self._held[0].t_s < self._judged_s + self._hop_s or len(self._held) > MAX_HELD
        ):
            self._draw(self._held.popleft())

    def _draw(self, picture: Picture) -> None:
        try:
            if self._overlay is None:
                self._open(picture)
            assert self._overlay is not None
            while self._verdicts and self._verdicts[0].t_end_s <= picture.t_s:
                self._overlay.take(self._verdicts.popleft())
            pixels = self._overlay.draw(picture.frame, picture.t_s, picture.faces)
            pts = round(picture.t_s * self._hz)
            if pts <= self._last_pts:
                return
            self._last_pts = pts
            frame = self._av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = pts, Fraction(1, self._hz)
            self._mux(self._video.encode(frame))
            if self._copied is not None:
                self._mux(self._copied.until(picture.t_s))
        except OSError as err:  # FFmpeg's own errors are such, too
            self.abandon()
            raise self._file.failure(err) from None

    def _open(self, picture: Picture) -> None:
        height, width = picture.frame.shape[:2]
        overlay = Overlay(width, height, self._hop_s)
        self._out = self._av.open(
            str(self._file.path), "w", format="mp4", options={"movflags": "+faststart"}
        )
        video = self._out.add_stream(self._encoder, rate=self._hz)
        video.width, video.height, video.pix_fmt = overlay.width, overlay.height, "yuv420p"
        video.codec_context.time_base = Fraction(1, self._hz)
        video.options = QUALITY if self._encoder == "libx264" else {}
        self._video = video
        if self._original is not None:
            copied = _CopiedSound(self._av, self._original)
            if copied.codec in self._out.supported_codecs:
                copied.join(self._out)
                self._copied = copied
            else:
                copied.close()
                self.notes.append(
                    f"{copied.codec} sound does not go into an MP4: it is what the model heard, "
                    "mono, as AAC"
                )
        if self._copied is None and self._sound_hz is not None:
            self._heard = _HeardSound(self._av, self._out, self._sound_hz)
        self._overlay = overlay
        while self._early:
            self._hear(self._early.popleft())

    def _hear(self, chunk: AudioChunk) -> None:
        if self._heard is None:
            return
        try:
            self._mux(self._heard.push(chunk.t_s, chunk.samples))
        except OSError as err:
            self.abandon()
            raise self._file.failure(err) from None

    def _mux(self, packets: Any) -> None:
        for packet in packets:
            self._out.mux(packet)


class _CopiedSound:
    """A file's sound, packet by packet, on the stream's clock."""

    def __init__(self, av: Any, original: OriginalSound) -> None:
        self._av = av
        self._in = av.open(
            str(original.path),
            options={
                "protocol_whitelist": "file",
                "format_whitelist": FORMATS,
                "max_streams": str(MAX_STREAMS),
            },
            metadata_errors="replace",
        )
        self._stream = self._in.streams[original.stream_index]
        self._zero = round(original.zero_s / self._stream.time_base)  # ticks
        self._packets = self._read()
        self._next: Any = None
        self._last_dts: int | None = None
        self.notes: list[str] = []

    @property
    def codec(self) -> str:
        return str(self._stream.codec_context.codec.canonical_name)

    def join(self, out: Any) -> None:
        """Become a stream of ``out``."""
        self._target = out.add_stream_from_template(self._stream)

    def until(self, t_s: float) -> Iterator[Any]:
        """The packets that start by stream second ``t_s`` and did not come before."""
        while True:
            if self._next is None:
                self._next = next(self._packets, None)
            if self._next is None or float(self._next.dts * self._next.time_base) > t_s:
                return
            packet, self._next = self._next, None
            yield packet

    def close(self) -> None:
        self._in.close()

    def _read(self) -> Iterator[Any]:
        try:
            packets = self._in.demux(self._stream)
            while (packet := next_packet(packets)) is not None:
                if packet.dts is None or packet.size == 0:
                    continue
                packet.dts -= self._zero
                packet.pts = packet.dts if packet.pts is None else packet.pts - self._zero
                if self._last_dts is not None and packet.dts <= self._last_dts:
                    continue  # damaged: a muxer takes rising timestamps only
                self._last_dts = packet.dts
                packet.stream = self._target
                yield packet
        except self._av.FFmpegError as err:
            self.notes.append(f"the original sound breaks off: {err.strerror}")


class _HeardSound:
    """What the model hears as AAC; gaps become silence, overlaps are cut."""

    def __init__(self, av: Any, out: Any, rate_hz: int) -> None:
        self._av, self._rate_hz = av, rate_hz
        self._stream = out.add_stream("aac", rate=rate_hz)
        self._stream.layout = "mono"
        self._at: int | None = None  # position of the next sample

    def push(self, t_s: float, samples: Samples) -> Iterator[Any]:
        """samples: [n] in [-1, 1], the first at ``t_s``."""
        start = round(t_s * self._rate_hz)
        if self._at is None:
            self._at = start
        gap = start - self._at
        if abs(gap) > GAP_S * self._rate_hz:
            for at in range(0, gap, self._rate_hz):
                yield from self._encode(np.zeros(min(self._rate_hz, gap - at), np.float32))
            samples = samples[max(0, -gap) :]
        if len(samples):
            yield from self._encode(samples)

    def finish(self) -> Iterator[Any]:
        yield from self._stream.encode(None)

    def _encode(self, samples: Samples) -> Iterator[Any]:
        assert self._at is not None
        frame = self._av.AudioFrame.from_ndarray(samples[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate = self._rate_hz
        frame.pts, frame.time_base = self._at, Fraction(1, self._rate_hz)
        self._at += len(samples)
        yield from self._stream.encode(frame)


def _import_av() -> tuple[Any, str]:
    try:
        import av
        import cv2  # noqa: F401
        from av.codec import codecs_available
    except ImportError as err:
        raise DependencyError(
            f"{err.name} is needed to write a video: pip install '.[cpu]'"
        ) from err
    for name in ENCODERS:
        if name in codecs_available:
            return av, name
    raise DependencyError(
        "this PyAV has no H.264 encoder; install the wheel: pip install --force-reinstall av"
    )
