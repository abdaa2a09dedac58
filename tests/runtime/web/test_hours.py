# SPDX-License-Identifier: Apache-2.0
"""A browser for hours: what is kept of its pictures, sound and verdicts does not grow."""

from __future__ import annotations

import gc
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av", reason="av is not installed")

import av

from runtime.faces import Face
from runtime.flow.model_calls import drive
from runtime.flow.stream_run import StreamRun
from runtime.media.clock import LiveClock
from runtime.web.browser import BrowserSource, Desk, Incoming
from runtime.web.rtc import _to_rgb
from runtime.web.sink import WebSink
from tests.runtime.doubles import SPEC, MockBackend

pytestmark = pytest.mark.thorough
HOP = 5  # pictures from one window to the next
KEPT = 100  # verdicts and latencies by the page, instead of thousands
FULL = HOP * 4 * KEPT  # pictures after which whatever is kept is full
MORE = 5000  # and after as many more nothing may have been added
SPARE = 500  # blocks of memory: one for ten pictures, where a leak has one or more for each
SAMPLES = np.zeros(640, np.float32)  # 40 ms


class OneFace:
    """As the tests' tracker, with nothing remembered."""

    def __init__(self, _: object) -> None: ...

    def update(self, frame: np.ndarray[Any, Any], token: int) -> list[Face]:
        crop = np.full((SPEC.face.crop_px, SPEC.face.crop_px, 3), token % 251, np.uint8)
        return [Face(token // 1000, crop, (0.0, 0.0, 96.0, 96.0), np.zeros((3, 2)), 96.0, 1.0)]

    def reset(self) -> None: ...


class Hours:
    """The way of what a browser sends to the page, without the network, as fast as it goes."""

    def __init__(self) -> None:
        self.incoming = Incoming(frozenset(["video", "audio"]))
        for kind in self.incoming.kinds:
            self.incoming.clock.report(kind, 5000.0, 0.0)
        desk = Desk()
        desk.want()
        desk.deliver(self.incoming)
        self.source, self.sink = BrowserSource(desk), WebSink()
        self.sink.watch(self.source)
        self.backend = MockBackend()
        self.run = StreamRun(self.source, self.backend, [self.sink], None, True, None)
        self.incoming.open(LiveClock(), self.source.drops)
        self.seen: dict[str, int] = {}
        self.sent = 0
        self.keep: list[object] = []

    def send(self, pictures: int, *, leak: bool = False) -> None:
        for _ in range(pictures):
            at_s, self.sent = self.sent / 25, self.sent + 1
            frame = av.VideoFrame(64, 48, "yuv420p")
            self.keep += [frame] if leak else []
            self.incoming.video(at_s, (64, 48), partial(_to_rgb, frame))
            self.incoming.audio(at_s, SAMPLES, 16_000)
            if self.sent % 25 == 0:
                for kind in self.incoming.kinds:
                    self.incoming.clock.report(kind, 5000.0 + at_s, at_s)
                _, self.seen = self.sink.news(self.seen)
            while self.incoming._queue:
                chunk = self.incoming.get()
                assert chunk is not None
                verdicts = drive(self.run.take_steps(chunk), self.backend)
                self.run.publish(verdicts, chunk.captured_s)
            self.backend.encoded.clear()  # what the double itself remembers
            self.backend.fused.clear()


def counted() -> tuple[int, int]:
    """Blocks that Python has allocated, and pictures that are alive."""
    gc.collect()
    alive = sum(isinstance(o, av.VideoFrame) for o in gc.get_objects())
    return sys.getallocatedblocks(), alive


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> Hours:
    monkeypatch.setattr("runtime.flow.pictures.FaceTracker", OneFace)
    for name in ("KEPT_VERDICTS", "KEPT_LATENCIES"):
        monkeypatch.setattr(f"runtime.web.sink.{name}", KEPT)
    return Hours()


def test_what_is_kept_of_a_browser_does_not_grow(hours: Hours) -> None:
    hours.send(FULL)
    before, _ = counted()
    hours.send(MORE)
    after, alive = counted()
    assert hours.run.summary.stats.verdicts > MORE / HOP
    assert after - before < SPARE
    assert alive < 10, "those in the grid and on the page"
    assert hours.source.damaged == 0


def test_a_leak_would_be_seen(hours: Hours) -> None:
    hours.send(500)
    before, _ = counted()
    hours.send(1000, leak=True)
    after, alive = counted()
    assert after - before > SPARE
    assert alive > 1000
