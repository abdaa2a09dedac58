# SPDX-License-Identifier: Apache-2.0
"""The demonstration, with a mock model on a generated clip."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import runtime.backends
import runtime.flow.pictures
from runtime.demo import __main__ as demo
from runtime.media import AudioChunk, VideoChunk
from runtime.media.file import FileSource
from tests.runtime.clips import write_clip
from tests.runtime.doubles import MockBackend, MockTracker, speech


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", seconds=6.0, sound=speech(150), codec="libx264")


def read(path: Path) -> tuple[list[float], np.ndarray]:  # type: ignore[type-arg]
    with FileSource(path) as source:
        chunks = list(source)
    pictures = [c.t_s for c in chunks if isinstance(c, VideoChunk)]
    return pictures, np.concatenate([c.samples for c in chunks if isinstance(c, AudioChunk)])


def test_the_sound_moves_and_the_picture_stays(clip: Path, tmp_path: Path) -> None:
    target = tmp_path / "shifted.mp4"
    shift_s = demo.shift_sound(clip, target)
    assert shift_s == pytest.approx(3.0, abs=0.1)  # at most half of the clip
    (before_t, before), (after_t, after) = read(clip), read(target)
    np.testing.assert_allclose(after_t, before_t, atol=1e-3)
    n = min(len(before), len(after))
    moved = np.roll(before, round(shift_s * 16_000))[:n]
    assert np.corrcoef(moved[8_000:-8_000], after[:n][8_000:-8_000])[0, 1] > 0.9
    assert np.corrcoef(before[:n], after[:n])[0, 1] < 0.5


def test_both_runs_are_shown_side_by_side_and_written(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runtime.backends, "load_backend", lambda *_: MockBackend())
    monkeypatch.setattr(runtime.flow.pictures, "FaceTracker", lambda spec: MockTracker())
    output = tmp_path / "demo"
    for _ in range(2):  # a second run replaces the first
        assert demo.main(["--source", str(clip), "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert "as it is" in out
    assert "sound moved by 3.0 s" in out
    assert sorted(p.name for p in output.iterdir()) == [
        "original.jsonl", "sound_shifted.jsonl", "summary.json"
    ]  # fmt: skip
    for name in ("original", "sound_shifted"):
        lines = (output / f"{name}.jsonl").read_text().splitlines()
        assert {json.loads(line)["face_id"] for line in lines} == {0}
        assert len(lines) == 21
        assert {json.loads(line)["source"] for line in lines} == {f"clip.mp4 ({name})"}
    summary = json.loads((output / "summary.json").read_text())
    assert set(summary["runs"]) == {"original", "sound_shifted"}
    assert summary["runs"]["original"]["stats"]["verdicts"] == 21


def test_a_clip_without_sound_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runtime.backends, "load_backend", lambda *_: MockBackend())
    mute = write_clip(tmp_path / "mute.mp4", sound=None)
    assert demo.main(["--source", str(mute), "--output", str(tmp_path / "demo")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "needs a clip with picture and sound" in error
