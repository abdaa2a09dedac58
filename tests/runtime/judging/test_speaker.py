# SPDX-License-Identifier: Apache-2.0
"""Who speaks: by synchrony, by the mouth, by both; on two people in one picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.flow.driver import run
from runtime.flow.sink import Collector
from runtime.judging.speaker import (
    MIN_MOTION,
    Candidate,
    correlation,
    find_speaker,
    motion_evidence,
    mouth,
    mouth_motion,
)
from runtime.judging.verdict import Label, Reason, Verdict
from runtime.media.file import FileSource
from tests.runtime.scenes import side_by_side, speakers

LAG = 5
RNG = np.random.default_rng(4)
LEVELS = np.clip(RNG.normal(-30, 10, 50), -50, 0).astype(np.float32)  # of a voice, [T]
TALKING = (3 + (LEVELS + 30) / 8).clip(0).astype(np.float32)  # a mouth that goes with it
STILL = np.full(50, 0.3, np.float32)
CHEWING = RNG.uniform(0, 8, 50).astype(np.float32)


def face(confidence: float, motion: Any, confident: bool | None = None) -> Candidate:
    vouched = confidence >= 0.12 if confident is None else confident
    return Candidate(confidence, vouched, motion, LEVELS)


def test_synchrony_tells_two_moving_mouths_apart() -> None:
    assert find_speaker([face(0.1, TALKING), face(0.5, TALKING)], LAG) == 1
    assert find_speaker([face(0.5, TALKING), face(0.1, TALKING)], LAG) == 0


def test_a_mouth_that_moves_with_the_sound_speaks_though_the_model_cannot_tell() -> None:
    """A strange camera, or a voice that was replaced: the model sees no synchrony anywhere."""
    assert find_speaker([face(0.05, STILL), face(0.05, TALKING)], LAG) == 1


def test_chance_synchrony_of_a_listener_does_not_outdo_the_talker() -> None:
    assert find_speaker([face(0.16, STILL), face(0.08, TALKING)], LAG) == 1


def test_nobody_speaks_when_no_cue_vouches_for_anybody() -> None:
    assert find_speaker([], LAG) is None
    assert find_speaker([face(0.05, STILL), face(0.08, STILL)], LAG) is None
    assert find_speaker([face(0.05, TALKING), face(0.05, TALKING)], LAG) is None  # who of the two?
    assert motion_evidence([face(0, CHEWING), face(0, STILL)], 0)[0] < MIN_MOTION


@pytest.mark.parametrize("lag", [-5, 0, 4])
def test_correlation_allows_for_transport(lag: int) -> None:
    assert correlation(np.roll(TALKING, lag), LEVELS, LAG) > 0.8
    assert correlation(STILL, LEVELS, LAG) < 1e-6


def test_mouth_motion_is_measured_where_the_mouth_is() -> None:
    a = np.zeros((64, 64, 3), np.uint8)
    brow, lips = a.copy(), a.copy()
    brow[10:20] = 255
    lips[48:54, 24:40] = 90
    assert mouth_motion(mouth(a), mouth(brow)) == 0
    assert mouth_motion(mouth(a), mouth(lips)) == pytest.approx(90 * 6 * 16 / mouth(a).size)


def test_the_mouth_is_the_mean_of_the_colours_to_the_last_bit() -> None:
    crop = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    want = crop[44:62, 16:48].mean(2, dtype=np.float32)  # [h, w]
    found = mouth(crop)
    assert found.dtype == np.float32
    assert np.array_equal(found, want)


# Two people who both talk, one voice: which of the two faces it belongs to is all there is to find.


@pytest.fixture(scope="module")
def backend(real_pair: Path) -> Iterator[Any]:
    from runtime.backends.onnx import OnnxBackend

    with OnnxBackend(real_pair, threads=1) as backend:
        yield backend


def judge(backend: Any, clip: Path) -> dict[str, list[Verdict]]:
    """Verdicts of the left and of the right face; the tracker starts with the clearest face."""
    sink = Collector()
    places: dict[int, float] = {}

    class Watch(Collector):
        def picture(self, picture: Any) -> None:
            places.update({f.track_id: f.box[0] for f in picture.faces})

        def sound(self, source: str, chunk: Any) -> None:
            pass

        def end(self, summary: Any) -> None:
            pass

    with FileSource(clip) as source:
        run(source, backend, sinks=[sink, Watch()])
    assert len(places) == 2
    left = min(places, key=lambda face_id: places[face_id])
    return {
        side: [v for v in sink.verdicts if (v.face_id == left) == (side == "left")]
        for side in ("left", "right")
    }


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("voice", [0, 1])
def test_the_speaker_is_found_and_the_other_face_abstains(
    backend: Any, grid_dir: Path, tmp_path: Path, voice: int, side: str
) -> None:
    people = speakers(grid_dir)[3], speakers(grid_dir)[1]
    silent = people[1 - voice]
    pair = (people[voice], silent) if side == "left" else (silent, people[voice])
    found = judge(backend, side_by_side(tmp_path / "two.mp4", *pair, people[voice]))
    other = found["right" if side == "left" else "left"]
    assert len(found[side]) == len(other) >= 5
    assert {v.reason for v in other} == {Reason.NO_ACTIVE_SPEAKER}
    assert all(v.label is Label.ABSTAIN and v.p_fake_video is not None for v in other)
    assert Reason.NO_ACTIVE_SPEAKER not in {v.reason for v in found[side]}
