# SPDX-License-Identifier: Apache-2.0
"""The webhook: each change once, to the host that was named, whatever that host does."""

from __future__ import annotations

import json
import select
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from runtime.errors import UsageError
from runtime.judging.verdict import Label, Reason
from runtime.sinks.webhook import TOKEN_VARIABLE, UNDELIVERED, WebhookSink, check_url
from tests.runtime.sinks.test_terminal import at
from tests.waiting import patient, wait_for

QUICK = {"pauses_s": (0.01, 0.01), "timeout_s": 5.0, "token": ""}


class Receiver:
    """A server on this machine; ``answers`` are its status codes in turn, the last for ever."""

    def __init__(self) -> None:
        self.answers: list[int] = [204]
        self.location = ""
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.hang = threading.Event()  # set: do not hang
        self.hang.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {k.lower(): v for k, v in self.headers.items()}
                receiver.requests.append((self.path, headers, body))
                receiver.hang.wait(30)
                answers = receiver.answers
                self.send_response(answers.pop(0) if len(answers) > 1 else answers[0])
                if receiver.location:
                    self.send_header("Location", receiver.location)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                pass  # the client went away: that is what these tests are about

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook/secret-path"

    @property
    def changes(self) -> list[tuple[str | None, str]]:
        bodies = [json.loads(body) for _, _, body in self.requests]
        return [(b["previous"], b["verdict"]["label"]) for b in bodies]

    def close(self) -> None:
        self.hang.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def finish(sink: WebhookSink, drain_s: float = 10.0) -> None:
    sink.close(drain_s)


# What is a change


def test_a_change_is_posted_once_with_what_was_said_before(receiver: Receiver) -> None:
    sink = WebhookSink(receiver.url, **QUICK)
    labels = [Label.REAL] * 3 + [Label.FAKE] * 3 + [Label.REAL]
    for i, label in enumerate(labels):
        sink.write(at(2.0 + 0.2 * i, label, 0.5))
    finish(sink)
    assert receiver.changes == [(None, "real"), ("real", "fake"), ("fake", "real")]
    assert sink.delivered == 3
    assert not sink.failed
    path, headers, body = receiver.requests[1]
    assert path == "/hook/secret-path"
    assert headers["content-type"] == "application/json"
    assert "authorization" not in headers
    assert json.loads(body)["event"] == "verdict_change"
    assert json.loads(body)["verdict"] == json.loads(at(2.6, Label.FAKE, 0.5).to_json())


def test_abstentions_are_passed_over_unless_they_were_asked_for(receiver: Receiver) -> None:
    verdicts = [
        at(2.0, Label.FAKE), at(2.2, Label.ABSTAIN, reason=Reason.NO_FACE), at(2.4, Label.FAKE),
    ]  # fmt: skip
    plain, asked = WebhookSink(receiver.url, **QUICK), None
    for v in verdicts:
        plain.write(v)
    finish(plain)
    assert receiver.changes == [(None, "fake")]
    receiver.requests.clear()
    asked = WebhookSink(receiver.url, on_abstain=True, **QUICK)
    for v in verdicts:
        asked.write(v)
    finish(asked)
    assert receiver.changes == [(None, "fake"), ("fake", "abstain"), ("abstain", "fake")]


def test_faces_and_sources_change_apart(receiver: Receiver) -> None:
    sink = WebhookSink(receiver.url, **QUICK)
    for _ in range(3):
        sink.write(at(2.0, Label.FAKE, face_id=0))
        sink.write(at(2.0, Label.REAL, face_id=1))
        sink.write(at(2.0, Label.REAL, face_id=0, source="b.mp4"))
    finish(sink)
    assert receiver.changes == [(None, "fake"), (None, "real"), (None, "real")]


# What the other side may do


def test_a_server_that_is_broken_for_a_moment_is_tried_again(receiver: Receiver) -> None:
    receiver.answers = [500, 429, 204]
    sink = WebhookSink(receiver.url, **QUICK)
    sink.write(at(2.0, Label.FAKE))
    finish(sink)
    assert receiver.changes == [(None, "fake")] * 3
    assert sink.notes() == []


