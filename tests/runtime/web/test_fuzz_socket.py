# SPDX-License-Identifier: Apache-2.0
"""Whatever a page says over its WebSocket, garbage and offers of WebRTC included.

Its own socket is closed with a reason or the message is answered or ignored; the server goes on,
serves the next client and keeps nothing: no task, no peer, no handle.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed (extra web)")
pytest.importorskip("uvicorn", reason="uvicorn is not installed (extra web)")
pytest.importorskip("websockets", reason="websockets is not installed (extra web)")
pytest.importorskip("aiortc", reason="aiortc is not installed (extra web)")

import aiortc
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from runtime.web.app import MAX_VIEWERS
from runtime.web.browser import Desk
from runtime.web.rtc import MAX_SECTIONS, Peer, RtcError
from runtime.web.server import MAX_MESSAGE_BYTES, WebServer
from runtime.web.viewer import Jpegs, Viewer
from tests.runtime.web.serving import TOKEN, ask, closing, confirm, get, served, turn, viewer
from tests.runtime.web.test_fuzz_http import ELSEWHERE, FORGED, Errors
from tests.waiting import patient, wait_for

quickly = settings(max_examples=60, deadline=None, derandomize=True)

HANDLES = Path("/proc/self/fd")
NOT_A_MESSAGE, TOO_BIG = 1003, 1009  # WebSocket close codes, RFC 6455 section 7.4.1


@pytest.fixture(scope="module", autouse=True)
def errors() -> Iterator[Errors]:
    handler = Errors()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    """It wants the camera of a browser."""
    with served() as server:
        server.want_browser()
        yield server


# What stays behind


def kept(server: WebServer) -> dict[str, int]:
    """What a client that has gone may leave: tasks of the server's loop, peers, handles."""
    loop = server._server.servers[0].get_loop()
    gc.collect()
    peers = [o for o in gc.get_objects() if type(o) is aiortc.RTCPeerConnection]
    return {
        "tasks": len(asyncio.all_tasks(loop)),
        "connections": len(server._server.server_state.connections),
        "peers": sum(peer.connectionState != "closed" for peer in peers),
        "handles": len(list(HANDLES.iterdir())) if HANDLES.is_dir() else 0,
    }


@contextlib.contextmanager
def nothing_kept(server: WebServer) -> Iterator[None]:
    """Inside the same is kept as before, as soon as the clients have gone."""
    assert get(server, "/healthz")[0] == 200  # whatever a first request makes is there
    before = kept(server)
    yield
    wait_for(lambda: not any(n > before[name] for name, n in kept(server).items()), f"{before}")
    assert server.desk.status == "waiting"
    with viewer(server) as next_one:
        assert turn(next_one)[0]["type"] == "turn"


def answers(socket: Any, offers: int) -> list[dict[str, Any]] | int | None:
    """What is said of so many offers; or the code, where the server closes the socket before."""
    said: list[dict[str, Any]] = []
    try:
        while len(said) < offers:
            message, _ = turn(socket)
            if message["type"] == "rtc":
                said.append(message)
            elif message["type"] == "turn":
                confirm(socket, message["turn"])
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None
    return said


# Messages

SCALARS = (
    st.none() | st.booleans() | st.text(max_size=8) | st.floats()
    | st.integers() | st.sampled_from([10**400, -(2**63), 2**64, 1e308, -0.0])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3),
    max_leaves=6,
)
KINDS = st.sampled_from(["seen", "offer", "hang_up", "turn", "rtc", "hello", ""]) | VALUES
MESSAGES = st.fixed_dictionaries(
    {"type": KINDS},
    optional={"turn": VALUES, "sdp": VALUES, "x": VALUES},
)
GARBAGE = VALUES | st.lists(VALUES, max_size=3)


