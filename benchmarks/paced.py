# SPDX-License-Identifier: Apache-2.0
"""A source that gives out another one's chunks when their time has come, as a camera would."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType

from runtime.media import Chunk, ClockReport, MediaInfo, Source


class PacedSource:
    """Stands in for a camera: live, paced by the clock, each chunk stamped with its capture.

    open_ : opens the source again for every round of the loop
    seconds : how long it goes on; None: until it is closed
    delay_s : how long after the start its first chunk comes: cameras are not in step
    """

    live = True
    paced = True
    patience_s = 2.0
    clock = ClockReport()

    def __init__(
        self,
        open_: Callable[[], Source],
        *,
        name: str,
        seconds: float | None = None,
        delay_s: float = 0.0,
    ) -> None:
        self._open, self._seconds, self._delay_s = open_, seconds, delay_s
        self._closed = threading.Event()
        self.drops: Mapping[str, int] = {}
        self.damaged = 0
        self.warnings: list[str] = []
        with open_() as source:
            self.info: MediaInfo = replace(source.info, name=name, duration_s=None)

    def __iter__(self) -> Iterator[Chunk]:
        start_s = time.monotonic() + self._delay_s
        offset_s = 0.0
        while not self._closed.is_set():
            end_s = offset_s
            with self._open() as source:
                for chunk in source:
                    t_s = offset_s + chunk.t_s
                    if self._seconds is not None and t_s >= self._seconds:
                        return
                    end_s = max(end_s, t_s + 1 / (self.info.fps or 25.0))
                    due_s = start_s + t_s
                    if self._closed.wait(max(0.0, due_s - time.monotonic())):
                        return
                    yield replace(chunk, t_s=t_s, captured_s=due_s)
            offset_s = end_s

    def __enter__(self) -> PacedSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._closed.set()
