# SPDX-License-Identifier: Apache-2.0
"""A browser's camera and microphone as a source.  What knows WebRTC is in :mod:`runtime.web.rtc`.

Clock.  Each RTP track counts from a random start in a clock of its own; what relates them are the
RTCP sender reports, which say for one moment of a track what the sender's wall clock showed (RFC
3550, section 6.4.1).  Media is held back until both tracks have been reported on, a few seconds
at most; from then on every report moves the track's offset a little, so a sound card that runs fast
is followed.  Where no report comes, arrival has to do, and a warning says so.

Back-pressure.  Sound is kept, pictures are cheap to lose: when the model falls behind, the oldest
waiting picture goes (a second of them waits at most) and is counted.

Outages.  A tab that is closed, reloaded or silent is one, as a camera's that was pulled out: for
:data:`RETURN_WAIT_S` the stream waits for the same or another browser and goes on where the wall
clock is.  Whoever presses Stop on the page ends it at once.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from statistics import median

from runtime import interrupt
from runtime.errors import MediaError
from runtime.media import AudioChunk, Chunk, Frame, MediaInfo, Samples, VideoChunk
from runtime.media.clock import LiveClock
from runtime.media.live import Notice, Reconnecting, silent
from runtime.media.open import BROWSER

RETURN_WAIT_S = 30.0  # that a browser which has gone, or another one, may take to begin again
REPORT_WAIT_S = 6.0  # browsers report on sound every 5 s and sooner at the start
SLEW = 0.05  # seconds a second by which a track's offset moves at most: its time never runs back
REPORTS_KEPT = 9  # whose median is the offset of a track: single ones are off by milliseconds
MAX_QUEUED_PICTURES = 25  # a second
MAX_QUEUED_SOUND = 500  # pieces of 20 ms
POLL_S = 0.2  # so that Ctrl-C is noticed on every platform
BY_ARRIVAL = (
    "the browser did not say how picture and sound belong together (no RTCP sender reports): "
    "they are aligned by arrival, to about 0.1 s"
)


class SharedClock:
    """One clock for both tracks of one sender.

    kinds : the tracks that there are, of ``video`` and ``audio``
    now : seconds on a clock that never goes back
    """

    def __init__(self, kinds: frozenset[str], now: Callable[[], float] = time.monotonic) -> None:
        self._kinds, self._now = kinds, now
        self._reports: dict[str, deque[float]] = {k: deque(maxlen=REPORTS_KEPT) for k in kinds}
        self._arrivals: dict[str, float] = {}  # smallest (arrival - timestamp) so far
        self._started: float | None = None
        self._by_arrival: dict[str, float] | None = None
        self._offsets: dict[str, tuple[float, float]] = {}  # in use, and since which timestamp

    @property
    def by_arrival(self) -> bool:
        """Did the reports not come?"""
        return self._by_arrival is not None

    def report(self, kind: str, wall_s: float, pts_s: float) -> None:
        """The sender's clock showed ``wall_s`` when the track was at ``pts_s``."""
        self._reports[kind].append(wall_s - pts_s)

    def at(self, kind: str, pts_s: float) -> float | None:
        """Seconds, the same for both tracks, of what arrives now; None: not known yet."""
        now = self._now()
        self._started = now if self._started is None else self._started
        self._arrivals[kind] = min(self._arrivals.get(kind, float("inf")), now - pts_s)
        return self._offset(kind, pts_s) + pts_s if self._known(now) else None

    def _known(self, now: float) -> bool:
        if self.by_arrival or all(self._reports[kind] for kind in self._kinds):
            return True
        assert self._started is not None
        if now - self._started < REPORT_WAIT_S:
            return False
        self._by_arrival = dict(self._arrivals)
        return True

    def _offset(self, kind: str, pts_s: float) -> float:
        """What the reports say, approached slowly: a step back would cost sound."""
        if self._by_arrival is not None:
            return self._by_arrival.setdefault(kind, self._arrivals[kind])
        target = median(self._reports[kind])
        offset, since_s = self._offsets.get(kind, (target, pts_s))
        step_s = SLEW * max(0.0, pts_s - since_s)
        offset += min(step_s, max(-step_s, target - offset))
        self._offsets[kind] = (offset, max(since_s, pts_s))
        return offset


