# SPDX-License-Identifier: Apache-2.0
"""The queue between a source's thread and whoever judges: lossless for files, newest for live."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pytest

from runtime.closing import Closing
from runtime.flow.session import Session
from runtime.media import AudioChunk, Chunk, ClockReport, LiveSource, MediaInfo, VideoChunk
from runtime.media.feed import MAX_PICTURES, MIN_PICTURES, Feed
from tests.runtime.doubles import MockBackend, MockTracker, picture, speech
from tests.waiting import patient, pause, wait_for

INFO = MediaInfo("door", True, True, 64, 48, 25.0, None)


class Scripted(Closing):
    """A source that gives what it is told to; an exception among the chunks is raised."""

    damaged = 0
    warnings: list[str] = []  # noqa: RUF012

    def __init__(self, script: Iterable[Chunk | Exception], info: MediaInfo = INFO) -> None:
        self.live = False
        self.info = info
        self.given = 0
        self.closed = False
        self._script = script

    def __iter__(self) -> Iterator[Chunk]:
        for item in self._script:
            if isinstance(item, Exception):
                raise item
            self.given += 1
            yield item

    def close(self) -> None:
        self.closed = True


class ScriptedLive(Scripted):
    """The same as a live source; ``paced`` False is one that can wait."""

    def __init__(
        self,
        script: Iterable[Chunk | Exception],
        info: MediaInfo = INFO,
        *,
        paced: bool = True,
        patience_s: float = 0.1,
    ) -> None:
        super().__init__(script, info)
        self.live = True
        self.paced, self.patience_s = paced, patience_s
        self.drops: Mapping[str, int] = {"decode_error": 2}
        self.clock = ClockReport()


def pictures(tokens: int, start: int = 0) -> list[Chunk]:
    return [VideoChunk(t / 25, lambda t=t: picture(t)) for t in range(start, start + tokens)]


def sound(tokens: int) -> list[Chunk]:
    samples = speech(tokens)
    return [AudioChunk(t / 25, samples[t * 640 : t * 640 + 640]) for t in range(tokens)]


def both(tokens: int) -> list[Chunk]:
    pairs = zip(pictures(tokens), sound(tokens), strict=True)
    return [chunk for pair in pairs for chunk in pair]


def drain(feed: Feed) -> list[Chunk]:
    found: list[Chunk] = []
    while not feed.ended:
        chunk = feed.get(1.0)
        if chunk is not None:
            found.append(chunk)
    return found


def settle(feed: Feed) -> None:
    """Until the source's thread has read all there is."""
    feed._thread.join(10)
    assert not feed._thread.is_alive()


def test_a_file_arrives_whole_and_in_order_through_a_small_queue() -> None:
    chunks = both(200)
    with Feed(Scripted(chunks), max_pictures=3) as feed:
        found = drain(feed)
    assert [id(c) for c in found] == [id(c) for c in chunks]
    assert (feed.drops, feed.error) == ({}, None)


def test_a_file_waits_for_its_reader() -> None:
    source = Scripted(pictures(100))
    with Feed(source, max_pictures=4) as feed:
        wait_for(lambda: feed.waiting == 4, "a full queue")
        pause(0.05)
        assert feed.waiting == 4
        assert source.given == 5  # one more is in the thread's hands
        assert feed.get(1.0) is not None


def test_a_live_source_that_is_fetched_waits_too() -> None:
    with Feed(ScriptedLive(pictures(60), paced=False), max_pictures=3) as feed:
        found = drain(feed)
    assert len(found) == 60
    assert feed.drops == {"decode_error": 2}


def test_of_a_live_source_the_newest_pictures_and_all_sound_are_kept_in_order() -> None:
    with Feed(ScriptedLive(both(50)), max_pictures=8) as feed:
        settle(feed)
        found = drain(feed)
    times = {
        kind: [c.t_s for c in found if isinstance(c, kind)] for kind in (VideoChunk, AudioChunk)
    }
    assert times[VideoChunk] == [t / 25 for t in range(42, 50)]
    assert times[AudioChunk] == [t / 25 for t in range(50)]
    assert [c.t_s for c in found] == sorted(c.t_s for c in found)
    assert feed.drops == {"decode_error": 2, "queue_full": 42}


