# SPDX-License-Identifier: Apache-2.0
"""Pictures and sound of a local media file, by timestamp, through PyAV (FFmpeg).

Time.  A chunk's ``t_s`` is its presentation timestamp times its stream's time base, minus the
earliest start of the two streams: frame counters and nominal frame rates are not used, so
variable frame rate needs no care.  Where a container states no such timestamps,
:mod:`runtime.media.order` derives them.  One that is missing, repeated, runs backwards or leaps
ahead is repaired or dropped and counted in :attr:`FileSource.damaged`; one bad timestamp never
takes the rest of the stream with it (:class:`StreamClock`).

Trust.  FFmpeg may open only the ``file`` protocol and the container formats listed here, so that a
play list posing as a video reads nothing else; frames beyond ``MAX_PIXELS`` are refused and those
longer than ``MAX_SIDE_PX`` scaled down while they are converted (:mod:`runtime.media.decoding`).
A few bytes can claim to last for days: what is later than the file's size makes plausible
(:data:`MIN_BYTES_PER_S`) is dropped and counted as damaged.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from runtime.address import scheme_of
from runtime.closing import Closing
from runtime.errors import MediaError, UsageError
from runtime.media import AudioChunk, MediaInfo, VideoChunk
from runtime.media.decoding import (
    MAX_STREAMS,
    PixelAspect,
    Resampler,
    RgbConverter,
    check_size,
    clean_samples,
    import_av,
    is_sound_rate,
    next_packet,
    nominal_fps,
    pick_streams,
    reason_of,
)
from runtime.media.local_files import ffmpeg_name, to_reopen
from runtime.media.order import PictureTimes
from runtime.media.picking import Tracks, notes
from runtime.naming import name_of_file

MAX_JUMP_S = 10.0  # a timestamp farther ahead must be confirmed by the next one
MAX_GAP_S = 3600.0  # and one beyond this is never believed
MIN_BYTES_PER_S = 100.0  # of a file, beyond its first hour; the thinnest speech codec has 75
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,wav,w64,aiff,"
    "mp3,aac,flac,ac3,eac3,h264,hevc,m4v,ivf,mxf,gif,nut,caf"
)


READ_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": FORMATS,
    "max_streams": str(MAX_STREAMS),
}
UNNAMED_LAYOUTS = {"1 channels": "mono", "2 channels": "stereo"}  # AVI says how many, no more


class StreamClock:
    """Turns one stream's timestamps into strictly increasing seconds and says which are damaged.

    A timestamp not later than the last one is dropped.  One more than :data:`MAX_JUMP_S` ahead is
    dropped too, unless the next one agrees with it (a real gap, up to :data:`MAX_GAP_S`).  A
    missing one is taken to be ``step_s`` after the last.  Nothing is later than ``limit_s``, or
    earlier than :data:`MAX_GAP_S` before the start.
    """

    def __init__(self, limit_s: float = math.inf) -> None:
        self.damaged = 0
        self._limit_s = limit_s
        self._last_s = -math.inf
        self._candidate_s: float | None = None

    def accept(self, t_s: float | None, step_s: float) -> float | None:
        """The time to use for an item that lasts ``step_s``, or None: drop it."""
        origin = self._last_s if self._last_s > -math.inf else 0.0
        if t_s is None or not math.isfinite(t_s):
            self.damaged += 1
            t_s = 0.0 if self._last_s == -math.inf else self._last_s + step_s
        candidate, self._candidate_s = self._candidate_s, None
        if not max(self._last_s, -MAX_GAP_S) < t_s <= self._limit_s:
            self.damaged += 1
            return None
        if t_s > origin + MAX_JUMP_S:
            confirmed = candidate is not None and 0 < t_s - candidate <= MAX_JUMP_S
            if not confirmed or t_s > origin + MAX_GAP_S:
                self.damaged += 1
                self._candidate_s = t_s
                return None
        self._last_s = t_s
        return t_s


@dataclass(frozen=True)
class SoundFormat:
    """What a muxer must know of compressed sound."""

    codec: str  # FFmpeg's name
    sample_rate_hz: int
    layout: str  # of the channels, FFmpeg's name
    time_base: Fraction  # seconds a tick
    extra: bytes  # the codec's own header, may be empty


class SoundPacket(NamedTuple):
    """Compressed sound; times in ticks of the file's clock."""

    pts: int
    dts: int
    duration: int
    data: bytes


