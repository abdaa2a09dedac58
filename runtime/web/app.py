# SPDX-License-Identifier: Apache-2.0
"""The routes: ``/`` and its files, ``/api/state``, ``/healthz``, ``/ws``."""

# No `from __future__ import annotations` here: FastAPI reads the handlers' annotations, whose
# names are known only inside build_app, where FastAPI is imported.

import contextlib
from importlib import resources
from typing import Any

from runtime.verdict import MEANINGS
from runtime.web.access import App, Guard
from runtime.web.address import Address
from runtime.web.browser import Desk
from runtime.web.rtc import Peer
from runtime.web.sink import DROPS, WebSink
from runtime.web.viewer import Jpegs, Viewer

FILES = {  # path -> file of static/, media type
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.css": ("app.css", "text/css; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/timeline.js": ("timeline.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def build_app(
    sink: WebSink,
    desk: Desk,
    *,
    address: Address,
    token: str | None,
    secure: bool,
    faces: str,
    sample_rate_hz: int,
    threshold: float,
) -> App:
    """The application behind its guard.

    secure : is it served over TLS?
    faces : ``show``, ``blur`` or ``hide``
    sample_rate_hz : of the sound that the model hears
    threshold : of p_fake, between real and fake
    """
    from fastapi import FastAPI, WebSocket, WebSocketDisconnect
    from fastapi.responses import JSONResponse, Response

    app = FastAPI(title="MSCT", docs_url=None, redoc_url=None, openapi_url=None)
    jpegs = Jpegs(faces)
    hello: dict[str, Any] = {
        "reasons": {reason.value: words for reason, words in MEANINGS.items()},
        "drops": DROPS,
        "faces": faces,
        "loopback": address.loopback,
        "threshold": threshold,
    }

    def serve(path: str, name: str, media_type: str) -> None:
        content = (resources.files("runtime.web") / "static" / name).read_bytes()

        async def page_file() -> Response:
            return Response(content, media_type=media_type)

        app.add_api_route(path, page_file, methods=["GET"])

    for path, (name, media_type) in FILES.items():
        serve(path, name, media_type)

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        return JSONResponse({"status": "ok", "sources": sink.statuses()})

    @app.get("/api/state")
    async def state() -> JSONResponse:
        return JSONResponse({**sink.state(), "browser": desk.status})

    @app.websocket("/ws")
    async def live(socket: WebSocket) -> None:
        await socket.accept()
        viewer = Viewer(
            socket, sink, desk, jpegs, hello, lambda on_end: Peer(desk, sample_rate_hz, on_end)
        )
        # RuntimeError: the server closed the socket while a turn was on its way.
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await viewer.serve()

    return Guard(app, address, token, secure=secure)
