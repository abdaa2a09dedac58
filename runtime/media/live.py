# SPDX-License-Identifier: Apache-2.0
"""What every live source does alike: it survives its own failures and ends when it is told to.

A connection that breaks off, stalls or ends is made again, first at once and then after pauses that
double up to :data:`MAX_PAUSE_S`.  Every outage is said when it begins and when it is over, and
counted.  Only a source that never gave anything is an error.  One that gives up, having waited
long enough, ends where it was lost: that was no outage.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from runtime.closing import Closing
from runtime.errors import MediaError
from runtime.media import Chunk, ClockReport, MediaInfo

FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 1.0  # and a window and a key picture more: verdicts are back within 5 s
Notice = Callable[[str], None]
Handle = TypeVar("Handle")


class StallError(MediaError):
    """Nothing came for too long."""


def silent(_: str) -> None:
    """A notice that nobody reads."""


class Reconnecting(Closing, ABC, Generic[Handle]):
    """Base of the live sources.

    A subclass says how to connect, what comes through one connection and how to let go of it; it
    connects in its constructor by :meth:`_begin`, so that what is wrong from the start is raised
    there.  ``notice`` is told each outage, from the iterating thread.
    """

    live = True
    paced = True
    patience_s = 2.0
    must_begin = True  # to give nothing at all is an error
    again = "trying again"  # what is done about an outage, in words

    def __init__(self, name: str, notice: Notice = silent) -> None:
        self.name = name
        self.info = MediaInfo(name, False, False, 0, 0, None, None)
        self.drops: Counter[str] = Counter()
        self.clock = ClockReport()
        self.outages = 0
        self.outage_s = 0.0  # in all, of those that are over
        self._notice = notice
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._handle: Handle | None = None
        self._iterating = False
        self._given = 0  # chunks of this connection
        self._last_outage = ""
        self._cut_off = ""  # why a stream of known length broke off
        self._through = False  # this was all: it is not to be connected to again

    @property
    def damaged(self) -> int:
        return self.drops["decode_error"] + self.drops["timestamp"]

    @property
    def warnings(self) -> list[str]:
        if self._cut_off:
            return [f"cut off: {self._cut_off}"]
        if not self.outages:
            return []
        times = "once" if self.outages == 1 else f"{self.outages} times"
        return [
            f"{self.name} was lost {times}, for {self.outage_s:.1f} s in all; the last time: "
            f"{self._last_outage}"
        ]

    def __iter__(self) -> Iterator[Chunk]:
        with self._lock:
            if self._stop.is_set():
                return
            self._iterating = True
        ever = False
        lost_s: float | None = None  # when the present outage began
        before = ""  # why the one before it began
        pause_s = FIRST_PAUSE_S
        try:
            while not self._stop.is_set():
                reason = self.ended
                try:
                    if self._handle is None:
                        self._handle = self._connect()
                    for chunk in self._chunks(self._handle):
                        if lost_s is not None:
                            self._recovered(lost_s)
                            lost_s, pause_s = None, FIRST_PAUSE_S
                        ever = True
                        yield chunk
                        if self._stop.is_set():
                            return
                except MediaError as err:
                    reason = str(err).removeprefix(f"{self.name}: ")
                    if isinstance(err, StallError):
                        self.drops["stall"] += 1
                    if not ever and self.must_begin:
                        raise
                    self._cut_off = "" if self.live else reason
                finally:
                    self._let_go()
                if not ever and self.must_begin and not self._stop.is_set():
                    raise MediaError(f"{self.name}: {reason} before it gave anything")
                if self._stop.is_set() or self._through or not self.live:
                    return
                if lost_s is None:
                    lost_s = time.monotonic()
                    self.outages += 1
                    before, self._last_outage = self._last_outage, reason
                    self._notice(f"{self.name}: {reason}; {self.again}")
                self._stop.wait(pause_s)
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
        finally:
            if lost_s is not None and self._through:
                self.outages, self._last_outage = self.outages - 1, before
            elif lost_s is not None:
                self.outage_s += time.monotonic() - lost_s
            with self._lock:
                self._iterating = False

    ended = "it ended"  # said when a connection ends without an error

    def close(self) -> None:
        """From any thread.  A connection that is being read is let go by the reader."""
        self._stop.set()
        with self._lock:
            if not self._iterating:
                self._let_go()

    def _begin(self) -> Handle:
        """The first connection."""
        self._handle = self._connect()
        return self._handle

    def _recovered(self, lost_s: float) -> None:
        seconds = time.monotonic() - lost_s
        self.outage_s += seconds
        self._notice(f"{self.name}: back after {seconds:.1f} s")

    def _let_go(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            self._release(handle)

    @abstractmethod
    def _connect(self) -> Handle:
        """Raises :class:`MediaError`."""

    @abstractmethod
    def _chunks(self, handle: Handle) -> Iterator[Chunk]:
        """What comes through one connection; raises :class:`MediaError` where it breaks off."""

    @abstractmethod
    def _release(self, handle: Handle) -> None: ...
