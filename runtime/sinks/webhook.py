# SPDX-License-Identifier: Apache-2.0
"""A POST to a URL when what is said of a face changes.

The body is JSON: ``{"event": "verdict_change", "previous": null | "real" | ..., "verdict": {...}}``
with the verdict as in the JSON Lines.  An answer of 2xx is a delivery; a server that is away, busy
(408, 429) or broken (5xx) is tried again with growing pauses, anything else is final.  Redirects
are not followed: the secret goes to the host that was named and to no other.  A proxy of the
environment (``https_proxy``, ``no_proxy``, as :mod:`urllib.request` reads them) is asked for hosts
elsewhere, never for this machine: the secret would go to whoever runs it.

A try ends after :data:`TIMEOUT_S` as a whole, however slowly an answer drips in.  Of an answer its
head alone is read, which :mod:`http.client` holds to a hundred lines of 64 KiB.

The secret is the environment variable :data:`TOKEN_VARIABLE`, sent as ``Authorization: Bearer``.
Neither it nor the path of the URL, which often is a secret too, is ever printed.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from runtime.errors import UsageError, UserError
from runtime.judging.verdict import Label, Verdict
from runtime.listen import is_loopback
from runtime.sinks.background import Worker

TOKEN_VARIABLE = "MSCT_WEBHOOK_TOKEN"
TIMEOUT_S = 5.0  # of one try, from its beginning to the end of the answer's head
PAUSES_S = (0.5, 2.0, 8.0)  # between tries, each up to a quarter longer
MAX_QUEUED = 256  # changes
MAX_FACES = 1024  # whose labels are remembered
BUSY = (408, 425, 429)
UNDELIVERED = "not delivered"


class DeliveryError(UserError):
    """A change that could not be delivered."""


class WebhookSink:
    """Posts the changes of labels; deliveries run in a thread of their own.

    Parameters
    ----------
    url : http or https; plain http with a secret only to this machine
    on_abstain : whether to abstain is a change, too; otherwise abstentions are passed over
    token : the secret, by default of the environment

    Raises :class:`UsageError` for a URL that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        on_abstain: bool = False,
        token: str | None = None,
        timeout_s: float = TIMEOUT_S,
        pauses_s: tuple[float, ...] = PAUSES_S,
    ) -> None:
        token = os.environ.get(TOKEN_VARIABLE) if token is None else token
        self._url, self._token = url, token or None
        self._where = check_url(url, self._token)
        self._on_abstain, self._timeout_s, self._pauses_s = on_abstain, timeout_s, pauses_s
        self._last: OrderedDict[tuple[str, int | None], Label] = OrderedDict()
        self._stop = threading.Event()
        self._opener = _opener(url)
        self.worker = Worker(f"--webhook {self._where}", max_items=MAX_QUEUED)
        self.delivered = 0
        self.last_error: str | None = None  # of a delivery that failed for good

    def write(self, verdict: Verdict) -> None:
        if verdict.label is Label.ABSTAIN and not self._on_abstain:
            return
        key = (verdict.source, verdict.face_id)
        previous = self._last.get(key)
        self._last[key] = verdict.label
        self._last.move_to_end(key)
        while len(self._last) > MAX_FACES:
            self._last.popitem(last=False)
        if previous is not verdict.label:
            body = payload(verdict, previous)
            self.worker.put("change", lambda: self._deliver(body))

    def close(self, drain_s: float) -> None:
        self.worker.close(drain_s)
        self._stop.set()  # a pause between tries ends now

    def notes(self) -> list[str]:
        """For the summary."""
        notes = self.worker.notes()
        if notes and self.last_error:
            notes[0] += f"; last error: {self.last_error}"
        return notes

    @property
    def failed(self) -> bool:
        """Did a change not get there?"""
        return self.worker.error is not None or bool(sum(self.worker.lost.values()))

    def _deliver(self, body: bytes) -> None:
        why = ""
        for pause_s in (*self._pauses_s, None):
            try:
                self._post(body)
                self.delivered += 1
                return
            except _TryAgain as err:
                why = str(err)
                if pause_s is None or self._stop.wait(pause_s * random.uniform(1, 1.25)):
                    break
            except DeliveryError as err:
                why = str(err)
                break
        self.last_error = why
        self.worker.lost["change", UNDELIVERED] += 1

    def _post(self, body: bytes) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "msct-webhook/1"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            with _time_limit(self._timeout_s) as deadline:
                request = _Request(self._url, body, headers, deadline)
                self._opener.open(request, timeout=self._timeout_s).close()
        except urllib.error.HTTPError as err:
            err.close()
            if 300 <= err.code < 400:
                raise DeliveryError(f"HTTP {err.code}, redirects are not followed") from None
            kind = _TryAgain if err.code >= 500 or err.code in BUSY else DeliveryError
            raise kind(f"HTTP {err.code}") from None
        except (OSError, http.client.HTTPException) as err:
            reason = getattr(err, "reason", err)
            text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
            raise _TryAgain(" ".join(text.split())) from None


