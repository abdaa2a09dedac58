# SPDX-License-Identifier: Apache-2.0
"""Calibration against distributions whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the train extra: pip install '.[train]'")

from runtime.alignment import domain_distance
from trainer.calibrate import fit_domain, fit_platt


def test_platt_recovers_the_temperature_and_bias_that_made_the_labels():
    rng = np.random.default_rng(0)
    difference = rng.normal(0, 8, 40_000)
    fake = rng.random(40_000) < 1 / (1 + np.exp(-(difference / 4.0 + 0.3)))
    platt = fit_platt(difference, fake.astype(int))
    assert platt.temperature == pytest.approx(4.0, rel=0.05)
    assert platt.bias == pytest.approx(0.3 + np.log((1 - fake.mean()) / fake.mean()), abs=0.1)


def test_classes_count_equally_whatever_their_numbers():
    """One genuine window for nine fakes: the point between the two is still one half."""
    rng = np.random.default_rng(1)
    difference = np.concatenate([rng.normal(-2, 1, 1_000), rng.normal(2, 1, 9_000)])
    platt = fit_platt(difference, np.repeat([0, 1], [1_000, 9_000]))
    assert platt(np.array([0.0]))[0] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [1, 1, 0, 0]])
def test_what_cannot_be_calibrated_stays_as_it_is(labels: list[int]):
    assert tuple(fit_platt(np.array([-2.0, -1.0, 1.0, 2.0]), np.array(labels))) == (1.0, 0.0)


def test_the_domain_holds_what_it_was_fitted_on_and_little_else():
    rng = np.random.default_rng(2)
    mix = rng.standard_normal((12, 12))
    inside = rng.standard_normal((2_000, 12)) @ mix + 5
    domain = fit_domain(inside[:1_500], held_out=inside[1_500:])
    near = [domain_distance(x, domain) for x in inside]
    far = [domain_distance(x + 4 * mix.std() * rng.standard_normal(12), domain) for x in inside]
    assert np.mean(np.array(near) <= domain.bound) > 0.98
    assert np.mean(np.array(far) <= domain.bound) < 0.2
