# SPDX-License-Identifier: Apache-2.0
"""One page that is open: what goes to it over its WebSocket, and what it says.

To the page go *turns*: a binary message for each source that has a newer picture, then a JSON text
with everything else that is new.  The page confirms each turn when it has shown it; with two turns
unconfirmed nothing more is sent, and what is sent next is what is newest then.  So a slow browser
or line gets fewer pictures, all verdicts (as many as are kept), and nothing piles up for it here.

A picture's message is the length of a JSON header (4 bytes, big-endian), the header, the JPEG.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from runtime.errors import UserError
from runtime.flow.sink import Picture
from runtime.web.browser import Desk
from runtime.web.picture import to_jpeg
from runtime.web.sink import WebSink

if TYPE_CHECKING:
    from runtime.web.rtc import Peer

TURN_S = 0.08  # 12.5 turns a second
MAX_UNCONFIRMED = 2
GIVE_UP_S = 60.0  # without a confirmation; the page connects again when it wakes up
TOO_SLOW = 4000  # WebSocket close code of our own
TRY_AGAIN_LATER = 1013  # WebSocket close code of IANA's registry


class Socket(Protocol):
    """What is needed of a FastAPI WebSocket."""

    async def send_text(self, data: str) -> None: ...

    async def send_bytes(self, data: bytes) -> None: ...

    async def receive_text(self) -> str: ...

    async def close(self, code: int = 1000, reason: str | None = None) -> None: ...


class Jpegs:
    """The newest picture of each source as JPEG, made once for all viewers, off the loop."""

    def __init__(self, faces: str) -> None:
        self._faces = faces
        self._made: dict[str, tuple[int, bytes]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def get(self, source: str, number: int, picture: Picture) -> bytes:
        """Empty where pictures are not to be shown."""
        if self._faces == "hide":
            return b""
        async with self._locks.setdefault(source, asyncio.Lock()):
            made, jpeg = self._made.get(source, (0, b""))
            if made < number:
                jpeg = await asyncio.to_thread(to_jpeg, picture, blur=self._faces == "blur")
                self._made[source] = (number, jpeg)
            return jpeg


class Viewer:
    """Serves one WebSocket until it closes.

    make_peer : a receiver of WebRTC for this page; told what to call when it ends
    """

    def __init__(
        self,
        socket: Socket,
        sink: WebSink,
        desk: Desk,
        jpegs: Jpegs,
        hello: dict[str, Any],
        make_peer: Callable[[Any], Peer],
    ) -> None:
        self._socket, self._sink, self._desk, self._jpegs = socket, sink, desk, jpegs
        self._hello, self._make_peer = hello, make_peer
        self._peer: Peer | None = None
        self._sent = self._confirmed = 0
        self._changed = asyncio.Event()
        self._sending = asyncio.Lock()  # a turn's messages stay together

    async def serve(self) -> None:
        """Returns when the page has gone, or confirms nothing for too long."""
        tasks = [asyncio.ensure_future(job) for job in (self._tell(), self._listen())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._peer is not None:
                await self._peer.close()

    async def _tell(self) -> None:
        seen: dict[str, int] = {}
        shown: dict[str, int] = {}
        await self._socket.send_text(json.dumps({"type": "hello", **self._hello}))
        while await self._may_send():
            start = time.monotonic()
            self._sent += 1
            news, seen = self._sink.news(seen)
            turn = {"type": "turn", "turn": self._sent, "browser": self._desk.status, **news}
            async with self._sending:
                for source, (number, picture) in self._sink.newest_pictures(shown).items():
                    shown[source] = number
                    jpeg = await self._jpegs.get(source, number, picture)
                    await self._socket.send_bytes(picture_message(source, picture, jpeg))
                await self._socket.send_text(json.dumps(turn))
            await asyncio.sleep(max(0.01, TURN_S - (time.monotonic() - start)))
        await self._socket.close(TOO_SLOW, "nothing was confirmed for too long")

    async def _may_send(self) -> bool:
        """Waits for the page to confirm; False: it does not."""
        while self._sent - self._confirmed >= MAX_UNCONFIRMED:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), GIVE_UP_S)
            except asyncio.TimeoutError:
                return False
        return True

    async def _listen(self) -> None:
        while True:
            try:
                message = json.loads(await self._socket.receive_text())
                kind = message["type"]
            except (ValueError, KeyError, TypeError, RecursionError):
                await self._socket.close(1003, "not a message of the page")
                return
            if kind == "seen":
                turn = message.get("turn")
                if isinstance(turn, int) and self._confirmed < turn <= self._sent:
                    self._confirmed = turn
                    self._changed.set()
            elif kind == "offer":
                sdp = message.get("sdp")
                await self._answer(sdp if isinstance(sdp, str) else "")
            elif kind == "hang_up" and self._peer is not None:
                peer, self._peer = self._peer, None
                if message.get("lost"):
                    await peer.close("the camera or the microphone was lost")
                else:
                    await peer.close("the camera was stopped on the page", for_good=True)

    async def _answer(self, sdp: str) -> None:
        """A browser offers its camera and microphone."""
        if (why := self._desk.claim()) is not None:
            await self._say({"type": "rtc", "error": why})
            return
        self._peer = None  # one that has ended
        try:
            self._peer = self._make_peer(self._ended)
            await self._say({"type": "rtc", "sdp": await self._peer.answer(sdp)})
        except UserError as err:
            peer, self._peer = self._peer, None
            if peer is None:
                self._desk.give_up()
            else:  # gives up itself; a second time would be for the browser that came next
                await peer.close()
            await self._say({"type": "rtc", "error": str(err)})

    async def _ended(self, why: str) -> None:
        await self._say({"type": "rtc", "ended": why})

    async def _say(self, message: dict[str, Any]) -> None:
        async with self._sending:
            await self._socket.send_text(json.dumps(message))


def picture_message(source: str, picture: Picture, jpeg: bytes) -> bytes:
    """Boxes are in shares of the picture's width and height, x0 y0 x1 y1."""
    height, width = picture.frame.shape[:2]
    faces = [
        {
            "id": face.track_id,
            "box": [
                round(float(v) / side, 4)
                for v, side in zip(face.box, (width, height, width, height), strict=True)
            ],
        }
        for face in picture.faces
    ]
    header = {"source": source, "t_s": picture.t_s, "size": [width, height], "faces": faces}
    head = json.dumps(header).encode()
    return struct.pack(">I", len(head)) + head + jpeg
