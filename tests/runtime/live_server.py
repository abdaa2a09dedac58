# SPDX-License-Identifier: Apache-2.0
"""Servers for the tests of network streams, on 127.0.0.1 alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECES = 50


@dataclass(frozen=True)
class Response:
    """What one connection gets.

    hang : nothing more comes, and it stays open
    over_s : how long it takes, as from a camera; 0: all at once, as from a disk
    chunked : its framing says when it has ended; ``cut``: but it does not get there
    length : it is said in advance
    """

    body: bytes
    hang: bool = False
    redirect: str = ""
    over_s: float = 0.0
    chunked: bool = False
    cut: bool = False
    length: bool = False


@contextmanager
def http_server(responses: Sequence[Response]) -> Iterator[str]:
    """An endless MPEG-TS over HTTP as far as a client can tell: each connection gets the next
    response; when there is none left, the server is gone.  Gives the address."""
    left = list(responses)
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if not left:
                self.send_error(503)
                return
            response = left.pop(0)
            self.send_response(302 if response.redirect else 200)
            if response.redirect:
                self.send_header("Location", response.redirect)
            self.send_header("Content-Type", "video/mp2t")
            self.send_header("Connection", "close")  # and none of it can be asked for in parts
            if response.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            if response.length:
                self.send_header("Content-Length", str(len(response.body)))
            self.end_headers()
            for piece in pieces(response, closing):
                self.wfile.write(piece)
            if response.hang:
                closing.wait(30)

        def log_message(self, *_: object) -> None:
            pass

    with serve(Handler) as port:
        try:
            yield f"http://127.0.0.1:{port}/live.ts"
        finally:
            closing.set()


def pieces(response: Response, closing: threading.Event) -> Iterator[bytes]:
    """The body as it goes over the line, each piece when it is time."""
    step = max(1, len(response.body) // PIECES)
    begun_s = time.monotonic()
    for at in range(0, len(response.body), step):
        due_s = begun_s + response.over_s * at / len(response.body)
        if response.over_s and closing.wait(max(0.0, due_s - time.monotonic())):
            return
        piece = response.body[at : at + step]
        yield b"%x\r\n%s\r\n" % (len(piece), piece) if response.chunked else piece
    if response.chunked and not response.cut:
        yield b"0\r\n\r\n"


@contextmanager
def serve(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients may go away
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
