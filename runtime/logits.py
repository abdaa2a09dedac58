# SPDX-License-Identifier: Apache-2.0
"""From logits to probabilities: the one sigmoid, and a model's calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.spec import FAKE


def fake_minus_real(logits: NDArray[np.float32]) -> float:
    """A pair of logits [2] -> their difference, positive for fake."""
    return float(logits[FAKE]) - float(logits[1 - FAKE])


def sigmoid(x: ArrayLike) -> Any:
    """Of a number or an array, in float64."""
    small = np.exp(-np.abs(np.asarray(x, np.float64)))
    return np.where(np.asarray(x) >= 0, 1.0, small)[()] / (1 + small)


def probability(difference: ArrayLike, temperature: float, bias: float) -> Any:
    """Of fake, by a calibration; difference of logits, fake minus real: a number or an array."""
    return sigmoid(calibrated(np.asarray(difference, np.float64), temperature, bias))


def calibrated(difference: Any, temperature: float, bias: float) -> Any:
    """The log-odds of fake."""
    return difference / temperature + bias
