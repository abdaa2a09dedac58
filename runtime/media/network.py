# SPDX-License-Identifier: Apache-2.0
"""Pictures and sound of a network stream through PyAV (FFmpeg): RTSP, and what HTTP carries.

Time.  Timestamps of the sender, placed on one clock by :class:`runtime.media.clock.LiveClock`.
Frames are decoded without frame threads, which would each add a picture's delay.  What FFmpeg reads
of RTSP to find out what it is (up to a second) is not kept: it would only be late.

Faults.  A connection that ends, breaks off or gives no picture for ``stall_s`` is made again (see
:mod:`runtime.media.live`).  While pictures arrive that only a key picture makes decodable, the
first key picture is waited for, up to :data:`KEY_WAIT_S`.  Packets that do not decode are counted
and passed over, and so is what builds on a damaged picture (:class:`Damage`).  Resolution, sample
rate and the presence of sound may change from connection to connection and within one.
A machine that is too slow to decode everything leaves pictures out rather than fall behind.

Ends.  Over HTTP nobody says in advance whether a body without a length is a camera or a recording.
One that ended whole (its last chunk came, or all of its Content-Length) is over.  One whose
connection was closed is over if it came faster than it happened
(:class:`runtime.media.clock.Pace`), and else a camera that went away.  FFmpeg tells whole from
closed, with :data:`SAY_IF_WHOLE`.

Trust.  Protocols and formats by kind of address (:mod:`runtime.address`).  Certificates of
``rtsps`` and ``https`` are not checked: FFmpeg does not by default, and cameras sign their own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from runtime.address import check_address, public_name, scheme_of, with_plain_scheme
from runtime.errors import MediaError, UsageError
from runtime.listen import is_loopback
from runtime.media import AudioChunk, Chunk, MediaInfo, VideoChunk
from runtime.media.clock import LiveClock, Pace, SoundClock
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
from runtime.media.live import Notice, Reconnecting, StallError, silent
from runtime.media.order import PictureTimes
from runtime.media.picking import Tracks, notes
from runtime.naming import plain

OPEN_TIMEOUT_S = 5.0
STALL_S = 5.0
KEY_WAIT_S = 30.0  # for the first key picture; some cameras send one every ten seconds and more
HLS_PATIENCE_S = 30.0  # segments of up to ten seconds arrive at once
TRANSPORTS = ("tcp", "udp")
HTTP = ("http", "https")
BEHIND_S = 1.0  # later than the soonest arrival: only key pictures are decoded
CAUGHT_UP_S = 0.25  # and all of them again from here
GIVE_UP_S = 5.0  # as late as this a new connection, without what has piled up, is quicker
ANALYSE = {"analyzeduration": "1000000", "probesize": "1000000"}  # microseconds, bytes
# FFmpeg takes a chunked body that was cut off for one that is through, unless it may connect anew
# to streams.  With this alone it never does, but says "Input/output error" where a body is not
# whole, or where nobody knows.  (libavformat/http.c, http_read_stream)
SAY_IF_WHOLE = {"reconnect_streamed": "1"}
LOW_LATENCY = {"fflags": "nobuffer", "flags": "low_delay"}


class Damage:
    """Which pictures are what was filmed?

    Where a packet is lost decoders make something up and flag that one picture.  Those after it
    build on it and are as wrong, but not flagged: with 1 % of an RTP stream's packets lost, more
    than half of all pictures were.  A key picture begins anew; a camera that renews its picture
    bit by bit never sends one, so after :data:`KEY_WAIT_S` without new damage it is over as well.
    """

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._pts: int | None = None  # of the packet; pictures from before it may come after it

    def occurred(self, pts: int | None, now: float) -> None:
        """In the packet or the picture of that timestamp."""
        self._since_s, self._pts = now, pts

    def shows(self, frame: Any, now: float) -> bool:
        """Is this picture damaged?"""
        if frame.is_corrupt:
            self.occurred(frame.pts, now)
            return True
        if self._since_s is None or _before(frame.pts, self._pts):
            return False
        healed = frame.key_frame and _before(self._pts, frame.pts)
        if healed or now - self._since_s > KEY_WAIT_S:
            self._since_s = None
        return self._since_s is not None


def _before(a: int | None, b: int | None) -> bool:
    return a is not None and b is not None and a < b


class NetworkSource(Reconnecting[Any]):
    """Iterates over a stream's pictures and sound until it is closed, over any number of outages.

    Parameters
    ----------
    url : rtsp, rtsps, http or https
    name : what it is called; default: what of the address may be shown
    sample_rate_hz : to which sound is resampled (and mixed down to mono)
    transport : of RTSP, ``tcp`` or ``udp``
    open_timeout_s, stall_s : how long to wait for a connection, and for its next picture
    tracks : which of several; by default those that players play
    notice : is told each outage in a line

    A file behind http (it says how long it is) is ``live`` no more than a local one: it ends.
    ``paced`` of another body over HTTP is False until its pace has shown: should it be a recording,
    nothing of it is to be dropped.

    Raises
    ------
    UsageError : a scheme or transport that is not supported, a track that is not there
    MediaError : the first connection cannot be made, or gives neither picture nor sound
    DependencyError : PyAV is not installed
    """

    ended = "the server ended the stream"

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        sample_rate_hz: int = 16_000,
        transport: str = "tcp",
        open_timeout_s: float = OPEN_TIMEOUT_S,
        stall_s: float = STALL_S,
        tracks: Tracks | None = None,
        notice: Notice = silent,
    ) -> None:
        access = check_address(url)
        if transport not in TRANSPORTS:
            raise UsageError(f"RTSP goes over {' or '.join(TRANSPORTS)}, not {transport}")
        super().__init__(plain(public_name(url)) if name is None else name, notice)
        self._av = import_av()
        self._to_rgb = RgbConverter(self._av)
        self._url = with_plain_scheme(url)
        self._tracks = tracks or Tracks()
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
        else:
            self._options |= SAY_IF_WHOLE
            if is_loopback(urlsplit(url).hostname or ""):
                # or FFmpeg asks a proxy of the environment and tells it address and password
                self._options["http_proxy"] = ""
        self._clock = LiveClock()
        self._sound_clock = SoundClock(sample_rate_hz)
        self._resampler: Resampler | None = None
        self._aspect: PixelAspect | None = None
        self._times: PictureTimes | None = None
        self._picture_s = 0.0  # stream time of the last one
        self._untimed = 0  # pictures of this connection that state no time
        self._begun_s = 0.0  # when the first of them came
        self._pace, self._damage = Pace(0.0), Damage()  # of this connection
        self._camera = False  # an earlier connection has shown that it is one
        self._taken_for_whole = False
        self._reached_s = 0.0  # by pictures and sound
        self._hurrying = False
        container = self._begin()
        try:
            self.info = self._describe(container)
        except BaseException:
            self.close()
            raise
        for line in self._notes if self.live else ():  # its end may be long in coming
            notice(f"{self.name}: {line}")

    @property
    def warnings(self) -> list[str]:
        found = [*self._notes, *super().warnings]
        if self._taken_for_whole:
            found.append(
                "the connection was closed without a word that this was all; it came faster than "
                "it happened, so it is taken for a recording"
            )
        return found

    def _connect(self) -> Any:
        self._pace, self._damage = Pace(time.monotonic()), Damage()
        self._untimed = 0
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
        self._opened_s = time.monotonic()
        return container

    def _release(self, handle: Any) -> None:
        handle.close()

    def _describe(self, container: Any) -> MediaInfo:
        video, audio = self._pick(container)
        self._notes = notes(self._av, container, self._tracks)
        hls = container.format.name == "hls"
        finite = container.duration is not None and scheme_of(self._url) in HTTP
        self.live = not finite
        self._may_be_recorded = not hls and not finite and scheme_of(self._url) in HTTP
        self.paced = not hls and not finite and not self._may_be_recorded
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

    def _note(self, line: str) -> None:
        """Once, however many connections there are."""
        if line not in self._notes:
            self._notes.append(line)
            self._notice(f"{self.name}: {line}")

    def _pick(self, container: Any) -> tuple[Any, Any]:
        return pick_streams(
            self._av, container, self.name, thread_type="SLICE", tracks=self._tracks
        )

    def _chunks(self, handle: Any) -> Iterator[Chunk]:
        self._pace.set_aside(time.monotonic() - self._opened_s)  # until somebody reads
        for chunk in self._read(handle):
            given_s = time.monotonic()
            yield chunk
            self._pace.set_aside(time.monotonic() - given_s)

    def _read(self, handle: Any) -> Iterator[Chunk]:
        try:
            video, audio = self._pick(handle)
        except UsageError as err:  # it was there when the stream began, and may be again
            raise MediaError(str(err)) from None
        if self.info.has_video and video is None:
            raise MediaError(f"{self.name}: gives no picture any more")
        self._resampler = Resampler(self._av, self._rate_hz, notice=self._note)
        if video is not None:
            self._aspect = PixelAspect(video)
            self._times = PictureTimes(handle, video, None)
        self._hurrying = False
        begun = heard = time.monotonic()  # of what must not stall: the picture, or else the sound
        seen = False  # a picture of this connection
        for packet in self._packets(handle, [s for s in (video, audio) if s is not None]):
            if packet.stream is video:
                if self._times is not None:
                    self._times.sent(packet)
                # MPEG-TS counts its packets, but anew in each segment of HLS, which comes whole
                if packet.is_corrupt and handle.format.name != "hls":
                    self.drops["decode_error"] += 1
                    self._damage.occurred(packet.pts, time.monotonic())
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
                if not self._was_all():
                    raise MediaError(f"{self.name}: broke off ({reason_of(err)})") from None
                yield from self._flush(streams)
                return
            if packet is None:
                self._through = self._may_be_recorded  # FFmpeg says so of what was whole alone
                return
            yield packet

    def _was_all(self) -> bool:
        """Was the connection closed because nothing was left, as far as can be told?"""
        if self.info.duration_s is not None:
            return self._reached_s > self.info.duration_s - max(0.5, 0.05 * self.info.duration_s)
        recorded = not self._camera and self._pace.recorded(time.monotonic())
        self._camera |= not recorded
        self._through = self._taken_for_whole = self._may_be_recorded and recorded
        return self._through

    def _flush(self, streams: list[Any]) -> Iterator[Any]:
        """What makes decoders give what they still hold, as it comes after the last packet."""
        for stream in streams:
            packet = self._av.Packet()
            packet.stream = stream
            yield packet

    def _decode(self, packet: Any) -> list[Any]:
        begun_s = time.monotonic()
        try:
            return list(packet.stream.codec_context.decode(packet))
        except self._av.error.EOFError:
            return []
        except (self._av.FFmpegError, OSError):
            self.drops["decode_error"] += 1
            if packet.stream.type == "video":
                self._damage.occurred(packet.pts, time.monotonic())
            return []
        finally:
            self._pace.set_aside(time.monotonic() - begun_s)

    def _picture(self, frame: Any, stream: Any, now: float) -> Iterator[VideoChunk]:
        check_size(self.name, frame.width, frame.height)
        if frame.is_corrupt:
            self.drops["decode_error"] += 1
        assert self._aspect is not None
        assert self._times is not None
        damaged = self._damage.shows(frame, now)
        time_base = frame.time_base or stream.time_base
        pts_s = _seconds(self._times.shown(frame, time_base), time_base)
        step_s, pace_s = 1 / (self.info.fps or 25.0), None
        if pts_s is None and self._times.unstated:
            self._begun_s = now if not self._untimed else self._begun_s
            pace_s = self._untimed * step_s
            self._untimed += 1
            # A camera's happen when they come; of a recording they are told by their number.
            pts_s = now if self.paced else max(now, self._begun_s + pace_s)
        t_s = self._place("video", pts_s, step_s, now, pace_s)
        if t_s is not None:
            self._picture_s = t_s
        if damaged:
            self.drops["damaged_picture"] += 1
        elif t_s is not None:
            show = partial(self._to_rgb, frame, self._aspect.of(frame))
            yield VideoChunk(t_s, show, self._clock.captured_s(t_s))

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

    def _place(
        self, kind: str, pts_s: float | None, step_s: float, now: float,
        pace_s: float | None = None,
    ) -> float | None:  # fmt: skip
        """Stream seconds; ``pace_s``: how much media came, where its times cannot tell."""
        t_s = self._clock.place(kind, pts_s, step_s, now)
        if t_s is not None:
            self._reached_s = max(self._reached_s, t_s + step_s)
            self._pace.came(t_s if pace_s is None else pace_s, now)
            if self._may_be_recorded:
                self.paced = self._camera or self._pace.paced
        self.drops["timestamp"] = self._clock.jumps + self._clock.unusable
        return t_s


def _seconds(pts: int | None, time_base: Any) -> float | None:
    return None if pts is None or not time_base else float(pts * time_base)
