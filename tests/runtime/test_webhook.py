# SPDX-License-Identifier: Apache-2.0
"""The webhook: each change once, to the host that was named, whatever that host does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from runtime.errors import UsageError
from runtime.sinks.webhook import TOKEN_VARIABLE, UNDELIVERED, WebhookSink, check_url
from runtime.verdict import Label, Reason
from tests.runtime.test_timeline_sink import at

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
    assert time.perf_counter() - start < 2
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
    while not receiver.requests:
        time.sleep(0.01)
    start = time.perf_counter()
    sink.close(0.1)
    finish(sink)
    assert time.perf_counter() - start < 10
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
