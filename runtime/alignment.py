# SPDX-License-Identifier: Apache-2.0
"""What the alignment tokens of a window say: the A/V offset, and how sure it is.

``align_v`` and ``align_a`` are unit vectors, each from its own modality alone.  On material like
the training data their similarity peaks where lips and voice match, so the lag curve gives the
offset of the transport; how far the peak stands out of the curve is its confidence.  The peak over
the median is SyncNet's confidence (Chung & Zisserman, 2016), taken on cosines.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.spec import DomainSpec

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


class LagPeak(NamedTuple):
    lag_tokens: int  # > 0: the sound comes late
    confidence: float  # peak minus median of the lag curve, in cosine


def lag_curve(align_v: Array, align_a: Array, max_lag: int) -> Float64:
    """Mean cosine at each lag.

    align_v, align_a: [T, E], unit norm.  Returns [2 max_lag + 1]; index ``max_lag + l`` compares
    video token i with audio token i + l.  Needs ``max_lag < T``.
    """
    t = len(align_v)
    assert len(align_a) == t > max_lag, (align_v.shape, align_a.shape, max_lag)
    similarity = align_v.astype(np.float64) @ align_a.astype(np.float64).T  # [T, T]
    return np.array([np.diagonal(similarity, lag).mean() for lag in range(-max_lag, max_lag + 1)])


def lag_peak(curve: Array) -> LagPeak:
    """The highest point of a lag curve [2 L + 1] and its height over the median."""
    best = int(np.argmax(curve))
    return LagPeak(best - len(curve) // 2, float(curve[best] - np.median(curve)))


def domain_statistics(visual: Array, align_v: Array, align_a: Array) -> Float64:
    """What is compared with the calibration set: visual [T, C], align [T, E] -> [C + 2].

    The mean visual feature says whether these pixels look like the training pictures; how far each
    modality's align tokens spread says whether the encoders still find anything to follow (on
    material they do not know, the tokens of a window fall together).
    """
    spread = [1.0 - float(np.linalg.norm(x.astype(np.float64).mean(0))) for x in (align_v, align_a)]
    return np.concatenate([visual.astype(np.float64).mean(0), spread])


def domain_distance(statistics: Array, domain: DomainSpec) -> float:
    """Root mean square of the whitened difference; 0.0 where no domain was calibrated."""
    if not domain.mean:
        return 0.0
    difference = statistics - np.asarray(domain.mean)
    assert difference.shape == (len(domain.mean),), (statistics.shape, len(domain.mean))
    whitened = np.asarray(domain.whitener) @ difference
    return float(np.sqrt((whitened**2).mean()))
