# SPDX-License-Identifier: Apache-2.0
"""From validation scores to the calibration that ships: temperature and bias, threshold, domain.

Sources: Platt scaling (Platt, 1999), here on the difference of two logits, classes weighted
equally, so that a probability means what it says where real and fake are equally likely;
the domain is a Gaussian with Ledoit-Wolf shrinkage (2004).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.spec import DomainSpec

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


class Platt(NamedTuple):
    """p = sigmoid(difference / temperature + bias)."""

    temperature: float
    bias: float

    def __call__(self, difference: Array) -> Float64:
        z = np.asarray(difference, np.float64) / self.temperature + self.bias
        return 1 / (1 + np.exp(-np.clip(z, -60, 60)))


def fit_platt(difference: Array, fake: Array) -> Platt:
    """difference [n] of logits (fake minus real), fake [n] in {0, 1}.

    One class alone, or scores that do not rise with the label, cannot be calibrated: identity.
    """
    from sklearn.linear_model import LogisticRegression

    if len(set(np.asarray(fake).tolist())) < 2:
        return Platt(1.0, 0.0)
    # a scale of 4 keeps the (weak) default penalty from mattering for logits of any size
    scale = float(np.std(difference)) / 4 or 1.0
    model = LogisticRegression(class_weight="balanced", C=1.0)
    model.fit(np.asarray(difference, np.float64)[:, None] / scale, fake)
    slope = float(model.coef_[0, 0]) / scale
    if slope <= 1e-6:
        return Platt(1.0, 0.0)
    return Platt(1 / slope, float(model.intercept_[0]))


def fit_domain(
    statistics: Array,
    *,
    quantile: float = 0.99,
    margin: float = 1.25,
    held_out: Array | None = None,
) -> DomainSpec:
    """statistics [n, K] of windows that are in the domain.

    The bound is ``margin`` times the quantile of the distances of ``held_out`` [m, K] (other
    speakers than the Gaussian was fitted on, where there are any).
    """
    from sklearn.covariance import ledoit_wolf

    x = np.asarray(statistics, np.float64)
    mean = x.mean(0)
    scale = x.std(0) + 1e-6
    covariance, _ = ledoit_wolf((x - mean) / scale, assume_centered=True)
    values, vectors = np.linalg.eigh(covariance)
    whitener = (vectors / np.sqrt(np.maximum(values, 1e-6))).T / scale  # [K, K]
    reference = x if held_out is None or not len(held_out) else np.asarray(held_out, np.float64)
    distance = np.sqrt((((reference - mean) @ whitener.T) ** 2).mean(1))
    bound = float(np.quantile(distance, quantile)) * margin
    return DomainSpec(
        tuple(np.round(mean, 6).tolist()),
        tuple(tuple(row) for row in np.round(whitener, 6).tolist()),
        round(bound, 6),
    )
