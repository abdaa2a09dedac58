# SPDX-License-Identifier: Apache-2.0
"""A Jetson's CSI camera: ``csi://0``.

The image processor of a Jetson is reached through GStreamer's ``nvarguscamerasrc``, and pip's
OpenCV has no GStreamer.  So ``gst-launch-1.0`` runs as a child process and writes raw I420 pictures
into a pipe.  The child is ended and waited for in every case; if this process is killed, the child
ends at its next write.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime import leftovers
from runtime.address import public_name, scheme_of
from runtime.errors import DependencyError, MediaError, UsageError
from runtime.media import Chunk, Frame, MediaInfo, VideoChunk
from runtime.media.camera import import_cv2
from runtime.media.live import Notice, Reconnecting, StallError, silent

WIDTH, HEIGHT, FPS = 1280, 720, 30  # a mode of every sensor that NVIDIA supports
STALL_S = 5.0
END_S = 2.0  # for the child to end by itself
LAUNCH, INSPECT = "gst-launch-1.0", "gst-inspect-1.0"
ARGUS = "nvarguscamerasrc"

Child = subprocess.Popen[bytes]


def csi_sensor(source: str) -> int | None:
    """``csi://1`` -> 1; None: not a CSI camera.  Raises :class:`UsageError` for ``csi://x``."""
    if scheme_of(source) != "csi":
        return None
    found = re.fullmatch(r"csi://(\d{1,2})", source, re.IGNORECASE)
    if found is None:
        raise UsageError(
            f"{public_name(source)}: a CSI camera is csi:// and its number, such as csi://0"
        )
    return int(found[1])


def csi_name(sensor: int) -> str:
    return f"csi:{sensor}"


def argus(sensor: int) -> list[str]:
    """The elements that give raw I420 pictures of a sensor."""
    return [
        *(ARGUS, f"sensor-id={sensor}", "!"),
        f"video/x-raw(memory:NVMM),width={WIDTH},height={HEIGHT},framerate={FPS}/1",
        *("!", "nvvidconv", "!", f"video/x-raw,format=I420,width={WIDTH},height={HEIGHT}"),
    ]


class CsiSource(Reconnecting[Child]):
    """Iterates over a CSI camera's pictures until it is closed.

    ``elements`` is the pipeline up to raw I420 of ``size`` (width, height), for tests.

    Raises :class:`DependencyError` where GStreamer or NVIDIA's element is missing, and
    :class:`MediaError` where the camera gives nothing.
    """

    ended = "its GStreamer pipeline ended"

    def __init__(
        self,
        sensor: int = 0,
        *,
        name: str | None = None,
        notice: Notice = silent,
        elements: Sequence[str] | None = None,
        size: tuple[int, int] = (WIDTH, HEIGHT),
        stall_s: float = STALL_S,
    ) -> None:
        super().__init__(name or csi_name(sensor), notice)
        self._cv2 = import_cv2("a CSI camera")
        if elements is None:
            _need_argus()
        self._elements = list(elements or argus(sensor))
        self._size = size
        self._stall_s = stall_s
        self._start_s: float | None = None
        self.info = MediaInfo(self.name, True, False, *size, float(FPS), None)
        self._begin()

    def _connect(self) -> Child:
        command = [LAUNCH, "-q", *self._elements, "!", "fdsink", "fd=1", "sync=false"]
        try:
            with leftovers.unbroken():
                return subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL, bufsize=0,
                    start_new_session=True,  # Ctrl-C is for this process; it ends the child itself
                )  # fmt: skip
        except OSError as err:
            raise MediaError(f"{self.name}: cannot start {LAUNCH} ({err.strerror})") from None

    def _chunks(self, handle: Child) -> Iterator[Chunk]:
        width, height = self._size
        while True:
            data = self._read(handle, width * height * 3 // 2)
            now = time.monotonic()
            if data is None:
                return
            if self._start_s is None:
                self._start_s = now
            planes = np.frombuffer(data, np.uint8).reshape(height * 3 // 2, width)
            yield VideoChunk(now - self._start_s, partial(self._to_rgb, planes), now)

    def _read(self, child: Child, size: int) -> bytes | None:
        """One picture; None: the pipeline has ended."""
        import select

        assert child.stdout is not None
        data = bytearray()
        deadline = time.monotonic() + self._stall_s
        while len(data) < size:
            if self._stop.is_set():
                return None
            if time.monotonic() > deadline:
                raise StallError(f"{self.name}: no picture for {self._stall_s:g} s")
            ready, _, _ = select.select([child.stdout], [], [], 0.1)
            if ready:
                piece = child.stdout.read(size - len(data))
                if not piece:
                    return None
                data += piece
        return bytes(data)

    def _to_rgb(self, planes: NDArray[Any]) -> Frame:  # [H * 3/2, W] -> [H, W, 3]
        rgb: Frame = self._cv2.cvtColor(planes, self._cv2.COLOR_YUV2RGB_I420)
        return rgb

    def _release(self, handle: Child) -> None:
        handle.terminate()
        try:
            handle.wait(END_S)
        except subprocess.TimeoutExpired:
            handle.kill()
            handle.wait()
        with suppress(OSError):
            if handle.stdout is not None:
                handle.stdout.close()


def _need_argus() -> None:
    if shutil.which(LAUNCH) is None or shutil.which(INSPECT) is None:
        raise DependencyError(
            f"{LAUNCH} is needed for a CSI camera: sudo apt install gstreamer1.0-tools"
        )
    known = subprocess.run([INSPECT, "--exists", ARGUS], capture_output=True, check=False)
    if known.returncode != 0:
        raise DependencyError(
            f"GStreamer's {ARGUS} is needed for a CSI camera: it is part of a Jetson's JetPack "
            "(sudo apt install nvidia-l4t-gstreamer)"
        )
