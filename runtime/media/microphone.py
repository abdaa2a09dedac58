# SPDX-License-Identifier: Apache-2.0
"""Sound of a microphone through PortAudio (sounddevice), on the monotonic clock.

PortAudio says of each block when its first sample was at the converter, on a clock of its own, and
what that clock shows now; so the block's age is known, and with it its place on the monotonic
clock.  :class:`runtime.media.clock.SoundClock` removes the drift of the converter against it.
Devices are opened at their own rate, which always works, and resampled like any other source.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from typing import Any

from runtime.errors import DependencyError, MediaError, UsageError
from runtime.media import AudioChunk, Chunk, MediaInfo, Samples
from runtime.media.clock import SoundClock
from runtime.media.decoding import Resampler, clean_samples, import_av
from runtime.media.live import Notice, Reconnecting, StallError, silent
from runtime.optional import optional

BLOCK_S = 0.02
MAX_BLOCKS = 500  # ten seconds wait at most
MAX_AGE_S = 2.0  # of a block; a driver that says otherwise is not believed
STALL_S = 2.0
INSTALL = "pip install '.[mic]'"
INSTALL_PORTAUDIO = "sudo apt install libportaudio2 (macOS: brew install portaudio)"


class MicrophoneSource(Reconnecting[Any]):
    """Iterates over a microphone's sound until it is closed; unplugged, it is opened again.

    Parameters
    ----------
    device : a number, or a part of a name (either case); None: the system's own choice
    sample_rate_hz : of the samples given out, mono

    Raises :class:`UsageError` for a device that is not there or not unique, :class:`MediaError`
    where it cannot be opened, :class:`DependencyError` without sounddevice or PortAudio.
    """

    ended = "it stopped"

    def __init__(
        self,
        device: str | None = None,
        *,
        sample_rate_hz: int = 16_000,
        notice: Notice = silent,
        stall_s: float = STALL_S,
    ) -> None:
        self._sd = _import_sounddevice()
        self._av = import_av()
        index, name = find_device(self._sd, device)
        super().__init__(f"microphone:{index}", notice)
        self._device, self._device_name = index, name
        self._device_hz = round(self._sd.query_devices(index)["default_samplerate"])
        self._rate_hz = sample_rate_hz
        self._stall_s = stall_s
        self._sound_clock = SoundClock(sample_rate_hz)
        self._start_s: float | None = None
        self._blocks: queue.Queue[tuple[float, Any]] = queue.Queue(MAX_BLOCKS)
        self.info = MediaInfo(self.name, False, True, 0, 0, None, None)
        self._begin()

    def _connect(self) -> Any:
        try:
            stream = self._sd.InputStream(
                samplerate=self._device_hz, blocksize=round(BLOCK_S * self._device_hz), channels=1,
                dtype="float32", device=self._device, callback=self._heard,
            )  # fmt: skip
            stream.start()
        except (self._sd.PortAudioError, ValueError) as err:
            raise MediaError(
                f"microphone {self._device} ({self._device_name}) cannot be opened: "
                f"{' '.join(str(err).split())}"
            ) from None
        return stream

    def _release(self, handle: Any) -> None:
        handle.close(ignore_errors=True)

    def _heard(self, samples: Any, count: int, times: Any, status: Any) -> None:
        """In PortAudio's thread: no waiting, no errors."""
        age_s = times.currentTime - times.inputBufferAdcTime
        if not (times.inputBufferAdcTime > 0 and 0 <= age_s <= MAX_AGE_S):
            age_s = count / self._device_hz
        if status.input_overflow:
            self.drops["overflow"] += 1
        try:
            self._blocks.put_nowait((time.monotonic() - age_s, samples[:, 0].copy()))
        except queue.Full:
            self.drops["sound_queue_full"] += 1

    def _chunks(self, handle: Any) -> Iterator[Chunk]:
        resampler = Resampler(self._av, self._rate_hz)
        taken = given = 0  # samples of the device, and after resampling
        heard = time.monotonic()
        while not self._stop.is_set():
            try:
                taken_s, block = self._blocks.get(timeout=0.1)
            except queue.Empty:
                if not handle.active:
                    return
                if time.monotonic() - heard > self._stall_s:
                    raise StallError(f"{self.name}: no sound for {self._stall_s:g} s") from None
                continue
            heard = time.monotonic()
            for piece in resampler.push(self._frame(block)):
                samples = clean_samples(piece)
                at_s = taken_s + given / self._rate_hz - taken / self._device_hz
                given += len(samples)
                yield self._placed(at_s, samples)
            taken += len(block)

    def _frame(self, block: Any) -> Any:  # [n]
        frame = self._av.AudioFrame.from_ndarray(block[None], "flt", "mono")
        frame.sample_rate = self._device_hz
        return frame

    def _placed(self, at_s: float, samples: Samples) -> AudioChunk:
        taken_s, samples = self._sound_clock.push(at_s, samples)
        self.clock = self._sound_clock.report
        if self._start_s is None:
            self._start_s = taken_s
        return AudioChunk(taken_s - self._start_s, samples, taken_s)


def find_device(sounddevice: Any, wanted: str | None) -> tuple[int, str]:
    """Number and name of an input; raises :class:`UsageError` where it is none or not unique."""
    inputs = {
        i: str(d["name"])
        for i, d in enumerate(sounddevice.query_devices())
        if d["max_input_channels"] > 0
    }
    listed = "; ".join(f"{i}: {name}" for i, name in inputs.items()) or "none is connected"
    if wanted is None:
        default = int(sounddevice.default.device[0])
        found = [default] if default in inputs else list(inputs)[:1]
    elif wanted.isdecimal():
        found = [int(wanted)] if int(wanted) in inputs else []
    else:
        found = [i for i, name in inputs.items() if wanted.lower() in name.lower()]
    if not found:
        which = "no microphone" if wanted is None else f"no microphone {wanted}"
        raise UsageError(f"{which}; there are: {listed}")
    if len(found) > 1:
        raise UsageError(f"several microphones are called {wanted}; there are: {listed}")
    return found[0], inputs[found[0]]


def _import_sounddevice() -> Any:
    try:
        with optional("for a microphone"):
            import sounddevice
    except OSError as err:  # it is there, the library that it loads is not
        raise DependencyError(f"PortAudio is needed for a microphone: {INSTALL_PORTAUDIO}") from err
    return sounddevice
