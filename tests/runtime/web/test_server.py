# SPDX-License-Identifier: Apache-2.0
"""The page over real sockets: what it serves, who gets in, slow and several viewers, its end."""

from __future__ import annotations

import datetime
import json
import re
import socket
import ssl
import struct
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed (extra web)")
pytest.importorskip("uvicorn", reason="uvicorn is not installed (extra web)")
pytest.importorskip("websockets", reason="websockets is not installed (extra web)")

from websockets.exceptions import InvalidStatus

from runtime.errors import DependencyError, UsageError
from runtime.judging.verdict import Reason
from runtime.listen import Address
from runtime.web.server import WebError, WebServer
from runtime.web.sink import WebSink
from runtime.web.token import Token
from runtime.web.viewer import MAX_UNCONFIRMED
from tests.runtime.doubles import SPEC
from tests.runtime.web.serving import (
    LOOPBACK,
    TOKEN,
    abstention,
    closing,
    confirm,
    get,
    picture,
    served,
    turn,
    verdict,
    viewer,
)
from tests.waiting import patient


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    with served() as server:
        yield server


@pytest.fixture(scope="module")
def locked() -> Iterator[WebServer]:
    """One that wants a token."""
    with served(token=TOKEN) as server:
        yield server


# What it serves


def test_the_page_and_everything_it_names_come_from_here(server: WebServer) -> None:
    status, headers, body = get(server)
    page = body.decode()
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert "Not a forensic tool" in page
    named = set(re.findall(r'(?:src|href)="([^"#]+)"', page))
    assert {"/app.js", "/app.css", "/icon.svg"} <= named
    for path in named:
        assert get(server, path)[0] == 200, path


def test_nothing_in_the_page_points_elsewhere() -> None:
    import runtime.web

    static = Path(runtime.web.__file__).parent / "static"
    found = {
        match
        for file in static.iterdir()
        for match in re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"')]*", file.read_text("utf-8"))
    }
    assert found <= {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize("path", ["/", "/app.js", "/api/state", "/healthz", "/nothing-here"])
def test_every_answer_keeps_the_page_to_itself(server: WebServer, path: str) -> None:
    _, headers, _ = get(server, path)
    assert headers["content-security-policy"].startswith("default-src 'self'")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


def test_there_are_no_other_doors(server: WebServer) -> None:
    for path in ("/docs", "/redoc", "/openapi.json", "/static/app.js", "/../pyproject.toml",
                 "/%2e%2e/server.py"):  # fmt: skip
        assert get(server, path)[0] == 404, path
    assert get(server, "/api/state", "POST")[0] == 405


def test_the_state_is_json_in_the_schema_of_the_verdicts() -> None:
    sink = WebSink(model_id="mock-1", provider="mock", judged_by="windows of 2 s")
    sink.write(verdict())
    with served(sink) as server:
        state = json.loads(get(server, "/api/state")[2])
        health = json.loads(get(server, "/healthz")[2])
    assert state["model_id"] == "mock-1"
    assert state["browser"] == "none"
    (shown,) = state["sources"]["a.mp4"]["verdicts"]
    assert json.loads(verdict().to_json()).items() <= shown.items()
    assert health == {"status": "ok", "sources": {"a.mp4": "live"}}


# Who gets in


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "192.0.2.1", ""])
def test_a_name_that_is_not_ours_is_refused(server: WebServer, host: str) -> None:
    """DNS rebinding: a hostile name that points at 127.0.0.1."""
    assert get(server, host=host)[0] == 421
    if host:
        with pytest.raises(InvalidStatus), viewer(server, Host=host):
            pass


def test_a_name_that_was_given_gets_in_beyond_loopback() -> None:
    address = Address("0.0.0.0", 0, frozenset(["msct"]))
    sink, token = WebSink(model_id="mock-1", provider="mock"), Token(TOKEN, generated=False)
    bearer = f"Bearer {TOKEN}"
    with WebServer(address, sink, SPEC, token=token) as server:
        assert get(server, host="msct:8080", authorization=bearer)[0] == 200
        assert get(server, host="evil.example", authorization=bearer)[0] == 421


