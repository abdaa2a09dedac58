# SPDX-License-Identifier: Apache-2.0
"""From validation scores to what ships: how the evidence is weighed, temperature and bias.

The last layer's weights of the network's own opinion and of the lag evidence are fitted on people
that the network has not seen: in training it believes an opinion that knows those people.

Sources: last-layer retraining on held-out, balanced data (Kirichenko et al., 2023), here by the
linear discriminant (Fisher, 1936).  Platt scaling (Platt, 1999), here on the difference of two
logits, classes weighted equally, so that a probability means what it says where real and fake are
equally likely.  Split conformal prediction (Vovk et al., 2005; Angelopoulos & Bates, 2021) for the
second threshold.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.calibrate import conformal
from runtime.logits import probability

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


class Platt(NamedTuple):
    """p = sigmoid(difference / temperature + bias)."""

    temperature: float
    bias: float

    def __call__(self, difference: Array) -> Float64:
        found: Float64 = probability(difference, self.temperature, self.bias)
        return found


def fit_platt(difference: Array, fake: Array, identity: Array) -> Platt:
    """difference [n] of logits (fake minus real), fake [n] in {0, 1}, identity [n].

    Real and fake weigh the same, and within each every person does, however many their windows.

    One class alone, or scores that do not rise with the label, cannot be calibrated: identity.
    """
    from sklearn.linear_model import LogisticRegression

    if len(set(np.asarray(fake).tolist())) < 2:
        return Platt(1.0, 0.0)
    # a scale of 4 keeps the (weak) default penalty from mattering for logits of any size
    scale = float(np.std(difference)) / 4 or 1.0
    model = LogisticRegression(C=1.0)
    x = np.asarray(difference, np.float64)[:, None] / scale
    model.fit(x, fake, sample_weight=len(x) * balanced_weights(fake, identity))
    slope = float(model.coef_[0, 0]) / scale
    if slope <= 1e-6:
        return Platt(1.0, 0.0)
    return Platt(1 / slope, float(model.intercept_[0]))


class Evidence(NamedTuple):
    """logit of fake = network * difference + lags @ peaks + bias."""

    network: float  # >= 0
    lags: tuple[float, float]  # of the peak within transport, and of the one beyond it
    bias: float


def fit_lags(peaks: Array, fake: Array, identity: Array) -> Evidence | None:
    """Fisher's linear discriminant of the two peaks; classes and people weighted equally.

    peaks [n, 2], fake [n] and identity [n] of trials: do lips and voice belong together?

    The boundary lies halfway between the means of the two classes, where logistic regression puts
    it halfway between their nearest windows: few people say little of how far a new one's windows
    lie from theirs.  None where there is one class alone, or a peak within transport would speak
    for a forgery.
    """
    if len(set(np.asarray(fake).tolist())) < 2:
        return None
    (inside, beyond), bias = _discriminant(np.asarray(peaks, np.float64), fake, identity)
    return None if inside >= 0 else Evidence(0.0, (inside, beyond), bias)


def add_network(
    lags: Evidence, difference: Array, peaks: Array, fake: Array, identity: Array
) -> Evidence | None:
    """The lag evidence of :func:`fit_lags` and the network's opinion, weighed by logistic
    regression on windows of all forgeries.

    difference [n] of logits without the lag evidence, peaks [n, 2], fake [n], identity [n].

    An opinion that does not help is left out, and the lag evidence stays as it is: forgeries that
    neither can see would only move the boundary into the genuine windows.  None where it is the
    lag evidence that does not help.
    """
    from sklearn.linear_model import LogisticRegression

    if len(set(np.asarray(fake).tolist())) < 2:
        return lags
    known = np.asarray(peaks, np.float64) @ np.array(lags.lags) + lags.bias
    x = np.column_stack((np.asarray(difference, np.float64), known))
    scale = np.std(x, axis=0) / 4  # as in fit_platt
    scale[scale == 0] = 1.0
    model = LogisticRegression(C=1.0, max_iter=1000)
    model.fit(x / scale, fake, sample_weight=len(x) * balanced_weights(fake, identity))
    network, share = (model.coef_[0] / scale).tolist()
    if share <= 0:
        return None
    if network <= 0:
        return lags
    inside, beyond = lags.lags
    bias = share * lags.bias + float(model.intercept_[0])
    return Evidence(network, (share * inside, share * beyond), bias)


def _discriminant(x: Float64, fake: Array, identity: Array) -> tuple[list[float], float]:
    """x [n, k] -> weights [k] and bias of the log-odds of fake, both classes being as likely."""
    weights = balanced_weights(fake, identity)[:, None]  # [n, 1], one half for each class
    means = [2 * (weights * x)[np.asarray(fake) == label].sum(0) for label in (0, 1)]
    rest = x - np.where(np.asarray(fake)[:, None] == 1, means[1], means[0])
    covariance = (weights * rest).T @ rest  # within the classes
    covariance += np.diag(1e-6 * np.diag(covariance) + 1e-12)  # a number that never changes
    slope = np.linalg.solve(covariance, means[1] - means[0])
    return slope.tolist(), float(-slope @ (means[0] + means[1]) / 2)


def balanced_weights(fake: Array, identity: Array) -> Float64:
    """[n], sum 1: one half for each class, in it equal parts for each person."""
    fake, identity = np.asarray(fake), np.asarray(identity)
    weights = np.zeros(len(fake))
    for label in np.unique(fake):
        people = np.unique(identity[fake == label])
        for person in people:
            mask = (fake == label) & (identity == person)
            weights[mask] = 1 / (len(people) * mask.sum())
    return weights / weights.sum()


def conformal_threshold(
    scores: Array, clip: Array, identity: Array, rate: float
) -> dict[str, Any] | None:
    """The threshold that a new genuine clip exceeds with a probability of at most ``rate``.

    Of the genuine clips' highest windows, n in all, the ceil((n + 1)(1 - rate))-th smallest: the
    guarantee of split conformal prediction, for clips that are exchangeable with these, so of the
    same people and recordings.  ``interval_95`` is where this threshold's own false-alarm rate
    lies, Beta(n + 1 - k, k).  ``identity_rates`` says how far the people differ: with few of them
    it tells more of a new person than the interval does.  None where n is too small for ``rate``.

    scores: p_fake [n of windows], clip and identity [n] of the genuine windows alone.
    """
    names, index = np.unique(clip, return_inverse=True)
    highest = np.zeros(len(names))
    np.maximum.at(highest, index, np.asarray(scores, np.float64))
    n = len(names)
    k, threshold = conformal.rank(n, rate), conformal.threshold(highest.tolist(), rate)
    if k is None or threshold is None:
        return None
    people: dict[str, list[bool]] = {}
    for i in range(n):
        person = str(np.asarray(identity)[index == i][0])
        people.setdefault(person, []).append(bool(highest[i] > threshold))
    return {
        "threshold": threshold,
        "false_alarm_rate": rate,
        "clips": n,
        "identities": len(people),
        "interval_95": list(conformal.rate_interval(n, k)),
        "identity_rates": {name: float(np.mean(v)) for name, v in sorted(people.items())},
    }
