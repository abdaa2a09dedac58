# SPDX-License-Identifier: Apache-2.0
"""What the alignment tokens of a window say: the A/V offset, and how sure it is.

``align_v`` and ``align_a`` are unit vectors, each from its own modality alone.  On material like
the training data their similarity peaks where lips and voice match, so the lag curve gives the
offset of the transport; how far the peak stands out of the curve is its confidence.  The peak over
the median is SyncNet's confidence (Chung & Zisserman, 2016), taken on cosines.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from runtime.spec import StreamSpec

OFFSET_WINDOWS = 5  # whose lag curves are averaged
STABLE_WINDOWS = 3  # in a row must show one offset before it is compensated

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


def clarity(align_v: Array, align_a: Array) -> float:
    """How far each token's best partner stands out: align_v, align_a [T, E] -> 0 to 2.

    For every video token the highest of its cosines with the window's audio tokens over their
    mean, averaged over the window; the same from the sound to the picture; the smaller of the two.
    It asks nothing of lag or order, so a voice that was replaced has it as well: it says whether
    the encoders can read these pictures and this sound at all.  On material unlike the training
    data they cannot, and the window is out of domain.
    """
    similarity = align_v.astype(np.float64) @ align_a.astype(np.float64).T  # [T, T]
    return float(min((similarity.max(axis) - similarity.mean(axis)).mean() for axis in (0, 1)))


class OffsetTracker:
    """The offset between one face's lips and the sound, and how much of it to compensate.

    The lag curves of the last :data:`OFFSET_WINDOWS` windows are averaged.  Their peak is the
    offset when it stands at least ``min_lag_confidence`` above the median.  An offset of up to
    ``max_transport_tokens``, the same in :data:`STABLE_WINDOWS` windows in a row, is transport:
    ``compensation_tokens`` then shifts the sound that the model sees.  A larger one is never
    compensated: it may be the forgery.  A site's known offset, ``av_offset_tokens``, is
    compensated from the first window on; what is reported stays the total.
    """

    def __init__(self, stream: StreamSpec) -> None:
        self._stream = stream
        self._curves: deque[NDArray[np.float64]] = deque(maxlen=OFFSET_WINDOWS)
        self._last: int | None = None
        self._times = 0
        self.confidence = 0.0  # of the last peak
        self.compensation_tokens = stream.av_offset_tokens  # > 0: the sound is taken from later

    def update(self, curve: NDArray[np.float64]) -> int | None:
        """Lag curve [2 L + 1] of a window under the present compensation -> offset in tokens.

        The offset includes the compensation; None when the peak does not stand out.
        """
        self._curves.append(curve)
        peak = lag_peak(np.mean(np.stack(self._curves), axis=0))
        self.confidence = peak.confidence
        if not self.confident:
            self._last, self._times = None, 0
            return None
        offset = self.compensation_tokens + peak.lag_tokens
        self._times = self._times + 1 if offset == self._last else 1
        self._last = offset
        transport = abs(offset) <= self._stream.max_transport_tokens
        if transport and self._times >= STABLE_WINDOWS and offset != self.compensation_tokens:
            self.compensation_tokens = offset
            self._curves.clear()  # they were measured under another compensation
        return offset

    @property
    def confident(self) -> bool:
        """Did the last peak stand out: do these lips and this sound belong together?"""
        return self.confidence >= self._stream.min_lag_confidence
