# SPDX-License-Identifier: Apache-2.0
"""How many streams a machine holds: the search, the paced source, one small trial."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runtime.flow.pictures
from benchmarks.stream import __main__ as stream
from benchmarks.stream import many as streams
from benchmarks.stream.paced import PacedSource
from runtime.media import AudioChunk, VideoChunk
from runtime.media.file import FileSource
from tests.runtime.clips import write_clip
from tests.runtime.doubles import MockBackend, MockTracker


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mkv", seconds=1.0)


def machine(holds: int) -> tuple[Callable[[int], streams.Trial], list[int]]:
    """One that holds that many, and what it was asked."""
    asked: list[int] = []

    def trial(count: int) -> streams.Trial:
        asked.append(count)
        return {"streams": count, "holds": count <= holds}

    return trial, asked


@pytest.mark.parametrize("holds", [0, 1, 2, 3, 5, 8, 37, streams.MAX_STREAMS + 9])
def test_the_search_finds_the_most_streams_in_few_trials(holds: int) -> None:
    trial, asked = machine(holds)
    assert streams.most(streams.find(trial)) == min(holds, streams.MAX_STREAMS)
    assert len(asked) == len(set(asked)) <= 13


def test_a_paced_source_is_a_live_one_that_loops_in_real_time(clip: Path) -> None:
    with PacedSource(lambda: FileSource(clip), name="cam", seconds=1.6, delay_s=0.2) as source:
        assert (source.live, source.paced, source.info.duration_s) == (True, True, None)
        start = time.monotonic()
        chunks = [(time.monotonic(), c) for c in source]
        pictures = [c.t_s for _, c in chunks if isinstance(c, VideoChunk)]
    assert len(pictures) == 40
    assert pictures == sorted(pictures)
    assert all(at >= (c.captured_s or 0.0) for at, c in chunks)  # never before its time
    ready = [c.t_s + (c.samples.size / 16_000 if isinstance(c, AudioChunk) else 0.0)
             for _, c in chunks]  # fmt: skip
    assert ready == sorted(ready)  # in the order of the world, not of the container
    assert all(c.captured_s == pytest.approx(start + 0.2 + c.t_s, abs=0.5) for _, c in chunks)


@pytest.mark.thorough
def test_a_trial_says_what_was_lost_and_how_late_verdicts_were(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.flow.pictures, "FaceTracker", lambda spec: MockTracker())
    monkeypatch.setattr(streams, "WARM_UP_S", 0.0)
    trial = streams.measure(
        clip, 2, seconds=3.0, bound_ms=60_000, backend=MockBackend(), quiet=True
    )
    assert trial["streams"] == 2
    assert trial["verdicts"] + trial["shed_windows"] == trial["windows"] > 0
    assert 0 < trial["capture_to_verdict_ms"]["p50"] <= trial["capture_to_verdict_ms"]["p99"]
    lost = trial["picture_loss"] > streams.MAX_LOSS or trial["window_loss"] > streams.MAX_LOSS
    assert trial["holds"] is not lost
    assert "2 streams: " in streams.line(trial)


@pytest.mark.parametrize("text", ["0", "-1", "many", "257", "1.5"])
def test_a_number_of_streams_is_checked(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="nor auto"):
        stream.parse_streams(text)
    chosen: Any = [stream.parse_streams(t) for t in ("1", "256", "auto")]
    assert chosen == [1, 256, "auto"]
