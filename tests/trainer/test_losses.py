# SPDX-License-Identifier: Apache-2.0
"""The losses against calculations by hand, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from trainer.loop.losses import (  # noqa: E402
    LossWeights,
    TemporalContrast,
    Totals,
    has_positives,
    msct_loss,
    temporal_contrast,
)
from trainer.model.msct import TrainingOutput  # noqa: E402


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


def output(similarity=(0.8, -0.5, 0.3), logits=((2.0, 0.0), (0.0, 1.0), (0.5, 0.5))):
    logits, nothing = doubles(logits), torch.zeros(0)
    return TrainingOutput(
        logits,
        2 * logits,
        -logits,
        nothing,
        nothing,
        nothing,
        nothing,
        doubles(similarity),
        nothing,
    )


def cross_entropy(pair, label):
    return math.log(sum(math.exp(x) for x in pair)) - pair[label]


LABELS = {
    "fake_av": torch.tensor([0, 1, 1]),
    "fake_a": torch.tensor([0, 1, 0]),
    "fake_v": torch.tensor([0, 0, 1]),
}
AV = [cross_entropy((2, 0), 0), cross_entropy((0, 1), 1), cross_entropy((0.5, 0.5), 1)]
A = [cross_entropy((4, 0), 0), cross_entropy((0, 2), 1), cross_entropy((1, 1), 0)]
V = [cross_entropy((-2, 0), 0), cross_entropy((0, -1), 0), cross_entropy((-0.5, -0.5), 1)]
ALIGNMENT = [1 - 0.8, max(0, -0.5), max(0, 0.3)]  # genuine, fake, fake


class TestFourTerms:
    def test_by_hand(self):
        terms = msct_loss(output(), **LABELS)
        assert float(terms.ce_both) == pytest.approx(np.mean(AV), rel=1e-12)
        assert float(terms.ce_audio) == pytest.approx(np.mean(A), rel=1e-12)
        assert float(terms.ce_visual) == pytest.approx(np.mean(V), rel=1e-12)
        assert float(terms.alignment) == pytest.approx(np.mean(ALIGNMENT), rel=1e-12)
        assert float(terms.total) == pytest.approx(float(sum(terms[1:])), rel=1e-12)

    def test_the_weights_of_the_terms(self):
        terms = msct_loss(output(), **LABELS, weights=LossWeights(2.0, 3.0, 5.0, 7.0))
        want = 2 * np.mean(A) + 3 * np.mean(V) + 5 * np.mean(AV) + 7 * np.mean(ALIGNMENT)
        assert float(terms.total) == pytest.approx(want, rel=1e-12)

    def test_samples_are_weighted_term_by_term(self):
        terms = msct_loss(
            output(),
            **LABELS,
            weight_a=torch.tensor([1, 0, 1]),  # no sound in the second clip
            weight_v=doubles([0.5, 1.5, 0.0]),
            weight_av=torch.tensor([True, False, True]),
        )
        assert float(terms.ce_audio) == pytest.approx((A[0] + A[2]) / 2, rel=1e-12)
        assert float(terms.ce_visual) == pytest.approx((0.5 * V[0] + 1.5 * V[1]) / 2, rel=1e-12)
        assert float(terms.ce_both) == pytest.approx((AV[0] + AV[2]) / 2, rel=1e-12)
        assert float(terms.alignment) == pytest.approx((0.2 + 0.3) / 2, rel=1e-12)

    def test_a_term_that_nobody_takes_part_in_is_zero(self):
        nobody = torch.zeros(3)
        terms = msct_loss(output(), **LABELS, weight_a=nobody, weight_v=nobody, weight_av=nobody)
        assert [float(t) for t in terms] == [0.0] * 5

    def test_parts_of_a_batch_add_up_to_it(self):
        weights = {
            "weight_a": doubles([1, 0, 1]),
            "weight_v": doubles([0, 1, 1]),
            "weight_av": doubles([1, 1, 0]),
        }
        whole = msct_loss(output(), **LABELS, **weights)
        totals = Totals(doubles(2.0), doubles(2.0), doubles(2.0), doubles(0.0))
        parts = []
        for i in (slice(0, 1), slice(1, 3)):
            one = TrainingOutput(*(x[i] if x.numel() else x for x in output()))
            one_of = {k: x[i] for k, x in {**LABELS, **weights}.items()}
            parts.append(msct_loss(one, **one_of, totals=totals))
        for got, want in zip(zip(*parts, strict=True), whole, strict=True):
            assert float(sum(got)) == pytest.approx(float(want), rel=1e-12)

    def test_genuine_parts_that_do_not_belong_together_are_fake_only_together(self):
        labels = {k: torch.zeros(3, dtype=torch.long) for k in LABELS}
        labels["fake_av"][0] = 1
        terms = msct_loss(output(), **labels)
        assert float(terms.alignment) == pytest.approx((0.8 + 1.5 + 0.7) / 3, rel=1e-12)

    def test_a_dissimilar_fake_pair_pulls_no_more(self):
        similarity = doubles([-0.4]).requires_grad_()
        one = output(logits=((0.0, 0.0),))._replace(similarity=similarity)
        fake = torch.ones(1, dtype=torch.long)
        msct_loss(one, fake_av=fake, fake_a=fake, fake_v=fake).alignment.backward()
        assert similarity.grad.item() == 0.0


def contrast_by_hand(v, a, temperature, offset=0, tolerance=0):
    """One clip, token by token."""
    t = len(v)
    s = (v @ a.T / temperature).tolist()
    losses = []
    for i in range(t):
        near = [j for j in range(t) if abs(j - i - offset) <= tolerance]
        if near:
            everything = sum(math.exp(s[i][j]) for j in range(t))
            losses.append(-math.log(sum(math.exp(s[i][j]) for j in near) / everything))
    for j in range(t):
        near = [i for i in range(t) if abs(j - i - offset) <= tolerance]
        if near:
            everything = sum(math.exp(s[i][j]) for i in range(t))
            losses.append(-math.log(sum(math.exp(s[i][j]) for i in near) / everything))
    return float(np.mean(losses)) if losses else 0.0


def unit_tokens(b, t, e=8, seed=0):
    x = torch.randn(b, t, e, dtype=torch.float64, generator=torch.manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=-1)


class TestTemporalContrast:
    @pytest.mark.parametrize("length", [1, 2, 9])
    @pytest.mark.parametrize("tolerance", [0, 1, 2])
    def test_by_hand(self, length, tolerance):
        v, a = unit_tokens(3, length), unit_tokens(3, length, seed=1)
        got = temporal_contrast(v, a, temperature=0.2, tolerance=tolerance)
        hand = [contrast_by_hand(x, y, 0.2, 0, tolerance) for x, y in zip(v, a, strict=True)]
        assert float(got) == pytest.approx(np.mean(hand), rel=1e-10, abs=1e-12)

    @pytest.mark.parametrize("tolerance", [0, 1])
    def test_known_offsets_by_hand(self, tolerance):
        offsets = [0, 3, -2]
        v, a = unit_tokens(3, 9), unit_tokens(3, 9, seed=1)
        got = temporal_contrast(
            v, a, temperature=0.2, offsets=torch.tensor(offsets), tolerance=tolerance
        )
        hand = [
            contrast_by_hand(x, y, 0.2, offset, tolerance)
            for x, y, offset in zip(v, a, offsets, strict=True)
        ]
        assert float(got) == pytest.approx(np.mean(hand), rel=1e-10)

    def test_a_positive_offset_means_that_the_sound_is_late(self):
        v = unit_tokens(1, 12, e=64)
        late = torch.cat((unit_tokens(1, 3, e=64, seed=5), v[:, :-3]), dim=1)  # a[i + 3] = v[i]
        losses = {
            k: float(temporal_contrast(v, late, offsets=torch.tensor([k]))) for k in range(-4, 5)
        }
        assert min(losses, key=losses.get) == 3
        assert losses[3] < 0.05

    def test_clips_without_weight_take_no_part(self):
        v, a = unit_tokens(2, 6), unit_tokens(2, 6, seed=1)
        got = temporal_contrast(v, a, temperature=0.2, weight=torch.tensor([0.0, 1.0]))
        assert float(got) == pytest.approx(contrast_by_hand(v[1], a[1], 0.2), rel=1e-10)

    def test_an_offset_beyond_the_window_costs_nothing_and_has_finite_gradients(self):
        v = unit_tokens(2, 4).requires_grad_()
        a = unit_tokens(2, 4, seed=1)
        loss = temporal_contrast(v, a, offsets=torch.tensor([4, 0]), temperature=0.2)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(
            contrast_by_hand(v.detach()[1], a[1], 0.2), rel=1e-10
        )
        assert v.grad.isfinite().all()
        assert not v.grad[0].any()

    def test_parts_of_a_batch_add_up_to_it(self):
        """Weighted means: the mean of the parts' means would be another number."""
        v, a = unit_tokens(4, 6), unit_tokens(4, 6, seed=1)
        weight, offsets = doubles([1, 1, 1, 0]), torch.tensor([0, 1, 7, 0])
        whole = temporal_contrast(v, a, offsets=offsets, weight=weight)
        total = (weight * has_positives(offsets, 6)).sum()
        assert float(total) == 2
        parts = [
            temporal_contrast(v[i], a[i], offsets=offsets[i], weight=weight[i], total=total)
            for i in (slice(0, 1), slice(1, 4))
        ]
        assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-12)

    def test_gradients_agree_with_finite_differences(self):
        v, a = unit_tokens(2, 5).requires_grad_(), unit_tokens(2, 5, seed=1).requires_grad_()
        t = doubles(0.3).requires_grad_()
        offsets = torch.tensor([1, -1])
        assert torch.autograd.gradcheck(
            lambda *x: temporal_contrast(
                x[0], x[1], temperature=x[2], offsets=offsets, tolerance=1
            ),
            (v, a, t),
        )

    def test_the_temperature_is_learned_or_not_and_has_a_floor(self):
        learned, fixed = TemporalContrast(0.05), TemporalContrast(0.05, learned=False)
        assert learned.temperature.requires_grad
        assert not fixed.temperature.requires_grad
        assert float(fixed.temperature) == pytest.approx(0.05)
        v, a = unit_tokens(1, 6), unit_tokens(1, 6, seed=1)
        assert float(fixed(v, a)) == pytest.approx(contrast_by_hand(v[0], a[0], 0.05), rel=1e-5)
        with torch.no_grad():
            learned.log_excess.fill_(-20.0)
        assert learned.temperature.item() == pytest.approx(0.01)
        with pytest.raises(ValueError, match="above"):
            TemporalContrast(0.01)
