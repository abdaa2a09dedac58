# SPDX-License-Identifier: Apache-2.0
"""Weighted metrics against scikit-learn's on repeated clips, and draws of whole identities."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the train extra: pip install '.[train]'")

from trainer.scoring import metrics
from trainer.scoring.bootstrap import METRICS, draw_identities, interval, point, weighted_metrics

RNG = np.random.default_rng(3)
FAKE = (RNG.random(60) < 0.7).astype(int)
SCORE = np.round(np.clip(0.25 * FAKE + RNG.random(60) * 0.7, 0, 1), 1)  # many ties
REFERENCE = {
    "accuracy": metrics.accuracy,
    "balanced_accuracy": metrics.balanced_accuracy,
    "auc": metrics.auc,
    "eer": metrics.equal_error_rate,
    "average_precision": metrics.average_precision,
    "brier": metrics.brier,
    "detection_rate": metrics.detection_rate,
    "false_alarm_rate": metrics.false_alarm_rate,
}


def test_every_metric_has_a_reference():
    assert set(REFERENCE) == set(METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_a_weight_is_so_many_copies_of_the_clip(name: str):
    weights = RNG.integers(0, 4, (20, 60)).astype(float)
    ours = weighted_metrics(FAKE, SCORE, weights, 0.5)[name]
    for row, value in zip(weights.astype(int), ours, strict=True):
        copies = np.repeat(np.arange(60), row)
        assert value == pytest.approx(REFERENCE[name](FAKE[copies], SCORE[copies]), abs=1e-12)


def test_the_point_is_the_metric_of_the_clips():
    for name, value in point(FAKE, SCORE, 0.5).items():
        assert value == pytest.approx(REFERENCE[name](FAKE, SCORE), abs=1e-12)


def test_a_draw_without_genuine_clips_has_no_auc_and_is_left_out():
    weights = np.array([np.where(FAKE == 1, 1.0, 0.0), np.ones(60)])
    drawn = weighted_metrics(FAKE, SCORE, weights, 0.5)
    assert np.isnan(drawn["auc"]).tolist() == [True, False]
    assert not np.isnan(drawn["detection_rate"]).any()
    low, high = interval(drawn["auc"])
    assert low == high == drawn["auc"][1]
    assert math.isnan(interval(drawn["auc"][:1])[0])


def test_clips_of_one_person_are_drawn_together():
    identity = np.repeat(["a", "b", "c"], [5, 1, 4])
    weights = draw_identities(identity, 300, seed=0)
    for name in "abc":
        mine = weights[:, identity == name]
        assert (mine == mine[:, :1]).all()
    people = weights[:, [0, 5, 6]]
    assert (people.sum(1) == 3).all()
    assert set(np.unique(people)) == {0, 1, 2, 3}


def test_an_interval_over_people_is_wider_than_one_over_clips():
    """Ten people whose clips are all alike: there are ten answers, not two hundred."""
    identity = np.repeat(np.arange(10), 20)
    fake = np.tile([0, 1], 100)
    right = np.repeat(np.arange(10) % 3 > 0, 20)
    score = np.where(right, fake, 1 - fake).astype(float)

    def width(who: np.ndarray) -> float:
        drawn = weighted_metrics(fake, score, draw_identities(who, 1000, 0), 0.5)
        low, high = interval(drawn["accuracy"])
        return high - low

    assert width(identity) > 3 * width(np.arange(200))


def test_it_agrees_with_the_bootstrap_over_clips_of_the_library():
    drawn = weighted_metrics(FAKE, SCORE, draw_identities(np.arange(60), 2000, 0), 0.5)
    ours = interval(drawn["auc"])
    theirs = metrics.bootstrap_interval(metrics.auc, FAKE, SCORE, rounds=400)
    assert ours == pytest.approx(theirs, abs=0.03)
