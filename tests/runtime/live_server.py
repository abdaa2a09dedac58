# SPDX-License-Identifier: Apache-2.0
"""Servers for the tests of network streams, on 127.0.0.1 alone."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SYSTEM_PYTHON = "/usr/bin/python3"
RTSP_SCRIPT = Path(__file__).with_name("rtsp_server.py")


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def why_no_rtsp_server() -> str | None:
    """Why GStreamer's RTSP server cannot run here, or None."""
    packages = "apt install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good"
    check = (
        "import gi; gi.require_version('GstRtspServer', '1.0');"
        "from gi.repository import Gst, GstRtspServer; Gst.init(None);"
        "need = 'qtdemux h264parse rtph264pay aacparse rtpmp4gpay'.split();"
        "exit(any(Gst.ElementFactory.find(n) is None for n in need))"
    )
    if shutil.which(SYSTEM_PYTHON) is None:
        return f"no {SYSTEM_PYTHON} to run an RTSP server"
    done = subprocess.run([SYSTEM_PYTHON, "-c", check], capture_output=True, check=False)
    return None if done.returncode == 0 else f"no RTSP server: {packages} (and -bad)"


class RtspServer:
    """GStreamer's RTSP server in a process of its own; ``kill`` and ``start`` as often as liked."""

    def __init__(self, clip: Path) -> None:
        self._clip = clip
        self.port = free_port()
        self.url = f"rtsp://127.0.0.1:{self.port}/live"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> float:
        """Returns the moment when clients can come (monotonic seconds)."""
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, str(RTSP_SCRIPT), str(self._clip), str(self.port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return time.monotonic()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
