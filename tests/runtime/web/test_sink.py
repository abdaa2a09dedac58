# SPDX-License-Identifier: Apache-2.0
"""What the page knows: by source, bounded, and nothing that people should not be shown."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from runtime.flow.driver import run
from runtime.flow.sink import MediaSink, StartSink
from runtime.flow.summary import CAUSES
from runtime.judging.verdict import Label, Reason
from runtime.media import AudioChunk, MediaInfo
from runtime.web import sink as module
from runtime.web.sink import WebSink
from tests.runtime.clips import write_clip
from tests.runtime.doubles import MockBackend, MockTracker
from tests.runtime.sinks.test_terminal import summary
from tests.runtime.web.serving import abstention, picture, verdict


def of(sink: WebSink, source: str = "a.mp4") -> dict:
    return sink.state()["sources"][source]


def test_it_is_a_sink_of_everything() -> None:
    assert isinstance(WebSink(), MediaSink)
    assert isinstance(WebSink(), StartSink)


def test_verdicts_are_counted_and_kept_by_source() -> None:
    sink = WebSink()
    sink.write(verdict())
    sink.write(verdict(2.2, label=Label.FAKE, p_fake=0.9))
    sink.write(abstention(Reason.NO_SPEECH, 2.4))
    sink.write(verdict(source="b.mp4"))
    a, b = of(sink), of(sink, "b.mp4")
    assert a["labels"] == {"real": 1, "fake": 1, "abstain": 1}
    assert a["reasons"] == {"no_speech": 1}
    assert a["coverage"] == pytest.approx(2 / 3, abs=1e-3)
    assert a["av_offset_ms"] == 40.0
    assert [v["t_end_s"] for v in a["verdicts"]] == [2.0, 2.2, 2.4]
    assert b["windows"] == 1
    json.dumps(sink.state(), allow_nan=False)


def test_scores_of_what_the_model_cannot_read_are_not_shown() -> None:
    """As in the terminal: they would be taken for a finding.  The schema keeps them."""
    sink = WebSink()
    sink.write(abstention(Reason.OUT_OF_DOMAIN, p_fake=0.97))
    (shown,) = of(sink)["verdicts"]
    assert shown["shown"] == [None, None, None]
    assert shown["p_fake"] == 0.97


def test_latency_percentiles_are_of_the_verdicts() -> None:
    sink = WebSink()
    assert sink.state()["sources"] == {}
    for i in range(100):
        sink.write(verdict(latency_ms=float(i)))
    assert of(sink)["latency_ms"] == {"p50": 49.5, "p99": 98.0, "of": 100}


def test_a_viewer_gets_each_verdict_once() -> None:
    sink = WebSink()
    sink.write(verdict(2.0))
    first, seen = sink.news({})
    sink.write(verdict(2.2))
    second, seen = sink.news(seen)
    third, _ = sink.news(seen)
    ends = [
        [v["t_end_s"] for v in n["sources"]["a.mp4"]["verdicts"]] for n in (first, second, third)
    ]
    assert ends == [[2.0], [2.2], []]
    assert third["sources"]["a.mp4"]["windows"] == 2


def test_only_the_newest_picture_is_kept() -> None:
    sink = WebSink()
    for t in range(5):
        sink.picture(picture(t / 25))
    ((number, newest),) = sink.newest_pictures({}).values()
    assert (number, newest.t_s) == (5, 4 / 25)
    assert sink.newest_pictures({"a.mp4": 5}) == {}


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_VERDICTS", 10)
    sink = WebSink()
    for i in range(100):
        sink.write(verdict(2 + i / 5))
    assert len(of(sink)["verdicts"]) == 10
    assert of(sink)["windows"] == 100


def test_the_level_of_the_sound_is_shown_and_digital_silence_has_one() -> None:
    sink = WebSink()
    sink.sound("a.mp4", AudioChunk(0.0, np.full(160, 0.1, np.float32)))
    assert of(sink)["level_dbfs"] == -20.0
    sink.sound("a.mp4", AudioChunk(0.0, np.zeros(160, np.float32)))
    assert of(sink)["level_dbfs"] == module.SILENCE_DBFS


def test_threads_of_several_streams_may_write_while_it_is_read() -> None:
    sink = WebSink()
    names = [f"{i}.mp4" for i in range(4)]

    def stream(name: str) -> None:
        for i in range(300):
            sink.write(verdict(2 + i / 5, source=name))
            sink.picture(picture(i / 25, source=name))

    threads = [threading.Thread(target=stream, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        json.dumps(sink.state())
    assert {name: of(sink, name)["windows"] for name in names} == dict.fromkeys(names, 300)


def test_damage_of_a_live_source_is_shown_once_however_old_its_summary_is() -> None:
    source = SimpleNamespace(
        live=True, drops={"decode_error": 4, "timestamp": 1}, damaged=5, warnings=[],
        info=MediaInfo("rtsp://door", True, True, 64, 48, 25.0, None),
    )  # fmt: skip
    sink = WebSink()
    sink.watch(source)  # type: ignore[arg-type]
    sink.begin(summary(source="rtsp://door", drops={"decode_error": 3, "queue_full": 7}))
    shown = of(sink, "rtsp://door")["drops"]
    assert shown == {"decode_error": 4, "timestamp": 1, "queue_full": 7}


def test_a_stream_shows_its_counters_while_it_runs_and_its_end(tmp_path, monkeypatch) -> None:
    import runtime.flow.pictures
    from runtime.media.file import FileSource

    monkeypatch.setattr(runtime.flow.pictures, "FaceTracker", lambda spec: MockTracker())
    sink = WebSink()
    states = []

    class Peek:
        def write(self, _: object) -> None:
            states.append(of(sink, str(clip)))

    # Pictures are missing from 0.6 to 1.4 s.
    times = [t for t in range(0, 3000, 40) if not 600 < t < 1400]
    clip = write_clip(tmp_path / "clip.mp4", times_ms=times)
    with FileSource(clip) as source:
        sink.watch(source)
        source.warnings.append("a warning")
        summary = run(source, MockBackend(), sinks=[sink, Peek()])
    assert states[0]["status"] == "live"
    assert states[0]["size"] == [160, 120]
    assert states[0]["drops"]["gap"] > 0
    assert states[0]["warnings"] == ["a warning"]
    ended = of(sink, str(clip))
    assert ended["status"] == "ended"
    assert ended["drops"]["gap"] == summary.stats.gaps
    assert set(ended["drops"]) <= set(CAUSES)
    assert ended["coverage"] == pytest.approx(summary.stats.coverage, abs=1e-4)
