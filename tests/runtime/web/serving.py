# SPDX-License-Identifier: Apache-2.0
"""A page served on loopback, and plain clients for it."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from runtime.faces import Face
from runtime.flow.sink import Picture
from runtime.judging.verdict import Label, Reason, Verdict
from runtime.listen import Address
from runtime.web.server import WebServer
from runtime.web.sink import WebSink
from runtime.web.token import Token
from tests.runtime.doubles import SPEC

LOOPBACK = Address("127.0.0.1", 0)
TOKEN = "a-token-of-the-tests"


@contextmanager
def served(
    sink: WebSink | None = None, *, token: str | None = None, **options: Any
) -> Iterator[WebServer]:
    """A server that has started."""
    known = Token(token, generated=False) if token else None
    sink = sink or WebSink(model_id="mock-1", provider="mock")
    with WebServer(LOOPBACK, sink, SPEC, token=known, **options) as server:
        yield server


def get(
    server: WebServer, path: str = "/", method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (names in lower case), body; ``host`` replaces the header of that name."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host="host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    finally:
        connection.close()


def ask(
    server: WebServer,
    target: str = "/",
    method: str = "GET",
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
) -> tuple[int, dict[str, str], bytes]:
    """As :func:`get` with nothing checked on this side; ``Host`` is ours where none is given.

    Headers of the same name may repeat; their characters are bytes (latin-1).
    """
    given = list(headers)
    if not any(name.lower() == "host" for name, _ in given):
        given.insert(0, ("Host", f"127.0.0.1:{server.port}"))
    head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in given)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head.encode("latin-1") + b"\r\n" + body)
        response = http.client.HTTPResponse(connection, method=method)
        response.begin()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()


@contextmanager
def viewer(server: WebServer, **headers: str) -> Iterator[Any]:
    """A WebSocket that confirms nothing of its own accord; the greeting has been read."""
    from websockets.sync.client import connect

    uri = f"ws://127.0.0.1:{server.port}/ws"
    with connect(uri, additional_headers=headers, proxy=None, max_size=None) as socket:
        assert json.loads(socket.recv(timeout=10))["type"] == "hello"
        yield socket


def turn(socket: Any, timeout: float = 10) -> tuple[dict[str, Any], list[bytes]]:
    """The next turn: its text and the pictures that came before it."""
    pictures = []
    while isinstance(message := socket.recv(timeout=timeout), bytes):
        pictures.append(message)
    return json.loads(message), pictures


def confirm(socket: Any, number: int) -> None:
    socket.send(json.dumps({"type": "seen", "turn": number}))


def closing(socket: Any) -> int | None:
    """Reads until the server closes the socket: its code."""
    from websockets.exceptions import ConnectionClosed

    try:
        while True:
            socket.recv(timeout=10)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None


def verdict(end_s: float = 2.0, **changes: Any) -> Verdict:
    values: dict[str, Any] = {
        "source": "a.mp4", "model_id": "mock-1", "t_start_s": end_s - 2, "t_end_s": end_s,
        "face_id": 0, "p_fake": 0.1, "p_fake_video": 0.2, "p_fake_audio": 0.3, "sync": 0.9,
        "av_offset_ms": 40.0, "label": Label.REAL, "reason": None, "latency_ms": 12.0,
    }  # fmt: skip
    return Verdict(**{**values, **changes})


def abstention(reason: Reason, end_s: float = 2.0, **changes: Any) -> Verdict:
    return verdict(end_s, label=Label.ABSTAIN, reason=reason, **changes)


def picture(t_s: float = 0.0, source: str = "a.mp4", faces: int = 1, shade: int = 90) -> Picture:
    """64x48, of one shade but for a fine chequered pattern where face ``i`` is."""
    frame = np.full((48, 64, 3), shade, np.uint8)
    found = []
    for i in range(faces):
        left = 16 + 24 * i
        frame[12:28, left : left + 16] = 255 * (np.indices((16, 16)).sum(0) % 2)[..., None]
        box = (float(left), 12.0, left + 16.0, 28.0)
        found.append(Face(i, frame[:8, :8], box, np.zeros((3, 2)), 16.0, 1.0))
    return Picture(source, t_s, frame, found)
