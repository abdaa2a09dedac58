# SPDX-License-Identifier: Apache-2.0
"""AVoiD-DF (Yang et al., TIFS 2023): without its two selection steps.

A frame and the image of a spectrogram, each through 6 transformer layers of ViT-B/16 size; 5 joint
decoder blocks, in which each stream attends to the other's encoded tokens, then to itself; both
side by side -> one more layer; its class token with those of the two encoders classifies.
Cross-entropy, and the contrast of the two encoders' class tokens: d^2 for genuine pairs,
max(0, 0.99 - d)^2 for forged ones.  All layers normalise after the residual.

Read from github.com/SYSU-DISG/AVoiD-DF, which does not run: the modules that choose a number of
heads and the telling patches are called there and defined nowhere.  Both are left out here, and all
patches are kept.  The text's sequence of frames is one frame there, and here.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.paper.baselines.base import Baseline, Float32, Int16, Labels, Outputs, Recipe, UInt8
from trainer.paper.baselines.mds import dissonance_loss
from trainer.paper.baselines.vit import Patches, one_frame, spectrogram_image


class Attention(nn.Module):
    """norm(x + attention of x to context)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.norm(x + self.attend(x, context, context, need_weights=False)[0])


class Ffn(nn.Module):
    """norm(x + ffn(x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.net(x))


class Layer(nn.Module):
    """An encoder layer: attention to itself, FFN."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention, self.ffn = Attention(channels, heads), Ffn(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.attention(x, x))


class JointBlock(nn.Module):
    """One stream of a joint decoder block: attention to the other's tokens, to itself, FFN."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.cross = Attention(channels, heads)
        self.layer = Layer(channels, heads)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.layer(self.cross(x, other))


class AvoidDf(Baseline):
    NAME = "AVoiD-DF"
    RECIPE = Recipe(lr=1e-4, batch=32, epochs=30)
    FIDELITY = (
        "without its head and patch selection, which nothing published defines; Adam, learning "
        f"rate {RECIPE.lr:g}, batch {RECIPE.batch} and {RECIPE.epochs} epochs our choice, as its "
        "SGD at 0.01 is for ImageNet weights"
    )
    MINIATURE: ClassVar[dict[str, Any]] = {
        "image_px": 64,
        "channels": 96,
        "heads": 4,
        "encoder_layers": 2,
        "decoder_blocks": 2,
    }
    window_tokens = 25

    def __init__(
        self,
        image_px: int = 224,
        patch_px: int = 16,
        channels: int = 768,
        heads: int = 12,
        encoder_layers: int = 6,
        decoder_blocks: int = 5,
        margin: float = 0.99,
    ) -> None:
        super().__init__()
        self.image_px, self.margin = image_px, margin
        c = channels
        self.patches = nn.ModuleList(Patches(image_px, patch_px, c) for _ in range(2))
        self.encoders = nn.ModuleList(
            nn.Sequential(*(Layer(c, heads) for _ in range(encoder_layers))) for _ in range(2)
        )
        self.decoders = nn.ModuleList(
            nn.ModuleList(JointBlock(c, heads) for _ in range(decoder_blocks)) for _ in range(2)
        )
        self.join, self.last = nn.Linear(2 * c, c), Layer(c, heads)
        self.mix, self.head = nn.Linear(3 * c, c), nn.Linear(c, 2)

    def inputs(
        self, crops: UInt8, audio: Int16, rng: np.random.Generator | None = None
    ) -> dict[str, Float32]:
        return {
            "face": one_frame(crops, self.image_px, rng),
            "voice": spectrogram_image(audio, self.image_px),
        }

    def forward(self, inputs: dict[str, Tensor]) -> Outputs:
        images = (inputs["face"], inputs["voice"])
        encoded_v, encoded_a = (
            encode(patches(image))
            for encode, patches, image in zip(self.encoders, self.patches, images, strict=True)
        )  # [B, 1 + patches, C]
        v, a = encoded_v, encoded_a
        for block_v, block_a in zip(*self.decoders, strict=True):
            v, a = block_v(v, encoded_a), block_a(a, encoded_v)
        joint = self.last(self.join(torch.cat((v, a), 2)))[:, 0]  # [B, C]
        class_v, class_a = encoded_v[:, 0], encoded_a[:, 0]
        embedding = self.mix(torch.cat((class_v, joint, class_a), 1))
        logits = self.head(embedding)
        distance = (class_v - class_a).square().sum(1).clamp_min(1e-12).sqrt()
        return Outputs(
            score=logits[:, 1] - logits[:, 0],
            score_video=None,
            score_audio=None,
            embedding=embedding,
            parts={"logits": logits, "distance": distance},
        )

    def loss(self, out: Outputs, labels: Labels) -> dict[str, Tensor]:
        ce = F.cross_entropy(out.parts["logits"], labels.fake)
        contrast = dissonance_loss(out.parts["distance"], labels.fake, self.margin)
        return {"loss": ce + contrast, "ce": ce, "contrast": contrast}
