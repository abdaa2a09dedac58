# SPDX-License-Identifier: Apache-2.0
"""A browser as a source: one clock out of two, what is dropped, how it starts and ends."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter

import numpy as np
import pytest

from runtime.errors import MediaError
from runtime.media import AudioChunk, LiveSource, VideoChunk
from runtime.media.clock import LiveClock
from runtime.web.browser import (
    MAX_QUEUED_PICTURES,
    REPORT_WAIT_S,
    BrowserSource,
    Desk,
    Incoming,
    SharedClock,
)
from tests.waiting import patient, pause, wait_for

BOTH = frozenset(["video", "audio"])
RATE_HZ = 16_000
SOUND = np.zeros(320, np.float32)  # 20 ms


class Now:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def frame() -> np.ndarray:
    return np.zeros((48, 64, 3), np.uint8)


class TestSharedClock:
    def test_reports_put_both_tracks_on_the_senders_clock(self) -> None:
        """The tracks began 0.7 s apart, and sound takes 0.3 s longer to arrive."""
        now = Now()
        clock = SharedClock(BOTH, now)
        clock.report("video", 5000.0, 0.0)
        clock.report("audio", 5000.7, 0.0)
        assert clock.at("video", 1.0) == pytest.approx(5001.0)
        now.s += 0.3
        assert clock.at("audio", 0.3) == pytest.approx(5001.0)
        assert not clock.by_arrival

    def test_media_is_held_back_until_every_track_was_reported_on(self) -> None:
        clock = SharedClock(BOTH, Now())
        clock.report("video", 5000.0, 0.0)
        assert clock.at("video", 1.0) is None
        assert clock.at("audio", 0.3) is None
        clock.report("audio", 5000.7, 0.0)
        assert clock.at("audio", 0.4) == pytest.approx(5001.1)

    def test_one_track_alone_waits_for_its_own_report_only(self) -> None:
        clock = SharedClock(frozenset(["audio"]), Now())
        clock.report("audio", 5000.7, 0.0)
        assert clock.at("audio", 0.4) == pytest.approx(5001.1)

    def test_a_sound_card_that_runs_fast_is_followed(self) -> None:
        """200 ppm for half an hour: 0.36 s without the reports."""
        clock = SharedClock(BOTH, Now())
        for second in range(0, 1800, 5):
            clock.report("video", 5000.0 + second, float(second))
            clock.report("audio", 5000.0 + second, second * 1.0002)
        assert clock.at("audio", 1800 * 1.0002) == pytest.approx(6800.0, abs=0.01)

    def test_a_correction_never_makes_time_run_back(self) -> None:
        clock = SharedClock(frozenset(["audio"]), Now())
        clock.report("audio", 5000.0, 0.0)
        times = []
        for i in range(200):  # pieces of 20 ms; after the first half second all reports differ
            if i >= 25:
                clock.report("audio", 4999.9 + i * 0.02, i * 0.02)
            times.append(clock.at("audio", i * 0.02))
        steps = np.diff(np.array(times, float))
        assert steps.min() >= 0.0189
        assert steps.max() < 0.0211
        assert times[-1] == pytest.approx(4999.9 + 199 * 0.02)

    def test_one_report_that_is_wrong_moves_nothing(self) -> None:
        clock = SharedClock(BOTH, Now())
        for second in range(10):
            clock.report("video", 5000.0 + second, float(second))
            clock.report("audio", 5000.0 + second, float(second))
        clock.report("audio", 9999.0, 10.0)
        assert clock.at("audio", 10.0) == pytest.approx(5010.0)

    def test_without_reports_arrival_has_to_do_and_is_named(self) -> None:
        now = Now()
        clock = SharedClock(BOTH, now)
        for step in range(round(REPORT_WAIT_S / 0.5) + 1):  # sound began 0.7 s after the picture
            clock.at("video", 0.5 * step)
            at_audio = clock.at("audio", 0.5 * step - 0.7) if step > 1 else None
            now.s += 0.5
        assert clock.by_arrival
        now.s -= 0.5
        at_video = clock.at("video", 0.5 * step)
        assert at_video is not None
        assert at_audio == pytest.approx(at_video)

    def test_a_report_that_comes_after_that_changes_nothing(self) -> None:
        """Half a stream by one clock and half by another would be worse than either."""
        now = Now()
        clock = SharedClock(frozenset(["video"]), now)
        clock.at("video", 0.0)
        now.s += REPORT_WAIT_S
        before = clock.at("video", REPORT_WAIT_S)
        clock.report("video", 5000.0, 0.0)
        assert clock.at("video", REPORT_WAIT_S) == before


def incoming(kinds: frozenset[str] = BOTH) -> Incoming:
    """Whose tracks were reported on: both begin at 5000 s."""
    made = Incoming(kinds)
    for kind in kinds:
        made.clock.report(kind, 5000.0, 0.0)
    return made


def send(to: Incoming, start_s: float, stop_s: float, *, sound: bool = True) -> None:
    for i in range(round(start_s * 25), round(stop_s * 25)):
        to.video(i / 25, (64, 48), frame)
        if sound:
            to.audio(i / 25, SOUND, RATE_HZ)
            to.audio(i / 25 + 0.02, SOUND, RATE_HZ)


class TestIncoming:
    def test_what_comes_before_the_pipeline_is_ready_is_no_part_of_the_stream(self) -> None:
        source, drops = incoming(), Counter[str]()
        send(source, 0, 3)
        assert source.ready
        source.open(LiveClock(), drops)
        send(source, 3, 3.2)
        source.end("test")
        chunks = list(iter(source.get, None))
        assert chunks[0].t_s == 0.0
        assert len([c for c in chunks if isinstance(c, VideoChunk)]) == 5
        assert not drops.total()

    def test_it_is_ready_when_every_track_has_come(self) -> None:
        source = incoming()
        source.video(0.0, (64, 48), frame)
        assert not source.ready
        source.audio(0.0, SOUND, RATE_HZ)
        assert source.ready
        assert source.size == (64, 48)

    def test_a_busy_model_loses_the_oldest_pictures_no_sound_and_both_are_counted(self) -> None:
        source, drops = incoming(), Counter[str]()
        source.open(LiveClock(), drops)
        send(source, 0, 4)
        source.end("test")
        chunks = list(iter(source.get, None))
        pictures = [c.t_s for c in chunks if isinstance(c, VideoChunk)]
        sounds = [c.t_s for c in chunks if isinstance(c, AudioChunk)]
        assert len(pictures) == MAX_QUEUED_PICTURES
        assert pictures[-1] == pytest.approx(3.96)
        assert np.allclose(np.diff(sounds), 0.02)
        assert len(sounds) == 200
        assert +drops == {"queue_full": 100 - MAX_QUEUED_PICTURES}

    def test_sound_waits_only_so_long(self) -> None:
        source, drops = incoming(), Counter[str]()
        source.open(LiveClock(), drops)
        for i in range(600):
            source.audio(i / 50, SOUND, RATE_HZ)
        assert drops["sound_queue_full"] == 100

    def test_a_timestamp_that_runs_backwards_is_dropped_and_counted(self) -> None:
        source, drops = incoming(), Counter[str]()
        source.open(LiveClock(), drops)
        for t in (0.0, 0.04, 0.02, 0.08):
            source.video(t, (64, 48), frame)
        source.end("test")
        assert [c.t_s for c in iter(source.get, None)] == pytest.approx([0.0, 0.04, 0.08])
        assert drops["timestamp"] == 1


class TestDesk:
    def test_one_browser_at_a_time(self) -> None:
        desk = Desk()
        assert "--source browser" in (desk.claim() or "")
        desk.want()
        assert desk.claim() is None
        assert "another browser" in (desk.claim() or "")
        desk.give_up()
        assert desk.status == "waiting"
        assert desk.claim() is None
        desk.deliver(incoming())
        assert "another browser" in (desk.claim() or "")
        desk.give_up()  # of one that was never the source
        desk.gone(incoming())
        assert desk.status == "in_use"
        desk.leave()
        assert "ended" in (desk.claim() or "")

    def test_a_server_that_closes_ends_the_wait(self) -> None:
        desk = Desk()
        desk.want()
        threading.Timer(0.1, desk.close).start()
        start = time.monotonic()
        with pytest.raises(MediaError, match="before a browser"):
            BrowserSource(desk)
        assert time.monotonic() - start < patient(2)


class Visit(threading.Thread):
    """A browser that sends ``seconds`` of media to a desk and is gone."""

    def __init__(
        self, desk: Desk, why: str = "the page was left", *,
        seconds: float = 1.0, for_good: bool = False, kinds: frozenset[str] = BOTH,
    ) -> None:  # fmt: skip
        super().__init__()
        self.desk, self.why, self.seconds, self.for_good = desk, why, seconds, for_good
        self.incoming = incoming(kinds)
        self.start()

    def run(self) -> None:
        wait_for(lambda: self.desk.claim() is None, "a free desk")
        if "video" in self.incoming.kinds:
            self.incoming.video(0.0, (64, 48), frame)
        self.desk.deliver(self.incoming)
        wait_for(lambda: self.incoming._stream is not None, "a pipeline that is ready")
        for i in range(round(self.seconds * 25)):
            if "video" in self.incoming.kinds:
                self.incoming.video(1 + i / 25, (64, 48), frame)
            self.incoming.audio(1 + i / 25, SOUND, RATE_HZ)
        self.incoming.end(self.why, for_good=self.for_good)
        self.desk.gone(self.incoming)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    """One where a browser is wanted and soon not waited for any more."""
    monkeypatch.setattr("runtime.web.browser.RETURN_WAIT_S", 0.5)
    desk = Desk()
    desk.want()
    return desk


class TestBrowserSource:
    def test_it_is_a_live_source_that_ends_when_no_browser_comes_back(self, desk: Desk) -> None:
        visit = Visit(desk)
        said: list[str] = []
        with BrowserSource(desk, notice=said.append) as source:
            assert isinstance(source, LiveSource)
            info = source.info
            assert (info.name, info.has_video, info.has_audio) == ("browser", True, True)
            assert (info.width, info.height) == (64, 48)
            chunks = list(source)
            assert desk.status == "ended"
        visit.join()
        assert {type(c) for c in chunks} == {VideoChunk, AudioChunk}
        assert source.warnings == ["ended: the page was left, and none came within 0.5 s"]
        assert (source.outages, source.outage_s) == (0, 0.0), "that was its end"
        assert said == ["browser: the page was left; waiting 30 s for it or another"]

    def test_after_a_gap_it_goes_on_where_the_wall_clock_is(self, desk: Desk) -> None:
        first = Visit(desk, seconds=0.2)
        said: list[str] = []
        with BrowserSource(desk, notice=said.append) as source:
            chunks = iter(source)
            before = [next(chunks) for _ in range(10)]
            first.join()
            left_s = time.monotonic()
            assert desk.status == "away"
            threading.Timer(0.3, lambda: Visit(desk, "again")).start()
            later = next(chunks)
            away_s = time.monotonic() - left_s
            rest = list(chunks)
        assert before[0].captured_s is not None
        passed_s = left_s + away_s - before[0].captured_s
        assert later.t_s == pytest.approx(passed_s, abs=0.1)
        assert later.t_s > before[-1].t_s + 0.1
        assert later.captured_s == pytest.approx(left_s + away_s, abs=0.1)
        times = [c.t_s for c in (*before, later, *rest) if isinstance(c, VideoChunk)]
        assert min(np.diff(times)) > 0
        assert source.damaged == 0, "a new browser's timestamps are no damage"
        assert source.outages == 1
        assert source.outage_s == pytest.approx(away_s, abs=0.1)
        assert re.fullmatch(r"browser: back after 0\.\d s", said[1])
        assert source.warnings == [
            f"browser was lost once, for {source.outage_s:.1f} s in all; "
            "the last time: the page was left",
            "ended: again, and none came within 0.5 s",
        ]

    def test_stopped_on_the_page_it_ends_at_once(self, desk: Desk) -> None:
        visit = Visit(desk, "the camera was stopped on the page", for_good=True)
        with BrowserSource(desk) as source:
            assert list(source)
            assert desk.status == "ended"
        visit.join()
        assert source.warnings == ["ended: the camera was stopped on the page"]

    def test_a_stop_that_comes_after_the_connection_has_ended_is_heard(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Stop goes one way, the end of the connection another, and either may be first."""
        monkeypatch.setattr("runtime.web.browser.RETURN_WAIT_S", 60.0)
        desk.stop("nobody was there yet, so nothing is over")
        Visit(desk, seconds=0.2)
        why = "the camera was stopped on the page"
        with BrowserSource(desk, notice=lambda line: desk.stop(why)) as source:
            assert list(source)
        assert source.warnings[-1] == f"ended: {why}"

    def test_whoever_closes_it_does_not_wait_for_a_browser(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("runtime.web.browser.RETURN_WAIT_S", 60.0)
        Visit(desk, seconds=0.2)
        away = threading.Event()
        with BrowserSource(desk, notice=lambda line: away.set()) as source:
            reader = threading.Thread(target=lambda: list(source))
            reader.start()
            assert away.wait(10)
            start_s = time.monotonic()
            source.close()
            reader.join(10)
            assert time.monotonic() - start_s < patient(2)
        assert not any("ended" in line for line in source.warnings)
        assert "ended" in (desk.claim() or "")

    def test_one_that_is_connecting_when_time_is_up_is_waited_for(self, desk: Desk) -> None:
        Visit(desk, seconds=0.2)
        with BrowserSource(desk) as source:
            chunks = iter(source)
            for _ in range(10):
                next(chunks)
            # The second one begins, and takes longer.
            wait_for(lambda: desk.claim() is None, "a free desk")

            def late() -> None:
                pause(0.8)
                desk.give_up()
                Visit(desk, seconds=0.2)

            threading.Thread(target=late).start()
            assert next(chunks).t_s > 0.7

    def test_what_the_first_browser_did_not_have_is_left_out(self, desk: Desk) -> None:
        Visit(desk, kinds=frozenset(["audio"]), seconds=0.2)
        with BrowserSource(desk) as source:
            assert not source.info.has_video
            chunks = iter(source)
            for _ in range(5):
                next(chunks)
            Visit(desk, seconds=0.2)
            rest = list(chunks)
        assert rest
        assert all(isinstance(c, AudioChunk) for c in rest)

    def test_a_tab_that_is_closed_while_the_model_loads_is_waited_for(self, desk: Desk) -> None:
        coming = incoming()
        assert desk.claim() is None
        desk.deliver(coming)
        with BrowserSource(desk) as source:
            coming.end("the page was left")
            desk.gone(coming)
            Visit(desk, seconds=0.2)
            assert len(list(source)) == 10

    def test_one_that_connected_when_all_was_over_is_told_so(self, desk: Desk) -> None:
        assert desk.claim() is None
        desk.leave()
        late = incoming()
        desk.deliver(late)
        assert late.ended == "the stream has ended"
        assert desk.status == "ended"

    def test_what_a_person_should_know_is_said(self, desk: Desk) -> None:
        visit = Visit(desk, kinds=frozenset(["audio"]))
        visit.incoming.clock._by_arrival = {}
        visit.incoming.notes.append("something about the sound")
        with BrowserSource(desk) as source:
            list(source)
            source.drops["queue_full"] += 7
        text = "\n".join(source.warnings)
        assert "sender reports" in text
        assert "something about the sound" in text
        assert dict(+source.drops) == {"queue_full": 7}
