# SPDX-License-Identifier: Apache-2.0
"""Whatever a client asks over HTTP: the answer that the app declares, or a refusal in words.

The requests are made by hypothesis out of what ``app.openapi()`` declares (docs/adr/0007 says why
not by schemathesis) and go over real sockets, so uvicorn's parser is in the way as it is in use.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed (extra web)")
pytest.importorskip("uvicorn", reason="uvicorn is not installed (extra web)")
pytest.importorskip("websockets", reason="websockets is not installed (extra web)")

import jsonschema
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.judging.verdict import Label, Reason
from runtime.web.access import HEADERS, REFUSALS
from runtime.web.schema import HEALTH, STATE
from runtime.web.server import MAX_CONNECTIONS, WebServer
from runtime.web.sink import WebSink
from tests.runtime.web.serving import TOKEN, abstention, ask, get, picture, served, verdict
from tests.waiting import patient, wait_for

quickly = settings(max_examples=100, deadline=None, derandomize=True)

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY", "get"]
OUTSIDE = {400, 404, 405}  # of HTTP itself: malformed, no such path, no such method
# No control characters: those are for test_bytes_that_are_no_request.
LATIN = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"))
NASTY = LATIN | st.sampled_from(
    ["", "*", "[", "[::1", "http://[", "http://]", "null", "a, b", "=", ";", '"', "\\" * 3000,
     "%", "%00", "%ff", "../../etc/passwd", "http://evil.example", "9" * 400, "-1", "chunked",
     "bytes=0-", "localhost:x@evil.example", "\u00ff\u00fe", "<script>alert(1)</script>"]
)  # fmt: skip
NAMES = st.sampled_from(
    ["Accept", "Accept-Encoding", "Content-Type", "Range", "If-None-Match", "If-Modified-Since",
     "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Original-URL",
     "X-HTTP-Method-Override", "Referer", "User-Agent", "Cookie", "Authorization", "X-Token"]
)  # fmt: skip
ANY_NAME = NAMES | st.sampled_from(
    ["Host", "Origin", "Connection", "Upgrade", "Expect", "Content-Length", "Transfer-Encoding",
     "Sec-WebSocket-Key", "Sec-WebSocket-Version"]
) | st.from_regex(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,20}", fullmatch=True)  # fmt: skip
HARMLESS = st.lists(st.tuples(NAMES, NASTY), max_size=4)
ANYTHING = st.lists(st.tuples(ANY_NAME, NASTY), max_size=4)
TARGET = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30)
QUERY = st.just("") | TARGET.map(lambda text: "?" + text)
BODY = st.binary(max_size=300)


class Errors(logging.Handler):
    """What the program logs of its own errors: a traceback in the terminal of whoever runs it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        why = record.exc_info[1] if record.exc_info else ""
        self.seen.append(f"{record.getMessage()} {why!r}")

    def new(self) -> list[str]:
        seen, self.seen = self.seen, []
        return seen


@pytest.fixture(scope="module", autouse=True)
def errors() -> Iterator[Errors]:
    handler = Errors()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


def stocked() -> WebSink:
    """There is something to tell."""
    sink = WebSink(model_id="mock-1", provider="mock", judged_by="windows of 2 s")
    sink.write(verdict())
    sink.write(abstention(Reason.NO_FACE, 2.2))
    sink.picture(picture())
    return sink


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    with served(stocked()) as server:
        yield server


@pytest.fixture(scope="module")
def locked() -> Iterator[WebServer]:
    """One that wants a token."""
    with served(stocked(), token=TOKEN) as server:
        yield server


def declared(server: WebServer) -> dict[tuple[str, str], dict[str, Any]]:
    """(method, path) -> what the app says of its answers."""
    paths = server._config.app.app.openapi()["paths"]
    return {
        (method.upper(), path): operation["responses"]
        for path, operations in paths.items()
        for method, operation in operations.items()
    }


with served() as _server:
    OPERATIONS = declared(_server)
