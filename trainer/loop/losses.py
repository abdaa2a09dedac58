# SPDX-License-Identifier: Apache-2.0
"""The four-term loss of MSCT, and the temporal contrast that teaches lips and voice.

    L   = w_a CE_a + w_v CE_v + w_av CE_av + w_c L_c                          (Eq. 4)
    L_c = 1 - d for genuine pairs, max(0, d) otherwise                        (Eq. 3)

d is the cosine of the time-means of z_v and z_a after the last block, sample by sample, as the
paper indexes it.  L_c compares means and so cannot see a shift; the temporal contrast is ours:
InfoNCE, both ways, over the T x T similarities of one clip's align tokens.

Sources: MSCT (arXiv 2604.07741), Eqs. 2-4; MRDF (Zou et al., 2024) for weights of 1 and no margin;
InfoNCE after van den Oord et al., 2018, several positives after Miech et al. (MIL-NCE), 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.msct import TrainingOutput

MIN_TEMPERATURE = 0.01
_TINY = 1e-12  # a sum of weights below it counts as zero


@dataclass(frozen=True)
class LossWeights:
    """Weights of the four terms; MRDF's are all 1."""

    audio: float = 1.0
    visual: float = 1.0
    both: float = 1.0
    alignment: float = 1.0


class Totals(NamedTuple):
    """What the weighted sums of the terms are divided by, where a batch is seen in parts: the sums
    of the sample weights over the whole batch.  Scalars."""

    both: Tensor
    audio: Tensor
    visual: Tensor
    contrast: Tensor


class LossTerms(NamedTuple):
    """Scalars; ``total`` is the weighted sum, the others are unweighted, for the log."""

    total: Tensor
    ce_audio: Tensor
    ce_visual: Tensor
    ce_both: Tensor
    alignment: Tensor


def msct_loss(
    output: TrainingOutput,
    *,
    fake_av: Tensor,
    fake_a: Tensor,
    fake_v: Tensor,
    weight_av: Tensor | None = None,
    weight_a: Tensor | None = None,
    weight_v: Tensor | None = None,
    weights: LossWeights | None = None,
    label_smoothing: float = 0.0,
    totals: Totals | None = None,
) -> LossTerms:
    """Eq. 4.  Each term is the mean over the batch weighted by its own sample weights.

    Parameters
    ----------
    fake_av, fake_a, fake_v : integers or booleans, shape = (B,); 1 is fake.  ``fake_av`` may be 1
        where both others are 0: a genuine face and a genuine voice that do not belong together.
    weight_av, weight_a, weight_v : shape = (B,); 1 where absent.  0 leaves a sample out of that
        term: ``weight_a`` for a clip whose sound is missing, ``weight_av`` (which also holds for
        L_c) where either is.  A term that nobody takes part in is 0.
    totals : for one part of a batch; the terms of all parts then add up to those of the batch.
    """
    weights = weights or LossWeights()
    labels = {"reduction": "none", "label_smoothing": label_smoothing}
    fake = fake_av.to(output.similarity.dtype)
    d = output.similarity
    alignment = (1 - fake) * (1 - d) + fake * d.clamp_min(0)  # [B]
    each_a = F.cross_entropy(output.logits_a, fake_a.long(), **labels)  # [B]
    each_v = F.cross_entropy(output.logits_v, fake_v.long(), **labels)
    each_av = F.cross_entropy(output.logits_av, fake_av.long(), **labels)
    ce_a = weighted_mean(each_a, weight_a, totals and totals.audio)
    ce_v = weighted_mean(each_v, weight_v, totals and totals.visual)
    ce_av = weighted_mean(each_av, weight_av, totals and totals.both)
    l_c = weighted_mean(alignment, weight_av, totals and totals.both)
    total = (
        weights.audio * ce_a
        + weights.visual * ce_v
        + weights.both * ce_av
        + weights.alignment * l_c
    )
    return LossTerms(total, ce_a, ce_v, ce_av, l_c)


