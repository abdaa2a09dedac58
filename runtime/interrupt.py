# SPDX-License-Identifier: Apache-2.0
"""SIGINT and SIGTERM: the first asks, the second ends at once.

A live source is meant to be stopped: the first signal ends it cleanly, with its summary.  Whatever
else a command does is broken off by the first one (``KeyboardInterrupt``).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupt:
    """Signals as something to look at: ``asked`` once one has come while ``graceful`` was set."""

    def __init__(self) -> None:
        self.graceful = False  # set while a live source is read
        self.reason = ""  # the signal's name
        self._asked = threading.Event()

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def ask(self, reason: str) -> None:
        """As if a signal had come; from any thread."""
        self.reason = self.reason or reason
        self._asked.set()

    def handle(self, number: int, _: FrameType | None) -> None:
        if not self.graceful or self.asked:
            raise KeyboardInterrupt
        self.ask(signal.Signals(number).name)

    @contextmanager
    def installed(self) -> Iterator[Interrupt]:
        """Handles both signals meanwhile; only the main thread can, elsewhere nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before: dict[signal.Signals, Any] = {
            number: signal.signal(number, self.handle) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
