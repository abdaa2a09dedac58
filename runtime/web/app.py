# SPDX-License-Identifier: Apache-2.0
"""The routes: ``/`` and its files, ``/api/state``, ``/healthz``, ``/ws``."""

# No `from __future__ import annotations` here: FastAPI reads the handlers' annotations, whose
# names are known only inside build_app, where FastAPI is imported.

import contextlib
import json
from importlib import resources
from typing import Any

from runtime.flow.summary import CAUSES
from runtime.judging.verdict import MEANINGS
from runtime.listen import Address
from runtime.web.access import REFUSALS, Guard
from runtime.web.browser import RETURN_WAIT_S, Desk
from runtime.web.rtc import Peer
from runtime.web.schema import HEALTH, STATE
from runtime.web.sink import WebSink
from runtime.web.viewer import TRY_AGAIN_LATER, Jpegs, Viewer

MAX_VIEWERS = 32  # uvicorn's own limit on connections does not count WebSockets

FILES = {  # path -> file of static/, media type
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.css": ("app.css", "text/css; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/timeline.js": ("timeline.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
JSON = "application/json"


def answer(why: str, media_type: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a route declares of one status."""
    return {"description": why, "content": {media_type: {"schema": schema or {"type": "string"}}}}


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
) -> Guard:
    """The application behind its guard.

    secure : is it served over TLS?
    faces : ``show``, ``blur`` or ``hide``
    sample_rate_hz : of the sound that the model hears
    threshold : of p_fake, between real and fake
    """
    from fastapi import FastAPI, WebSocket, WebSocketDisconnect
    from fastapi.responses import Response

    app = FastAPI(
        title="MSCT",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        default_response_class=Response,
        responses={status: answer(why, "text/plain") for status, why in REFUSALS.items()},
    )
    jpegs = Jpegs(faces)
    hello: dict[str, Any] = {
        "reasons": {reason.value: words for reason, words in MEANINGS.items()},
        "drops": CAUSES,
        "faces": faces,
        "loopback": address.loopback,
        "return_wait_s": RETURN_WAIT_S,
        "threshold": threshold,
    }

    def serve(path: str, name: str, media_type: str) -> None:
        content = (resources.files("runtime.web") / "static" / name).read_bytes()

        async def page_file() -> Response:
            return Response(content, media_type=media_type)

        told = answer("a file of the page", media_type.partition(";")[0])
        app.add_api_route(path, page_file, methods=["GET"], responses={200: told})

    for path, (name, media_type) in FILES.items():
        serve(path, name, media_type)

    def to_json(content: dict[str, Any]) -> Response:
        """ASCII: a source may have a name that is no Unicode."""
        return Response(json.dumps(content, allow_nan=False), media_type=JSON)

    @app.get("/healthz", responses={200: answer("it runs", JSON, HEALTH)})
    async def healthz() -> Response:
        return to_json({"status": "ok", "sources": sink.statuses()})

    @app.get("/api/state", responses={200: answer("all there is to know", JSON, STATE)})
    async def state() -> Response:
        return to_json({**sink.state(), "browser": desk.status})

    watching: set[WebSocket] = set()

    @app.websocket("/ws")
    async def live(socket: WebSocket) -> None:
        if len(watching) >= MAX_VIEWERS:
            await socket.accept()  # only then does a browser get to know the reason
            await socket.close(TRY_AGAIN_LATER, f"{MAX_VIEWERS} pages are open already")
            return
        watching.add(socket)
        try:
            await watch(socket)
        finally:
            watching.discard(socket)

    async def watch(socket: WebSocket) -> None:
        await socket.accept()
        viewer = Viewer(
            socket, sink, desk, jpegs, hello, lambda on_end: Peer(desk, sample_rate_hz, on_end)
        )
        # RuntimeError: the server closed the socket while a turn was on its way.
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await viewer.serve()

    return Guard(app, address, token, secure=secure)