class _TryAgain(DeliveryError):
    """A failure that may pass."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _opener(url: str) -> urllib.request.OpenerDirector:
    handlers: list[Any] = [_NoRedirect, _Http, _Https]
    if is_loopback(urlsplit(url).hostname or ""):
        handlers.append(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(*handlers)


class _Deadline:
    """The end of a try: what it has connected by then is cut off."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self.passed = False

    def left_s(self) -> float:
        """Raises TimeoutError where nothing is left."""
        left = self._end - time.monotonic()
        if self.passed or left <= 0:
            raise TimeoutError("timed out")
        return left

    def watch(self, connected: socket.socket) -> None:
        with self._lock:
            self._sockets.append(connected)
        self.left_s()

    def cut(self) -> None:
        with self._lock:
            self.passed = True
            for connected in self._sockets:
                with suppress(OSError):  # closed by now
                    # not its own method: that of TLS does more than a second thread may
                    socket.socket.shutdown(connected, socket.SHUT_RDWR)


@contextmanager
def _time_limit(seconds: float) -> Iterator[_Deadline]:
    """Raises TimeoutError when it is over, whatever the cut connections ended as."""
    deadline = _Deadline(seconds)
    timer = threading.Timer(seconds, deadline.cut)
    timer.daemon = True
    timer.start()
    try:
        yield deadline
    except (OSError, http.client.HTTPException) as err:
        if not deadline.passed:
            raise
        if isinstance(err, urllib.error.HTTPError):
            err.close()
    finally:
        timer.cancel()
    if deadline.passed:  # also where the end of what came looked like the end of an answer
        raise TimeoutError("timed out")


class _Watched(http.client.HTTPConnection):
    """A connection under a deadline, from the first address that is tried."""

    deadline: _Deadline  # set by the classes that :func:`_under` makes

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._create_connection = self._dial  # called before a proxy is asked for its tunnel

    def connect(self) -> None:
        super().connect()
        self.deadline.watch(self.sock)  # with TLS another one than _dial made

    def _dial(self, address: tuple[str, int], *_: Any) -> socket.socket:
        failure: OSError = OSError("it has no address")
        for found in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            left_s = self.deadline.left_s()
            try:
                connected = socket.create_connection((str(found[4][0]), address[1]), timeout=left_s)
            except OSError as err:
                failure = err
                continue
            self.deadline.watch(connected)
            return connected
        raise failure


class _WatchedTls(_Watched, http.client.HTTPSConnection):
    """The same over TLS; Python holds a handshake as a whole to the socket's time."""


class _Http(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_under(request, _Watched), request)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_under(request, _WatchedTls), request)


class _Request(urllib.request.Request):
    """A POST with the deadline of its try."""

    def __init__(self, url: str, body: bytes, headers: dict[str, str], end: _Deadline) -> None:
        super().__init__(url, body, headers, method="POST")
        self.deadline = end


def _under(request: urllib.request.Request, kind: type[_Watched]) -> type[_Watched]:
    """That kind of connection, under the deadline of this request."""
    assert isinstance(request, _Request)
    return type(kind.__name__, (kind,), {"deadline": request.deadline})


def payload(verdict: Verdict, previous: Label | None) -> bytes:
    """The body of a POST."""
    change = {
        "event": "verdict_change",
        "previous": None if previous is None else previous.value,
        "verdict": json.loads(verdict.to_json()),
    }
    return json.dumps(change, allow_nan=False).encode()


def check_url(url: str, token: str | None) -> str:
    """``scheme://host[:port]``, all of a URL that may be printed; raises :class:`UsageError`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UsageError("--webhook: that is no URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError("--webhook takes a URL that starts with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            f"--webhook: no user or password in the URL; give a secret in {TOKEN_VARIABLE}"
        )
    if not url.isascii() or any(c.isspace() or not c.isprintable() for c in url):
        raise UsageError("--webhook: the URL has characters that must be percent-encoded")
    if token and not (token.isascii() and token.isprintable()):
        raise UsageError(f"{TOKEN_VARIABLE} holds characters that no HTTP header may have")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    where = f"{parts.scheme}://{host}{'' if port is None else f':{port}'}"
    if token and parts.scheme == "http" and not is_loopback(parts.hostname):
        raise UsageError(
            f"--webhook {where}: {TOKEN_VARIABLE} would travel unencrypted; use https://"
        )
    return where
