# SPDX-License-Identifier: Apache-2.0
"""Lag curve and domain distance against direct computation."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.alignment import domain_distance, domain_statistics, lag_curve, lag_peak
from runtime.spec import DomainSpec


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


def test_domain_distance_is_one_on_average_inside_and_grows_outside():
    rng = np.random.default_rng(3)
    k = 5
    inside = rng.standard_normal((4000, k)) * 2 + 1
    domain = DomainSpec((1.0,) * k, tuple(tuple(row) for row in (np.eye(k) / 2).tolist()), 3.0)
    squared = [domain_distance(x, domain) ** 2 for x in inside]
    assert np.mean(squared) == pytest.approx(1.0, abs=0.05)
    assert domain_distance(np.full(k, 21.0), domain) == pytest.approx(10.0)


def test_without_a_calibrated_domain_nothing_is_far():
    assert domain_distance(np.ones(3), DomainSpec()) == 0.0


def test_tokens_that_fall_together_have_no_spread():
    rng = np.random.default_rng(4)
    visual, video = rng.standard_normal((50, 8)), unit(rng, 50)
    still = np.repeat(unit(rng, 1), 50, axis=0)
    statistics = domain_statistics(visual, video, still)
    assert statistics.shape == (10,)
    np.testing.assert_allclose(statistics[:8], visual.mean(0))
    assert statistics[8] > 0.7
    assert statistics[9] == pytest.approx(0.0, abs=1e-9)
