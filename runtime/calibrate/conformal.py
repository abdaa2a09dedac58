# SPDX-License-Identifier: Apache-2.0
"""Split conformal thresholds and exact binomial intervals, in NumPy and the standard library.

Of n exchangeable scores of genuine footage the ``ceil((n + 1)(1 - rate))``-th smallest is
exceeded by the next one with a probability of at most ``rate`` (Vovk et al., 2005; Angelopoulos &
Bates, 2021).  That probability is over the n scores as well; the false-alarm rate of one given
threshold is Beta(n + 1 - k, k) distributed, k being its rank (Vovk, 2012).  Shares are given with
the interval of Clopper & Pearson (1934).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

LEVEL = 0.95  # of every interval
_SLACK = 1e-9  # (n + 1)(1 - rate) is often whole but for its rounding


class Interval(NamedTuple):
    low: float
    high: float


def rank(n: int, rate: float) -> int | None:
    """Which of n sorted scores, from 1, is the threshold; None: n is too small for ``rate``."""
    k = math.ceil((n + 1) * (1 - rate) - _SLACK)
    return k if k <= n else None


def scores_needed(rate: float) -> int:
    """The smallest n that has a :func:`rank`."""
    return math.ceil((1 - rate) / rate - _SLACK)


def threshold(scores: Sequence[float], rate: float) -> float | None:
    """What the next score exceeds with a probability of at most ``rate``; None: too few scores."""
    k = rank(len(scores), rate)
    return None if k is None else sorted(scores)[k - 1]


def rate_interval(n: int, k: int) -> Interval:
    """Where the false-alarm rate of a threshold of rank k lies, 1 <= k <= n."""
    tail = (1 - LEVEL) / 2
    return Interval(_beta_quantile(n + 1 - k, k, tail), _beta_quantile(n + 1 - k, k, 1 - tail))


def share_interval(hits: int, n: int) -> Interval:
    """Clopper-Pearson for ``hits`` of n; n may be 0, which says nothing: 0 to 1."""
    tail = (1 - LEVEL) / 2
    low = 0.0 if hits == 0 else _beta_quantile(hits, n - hits + 1, tail)
    high = 1.0 if hits == n else _beta_quantile(hits + 1, n - hits, 1 - tail)
    return Interval(low, high)


def _beta_quantile(a: int, b: int, probability: float) -> float:
    """Of Beta(a, b) with whole parameters, where P(Beta <= x) = P(Binomial(a + b - 1, x) >= a)."""
    low, high = 0.0, 1.0
    for _ in range(60):  # halvings: to the last bit of a float
        middle = (low + high) / 2
        if _binomial_tail(a + b - 1, middle, a) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _binomial_tail(n: int, p: float, least: int) -> float:
    """P(Binomial(n, p) >= least), 0 < p < 1."""
    log_p, log_q = math.log(p), math.log1p(-p)
    return math.fsum(
        math.exp(
            math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
            + i * log_p + (n - i) * log_q
        )
        for i in range(least, n + 1)
    )  # fmt: skip