def test_sound_is_dropped_only_beyond_three_seconds() -> None:
    with Feed(ScriptedLive(sound(125))) as feed:
        settle(feed)
        found = drain(feed)
    assert [c.t_s for c in found] == [t / 25 for t in range(50, 125)]
    assert feed.drops["sound_queue_full"] == 50


def test_how_many_wait_depends_on_how_large_they_are() -> None:
    def room(width: int, height: int) -> int:
        info = MediaInfo("door", True, False, width, height, 25.0, None)
        chunks = pictures(100)
        with Feed(ScriptedLive(chunks, info)) as feed:
            settle(feed)
            return len(drain(feed))

    assert room(640, 480) == MAX_PICTURES
    assert room(1920, 1080) == 30
    assert room(7680, 4320) == MIN_PICTURES


def test_windows_in_which_the_queue_dropped_pictures_abstain() -> None:
    """The session sees the hole through its grid: more than 3 tokens are missing."""
    session = Session(MockBackend(), source="door", tracker=MockTracker())
    verdicts = session.push_audio(0.0, speech(150))
    with Feed(ScriptedLive(pictures(150)), max_pictures=90) as feed:
        settle(feed)  # 60 of 150 pictures are gone before anybody looks
        for chunk in drain(feed):
            assert isinstance(chunk, VideoChunk)
            verdicts += session.push_video(chunk.t_s, chunk.convert)
    verdicts += session.finish()
    assert feed.drops["queue_full"] == 60
    hit = [v for v in verdicts if v.t_start_s < 60 / 25]
    assert {str(v.reason) for v in hit} == {"too_many_drops"}
    assert {v.label.value for v in verdicts if v.t_start_s > 63 / 25} == {"real"}


def test_an_error_comes_after_everything_that_was_read_before_it() -> None:
    with Feed(Scripted([*pictures(3), ValueError("gone")])) as feed:
        assert len(drain(feed)) == 3
    assert isinstance(feed.error, ValueError)
    assert feed.ended


def test_get_gives_up_after_its_timeout() -> None:
    release = threading.Event()

    def script() -> Iterator[Chunk]:
        release.wait(10)
        yield from pictures(1)

    with Feed(Scripted(script())) as feed:
        start = time.monotonic()
        assert feed.get(0.05) is None
        assert 0.04 < time.monotonic() - start < patient(2)
        assert not feed.ended
        release.set()
        assert feed.get(5.0) is not None


@pytest.mark.parametrize("kind", [Scripted, ScriptedLive])
def test_closing_ends_the_thread_also_while_it_waits_for_room(kind: type[Scripted]) -> None:
    def endless() -> Iterator[Chunk]:
        t = 0
        while True:
            t += 1
            yield VideoChunk(t / 25, lambda: picture(0))

    source = kind(endless())
    feed = Feed(source, max_pictures=3)
    feed.close()
    assert not feed._thread.is_alive()
    assert source.closed == source.live  # a file stays the caller's to close


def test_a_modality_that_falls_silent_is_noticed_after_the_sources_patience() -> None:
    now = time.monotonic()

    def script() -> Iterator[Chunk]:
        yield VideoChunk(0.0, lambda: picture(0), captured_s=now)
        yield AudioChunk(0.0, np.zeros(640, np.float32), captured_s=now)
        for _ in range(100):
            pause(0.01)
            t = time.monotonic() - now
            yield VideoChunk(t, lambda: picture(0), captured_s=now + t)

    source = ScriptedLive(script(), patience_s=0.5)
    assert isinstance(source, LiveSource)
    with Feed(source, max_pictures=1000) as feed:
        assert feed.quiet_until_s(AudioChunk) is None  # too early to say
        settle(feed)
        assert feed.quiet_until_s(AudioChunk) is None  # some of it still waits
        while feed.waiting > 2:
            feed.get(0.0)
        quiet = feed.quiet_until_s(AudioChunk)
        assert quiet is not None
        assert feed.now_s is not None
        assert 0.4 < quiet < feed.now_s - 0.5 + 0.01
        assert feed.quiet_until_s(VideoChunk) is None


def test_a_file_is_never_taken_to_be_silent() -> None:
    with Feed(Scripted(sound(3))) as feed:
        drain(feed)
        assert feed.quiet_until_s(VideoChunk) is None
        assert feed.now_s is None