def test_one_that_stays_broken_is_given_up_counted_and_told(receiver: Receiver) -> None:
    receiver.answers = [503]
    sink = WebhookSink(receiver.url, **QUICK)
    sink.write(at(2.0, Label.FAKE))
    sink.write(at(2.2, Label.REAL))
    finish(sink)
    assert len(receiver.requests) == 6
    assert sink.failed
    (note,) = sink.notes()
    assert f"lost: 2 changes ({UNDELIVERED})" in note
    assert note.endswith("last error: HTTP 503")


def test_one_that_says_no_is_not_asked_again(receiver: Receiver) -> None:
    receiver.answers = [404]
    sink = WebhookSink(receiver.url, **QUICK)
    sink.write(at(2.0, Label.FAKE))
    finish(sink)
    assert len(receiver.requests) == 1
    assert sink.failed


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_the_secret_stays(receiver: Receiver, code: int) -> None:
    other = Receiver()
    try:
        receiver.answers, receiver.location = [code], other.url
        sink = WebhookSink(receiver.url, **{**QUICK, "token": "s3cret"})
        sink.write(at(2.0, Label.FAKE))
        finish(sink)
        assert len(receiver.requests) == 1
        assert other.requests == []
        assert "redirects are not followed" in sink.notes()[0]
    finally:
        other.close()


def test_one_that_hangs_does_not_stall_the_stream_and_times_out(receiver: Receiver) -> None:
    receiver.hang.clear()
    sink = WebhookSink(receiver.url, **{**QUICK, "timeout_s": 0.1})
    start = time.perf_counter()
    for i in range(100):
        sink.write(at(2.0 + i, Label.FAKE if i % 2 else Label.REAL))
    assert time.perf_counter() - start < patient(2)
    sink.close(0.2)
    assert sink.failed
    receiver.hang.set()
    finish(sink)


def test_nobody_there_is_told_not_raised() -> None:
    made = Receiver()
    made.close()
    sink = WebhookSink(made.url, **QUICK)
    sink.write(at(2.0, Label.FAKE))
    finish(sink)
    assert "last error: " in sink.notes()[0]
    assert "refused" in sink.notes()[0].lower()


def test_pauses_end_with_the_run(receiver: Receiver) -> None:
    receiver.answers = [500]
    sink = WebhookSink(receiver.url, **{**QUICK, "pauses_s": (60.0,)})
    sink.write(at(2.0, Label.FAKE))
    wait_for(lambda: receiver.requests, "a request")
    start = time.perf_counter()
    sink.close(0.1)
    finish(sink)
    assert time.perf_counter() - start < patient(10)
    assert "given up" in sink.notes()[0]


# Secrets and URLs


