# SPDX-License-Identifier: Apache-2.0
"""Intervals over people: the metrics of :mod:`trainer.scoring.metrics` under many draws of
identities.

Clips of one person are not independent, so a draw takes whole identities, with replacement.  It
becomes a weight a clip, and every metric is computed for all draws at once; with weights of one
they equal scikit-learn's, which the tests hold.

Dimensions: n clips, R draws, k distinct scores.
Source: percentile bootstrap over clusters (Efron and Tibshirani, 1993, ch. 8 and 13).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

METRICS = (
    "accuracy",
    "balanced_accuracy",
    "auc",
    "eer",
    "average_precision",
    "brier",
    "detection_rate",
    "false_alarm_rate",
)
_CELLS = 4_000_000  # of one array at a time: 32 MB


def draw_identities(identity: Array, rounds: int, seed: int) -> Float64:
    """How often each clip is drawn, shape = (rounds, n): whole identities, with replacement."""
    _, index = np.unique(np.asarray(identity, str), return_inverse=True)
    groups = int(index.max()) + 1
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(groups, np.full(groups, 1 / groups), size=rounds)  # [R, groups]
    return counts[:, index].astype(np.float64)


def weighted_metrics(
    fake: Array, score: Array, weights: Float64, threshold: float
) -> dict[str, Float64]:
    """Each of :data:`METRICS`, shape = (R,); NaN in the draws that lack a class it needs.

    fake [n] in {0, 1}, score [n] in [0, 1], weights [R, n]; a score at the threshold is fake.
    """
    step = max(1, _CELLS // max(1, len(fake)))
    parts = [
        _weighted_metrics(np.asarray(fake), np.asarray(score, np.float64), part, threshold)
        for part in (weights[i : i + step] for i in range(0, len(weights), step))
    ]
    return {name: np.concatenate([p[name] for p in parts]) for name in METRICS}


def _weighted_metrics(
    fake: Array, score: Float64, weights: Float64, threshold: float
) -> dict[str, Float64]:
    y = fake.astype(bool)
    called = score >= threshold
    total = weights.sum(1)
    forged, genuine = weights[:, y].sum(1), weights[:, ~y].sum(1)
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # of equal scores
    w = weights[:, order]
    tp = np.cumsum(w * y[order], 1)[:, last]  # [R, k] forged clips at or above each score
    fp = np.cumsum(w * ~y[order], 1)[:, last]
    start = np.zeros((len(w), 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        tpr = np.hstack((start, tp / forged[:, None]))  # [R, 1 + k]
        fpr = np.hstack((start, fp / genuine[:, None]))
        precision = np.nan_to_num(tp / (tp + fp))
        detected = weights[:, y & called].sum(1) / forged
        alarms = weights[:, ~y & called].sum(1) / genuine
        result = {
            "accuracy": weights[:, y == called].sum(1) / total,
            "balanced_accuracy": (detected + 1 - alarms) / 2,
            "auc": (np.diff(fpr) * (tpr[:, 1:] + tpr[:, :-1]) / 2).sum(1),
            "eer": _equal_error_rate(fpr, 1 - tpr),
            "average_precision": (np.diff(tpr) * precision).sum(1),
            "brier": (weights * (score - y) ** 2).sum(1) / total,
            "detection_rate": detected,
            "false_alarm_rate": alarms,
        }
    one_class = (forged == 0) | (genuine == 0)
    for name in ("auc", "eer", "average_precision"):
        result[name][one_class] = np.nan
    return result


def _equal_error_rate(false_alarms: Float64, misses: Float64) -> Float64:
    """Where the two cross, on the ROC joined by straight lines, shape = (R,)."""
    gap = false_alarms - misses  # rises from -1 to 1
    after = np.argmax(gap >= 0, axis=1)
    rows = np.arange(len(gap))
    before = np.maximum(after - 1, 0)
    share = -gap[rows, before] / (gap[rows, after] - gap[rows, before])
    low, high = false_alarms[rows, before], false_alarms[rows, after]
    return low + share * (high - low)


def interval(values: Float64, level: float = 0.95) -> tuple[float, float]:
    """Percentiles of the draws that have a value; (NaN, NaN) where none has."""
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def point(fake: Array, score: Array, threshold: float) -> dict[str, float]:
    """The metrics of the clips themselves."""
    values = weighted_metrics(fake, score, np.ones((1, len(fake))), threshold)
    return {name: float(v[0]) for name, v in values.items()}
