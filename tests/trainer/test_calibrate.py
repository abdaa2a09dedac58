# SPDX-License-Identifier: Apache-2.0
"""Calibration against distributions whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the train extra: pip install '.[train]'")

from trainer.calibrate import balanced_weights, fit_platt


def test_platt_recovers_the_temperature_and_bias_that_made_the_labels():
    rng = np.random.default_rng(0)
    difference = rng.normal(0, 8, 40_000)
    fake = rng.random(40_000) < 1 / (1 + np.exp(-(difference / 4.0 + 0.3)))
    platt = fit_platt(difference, fake.astype(int), np.zeros(40_000))
    assert platt.temperature == pytest.approx(4.0, rel=0.05)
    assert platt.bias == pytest.approx(0.3 + np.log((1 - fake.mean()) / fake.mean()), abs=0.1)


def test_classes_count_equally_whatever_their_numbers():
    """One genuine window for nine fakes: the point between the two is still one half."""
    rng = np.random.default_rng(1)
    difference = np.concatenate([rng.normal(-2, 1, 1_000), rng.normal(2, 1, 9_000)])
    platt = fit_platt(difference, np.repeat([0, 1], [1_000, 9_000]), np.zeros(10_000))
    assert platt(np.array([0.0]))[0] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [1, 1, 0, 0]])
def test_what_cannot_be_calibrated_stays_as_it_is(labels: list[int]):
    assert tuple(fit_platt(np.array([-2.0, -1.0, 1.0, 2.0]), np.array(labels), np.zeros(4))) == (
        1.0,
        0.0,
    )


def test_a_person_with_many_windows_weighs_no_more_than_one_with_few():
    fake = np.array([0] * 90 + [0] * 10 + [1] * 50)
    identity = np.array(["a"] * 90 + ["b"] * 10 + ["a"] * 50)
    weights = balanced_weights(fake, identity)
    assert weights[:90].sum() == pytest.approx(0.25)
    assert weights[90:100].sum() == pytest.approx(0.25)
    assert weights[100:].sum() == pytest.approx(0.5)
