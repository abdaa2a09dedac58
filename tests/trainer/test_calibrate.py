# SPDX-License-Identifier: Apache-2.0
"""Calibration against distributions whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the train extra: pip install '.[train]'")

from trainer.scoring.calibrate import (
    Evidence,
    add_network,
    balanced_weights,
    conformal_threshold,
    fit_lags,
    fit_platt,
)


def test_platt_recovers_the_temperature_and_bias_that_made_the_labels():
    rng = np.random.default_rng(0)
    difference = rng.normal(0, 8, 40_000)
    fake = rng.random(40_000) < 1 / (1 + np.exp(-(difference / 4.0 + 0.3)))
    platt = fit_platt(difference, fake.astype(int), np.zeros(40_000))
    assert platt.temperature == pytest.approx(4.0, rel=0.05)
    assert platt.bias == pytest.approx(0.3 + np.log((1 - fake.mean()) / fake.mean()), abs=0.1)


def test_classes_count_equally_whatever_their_numbers():
    """One genuine window for nine fakes: the point between the two is still one half."""
    rng = np.random.default_rng(1)
    difference = np.concatenate([rng.normal(-2, 1, 1_000), rng.normal(2, 1, 9_000)])
    platt = fit_platt(difference, np.repeat([0, 1], [1_000, 9_000]), np.zeros(10_000))
    assert platt(np.array([0.0]))[0] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [1, 1, 0, 0]])
def test_what_cannot_be_calibrated_stays_as_it_is(labels: list[int]):
    assert tuple(fit_platt(np.array([-2.0, -1.0, 1.0, 2.0]), np.array(labels), np.zeros(4))) == (
        1.0,
        0.0,
    )


def lags(inside: float, beyond: float, n: int = 40_000):
    """n windows of one person, of two normal classes whose log-odds have these weights."""
    rng = np.random.default_rng(2)
    fake = (np.arange(n) % 4 > 0).astype(int)  # three in four: classes count equally all the same
    apart = np.array([inside, beyond]) * 2.0**2
    peaks = 5.0 + np.where(fake[:, None] == 1, 0.5, -0.5) * apart
    peaks += 2.0 * rng.standard_normal((n, 2))
    return fit_lags(peaks, fake, np.zeros(n))


def test_lags_are_the_log_odds_of_two_normal_classes():
    found = lags(-0.8, 0.3)
    assert found is not None
    assert found.network == 0
    assert found.lags == pytest.approx((-0.8, 0.3), rel=0.1)
    assert sum(found.lags) * 5.0 + found.bias == pytest.approx(0, abs=0.1)


def test_no_lag_evidence_where_lips_in_time_would_speak_for_a_forgery():
    assert lags(0.8, 0.3) is None
    assert fit_lags(np.zeros((4, 2)), np.zeros(4), np.zeros(4)) is None


def test_the_boundary_does_not_move_to_where_most_windows_of_one_class_are_near():
    """Genuine pairs far apart, one person's nearest the others: half the way between the means."""
    inside = np.concatenate([np.full(50, 9.0), np.full(50, 15.0), np.full(100, 3.0)])
    inside += np.random.default_rng(3).normal(0, 0.5, 200)
    fake = np.repeat([0, 1], 100)
    identity = np.array(["a"] * 50 + ["b"] * 50 + ["a"] * 50 + ["b"] * 50)
    found = fit_lags(np.column_stack((inside, np.zeros(200))), fake, identity)
    assert found is not None
    assert -found.bias / found.lags[0] == pytest.approx((12 + 3) / 2, abs=0.2)


def weighed(network: float, share: float, n: int = 40_000):
    """Labels drawn with log-odds network * difference + share * (lag evidence) + 0.2."""
    rng = np.random.default_rng(4)
    base = Evidence(0.0, (-1.5, 0.5), 5.0)
    difference, peaks = rng.normal(0, 2, n), rng.normal(5, 1, (n, 2))
    known = peaks @ np.array(base.lags) + base.bias
    fake = rng.random(n) < 1 / (1 + np.exp(-(network * difference + share * known + 0.2)))
    return base, add_network(base, difference, peaks, fake.astype(int), np.zeros(n))


def test_an_opinion_that_helps_is_weighed_with_the_lag_evidence():
    base, found = weighed(0.7, 0.5)
    assert found is not None
    assert found.network == pytest.approx(0.7, rel=0.1)
    assert found.lags == pytest.approx((0.5 * base.lags[0], 0.5 * base.lags[1]), rel=0.1)


def test_an_opinion_that_misleads_is_left_out_and_the_boundary_stays():
    base, found = weighed(-0.5, 1.0)
    assert found == base


def test_lag_evidence_that_misleads_is_none():
    assert weighed(0.7, -0.5)[1] is None


def test_a_person_with_many_windows_weighs_no_more_than_one_with_few():
    fake = np.array([0] * 90 + [0] * 10 + [1] * 50)
    identity = np.array(["a"] * 90 + ["b"] * 10 + ["a"] * 50)
    weights = balanced_weights(fake, identity)
    assert weights[:90].sum() == pytest.approx(0.25)
    assert weights[90:100].sum() == pytest.approx(0.25)
    assert weights[100:].sum() == pytest.approx(0.5)


def test_the_conformal_threshold_keeps_its_promise_on_average():
    """Over many draws of 60 clips, a new clip exceeds the threshold at most 10 % of the time, and
    hardly less; the interval holds this draw's own rate 19 times of 20."""
    rng = np.random.default_rng(2)
    rates, held = [], 0
    for _ in range(400):
        score = rng.random((60, 3))  # three windows a clip
        clip = np.repeat(np.arange(60), 3)
        got = conformal_threshold(score.ravel(), clip, np.repeat("a", 180), 0.1)
        assert got is not None
        rate = 1 - got["threshold"] ** 3  # of a new clip's highest window
        rates.append(rate)
        low, high = got["interval_95"]
        held += low <= rate <= high
    assert np.mean(rates) == pytest.approx(6 / 61, abs=0.006)  # 60 + 1 - 55 of 60 + 1
    assert 0.91 < held / 400 < 0.99


def test_too_few_clips_promise_nothing():
    score = np.linspace(0, 1, 18)
    assert conformal_threshold(score, np.arange(18), np.repeat("a", 18), 0.05) is None
    nineteen = conformal_threshold(np.linspace(0, 1, 19), np.arange(19), np.repeat("a", 19), 0.05)
    assert nineteen is not None
    assert nineteen["threshold"] == 1.0


def test_the_rates_of_people_show_who_differs():
    score = np.concatenate([np.linspace(0, 0.5, 30), np.linspace(0.4, 1.0, 30)])
    got = conformal_threshold(score, np.arange(60), np.repeat(["a", "b"], 30), 0.1)
    assert got is not None
    assert got["identities"] == 2
    assert got["identity_rates"]["a"] == 0
    assert got["identity_rates"]["b"] > 0.1
