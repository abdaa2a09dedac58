# SPDX-License-Identifier: Apache-2.0
"""Occlusion finds what a score hangs on, and refuses to explain a window it cannot judge again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from runtime.backends.base import FusionOutput
from runtime.decision import fake_minus_real, sigmoid
from runtime.sinks.occlusion import (
    BANDS,
    ENCODE_BATCH,
    FUSE_BATCH,
    SLICES,
    Evidence,
    importance,
    windows_to_judge,
)
from runtime.spec import PairSpec
from runtime.verdict import Verdict
from tests.runtime.doubles import SPEC, MockBackend, with_calibration
from tests.runtime.test_verdict import verdict

T, SIDE, MARGIN = 50, SPEC.face.crop_px, 5


class Planted(MockBackend):
    """Fake where the lower left of a crop is bright and where the high, late sound is loud."""

    def __init__(self, spec: PairSpec = SPEC) -> None:
        super().__init__(spec)
        self.windows: list[int] = []  # B of every call

    def encode(self, frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.encoded.append(len(frames))
        features = np.zeros((len(frames), self.spec.model.channels), np.float32)
        features[:, 0] = frames[:, 3 * SIDE // 4 :, : SIDE // 4].mean((1, 2, 3)) / 255
        return features

    def fuse(self, visual: np.ndarray[Any, Any], audio: np.ndarray[Any, Any]) -> FusionOutput:
        self.windows.append(len(visual))
        frames = audio.reshape(*audio.shape[:2], 4, 26)
        loud = frames[:, -10:, :, 22:].mean((1, 2, 3))
        bright = visual[..., 0].mean(1)

        def pair(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return np.stack([np.zeros_like(x), x], -1).astype(np.float32)

        none = np.zeros((len(visual), T, 1), np.float32)
        return FusionOutput(
            pair(6 * bright + 2 * loud - 3), pair(loud), pair(bright), none[..., 0], none, none,
            none[:, 0],
        )  # fmt: skip


def evidence(shift: int = 0) -> Evidence:
    """A window whose sound was taken ``shift`` tokens later than the picture."""
    crops = np.full((10, SIDE, SIDE, 3), 40, np.uint8)
    crops[:, 3 * SIDE // 4 :, : SIDE // 4] = 250
    audio = np.zeros((T + 2 * MARGIN, 104), np.float32)
    audio[MARGIN + shift + T - 10 : MARGIN + shift + T].reshape(10, 4, 26)[:, :, 22:] = 1.0
    audio[: MARGIN + shift] = -1.0
    return Evidence(crops, np.arange(T) // 5, audio, MARGIN)


def judged(backend: MockBackend, e: Evidence, shift: int = 0, **changes: Any) -> Verdict:
    """The verdict that a session would have given, as far as it is compared."""
    visual = backend.encode(e.crops)[e.shown][None]
    out = backend.fuse(visual, e.audio[MARGIN + shift : MARGIN + shift + T][None])
    c = backend.spec.calibration
    return verdict(
        p_fake_video=sigmoid(fake_minus_real(out.logits_v[0]) / c.temperature_v + c.bias_v),
        p_fake_audio=sigmoid(fake_minus_real(out.logits_a[0]) / c.temperature_a + c.bias_a),
        sync=0.0, **changes,
    )  # fmt: skip


def steps() -> tuple[list[int], Any]:
    taken: list[int] = []
    return taken, taken.append


def test_the_part_that_speaks_for_fake_is_found_in_picture_and_voice() -> None:
    backend, e = Planted(), evidence()
    found = importance(backend, e, judged(backend, e), lambda n: None)
    assert found is not None
    y, x = np.unravel_index(int(found.picture.argmax()), found.picture.shape)
    assert y >= 3 * SIDE // 4
    assert x < SIDE // 4
    assert found.picture[: SIDE // 2, SIDE // 2 :].max() == pytest.approx(0, abs=1e-6)
    band, part = np.unravel_index(int(found.voice.argmax()), found.voice.shape)
    assert (band, part) in [(BANDS - 1, SLICES - 1), (BANDS - 1, SLICES - 2)]
    assert found.voice[: BANDS - 2].max() == pytest.approx(0, abs=1e-6)


def test_a_change_is_in_calibrated_log_odds_and_its_sign_says_for_what() -> None:
    """Covering all that is bright takes 6 (250 - 128) / 255 from the logit, halved here."""
    backend = Planted(with_calibration(temperature_av=2.0))
    e = evidence()
    found = importance(backend, e, judged(backend, e), lambda n: None)
    assert found is not None
    corner = found.picture[-1, 0]
    assert corner == pytest.approx(6 * (250 - 128) / 255 / 2, rel=0.01)
    dark = replace(e, crops=np.where(e.crops == 250, 0, 250).astype(np.uint8))
    found = importance(backend, dark, judged(backend, dark), lambda n: None)
    assert found is not None
    assert found.picture[-1, 0] < 0  # darkness there spoke for genuine


def test_the_offset_that_was_compensated_is_found_again() -> None:
    backend, e = Planted(), evidence(shift=3)
    found = importance(backend, e, judged(backend, e, shift=3), lambda n: None)
    assert found is not None
    np.testing.assert_array_equal(found.tokens, e.audio[MARGIN + 3 : MARGIN + 3 + T])


@pytest.mark.parametrize("changes", [{"p_fake_video": 0.9}, {"p_fake_audio": None}, {"sync": 0.5}])
def test_a_window_that_comes_out_otherwise_is_not_explained(changes: dict[str, Any]) -> None:
    backend, e = Planted(), evidence()
    v = replace(judged(backend, e), **changes)
    assert importance(backend, e, v, lambda n: None) is None


def test_its_cost_is_bounded_and_batched_and_the_progress_bar_ends_at_its_end() -> None:
    backend, e = Planted(), evidence()
    v = judged(backend, e)
    backend.encoded.clear()
    backend.windows.clear()
    taken, step = steps()
    importance(backend, e, v, step)
    assert sum(taken) == windows_to_judge() == 96
    assert sum(backend.encoded) == 37 * len(e.crops)  # each picture once a place, not each token
    assert max(backend.encoded) <= ENCODE_BATCH
    assert max(backend.windows) <= max(FUSE_BATCH, 2 * MARGIN + 1)


def test_the_evidence_is_not_written_to() -> None:
    backend, e = Planted(), evidence()
    before = (e.crops.copy(), e.audio.copy())
    importance(backend, e, judged(backend, e), lambda n: None)
    np.testing.assert_array_equal(e.crops, before[0])
    np.testing.assert_array_equal(e.audio, before[1])
