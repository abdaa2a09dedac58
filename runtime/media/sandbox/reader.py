# SPDX-License-Identifier: Apache-2.0
"""A file that is decoded in a process of its own, with limits on its memory and on its time.

The same pictures and sound as :class:`runtime.media.file.FileSource`, bit by bit (which of the two
comes first depends on when FFmpeg's threads are ready, in either), with one difference: a file
that makes FFmpeg crash, hang or ask for all there is ends as a :class:`MediaError` of one line, and
the program, with its other streams, goes on.  It takes about 0.3 s and 60 MB more, and on a machine
with a second core decoding costs the judge nothing.

What comes from the decoder is not believed: sizes, shapes and numbers are checked before anything
is made of them, and nothing of it is ever run (the form is JSON and plain arrays, see
:mod:`runtime.media.sandbox.decoder`).
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from runtime import interrupt, leftovers
from runtime.closing import Closing
from runtime.errors import DependencyError, MediaError, UsageError, UserError
from runtime.media import AudioChunk, MediaInfo, VideoChunk
from runtime.media.decoding import MAX_SIDE_PX, MAX_SOUND_HZ
from runtime.media.file import OriginalSound, SoundFormat, SoundPacket, local_file
from runtime.media.local_files import to_reopen
from runtime.media.picking import Tracks
from runtime.naming import name_of_file

MEMORY_MB = 2000  # of address space; two threads decode 8K in half of it
STALL_S = 30.0  # without a picture, a sound or the end
POLL_S = 0.1  # how soon a signal is seen meanwhile
PIPE_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 20
MAX_SAMPLES = 16_000_000  # in one chunk
MAX_COUNT = 1 << 53
MAX_TICKS = 1 << 30  # in a time base
MAX_EXTRA_BYTES = 1 << 16  # of a codec's header
MAX_PACKET_BYTES = 1 << 20  # of sound; a tenth of a second has a few thousand
MAX_TIME_S = 1e12
NAME = re.compile(r"[\w.() ]{1,24}")  # of channels, as FFmpeg names it: 5.1(side)
ERRORS: dict[str, type[UserError]] = {
    kind.__name__: kind for kind in (MediaError, UsageError, DependencyError)
}
START = (  # modules are found where this process finds them
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from runtime.media.sandbox.decoder import main; main()"
)


class IsolatedFile(Closing):
    """Iterates once over a file's pictures and sound in decode order.

    Parameters
    ----------
    path : file of one of the formats of :class:`runtime.media.file.FileSource`
    name : what it is called; default: its path
    sample_rate_hz : to which sound is resampled (and mixed down to mono)
    tracks : which of several; by default those that players play
    memory_mb : that decoding may take (Linux)
    stall_s : how long a picture or a piece of sound may take
    command : what to start instead of our decoder, for tests

    Raises, besides what FileSource raises, :class:`MediaError` for a decoder that crashes, takes
    more than it may, or says what cannot be.
    """

    live = False

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        sample_rate_hz: int = 16_000,
        tracks: Tracks | None = None,
        memory_mb: int = MEMORY_MB,
        stall_s: float = STALL_S,
        command: Sequence[str] | None = None,
    ) -> None:
        self._path = local_file(path)
        self._name = name_of_file(self._path) if name is None else name
        self._file = to_reopen(self._path)
        self._stall_s = stall_s
        self._reached_s = 0.0
        self._reading = threading.RLock()  # a handle is not closed while another thread reads it
        self._closed = False
        self.damaged = 0
        self.warnings: list[str] = []
        self._child = _start(
            command
            or _command(
                self._file,
                self._name,
                memory_mb,
                "decode",
                str(sample_rate_hz),
                json.dumps(dataclasses.astuple(tracks or Tracks())),
            )
        )
        try:
            header, _ = self._receive()
            if header["kind"] != "info":
                self._refuse(f"begins with {header['kind']!r}")
            self.info = self._checked_info(header)
            self.original_sound = self._checked_sound(header)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[VideoChunk | AudioChunk]:
        while True:
            header, data = self._receive()
            self.damaged = self._number(header, "damaged", MAX_COUNT, whole=True)
            if header["kind"] == "end":
                self.warnings += self._checked_warnings(header)
                return
            t_s = self._number(header, "t_s", MAX_TIME_S, least=-MAX_TIME_S)
            self._reached_s = t_s
            if header["kind"] == "video":
                frame = data.reshape(self._checked_shape(header, len(data)))  # [H, W, 3]
                yield VideoChunk(t_s, lambda frame=frame: frame)  # type: ignore[misc]
            elif header["kind"] == "audio" and data.nbytes % 4 == 0:
                yield AudioChunk(t_s, data.view(np.float32))  # [n]
            else:
                self._refuse(f"sends {header['kind']!r} of {data.nbytes} bytes")

    @property
    def pid(self) -> int:
        """Of the decoder, for whoever watches what it takes."""
        return self._child.pid

    def close(self) -> None:
        """Ends the decoder, wherever it is; a thread that waits for it gets a MediaError."""
        self._closed = True
        self._child.kill()
        self._child.wait()
        with self._reading:  # soon: the end of the decoder is the end of its pipe
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    pipe.close()

    def sound_format(self) -> SoundFormat:
        """Of a decoder that copies sound; to be asked before the packets."""
        header, data = self._receive()
        base, codec, layout = (header.get(name) for name in ("time_base", "codec", "layout"))
        rate_hz = self._number(header, "sample_rate_hz", MAX_SOUND_HZ, least=1, whole=True)
        if not isinstance(codec, str) or not isinstance(layout, str) or not NAME.fullmatch(layout):
            self._refuse(f"says the sound is {codec!r}, {layout!r}")
        if header["kind"] != "format" or len(data) > MAX_EXTRA_BYTES:
            self._refuse(f"sends {header['kind']!r} of {len(data)} bytes")
        if (
            not isinstance(base, list)
            or len(base) != 2
            or not all(isinstance(n, int) and 0 < n <= MAX_TICKS for n in base)
        ):
            self._refuse(f"says a tick is {base!r}")
        return SoundFormat(codec, rate_hz, layout, Fraction(*base), data.tobytes())

    def sound_packet(self) -> SoundPacket | None:
        """The next one; None: that was all."""
        header, data = self._receive()
        if header["kind"] == "end":
            self.warnings += self._checked_warnings(header)
            return None
        if header["kind"] != "packet" or not 0 < len(data) <= MAX_PACKET_BYTES:
            self._refuse(f"sends {header['kind']!r} of {len(data)} bytes")
        pts, dts = (
            self._number(header, name, MAX_COUNT, least=-MAX_COUNT, whole=True)
            for name in ("pts", "dts")
        )
        duration = self._number(header, "duration", MAX_COUNT, whole=True)
        return SoundPacket(pts, dts, duration, data.tobytes())

    # --- messages -----------------------------------------------------------------------------

    def _receive(self) -> tuple[dict[str, Any], Any]:
        """Header and payload (uint8) of the next message; an error that it tells is raised."""
        deadline = time.monotonic() + self._stall_s
        length = int.from_bytes(self._read(4, deadline), "little")
        if length > MAX_HEADER_BYTES:
            self._refuse(f"sends a header of {length} bytes")
        try:
            header = json.loads(bytes(self._read(length, deadline)))
            kind, size = header["kind"], header["size"]
        except (ValueError, TypeError, KeyError, RecursionError):
            self._refuse("sends no message")
        if not isinstance(kind, str) or not isinstance(size, int):
            self._refuse("sends no message")
        if not 0 <= size <= max(3 * MAX_SIDE_PX**2, 4 * MAX_SAMPLES):
            self._refuse(f"sends {size} bytes at once")
        data = np.frombuffer(self._read(size, deadline), np.uint8)
        if kind == "error":
            name, message = header.get("error"), str(header.get("message"))
            if name in ERRORS:
                raise ERRORS[name](message)
            raise RuntimeError(f"the decoder of {self._name} failed:\n{message}")
        return header, data

    def _read(self, size: int, deadline: float) -> bytearray:
        out = self._child.stdout
        assert out is not None
        data = bytearray(size)
        left = memoryview(data)
        with self._reading:
            if self._closed:
                self._gone()
            poll = select.poll()
            poll.register(out, select.POLLIN)
            while left:
                while not poll.poll(POLL_S * 1000):
                    interrupt.check()
                    if time.monotonic() >= deadline:
                        raise MediaError(
                            f"{self._name}: decoding hangs: nothing for {self._stall_s:g} s "
                            f"{self._where}"
                        )
                got = out.readinto(left)  # type: ignore[attr-defined]
                if not got:
                    self._gone()
                left = left[got:]
        return data

    @property
    def _where(self) -> str:
        return f"after {self._reached_s:.1f} s"

    def _gone(self) -> NoReturn:
        """The decoder ended in the middle."""
        if self._closed:
            raise MediaError(f"{self._name}: closed {self._where}; open it anew to read on")
        code = self._child.wait()
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        raise MediaError(
            f"{self._name}: the decoder crashed ({how}) {self._where}; the file is damaged or "
            "hostile, or there is no memory left"
        )

    # --- what is not believed -----------------------------------------------------------------

    def _refuse(self, what: str) -> NoReturn:
        raise MediaError(f"{self._name}: its decoder {what[:80]}, which cannot be; not read on")

    def _number(
        self, fields: Any, name: str, most: float, *, least: float = 0, whole: bool = False
    ) -> Any:
        value = fields.get(name)
        fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not fits or not least <= value <= most:
            self._refuse(f"says {name} is {value!r}")
        return value

    def _checked_info(self, header: dict[str, Any]) -> MediaInfo:
        said = header.get("info")
        if not isinstance(said, dict):
            self._refuse("says nothing of the file")
        for name in ("has_video", "has_audio"):
            if not isinstance(said.get(name), bool):
                self._refuse(f"says {name} is {said.get(name)!r}")
        width, height = (
            self._number(said, side, 1 << 16, whole=True) for side in ("width", "height")
        )
        fps, duration_s = (
            None if said.get(name) is None else float(self._number(said, name, math.inf))
            for name in ("fps", "duration_s")
        )
        return MediaInfo(
            self._name, said["has_video"], said["has_audio"], width, height, fps, duration_s
        )

    def _checked_sound(self, header: dict[str, Any]) -> OriginalSound | None:
        said = header.get("sound")
        if not isinstance(said, dict):
            return None
        zero_s = said.get("zero_s")
        if not isinstance(zero_s, float) or not math.isfinite(zero_s):
            self._refuse(f"says the start is {zero_s!r}")
        return OriginalSound(self._path, self._number(said, "index", 1 << 16, whole=True), zero_s)

    def _checked_shape(self, header: dict[str, Any], size: int) -> tuple[int, int, int]:
        shape = header.get("shape")
        if (
            not isinstance(shape, list)
            or len(shape) != 3
            or not all(isinstance(n, int) and 0 < n <= MAX_SIDE_PX for n in shape)
            or shape[2] != 3
            or math.prod(shape) != size
        ):
            self._refuse(f"sends a picture of shape {shape!r} in {size} bytes")
        return shape[0], shape[1], shape[2]

    def _checked_warnings(self, header: dict[str, Any]) -> list[str]:
        said = header.get("warnings")
        if not isinstance(said, list) or not all(isinstance(line, str) for line in said):
            self._refuse("ends without its warnings")
        return said


class IsolatedSound(Closing):
    """The sound of a file as it is, packet by packet, read in a process of its own.

    Raises as :class:`IsolatedFile` does, also while the packets are read.  ``warnings`` is complete
    at their end.
    """

    def __init__(
        self,
        original: OriginalSound,
        *,
        memory_mb: int = MEMORY_MB,
        stall_s: float = STALL_S,
        command: Sequence[str] | None = None,
    ) -> None:
        path = original.path
        self.warnings: list[str] = []
        self._decoder = IsolatedFile(
            path,
            stall_s=stall_s,
            command=command
            or _command(
                to_reopen(path), name_of_file(path), memory_mb, "copy", str(original.stream_index)
            ),
        )
        try:
            self.format = self._decoder.sound_format()
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[SoundPacket]:
        while (packet := self._decoder.sound_packet()) is not None:
            yield packet
        self.warnings = self._decoder.warnings

    def close(self) -> None:
        """From any thread, as of :class:`IsolatedFile`."""
        self._decoder.close()


def _command(file: Path, name: str, memory_mb: int, what: str, *about: str) -> list[str]:
    said = (str(file), name, str(memory_mb), what, *about)
    return [sys.executable, "-I", "-c", START, json.dumps(sys.path), *said]


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    with leftovers.unbroken():
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # it has nothing to multiply
            start_new_session=True,  # Ctrl-C is for this process; it ends the decoder itself
        )
    if hasattr(fcntl, "F_SETPIPE_SZ") and child.stdout is not None:
        with suppress(OSError):  # more than this user may: slower, not wrong
            fcntl.fcntl(child.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return child
