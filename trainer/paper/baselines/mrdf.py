# SPDX-License-Identifier: Apache-2.0
"""MRDF-CE (Zou et al., ICASSP 2024), MSCT's direct ancestor: in full.

ResNet18 with a 3-D first layer on the faces and a linear layer on stacked log filterbanks, each to
768; both side by side -> LayerNorm -> 768 -> a 12-layer transformer with convolutional positions;
the first position classifies.  A cross-entropy on each modality's own features, and the margin
contrast on the cosine of their time-means: 1 - d for genuine pairs, max(0, d) for others.

Read from github.com/Vincent-ZHQ/MRDF and AV-HuBERT (Shi et al., 2022), without weights.  Three
faults of that code are not copied: the labels of the two modal heads are swapped there, the max
pool of the first layer passes no gradient, and a clip is cut to the shortest one of its batch (here
every window has 2 s).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from trainer.paper.baselines import features
from trainer.paper.baselines.base import Baseline, Float32, Int16, Labels, Outputs, Recipe, UInt8

MEAN, STD = 0.421, 0.165  # of pixels in [0, 1], AV-HuBERT's
AUDIO_DIM = 104  # 4 frames of 26 filters


class Block(nn.Module):
    """ResNet's basic block with PReLU: [N, inputs, H, W] -> [N, outputs, H/stride, W/stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1, self.relu1 = nn.BatchNorm2d(outputs), nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(outputs), nn.PReLU(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(y + self.shortcut(x))


class FaceEncoder(nn.Module):
    """[B, 3, T, H, W] -> [B, T, C]."""

    def __init__(self, widths: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv3d(3, widths[0], (5, 7, 7), (1, 2, 2), (2, 3, 3), bias=False),
            nn.BatchNorm3d(widths[0]),
            nn.PReLU(widths[0]),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        )
        blocks, inputs = [], widths[0]
        for stage, width in enumerate(widths):
            blocks += [Block(inputs, width, 2 if stage else 1), Block(width, width, 1)]
            inputs = width
        self.trunk = nn.Sequential(*blocks)
        self.project = nn.Linear(widths[-1], channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(x)
        b, _, t = x.shape[:3]
        x = self.trunk(x.transpose(1, 2).flatten(0, 1)).mean((2, 3))  # [B T, width]
        return self.project(x).view(b, t, -1)


class Encoder(nn.Module):
    """fairseq's wav2vec 2.0 encoder: convolutional positions, norm, post-norm layers."""

    def __init__(
        self, channels: int, layers: int, heads: int, ffn: int, dropout: float, kernel: int
    ) -> None:
        super().__init__()
        position = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=16)
        nn.init.normal_(position.weight, std=(4 / (kernel * channels)) ** 0.5)
        nn.init.zeros_(position.bias)
        self.position = weight_norm(position, dim=2)
        self.norm, self.dropout = nn.LayerNorm(channels), nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(
            channels, heads, ffn, dropout, "gelu", batch_first=True, norm_first=False
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):  # fairseq starts each layer afresh
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        t = x.shape[1]
        x = x + F.gelu(self.position(x.transpose(1, 2))[..., :t]).transpose(1, 2)
        return self.layers(self.dropout(self.norm(x)))


