# SPDX-License-Identifier: Apache-2.0
"""Pictures and sound of a network stream through PyAV (FFmpeg): RTSP, and what HTTP carries.

Time.  Timestamps of the sender, placed on one clock by :class:`runtime.media.clock.LiveClock`.
Frames are decoded without frame threads, which would each add a picture's delay.  What FFmpeg reads
of RTSP to find out what it is (up to a second) is not kept: it would only be late.

Faults.  A connection that ends, breaks off or gives no picture for ``stall_s`` is made again (see
:mod:`runtime.media.live`).  While pictures arrive that only a key picture makes decodable, the
first key picture is waited for, up to :data:`KEY_WAIT_S`.  Packets that do not decode are counted
and passed over; resolution, sample rate and the presence of sound may change from connection to
connection and within one.
A machine that is too slow to decode everything leaves pictures out rather than fall behind.

Trust.  Protocols and formats by kind of address (:mod:`runtime.media.address`).  Certificates of
``rtsps`` and ``https`` are not checked: FFmpeg does not by default, and cameras sign their own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from runtime.errors import MediaError, UsageError
from runtime.media import AudioChunk, Chunk, MediaInfo, VideoChunk
from runtime.media.address import check_address, public_name, scheme_of
from runtime.media.clock import LiveClock, SoundClock
from runtime.media.decoding import (
    MAX_STREAMS,
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
from runtime.media.live import Notice, Reconnecting, StallError, silent

OPEN_TIMEOUT_S = 5.0
STALL_S = 5.0
KEY_WAIT_S = 30.0  # for the first key picture; some cameras send one every ten seconds and more
HLS_PATIENCE_S = 30.0  # segments of up to ten seconds arrive at once
TRANSPORTS = ("tcp", "udp")
BEHIND_S = 1.0  # later than the soonest arrival: only key pictures are decoded
CAUGHT_UP_S = 0.25  # and all of them again from here
GIVE_UP_S = 5.0  # as late as this a new connection, without what has piled up, is quicker
ANALYSE = {"analyzeduration": "1000000", "probesize": "1000000"}  # microseconds, bytes
LOW_LATENCY = {"fflags": "nobuffer", "flags": "low_delay"}


class NetworkSource(Reconnecting[Any]):
    """Iterates over a stream's pictures and sound until it is closed, over any number of outages.

    Parameters
    ----------
    url : rtsp, rtsps, http or https; what of it may be shown is :attr:`name`
    sample_rate_hz : to which sound is resampled (and mixed down to mono)
    transport : of RTSP, ``tcp`` or ``udp``
    open_timeout_s, stall_s : how long to wait for a connection, and for its next picture
    notice : is told each outage in a line

    A file behind http (it says how long it is) is ``live`` no more than a local one: it ends.

    Raises
    ------
    UsageError : a scheme or transport that is not supported
    MediaError : the first connection cannot be made, or gives neither picture nor sound
    DependencyError : PyAV is not installed
    """

    ended = "the server ended the stream"

    def __init__(
        self,
        url: str,
        *,
        sample_rate_hz: int = 16_000,
        transport: str = "tcp",
        open_timeout_s: float = OPEN_TIMEOUT_S,
        stall_s: float = STALL_S,
        notice: Notice = silent,
    ) -> None:
        access = check_address(url)
        if transport not in TRANSPORTS:
            raise UsageError(f"RTSP goes over {' or '.join(TRANSPORTS)}, not {transport}")
        super().__init__(public_name(url), notice)
        self._av = import_av()
        self._to_rgb = RgbConverter(self._av)
        self._url = url
        self._rate_hz = sample_rate_hz
        self._timeouts = (open_timeout_s, stall_s)
        self._stall_s = stall_s
        self._options = {
            "protocol_whitelist": access.protocols,
            "format_whitelist": access.formats,
            "max_streams": str(MAX_STREAMS),
            **ANALYSE,
        }
        if scheme_of(url) in ("rtsp", "rtsps"):
            self._options |= {"rtsp_transport": transport, **LOW_LATENCY}
        self._clock = LiveClock()
        self._sound_clock = SoundClock(sample_rate_hz)
        self._resampler: Resampler | None = None
        self._picture_s = 0.0  # stream time of the last one
        self._hurrying = False
        container = self._begin()
        try:
            self.info = self._describe(container)
        except BaseException:
            self.close()
            raise

    def _connect(self) -> Any:
        try:
            container = self._av.open(
                self._url, options=dict(self._options), timeout=self._timeouts,
                metadata_errors="replace",
            )  # fmt: skip
        except self._av.error.ExitError:
            raise StallError(f"{self.name}: no answer for {self._timeouts[0]:g} s") from None
        except (self._av.FFmpegError, OSError, ValueError) as err:
            # FFmpeg's words alone: the whole message repeats the address with its password
            raise MediaError(f"{self.name}: cannot be opened ({reason_of(err)})") from None
        self._clock.connect()
        return container

    def _release(self, handle: Any) -> None:
        handle.close()

    def _describe(self, container: Any) -> MediaInfo:
        video, audio = pick_streams(self._av, container, self.name, thread_type="SLICE")
        hls = container.format.name == "hls"
        finite = container.duration is not None and scheme_of(self._url) in ("http", "https")
        self.live = not finite
        self.paced = not hls and not finite
        self.patience_s = HLS_PATIENCE_S if hls else type(self).patience_s
        return MediaInfo(
            name=self.name,
            has_video=video is not None,
            has_audio=audio is not None,
            width=video.codec_context.width if video is not None else 0,
            height=video.codec_context.height if video is not None else 0,
            fps=nominal_fps(video),
            duration_s=container.duration / self._av.time_base if finite else None,
        )

    def _chunks(self, handle: Any) -> Iterator[Chunk]:
        video, audio = pick_streams(self._av, handle, self.name, thread_type="SLICE")
        if self.info.has_video and video is None:
            raise MediaError(f"{self.name}: gives no picture any more")
        self._resampler = Resampler(self._av, self._rate_hz)
        self._hurrying = False
        begun = heard = time.monotonic()  # of what must not stall: the picture, or else the sound
        seen = False  # a picture of this connection
        for packet in self._packets(handle, [s for s in (video, audio) if s is not None]):
            for frame in self._decode(packet):
                now = time.monotonic()
                if isinstance(frame, self._av.VideoFrame):
                    heard, seen = now, True
                    yield from self._picture(frame, video, now)
                    self._keep_up(video)
                else:
                    heard = heard if video is not None else now
                    yield from self._sound(frame, now)
            now = time.monotonic()
            if packet.stream is video and not seen and now - begun < KEY_WAIT_S:
                heard = now
            if now - heard > self._stall_s:
                raise StallError(f"{self.name}: no picture for {self._stall_s:g} s")

    def _keep_up(self, video: Any) -> None:
        """Where this machine cannot decode all that is sent in time, the rest waits in the network
        and lag would grow without an end.  Pictures are left out instead, undecoded."""
        if not self.paced:
            return
        behind_s = time.monotonic() - self._clock.captured_s(self._picture_s)
        if behind_s > GIVE_UP_S:
            raise MediaError(f"{self.name}: {behind_s:.1f} s behind")
        context = video.codec_context
        if behind_s > BEHIND_S and not self._hurrying:
            self._hurrying, context.skip_frame = True, "NONKEY"
            self.drops["behind"] += 1
        elif behind_s < CAUGHT_UP_S and self._hurrying:
            self._hurrying, context.skip_frame = False, "DEFAULT"

    def _packets(self, container: Any, streams: list[Any]) -> Iterator[Any]:
        packets = container.demux(*streams)
        while True:
            try:
                packet = next_packet(packets)
            except self._av.error.ExitError:
                raise StallError(f"{self.name}: nothing came for {self._stall_s:g} s") from None
            except (self._av.FFmpegError, OSError) as err:
                raise MediaError(f"{self.name}: broke off ({reason_of(err)})") from None
            if packet is None:
                return
            yield packet

    def _decode(self, packet: Any) -> list[Any]:
        try:
            return list(packet.stream.codec_context.decode(packet))
        except self._av.error.EOFError:
            return []
        except (self._av.FFmpegError, OSError):
            self.drops["decode_error"] += 1
            return []

    def _picture(self, frame: Any, stream: Any, now: float) -> Iterator[VideoChunk]:
        check_size(self.name, frame.width, frame.height)
        if frame.is_corrupt:
            self.drops["decode_error"] += 1
        pts_s = _seconds(frame.pts, frame.time_base or stream.time_base)
        t_s = self._place("video", pts_s, 1 / (self.info.fps or 25.0), now)
        if t_s is not None:
            self._picture_s = t_s
            yield VideoChunk(t_s, partial(self._to_rgb, frame), self._clock.captured_s(t_s))

    def _sound(self, frame: Any, now: float) -> Iterator[AudioChunk]:
        assert self._resampler is not None
        try:
            pieces = self._resampler.push(frame) if is_sound_rate(frame.sample_rate) else None
        except self._av.FFmpegError:
            pieces = None
        if pieces is None:
            self.drops["decode_error"] += 1
            return
        for piece in pieces:
            samples = clean_samples(piece)
            pts_s = _seconds(piece.pts, piece.time_base)
            t_s = self._place("audio", pts_s, samples.size / self._rate_hz, now)
            if t_s is None or not samples.size:
                continue
            t_s, samples = self._sound_clock.push(t_s, samples)
            self.clock = self._sound_clock.report
            yield AudioChunk(t_s, samples, self._clock.captured_s(t_s))

    def _place(self, kind: str, pts_s: float | None, step_s: float, now: float) -> float | None:
        t_s = self._clock.place(kind, pts_s, step_s, now)
        self.drops["timestamp"] = self._clock.jumps + self._clock.unusable
        return t_s


def _seconds(pts: int | None, time_base: Any) -> float | None:
    return None if pts is None or not time_base else float(pts * time_base)
