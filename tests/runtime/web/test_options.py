# SPDX-License-Identifier: Apache-2.0
"""--web of runtime.stream: what it prints, how it fails, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed (extra web)")
pytest.importorskip("uvicorn", reason="uvicorn is not installed (extra web)")
pytest.importorskip("websockets", reason="websockets is not installed (extra web)")
pytest.importorskip("aiortc", reason="aiortc is not installed (extra web)")

import runtime.flow.pictures
from runtime import command
from runtime.stream import __main__ as stream
from tests.runtime.clips import write_clip
from tests.runtime.doubles import MockBackend, MockTracker
from tests.waiting import patient

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.fixture(autouse=True)
def mocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MSCT_WEB_TOKEN", raising=False)
    monkeypatch.setattr(command, "load_backend", lambda *_: MockBackend())
    monkeypatch.setattr(runtime.flow.pictures, "FaceTracker", lambda spec: MockTracker())


def run(*arguments: Any) -> int:
    return stream.main([str(a) for a in arguments])


def test_a_file_is_streamed_beside_its_page_and_the_page_ends_with_it(
    clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("--source", clip, "--web", "127.0.0.1:0", "--jsonl", "-") == 0
    out, err = capfd.readouterr()
    assert all(json.loads(line)["source"] == str(clip) for line in out.splitlines())
    port = re.search(r"^page: http://127\.0\.0\.1:(\d+)/$", err, re.MULTILINE)
    assert port is not None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port[1])), timeout=5)


def test_held_it_stays_with_everything_it_showed(
    clip: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.web.server import WebServer

    states = []

    def wait(page: WebServer) -> None:  # in place of a person who looks, and presses Ctrl-C
        states.append(json.load(urllib.request.urlopen(f"{page.base_url}api/state", timeout=10)))
        raise KeyboardInterrupt

    monkeypatch.setattr(WebServer, "wait", wait)
    assert run("--source", clip, "--web", "127.0.0.1:0", "--web-hold") == 0
    assert "until Ctrl-C" in capfd.readouterr().err
    (state,) = states
    assert state["sources"][str(clip)]["status"] == "ended"
    assert state["sources"][str(clip)]["windows"] == 6


def test_several_sources_are_on_one_page(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.web.sink import WebSink

    other = write_clip(tmp_path / "other.mp4")
    made: list[WebSink] = []
    begin = WebSink.begin
    monkeypatch.setattr(WebSink, "begin", lambda self, *a: (made.append(self), begin(self, *a))[1])
    assert run("--source", clip, "--source", other, "--web", "127.0.0.1:0", "--quiet") == 0
    assert made[0] is made[1]
    assert made[0].statuses() == {str(clip): "ended", str(other): "ended"}


def test_a_port_in_use_is_one_line_before_anything_is_streamed(
    clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run("--source", clip, "--web", f"127.0.0.1:{port}") == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"error: --web 127.0.0.1:{port}: address already in use")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--source", "browser"), "add --web"),
        (("--source", "CLIP", "--web-cert", "c.pem"), "--web-cert"),
        (("--source", "CLIP", "--web-hold"), "--web-hold"),
        (("--source", "CLIP", "--web", "http://x"), "HOST:PORT"),
        (("--source", "CLIP", "--allow-host", "msct"), "--allow-host msct"),
        (("--source", "CLIP", "--allow-host", "msct", "--web", "127.0.0.1:0"), "--allow-host msct"),
        (("--source", "CLIP", "--web", "127.0.0.1:0", "--web-key", "k.pem"), "--web-cert"),
        (("--source", "CLIP", "--web", "127.0.0.1:0", "--web-cert", "none.pem"), "none.pem"),
    ],
)
def test_options_that_contradict_each_other_are_usage_errors(
    arguments: tuple[str, ...], words: str, clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(*(clip if a == "CLIP" else a for a in arguments)) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "websockets"])
def test_without_the_extra_its_name_is_told(
    missing: str,
    clip: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert run("--source", clip, "--web", "127.0.0.1:0") == 1
    assert f"{missing} is needed for --web: pip install '.[cpu,web]'" in capfd.readouterr().err


def test_a_browser_needs_aiortc_and_a_file_does_not(
    clip: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "aiortc", None)
    assert run("--source", "browser", "--web", "127.0.0.1:0") == 1
    assert "aiortc is needed" in capfd.readouterr().err
    assert run("--source", clip, "--web", "127.0.0.1:0") == 0


def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """The command in a process of its own, and the page's address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime.stream", *arguments, "--web", "127.0.0.1:0"],
        cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("page: http://127.0.0.1:"), line + process.stderr.read()
    return process, line.split()[1]


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_a_browser_at_once(
    sign: signal.Signals, real_pair: Path
) -> None:
    """With a viewer that does not confirm anything, the worst one to have."""
    from websockets.sync.client import connect

    process, url = start("--source", "browser", "--model", str(real_pair))
    try:
        with connect(url.replace("http", "ws") + "ws", proxy=None) as viewer:
            viewer.recv(timeout=10)
            begin = time.monotonic()
            process.send_signal(sign)
            process.wait(10)
            assert time.monotonic() - begin < patient(5), "2 s, and what a busy machine adds"
    finally:
        process.kill()
        _, err = process.communicate()
    assert "Traceback" not in err
    assert process.returncode == 130


def test_nobody_is_left_behind(clip: Path) -> None:
    before = {t.name for t in threading.enumerate()}
    assert run("--source", clip, "--web", "127.0.0.1:0", "--quiet") == 0
    assert "msct-web" not in {t.name for t in threading.enumerate()} - before