@quickly
@given(st.lists(MESSAGES, min_size=1, max_size=5))
@example([{"type": "offer", "sdp": [[[1]]]}, {"type": "hang_up"}, {"type": "offer"}])
@example([{"type": "seen", "turn": 10**400}, {"type": "seen", "turn": True}])
def test_messages_with_anything_in_them_are_answered_or_ignored(
    server: WebServer, errors: Errors, messages: list[dict[str, Any]]
) -> None:
    with viewer(server) as page:
        for message in messages:
            page.send(json.dumps(message))
        page.send(json.dumps({"type": "offer", "sdp": ""}))
        offers = 1 + sum(message["type"] == "offer" for message in messages)
        said = answers(page, offers)
    assert isinstance(said, list)
    assert all(answer["error"] for answer in said), "none of them is an offer"
    assert server.desk.status == "waiting"
    assert not errors.new()


@quickly
@given(
    st.text(max_size=50)
    | st.binary(max_size=50)
    | VALUES.filter(lambda v: not isinstance(v, dict) or "type" not in v).map(json.dumps)
)
@example("[" * 100_000)
@example('{"type":' * 20_000)
@example('{"type":"offer","sdp":' + "[" * 900 + "]" * 900 + "}")
@example("9" * 100_000)
@example("\ufeff{}")
@example('{"type": "seen", "turn": NaN}')
@example("\0")
def test_what_is_no_message_closes_its_own_socket_with_a_reason(
    server: WebServer, errors: Errors, data: str | bytes
) -> None:
    with viewer(server) as other, viewer(server) as page:
        page.send(data)
        with contextlib.suppress(ConnectionClosed):  # already
            page.send(json.dumps({"type": "offer", "sdp": ""}))
        outcome = answers(page, 1)
        assert outcome == NOT_A_MESSAGE or isinstance(outcome, list)
        assert turn(other)[0]["type"] == "turn"
    assert not errors.new()


@pytest.mark.parametrize(
    "data",
    ["[" * 100_000, '{"type":' * 20_000, "9" * 100_000, "{", "null", "[]", "{}", b"{}", b"\xff"],
    ids=["deep", "deep objects", "long number", "open", "null", "list", "empty", "bytes", "ff"],
)
def test_the_reason_of_what_is_no_message(server: WebServer, data: str | bytes) -> None:
    with viewer(server) as page:
        page.send(data)
        assert closing(page) == NOT_A_MESSAGE
    assert page.close_reason == "not a message of the page"


