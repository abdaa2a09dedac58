# SPDX-License-Identifier: Apache-2.0
"""From a source to sinks and a summary."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import runtime.flow.pictures
from runtime.closing import Closing
from runtime.errors import UsageError
from runtime.flow.driver import run
from runtime.flow.sink import Picture, Sink
from runtime.flow.summary import FakeSpan, Summary
from runtime.judging.verdict import Label, Verdict
from runtime.media import AudioChunk, MediaInfo, VideoChunk
from runtime.media.file import FileSource
from tests.runtime.clips import write_clip
from tests.runtime.doubles import MockBackend, MockTracker, picture, speech
from tests.runtime.judging.test_verdict import verdict
from tests.runtime.sinks.test_terminal import summary


class Kept:
    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []

    def write(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)


class Watching(Kept):
    """A sink that takes all there is."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[Picture] = []
        self.samples = 0
        self.summaries: list[Summary] = []

    def picture(self, picture: Picture) -> None:
        self.pictures.append(picture)

    def sound(self, source: str, chunk: AudioChunk) -> None:
        self.samples += len(chunk.samples)

    def end(self, summary: Summary) -> None:
        self.summaries.append(summary)


class Live(Closing):
    """A camera that shows ``tokens`` pictures and is then interrupted from the keyboard."""

    live = True
    damaged = 2
    warnings = ["a warning"]  # noqa: RUF012
    info = MediaInfo("camera:0", True, True, 64, 48, 25.0, None)

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def __iter__(self) -> Iterator[VideoChunk | AudioChunk]:
        samples = speech(self._tokens)
        for t in range(self._tokens):
            yield VideoChunk(t / 25, lambda t=t: picture(t))
            yield AudioChunk(t / 25, samples[t * 640 : t * 640 + 640])
        raise KeyboardInterrupt

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _mock_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.flow.pictures, "FaceTracker", lambda spec: MockTracker())


def test_every_verdict_reaches_every_sink_and_the_summary(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv")
    sinks: list[Sink] = [Kept(), Kept()]
    with FileSource(clip) as source:
        result = run(source, MockBackend(), sinks=sinks)
    kept = [s.verdicts for s in sinks if isinstance(s, Kept)]
    assert len(kept[0]) == 6
    assert kept[0] == kept[1]
    assert result.stats.verdicts == 6
    assert result.media_s == pytest.approx(3.0, abs=0.05)
    assert all(result.stats.seconds[s] > 0 for s in ("decode", "face", "audio", "encode", "fuse"))


def test_a_media_sink_gets_pictures_faces_sound_and_the_summary(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv")
    sink = Watching()
    with FileSource(clip) as source:
        result = run(source, MockBackend(), sinks=[sink], name="door")
    assert len(sink.pictures) == result.stats.tokens - result.stats.gaps
    assert [round(p.t_s * 25) for p in sink.pictures] == list(range(len(sink.pictures)))
    assert all(p.source == "door" and p.frame.shape[2] == 3 for p in sink.pictures)
    assert {f.track_id for p in sink.pictures for f in p.faces} == {
        v.face_id for v in sink.verdicts
    }
    assert sink.samples == pytest.approx(3.0 * 16_000, abs=800)
    assert sink.summaries == [result]


def test_a_live_source_ends_with_a_summary_when_interrupted() -> None:
    result = run(Live(60), MockBackend())
    assert result.stats.verdicts == 3
    assert (result.damaged, result.warnings) == (2, ["a warning"])


def test_a_file_that_is_interrupted_is_not_summarised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Live, "live", False)
    with pytest.raises(KeyboardInterrupt):
        run(Live(60), MockBackend())


def test_sound_that_was_not_asked_for_is_not_used(tmp_path: Path) -> None:
    kept = Kept()
    with FileSource(write_clip(tmp_path / "clip.mkv")) as source:
        run(source, MockBackend(), sinks=[kept], with_audio=False)
    assert {str(v.reason) for v in kept.verdicts} == {"no_audio"}


def test_nothing_left_to_judge_is_a_usage_error(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "radio.wav", video=False)
    with FileSource(clip) as source, pytest.raises(UsageError, match="no pictures"):
        run(source, MockBackend(), with_audio=False)


def fake(start_s: float, end_s: float, face: int = 0, p: float = 0.9) -> Verdict:
    return verdict(t_start_s=start_s, t_end_s=end_s, face_id=face, label=Label.FAKE, p_fake=p)


def test_overlapping_fake_windows_of_a_face_make_one_span() -> None:
    s = summary()
    for v in (fake(0, 2), fake(0.2, 2.2), fake(1.0, 3.0, face=1), fake(2.2, 4.2), fake(5, 7)):
        s.add(v)
    s.add(verdict(label=Label.REAL, p_fake=0.95))
    assert s.spans == [FakeSpan(0, 0, 4.2), FakeSpan(1, 1.0, 3.0), FakeSpan(0, 5, 7)]
    assert s.highest_p_fake == 0.95


def test_a_summary_is_json() -> None:
    s: Summary = summary(spans=[FakeSpan(0, 1.0, 2.0)])
    data: dict[str, Any] = json.loads(json.dumps(s.to_dict()))
    assert data["coverage"] == 0.8
    assert data["spans"] == [{"face_id": 0, "start_s": 1.0, "end_s": 2.0}]
    assert data["stats"]["labels"] == {"real": 6, "fake": 2, "abstain": 2}
