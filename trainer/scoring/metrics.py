# SPDX-License-Identifier: Apache-2.0
"""Scores of a detector.  Class 1 is fake; a score is p_fake, higher meaning more fake.

The "AUC" of the paper and of its lineage is computed on hard labels and so is the balanced
accuracy (TPR + TNR) / 2: here it is called ``balanced_accuracy``, and ``auc`` is the area under
the ROC of the scores.  A metric that needs both classes is NaN where only one is present.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics as sk

Metric = Callable[[ArrayLike, ArrayLike], float]


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    y, p = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if y.ndim != 1 or y.shape != p.shape or not len(y):
        raise ValueError(f"labels and scores must be equally long lists, not {y.shape}, {p.shape}")
    if not np.isin(y, (0, 1)).all() or not np.isfinite(p).all():
        raise ValueError("labels must be 0 or 1 and scores finite")
    return y.astype(np.int64), p


def _both_classes(y: NDArray[np.int64]) -> bool:
    return bool(y.min() != y.max())


def accuracy(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5) -> float:
    """Share of right answers; a score at the threshold is fake."""
    y, p = _checked(labels, scores)
    return float(sk.accuracy_score(y, p >= threshold))


def balanced_accuracy(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5) -> float:
    """(TPR + TNR) / 2: the number that the paper's tables call AUC."""
    y, p = _checked(labels, scores)
    if not _both_classes(y):
        return math.nan
    return float(sk.balanced_accuracy_score(y, p >= threshold))


def detection_rate(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5) -> float:
    """TPR: the share of fakes called fake; NaN without fakes."""
    y, p = _checked(labels, scores)
    return float((p[y == 1] >= threshold).mean()) if (y == 1).any() else math.nan


def false_alarm_rate(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5) -> float:
    """FPR: the share of genuine clips called fake; NaN without genuine ones."""
    y, p = _checked(labels, scores)
    return float((p[y == 0] >= threshold).mean()) if (y == 0).any() else math.nan


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC of the scores: how often a fake scores above a genuine clip."""
    y, p = _checked(labels, scores)
    return float(sk.roc_auc_score(y, p)) if _both_classes(y) else math.nan


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Mean precision over the recall steps, fakes being the positives."""
    y, p = _checked(labels, scores)
    return float(sk.average_precision_score(y, p)) if _both_classes(y) else math.nan


def brier(labels: ArrayLike, scores: ArrayLike) -> float:
    """Mean squared error of p_fake as a probability; the scores must lie in [0, 1]."""
    y, p = _checked(labels, scores)
    if p.min() < 0 or p.max() > 1:
        raise ValueError("the Brier score needs probabilities in [0, 1]")
    return float(np.mean((p - y) ** 2))


def equal_error_rate(labels: ArrayLike, scores: ArrayLike) -> float:
    """Where false alarms and misses are equally frequent, on the ROC joined by straight lines."""
    y, p = _checked(labels, scores)
    if not _both_classes(y):
        return math.nan
    false_alarms, detections, _ = sk.roc_curve(y, p, drop_intermediate=False)
    misses = 1.0 - detections
    gap = false_alarms - misses  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    before = after - 1
    share = -gap[before] / (gap[after] - gap[before])
    return float(false_alarms[before] + share * (false_alarms[after] - false_alarms[before]))


def threshold_at_false_alarms(labels: ArrayLike, scores: ArrayLike, rate: float) -> float:
    """The lowest threshold at which at most ``rate`` of the genuine clips are called fake.

    Raises ValueError where there is no genuine clip, or ``rate`` is not in [0, 1).
    """
    y, p = _checked(labels, scores)
    genuine = np.sort(p[y == 0])[::-1]
    if not len(genuine) or not 0 <= rate < 1:
        raise ValueError("needs genuine clips and a rate in [0, 1)")
    allowed = math.floor(rate * len(genuine) + 1e-9)  # 0.07 * 100 is a little above 7, or below
    return float(np.nextafter(genuine[allowed], np.inf))


def summary(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5) -> dict[str, float | int]:
    """All metrics of one set, with the number of genuine and forged clips behind them."""
    y, p = _checked(labels, scores)
    return {
        "genuine": int((y == 0).sum()),
        "fake": int((y == 1).sum()),
        "accuracy": accuracy(y, p, threshold),
        "balanced_accuracy": balanced_accuracy(y, p, threshold),
        "auc": auc(y, p),
        "eer": equal_error_rate(y, p),
        "average_precision": average_precision(y, p),
        "brier": brier(y, p),
        "detection_rate": detection_rate(y, p, threshold),
        "false_alarm_rate": false_alarm_rate(y, p, threshold),
    }


def bootstrap_interval(
    metric: Metric,
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    rounds: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap.  With ``groups`` (identities) whole groups are drawn, not clips.

    Clips of one person are not independent, so intervals over clips alone are too narrow.  Draws
    on which the metric is NaN are left out; (NaN, NaN) where all of them are.
    """
    y, p = _checked(labels, scores)
    names = np.arange(len(y)) if groups is None else np.asarray(groups)
    if names.shape != y.shape:
        raise ValueError("groups must be as long as labels")
    _, index = np.unique(names, return_inverse=True)
    members = [np.flatnonzero(index == g) for g in range(index.max() + 1)]
    rng = np.random.default_rng(seed)
    values = np.empty(rounds)
    for r in range(rounds):
        drawn = np.concatenate([members[g] for g in rng.integers(0, len(members), len(members))])
        values[r] = metric(y[drawn], p[drawn])
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
