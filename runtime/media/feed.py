# SPDX-License-Identifier: Apache-2.0
"""A source read by a thread of its own into a bounded queue.

    with open_source(text) as source, Feed(source) as feed:
        while not feed.ended:
            chunk = feed.get(timeout_s=0.2)  # None: nothing came, or it has just ended
            ...
    if feed.error: raise feed.error

What a full queue means depends on the source.  A file, and a live source that is fetched (HLS),
waits: nothing is lost.  A source that is paced by the world (a camera, RTSP) cannot wait: the
*oldest pictures* make room, since the newest are worth most, and each one is counted as
``queue_full``.  Sound is small and a hole in it costs a whole window, so it is kept far longer, and
counted as ``sound_queue_full`` when it goes.  Chunks are never given out in another order than
the source's own.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque

from runtime import interrupt
from runtime.closing import Closing
from runtime.media import AudioChunk, Chunk, LiveSource, MediaInfo, Source, VideoChunk

MAX_PICTURES = 32  # waiting; a second and more at 25 a second
MIN_PICTURES = 3
MAX_PICTURE_BYTES = 96_000_000  # of all that wait, decoded; fewer large pictures wait
MAX_SOUND_S = 3.0  # waiting
JOIN_S = 1.0  # how long close waits for a source that is in the middle of a read
DEFAULT_PATIENCE_S = 2.0


class Feed(Closing):
    """The queue between a source's thread and whoever judges.

    Parameters
    ----------
    source : read from its start to its end; stays the caller's to close, after the feed
    max_pictures : how many wait at most; by default what :data:`MAX_PICTURE_BYTES` holds,
        from :data:`MIN_PICTURES` to :data:`MAX_PICTURES`
    sample_rate_hz : of the source's sound
    changed : is notified of whatever happens; one of several feeds lets one wait for all

    ``get`` is for one consumer.  ``drops`` counts what the queue dropped, by cause, together with
    what the source says it lost.  An exception of the source is kept in ``error``, never raised.
    """

    def __init__(
        self,
        source: Source,
        *,
        max_pictures: int | None = None,
        sample_rate_hz: int = 16_000,
        changed: threading.Condition | None = None,
    ) -> None:
        self.info: MediaInfo = source.info
        self.live = source.live
        self.error: BaseException | None = None
        self._source = source
        self._patience_s = (
            source.patience_s if isinstance(source, LiveSource) else DEFAULT_PATIENCE_S
        )
        self._max_pictures = _room(source.info) if max_pictures is None else max_pictures
        self._max_samples = round(MAX_SOUND_S * sample_rate_hz)
        self._queue: deque[Chunk] = deque()
        self._pictures = 0  # in the queue
        self._samples = 0  # of sound in the queue
        self._dropped: Counter[str] = Counter()
        self._newest: dict[type[Chunk], tuple[float, float]] = {}  # t_s, and when it arrived
        self._first = (0.0, math.inf)  # the same of the first chunk of all
        self._epoch_s: float | None = None  # the monotonic time of stream second 0
        self._finished = False  # the source gives no more
        self._closing = False
        self._reading_s = 0.0  # that a file took to give what it gave
        self._changed = changed or threading.Condition()
        self._thread = threading.Thread(target=self._read, name=f"feed {self.info.name}")
        self._thread.daemon = True  # a read that hangs must not keep the process
        self._thread.start()

    def get(self, timeout_s: float) -> Chunk | None:
        """The next chunk in the source's order; None after ``timeout_s`` or at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._finished, timeout_s)
            if not self._queue:
                return None
            chunk = self._queue.popleft()
            self._account(chunk, -1)
            self._changed.notify_all()
            return chunk

    @property
    def ended(self) -> bool:
        """No chunk is left and none will come; ``error`` says whether that is right."""
        with self._changed:
            return self._finished and not self._queue

    @property
    def ready(self) -> bool:
        """:meth:`get` would not wait."""
        with self._changed:
            return bool(self._queue) or self._finished

    @property
    def waiting(self) -> int:
        """Chunks in the queue."""
        return len(self._queue)

    @property
    def drops(self) -> dict[str, int]:
        """Lost so far, by cause: pictures (``queue_full``), chunks of sound
        (``sound_queue_full``), and what the source itself counts."""
        lost = Counter(self._source.drops) if isinstance(self._source, LiveSource) else Counter()
        with self._changed:
            lost.update(self._dropped)
        return dict(lost)

    def take_reading_s(self) -> float:
        """Seconds that a file took since the last call; of a live source nobody can tell."""
        with self._changed:
            spent_s, self._reading_s = self._reading_s, 0.0
        return 0.0 if self.live else spent_s

    @property
    def now_s(self) -> float | None:
        """The stream time of this moment; None for a file, and before the first chunk."""
        return None if self._epoch_s is None else time.monotonic() - self._epoch_s

    def quiet_until_s(self, kind: type[Chunk]) -> float | None:
        """The stream time before which nothing of this kind is to be expected any more.

        None while it flows: some of it waits, or the last of it is younger than the source's
        patience.  Windows that would wait for it can be judged without it.
        """
        with self._changed:
            if not self.live or (self._pictures if kind is VideoChunk else self._samples):
                return None
            t_s, arrived_s = self._newest.get(kind) or self._first
            silence_s = time.monotonic() - arrived_s
            return t_s + silence_s - self._patience_s if silence_s > self._patience_s else None

    def close(self) -> None:
        """Stop reading.  Waits at most a second: a source that hangs in a read ends by itself."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self.live:
            self._source.close()
        self._thread.join(JOIN_S if self.live or interrupt.requested() else None)

    @property
    def lossless(self) -> bool:
        """Does the source wait for whoever reads?  Asked anew each time: whether a stream over HTTP
        is paced shows while it is read."""
        return not self.live or (isinstance(self._source, LiveSource) and not self._source.paced)

    def _read(self) -> None:
        try:
            chunks = iter(self._source)
            while True:
                start = time.perf_counter()
                chunk = next(chunks, None)
                with self._changed:
                    self._reading_s += time.perf_counter() - start
                    if chunk is None or not self._put(chunk):
                        break
        except BaseException as err:  # whatever it is, it belongs to the consumer
            self.error = err
        finally:
            with self._changed:
                self._finished = True
                self._changed.notify_all()

    def _put(self, chunk: Chunk) -> bool:
        """False: somebody closed the feed."""
        if self.lossless:
            self._changed.wait_for(lambda: self._closing or not self._full())
        if self._closing:
            return False
        self._queue.append(chunk)
        self._account(chunk, 1)
        self._newest[type(chunk)] = arrived = (chunk.t_s, time.monotonic())
        self._first = min(self._first, arrived, key=lambda first: first[1])
        if chunk.captured_s is not None:
            self._epoch_s = chunk.captured_s - chunk.t_s
        while self._pictures > self._max_pictures and not self.lossless:
            self._drop_oldest(VideoChunk, "queue_full")
        while self._samples > self._max_samples and not self.lossless:
            self._drop_oldest(AudioChunk, "sound_queue_full")
        self._changed.notify_all()
        return True

    def _full(self) -> bool:
        return self._pictures >= self._max_pictures or self._samples >= self._max_samples

    def _account(self, chunk: Chunk, sign: int) -> None:
        if isinstance(chunk, VideoChunk):
            self._pictures += sign
        else:
            self._samples += sign * len(chunk.samples)

    def _drop_oldest(self, kind: type[Chunk], cause: str) -> None:
        at = next(i for i, chunk in enumerate(self._queue) if isinstance(chunk, kind))
        self._account(self._queue[at], -1)
        del self._queue[at]
        self._dropped[cause] += 1


def _room(info: MediaInfo) -> int:
    """How many pictures may wait: decoded ones take a byte and a half a pixel."""
    size = max(1, info.width * info.height) * 3 // 2
    return max(MIN_PICTURES, min(MAX_PICTURES, MAX_PICTURE_BYTES // size))
