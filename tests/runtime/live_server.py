# SPDX-License-Identifier: Apache-2.0
"""Servers for the tests of network streams, on 127.0.0.1 alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Response:
    """What one connection gets; ``hang``: nothing more comes, and it stays open."""

    body: bytes
    hang: bool = False
    redirect: str = ""


@contextmanager
def http_server(responses: Sequence[Response]) -> Iterator[str]:
    """An endless MPEG-TS over HTTP as far as a client can tell: each connection gets the next
    response; when there is none left, the server is gone.  Gives the address."""
    left = list(responses)
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not left:
                self.send_error(503)
                return
            response = left.pop(0)
            self.send_response(302 if response.redirect else 200)
            if response.redirect:
                self.send_header("Location", response.redirect)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            self.wfile.write(response.body)
            self.wfile.flush()
            if response.hang:
                closing.wait(30)

        def log_message(self, *_: object) -> None:
            pass

    with serve(Handler) as port:
        try:
            yield f"http://127.0.0.1:{port}/live.ts"
        finally:
            closing.set()


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
