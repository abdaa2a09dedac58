# SPDX-License-Identifier: Apache-2.0
"""Comparing two forms of one model: which inputs are tried, and what counts as a difference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from export.parity import Parity, ParityError, Window, compare, random_probes, summary
from runtime.backends.base import FusionOutput
from runtime.spec import FaceSpec, ModelSpec, PairSpec

SPEC = PairSpec(model=ModelSpec(channels=8, align_dim=4), face=FaceSpec(crop_px=32))


@dataclass
class Linear:
    """Features are mean colours, logits their sum plus a shift; ``broken`` says where."""

    shift: float = 0.0
    tokens: int = 0  # more outputs of sync than there should be

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        mean = frames.mean((1, 2, 3), dtype=np.float32) / 255
        return np.repeat(mean[:, None], SPEC.model.channels, axis=1).astype(np.float32)

    def fuse(self, visual: NDArray[np.float32], audio: NDArray[np.float32]) -> FusionOutput:
        b, t, c = visual.shape
        total = visual.mean((1, 2)) + audio[..., 0].mean(1)
        logits = np.stack([np.zeros(b), total + self.shift], axis=1).astype(np.float32)
        plain = logits.copy()
        plain[:, 1] = total
        sync = np.zeros((b, t + self.tokens), np.float32)
        align = np.zeros((b, t, SPEC.model.align_dim), np.float32)
        return FusionOutput(logits, plain, plain, sync, align, align, np.zeros((b, 2 * c)))


def test_probes_cover_single_tokens_and_long_windows() -> None:
    shapes = [(len(frames), *audio.shape[:2]) for frames, _, audio in random_probes(SPEC)]
    assert {n for n, _, _ in shapes} == {1, 2, 5}
    assert {t for _, _, t in shapes} == {1, 2, 51, 150}
    assert {b for _, b, _ in shapes} == {1, 2, 3}


def test_probes_look_like_the_input_of_the_graphs() -> None:
    for frames, pick, audio in random_probes(SPEC):
        assert frames.dtype == np.uint8
        assert frames.shape[1:] == (32, 32, 3)
        assert pick.shape == audio.shape[:2]
        assert pick.max() < len(frames)
        np.testing.assert_allclose(audio.mean(-1), 0, atol=1e-5)
        np.testing.assert_allclose(audio.std(-1), 1, atol=1e-4)


def test_probes_are_the_same_every_time() -> None:
    for first, second in zip(random_probes(SPEC), random_probes(SPEC), strict=True):
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)


def test_equal_forms_differ_by_nothing() -> None:
    parity = compare(Linear(), Linear(), SPEC, names=("a", "b"))
    assert parity.probes == 15  # each shape also without sound and without a face
    assert parity.max_logit_difference == 0
    assert parity.max_probability_difference == 0
    parity.check(logits=1e-4, probability=0.01)


def test_the_worst_logit_and_its_probability_are_found() -> None:
    parity = compare(Linear(shift=0.1), Linear(), SPEC, names=("a", "b"))
    assert parity.max_logit_difference == pytest.approx(0.1, abs=1e-6)
    assert 0.02 < parity.max_probability_difference < 0.025
    assert parity.max_difference["logits_a"] == 0
    with pytest.raises(ParityError, match=r"a differs from b by 0\.1 in logits, more than 0\.0001"):
        parity.check(logits=1e-4)
    with pytest.raises(ParityError, match=r"in probabilities, more than 0\.01"):
        parity.check(probability=0.01)


def test_no_number_is_worse_than_any_number() -> None:
    parity = compare(Linear(shift=float("nan")), Linear(), SPEC, names=("a", "b"))
    with pytest.raises(ParityError):
        parity.check(logits=1e9)
    assert np.isnan(summary([parity, Parity("c", "d")])["max_logit_difference"])


def test_another_shape_is_an_error() -> None:
    with pytest.raises(ParityError, match=r"a gives sync of shape \[1, 2\], b \[1, 1\]"):
        compare(Linear(tokens=1), Linear(), SPEC, names=("a", "b"))


def test_real_windows_are_compared_too() -> None:
    window = Window(np.full((50, 32, 32, 3), 9, np.uint8), np.ones((50, 104), np.float32))
    parity = compare(Linear(), Linear(), SPEC, names=("a", "b"), real=[window, window])
    assert parity.real_windows == 2
    assert parity.probes == 17
