# SPDX-License-Identifier: Apache-2.0
"""A vision transformer's patches and positions (Dosovitskiy et al., 2021), and images for it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from trainer.paper.baselines import features
from trainer.paper.baselines.base import Float32, Int16, UInt8


class Patches(nn.Module):
    """[B, 3, S, S] -> [B, 1 + (S / patch)^2, C]: class token first, positions added."""

    def __init__(self, image_px: int, patch_px: int, channels: int) -> None:
        super().__init__()
        if image_px % patch_px:
            raise ValueError(f"{image_px} px are no whole number of patches of {patch_px}")
        self.cut = nn.Conv2d(3, channels, patch_px, patch_px)
        self.class_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.position = nn.Parameter(torch.zeros(1, 1 + (image_px // patch_px) ** 2, channels))
        for parameter in (self.class_token, self.position):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cut(x).flatten(2).transpose(1, 2)
        return torch.cat((self.class_token.expand(len(x), -1, -1), x), 1) + self.position


def one_frame(crops: UInt8, side: int, rng: np.random.Generator | None) -> Float32:
    """A frame of the window (random in training, else the middle) in [-1, 1], [3, side, side]."""
    at = len(crops) // 2 if rng is None else int(rng.integers(len(crops)))
    return features.frames(crops[at : at + 1], side, (0.5,), (0.5,))[:, 0]


def spectrogram_image(audio: Int16, side: int) -> Float32:
    """The window's log spectrogram as an image of three equal channels, [3, side, side]."""
    image = features.resize(features.log_spectrogram(audio).astype(np.float32), side)
    return np.repeat(image[None], 3, axis=0)
