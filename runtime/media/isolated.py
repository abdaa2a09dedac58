# SPDX-License-Identifier: Apache-2.0
"""A file that is decoded in a process of its own, with limits on its memory and on its time.

The same pictures and sound as :class:`runtime.media.file.FileSource`, bit by bit (which of the two
comes first depends on when FFmpeg's threads are ready, in either), with one difference: a file
that makes FFmpeg crash, hang or ask for all there is ends as a :class:`MediaError` of one line, and
the program, with its other streams, goes on.  It takes about 0.3 s and 60 MB more, and on a machine
with a second core decoding costs the judge nothing.

What comes from the decoder is not believed: sizes, shapes and numbers are checked before anything
is made of them, and nothing of it is ever run (the form is JSON and plain arrays, see
:mod:`runtime.media.decoder_process`).
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import numpy as np

from runtime.closing import Closing
from runtime.errors import DependencyError, MediaError, UsageError, UserError
from runtime.media import AudioChunk, MediaInfo, VideoChunk
from runtime.media.decoding import MAX_SIDE_PX
from runtime.media.file import OriginalSound, local_file

MEMORY_MB = 2000  # of address space; two threads decode 8K in half of it
STALL_S = 30.0  # without a picture, a sound or the end
PIPE_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 20
MAX_SAMPLES = 16_000_000  # in one chunk
MAX_COUNT = 1 << 53
MAX_TIME_S = 1e12
ERRORS: dict[str, type[UserError]] = {
    kind.__name__: kind for kind in (MediaError, UsageError, DependencyError)
}
START = (  # modules are found where this process finds them
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from runtime.media.decoder_process import main; main()"
)


class IsolatedFile(Closing):
    """Iterates once over a file's pictures and sound in decode order.

    Parameters
    ----------
    path : file of one of the formats of :class:`runtime.media.file.FileSource`
    sample_rate_hz : to which sound is resampled (and mixed down to mono)
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
        sample_rate_hz: int = 16_000,
        memory_mb: int = MEMORY_MB,
        stall_s: float = STALL_S,
        command: Sequence[str] | None = None,
    ) -> None:
        self._path = local_file(path)
        self._stall_s = stall_s
        self._reached_s = 0.0
        self._reading = threading.RLock()  # a handle is not closed while another thread reads it
        self._closed = False
        self.damaged = 0
        self.warnings: list[str] = []
        self._child = _start(
            command
            or [
                *(sys.executable, "-I", "-c", START, json.dumps(sys.path)),
                *(str(self._path), str(sample_rate_hz), str(memory_mb)),
            ]
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
            raise RuntimeError(f"the decoder of {self._path} failed:\n{message}")
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
                wait_s = deadline - time.monotonic()
                if wait_s <= 0 or not poll.poll(wait_s * 1000):
                    raise MediaError(
                        f"{self._path}: decoding hangs: nothing for {self._stall_s:g} s "
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
            raise MediaError(f"{self._path}: closed {self._where}; open it anew to read on")
        code = self._child.wait()
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        raise MediaError(
            f"{self._path}: the decoder crashed ({how}) {self._where}; the file is damaged or "
            "hostile, or there is no memory left"
        )

    # --- what is not believed -----------------------------------------------------------------

    def _refuse(self, what: str) -> NoReturn:
        raise MediaError(f"{self._path}: its decoder {what[:80]}, which cannot be; not read on")

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
        name = str(self._path).encode("utf-8", "replace").decode()
        return MediaInfo(name, said["has_video"], said["has_audio"], width, height, fps, duration_s)

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


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
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
