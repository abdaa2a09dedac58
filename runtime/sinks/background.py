# SPDX-License-Identifier: Apache-2.0
"""A sink behind a bounded queue and a thread of its own: slow, hanging or broken, it stalls nobody.

* A live stream never waits for a sink: what finds the queue full is lost, and counted.
* A file can wait, so it does, and loses nothing, for up to ``patience_s``; a sink that took nothing
  for so long is switched off.
* A sink that raises is switched off with one line.  The stream goes on without it.
* At the end a sink has :data:`DRAIN_S` to work off its queue; then it is given up.

Whatever went wrong is in :meth:`Worker.notes`, and :attr:`Worker.error` says whether the output
that somebody asked for is complete.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from runtime import interrupt
from runtime.errors import UserError
from runtime.flow.sink import MediaSink, Picture, ScoresSink, Sink, StartSink
from runtime.judging.verdict import Verdict
from runtime.media import AudioChunk
from runtime.naming import plain
from runtime.waits import POLL_S

if TYPE_CHECKING:
    from runtime.flow.summary import Summary
    from runtime.flow.windows import WindowRecord

MAX_ITEMS = 2000  # in the queue; verdicts of one face for 400 s
MAX_PICTURE_BYTES = 64 << 20  # of the pictures in the queue; 23 of 1280x720
PATIENCE_S = 30.0  # that a file waits for room
DRAIN_S = 20.0  # for the queue at the end

QUEUE_FULL = "queue full"
SWITCHED_OFF = "switched off"
GIVEN_UP = "given up at the end"
END = "end"
PLURALS = {"piece of sound": "pieces of sound"}


def say(line: str) -> None:
    print(f"warning: {plain(line)}", file=sys.stderr, flush=True)


class Worker:
    """Calls, one after the other, in a thread; the queue is bounded and losses have a cause.

    Parameters
    ----------
    name : what lines call it, such as ``--report talk.html``
    patience_s : how long :meth:`put` may wait for room; 0 for a live stream
    tell : gets the one line when it is switched off, in whichever thread that happens
    """

    def __init__(
        self,
        name: str,
        *,
        patience_s: float = 0.0,
        max_items: int = MAX_ITEMS,
        tell: Callable[[str], None] = say,
    ) -> None:
        self.name = name
        self.error: str | None = None  # why it was switched off or given up
        self.lost: Counter[tuple[str, str]] = Counter()  # (what, cause) -> how often
        self._patience_s, self._max_items, self._tell = patience_s, max_items, tell
        self._queue: deque[tuple[str, Callable[[], None], int]] = deque()
        self._bytes = 0  # of the pictures in the queue
        self._busy: str | None = None  # what is being worked on
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def put(
        self, what: str, call: Callable[[], None], size: int = 0, *, must: bool = False
    ) -> bool:
        """Queue a call; False where it is lost.  ``must``: it finds room in a full queue."""
        with self._changed:
            if self._closing or self.error is not None:
                self.lost[what, SWITCHED_OFF] += 1
                return False
            if not must and not self._has_room(size) and not self._wait_for_room(size):
                if self.error is None:
                    self.lost[what, QUEUE_FULL] += 1
                else:
                    self.lost[what, SWITCHED_OFF] += 1
                return False
            self._queue.append((what, call, size))
            self._bytes += size
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return True

    def close(self, drain_s: float = DRAIN_S) -> None:
        """Work the queue off, or give it up after ``drain_s``; calling it twice is fine.

        Raises KeyboardInterrupt in the main thread where a signal comes while it waits; what is
        left is then given up by the next call.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is None:
            return
        end_s = time.monotonic() + drain_s
        while self._thread.is_alive() and (left_s := end_s - time.monotonic()) > 0:
            interrupt.check()
            self._thread.join(min(left_s, POLL_S))
        if self._thread.is_alive() and self.error is None:
            self._switch_off(f"not done {drain_s:g} s after the end: given up", GIVEN_UP)

    def abandon(self) -> None:
        """Drop what is queued and wait for nothing."""
        with self._changed:
            self._closing = True
            self._queue.clear()
            self._bytes = 0
            self._changed.notify_all()

    def notes(self) -> list[str]:
        """What was lost, and why, for the summary; nothing when all went well."""
        lost = [
            f"{n} {what if n == 1 else PLURALS.get(what, what + 's')} ({cause})"
            for (what, cause), n in self.lost.items()
            if what != END
        ]
        lines = [self.error] if self.error else []
        lines += ["lost: " + ", ".join(lost)] if lost else []
        return [f"{self.name}: {'; '.join(lines)}"] if lines else []

    def _has_room(self, size: int) -> bool:
        fits = not size or not self._bytes or self._bytes + size <= MAX_PICTURE_BYTES
        return fits and len(self._queue) < self._max_items

    def _wait_for_room(self, size: int) -> bool:
        """Holds the lock, apart from the waiting."""
        if not self._patience_s:
            return False
        end = time.monotonic() + self._patience_s
        while not self._has_room(size):
            if self.error is not None:
                return False
            waiting = len(self._queue)
            self._changed.wait(max(0.0, end - time.monotonic()))
            if len(self._queue) < waiting:  # it works, if slowly
                end = time.monotonic() + self._patience_s
            elif time.monotonic() >= end:
                self._switch_off(f"took nothing for {self._patience_s:g} s: {SWITCHED_OFF}")
                return False
        return True

    def _switch_off(self, why: str, cause: str = SWITCHED_OFF) -> None:
        with self._changed:
            if self.error is not None:
                return
            self.error = why
            waiting = [what for what, _, _ in self._queue]
            for what in [self._busy, *waiting] if self._busy else waiting:
                self.lost[what, cause] += 1
            self._queue.clear()
            self._bytes = 0
            self._changed.notify_all()
        self._tell(f"{self.name}: {why}")

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    if self._closing or self.error is not None:
                        return
                    self._changed.wait()
                what, call, size = self._queue.popleft()
                self._bytes -= size
                self._busy = what
                self._changed.notify_all()
            try:
                call()
            except Exception as err:
                self._switch_off(f"{_one_line(err)}: {SWITCHED_OFF}")
                return
            self._busy = None


