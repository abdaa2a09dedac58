# SPDX-License-Identifier: Apache-2.0
"""The receiving end of WebRTC, through aiortc: one browser's tracks into an :class:`Incoming`.

No STUN or TURN server is asked: browser and program reach each other directly, on one machine or
in one network, so no address of anybody leaves it.  Media is encrypted (DTLS-SRTP) as always.

aiortc gives each track timestamps that start at 0 and keeps the sender reports to itself.  Both
are read here, at two private places of :class:`aiortc.RTCRtpReceiver`; the loopback test fails
where a release moves them, and the clock then says that it goes by arrival.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from runtime.errors import UserError
from runtime.media import Frame
from runtime.optional import optional
from runtime.web.browser import Desk, Incoming

START_WAIT_S = 15.0  # for the first media of every track
SILENCE_WAIT_S = 10.0  # without anything at all: the browser is gone
MAX_SIDE_PX = 1920
MAX_SECTIONS = 2  # of an offer: a camera and a microphone.  1,500 would keep aiortc busy for 8 s
NTP_FRACTIONS = 1 << 32  # in a second
RTP_WRAP = 1 << 32
UNEXPECTED = "one camera, one microphone or both are expected in the offer"

log = logging.getLogger(__name__)


class RtcError(UserError):
    """An offer that cannot be answered."""


class Peer:
    """One browser.  :meth:`answer` once, :meth:`close` once; everything in the server's loop.

    Parameters
    ----------
    desk : whom its media is delivered to
    sample_rate_hz : to which sound is resampled (and mixed down to mono)
    on_end : told why it ended, unless :meth:`close` ended it
    """

    def __init__(
        self, desk: Desk, sample_rate_hz: int, on_end: Callable[[str], Awaitable[None]]
    ) -> None:
        aiortc = import_aiortc()
        self._desk, self._rate_hz, self._on_end = desk, sample_rate_hz, on_end
        self._connection = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        self._description = aiortc.RTCSessionDescription
        self._incoming: Incoming | None = None
        self._delivered = False
        self._tasks: list[asyncio.Task[None]] = []
        self._last_media_s = time.monotonic()
        self._closing: asyncio.Future[None] | None = None

    async def answer(self, sdp: str) -> str:
        """The answer to a browser's offer; raises :class:`RtcError`."""
        tracks: list[Any] = []
        self._connection.on("track", tracks.append)
        try:
            _check(sdp)
            await self._connection.setRemoteDescription(self._description(sdp, "offer"))
            kinds = [track.kind for track in tracks]
            if not kinds or len(kinds) != len(set(kinds)):
                raise RtcError(UNEXPECTED)
            await self._connection.setLocalDescription(await self._connection.createAnswer())
        except RtcError:
            raise
        except Exception as err:  # the parser meets whatever a client sends
            log.debug("offer refused", exc_info=True)
            raise RtcError(f"the offer of the browser cannot be answered ({err})") from None
        self._incoming = incoming = Incoming(frozenset(kinds))
        for receiver in self._connection.getReceivers():
            if receiver.track in tracks:
                reports = _Reports(receiver, incoming)
                pump = self._video if receiver.track.kind == "video" else self._audio
                self._tasks.append(asyncio.ensure_future(pump(receiver.track, reports)))
        self._tasks.append(asyncio.ensure_future(self._watch(incoming)))
        sdp_answer: str = self._connection.localDescription.sdp
        return sdp_answer

    async def close(self, why: str = "the page was left", *, for_good: bool = False) -> None:
        """Ends what it sends; also before it began.  ``for_good``: no browser is to be waited for.

        Once begun it goes on when the caller is cancelled: half closed, aiortc's threads would
        wait for ever.
        """
        if self._closing is None:
            caller = asyncio.current_task()
            self._closing = asyncio.ensure_future(self._close(why, for_good, caller))
        elif for_good:  # the connection ended before what was said about it came by another way
            self._desk.stop(why)
        await asyncio.shield(self._closing)

    async def _close(self, why: str, for_good: bool, caller: asyncio.Task[Any] | None) -> None:
        if self._incoming is not None:
            self._incoming.end(why, for_good=for_good)
        if self._delivered and self._incoming is not None:
            self._desk.gone(self._incoming)
        else:
            self._desk.give_up()
        tasks = [task for task in self._tasks if task is not caller]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._connection.close()

    async def _video(self, track: Any, reports: _Reports) -> None:
        async for frame in _frames(track):
            self._last_media_s = time.monotonic()
            pts_s = float(frame.pts * frame.time_base)
            reports.relate(pts_s, frame.time_base)
            size = (frame.width, frame.height)
            reports.incoming.video(pts_s, size, partial(_to_rgb, frame))

    async def _audio(self, track: Any, reports: _Reports) -> None:
        from runtime.media.decoding import Resampler, clean_samples, import_av

        notice = reports.incoming.notes.append
        resampler = Resampler(import_av(), self._rate_hz, notice=notice)
        async for frame in _frames(track):
            self._last_media_s = time.monotonic()
            reports.relate(float(frame.pts * frame.time_base), frame.time_base)
            for piece in resampler.push(frame):
                samples = clean_samples(piece)  # [n]
                pts_s = float(piece.pts * piece.time_base)
                reports.incoming.audio(pts_s, samples, self._rate_hz)

    async def _watch(self, incoming: Incoming) -> None:
        """Delivers the source when all tracks have come, and notices when nothing comes."""
        start = time.monotonic()
        while not incoming.ready:
            if self._gone():
                return await self._end("the connection to the browser failed")
            if time.monotonic() - start > START_WAIT_S:
                return await self._end(
                    "nothing arrived from the browser: something between it and this machine "
                    "blocks UDP"
                )
            await asyncio.sleep(0.05)
        self._delivered = True
        self._desk.deliver(incoming)
        while not self._gone():
            if incoming.ended is not None:  # by the program
                return await self._end(incoming.ended)
            if time.monotonic() - self._last_media_s > SILENCE_WAIT_S:
                return await self._end(f"the browser sent nothing for {SILENCE_WAIT_S:.0f} s")
            await asyncio.sleep(0.1)
        return await self._end("the browser closed the connection")

    def _gone(self) -> bool:
        return self._connection.connectionState in ("failed", "closed")

    async def _end(self, why: str) -> None:
        await self.close(why)
        with contextlib.suppress(Exception):  # the page may have gone, too
            await self._on_end(why)


