# SPDX-License-Identifier: Apache-2.0
"""WebRTC for real, over this machine's own addresses: aiortc plays the browser.

Its picture turns white and its tone sounds in the same half seconds, but its sound track starts
late, as a microphone does.  Only the sender reports can say what belongs together.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed (extra web)")
pytest.importorskip("uvicorn", reason="uvicorn is not installed (extra web)")
pytest.importorskip("websockets", reason="websockets is not installed (extra web)")
pytest.importorskip("aiortc", reason="aiortc is not installed (extra web)")

import aiortc
import av
from aiortc.mediastreams import MediaStreamTrack
from websockets.exceptions import ConnectionClosed

from runtime.media import AudioChunk, Chunk, VideoChunk
from runtime.web.server import WebServer
from runtime.web.sink import WebSink
from tests.runtime.web.serving import get, served
from tests.waiting import patient, wait_for

pytestmark = pytest.mark.thorough
REPOSITORY = Path(__file__).resolve().parents[3]
LATE_S = 0.7  # the sound track's start
RATE_HZ = 48_000
PIECE = 960  # samples: 20 ms


def loud(t_s: float) -> bool:
    """Half a second on, half a second off."""
    return t_s % 1.0 < 0.5


class Camera(MediaStreamTrack):
    """25 pictures a second, white when it is loud; from second ``start`` of the event loop."""

    kind = "video"

    def __init__(self, start: float) -> None:
        super().__init__()
        self._start, self._i = start, 0

    async def recv(self) -> Any:
        t_s = self._i / 25
        await asyncio.sleep(max(0.0, self._start + t_s - asyncio.get_running_loop().time()))
        pixels = np.full((120, 160, 3), 230 if loud(t_s) else 20, np.uint8)
        frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
        frame.pts, frame.time_base = self._i * 3600, Fraction(1, 90_000)
        self._i += 1
        return frame


class Microphone(MediaStreamTrack):
    """A tone when it is loud.  Its timestamps begin at 0, its sound at ``LATE_S``."""

    kind = "audio"

    def __init__(self, start: float) -> None:
        super().__init__()
        self._start, self._i = start + LATE_S, 0

    async def recv(self) -> Any:
        at_s = self._i * PIECE / RATE_HZ
        await asyncio.sleep(max(0.0, self._start + at_s - asyncio.get_running_loop().time()))
        t = LATE_S + at_s + np.arange(PIECE) / RATE_HZ
        tone = np.where(t % 1.0 < 0.5, 12_000 * np.sin(2 * np.pi * 440 * t), 0).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(tone[None], "s16", "mono")
        frame.sample_rate, frame.pts = RATE_HZ, self._i * PIECE
        frame.time_base = Fraction(1, RATE_HZ)
        self._i += 1
        return frame


class Browser:
    """What the page's script does, in a thread: offer, answer, send, until :meth:`leave`."""

    def __init__(self, port: int, kinds: tuple[str, ...] = ("video", "audio")) -> None:
        self._uri = f"ws://127.0.0.1:{port}/ws"
        self._kinds = kinds
        self.heard: list[dict[str, Any]] = []  # messages of type rtc
        self.status = ""  # what the newest turn says of the program's browser
        self._leave = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()

    def stop(self) -> None:
        """Somebody presses Stop; the tab stays."""
        self._stop.set()

    def leave(self) -> None:
        self._leave.set()
        self._thread.join(10)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        from websockets.asyncio.client import connect

        connection = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        start = asyncio.get_running_loop().time() + 1.0
        tracks = {"video": Camera, "audio": Microphone}
        for kind in self._kinds:
            connection.addTransceiver(tracks[kind](start), direction="sendonly")
        await connection.setLocalDescription(await connection.createOffer())
        # ConnectionClosed: the program stopped first.
        with contextlib.suppress(ConnectionClosed):
            await self._talk(connect(self._uri, proxy=None, max_size=None), connection)
        await connection.close()

    async def _talk(self, connecting: Any, connection: Any) -> None:
        async with connecting as socket:
            sdp = connection.localDescription.sdp
            await socket.send(json.dumps({"type": "offer", "sdp": sdp}))
            stopped = False
            while not self._leave.is_set():
                if self._stop.is_set() and not stopped:
                    stopped = True
                    await socket.send(json.dumps({"type": "hang_up"}))
                try:
                    text = await asyncio.wait_for(socket.recv(), 0.1)
                except asyncio.TimeoutError:
                    continue
                message = json.loads(text) if isinstance(text, str) else {"type": "picture"}
                if message["type"] == "turn":
                    self.status = message["browser"]
                    seen = {"type": "seen", "turn": message["turn"]}
                    await socket.send(json.dumps(seen))
                elif message["type"] == "rtc":
                    self.heard.append(message)
                    if "sdp" in message:
                        answer = aiortc.RTCSessionDescription(message["sdp"], "answer")
                        await connection.setRemoteDescription(answer)