def test_a_page_of_another_site_is_refused(server: WebServer) -> None:
    own = f"http://127.0.0.1:{server.port}"
    assert get(server, "/api/state", origin=own)[0] == 200
    with viewer(server, Origin=own) as socket:
        assert turn(socket)[0]["type"] == "turn"
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{server.port + 1}",
                   f"http://evil.example/{own}"):  # fmt: skip
        assert get(server, "/api/state", origin=origin)[0] == 403, origin
        with pytest.raises(InvalidStatus), viewer(server, Origin=origin):
            pass


@pytest.mark.parametrize("path", ["/", "/app.js", "/icon.svg", "/api/state", "/healthz", "/none"])
def test_with_a_token_nothing_is_served_without_it(locked: WebServer, path: str) -> None:
    wrong = {"authorization": f"Bearer {TOKEN}x"}
    assert get(locked, path)[0] == 401
    assert get(locked, path, **wrong)[0] == 401
    assert get(locked, f"{path}?token={TOKEN[:-1]}")[0] == 401
    right = get(locked, path, authorization=f"Bearer {TOKEN}")[0]
    assert right == (404 if path == "/none" else 200)


def test_a_websocket_needs_the_token_too(locked: WebServer) -> None:
    with pytest.raises(InvalidStatus), viewer(locked):
        pass
    with pytest.raises(InvalidStatus), viewer(locked, Authorization="Bearer "):
        pass
    with viewer(locked, Authorization=f"Bearer {TOKEN}") as socket:
        assert turn(socket)[0]["turn"] == 1


def test_the_token_of_the_address_is_traded_for_a_cookie_that_does_not_hold_it(
    locked: WebServer,
) -> None:
    status, headers, _ = get(locked, f"/?token={TOKEN}")
    assert status == 200
    cookie = headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert TOKEN not in cookie
    pair = cookie.split(";")[0]
    assert get(locked, "/api/state", cookie=pair)[0] == 200
    with viewer(locked, Cookie=pair) as socket:
        assert turn(socket)[0]["turn"] == 1
    assert get(locked, "/api/state", cookie=pair + "0")[0] == 401
    assert get(locked, "/api/state", cookie="msct_page=")[0] == 401
    assert get(locked, "/api/state", cookie=f"msct_page={TOKEN}")[0] == 401


def test_only_a_token_that_nobody_knows_yet_is_in_the_printed_address() -> None:
    sink = WebSink()
    for generated in (True, False):
        server = WebServer(LOOPBACK, sink, SPEC, token=Token(TOKEN, generated))
        assert (TOKEN in server.url) is generated
        assert TOKEN not in server.base_url


# Live


def test_a_viewer_gets_what_there_was_and_then_what_is_new() -> None:
    sink = WebSink()
    sink.write(abstention(Reason.NO_FACE))
    sink.picture(picture(0.04, faces=2))
    with served(sink) as server, viewer(server) as socket:
        first, (message,) = turn(socket)
        (length,) = struct.unpack(">I", message[:4])
        header = json.loads(message[4 : 4 + length])
        assert header["source"] == "a.mp4"
        assert header["size"] == [64, 48]
        assert header["faces"][0] == {"id": 0, "box": [0.25, 0.25, 0.5, 0.5833]}
        assert message[4 + length :].startswith(b"\xff\xd8"), "a JPEG"
        assert [v["reason"] for v in first["sources"]["a.mp4"]["verdicts"]] == ["no_face"]
        confirm(socket, first["turn"])
        second, pictures = turn(socket)
        assert not pictures
        assert second["sources"]["a.mp4"]["verdicts"] == []


def test_no_picture_leaves_the_program_where_pictures_are_hidden() -> None:
    sink = WebSink()
    sink.picture(picture(0.04))
    with served(sink, faces="hide") as server, viewer(server) as socket:
        _, (message,) = turn(socket)
        (length,) = struct.unpack(">I", message[:4])
        assert len(message) == 4 + length


def test_a_slow_viewer_stalls_nobody_and_goes_on_with_the_newest_picture() -> None:
    sink = WebSink()
    sink.picture(picture(0.0))
    with served(sink) as server, viewer(server) as slow, viewer(server) as quick:
        for _ in range(MAX_UNCONFIRMED):
            turn(slow)
        start = time.monotonic()
        for i in range(1, 1001):  # 40 s of stream
            sink.picture(picture(i / 25))
            if i % 5 == 0:
                sink.write(verdict(i / 25))
        assert time.monotonic() - start < patient(2), "writing waits for nobody"
        with pytest.raises(TimeoutError):
            slow.recv(timeout=0.5)
        seen, deadline = 0, time.monotonic() + 10
        while seen < 200 and time.monotonic() < deadline:
            news, _ = turn(quick)
            seen += len(news["sources"]["a.mp4"]["verdicts"])
            confirm(quick, news["turn"])
        assert seen == 200
        confirm(slow, MAX_UNCONFIRMED)
        news, pictures = turn(slow)
        (message,) = pictures
        (length,) = struct.unpack(">I", message[:4])
        assert json.loads(message[4 : 4 + length])["t_s"] == 40.0
        assert len(news["sources"]["a.mp4"]["verdicts"]) == 200, "no verdict is lost on the way"


