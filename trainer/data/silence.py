# SPDX-License-Identifier: Apache-2.0
"""The silence that a clip starts with, in whole tokens.

Fakes of FakeAVCeleb and AV-Deepfake1M start with a short silence that alone nearly separates the
classes (Smeu et al., CVPR 2025, arXiv 2412.00175), so results are reported with and without it.
The rule is theirs: the silence ends at the first sample louder than 5e-4; if it lasts s seconds,
floor(25 s) + 1 tokens go, 640 samples each.

A token reads no sample before its own first one, so ``tokens[n:]`` are the tokens of the trimmed
sound: one prepared set serves both protocols.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.spec import AudioSpec

THRESHOLD = 5e-4  # of full scale


def silence_tokens(audio: npt.NDArray[np.float32], spec: AudioSpec) -> int:
    """audio [n] mono -> tokens to drop; all of them where nothing is louder than the threshold."""
    loud = np.abs(audio) > THRESHOLD
    total = len(audio) // spec.token_samples
    if not loud.any():
        return total
    first = int(loud.argmax())
    return min(first // spec.token_samples + 1, total) if first else 0
