# SPDX-License-Identifier: Apache-2.0
"""Microphones, with PortAudio replaced by a mock that calls back as PortAudio does."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime.errors import DependencyError, MediaError, UsageError
from runtime.media import AudioChunk, Chunk, LiveSource, VideoChunk
from runtime.media.feed import Feed
from runtime.media.joined import JoinedSource
from runtime.media.microphone import MicrophoneSource, find_device
from tests.runtime.doubles import picture
from tests.runtime.media.test_feed import ScriptedLive
from tests.waiting import pause

DEVICE_HZ = 48_000
BLOCK = 960
LATENCY_S = 0.015  # from the converter to the callback
CARD_CLOCK_S = 5000.0  # PortAudio's clock counts from somewhere else


class PortAudio(ModuleType):
    """As much of sounddevice as is used; a thread calls back every 20 ms."""

    class PortAudioError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("sounddevice")
        self.default = SimpleNamespace(device=(1, 0))
        self.opened = 0
        self.fails = ""
        self.blocks = 10**9  # after which the device is unplugged
        self.streams: list[Any] = []
        mock = self

        class InputStream:
            def __init__(self, *, samplerate: int, blocksize: int, channels: int, dtype: str,
                         device: int, callback: Any) -> None:  # fmt: skip
                if mock.fails:
                    raise mock.PortAudioError(mock.fails)
                assert (samplerate, blocksize, channels, dtype) == (DEVICE_HZ, BLOCK, 1, "float32")
                mock.opened += 1
                mock.streams.append(self)
                self.active, self.device, self._callback = True, device, callback
                self._stop = threading.Event()
                self._thread = threading.Thread(target=self._play)

            def start(self) -> None:
                self._thread.start()

            def _play(self) -> None:
                self.start_s = start = time.monotonic()
                for i in range(mock.blocks):
                    if self._stop.wait(max(0.0, start + (i + 1) * 0.02 - time.monotonic())):
                        return
                    t = np.arange(i * BLOCK, (i + 1) * BLOCK) / DEVICE_HZ
                    block = (0.5 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)[:, None]
                    now = time.monotonic() - start + CARD_CLOCK_S
                    taken = CARD_CLOCK_S + i * 0.02 - LATENCY_S
                    times = SimpleNamespace(inputBufferAdcTime=taken, currentTime=now)
                    self._callback(block, BLOCK, times, SimpleNamespace(input_overflow=i == 2))
                self.active = False

            def close(self, ignore_errors: bool = True) -> None:
                self._stop.set()
                self._thread.join()

        self.InputStream = InputStream

    def query_devices(self, index: int | None = None) -> Any:
        devices = [
            {"name": "Speakers", "max_input_channels": 0, "default_samplerate": 48000.0},
            {"name": "Webcam Microphone", "max_input_channels": 1, "default_samplerate": 48000.0},
            {"name": "USB Microphone", "max_input_channels": 2, "default_samplerate": 48000.0},
        ]
        return devices if index is None else devices[index]


@pytest.fixture
def portaudio(monkeypatch: pytest.MonkeyPatch) -> PortAudio:
    mock = PortAudio()
    monkeypatch.setitem(sys.modules, "sounddevice", mock)
    return mock


def read(source: Any, seconds: float) -> list[AudioChunk]:
    found: list[AudioChunk] = []
    for chunk in source:
        assert isinstance(chunk, AudioChunk)
        found.append(chunk)
        if sum(len(c.samples) for c in found) >= seconds * 16_000:
            source.close()
    return found


def test_sound_is_resampled_and_on_the_monotonic_clock(portaudio: PortAudio) -> None:
    with MicrophoneSource() as source:
        assert isinstance(source, LiveSource)
        assert source.info.name == "microphone:1"
        chunks = read(source, 0.5)
    samples = np.concatenate([c.samples for c in chunks])
    crossings = np.count_nonzero(np.diff(np.sign(samples[1600:])) > 0)
    assert crossings / (len(samples) - 1600) * 16_000 == pytest.approx(440, rel=0.02)
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.02)
    assert chunks[0].t_s == 0.0
    at = 0
    for chunk in chunks:  # without a gap
        assert chunk.t_s == pytest.approx(at / 16_000, abs=1e-6)
        at += len(chunk.samples)
    captured = chunks[0].captured_s  # not when it arrived, and not on PortAudio's own clock
    assert captured == pytest.approx(portaudio.streams[0].start_s - LATENCY_S, abs=0.2)
    assert source.drops["overflow"] == 1


def test_an_unplugged_microphone_is_opened_again(portaudio: PortAudio) -> None:
    portaudio.blocks = 10
    notes: list[str] = []
    with MicrophoneSource("usb", notice=notes.append) as source:
        chunks = read(source, 0.3)
    assert portaudio.opened == 2
    assert [s.device for s in portaudio.streams] == [2, 2]
    assert notes[0] == "microphone:2: it stopped; trying again"
    steps = np.diff([c.t_s for c in chunks])
    assert steps.max() > 0.2  # the outage is a gap
    assert steps.min() > 0


def test_which_device(portaudio: PortAudio) -> None:
    assert find_device(portaudio, None)[0] == 1
    assert find_device(portaudio, "2") == (2, "USB Microphone")
    assert find_device(portaudio, "webcam")[0] == 1
    portaudio.default.device = (-1, -1)
    assert find_device(portaudio, None)[0] == 1
    for wanted, words in (
        ("0", "no microphone 0; there are: 1: Webcam Microphone; 2: USB Microphone"),
        ("9", "no microphone 9"),
        ("headset", "no microphone headset"),
        ("microphone", "several microphones"),
    ):
        with pytest.raises(UsageError, match=words):
            find_device(portaudio, wanted)


def test_no_microphone_at_all(portaudio: PortAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portaudio, "query_devices", lambda: [])
    with pytest.raises(UsageError, match="no microphone; there are: none is connected"):
        MicrophoneSource()


def test_a_microphone_that_cannot_be_opened_is_one_line(portaudio: PortAudio) -> None:
    portaudio.fails = "Device unavailable\n[PaErrorCode -9985]"
    with pytest.raises(MediaError, match=r"\(Webcam Microphone\) cannot be opened") as caught:
        MicrophoneSource()
    assert "\n" not in str(caught.value)


def test_without_the_extra_or_portaudio_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(DependencyError, match=r"\.\[mic\]"):
        MicrophoneSource()

    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.delitem(sys.modules, "sounddevice")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(DependencyError, match="libportaudio2"):
        MicrophoneSource()


# With a camera


def camera(seconds: float, start_s: float = 0.0) -> Iterator[Chunk]:
    """25 pictures a second, on the monotonic clock."""
    start = time.monotonic()
    for i in range(round(seconds * 25)):
        pause(start + i / 25 - time.monotonic())
        yield VideoChunk(start_s + i / 25, lambda: picture(0), captured_s=start + i / 25)


def test_a_camera_and_a_microphone_share_one_clock(portaudio: PortAudio) -> None:
    joined = JoinedSource(ScriptedLive(camera(1.0)), MicrophoneSource())
    assert isinstance(joined, LiveSource)
    assert (joined.info.has_video, joined.info.has_audio) == (True, True)
    with joined, Feed(joined) as feed:
        chunks = []
        while not feed.ended:
            chunk = feed.get(0.1)
            if chunk is not None:
                chunks.append(chunk)
    assert feed.error is None
    assert not portaudio.streams[0]._thread.is_alive()
    video = [c for c in chunks if isinstance(c, VideoChunk)]
    sound = [c for c in chunks if isinstance(c, AudioChunk)]
    assert len(video) == 25
    assert len(sound) > 30
    zero = {round((c.captured_s or 0) - c.t_s, 6) for c in chunks}
    assert max(zero) - min(zero) < 1e-5  # the same stream second is the same moment
    assert video[0].t_s == 0.0
    assert 0 <= sound[0].t_s < 0.1
    assert sound[-1].t_s > 0.7


def test_pictures_go_on_when_the_sound_drops_out(portaudio: PortAudio) -> None:
    portaudio.blocks = 10
    source = MicrophoneSource()
    portaudio.fails = "gone"
    joined = JoinedSource(ScriptedLive(camera(1.0)), source)
    with joined, Feed(joined) as feed:
        video = 0
        while not feed.ended:
            video += isinstance(feed.get(0.1), VideoChunk)
    assert feed.error is None
    assert video == 25
    assert source.outages == 1
