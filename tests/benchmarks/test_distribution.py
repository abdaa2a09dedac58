# SPDX-License-Identifier: Apache-2.0
"""Percentiles that say how much they know, and histograms that lose nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.latency.distribution import (
    binomial_cdf,
    bootstrap_median,
    distribution,
    interval_ranks,
)


def test_every_sample_counts_whatever_it_is() -> None:
    times = [1.0] * 99 + [1000.0]
    found = distribution(times)
    assert (found["samples"], found["min_ms"], found["max_ms"]) == (100, 1.0, 1000.0)
    assert found["mean_ms"] == pytest.approx((99 + 1000) / 100)
    assert sum(found["histogram"]["counts"]) == 100
    assert found["histogram"]["counts"][-1] == 1


def test_the_median_is_always_there_and_percentiles_are_as_asked() -> None:
    found = distribution(np.arange(1001.0), [99.9, 90])
    assert list(found["percentiles"]) == ["p50", "p90", "p99.9"]
    assert [p["ms"] for p in found["percentiles"].values()] == pytest.approx([500, 900, 999])
    assert [p["samples_above"] for p in found["percentiles"].values()] == [500, 100, 1]


@pytest.mark.parametrize("times", [[2.5], [0.0, 0.0], [3.0] * 7, [1e-9, 5.0]])
def test_few_equal_or_zero_times_are_no_trouble(times: list[float]) -> None:
    found = distribution(times)
    assert sum(found["histogram"]["counts"]) == len(times)
    assert found["max_ms"] == max(times)


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        distribution([])


@pytest.mark.parametrize(("n", "p"), [(1, 0.5), (10, 0.9), (60, 0.99), (500, 0.95)])
def test_the_binomial_distribution_is_the_textbooks(n: int, p: float) -> None:
    exact = np.cumsum([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])
    np.testing.assert_allclose(binomial_cdf(n, p), exact, atol=1e-10)


def test_intervals_are_those_of_the_tables() -> None:
    # median of 20: the 6th and the 15th of the sorted samples, as for the sign test
    assert interval_ranks(20, 0.5) == (5, 14)
    # the largest of n lies above the 99th percentile with 1 - 0.99^n, which is 97.5 % from 368 on
    assert interval_ranks(367, 0.99)[1] is None
    assert interval_ranks(368, 0.99)[1] == 367


def test_in_nineteen_of_twenty_runs_the_interval_holds_the_true_percentile() -> None:
    rng, held, runs = np.random.default_rng(1), 0, 600
    true = -math.log(1 - 0.9)  # of an exponential distribution
    for _ in range(runs):
        p90 = distribution(rng.exponential(size=200), [90])["percentiles"]["p90"]
        held += p90["low_ms"] <= true <= p90["high_ms"]
    assert 0.93 <= held / runs <= 0.99


def test_too_few_samples_leave_the_upper_end_open() -> None:
    p99 = distribution(np.arange(100.0))["percentiles"]["p99"]
    assert p99["high_ms"] is None
    assert p99["low_ms"] == 96.0


def test_the_bootstrap_interval_holds_the_median_and_narrows_with_more() -> None:
    rng = np.random.default_rng(2)
    few, many = (bootstrap_median(rng.normal(5, 1, n)) for n in (30, 3000))
    assert few[0] < 5 < few[1]
    assert many[1] - many[0] < (few[1] - few[0]) / 4