def _check(offer: str) -> None:
    """Raises :class:`RtcError` for what aiortc would begin with and then not get out of.

    It makes transports as it reads, in a time that grows with the square of their number, and
    cannot close those that an offer bundles with a section that is not there.
    """
    if sum(line.startswith("m=") for line in offer.splitlines()) > MAX_SECTIONS:
        raise RtcError(UNEXPECTED)
    parsed = import_aiortc().sdp.SessionDescription.parse(offer)
    mids = [media.rtp.muxId for media in parsed.media]
    bundled = [mid for group in parsed.group for mid in group.items]
    if len(mids) != len(set(mids)) or not set(bundled) <= set(mids):
        raise RtcError("the sections of the offer have no names of their own")


class _Reports:
    """The RTCP sender reports on one track, in the timestamps that its frames carry."""

    def __init__(self, receiver: Any, incoming: Incoming) -> None:
        self.incoming = incoming
        self._kind: str = receiver.track.kind
        self._receiver = receiver
        self._waiting: tuple[float, int] | None = None  # wall seconds, RTP timestamp
        inner = receiver._handle_rtcp_packet

        async def handle(packet: Any) -> None:
            info = getattr(packet, "sender_info", None)
            if info is not None and info.ntp_timestamp:
                self._waiting = (info.ntp_timestamp / NTP_FRACTIONS, info.rtp_timestamp)
            await inner(packet)

        receiver._handle_rtcp_packet = handle

    def relate(self, pts_s: float, time_base: Any) -> None:
        """Passes on what was reported since the last frame; ``pts_s`` is that of this one."""
        if self._waiting is None:
            return
        mapper = getattr(self._receiver, "_RTCRtpReceiver__timestamp_mapper", None)
        origin = getattr(mapper, "_origin", None)
        if origin is None:
            return
        wall_s, rtp = self._waiting
        self._waiting = None
        here = round(pts_s / float(time_base))
        ticks = (rtp - origin - here + RTP_WRAP // 2) % RTP_WRAP - RTP_WRAP // 2  # since here
        self.incoming.clock.report(self._kind, wall_s, float((here + ticks) * time_base))


async def _frames(track: Any) -> Any:
    from aiortc.mediastreams import MediaStreamError

    while True:
        try:
            yield await track.recv()
        except MediaStreamError:  # the browser stopped it
            return


def _to_rgb(frame: Any) -> Frame:  # [H, W, 3]
    scale = MAX_SIDE_PX / max(frame.width, frame.height)
    if scale < 1:
        frame = frame.reformat(
            width=max(1, round(frame.width * scale)), height=max(1, round(frame.height * scale))
        )
    rgb: Frame = frame.to_ndarray(format="rgb24")
    return rgb


def import_aiortc() -> Any:
    with optional("for --source browser", extra="cpu,web"):
        import aiortc
    return aiortc