def weighted_mean(values: Tensor, weight: Tensor | None, total: Tensor | None = None) -> Tensor:
    """sum(weight * values) / sum(weight), 0 where all weights are 0; the mean without weights.

    ``total`` stands for sum(weight) where ``values`` are a part of the batch.
    """
    weight = torch.ones_like(values) if weight is None else weight.to(values.dtype)
    total = weight.sum() if total is None else total.to(values.dtype)
    return (weight * values).sum() / total.clamp_min(_TINY)


def temporal_contrast(
    align_v: Tensor,
    align_a: Tensor,
    *,
    temperature: Tensor | float = 0.07,
    offsets: Tensor | None = None,
    tolerance: int = 0,
    weight: Tensor | None = None,
    total: Tensor | None = None,
) -> Tensor:
    """InfoNCE both ways between the video tokens and the audio tokens of the same clip.

    The positives of video token i are the audio tokens within ``tolerance`` of i + offset: the
    loss is -log of the probability that they get together.  Tokens whose positives lie outside
    the window take no part.

    Parameters
    ----------
    align_v, align_a : unit norm, shape = (B, T, E)
    temperature : divides the cosines
    offsets : integers, shape = (B,), in tokens: audio token i + offset belongs to video token i,
        so positive where the sound is late, as in :func:`runtime.judging.offset.lag_curve`; None is
        0
    weight : shape = (B,); 0 for clips whose sound does not belong to the picture
    total : the whole batch's sum of ``weight`` over the clips that :func:`has_positives`, where
        this is a part of it

    Returns
    -------
    scalar: the mean over clips of the mean over tokens and directions
    """
    b, t, _ = align_v.shape
    logits = align_v @ align_a.transpose(1, 2) / temperature  # [B, T of video, T of audio]
    time = torch.arange(t, device=logits.device)
    lag = (time[None, :] - time[:, None])[None]  # [1, T, T] audio index minus video index
    if offsets is None:
        offsets = torch.zeros(b, dtype=torch.long, device=logits.device)
    positive = (lag - offsets.to(lag.dtype)[:, None, None]).abs() <= tolerance  # [B, T, T]

    summed, count = logits.new_zeros(b), logits.new_zeros(b)
    for axis in (2, 1):  # each video token among the audio tokens, then the other way
        takes_part = positive.any(axis)  # [B, T]
        # A row without positives would be log(0): its mask is opened and its loss dropped.
        mask = positive | ~takes_part.unsqueeze(axis)
        near = logits.masked_fill(~mask, -torch.inf).logsumexp(axis)  # [B, T]
        loss = (logits.logsumexp(axis) - near) * takes_part
        summed = summed + loss.sum(1)
        count = count + takes_part.sum(1)
    per_clip = summed / count.clamp_min(1)  # [B]
    if weight is None:
        weight = torch.ones_like(per_clip)
    return weighted_mean(per_clip, weight * (count > 0), total)


def has_positives(offsets: Tensor, length: int, tolerance: int = 0) -> Tensor:
    """offsets [B] -> bool [B]: some token of a window of ``length`` has its positive in it."""
    return offsets.abs() - tolerance < length


class TemporalContrast(nn.Module):
    """:func:`temporal_contrast` with its temperature: learned, above a floor, or fixed."""

    def __init__(
        self, temperature: float = 0.07, *, learned: bool = True, tolerance: int = 0
    ) -> None:
        super().__init__()
        if temperature <= MIN_TEMPERATURE:
            raise ValueError(f"temperature must be above {MIN_TEMPERATURE}, not {temperature}")
        self.tolerance = tolerance
        self.log_excess = nn.Parameter(
            torch.tensor(temperature - MIN_TEMPERATURE).log(), requires_grad=learned
        )

    @property
    def temperature(self) -> Tensor:
        return MIN_TEMPERATURE + self.log_excess.exp()  # smooth, so it can rise again

    def forward(
        self,
        align_v: Tensor,
        align_a: Tensor,
        offsets: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        return temporal_contrast(
            align_v,
            align_a,
            temperature=self.temperature,
            offsets=offsets,
            tolerance=self.tolerance,
            weight=weight,
        )
