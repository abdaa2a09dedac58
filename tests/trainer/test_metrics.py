# SPDX-License-Identifier: Apache-2.0
"""Metrics against small cases that can be counted, and the paper's own table."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("sklearn")

from trainer.scoring import metrics

LABELS = [0, 0, 0, 1, 1]
SCORES = [0.1, 0.4, 0.6, 0.3, 0.9]


def test_at_a_threshold():
    assert metrics.accuracy(LABELS, SCORES) == pytest.approx(3 / 5)
    assert metrics.balanced_accuracy(LABELS, SCORES) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert metrics.detection_rate(LABELS, SCORES) == 1 / 2
    assert metrics.false_alarm_rate(LABELS, SCORES) == pytest.approx(1 / 3)
    assert metrics.false_alarm_rate(LABELS, SCORES, threshold=0.6) == pytest.approx(1 / 3)
    assert metrics.false_alarm_rate(LABELS, SCORES, threshold=0.61) == 0.0


def test_auc_counts_pairs():
    right = sum(f > g for f in (0.3, 0.9) for g in (0.1, 0.4, 0.6))
    assert metrics.auc(LABELS, SCORES) == pytest.approx(right / 6)
    assert metrics.auc([0, 1], [0.5, 0.5]) == 0.5


def test_average_precision_by_hand():
    # fakes at ranks 1 and 4: (1/1 + 2/4) / 2
    assert metrics.average_precision(LABELS, SCORES) == pytest.approx(0.75)


def test_brier_by_hand():
    want = (0.01 + 0.16 + 0.36 + 0.49 + 0.01) / 5
    assert metrics.brier(LABELS, SCORES) == pytest.approx(want)
    with pytest.raises(ValueError, match="probabilities"):
        metrics.brier([0, 1], [0.5, 1.5])


class TestEqualErrorRate:
    def test_perfect_and_reversed(self):
        assert metrics.equal_error_rate([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]) == 0.0
        assert metrics.equal_error_rate([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9]) == 1.0

    def test_where_the_roc_meets_the_diagonal(self):
        # one of four wrong on each side
        labels = [0, 0, 0, 0, 1, 1, 1, 1]
        scores = [0.1, 0.2, 0.3, 0.7, 0.4, 0.6, 0.8, 0.9]
        assert metrics.equal_error_rate(labels, scores) == pytest.approx(0.25)

    def test_between_two_points_of_the_roc(self):
        # ROC (FPR, TPR): (0, 0) (0, 1/2) (1/3, 1/2) (2/3, 1/2) (2/3, 1) (1, 1)
        # FPR = 1 - TPR on the level piece TPR = 1/2, at FPR = 1/2
        labels, scores = [1, 0, 0, 1, 0], [0.9, 0.8, 0.7, 0.6, 0.1]
        assert metrics.equal_error_rate(labels, scores) == pytest.approx(0.5)

    def test_all_scores_equal(self):
        assert metrics.equal_error_rate([0, 1, 1], [0.5, 0.5, 0.5]) == pytest.approx(0.5)

    def test_gaussians_have_a_known_rate(self):
        rng = np.random.default_rng(0)
        scores = np.concatenate((rng.normal(-1, 1, 50_000), rng.normal(1, 1, 50_000)))
        labels = np.repeat((0, 1), 50_000)
        want = 0.5 * math.erfc(1 / math.sqrt(2))
        assert metrics.equal_error_rate(labels, scores) == pytest.approx(want, abs=3e-3)


@pytest.mark.parametrize(
    ("wrong_fakes", "wrong_reals", "acc", "auc"),
    [(8, 5, 96.75, 96.17), (9, 3, 97.00, 97.00), (6, 2, 98.00, 98.00), (4, 1, 98.75, 98.83)],
    ids=["CA+SA", "CA+MSSA", "DCA+SA", "DCA+MSSA"],
)
def test_what_the_paper_calls_auc_is_balanced_accuracy(wrong_fakes, wrong_reals, acc, auc):
    """Its Table 2, on one fold of 100 genuine and 300 forged clips."""
    labels = [0] * 100 + [1] * 300
    predictions = [1] * wrong_reals + [0] * (100 - wrong_reals)
    predictions += [0] * wrong_fakes + [1] * (300 - wrong_fakes)
    assert round(100 * metrics.accuracy(labels, predictions), 2) == acc
    assert 100 * metrics.balanced_accuracy(labels, predictions) == pytest.approx(auc, abs=5.1e-3)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 0.25, 0.9])
def test_threshold_at_a_rate_of_false_alarms(rate):
    genuine = np.random.default_rng(1).permutation(np.linspace(0, 1, 40))
    labels, scores = [0] * 40 + [1], [*genuine, 0.5]
    threshold = metrics.threshold_at_false_alarms(labels, scores, rate)
    assert metrics.false_alarm_rate(labels, scores, threshold) == pytest.approx(
        math.floor(rate * 40 + 1e-9) / 40
    )


def test_ties_never_exceed_the_rate_of_false_alarms():
    labels, scores = [0] * 10, [0.7] * 10
    threshold = metrics.threshold_at_false_alarms(labels, scores, 0.5)
    assert metrics.false_alarm_rate(labels, scores, threshold) == 0.0


def test_one_class_alone_is_nan_where_both_are_needed():
    result = metrics.summary([1, 1], [0.2, 0.9])
    assert (result["genuine"], result["fake"]) == (0, 2)
    assert result["accuracy"] == result["detection_rate"] == 0.5
    undefined = {k for k, v in result.items() if math.isnan(v)}
    assert undefined == {
        "balanced_accuracy", "auc", "eer", "average_precision", "false_alarm_rate",
    }  # fmt: skip


class TestBootstrap:
    def test_the_interval_holds_the_value_and_repeats(self):
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 2, 300)
        scores = np.clip(0.3 * labels + rng.uniform(0, 0.7, 300), 0, 1)
        low, high = metrics.bootstrap_interval(metrics.auc, labels, scores, rounds=200)
        assert low < metrics.auc(labels, scores) < high
        assert (low, high) == metrics.bootstrap_interval(metrics.auc, labels, scores, rounds=200)

    def test_drawing_whole_identities_is_wider(self):
        rng = np.random.default_rng(0)
        identity = np.repeat(np.arange(10), 30)
        labels = np.tile([0, 1], 150)
        right = rng.uniform(size=10)[identity] > 0.5  # all clips of a person, or none
        scores = np.where(right, labels, 1 - labels).astype(float)
        clips = metrics.bootstrap_interval(metrics.accuracy, labels, scores, rounds=300)
        people = metrics.bootstrap_interval(
            metrics.accuracy, labels, scores, groups=identity, rounds=300
        )
        assert people[1] - people[0] > 3 * (clips[1] - clips[0])

    def test_one_class_alone_has_no_interval(self):
        assert all(
            math.isnan(x) for x in metrics.bootstrap_interval(metrics.auc, [1, 1], [0.1, 0.2])
        )


@pytest.mark.parametrize(
    ("labels", "scores"),
    [([], []), ([0, 1], [0.5]), ([0, 2], [0.1, 0.2]), ([0, 1], [0.1, math.nan])],
)
def test_nonsense_is_refused(labels, scores):
    with pytest.raises(ValueError, match=r"labels|scores"):
        metrics.auc(labels, scores)