@dataclass(frozen=True)
class OriginalSound:
    """Where the sound of a file is, for whoever copies it as it is."""

    path: Path
    stream_index: int
    zero_s: float  # timestamp of the file that is second 0 of the stream


class FileSource(Closing):
    """Iterates once over a file's pictures and sound in decode order.

    Parameters
    ----------
    path : file of one of the container formats in :data:`FORMATS`
    sample_rate_hz : to which sound is resampled (and mixed down to mono)
    name : what it is called where people read it (default: its path)
    tracks : which of several; by default those that players play

    Raises
    ------
    UsageError : the file does not exist, is a pipe, a URL (live sources are not files), or lacks a
        track that was asked for
    MediaError : it is empty, no media, has neither pictures nor sound, or frames are too large;
        also while iterating, when nothing in it could be decoded
    DependencyError : PyAV is not installed
    """

    live = False

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        sample_rate_hz: int = 16_000,
        tracks: Tracks | None = None,
    ) -> None:
        self._av = import_av()
        self._tracks = tracks or Tracks()
        self._to_rgb = RgbConverter(self._av)
        self._path = Path(path)
        self._file = to_reopen(local_file(path))
        self._name = name_of_file(path) if name is None else name
        self._rate_hz = sample_rate_hz
        self._packets_damaged = 0
        limit_s = MAX_GAP_S + self._file.stat().st_size / MIN_BYTES_PER_S
        self._video_clock = StreamClock(limit_s)
        self._audio_clock = StreamClock(limit_s)
        self._end_s = 0.0
        self.warnings: list[str] = []
        try:
            self._container: Any = self._av.open(
                ffmpeg_name(self._file),
                options=dict(READ_OPTIONS),
                metadata_errors="replace",
            )
        except MemoryError:  # FFmpeg says so of too many streams, too
            raise MediaError(
                f"{self._name}: asks for more memory than there is, or has more than "
                f"{MAX_STREAMS} streams"
            ) from None
        except (self._av.FFmpegError, OSError, ValueError) as err:
            raise MediaError(
                f"{self._name}: not a media file that can be read, or cut off ({reason_of(err)})"
            ) from None
        try:
            self._video, self._audio = self._pick_streams()
            self.info = self._describe()
            if self._video is not None:
                self._step_s = 1 / (self.info.fps or 25.0)
                self._aspect = PixelAspect(self._video)
                self._times = PictureTimes(self._container, self._video, self._step_s)
            self.warnings += notes(self._av, self._container, self._tracks)
        except BaseException:
            self.close()
            raise

    @property
    def damaged(self) -> int:
        """Packets that did not decode and timestamps that were repaired or dropped, so far."""
        return self._packets_damaged + self._video_clock.damaged + self._audio_clock.damaged

    @property
    def original_sound(self) -> OriginalSound | None:
        if self._audio is None:
            return None
        return OriginalSound(self._path, int(self._audio.index), self._zero_s)

    def sound_format(self, index: int) -> SoundFormat:
        """Of the sound in the stream of that number."""
        stream = self._container.streams[index]
        context = stream.codec_context
        return SoundFormat(
            context.codec.canonical_name,
            context.sample_rate,
            UNNAMED_LAYOUTS.get(context.layout.name, context.layout.name),
            Fraction(stream.time_base),
            context.extradata or b"",
        )

    def sound_packets(self, index: int) -> Iterator[SoundPacket]:
        """What is in that stream as it is; nothing is decoded.  Instead of the chunks."""
        try:
            packets = self._container.demux(self._container.streams[index])
            while (packet := next_packet(packets)) is not None:
                if packet.dts is not None and packet.size:
                    pts = packet.dts if packet.pts is None else packet.pts
                    yield SoundPacket(pts, packet.dts, packet.duration or 0, bytes(packet))
        except (self._av.FFmpegError, OSError) as err:  # the container breaks off here
            self.warnings.append(f"the original sound breaks off: {reason_of(err)}")

    def __iter__(self) -> Iterator[VideoChunk | AudioChunk]:
        chunks = 0
        for chunk in self._chunks():
            chunks += 1
            yield chunk
        if not chunks:
            raise MediaError(f"{self._name}: nothing in it could be decoded; the file is damaged")
        declared = self.info.duration_s
        if declared is not None and declared - self._end_s > max(0.5, 0.05 * declared):
            self.warnings.append(
                f"ends at {self._end_s:.1f} s of the {declared:.1f} s it declares: the file is "
                "cut off or damaged"
            )

    def close(self) -> None:
        self._container.close()

    def _pick_streams(self) -> tuple[Any, Any]:
        video, audio = pick_streams(
            self._av, self._container, self._name, thread_type="AUTO", tracks=self._tracks
        )
        starts = [float(s.start_time * s.time_base) for s in (video, audio) if s and s.start_time]
        # A stream without a stated start begins at 0, which may be before the other one's.
        unstated = any(s is not None and not s.start_time for s in (video, audio))
        self._zero_s = min(starts + [0.0] * unstated)
        return video, audio

    def _describe(self) -> MediaInfo:
        video, audio = self._video, self._audio
        duration = self._container.duration
        seconds = duration / self._av.time_base if duration is not None else math.nan
        return MediaInfo(
            name=self._name,
            has_video=video is not None,
            has_audio=audio is not None,
            width=video.codec_context.width if video is not None else 0,
            height=video.codec_context.height if video is not None else 0,
            fps=nominal_fps(video),
            duration_s=seconds if 0 < seconds < math.inf else None,
        )

    def _chunks(self) -> Iterator[VideoChunk | AudioChunk]:
        resampler = Resampler(self._av, self._rate_hz, hold=True, notice=self.warnings.append)
        for frame in self._frames():
            if isinstance(frame, self._av.VideoFrame):
                chunk = self._video_chunk(frame)
                if chunk is not None:
                    yield chunk
            else:
                yield from self._audio_chunks(self._resampled(resampler, frame))
        yield from self._audio_chunks(resampler.finish())

    def _resampled(self, resampler: Resampler, frame: Any) -> list[Any]:
        try:
            if is_sound_rate(frame.sample_rate):
                return resampler.push(frame)
        except self._av.FFmpegError:
            pass
        self._packets_damaged += 1
        return []

    def _frames(self) -> Iterator[Any]:
        """Decoded frames; a packet that does not decode is counted and passed over."""
        streams = [s for s in (self._video, self._audio) if s is not None]
        packets = self._container.demux(*streams)
        while True:
            try:
                packet = next_packet(packets)
            except (self._av.FFmpegError, OSError):  # the container breaks off here
                self._packets_damaged += 1
                packet = None
            if packet is None:
                break
            if packet.stream is self._video:
                self._times.sent(packet)
            yield from self._decode(packet.stream, packet)
        for stream in streams:  # after a break the decoders still hold their last frames
            yield from self._decode(stream, None)

    def _decode(self, stream: Any, packet: Any) -> list[Any]:
        try:
            return list(stream.codec_context.decode(packet))
        except self._av.error.EOFError:  # flushed before
            return []
        except (self._av.FFmpegError, OSError):
            self._packets_damaged += 1
            return []

    def _seconds(self, pts: int | None, time_base: Any) -> float | None:
        return None if pts is None or not time_base else float(pts * time_base) - self._zero_s

    def _video_chunk(self, frame: Any) -> VideoChunk | None:
        check_size(self._name, frame.width, frame.height)
        time_base, step_s = frame.time_base or self._video.time_base, self._step_s
        pts = self._times.shown(frame, time_base)
        t_s = self._video_clock.accept(self._seconds(pts, time_base), step_s)
        if frame.is_corrupt:
            self._packets_damaged += 1
        if t_s is None:
            return None
        self._end_s = max(self._end_s, t_s + step_s)
        return VideoChunk(t_s, partial(self._to_rgb, frame, self._aspect.of(frame)))

    def _audio_chunks(self, frames: list[Any]) -> Iterator[AudioChunk]:
        for frame in frames:
            samples = clean_samples(frame)
            step_s = samples.size / self._rate_hz
            t_s = self._audio_clock.accept(self._seconds(frame.pts, frame.time_base), step_s)
            if t_s is not None and samples.size:
                self._end_s = max(self._end_s, t_s + step_s)
                yield AudioChunk(t_s, samples)


def local_file(path: str | os.PathLike[str]) -> Path:
    scheme = scheme_of(str(path))
    if scheme is not None:
        raise UsageError(f"{scheme}:// sources are not supported by this version; give a file")
    file = Path(path)
    try:
        if not file.exists():
            raise UsageError(f"{file}: no such file")
        if file.is_dir():
            raise MediaError(f"{file}: not a file")
        if file.is_file() and file.stat().st_size == 0:
            raise MediaError(f"{file}: the file is empty")
    except OSError as err:  # a name that is too long, a folder that nobody may look into
        raise MediaError(f"{file}: cannot be looked up ({err.strerror})") from None
    return file
