# SPDX-License-Identifier: Apache-2.0
"""GStreamer's RTSP server as a camera on the network, on 127.0.0.1 alone.

It runs in a process of its own with the system's Python, which has Debian's GObject bindings.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

SYSTEM_PYTHON = "/usr/bin/python3"
RTSP_SCRIPT = Path(__file__).with_name("rtsp_server.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def why_no_rtsp_server() -> str | None:
    """Why GStreamer's RTSP server cannot run here, or None."""
    packages = "apt install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good"
    check = (
        "import gi; gi.require_version('GstRtspServer', '1.0');"
        "from gi.repository import Gst, GstRtspServer; Gst.init(None);"
        "need = 'qtdemux h264parse rtph264pay aacparse rtpmp4gpay'.split();"
        "exit(any(Gst.ElementFactory.find(n) is None for n in need))"
    )
    if shutil.which(SYSTEM_PYTHON) is None:
        return f"no {SYSTEM_PYTHON} to run an RTSP server"
    done = subprocess.run([SYSTEM_PYTHON, "-c", check], capture_output=True, check=False)
    return None if done.returncode == 0 else f"no RTSP server: {packages} (and -bad)"


class RtspServer:
    """GStreamer's RTSP server in a process of its own; ``kill`` and ``start`` as often as liked.

    options : of ``rtsp_server.py``
    """

    def __init__(self, clip: Path, *options: str) -> None:
        self._clip, self._options = clip, options
        self.port = free_port()
        self.url = f"rtsp://127.0.0.1:{self.port}/live"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> float:
        """Returns the moment when clients can come (monotonic seconds)."""
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, str(RTSP_SCRIPT), str(self._clip), str(self.port),
             *self._options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            start_new_session=True,  # Ctrl-C is for this process, which ends the server
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return time.monotonic()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
