# SPDX-License-Identifier: Apache-2.0
"""Audio tokens: any chunking gives the batch result; the filter bank is kaldi's, as pinned."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.sound.tokens import SILENCE_DBFS, AudioTokenizer, AudioTokens, tokenize
from runtime.spec import AudioSpec, SpecError

SPEC = AudioSpec()


def speechlike(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(n) / SPEC.sample_rate_hz
    tone = sum(np.sin(2 * np.pi * f * t) / k for k, f in enumerate((140, 430, 1200, 2600), 1))
    return (0.1 * tone * (1 + np.sin(2 * np.pi * 3 * t)) + 0.003 * rng.standard_normal(n)).astype(
        "f"
    )


def test_the_derived_figures_are_those_of_av_hubert():
    assert (SPEC.token_dim, SPEC.token_hz) == (104, 25.0)
    assert (SPEC.token_samples, SPEC.token_span_samples) == (640, 880)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(0, 20_000), seed=st.integers(0, 2**16))
def test_any_chunking_equals_the_batch_result(n: int, seed: int):
    samples, rng = speechlike(n), np.random.default_rng(seed)
    tokenizer, parts, at = AudioTokenizer(SPEC), [], 0
    while at < n:
        step = int(rng.integers(0, 3_000))
        parts.append(tokenizer.push(samples[at : at + step]))
        at += step
    parts.append(tokenizer.finish())
    chunked, batch = AudioTokens.concatenate(parts), tokenize(samples, SPEC)
    assert chunked.tokens.shape == batch.tokens.shape == (n // 640, 104)
    np.testing.assert_allclose(chunked.tokens, batch.tokens, atol=1e-5)
    np.testing.assert_allclose(chunked.level_dbfs, batch.level_dbfs, atol=1e-5)


def test_a_token_comes_as_soon_as_its_880_samples_are_there():
    tokenizer, samples = AudioTokenizer(SPEC), speechlike(2_000)
    assert len(tokenizer.push(samples[:879]).tokens) == 0
    assert len(tokenizer.push(samples[879:880]).tokens) == 1


def test_matches_log_mel_energies_computed_by_hand():
    """Frame 0 in float64: DC removal, pre-emphasis, Povey window, 512-point power spectrum,
    triangles on the mel scale 1127 ln(1 + f/700) (the kaldi definitions)."""
    samples = speechlike(880)
    frames = []
    for i in range(4):
        x = samples[160 * i : 160 * i + 400].astype(np.float64)
        x -= x.mean()
        x = np.concatenate([[x[0] * (1 - 0.97)], x[1:] - 0.97 * x[:-1]])
        x *= (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
        power = np.abs(np.fft.rfft(x, 512)[:256]) ** 2
        mel = 1127 * np.log1p(np.arange(256) * 16_000 / 512 / 700)
        edges = np.linspace(*(1127 * np.log1p(np.array([20, 8_000]) / 700)), 28)
        rise = (mel - edges[:26, None]) / (edges[1:27, None] - edges[:26, None])
        fall = (edges[2:, None] - mel) / (edges[2:, None] - edges[1:27, None])
        frames.append(
            np.log(np.maximum(np.maximum(np.minimum(rise, fall), 0) @ power, 1.1920929e-7))
        )
    want = np.concatenate(frames)
    want = (want - want.mean()) / np.sqrt(want.var() + 1e-5)
    np.testing.assert_allclose(tokenize(samples, SPEC).tokens[0], want, atol=2e-3)


def test_two_runs_are_identical_and_gain_hardly_matters():
    samples = speechlike(16_000)
    first, second = tokenize(samples, SPEC), tokenize(samples, SPEC)
    np.testing.assert_array_equal(first.tokens, second.tokens)
    louder = tokenize(2 * samples, SPEC)  # a gain shifts every log bin alike: the norm removes it
    assert np.abs(louder.tokens - first.tokens).max() < 1e-3
    np.testing.assert_allclose(louder.level_dbfs - first.level_dbfs, 20 * np.log10(2), atol=1e-4)


def test_digital_silence_is_an_all_zero_token_at_the_floor_level():
    silence = tokenize(np.zeros(6_400, np.float32), SPEC)
    assert np.abs(silence.tokens).max() == 0
    assert (silence.level_dbfs == SILENCE_DBFS).all()


def test_full_scale_sine_has_minus_three_dbfs():
    t = np.arange(16_000) / 16_000
    level = tokenize(np.sin(2 * np.pi * 400 * t).astype("f"), SPEC).level_dbfs
    np.testing.assert_allclose(level, -3.01, atol=0.01)


def test_dither_is_refused():
    with pytest.raises(SpecError, match="dither must be 0"):
        dataclasses.replace(SPEC, dither=1.0)