def test_a_message_beyond_the_limit_closes_its_socket(server: WebServer) -> None:
    with viewer(server) as page:
        page.send("x" * (MAX_MESSAGE_BYTES + 1))
        assert closing(page) == TOO_BIG
    with viewer(server) as page:
        page.send("x" * 1000 for _ in range(MAX_MESSAGE_BYTES // 1000 + 1))
        assert closing(page) == TOO_BIG, "in pieces it is as long"


HANDSHAKE = (
    "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)  # fmt: skip


@quickly
@given(st.binary(min_size=1, max_size=200))
@example(b"\x81\x03abc")  # not masked
@example(b"\xff\x80\0\0\0\0")  # reserved bits, no such opcode
@example(b"\x89\xff\xff\xff\xff\xff\xff\xff\xff\xff")  # a ping of 2**64 bytes
@example(b"\x88\x81\0\0\0\0\x03")  # a close with half a code
def test_bytes_that_are_no_frames(server: WebServer, errors: Errors, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(HANDSHAKE.encode() + data)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):  # closed with bytes unread
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 101 ")
            while connection.recv(1 << 16):  # until the server closes
                pass
    assert not [e for e in errors.new() if "Invalid UTF-8" not in e]  # uvicorn's own line
    assert get(server, "/healthz")[0] == 200


# Offers


async def _genuine() -> str:
    """What a browser with a camera and a microphone offers."""
    connection = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
    for kind in ("audio", "video"):
        connection.addTransceiver(kind, direction="sendonly")
    await connection.setLocalDescription(await connection.createOffer())
    sdp: str = connection.localDescription.sdp
    await connection.close()
    return sdp


LINES = asyncio.run(_genuine()).splitlines()
ODD_LINES = st.sampled_from(
    ["", "m=", "m=audio", "m=audio 0 X", "m=application 9 UDP/DTLS/SCTP webrtc-datachannel", "c=",
     "a=group:BUNDLE", "a=group:BUNDLE 0 0 7", "a=mid:", "a=mid:0", "a=candidate:", "a=sendrecv",
     "a=candidate:1 1 udp 1 127.0.0.1 9 typ host", "a=candidate:1 1 udp x y z typ host",
     "a=candidate:1 1 udp 1 x.local 9 typ host", "a=rtpmap:x", "a=rtpmap:0 PCMU/0", "a=ssrc:x",
     "a=fingerprint:", "a=fingerprint:sha-256 zz", "a=setup:x", "a=extmap:x", "a=fmtp:0 x",
     "a=rtcp-fb:*", "a=ice-ufrag:", "a=sctp-port:x", "a=ice-lite", "a=inactive", "\0", "v=9"]
) | st.text(max_size=30)  # fmt: skip


@st.composite
def damaged_offers(draw: st.DrawFn) -> str:
    """A genuine offer with a few lines taken away, repeated, replaced, cut or added."""
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        what = draw(st.sampled_from(["remove", "repeat", "replace", "cut", "add"]))
        if what == "remove":
            del lines[at : at + draw(st.integers(1, 5))]
        elif what == "repeat":
            lines.insert(draw(st.integers(0, len(lines))), lines[at])
        elif what == "replace":
            lines[at] = draw(ODD_LINES)
        elif what == "cut":
            lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
        else:
            lines.insert(at, draw(ODD_LINES))
        lines = lines or [""]
    return "\r\n".join(lines) + "\r\n"


@pytest.mark.thorough
def test_damaged_offers_are_answered_or_refused_and_leave_nothing(
    server: WebServer, errors: Errors
) -> None:
    outcomes = {"sdp": 0, "error": 0}

    @quickly
    @given(damaged_offers(), st.booleans())
    @example("\r\n".join(LINES) + "\r\n", True)
    @example("\r\n".join(LINES) + "\r\n", False)
    @example("\r\n".join(LINES), False)
    def offer(sdp: str, hang_up: bool) -> None:
        with viewer(server) as page:
            page.send(json.dumps({"type": "offer", "sdp": sdp}))
            said = answers(page, 1)
            assert isinstance(said, list)
            outcomes["sdp" if "sdp" in said[0] else "error"] += 1
            if hang_up:
                page.send(json.dumps({"type": "hang_up"}))
        # The next browser gets in when this one has gone.
        wait_for(lambda: server.desk.status == "waiting", "a free desk")
        # aiortc's own task, where its connection was closed before that task got to run.
        assert not [e for e in errors.new() if "RTCIceTransport is closed" not in e]

    with nothing_kept(server):
        offer()
    assert min(outcomes.values()) >= 5, "some get through the parser and some do not"


def test_pages_that_come_and_go_leave_nothing(server: WebServer) -> None:
    with nothing_kept(server):
        for data in ("{", "[" * 1000, b"\0", "x" * (MAX_MESSAGE_BYTES + 1), None) * 5:
            with viewer(server) as page:
                if data is not None:
                    page.send(data)
                    closing(page)


def test_an_offer_of_many_cameras_is_refused_at_once(server: WebServer) -> None:
    """aiortc takes time that grows with the square of their number, seconds for a whole message."""
    audio = [*LINES[LINES.index(next(x for x in LINES if x.startswith("m=audio"))) :]]
    one = ["m=audio 9 UDP/TLS/RTP/SAVPF 0", "a=sendonly", "a=rtpmap:0 PCMU/8000"]
    for section, many in ((audio, 30), (one, 3000)):
        sdp = "\r\n".join([*LINES[:4], *section * many])
        assert len(sdp) < MAX_MESSAGE_BYTES
        with viewer(server) as page:
            start = time.monotonic()
            page.send(json.dumps({"type": "offer", "sdp": sdp}))
            (said,) = answers(page, 1)
            assert time.monotonic() - start < patient(2), (
                "milliseconds, and what a busy machine adds"
            )
        assert "one camera" in said["error"]
    assert sum(line.startswith("m=") for line in LINES) == MAX_SECTIONS, "a genuine one has as many"


def test_a_refused_offer_does_not_take_the_place_of_the_next_browser() -> None:
    """The desk is free as soon as the first peer closes; its page must not free it once more."""
    desk = Desk()
    desk.want()

    class Closing:
        """A peer that refuses, and while it closes the next browser comes."""

        async def answer(self, sdp: str) -> str:
            raise RtcError("no")

        async def close(self, why: str = "") -> None:
            desk.give_up()
            assert desk.claim() is None

    class Mute:
        async def send_text(self, data: str) -> None: ...

    page: Any = Viewer(Mute(), None, desk, Jpegs("show"), {}, lambda on_end: Closing())  # type: ignore[arg-type]
    asyncio.run(page._answer("an offer"))
    assert desk.status == "connecting"
    assert desk.claim() == "another browser is the source already"


def _with(old: str, new: str) -> str:
    sdp = "\r\n".join(LINES) + "\r\n"
    assert old in sdp
    return sdp.replace(old, new)


@pytest.mark.parametrize(
    "sdp",
    [_with("BUNDLE 0 1", "BUNDLE 0 7"), _with("BUNDLE 0 1", "BUNDLE 7 0 1"),
     _with("a=mid:1", "a=mid:0"), _with("a=mid:0\r\n", "")],
    ids=["bundled with nothing", "nothing comes first", "the same name", "no name"],
)  # fmt: skip
def test_an_offer_whose_sections_do_not_fit_is_refused_and_the_peer_can_be_closed(
    sdp: str,
) -> None:
    """aiortc fails in the middle of these, and once more when it is closed: its sockets stay."""

    async def ended(_: str) -> None: ...

    async def refuse() -> int:
        peer = Peer(Desk(), 16_000, ended)
        with pytest.raises(RtcError, match="no names of their own"):
            await peer.answer(sdp)
        await peer.close()
        return len(asyncio.all_tasks())

    assert asyncio.run(refuse()) == 1, "its own"


# Who gets in, and how many


@pytest.fixture(scope="module")
def locked() -> Iterator[WebServer]:
    with served(token=TOKEN) as server:
        yield server


@quickly
@given(st.lists(FORGED, max_size=3), st.sampled_from(["/ws", f"/ws?token={TOKEN}", *ELSEWHERE]))
@example([("Origin", "http://[")], "/ws")
def test_no_socket_opens_without_the_token(
    locked: WebServer, errors: Errors, headers: list[tuple[str, str]], target: str
) -> None:
    handshake = [
        ("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ]  # fmt: skip
    status, _, _ = ask(locked, target, headers=[*handshake, *headers])
    assert status in {400, 401, 403, 421, 426}
    assert not errors.new()


def test_a_page_too_many_is_told_so_and_gets_in_when_another_has_gone() -> None:
    with served() as server, contextlib.ExitStack() as pages:
        first = pages.enter_context(viewer(server))
        for _ in range(MAX_VIEWERS - 1):
            pages.enter_context(viewer(server))
        from websockets.sync.client import connect

        with connect(f"ws://127.0.0.1:{server.port}/ws", proxy=None) as one_too_many:
            assert closing(one_too_many) == 1013
        assert get(server, "/healthz")[0] == 200
        first.close()

        def gets_in() -> bool:
            with contextlib.suppress(ConnectionClosed), viewer(server) as page:
                return bool(turn(page)[0]["turn"] == 1)
            return False

        wait_for(gets_in, "room for one more")  # the server notices in its own time
