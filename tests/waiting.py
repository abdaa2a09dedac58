# SPDX-License-Identifier: Apache-2.0
"""Waiting in tests: the one place where they sleep, and where bounds on real time come from."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

PATIENCE_S = 60.0  # with what will surely happen, on a machine that is busy with other things


def wait_for(
    seen: Callable[[], Found], what: str = "it", *, timeout_s: float = PATIENCE_S
) -> Found:
    """What ``seen`` gives, as soon as it is true; fails with ``what`` was not seen in time."""
    deadline = time.monotonic() + timeout_s
    while not (found := seen()):
        assert time.monotonic() < deadline, f"never seen: {what}"
        time.sleep(0.005)
    return found


def pause(seconds: float) -> None:
    """Real time passes: where that is what the test is about."""
    time.sleep(max(0.0, seconds))


def patient(seconds: float) -> float:
    """A bound on what takes next to no time: longer by what else this machine has to do.

    What is bounded would take far longer, or for ever, if it were broken.
    """
    busy = os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 1.0
    return seconds * (2.0 + busy)