def test_a_viewer_that_never_confirms_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.web.viewer.GIVE_UP_S", 0.2)
    with served() as server, viewer(server) as socket:
        assert closing(socket) == 4000


@pytest.mark.parametrize("nonsense", ["{", "[]", "{}", '"seen"', "null"])
def test_nonsense_closes_its_own_socket_only(server: WebServer, nonsense: str) -> None:
    with viewer(server) as other, viewer(server) as socket:
        socket.send(nonsense)
        assert closing(socket) == 1003
        assert turn(other)[0]["type"] == "turn"


def test_confirmations_that_make_no_sense_are_ignored(server: WebServer) -> None:
    with viewer(server) as socket:
        for claim in (10**9, -1, "1", None):
            socket.send(json.dumps({"type": "seen", "turn": claim}))
        socket.send(json.dumps({"type": "something new"}))
        assert [turn(socket)[0]["turn"] for _ in range(MAX_UNCONFIRMED)] == [1, 2]
        with pytest.raises(TimeoutError):
            socket.recv(timeout=0.3)


def test_a_camera_that_nobody_asked_for_is_refused(server: WebServer) -> None:
    with viewer(server) as socket:
        socket.send(json.dumps({"type": "offer", "sdp": "v=0"}))
        while (message := turn(socket)[0])["type"] != "rtc":
            confirm(socket, message["turn"])
    assert "--source browser" in message["error"]


# Start and end


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(WebError, match=f"127.0.0.1:{port}: address already in use") as raised:
            WebServer(Address("127.0.0.1", port), WebSink(), SPEC).start()
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 1


def test_a_host_that_is_not_ours_is_one_line() -> None:
    with pytest.raises(WebError, match=r"192\.0\.2\.77"):
        WebServer(Address("192.0.2.77", 0), WebSink(), SPEC, token=Token(TOKEN, False)).start()


def test_it_ends_at_once_whoever_is_connected() -> None:
    before = set(threading.enumerate())
    with served() as server, viewer(server) as one, viewer(server) as two:
        turn(one)
        start = time.monotonic()
        server.close()
        assert time.monotonic() - start < patient(2)
        assert closing(one) == closing(two) == 1012  # the server goes
    assert not [t for t in set(threading.enumerate()) - before if t.name == "msct-web"]


def test_without_the_extra_its_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(DependencyError, match=r"uvicorn.*\[cpu,web\]"):
        WebServer(LOOPBACK, WebSink(), SPEC)


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed one for localhost, and its key."""
    pytest.importorskip("cryptography", reason="cryptography is not installed (extra web)")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return cert_file, key_file


def test_with_a_certificate_the_page_is_served_over_tls(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    with served(certificate=cert, key=key, token=TOKEN) as server:
        assert server.base_url.startswith("https://")
        assert server.browser_can_record
        context = ssl.create_default_context(cafile=str(cert))
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        url = f"https://localhost:{server.port}/?token={TOKEN}"
        with opener.open(url, timeout=10) as answer:
            assert "Secure" in answer.headers["set-cookie"].split("; ")


@pytest.mark.parametrize("broken", ["missing", "nonsense", "key of another"])
def test_a_certificate_that_cannot_be_used_is_one_line(
    certificate: tuple[Path, Path], tmp_path: Path, broken: str
) -> None:
    files: dict[str, Any] = {
        "missing": {"certificate": tmp_path / "none.pem"},
        "nonsense": {"certificate": Path(__file__)},
        "key of another": {"certificate": certificate[0]},
    }[broken]
    with pytest.raises(UsageError, match="--web-cert") as raised:
        WebServer(LOOPBACK, WebSink(), SPEC, **files)
    assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match="--web-key"):
        WebServer(LOOPBACK, WebSink(), SPEC, key=certificate[1])
