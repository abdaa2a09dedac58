# SPDX-License-Identifier: Apache-2.0
"""The annotated video: what the model saw, with its verdicts drawn in and the original sound.

Pictures are those of the 25 Hz grid, at their stream time; a gap stays a gap, the picture before it
stands.  The sound of a file is copied packet by packet, with the same zero as the pictures; that of
a live source, and what does not go into an MP4, is what the model hears, encoded as AAC.  A picture
shows the newest verdict whose window had ended by then, so pictures wait for it, up to
:data:`MAX_HELD`.

The file appears when its source has ended, whole or not at all.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import DependencyError, MediaError
from runtime.files import PendingFile
from runtime.flow.sink import Picture
from runtime.judging.verdict import Verdict
from runtime.media import AudioChunk, Samples
from runtime.media.file import OriginalSound, SoundPacket
from runtime.media.local_files import ffmpeg_name
from runtime.media.sandbox.reader import IsolatedSound
from runtime.optional import optional
from runtime.sinks.overlay import Overlay

if TYPE_CHECKING:
    from runtime.flow.summary import Summary

ENCODERS = ("libx264", "h264")  # the second: whatever H.264 encoder this FFmpeg has
QUALITY = {"preset": "veryfast", "crf": "21", "bf": "0"}
COPIED = {  # sound that players find in an MP4, and an encoder of each
    "aac": "aac",
    "ac3": "ac3",
    "alac": "alac",
    "eac3": "eac3",
    "flac": "flac",
    "mp2": "mp2",
    "mp3": "libmp3lame",
    "opus": "libopus",
}
SILENCE_SAMPLES = 4096  # more than a frame of any
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

    Raises :class:`runtime.files.OutputError` where the target cannot be written, and
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
            self._copy(float("inf"))
            if self._heard is not None:
                self._mux(self._heard.finish())
            self._out.close()
        except OSError as err:
            self.abandon()
            raise self._file.failure(err) from None
        self._out = None
        self._close_sound()
        self._file.commit()

    def abandon(self) -> None:
        """Leave no file behind, and no process."""
        self._file.discard()
        self._close_sound()

    def _close_sound(self) -> None:
        if self._copied is not None:
            self._copied.close()

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
            self._copy(picture.t_s)
        except OSError as err:  # FFmpeg's own errors are such, too
            self.abandon()
            raise self._file.failure(err) from None

    def _open(self, picture: Picture) -> None:
        height, width = picture.frame.shape[:2]
        overlay = Overlay(width, height, self._hop_s)
        self._out = self._av.open(
            ffmpeg_name(self._file.path), "w", format="mp4", options={"movflags": "+faststart"}
        )
        video = self._out.add_stream(self._encoder, rate=self._hz)
        video.width, video.height, video.pix_fmt = overlay.width, overlay.height, "yuv420p"
        video.codec_context.time_base = Fraction(1, self._hz)
        video.options = QUALITY if self._encoder == "libx264" else {}
        self._video = video
        if self._original is not None:
            try:
                self._copied = _CopiedSound(self._av, self._original)
                self._copied.join(self._out)
            except (_NotCopied, MediaError) as err:
                self.notes.append(f"{err}: it is what the model heard, mono, as AAC")
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

    def _copy(self, until_s: float) -> None:
        """The original sound up to there; where it is damaged, the video goes on without it."""
        if self._copied is None:
            return
        try:
            self._mux(self._copied.until(until_s))
        except self._av.error.InvalidDataError as err:
            self._copied.notes.append(f"the original sound breaks off: {err.strerror}")
            self._copied.close()
        self.notes += self._copied.taken_notes()

    def _mux(self, packets: Any) -> None:
        for packet in packets:
            self._out.mux(packet)


class _CopiedSound:
    """A file's sound, packet by packet, on the stream's clock.

    The file is read in a process of its own (:class:`runtime.media.sandbox.reader.IsolatedSound`);
    here its packets are written and never decoded.  Raises :class:`runtime.errors.MediaError` for a
    file that cannot be read, and :class:`_NotCopied` where an MP4 does not take the sound.
    """

    def __init__(self, av: Any, original: OriginalSound) -> None:
        self._av = av
        self.notes: list[str] = []
        self._closed = False
        self._in = IsolatedSound(original)
        try:
            self._form = self._in.format
            self._zero = round(original.zero_s / self._form.time_base)  # ticks
            self._packets = self._read()
            self._next = next(self._packets, None)
            self._template = self._checked_template()
        except BaseException:
            self.close()
            raise

    def join(self, out: Any) -> None:
        """Become a stream of ``out``."""
        self._target = self._add(out, self._template)

    def until(self, t_s: float) -> Iterator[Any]:
        """The packets that start by stream second ``t_s`` and did not come before."""
        try:
            while self._next is not None and float(self._next.dts * self._form.time_base) <= t_s:
                packet, self._next = self._next, None
                yield self._av_packet(packet, self._target)
                self._next = next(self._packets, None)
        except MediaError as err:
            if not self._closed:
                self.notes.append(f"the original sound breaks off: {err}")

    def taken_notes(self) -> list[str]:
        """What there is to say since this was asked last."""
        notes = [*self.notes, *self._in.warnings]
        self.notes, self._in.warnings = [], []
        return notes

    def close(self) -> None:
        self._closed = True
        self._in.close()

    def _read(self) -> Iterator[SoundPacket]:
        last: int | None = None
        for packet in self._in:
            dts = packet.dts - self._zero
            if last is None or dts > last:  # damaged: a muxer takes rising timestamps only
                last = dts
                yield packet._replace(pts=packet.pts - self._zero, dts=dts)

    def _checked_template(self) -> Any:
        """A stream of such sound of our own making, which an MP4 with the first packet takes."""
        codec = self._form.codec
        if codec not in COPIED:
            raise _NotCopied(f"{codec} sound does not go into an MP4")
        try:
            template = self._own_sound(COPIED[codec])
            if self._next is not None:
                with self._av.open(io.BytesIO(), "w", format="mp4") as out:
                    out.mux(self._av_packet(self._next, self._add(out, template)))
        except (self._av.FFmpegError, ValueError, OSError) as err:
            raise _NotCopied(f"this {codec} sound does not go into an MP4 ({err})") from None
        return template

    def _own_sound(self, encoder: str) -> Any:
        """A stream cannot be described to PyAV but by another one."""
        rate_hz, layout = self._form.sample_rate_hz, self._form.layout
        file = io.BytesIO()
        with self._av.open(file, "w", format="matroska") as out:
            stream = out.add_stream(encoder, rate=rate_hz)
            stream.layout = layout
            form = stream.codec_context.codec.audio_formats[0].name
            silence = self._av.AudioFrame(format=form, layout=layout, samples=SILENCE_SAMPLES)
            for plane in silence.planes:
                plane.update(bytes(plane.buffer_size))
            silence.sample_rate, silence.pts = rate_hz, 0
            out.mux(stream.encode(silence))
            out.mux(stream.encode(None))
        file.seek(0)
        return self._av.open(file).streams.audio[0]

    def _add(self, out: Any, template: Any) -> Any:
        stream = out.add_stream_from_template(template)
        stream.time_base = self._form.time_base
        stream.codec_context.extradata = self._form.extra or None
        return stream

    def _av_packet(self, packet: SoundPacket, stream: Any) -> Any:
        made = self._av.Packet(packet.data)
        made.pts, made.dts, made.duration = packet.pts, packet.dts, packet.duration
        made.time_base, made.is_keyframe = self._form.time_base, True
        made.stream = stream
        return made


class _NotCopied(Exception):
    """Sound that an MP4 does not take as it is; the message says why."""


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
    with optional("to write a video"):
        import av
        import cv2  # noqa: F401
        from av.codec import codecs_available
    for name in ENCODERS:
        if name in codecs_available:
            return av, name
    raise DependencyError(
        "this PyAV has no H.264 encoder; install the wheel: pip install --force-reinstall av"
    )
