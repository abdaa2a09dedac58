# SPDX-License-Identifier: Apache-2.0
"""CBAM: attention over channels, then over positions.

    x <- x * sigmoid(MLP(avg(x)) + MLP(max(x)))          one shared MLP, reduction r
    x <- x * sigmoid(BN(conv7x7([max_c(x), mean_c(x)])))

Source: Woo, Park, Lee, Kweon: CBAM, ECCV 2018 (github Jongchan/attention-module).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CBAM(nn.Module):
    """Keeps the shape: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, *, reduction: int = 16, kernel: int = 7) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels)
        )
        self.spatial = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.stack((x.mean((2, 3)), x.amax((2, 3))))  # [2, N, C]
        channel = torch.sigmoid(self.mlp(pooled).sum(0))  # [N, C]
        x = x * channel[:, :, None, None]
        planes = torch.cat((x.amax(1, keepdim=True), x.mean(1, keepdim=True)), dim=1)
        return x * torch.sigmoid(self.norm(self.spatial(planes)))  # [N, C, H, W]
