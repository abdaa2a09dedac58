# SPDX-License-Identifier: Apache-2.0
"""A browser's camera and microphone as a source.  What knows WebRTC is in :mod:`runtime.web.rtc`.

Clock.  Each RTP track counts from a random start in a clock of its own; what relates them are the
RTCP sender reports, which say for one moment of a track what the sender's wall clock showed (RFC
3550, section 6.4.1).  Media is held back until both tracks have been reported on, a few seconds
at most; from then on every report moves the track's offset a little, so a sound card that runs fast
is followed.  Where no report comes, arrival has to do, and a warning says so.

Back-pressure.  Sound is kept, pictures are cheap to lose: when the model falls behind, the oldest
waiting picture goes (a second of them waits at most) and is counted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from statistics import median

from runtime.closing import Closing
from runtime.errors import MediaError
from runtime.media import AudioChunk, Frame, MediaInfo, Samples, VideoChunk
from runtime.media.file import StreamClock
from runtime.media.open import BROWSER

REPORT_WAIT_S = 6.0  # browsers report on sound every 5 s and sooner at the start
SLEW = 0.05  # seconds a second by which a track's offset moves at most: its time never runs back
REPORTS_KEPT = 9  # whose median is the offset of a track: single ones are off by milliseconds
MAX_QUEUED_PICTURES = 25  # a second
MAX_QUEUED_SOUND = 500  # pieces of 20 ms
POLL_S = 0.2  # so that Ctrl-C is noticed on every platform

KINDS = ("video", "audio")


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
        self.drops = {"queue_full": 0, "sound_queue_full": 0}
        self.size = (0, 0)  # width, height of the first picture
        self.ended: str | None = None  # why
        self._repairs = {kind: StreamClock() for kind in KINDS}
        self._queue: deque[VideoChunk | AudioChunk] = deque()
        self._seen: set[str] = set()
        self._zero_s: float | None = None  # of the clock: the start of the stream
        self._open = False
        self._changed = threading.Condition()

    def open(self) -> None:
        """From now on: what came before, while the pipeline was not ready, is no part of it."""
        self._open = True

    @property
    def damaged(self) -> int:
        return sum(repair.damaged for repair in self._repairs.values())

    @property
    def ready(self) -> bool:
        """Has something of every track arrived?"""
        return self._seen >= self.kinds

    def video(self, pts_s: float, size: tuple[int, int], convert: Callable[[], Frame]) -> None:
        """size: (width, height)"""
        self.size = self.size if self.size[0] else size
        t_s = self._time("video", pts_s, 1 / 25)
        if t_s is not None:
            self._put(VideoChunk(t_s, convert), MAX_QUEUED_PICTURES, "queue_full")

    def audio(self, pts_s: float, samples: Samples, rate_hz: int) -> None:
        """samples: mono [n] at ``rate_hz``"""
        t_s = self._time("audio", pts_s, samples.size / rate_hz)
        if t_s is not None and samples.size:
            self._put(AudioChunk(t_s, samples), MAX_QUEUED_SOUND, "sound_queue_full")

    def end(self, why: str) -> None:
        """Nothing more comes; what waits is still handed out."""
        with self._changed:
            self.ended = self.ended or why
            self._changed.notify_all()

    def get(self) -> VideoChunk | AudioChunk | None:
        """The next chunk, as soon as there is one; None: the end."""
        with self._changed:
            while not self._queue:
                if self.ended:
                    return None
                self._changed.wait(POLL_S)
            return self._queue.popleft()

    def _time(self, kind: str, pts_s: float, step_s: float) -> float | None:
        """Stream seconds, or None: not to be used."""
        at_s = self.clock.at(kind, pts_s)
        if at_s is None:
            return None
        self._seen.add(kind)
        if not self._open:
            return None
        self._zero_s = at_s if self._zero_s is None else self._zero_s
        t_s = at_s - self._zero_s
        return self._repairs[kind].accept(t_s, step_s) if t_s >= 0 else None

    def _put(self, chunk: VideoChunk | AudioChunk, most: int, dropped: str) -> None:
        with self._changed:
            waiting = [c for c in self._queue if type(c) is type(chunk)]
            if len(waiting) >= most:
                self._queue.remove(waiting[0])
                self.drops[dropped] += 1
            self._queue.append(chunk)
            self._changed.notify_all()


class Desk:
    """Where the pipeline waits for a browser and the server brings one.

    ``status``: ``none`` (no browser is wanted), ``waiting``, ``connecting``, ``in_use``, ``ended``.
    """

    def __init__(self) -> None:
        self.status = "none"
        self._current: Incoming | None = None
        self._closed = False
        self._changed = threading.Condition()

    def want(self) -> None:
        """``--source browser`` was given."""
        self.status = "waiting"

    def claim(self) -> str | None:
        """A browser offers itself: None, and it is connecting; or why it cannot."""
        with self._changed:
            if self.status != "waiting":
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
                self.status = "waiting"

    def deliver(self, incoming: Incoming) -> None:
        """Its media has started to arrive."""
        with self._changed:
            self._current, self.status = incoming, "in_use"
            self._changed.notify_all()

    def wait(self) -> Incoming:
        """Until a browser sends; raises MediaError when the server closes before."""
        with self._changed:
            while self._current is None:
                if self._closed:
                    raise MediaError("the page was closed before a browser sent anything")
                self._changed.wait(POLL_S)
            return self._current

    def leave(self) -> None:
        """The pipeline has ended."""
        with self._changed:
            self.status = "ended"

    def close(self) -> None:
        with self._changed:
            self._closed = True
            if self._current is not None:
                self._current.end("the page was closed")
            self._changed.notify_all()


class BrowserSource(Closing):
    """Pictures and sound of the browser that has the page open; waits until one sends.

    It ends when the tab is closed, the camera is stopped on the page, or nothing comes any more.
    Raises :class:`MediaError` when the server closes before a browser came.
    """

    live = True

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._incoming = desk.wait()
        self.warnings: list[str] = []
        kinds, (width, height) = self._incoming.kinds, self._incoming.size
        self.info = MediaInfo(
            name=BROWSER,
            has_video="video" in kinds,
            has_audio="audio" in kinds,
            width=width,
            height=height,
            fps=None,
            duration_s=None,
        )
        if self._incoming.clock.by_arrival:
            self.warnings.append(
                "the browser did not say how picture and sound belong together (no RTCP sender "
                "reports): they are aligned by arrival, to about 0.1 s"
            )

    @property
    def damaged(self) -> int:
        return self._incoming.damaged

    @property
    def drops(self) -> dict[str, int]:
        """What was lost because the model was busy, by cause."""
        return dict(self._incoming.drops)

    def __iter__(self) -> Iterator[VideoChunk | AudioChunk]:
        self._incoming.open()
        while (chunk := self._incoming.get()) is not None:
            yield chunk
        self.warnings.append(f"ended: {self._incoming.ended}")
        lost = self._incoming.drops["queue_full"]
        if lost:
            self.warnings.append(f"{lost} pictures were dropped because the model was busy")

    def close(self) -> None:
        self._incoming.end("the program stopped")
        self._desk.leave()
