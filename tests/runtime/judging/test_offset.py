# SPDX-License-Identifier: Apache-2.0
"""Lag curve and clarity against direct computation."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.judging.offset import clarity, lag_curve, lag_peak


def unit(rng: np.random.Generator, t: int, e: int = 16) -> np.ndarray:
    x = rng.standard_normal((t, e))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("late", [-10, -3, 0, 1, 15])
def test_sound_that_comes_late_peaks_at_its_positive_lag(late: int):
    rng = np.random.default_rng(0)
    video = unit(rng, 100)
    audio = np.roll(video, late, axis=0)  # audio token i + late matches video token i
    peak = lag_peak(lag_curve(video[20:70], audio[20:70], 15))
    assert peak.lag_tokens == late
    assert peak.confidence > 0.8


def test_each_lag_is_the_mean_cosine_of_its_pairs():
    rng = np.random.default_rng(1)
    video, audio = unit(rng, 20), unit(rng, 20)
    curve = lag_curve(video, audio, 4)
    for lag in range(-4, 5):
        pairs = [video[i] @ audio[i + lag] for i in range(20) if 0 <= i + lag < 20]
        assert curve[4 + lag] == pytest.approx(np.mean(pairs), abs=1e-12)


def test_unrelated_tokens_have_no_confident_peak():
    rng = np.random.default_rng(2)
    assert lag_peak(lag_curve(unit(rng, 50, 64), unit(rng, 50, 64), 15)).confidence < 0.1


def test_clarity_is_high_for_any_sound_that_the_picture_can_be_matched_with():
    """Whatever the order: a replaced voice is not out of domain, one that cannot be read is."""
    rng = np.random.default_rng(3)
    words = unit(rng, 8, 64)
    video, audio = words[rng.integers(0, 8, 50)], words[rng.integers(0, 8, 50)]
    assert clarity(video, audio) > 0.7
    mumbled = audio + 3 * unit(rng, 50, 64)
    mumbled /= np.linalg.norm(mumbled, axis=1, keepdims=True)
    assert clarity(video, mumbled) < 0.6 * clarity(video, audio)


def test_clarity_is_that_of_the_poorer_side():
    """A still face matches no token better than another, however rich the sound."""
    rng = np.random.default_rng(4)
    video, still = unit(rng, 50), np.repeat(unit(rng, 1), 50, axis=0)
    assert clarity(video, still) == pytest.approx(0.0, abs=1e-12)
    assert clarity(still, video) == pytest.approx(0.0, abs=1e-12)


def test_clarity_by_hand():
    video, audio = np.eye(2), np.array([[1.0, 0.0], [0.6, 0.8]])
    rows = ((1 - 0.8) + (0.8 - 0.4)) / 2  # cosines [[1, 0.6], [0, 0.8]]
    columns = ((1 - 0.5) + (0.8 - 0.7)) / 2
    assert clarity(video, audio) == pytest.approx(min(rows, columns))
