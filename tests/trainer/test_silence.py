# SPDX-License-Identifier: Apache-2.0
"""Leading silence: the published rule, and a slice of the tokens equal to trimming the sound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.sound.tokens import tokenize
from runtime.spec import AudioSpec
from trainer.data.silence import silence_tokens

SPEC = AudioSpec()


def sound(silent_samples: int, total: int = 32_000, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    out = rng.uniform(0.001, 0.2, total).astype(np.float32) * rng.choice([-1, 1], total)
    out[:silent_samples] = rng.uniform(-5e-4, 5e-4, silent_samples)
    return out.astype(np.float32)


@pytest.mark.parametrize(
    ("silent_samples", "tokens"),
    [(0, 0), (1, 1), (639, 1), (640, 2), (641, 2), (6400, 11), (31_999, 50)],
)
def test_the_rule_drops_floor_of_25_s_plus_one(silent_samples: int, tokens: int):
    assert silence_tokens(sound(silent_samples), SPEC) == tokens
    if silent_samples:
        assert tokens == int(25 * silent_samples / 16_000) + 1


def test_a_clip_of_silence_loses_every_token():
    assert silence_tokens(np.zeros(6_400, np.float32), SPEC) == 10


def test_the_threshold_itself_is_still_silence():
    samples = np.full(6_400, 5e-4, np.float32)
    samples[1_000] = np.float32(5.01e-4)
    assert silence_tokens(samples, SPEC) == 2


@given(st.integers(0, 12_000), st.integers(0, 99))
def test_slicing_the_tokens_is_trimming_the_sound(silent_samples: int, seed: int):
    samples = sound(silent_samples, total=16_000, seed=seed)
    n = silence_tokens(samples, SPEC)
    sliced = tokenize(samples, SPEC)
    trimmed = tokenize(samples[640 * n :], SPEC)
    np.testing.assert_allclose(sliced.tokens[n:], trimmed.tokens, atol=1e-5, rtol=0)
    np.testing.assert_allclose(sliced.level_dbfs[n:], trimmed.level_dbfs, atol=1e-5, rtol=0)