def test_the_secret_of_the_environment_is_sent_and_never_shown(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "s3cret")
    receiver.answers = [401]
    sink = WebhookSink(receiver.url, pauses_s=())
    sink.write(at(2.0, Label.FAKE))
    finish(sink)
    assert receiver.requests[0][1]["authorization"] == "Bearer s3cret"
    for text in (*sink.notes(), sink.worker.name):
        assert "s3cret" not in text
        assert "secret-path" not in text


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://host/x", "starts with http"),
        ("file:///etc/passwd", "starts with http"),
        ("host/x", "starts with http"),
        ("http://", "starts with http"),
        ("http://[::1", "no URL"),
        ("http://host:99999/", "no URL"),
        ("http://user:word@host/", "no user or password"),
        ("http://host/a b", "percent-encoded"),
        ("http://host/a\r\nX: y", "percent-encoded"),
        ("http://höst/", "percent-encoded"),
    ],
)
def test_a_url_that_cannot_be_used_is_a_usage_error(url: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_url(url, None)


def test_a_secret_does_not_travel_unencrypted() -> None:
    with pytest.raises(UsageError, match="use https"):
        check_url("http://example.org/hook", "s3cret")
    assert check_url("http://127.0.0.1:8/hook", "s3cret") == "http://127.0.0.1:8"
    assert check_url("https://example.org/hook", "s3cret") == "https://example.org"
    assert check_url("http://example.org/hook", None) == "http://example.org"


def test_a_secret_that_no_header_can_hold_is_refused() -> None:
    with pytest.raises(UsageError, match=TOKEN_VARIABLE):
        check_url("https://example.org/", "a\nb")


# Time, size and proxies


class Raw:
    """A server on this machine that answers every connection with what ``answer`` yields."""

    def __init__(self, answer: Callable[[], Iterator[bytes]]) -> None:
        raw = self
        self.requests: list[bytes] = []
        self.ended: list[str] = []  # how each connection ended: "sent" or "cut"
        self.closed = threading.Event()  # one has

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                raw.requests.append(self.request.recv(1 << 16))
                try:
                    for piece in answer():
                        self.request.sendall(piece)
                        ready, _, _ = select.select([self.request], [], [], raw.pace_s)
                        if ready and not self.request.recv(1 << 16):
                            raise ConnectionResetError
                    raw.ended.append("sent")
                except OSError:
                    raw.ended.append("cut")
                raw.closed.set()

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self.pace_s = 0.0
        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def post_one(url: str, **options: Any) -> tuple[WebhookSink, float]:
    """A sink that had one change to deliver, and the seconds that took."""
    sink = WebhookSink(url, **{**QUICK, "pauses_s": (), **options})
    start = time.monotonic()
    sink.write(at(2.0, Label.FAKE))
    finish(sink, 30.0)
    return sink, time.monotonic() - start


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 500 No\r\n"])
def test_an_answer_that_drips_in_ends_with_the_tries_time(head: bytes) -> None:
    """Each byte comes well within the limit of one read; the whole never comes."""

    def drip() -> Iterator[bytes]:
        yield head
        while True:
            yield b"x"

    with Raw(drip) as server:
        server.pace_s = 0.05
        sink, took_s = post_one(server.url, timeout_s=0.5)
        assert sink.last_error == "timed out"
        assert sink.failed
        assert 0.4 < took_s < patient(5)
        assert server.closed.wait(10)
        assert server.ended == ["cut"]


def test_a_proxy_that_drips_ends_with_the_tries_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def drip() -> Iterator[bytes]:
        while True:
            yield b"x"

    with Raw(drip) as proxy:
        proxy.pace_s = 0.05
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        sink, took_s = post_one("https://hook.invalid/x", timeout_s=0.5, token="secret-of-mine")
        assert sink.last_error == "timed out"
        assert took_s < patient(5)
        assert proxy.requests[0].startswith(b"CONNECT hook.invalid:443 ")
        assert b"secret-of-mine" not in b"".join(proxy.requests)


def test_no_answer_is_read_beyond_its_head() -> None:
    def endless_head() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n"
        while True:
            yield b"X-More: " + b"x" * 60_000 + b"\r\n"

    def endless_body() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"
        while True:
            yield b"x" * 60_000

    with Raw(endless_head) as server:
        sink, took_s = post_one(server.url, timeout_s=20.0)
        assert "100 headers" in str(sink.last_error)
        assert took_s < patient(10)
    with Raw(endless_body) as server:
        sink, took_s = post_one(server.url, timeout_s=20.0)
        assert (sink.delivered, sink.last_error) == (1, None)
        assert took_s < patient(10)


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY"])
def test_a_proxy_of_the_environment_gets_nothing_that_is_for_this_machine(
    variable: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Iterator[bytes]:
        yield b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n"

    for name in ("no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Raw(refuse) as proxy:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
        for host in ("127.0.0.1", "localhost"):
            url = receiver.url.replace("127.0.0.1", host)
            sink, _ = post_one(url, token="secret-of-mine")
            assert sink.delivered == 1
        assert proxy.requests == []
        # elsewhere the proxy is asked, as the environment says
        sink, _ = post_one("http://hook.invalid/x")
        assert sink.last_error == "HTTP 502"
        assert proxy.requests[0].startswith(b"POST http://hook.invalid/x ")
    assert [headers["authorization"] for _, headers, _ in receiver.requests] == (
        ["Bearer secret-of-mine"] * 2
    )