class MrdfCe(Baseline):
    NAME = "MRDF-CE"
    FIDELITY = "in full"
    RECIPE = Recipe(lr=1e-3, batch=64, epochs=30, betas=(0.5, 0.9), weight_decay=1e-4, plateau=True)
    MINIATURE: ClassVar[dict[str, Any]] = {
        "image_px": 56,
        "resize_px": 64,
        "widths": (16, 32, 64, 64),
        "channels": 96,
        "layers": 2,
        "heads": 4,
    }

    def __init__(
        self,
        image_px: int = 100,
        resize_px: int = 112,
        widths: tuple[int, ...] = (64, 128, 256, 512),
        channels: int = 768,
        layers: int = 12,
        heads: int = 12,
        dropout: float = 0.1,
        position_kernel: int = 128,
        window_tokens: int = 50,
    ) -> None:
        super().__init__()
        self.image_px, self.resize_px, self.window_tokens = image_px, resize_px, window_tokens
        c = channels
        self.face, self.voice = FaceEncoder(widths, c), nn.Linear(AUDIO_DIM, c)

        def project() -> nn.Sequential:
            return nn.Sequential(nn.LayerNorm(c), nn.Linear(c, c), nn.Dropout(dropout))

        self.project_face, self.project_voice = project(), project()
        self.fuse = nn.Sequential(nn.LayerNorm(2 * c), nn.Linear(2 * c, c))
        self.encoder = Encoder(c, layers, heads, 4 * c, dropout, position_kernel)
        self.head_face, self.head_voice = nn.Linear(c, 2), nn.Linear(c, 2)
        self.head_both = nn.Sequential(nn.Linear(c, c), nn.ReLU(), nn.Linear(c, 2))

    def inputs(
        self, crops: UInt8, audio: Int16, rng: np.random.Generator | None = None
    ) -> dict[str, Float32]:
        """A random 100 x 100 of 112 and a flip in training, the centre in scoring."""
        spare = self.resize_px - self.image_px
        y, x = rng.integers(0, spare + 1, 2) if rng is not None else (spare // 2, spare // 2)
        faces = features.frames(crops, self.resize_px, (MEAN,), (STD,))
        faces = faces[:, :, y : y + self.image_px, x : x + self.image_px]
        if rng is not None and rng.random() < 0.5:
            faces = faces[..., ::-1]
        bands = features.log_filterbank(audio)  # [4 T - 1, 26]
        bands = np.pad(bands, ((0, -len(bands) % 4), (0, 0)))
        voice = bands.reshape(-1, AUDIO_DIM)[: len(crops)]  # [T, 104]
        voice = (voice - voice.mean(1, keepdims=True)) / np.sqrt(voice.var(1, keepdims=True) + 1e-5)
        return {"faces": np.ascontiguousarray(faces), "voice": voice.astype(np.float32)}

    def forward(self, inputs: dict[str, Tensor]) -> Outputs:
        v, a = self.face(inputs["faces"]), self.voice(inputs["voice"])  # [B, T, C]
        logits_v = self.head_face(self.project_face(v).mean(1))
        logits_a = self.head_voice(self.project_voice(a).mean(1))
        first = self.encoder(self.fuse(torch.cat((a, v), 2)))[:, 0]  # [B, C]
        logits = self.head_both(first)
        return Outputs(
            score=logits[:, 1] - logits[:, 0],
            score_video=logits_v[:, 1] - logits_v[:, 0],
            score_audio=logits_a[:, 1] - logits_a[:, 0],
            embedding=first,
            parts={
                "logits": logits,
                "logits_v": logits_v,
                "logits_a": logits_a,
                "similarity": F.cosine_similarity(v.mean(1), a.mean(1)),
            },
        )

    def loss(self, out: Outputs, labels: Labels) -> dict[str, Tensor]:
        p = out.parts
        terms = {
            "ce": F.cross_entropy(p["logits"], labels.fake),
            "ce_v": F.cross_entropy(p["logits_v"], labels.fake_video),
            "ce_a": F.cross_entropy(p["logits_a"], labels.fake_audio),
            "contrast": margin_contrast(p["similarity"], labels.fake),
        }
        return {"loss": sum(terms.values(), torch.zeros(())), **terms}


def margin_contrast(similarity: Tensor, fake: Tensor, margin: float = 0.0) -> Tensor:
    """Mean of 1 - d over genuine pairs and max(0, d - margin) over the others, together."""
    push = (similarity - margin).clamp_min(0)
    return torch.where(fake.bool(), push, 1 - similarity).mean()
