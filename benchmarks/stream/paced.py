# SPDX-License-Identifier: Apache-2.0
"""A source that gives out another one's chunks when their time has come, as a camera would."""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from runtime.closing import Closing
from runtime.media import AudioChunk, Chunk, ClockReport, MediaInfo, Source, VideoChunk

MAX_AHEAD_S = 1.0  # how far pictures and sound of a file may be apart before order gives way


class PacedSource(Closing):
    """Stands in for a camera: live, paced by the clock, each chunk stamped with its capture.

    A picture comes at its time, a block of sound when its last sample has been heard, in that
    order: a file may hold a picture a tenth of a second behind the sound that belongs to it.

    open_ : opens the source again for every round of the loop
    seconds : how long it goes on; None: until it is closed
    delay_s : how long after the start its first chunk comes: cameras are not in step
    sample_rate_hz : of the inner source's sound
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
        sample_rate_hz: int = 16_000,
    ) -> None:
        self._open, self._seconds, self._delay_s = open_, seconds, delay_s
        self._rate_hz = sample_rate_hz
        self._closed = threading.Event()
        self.drops: Mapping[str, int] = {}
        self.damaged = 0
        self.warnings: list[str] = []
        self.read_s = 0.0  # that the inner source took to make its chunks, ahead of their time
        with open_() as source:
            self.info: MediaInfo = replace(source.info, name=name, duration_s=None)

    def __iter__(self) -> Iterator[Chunk]:
        start_s = time.monotonic() + self._delay_s
        offset_s = 0.0
        while not self._closed.is_set():
            end_s = offset_s
            with self._open() as source:
                for ready_s, chunk in self._in_order(source):
                    t_s = offset_s + chunk.t_s
                    if self._seconds is not None and t_s >= self._seconds:
                        return
                    end_s = max(end_s, t_s + 1 / (self.info.fps or 25.0))
                    due_s = start_s + offset_s + ready_s
                    if self._closed.wait(max(0.0, due_s - time.monotonic())):
                        return
                    yield replace(chunk, t_s=t_s, captured_s=start_s + t_s)
            offset_s = end_s

    def _in_order(self, source: Source) -> Iterator[tuple[float, Chunk]]:
        """Chunks with the time at which each is there as a whole, by that time."""
        waiting: list[tuple[float, int, Chunk]] = []  # a heap; the number keeps ties in order
        kinds = ((VideoChunk, self.info.has_video), (AudioChunk, self.info.has_audio))
        reached: dict[type, float] = {kind: -math.inf for kind, there in kinds if there}
        for number, chunk in enumerate(self._timed(source)):
            ready_s = chunk.t_s
            if isinstance(chunk, AudioChunk):
                ready_s += chunk.samples.size / self._rate_hz
            heapq.heappush(waiting, (ready_s, number, chunk))
            reached[type(chunk)] = ready_s
            safe_s = max(min(reached.values()), max(reached.values()) - MAX_AHEAD_S)
            while waiting and waiting[0][0] <= safe_s:
                ready_s, _, first = heapq.heappop(waiting)
                yield ready_s, first
        while waiting:
            ready_s, _, first = heapq.heappop(waiting)
            yield ready_s, first

    def _timed(self, source: Source) -> Iterator[Chunk]:
        chunks = iter(source)
        while True:
            start = time.perf_counter()
            chunk = next(chunks, None)
            self.read_s += time.perf_counter() - start
            if chunk is None:
                return
            yield chunk

    def close(self) -> None:
        self._closed.set()
