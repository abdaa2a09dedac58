# SPDX-License-Identifier: Apache-2.0
"""Who gets in: a plain ASGI layer in front of every route, WebSockets included.

* ``Host`` must be a name that belongs to this machine (DNS rebinding), and ``Origin`` the page
  itself (cross-site WebSocket hijacking, CSRF): :meth:`runtime.listen.Address.refusal`.
* Where there is a token, it comes as ``Authorization: Bearer``, or once as ``/?token=``, which is
  traded for a cookie so that it does not stay in the address bar.  The cookie holds a keyed hash
  of the token: a browser sends cookies to every port of a host.

Every answer carries headers that keep the page to itself (:data:`HEADERS`).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from runtime.listen import REFUSALS as FOREIGN
from runtime.listen import Address

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "msct_page"
POLICY_VIOLATION = 1008  # WebSocket close code, RFC 6455 section 7.4.1
REFUSALS = {
    401: "a token is needed: open the address that was printed at the start",
    **FOREIGN,
}
HEADERS = {
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "permissions-policy": "camera=(self), microphone=(self), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Wraps an ASGI application, ``app``; what does not get in never reaches it."""

    def __init__(self, app: App, address: Address, token: str | None, *, secure: bool) -> None:
        self.app, self._address, self._token, self._secure = app, address, token, secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):  # the server's own start and end
            await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        if (status := self._refusal(scope, headers)) is not None:
            await _refuse(scope, send, status, REFUSALS[status])
        elif self._token and _query_token(scope) is not None:
            await self._trade(send)
        else:
            await self.app(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> int | None:
        """One of REFUSALS, or None: come in."""
        foreign = self._address.refusal(headers.get("host", ""), headers.get("origin"))
        if foreign is not None:
            return foreign
        if self._token and not self._knows_token(scope, headers):
            return 401
        return None

    def _knows_token(self, scope: Scope, headers: dict[str, str]) -> bool:
        assert self._token is not None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _equal(given.strip(" "), self._token):
            return True
        if (query := _query_token(scope)) is not None:
            return _equal(query, self._token)
        cookie = _cookie(headers.get("cookie", ""))
        return cookie is not None and _equal(cookie, self._pass())

    def _pass(self) -> str:
        """What the cookie holds."""
        assert self._token is not None
        return hmac.new(self._token.encode(), b"msct page", hashlib.sha256).hexdigest()

    async def _trade(self, send: Send) -> None:
        """The token of the address for a cookie, and the address without it."""
        cookie = f"{COOKIE}={self._pass()}; Path=/; HttpOnly; SameSite=Strict"
        cookie += "; Secure" if self._secure else ""
        # SameSite=Strict: after a redirect that another program's link started, a browser would
        # not send the cookie; a page of our own that moves on does.
        body = (
            b'<!doctype html><link rel="icon" href="/icon.svg">'
            b'<meta http-equiv="refresh" content="0; url=/"><a href="/">The page</a>'
        )
        extra = {"content-type": "text/html; charset=utf-8", "set-cookie": cookie}
        await _answer(send, 200, body, extra)


def _cookie(header: str) -> str | None:
    """Ours among those of every program of this host, of which some may be malformed.

    :class:`http.cookies.SimpleCookie` drops all of them where one is malformed, and in Pythons
    without the fix of CVE-2024-7592 unquotes in a time that grows with the square of the length:
    more than a minute for one request.
    """
    for pair in header.split(";"):
        name, _, value = pair.strip().partition("=")
        if name == COOKIE:
            return value
    return None


def _query_token(scope: Scope) -> str | None:
    """The token in the address of the page; nowhere else is one looked for."""
    if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != "/":
        return None
    values = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token")
    return values[0] if values else None


def _equal(given: str, expected: str) -> bool:
    """In a time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode(), expected.encode())


async def _refuse(scope: Scope, send: Send, status: int, why: str) -> None:
    if scope["type"] == "websocket":  # before it is accepted: the server answers with 403
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": why})
        return
    await _answer(send, status, f"{why}\n".encode(), {"content-type": "text/plain; charset=utf-8"})


async def _answer(send: Send, status: int, body: bytes, extra: dict[str, str]) -> None:
    headers = {**HEADERS, **extra, "content-length": str(len(body))}
    raw = [(k.encode(), v.encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            added = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
            message["headers"] = [*message.get("headers", []), *added]
        await send(message)

    return wrapped