class Incoming:
    """What one browser sends, from the server's thread to the pipeline's."""

    def __init__(self, kinds: frozenset[str]) -> None:
        self.kinds = kinds
        self.clock = SharedClock(kinds)
        self.size = (0, 0)  # width, height of the first picture
        self.ended: str | None = None  # why
        self.for_good = False  # nobody is to be waited for
        self.notes: list[str] = []  # what a person should know, one line each
        self._queue: deque[Chunk] = deque()
        self._seen: set[str] = set()
        self._stream: tuple[LiveClock, Counter[str]] | None = None
        self._changed = threading.Condition()

    def open(self, clock: LiveClock, drops: Counter[str]) -> None:
        """From now on: what came before, while the pipeline was not ready, is no part of it.

        clock : of the stream, which may have had other browsers
        drops : where its losses are counted
        """
        clock.connect()
        self._stream = clock, drops

    @property
    def ready(self) -> bool:
        """Has something of every track arrived?"""
        return self._seen >= self.kinds

    def video(self, pts_s: float, size: tuple[int, int], convert: Callable[[], Frame]) -> None:
        """size: (width, height)"""
        self.size = self.size if self.size[0] else size
        times = self._time("video", pts_s, 1 / 25)
        if times is not None:
            t_s, captured_s = times
            self._put(VideoChunk(t_s, convert, captured_s), MAX_QUEUED_PICTURES, "queue_full")

    def audio(self, pts_s: float, samples: Samples, rate_hz: int) -> None:
        """samples: mono [n] at ``rate_hz``"""
        times = self._time("audio", pts_s, samples.size / rate_hz) if samples.size else None
        if times is not None:
            t_s, captured_s = times
            self._put(AudioChunk(t_s, samples, captured_s), MAX_QUEUED_SOUND, "sound_queue_full")

    def end(self, why: str, *, for_good: bool = False) -> None:
        """Nothing more comes; what waits is still handed out."""
        with self._changed:
            if self.ended is None:
                self.ended, self.for_good = why, for_good
            self._changed.notify_all()

    def get(self) -> Chunk | None:
        """The next chunk, as soon as there is one; None: the end."""
        with self._changed:
            while not self._queue:
                if self.ended:
                    return None
                self._changed.wait(POLL_S)
            return self._queue.popleft()

    def _time(self, kind: str, pts_s: float, step_s: float) -> tuple[float, float] | None:
        """Stream seconds, and when that was by this machine's clock; None: not to be used."""
        at_s = self.clock.at(kind, pts_s)
        if at_s is None:
            return None
        self._seen.add(kind)
        if self._stream is None or self.ended is not None:
            return None
        clock, drops = self._stream
        t_s = clock.place(kind, at_s, step_s, time.monotonic())
        drops["timestamp"] = clock.jumps + clock.unusable
        return None if t_s is None else (t_s, clock.captured_s(t_s))

    def _put(self, chunk: Chunk, most: int, dropped: str) -> None:
        assert self._stream is not None
        with self._changed:
            waiting = [c for c in self._queue if type(c) is type(chunk)]
            if len(waiting) >= most:
                self._queue.remove(waiting[0])
                self._stream[1][dropped] += 1
            self._queue.append(chunk)
            self._changed.notify_all()


