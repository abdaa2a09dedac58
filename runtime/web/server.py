# SPDX-License-Identifier: Apache-2.0
"""uvicorn in a thread of its own, beside the pipeline.

What can go wrong goes wrong in :meth:`WebServer.start`, before a stream is opened.  Closing takes
two seconds at most, whoever is connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

from runtime import interrupt
from runtime.closing import Closing
from runtime.errors import UsageError, UserError
from runtime.listen import Address
from runtime.media.live import Notice, silent
from runtime.media.open import BROWSER
from runtime.optional import optional
from runtime.spec import PairSpec
from runtime.web.app import build_app
from runtime.web.browser import BrowserSource, Desk
from runtime.web.connection import connection_class
from runtime.web.rtc import import_aiortc
from runtime.web.sink import WebSink
from runtime.web.token import Token, choose_token

START_S = 15.0  # a busy device may take seconds to import what it needs
STOP_S = 1.5
GOODBYE_S = 0.5
MAX_CONNECTIONS = 64  # that wait for an answer or are kept; for WebSockets app.MAX_VIEWERS
MAX_MESSAGE_BYTES = 256 * 1024  # from a page; an offer takes 10 kB


class WebError(UserError):
    """A page that cannot be served."""


class WebServer(Closing):
    """A context manager: the page is there from :meth:`start` (or entering) to :meth:`close`.

    Parameters
    ----------
    address : where
    sink : what is shown
    spec : of the model: its threshold, and the rate at which it hears
    faces : ``show``, ``blur`` or ``hide``
    certificate, key : PEM files for TLS; without them the page is plain HTTP
    token : what opens the page; default: :func:`runtime.web.token.choose_token`

    Raises :class:`DependencyError` without the extra ``web``, :class:`UsageError` for a
    certificate that cannot be used and :class:`WebError` where the address is taken.
    """

    def __init__(
        self,
        address: Address,
        sink: WebSink,
        spec: PairSpec,
        *,
        faces: str = "show",
        certificate: Path | None = None,
        key: Path | None = None,
        token: Token | None = None,
    ) -> None:
        self._uvicorn = _import_uvicorn()
        self.address, self.sink = address, sink
        self.token = token or choose_token(address)
        self.desk = Desk()
        self._secure = certificate is not None
        _check_certificate(certificate, key)
        app = build_app(
            sink,
            self.desk,
            address=address,
            token=self.token.value if self.token else None,
            secure=self._secure,
            faces=faces,
            sample_rate_hz=spec.audio.sample_rate_hz,
            threshold=spec.calibration.threshold,
        )
        self._config = self._uvicorn.Config(
            app,
            loop="asyncio",
            http=connection_class(),
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_per_message_deflate=False,  # JPEG does not shrink
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=1,
            ssl_certfile=str(certificate) if certificate else None,
            ssl_keyfile=str(key) if key else None,
        )
        self._server: Any = self._uvicorn.Server(self._config)
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self.port = address.port

    @property
    def base_url(self) -> str:
        return f"{'https' if self._secure else 'http'}://{self.address.netloc(self.port)}/"

    @property
    def url(self) -> str:
        """To be opened in a browser; holds the token only if nobody knows it yet."""
        if self.token is None or not self.token.generated:
            return self.base_url
        return f"{self.base_url}?token={self.token.value}"

    @property
    def browser_can_record(self) -> bool:
        """Browsers give a camera to secure contexts only: TLS, or this machine itself."""
        return self._secure or self.address.loopback

    def wait(self) -> None:
        """Until a signal, or until the server is gone."""
        while self._thread is not None and self._thread.is_alive():
            if interrupt.requested():
                interrupt.answer()
                return
            self._thread.join(0.2)

    def start(self) -> None:
        """Returns when the page can be opened."""
        listening = _listen(self.address)
        self.port = listening.getsockname()[1]
        self._thread = threading.Thread(
            target=self._run, args=(listening,), name="msct-web", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                why = self._failure or "the server did not start"
                self.close()
                raise WebError(f"--web {self.address.netloc()}: {why}")
            interrupt.check()
            time.sleep(0.01)

    def browser_source(self, name: str = BROWSER, notice: Notice = silent) -> BrowserSource:
        """Waits until a browser sends its camera or microphone.

        name : what it is called; notice : is told when the browser has gone and is back
        """
        import_aiortc()
        return BrowserSource(self.desk, name, notice)

    def want_browser(self) -> None:
        """The page offers "use this browser's camera"; raises DependencyError without aiortc."""
        import_aiortc()
        self.desk.want()

    def close(self) -> None:
        self.desk.close()
        if self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(STOP_S)
        if self._thread.is_alive():  # a daemon: it cannot keep the process alive
            self._server.force_exit = True
            self._thread.join(GOODBYE_S)
        self._thread = None

    def __enter__(self) -> WebServer:
        self.start()
        return self

    async def _serve(self, listening: socket.socket) -> None:
        await self._server.serve(sockets=[listening])
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:  # browsers whose camera is being let go
            await asyncio.wait(others, timeout=GOODBYE_S)

    def _run(self, listening: socket.socket) -> None:
        try:
            asyncio.run(self._serve(listening))
        except (Exception, SystemExit) as err:  # told by start(), or the page is simply gone
            self._failure = err
        finally:
            with contextlib.suppress(OSError):
                listening.close()


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address.host, address.port))
        listening.listen()
    except OSError as err:  # socket.gaierror is one
        listening.close()
        why = (err.strerror or str(err)).lower()
        raise WebError(
            f"--web {address.netloc()}: {why}; choose another port, or 0 for any free one"
        ) from None
    return listening


def _check_certificate(certificate: Path | None, key: Path | None) -> None:
    if key is not None and certificate is None:
        raise UsageError("--web-key: its certificate is missing; give --web-cert, too")
    if certificate is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError, ValueError) as err:
        why = getattr(err, "strerror", None) or getattr(err, "reason", None) or str(err)
        raise UsageError(
            f"--web-cert {certificate}: {why}; PEM files without a password are expected"
        ) from None


def _import_uvicorn() -> Any:
    with optional("for --web", extra="cpu,web"):
        for needed in ("fastapi", "websockets"):
            importlib.import_module(needed)
        import uvicorn
    return uvicorn
