# SPDX-License-Identifier: Apache-2.0
"""What a set of measured times says: every one of them kept, nothing clipped or smoothed.

A percentile comes with its order-statistic interval (David and Nagaraja, Order Statistics, 2003,
section 7.1): two of the measured times between which the true percentile lies in 95 of 100 runs,
whatever the shape of the distribution, as long as the samples do not depend on each other.  Times
of one run do, somewhat, so the interval is the least one to allow.  Where there are too few samples
for an upper end it is None: nothing says how bad it could have been.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

DEFAULT_PERCENTILES = (50.0, 90.0, 95.0, 99.0)
CONFIDENCE = 0.95
BINS = 40  # of a histogram, equal on a logarithmic axis: the tail is as visible as the middle

Float64 = NDArray[np.float64]


def distribution(
    times_ms: ArrayLike, percentiles: Sequence[float] = DEFAULT_PERCENTILES
) -> dict[str, Any]:
    """JSON-ready; the median is always among the percentiles."""
    times: Float64 = np.sort(np.asarray(times_ms, np.float64))
    if not times.size:
        raise ValueError("no samples")
    return {
        "samples": int(times.size),
        "min_ms": float(times[0]),
        "mean_ms": float(times.mean()),
        "max_ms": float(times[-1]),
        "percentiles": {
            f"p{p:g}": _percentile(times, p) for p in sorted({50.0, *map(float, percentiles)})
        },
        "histogram": _histogram(times),
    }


def _percentile(times: Float64, percentile: float) -> dict[str, Any]:
    value = float(np.percentile(times, percentile))
    low, high = interval_ranks(times.size, percentile / 100)
    return {
        "ms": value,
        "low_ms": None if low is None else float(times[low]),
        "high_ms": None if high is None else float(times[high]),
        "samples_above": int(np.count_nonzero(times > value)),
    }


def interval_ranks(n: int, quantile: float) -> tuple[int | None, int | None]:
    """Ranks from 0 of the sorted samples that hold the quantile between them.

    Each side errs with half of 1 - :data:`CONFIDENCE`; None where no sample is far enough out.
    """
    tail = (1 - CONFIDENCE) / 2
    below = binomial_cdf(n, quantile)  # [n + 1]: at most k of the samples lie below the quantile
    # sample k is above the quantile when at most k samples lie below it
    low = int(np.searchsorted(below, tail, side="right")) - 1
    high = int(np.searchsorted(below, 1 - tail, side="left"))
    return (low if low >= 0 else None), (high if high < n else None)


def binomial_cdf(n: int, p: float) -> Float64:
    """P(X <= k) for k from 0 to n, X binomial with n draws of probability 0 < p < 1."""
    log_p, log_q = math.log(p), math.log1p(-p)
    logs = np.array([math.lgamma(k + 1) for k in range(n + 1)])  # log k!
    k = np.arange(n + 1)
    log_pmf = logs[n] - logs - logs[::-1] + k * log_p + (n - k) * log_q
    return np.minimum(np.cumsum(np.exp(log_pmf)), 1.0)


def _histogram(times: Float64) -> dict[str, list[float]]:
    """Counts between edges; every sample is in it."""
    lowest = max(float(times[0]), 1e-6)
    highest = max(float(times[-1]), lowest * 1.01)
    edges = np.geomspace(lowest, highest, BINS + 1)
    edges[0], edges[-1] = min(edges[0], times[0]), highest  # rounding must lose none
    counts, _ = np.histogram(np.clip(times, edges[0], edges[-1]), edges)
    return {"edges_ms": edges.tolist(), "counts": counts.tolist()}


def bootstrap_median(values: ArrayLike, *, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """A 95 % interval of the median by resampling."""
    array: Float64 = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    medians = np.median(array[rng.integers(0, array.size, (draws, array.size))], axis=1)
    low, high = np.percentile(medians, (50 * (1 - CONFIDENCE), 100 - 50 * (1 - CONFIDENCE)))
    return float(low), float(high)
