# SPDX-License-Identifier: Apache-2.0
"""VFD, voice-face matching (Cheng et al., ToMM 2023; arXiv 2203.02195): without its pre-training.

Two ViT-B/32, one on a face, one on the spectrogram of the voice; the score is their cosine.
What the publication rests on, matching faces and voices of VoxCeleb2's 6,000 people, is not to be
had: here both encoders start from random numbers and see the training clips alone.  The figure says
what the architecture learns from those, not what VFD can do.

The fine-tuning loss is our reading: InfoNCE over the batch, both ways, between the face and the
voice of genuine clips, where the forged pairs of the batch are negatives as well.  The public code
(github.com/xaCheng1996/VFD) has another backbone and a triplet loss than the text.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.paper.baselines.base import Baseline, Float32, Int16, Labels, Outputs, Recipe, UInt8
from trainer.paper.baselines.vit import Patches, one_frame, spectrogram_image

TEMPERATURE = 0.07


class Vit(nn.Module):
    """[B, 3, S, S] -> [B, C], the class token after the last norm."""

    def __init__(self, image_px: int, patch_px: int, channels: int, layers: int, heads: int):
        super().__init__()
        self.patches = Patches(image_px, patch_px, channels)
        layer = nn.TransformerEncoderLayer(
            channels, heads, 4 * channels, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(channels)
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):  # layers are copies of one: start each afresh
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layers(self.patches(x)))[:, 0]


class Vfd(Baseline):
    NAME = "VFD"
    RECIPE = Recipe(lr=1e-4, batch=32, epochs=30)
    FIDELITY = (
        "without its VoxCeleb2 pre-training; fine-tuning loss as we read it; learning rate "
        f"{RECIPE.lr:g}, batch {RECIPE.batch} and {RECIPE.epochs} epochs our choice, as no numbers "
        "are published"
    )
    MINIATURE: ClassVar[dict[str, Any]] = {
        "image_px": 64,
        "patch_px": 16,
        "channels": 96,
        "layers": 3,
        "heads": 4,
    }
    SCORE_IS_LOGIT = False
    window_tokens = 25

    def __init__(
        self,
        image_px: int = 224,
        patch_px: int = 32,
        channels: int = 768,
        layers: int = 12,
        heads: int = 12,
    ) -> None:
        super().__init__()
        self.image_px = image_px
        self.face = Vit(image_px, patch_px, channels, layers, heads)
        self.voice = Vit(image_px, patch_px, channels, layers, heads)

    def inputs(
        self, crops: UInt8, audio: Int16, rng: np.random.Generator | None = None
    ) -> dict[str, Float32]:
        return {
            "face": one_frame(crops, self.image_px, rng),
            "voice": spectrogram_image(audio, self.image_px),
        }

    def forward(self, inputs: dict[str, Tensor]) -> Outputs:
        v = F.normalize(self.face(inputs["face"]), dim=1)  # [B, C]
        a = F.normalize(self.voice(inputs["voice"]), dim=1)
        return Outputs(
            score=-(v * a).sum(1),
            score_video=None,
            score_audio=None,
            embedding=torch.cat((v, a), 1),
            parts={"similarity": v @ a.T},
        )

    def loss(self, out: Outputs, labels: Labels) -> dict[str, Tensor]:
        return {"loss": matching_loss(out.parts["similarity"], labels.fake, TEMPERATURE)}


def matching_loss(similarity: Tensor, fake: Tensor, temperature: float) -> Tensor:
    """similarity [B, B] of face i and voice j; the mean over genuine clips and both directions.

    -log of e^s_ii over the sum of e^s_ij for all j and of e^s_kk for the forged clips k; 0 without
    genuine clips.
    """
    logits = similarity / temperature
    forged = fake.bool()
    genuine = (~forged).nonzero()[:, 0]
    pairs = logits.diagonal()
    if not len(genuine):
        return (logits * 0).sum()
    terms = []
    for scores in (logits, logits.T):
        extra = pairs[forged].expand(len(genuine), -1)
        terms.append(torch.cat((scores[genuine], extra), 1).logsumexp(1) - pairs[genuine])
    return torch.stack(terms).mean()
