# SPDX-License-Identifier: Apache-2.0
"""What a building process may do instead of building; run by spawn, so in a module of their own."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

from export.builder import Request
from runtime.errors import ModelError


def killed(pipe: Connection, request: Request, scratch: Path) -> None:
    """As the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def ended(pipe: Connection, request: Request, scratch: Path) -> None:
    """As a C++ library does that calls std::terminate."""
    (scratch / "stderr").write_text("first\nterminate called\n")
    os._exit(134)


def refused(pipe: Connection, request: Request, scratch: Path) -> None:
    pipe.send(("refused", ModelError("no such layer")))


def broken(pipe: Connection, request: Request, scratch: Path) -> None:
    pipe.send(("bug", "Traceback: KeyError"))


def endless(pipe: Connection, request: Request, scratch: Path) -> None:
    pipe.send(("step", str(os.getpid())))
    time.sleep(600)
