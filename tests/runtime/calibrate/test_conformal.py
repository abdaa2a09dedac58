# SPDX-License-Identifier: Apache-2.0
"""The promise of a conformal threshold, by simulation; its intervals, against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from runtime.calibrate.conformal import (
    rank,
    rate_interval,
    scores_needed,
    share_interval,
    threshold,
)


@pytest.mark.parametrize(("rate", "needed"), [(0.5, 1), (0.1, 9), (0.05, 19), (0.01, 99)])
def test_how_many_scores_a_rate_needs(rate: float, needed: int) -> None:
    assert scores_needed(rate) == needed
    assert rank(needed, rate) == needed  # the highest of them
    assert rank(needed - 1, rate) is None
    assert threshold([0.5] * (needed - 1), rate) is None


def test_the_threshold_is_one_of_the_scores() -> None:
    scores = [0.3, 0.9, 0.1, 0.5, 0.7, 0.2, 0.8, 0.4, 0.6]
    assert threshold(scores, 0.1) == 0.9
    assert threshold(scores, 0.2) == 0.8
    assert threshold(scores, 0.5) == 0.5


def false_alarms(rate: float, n: int, rounds: int, spoil: float = 0.0) -> float:
    """Share of ``rounds`` in which a new score exceeds the threshold of n others."""
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(rounds):
        site = rng.normal()  # unlike from site to site, the same within one: exchangeable
        scores = site + rng.standard_exponential(n + 1)
        chosen = threshold(scores[:n].tolist(), rate)
        assert chosen is not None
        hits += bool(scores[n] + spoil > chosen)
    return hits / rounds


@pytest.mark.parametrize(("rate", "n"), [(0.05, 19), (0.05, 30), (0.1, 24), (0.2, 100)])
def test_a_new_score_exceeds_the_threshold_as_rarely_as_promised(rate: float, n: int) -> None:
    rounds = 4000
    error = 4 * math.sqrt(rate * (1 - rate) / rounds)  # four standard errors
    k = rank(n, rate)
    assert k is not None
    exact = 1 - k / (n + 1)  # without ties
    assert rate - 1 / (n + 1) <= exact <= rate + 1e-9
    assert false_alarms(rate, n, rounds) == pytest.approx(exact, abs=error)


def test_the_simulation_can_fail() -> None:
    """A new score that is not like the others exceeds it more often: the promise needs that."""
    assert false_alarms(0.05, 30, 1000, spoil=1.0) > 0.08


def test_intervals_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="SciPy (extra train) is the reference here")
    for n, k in [(19, 19), (30, 30), (40, 39), (500, 476), (1, 1)]:
        expected = stats.beta.ppf([0.025, 0.975], n + 1 - k, k)
        assert rate_interval(n, k) == pytest.approx(expected, rel=1e-9)
    for hits, n in [(0, 10), (3, 10), (10, 10), (17, 400), (1, 1), (0, 1)]:
        expected = stats.binomtest(hits, n).proportion_ci(0.95, "exact")
        assert share_interval(hits, n) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_intervals_by_hand() -> None:
    """The highest of n: its rate is Beta(1, n), whose quantiles are 1 - (1 - q)^(1/n)."""
    low, high = rate_interval(30, 30)
    assert low == pytest.approx(1 - 0.975 ** (1 / 30))
    assert high == pytest.approx(1 - 0.025 ** (1 / 30))
    assert share_interval(0, 5) == pytest.approx((0.0, 1 - 0.025 ** (1 / 5)))
    assert share_interval(0, 0) == (0.0, 1.0)