PATHS = sorted({path for _, path in OPERATIONS})
ODD_PATHS = st.sampled_from(PATHS).flatmap(
    lambda path: st.sampled_from(
        [path, path + "/", "/" + path, path.upper(), path + "%00", path + "/..", "/." + path,
         path + ";a", path.replace("/", "%2f"), "/ws", "/docs", "/openapi.json", "*",
         "http://evil.example" + path]
    )
) | TARGET.map(lambda text: "/" + text)  # fmt: skip


def conforms(responses: dict[str, Any], status: int, headers: dict[str, str], body: bytes) -> None:
    """Status, media type and content are those that the app declares."""
    media_type = headers["content-type"].partition(";")[0]
    assert media_type in responses[str(status)]["content"]
    schema = responses[str(status)]["content"][media_type]["schema"]
    value = json.loads(body) if media_type == "application/json" else body.decode()
    assert not list(jsonschema.Draft202012Validator(schema).iter_errors(value))


def in_order(status: int, headers: dict[str, str], body: bytes) -> None:
    """Of every answer that is not a success: a refusal, in words, with nothing of the inside."""
    assert status < 500, body
    assert b"Traceback" not in body
    assert b".py" not in body
    if status != 400:  # the parser's own, before there is a request
        assert HEADERS.items() <= headers.items()


# What is declared


def test_what_is_declared_is_all_there_is() -> None:
    assert {
        ("GET", path)
        for path in ("/", "/app.css", "/app.js", "/timeline.js", "/icon.svg", "/healthz",
                     "/api/state")
    } == set(OPERATIONS)  # fmt: skip
    jsonschema.Draft202012Validator.check_schema(STATE)
    jsonschema.Draft202012Validator.check_schema(HEALTH)


@quickly
@given(st.sampled_from(sorted(OPERATIONS)), QUERY, HARMLESS, BODY)
def test_the_answer_is_as_declared_whatever_else_is_in_the_request(
    server: WebServer,
    errors: Errors,
    operation: tuple[str, str],
    query: str,
    headers: list[tuple[str, str]],
    body: bytes,
) -> None:
    method, path = operation
    status, answered, content = ask(server, path + query, method, headers, body)
    assert status == 200
    conforms(OPERATIONS[operation], status, answered, content)
    assert HEADERS.items() <= answered.items()
    assert not errors.new()


@pytest.mark.thorough
@quickly
@given(st.sampled_from(METHODS), ODD_PATHS, QUERY, ANYTHING, BODY)
@example("GET", "/healthz", "", [("Origin", "http://[")], b"")
@example("GET", "/healthz", "", [("Host", "[::1")], b"")
@example("GET", "/healthz/", "", [("Host", "127.0.0.1:x@evil.example")], b"")
@example("POST", "/healthz", "", [("Transfer-Encoding", "chunked")], b"zz\r\n")
@example("GET", "/ws", "", [("Upgrade", "websocket"), ("Connection", "upgrade")], b"")
def test_no_request_is_too_much(
    server: WebServer,
    errors: Errors,
    method: str,
    path: str,
    query: str,
    headers: list[tuple[str, str]],
    body: bytes,
) -> None:
    status, answered, content = ask(server, path + query, method, headers, body)
    assert not errors.new()
    if status == 426:  # a WebSocket's handshake that is none
        return
    in_order(status, answered, content)
    responses = OPERATIONS.get((method, path), {})
    if str(status) in responses:
        if method != "HEAD":
            conforms(responses, status, answered, content)
    else:
        assert status in OUTSIDE | set(REFUSALS)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", [m for m in METHODS if m != "GET"])
def test_a_method_that_is_not_declared_is_refused(
    server: WebServer, method: str, path: str
) -> None:
    status, headers, _ = ask(server, path, method)
    assert status == 405
    assert headers["allow"] == "GET"


