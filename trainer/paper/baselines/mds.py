# SPDX-License-Identifier: Apache-2.0
"""MDS, the modality dissonance score (Chugh et al., ACM MM 2020): in full.

A chunk of one second: 2D3D-ResNet18 (Han et al., 2019) on the faces and a VGG-like network on 13
MFCCs, each closed by 4096 -> 1024; the score is the distance of the two.  The loss pulls genuine
pairs together (d^2), pushes forged ones beyond a margin (max(0, 0.99 - d)^2), and adds a
cross-entropy on each modality, whose label is the clip's: fake where anything is, as published.

Read from github.com/abhinavdhall/deepfake.  There a chunk is 30 frames at 30 fps; on the 25 Hz grid
the same second is 25, which leaves every weight's shape as published.  The visual network keeps no
running statistics and is scored one chunk at a time, both as published: no score depends on others.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.paper.baselines import features
from trainer.paper.baselines.base import Baseline, Float32, Int16, Labels, Outputs, Recipe, UInt8

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two convolutions and a shortcut; ``deep`` ones see 3 frames, the others one."""

    def __init__(self, inputs: int, outputs: int, stride: int, deep: bool, last: bool) -> None:
        super().__init__()
        kernel, padding = ((3, 3, 3), (1, 1, 1)) if deep else ((1, 3, 3), (0, 1, 1))
        steps = (stride if deep else 1, stride, stride)
        self.conv1 = nn.Conv3d(inputs, outputs, kernel, steps, padding, bias=False)
        self.norm1 = nn.BatchNorm3d(outputs, track_running_stats=False)
        self.conv2 = nn.Conv3d(outputs, outputs, kernel, 1, padding, bias=False)
        self.norm2 = nn.BatchNorm3d(outputs, track_running_stats=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv3d(inputs, outputs, 1, steps, bias=False),
                nn.BatchNorm3d(outputs, track_running_stats=False),
            )
        self.last = last  # the network's last block has no final ReLU

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.shortcut(x)
        return y if self.last else F.relu(y)


class FaceNetwork(nn.Module):
    """[B, 3, T, H, W] -> [B, C (H/32) (W/32)]: the mean over time, places kept."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        stem, *stages = widths
        self.stem = nn.Sequential(
            nn.Conv3d(3, stem, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
            nn.BatchNorm3d(stem, track_running_stats=False),
            nn.ReLU(),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        )
        blocks = []
        for stage, (inputs, outputs) in enumerate(zip(widths, stages, strict=False)):
            deep, stride = stage >= 2, 2 if stage else 1
            blocks += [
                Block(inputs, outputs, stride, deep, last=False),
                Block(outputs, outputs, 1, deep, last=stage == 3),
            ]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x)).mean(2).flatten(1)


def _voice_network() -> nn.Sequential:
    """[B, 1, 13, 99] -> [B, 512, 1, 21]."""

    def layer(inputs: int, outputs: int, kernel: Any = 3, padding: int = 1) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, kernel, padding=padding)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *layer(1, 64),
        *layer(64, 192),
        nn.MaxPool2d(3, (1, 2)),
        *layer(192, 384),
        *layer(384, 256),
        *layer(256, 256),
        nn.MaxPool2d(3, 2),
        *layer(256, 512, (5, 4), 0),
    )


class Mds(Baseline):
    NAME = "MDS"
    FIDELITY = "in full"
    RECIPE = Recipe(lr=1e-3, batch=8, epochs=100, weight_decay=1e-5)
    MINIATURE: ClassVar[dict[str, Any]] = {
        "image_px": 64,
        "widths": (16, 16, 24, 32, 32),
        "hidden": 128,
        "outputs": 128,
    }
    SCORE_IS_LOGIT = False
    SCORE_BATCH = 1
    window_tokens = 25  # one second
    mfcc_frames = 99

    def __init__(
        self,
        image_px: int = 224,
        widths: tuple[int, ...] = (64, 64, 128, 256, 256),
        hidden: int = 4096,
        outputs: int = 1024,
        dropout: float = 0.5,
        margin: float = 0.99,
    ) -> None:
        super().__init__()
        self.image_px, self.margin = image_px, margin

        def closing(inputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(inputs, hidden),
                nn.BatchNorm1d(hidden),
                nn.ReLU(),
                nn.Linear(hidden, outputs),
            )

        def classifier() -> nn.Sequential:
            return nn.Sequential(
                nn.BatchNorm1d(outputs), nn.Dropout(dropout), nn.Linear(outputs, 2)
            )

        self.face, self.voice = FaceNetwork(widths), _voice_network()
        self.face_closing = closing(widths[-1] * math.ceil(image_px / 32) ** 2)
        self.voice_closing = closing(512 * 21)
        self.face_classifier, self.voice_classifier = classifier(), classifier()
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def inputs(
        self, crops: UInt8, audio: Int16, rng: np.random.Generator | None = None
    ) -> dict[str, Float32]:
        coefficients = features.mfcc(audio)[: self.mfcc_frames].T[None]  # [1, 13, 99]
        return {
            "faces": features.frames(crops, self.image_px, IMAGENET_MEAN, IMAGENET_STD),
            "voice": coefficients.astype(np.float32),
        }

    def forward(self, inputs: dict[str, Tensor]) -> Outputs:
        v = self.face_closing(self.face(inputs["faces"]))  # [B, 1024]
        a = self.voice_closing(self.voice(inputs["voice"]).flatten(1))  # [B, 1024]
        logits_v, logits_a = self.face_classifier(v), self.voice_classifier(a)
        distance = (v - a).square().sum(1).clamp_min(1e-12).sqrt()  # [B]
        return Outputs(
            score=distance,
            score_video=logits_v[:, 1] - logits_v[:, 0],
            score_audio=logits_a[:, 1] - logits_a[:, 0],
            embedding=torch.cat((v, a), 1),
            parts={"logits_v": logits_v, "logits_a": logits_a},
        )

    def loss(self, out: Outputs, labels: Labels) -> dict[str, Tensor]:
        contrast = dissonance_loss(out.score, labels.fake, self.margin)
        ce_v = F.cross_entropy(out.parts["logits_v"], labels.fake)
        ce_a = F.cross_entropy(out.parts["logits_a"], labels.fake)
        return {"loss": contrast + ce_v + ce_a, "contrast": contrast, "ce_v": ce_v, "ce_a": ce_a}


def dissonance_loss(distance: Tensor, fake: Tensor, margin: float) -> Tensor:
    """Mean of d^2 over genuine pairs and max(0, margin - d)^2 over forged ones, together."""
    pull, push = distance.square(), (margin - distance).clamp_min(0).square()
    return torch.where(fake.bool(), push, pull).mean()