@contextmanager
def wanting(kinds: tuple[str, ...] = ("video", "audio")) -> Iterator[tuple[WebServer, Browser]]:
    """A server that waits for a browser, and a browser that comes."""
    with served(WebSink()) as server:
        server.want_browser()
        browser = Browser(server.port, kinds)
        try:
            yield server, browser
        finally:
            browser.leave()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser that has gone is not waited for."""
    monkeypatch.setattr("runtime.web.browser.RETURN_WAIT_S", 0.0)


@pytest.mark.usefixtures("impatient")
def test_picture_and_sound_come_on_one_clock_and_end_with_the_tab() -> None:
    pictures: list[tuple[float, float]] = []  # stream seconds, brightness
    sounds: list[AudioChunk] = []
    with wanting() as (server, browser), server.browser_source() as source:
        assert (source.info.width, source.info.height) == (160, 120)
        assert json.loads(get(server, "/api/state")[2])["browser"] == "in_use"
        left = None
        for chunk in source:
            if isinstance(chunk, VideoChunk):
                pictures.append((chunk.t_s, float(chunk.frame.mean())))
            else:
                sounds.append(chunk)
            if chunk.t_s > 4.0 and left is None:
                left = time.monotonic()
                threading.Thread(target=browser.leave).start()
        assert left is not None
        assert time.monotonic() - left < patient(2), "the source ends when the tab is closed"
    assert source.warnings == ["ended: the page was left, and none came within 0 s"], (
        "no alignment by arrival, no drops"
    )
    assert source.damaged == 0

    times = np.array([t for t, _ in pictures])
    assert 0 <= times[0] < 0.2
    assert np.allclose(np.diff(times), 0.04, atol=0.005)
    bright = np.array([b > 125 for _, b in pictures])
    flashes = times[1:][np.diff(bright.astype(int)) == 1]
    flashes = flashes[flashes > 0.4]  # tones are looked for after 0.2 s of silence
    samples = np.concatenate([c.samples for c in sounds])
    at = np.concatenate([c.t_s + np.arange(c.samples.size) / 16_000 for c in sounds])
    level = np.abs(samples) > 0.1
    tones = [at[i] for i in np.flatnonzero(level) if i > 3200 and not level[i - 3200 : i].any()]
    assert len(flashes) >= 3
    apart = [min(tones, key=lambda t: abs(t - flash)) - flash for flash in flashes]
    # A picture lasts 40 ms and aiortc's reports name the moment of sending, after encoding.
    assert np.abs(apart).max() < 0.1, apart
    assert LATE_S > 0.3, "or arrival order would have passed as well"


def test_a_microphone_alone_is_a_source_too() -> None:
    with wanting(("audio",)) as (server, _), server.browser_source() as source:
        assert not source.info.has_video
        assert source.info.has_audio
        chunks = iter(source)
        assert isinstance(next(chunks), AudioChunk)


def test_a_second_browser_is_told_that_there_is_one() -> None:
    with wanting() as (server, first), server.browser_source():
        second = Browser(server.port)
        wait_for(lambda: second.heard, "an answer")
        second.leave()
        assert [m.get("error") for m in second.heard] == ["another browser is the source already"]
        assert all("error" not in m for m in first.heard)


class Reader(threading.Thread):
    """Reads a source as the pipeline does, and keeps its last time."""

    def __init__(self, source: Iterable[Chunk]) -> None:
        super().__init__()
        self._source, self.t_s, self.chunks = source, 0.0, 0
        self.start()

    def run(self) -> None:
        for chunk in self._source:
            self.t_s, self.chunks = chunk.t_s, self.chunks + 1


def test_a_tab_that_is_closed_and_opened_again_goes_on_with_the_stream() -> None:
    """And a second tab is refused while the first one lives, welcome when it has gone."""
    said: list[str] = []
    with wanting() as (server, first), server.browser_source(notice=said.append) as source:
        began = time.monotonic()
        reader = Reader(source)
        wait_for(lambda: reader.chunks > 20)
        refused = Browser(server.port)
        wait_for(lambda: refused.heard)
        assert refused.heard[0]["error"] == "another browser is the source already"
        first.leave()
        wait_for(lambda: refused.status == "away")
        refused.leave()
        before, t_s = reader.chunks, reader.t_s
        second = Browser(server.port)
        try:
            wait_for(lambda: reader.chunks > before + 20)
            assert second.status == "in_use"
            assert reader.t_s > t_s + 1.0, "the time without a browser is part of the stream"
            assert reader.t_s == pytest.approx(time.monotonic() - began, abs=1.0)
            assert re.fullmatch(r"browser: back after [0-9.]+ s", said[-1])
            second.stop()
            reader.join(10)
            assert not reader.is_alive()
            wait_for(lambda: second.status == "ended")
        finally:
            second.leave()
    assert [m["ended"] for m in first.heard if "ended" in m] == []
    assert source.outages == 1
    assert source.damaged == 0
    assert source.warnings[-1] == "ended: the camera was stopped on the page"


def test_when_the_program_has_ended_the_page_lets_go_of_the_camera() -> None:
    """The page may be held: what nobody reads is not to be received and decoded for ever."""
    with wanting(("audio",)) as (server, browser):
        with server.browser_source() as source:
            next(iter(source))
        wait_for(lambda: any("ended" in m for m in browser.heard))
        assert browser.heard[-1] == {"type": "rtc", "ended": "the program stopped"}
        assert server.desk.status == "ended"


def test_ten_reopenings_leave_no_peer_task_thread_or_handle() -> None:
    from tests.runtime.web.test_fuzz_socket import kept

    with served(WebSink()) as server:
        server.want_browser()
        browser = Browser(server.port, ("audio",))
        with server.browser_source() as source:
            reader = Reader(source)
            counts: list[dict[str, int]] = []
            for _ in range(11):
                before = reader.chunks
                wait_for(lambda before=before: reader.chunks > before + 5)
                browser.leave()
                wait_for(lambda: server.desk.status == "away")
                wait_for(lambda: kept(server)["connections"] == 0)
                counts.append({**kept(server), "threads": threading.active_count()})
                browser = Browser(server.port, ("audio",))
            browser.leave()
        reader.join(10)
    assert source.outages in (10, 11)
    assert all(later <= counts[0].get(name, 0) for name, later in counts[-1].items()), counts


@pytest.mark.parametrize(
    "sdp",
    ["", "nonsense", "v=0\r\n", "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n", 7, None],
)
def test_an_offer_that_makes_no_sense_is_refused_and_the_next_browser_gets_in(sdp: Any) -> None:
    from tests.runtime.web.serving import confirm, turn, viewer

    with served() as server:
        server.want_browser()
        with viewer(server) as socket:
            socket.send(json.dumps({"type": "offer", "sdp": sdp}))
            while (message := turn(socket)[0])["type"] != "rtc":
                confirm(socket, message["turn"])
        assert message["error"]
        assert server.desk.status == "waiting"


def test_a_browser_whose_media_never_comes_is_told_so_and_another_may_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runtime.web.rtc.START_WAIT_S", 0.3)
    with wanting() as (server, browser):
        wait_for(lambda: any("ended" in m for m in browser.heard), "why it ended")
        assert "UDP" in browser.heard[-1]["ended"]
        assert server.desk.status == "waiting"


@pytest.mark.parametrize("end", ["Ctrl-C", "Stop on the page", "Ctrl-C after the tab"])
def test_the_command_ends_at_once_while_a_browser_sends_or_is_waited_for(
    end: str, real_pair: Path, record_property: Any
) -> None:
    """Ctrl-C ends a live source, so there is a summary; nobody's face is in it: exit code 3."""
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime.stream", "--source", "browser", "--web", "127.0.0.1:0",
         "--model", str(real_pair)],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    browser = None
    try:
        assert process.stderr is not None
        assert process.stdout is not None
        port = re.search(r":(\d+)/", process.stderr.readline())
        assert port is not None
        browser = Browser(int(port[1]))
        while "abstain" not in (line := process.stdout.readline()):  # the first row
            assert line, process.stderr.read()
        if end == "Ctrl-C after the tab":
            browser.leave()
            while "the page was left; waiting 30 s" not in (line := process.stderr.readline()):
                assert line
        start = time.monotonic()
        if end == "Stop on the page":
            browser.stop()
        else:
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        seconds = time.monotonic() - start
    finally:
        process.kill()
        if browser is not None:
            browser.leave()
    assert process.returncode == 3, err
    assert "windows: 0% real" in out
    assert "Traceback" not in err
    record_property("seconds", seconds)
    assert seconds < patient(5), "2 s, and what a busy machine adds"


def test_no_server_beyond_is_asked_for_addresses() -> None:
    """aiortc's own default asks one of Google's."""
    from runtime.web.browser import Desk
    from runtime.web.rtc import Peer

    async def configuration() -> Any:
        async def ended(_: str) -> None: ...

        peer = Peer(Desk(), 16_000, ended)
        servers = peer._connection._RTCPeerConnection__configuration.iceServers
        await peer.close()
        return servers

    assert asyncio.run(configuration()) == []