class Background:
    """A :class:`Sink` behind a :class:`Worker`; make one with :func:`in_background`."""

    def __init__(self, sink: Sink, worker: Worker) -> None:
        self.sink = sink
        self.worker = worker

    def begin(self, summary: Summary) -> None:
        if isinstance(self.sink, StartSink):
            self.sink.begin(summary)  # it is quick, and nothing waits yet

    def scores(self, record: WindowRecord) -> None:
        sink = self.sink
        if isinstance(sink, ScoresSink):
            self.worker.put("score", lambda: sink.scores(record))

    def write(self, verdict: Verdict) -> None:
        self.worker.put("verdict", lambda: self.sink.write(verdict))


class MediaBackground(Background):
    """A :class:`MediaSink` behind a :class:`Worker`."""

    sink: MediaSink

    def picture(self, picture: Picture) -> None:
        size = picture.frame.nbytes
        self.worker.put("picture", lambda: self.sink.picture(picture), size)

    def sound(self, source: str, chunk: AudioChunk) -> None:
        self.worker.put("piece of sound", lambda: self.sink.sound(source, chunk))

    def end(self, summary: Summary) -> None:
        self.worker.put(END, lambda: self.sink.end(summary), must=True)


def in_background(
    sink: Sink, name: str, *, live: bool, tell: Callable[[str], None] = say
) -> Background:
    """``live``: never wait for it; otherwise lose nothing while it works at all."""
    worker = Worker(name, patience_s=0.0 if live else PATIENCE_S, tell=tell)
    if isinstance(sink, MediaSink):
        return MediaBackground(sink, worker)
    return Background(sink, worker)


def _one_line(err: Exception) -> str:
    text = plain(str(err))
    return text if isinstance(err, UserError) else f"{type(err).__name__}: {text}"