@pytest.mark.parametrize("split", [False, True], ids=["at once", "after the answer"])
def test_a_request_that_turns_out_malformed_while_it_is_answered(
    server: WebServer, errors: Errors, split: bool
) -> None:
    head = f"POST / HTTP/1.1\r\nHost: localhost:{server.port}\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        if split:
            connection.sendall(head.encode())
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 405 ")
            connection.sendall(b"zz\r\n")
        else:
            connection.sendall(head.encode() + b"zz\r\n")
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 400 ")
        while connection.recv(1 << 16):  # until the server closes
            pass
    assert not errors.new()


@quickly
@given(st.binary(max_size=400))
@example(b"GET / HTTP/1.1\r\n\r\n")
@example(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n")
@example(b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n")
@example(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
@example(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # TLS to a port without
def test_bytes_that_are_no_request(server: WebServer, errors: Errors, data: bytes) -> None:
    """Refused as malformed, or the server waits for the rest and does not get it."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        try:
            answer = connection.recv(1 << 16)
        except ConnectionResetError:  # closed with bytes unread
            answer = b""
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 421 "))
    assert not errors.new()
    assert get(server, "/healthz")[0] == 200, "the next client is served"


def test_clients_that_never_ask_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there may be connections: the page is full for ever otherwise, token or not."""
    monkeypatch.setattr("runtime.web.connection.REQUEST_S", 1.0)
    with served(token=TOKEN) as server, contextlib.ExitStack() as idle:
        for begun in [b"", b"GET / HTTP/1.1\r\nHost: "] * (MAX_CONNECTIONS // 2):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            idle.enter_context(connection).sendall(begun)
        assert get(server, "/healthz")[0] == 503
        status = wait_for(lambda: (s := get(server, "/healthz")[0]) != 503 and s, "room")
        assert status == 401


# Who gets in

ALMOST = st.sampled_from(
    ["", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), TOKEN[::-1], f"{TOKEN},{TOKEN}", f'"{TOKEN}"',
     TOKEN.replace("-", "%2d"), TOKEN + "\u00a0"]
) | LATIN.filter(lambda text: text.strip() != TOKEN)  # fmt: skip
FORGED = st.one_of(
    ALMOST.map(lambda t: ("Authorization", f"Bearer {t}")),
    ALMOST.map(lambda t: ("Cookie", f"msct_page={t}")),
    st.sampled_from(
        [("Authorization", TOKEN), ("Authorization", f"Basic {TOKEN}"), ("Bearer", TOKEN),
         ("Authorization", f"Token {TOKEN}"), ("Authorization", f"Bearer{TOKEN}"),
         ("Cookie", f"msct_page={TOKEN}"), ("Cookie", f"token={TOKEN}"), ("X-Token", TOKEN),
         ("X-Forwarded-For", "127.0.0.1"), ("X-Original-URL", "/icon.svg"),
         ("Forwarded", "for=127.0.0.1;host=localhost"), ("Referer", f"/?token={TOKEN}")]
    ),
    st.tuples(ANY_NAME, NASTY),
)  # fmt: skip
ELSEWHERE = [path for path in PATHS if path != "/"]


@quickly
@given(st.sampled_from(METHODS), ODD_PATHS, QUERY, st.lists(FORGED, max_size=4), BODY)
def test_nothing_but_the_token_opens_a_locked_page(
    locked: WebServer,
    errors: Errors,
    method: str,
    path: str,
    query: str,
    headers: list[tuple[str, str]],
    body: bytes,
) -> None:
    """No path, method or header gets as far as to learn whether the path exists."""
    status, answered, content = ask(locked, path + query, method, headers, body)
    assert not errors.new()
    if status != 426:
        assert status in {400, *REFUSALS}
        in_order(status, answered, content)


@pytest.mark.parametrize("path", ELSEWHERE)
def test_the_token_in_the_address_of_anything_but_the_page_opens_nothing(
    locked: WebServer, path: str
) -> None:
    assert ask(locked, f"{path}?token={TOKEN}")[0] == 401
    assert ask(locked, f"/?token={TOKEN}", "POST")[0] == 401
    assert ask(locked, f"/?token=&token={TOKEN}x")[0] == 401


@settings(quickly, max_examples=60)
@given(st.sampled_from(sorted(OPERATIONS)), HARMLESS)
def test_with_the_token_the_answer_is_as_declared(
    locked: WebServer, operation: tuple[str, str], headers: list[tuple[str, str]]
) -> None:
    method, path = operation
    others = [(name, value) for name, value in headers if name not in ("Authorization", "Cookie")]
    sent = [*others, ("Authorization", f"Bearer {TOKEN}")]
    status, answered, content = ask(locked, path, method, sent)
    assert status == 200
    conforms(OPERATIONS[operation], status, answered, content)


def own_cookie(locked: WebServer) -> str:
    return ask(locked, f"/?token={TOKEN}")[1]["set-cookie"].split(";")[0]


@pytest.mark.parametrize("others", ['prefs={"a":1}', "a b=c", "=", "\u00ff=\u00fe", '"', "x"])
def test_cookies_of_other_programs_on_the_host_lock_nobody_out(
    locked: WebServer, others: str
) -> None:
    """A browser sends the cookies of every port; not all programs write them as they should."""
    for cookies in (f"{others}; {own_cookie(locked)}", f"{own_cookie(locked)}; {others}"):
        assert ask(locked, "/healthz", headers=[("Cookie", cookies)])[0] == 200


@pytest.mark.parametrize("value", ["\\" * 60_000, '"' + "\\" * 60_000 + '"', "a=;" * 20_000])
def test_a_cookie_cannot_keep_the_server_busy(locked: WebServer, value: str) -> None:
    """Python 3.11.7's own parser takes over a minute for the second; nobody is served meanwhile."""
    start = time.monotonic()
    assert ask(locked, "/healthz", headers=[("Cookie", f"msct_page={value}")])[0] == 401
    assert time.monotonic() - start < patient(2), "milliseconds, and what a busy machine adds"


@pytest.mark.parametrize(
    "host",
    ["[::1", "::1]", "[::1]x", "localhost:", "localhost:x", "localhost:x@evil.example",
     "evil.example@localhost", "localhost/", "localhost:80:80", "local host", "[localhost]"],
)  # fmt: skip
def test_a_host_is_a_name_and_perhaps_a_port(server: WebServer, host: str) -> None:
    assert ask(server, "/healthz", headers=[("Host", host)])[0] in (400, 421)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8080", "[::1]"])
def test_a_name_of_this_machine_is_answered_to(server: WebServer, host: str) -> None:
    assert ask(server, "/healthz", headers=[("Host", host)])[0] == 200


# What there is to tell

SHARES = st.none() | st.floats(0, 1)
VERDICTS = st.builds(
    verdict,
    st.floats(0, 1e6),
    source=st.text(max_size=8) | st.sampled_from(["\udcff.mp4", "</script>", "\u2028", "a/b"]),
    model_id=st.text(max_size=8),
    face_id=st.none() | st.integers(0, 10**9),
    p_fake=SHARES,
    p_fake_video=SHARES,
    p_fake_audio=SHARES,
    sync=st.none() | st.floats(-1, 1),
    av_offset_ms=st.none() | st.floats(-1e6, 1e6),
    label=st.sampled_from(Label),
    reason=st.none() | st.sampled_from(Reason),
    latency_ms=st.floats(0, 1e9),
)


@settings(quickly, max_examples=40)
@given(st.lists(VERDICTS, max_size=4))
def test_any_verdicts_of_any_source_are_told_as_declared(
    server: WebServer, errors: Errors, verdicts: list[Any]
) -> None:
    sink = server.sink
    sink._streams.clear()  # of the example before
    for made in verdicts:
        sink.write(made)
        sink.picture(picture(made.t_end_s, source=made.source))
    for path in ("/api/state", "/healthz"):
        status, headers, body = ask(server, path)
        assert not errors.new()
        conforms(OPERATIONS["GET", path], status, headers, body)
    told = json.loads(ask(server, "/api/state")[2])["sources"]
    for made in verdicts:
        assert math.isclose(told[made.source]["t_s"], sink.state()["sources"][made.source]["t_s"])