class Desk:
    """Where the pipeline waits for a browser and the server brings one.

    ``status``: ``none`` (no browser is wanted), ``waiting``, ``connecting``, ``in_use``, ``away``
    (the one that was the source has gone, and it or another is waited for), ``ended``.
    """

    def __init__(self) -> None:
        self.status = "none"
        self._free = "waiting"  # the status in which a browser is welcome
        self._current: Incoming | None = None
        self._closed = False
        self._changed = threading.Condition()
        self.stopped = ""  # why nobody is waited for any more, where somebody said so

    def want(self) -> None:
        """``--source browser`` was given."""
        self.status = self._free

    def claim(self) -> str | None:
        """A browser offers itself: None, and it is connecting; or why it cannot."""
        with self._changed:
            if self.status != self._free:
                return {
                    "none": "no browser is wanted: start with --source browser",
                    "ended": "the stream has ended; start the program again",
                }.get(self.status, "another browser is the source already")
            self.status = "connecting"
            return None

    def give_up(self) -> None:
        """The browser that connected did not get through; another may try."""
        with self._changed:
            if self.status == "connecting":
                self.status = self._free

    def deliver(self, incoming: Incoming) -> None:
        """Its media has started to arrive."""
        with self._changed:
            if self.status == "ended":  # while it connected
                incoming.end("the stream has ended", for_good=True)
                return
            self._current, self.status, self._free = incoming, "in_use", "away"
            self._changed.notify_all()

    def gone(self, incoming: Incoming) -> None:
        """A browser that was delivered sends no more; another may come, unless that was all."""
        with self._changed:
            if self._current is incoming:
                self._current = None
                self.status = "ended" if incoming.for_good else "away"

    def stop(self, why: str) -> None:
        """Whoever sent last wants no more, and said so after the connection had ended."""
        with self._changed:
            if self.status == "away":
                self.status, self.stopped = "ended", why
                self._changed.notify_all()

    def wait(self, limit_s: float | None = None) -> Incoming | None:
        """Until a browser sends; None: it is over, or nobody came in time, and then it is over.

        One that is connecting when time is up is waited for.  Raises MediaError when the server
        closes before.
        """
        start_s = time.monotonic()
        with self._changed:
            while self._current is None and self.status != "ended":
                if self._closed:
                    raise MediaError("the page was closed before a browser sent anything")
                late = limit_s is not None and time.monotonic() - start_s >= limit_s
                if late and self.status != "connecting":
                    self.status = "ended"
                    break
                interrupt.check()
                self._changed.wait(POLL_S)
            return self._current

    def leave(self) -> None:
        """The pipeline has ended."""
        with self._changed:
            self.status = "ended"
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            if self._current is not None:
                self._current.end("the page was closed", for_good=True)
            self._changed.notify_all()


class BrowserSource(Reconnecting[Incoming]):
    """Pictures and sound of the browser that has the page open; waits until one sends.

    It ends when the camera is stopped on the page, and when the browser has gone and none came
    within :data:`RETURN_WAIT_S`.  The first browser says whether there are pictures and sound; what
    a later one has beyond that is left out.  Raises :class:`MediaError` when the server closes
    before a browser came.
    """

    must_begin = False  # the tab may be closed while the model loads
    again = f"waiting {RETURN_WAIT_S:g} s for it or another"

    def __init__(self, desk: Desk, name: str = BROWSER, notice: Notice = silent) -> None:
        super().__init__(name, notice)
        self._desk = desk
        self._clock = LiveClock()
        self._notes: dict[str, None] = {}  # each line once, whichever browser it is about
        self._over = ""  # why nobody is waited for
        first = self._begin()
        width, height = first.size
        self.info = MediaInfo(
            name=name,
            has_video="video" in first.kinds,
            has_audio="audio" in first.kinds,
            width=width,
            height=height,
            fps=None,
            duration_s=None,
        )
        self._listen_to(first)

    @property
    def warnings(self) -> list[str]:
        ended = [f"ended: {self._over}"] if self._over else []
        return [*self._notes, *super().warnings, *ended]

    def close(self) -> None:
        super().close()
        self._desk.leave()
        handle = self._handle
        if handle is not None:  # being read: the reader wakes up and lets go of it
            handle.end("the program stopped")

    def _connect(self) -> Incoming:
        came = self._desk.wait(RETURN_WAIT_S if self.outages else None)
        if came is not None:
            return came
        why = "the camera was stopped before the stream began"
        if self.outages:
            waited = f"{self._last_outage}, and none came within {RETURN_WAIT_S:g} s"
            why = self._desk.stopped or waited
        if not self._stop.is_set():
            self._through, self._over = True, why
        raise MediaError(f"{self.name}: {why}")

    def _chunks(self, handle: Incoming) -> Iterator[Chunk]:
        self._listen_to(handle)
        handle.open(self._clock, self.drops)
        while (chunk := handle.get()) is not None:
            if self.info.has_video if isinstance(chunk, VideoChunk) else self.info.has_audio:
                yield chunk
        self._listen_to(handle)
        why = handle.ended or self.ended
        if handle.for_good:
            self._through, self._over = True, why
        raise MediaError(why)

    def _release(self, handle: Incoming) -> None:
        handle.end("the program stopped")
        self._desk.gone(handle)

    def _listen_to(self, handle: Incoming) -> None:
        """Takes over what a person should know of it."""
        if handle.clock.by_arrival:
            self._notes[BY_ARRIVAL] = None
        self._notes |= dict.fromkeys(handle.notes)
