# SPDX-License-Identifier: Apache-2.0
"""What genuine and forged clips go through alike."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.spec import AudioSpec
from trainer.data.nuisance import MARGIN_TOKENS, Nuisance, apply_nuisance, draw_nuisance, held

SPEC = AudioSpec()


def clip(tokens: int = 60) -> tuple[list[np.ndarray], np.ndarray]:
    """Frame i is grey with level i; sample n of the sound is n / 100,000."""
    frames = [np.full((40, 60, 3), i, np.uint8) for i in range(tokens)]
    return frames, (np.arange(tokens * 640) / 100_000).astype(np.float32)


@pytest.mark.parametrize("transport_ms", [-200.0, -37.5, 0.0, 80.0, 200.0])
def test_the_sound_comes_late_by_the_offset_and_nothing_is_filled_in(transport_ms: float):
    out, sound = apply_nuisance(*clip(), Nuisance(transport_ms=transport_ms), SPEC)
    assert len(out) == 60 - MARGIN_TOKENS
    assert len(sound) == 640 * len(out)
    pictured = int(out[0][0, 0, 0]) * 640  # sample that belonged to the first picture
    heard = round(sound[0] * 100_000)
    assert (pictured - heard) / 16 == pytest.approx(transport_ms, abs=0.1)
    assert np.allclose(np.diff(sound), 1e-5, atol=1e-6)  # the recording's own samples in a row
    assert heard >= 320  # not the silence that a codec puts at the start


def test_light_level_and_size_change_as_recorded():
    frames, audio = clip()
    out, sound = apply_nuisance(frames, audio, Nuisance(scale=0.8, gain_db=-6.0, gamma=0.9), SPEC)
    plain, loud = apply_nuisance(frames, audio, Nuisance(), SPEC)
    assert out[0].shape == (32, 48, 3)
    assert np.allclose(sound, loud * 10 ** (-6 / 20), atol=1e-6)
    assert out[30].mean() > plain[30].mean()
    assert np.array_equal(plain[3], frames[4])


def test_a_lower_frame_rate_holds_pictures():
    assert held(2, 8, 12.5, 25.0) == [2, 2, 4, 4, 6, 6, 8, 8]
    assert held(2, 5, None, 25.0) == [2, 3, 4, 5, 6]
    shown = held(0, 50, 15.0, 25.0)
    assert len(set(shown)) == 30
    assert all(0 <= i - s <= 2 for i, s in enumerate(shown))


def test_draws_stay_within_what_transport_does_and_differ():
    draws = [draw_nuisance(np.random.default_rng(seed)) for seed in range(200)]
    offsets = np.array([d.transport_ms for d in draws])
    assert np.abs(offsets).max() <= 200
    assert offsets.min() < -150 < 150 < offsets.max()
    assert {d.frame_hz for d in draws} == {None, 12.5, 15.0, 20.0}
    assert all(-15 <= d.gain_db <= -3 for d in draws)
    assert draw_nuisance(np.random.default_rng(1), 0.0).transport_ms == 0
    assert draw_nuisance(np.random.default_rng(7)) == draw_nuisance(np.random.default_rng(7))
