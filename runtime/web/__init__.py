# SPDX-License-Identifier: Apache-2.0
"""The page: ``python -m runtime.stream --source ... --web``.

    address.py   what --web takes: host, port, who may connect
    access.py    token, Host and Origin: checked on every request, before anything else runs
    sink.py      WebSink: what the page knows of every source, fed by the pipeline
    picture.py   one picture as JPEG, faces hidden where that was asked for
    browser.py   BrowserSource: a browser's camera and microphone on one clock
    rtc.py       the WebRTC side of it (aiortc)
    app.py       the routes (FastAPI)
    schema.py    what the answers look like, as JSON Schema
    connection.py  one TCP connection: an end for clients that never ask
    server.py    uvicorn in a thread of its own beside the pipeline
    options.py   what runtime.stream was asked for
    static/      the page: plain HTML, CSS and JavaScript, nothing from elsewhere

Importing any of it needs NumPy alone; :class:`runtime.errors.DependencyError` names the extra.
"""

from __future__ import annotations

FACES = ("show", "blur", "hide")  # --web-faces

__all__ = ["FACES"]
