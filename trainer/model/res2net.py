# SPDX-License-Identifier: Apache-2.0
"""Res2Net with a wavelet convolution at its front and CBAM between its stages.

One block (``scale`` = 4 splits x_1..x_4 of the first 1x1 convolution's output):

    y_1 = K_1(x_1);  y_i = K_i(x_i + y_{i-1}) for i = 2, 3;  y_4 = x_4

with K_i = 3x3 convolution, BN, ReLU; the y_i are concatenated and meet a 1x1 convolution.  In the
first block of every stage nothing is added (y_i = K_i(x_i)) and y_4 = 3x3 average pool of x_4,
of the stage's stride.  The shortcut there is a strided 1x1 convolution.

Source: Gao et al.: Res2Net, TPAMI 2021 (github Res2Net/Res2Net-PretrainedModels, res2net.py);
WTConv and CBAM as MSCT places them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.config import BackboneConfig
from trainer.model.cbam import CBAM
from trainer.model.wavelet import WTConv


class Res2NetBlock(nn.Module):
    """(N, inputs, H, W) -> (N, outputs, H/stride, W/stride)."""

    def __init__(
        self, inputs: int, width: int, outputs: int, *, scale: int = 4, stride: int = 1, first: bool
    ) -> None:
        super().__init__()
        self.width = width
        self.first = first
        self.reduce = nn.Conv2d(inputs, width * scale, 1, bias=False)
        self.reduce_norm = nn.BatchNorm2d(width * scale)
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride, padding=1, bias=False) for _ in range(scale - 1)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(scale - 1))
        self.pool = nn.AvgPool2d(3, stride, padding=1) if first else nn.Identity()
        self.expand = nn.Conv2d(width * scale, outputs, 1, bias=False)
        self.expand_norm = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if first:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        splits = self.relu(self.reduce_norm(self.reduce(x))).split(self.width, dim=1)
        outputs: list[Tensor] = []
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = splits[i] if self.first or i == 0 else splits[i] + outputs[-1]
            outputs.append(self.relu(norm(conv(y))))  # [N, width, H/stride, W/stride]
        outputs.append(self.pool(splits[-1]))
        y = self.expand_norm(self.expand(torch.cat(outputs, dim=1)))
        return self.relu(y + self.shortcut(x))


class Res2Net(nn.Module):
    """(N, 3, H, W) -> (N, outputs[-1], H/stride, W/stride), float."""

    def __init__(self, cfg: BackboneConfig) -> None:
        super().__init__()
        kernel = cfg.stem_kernel
        self.rgb_wavelet: nn.Module = nn.Identity()
        self.stem_wavelet: nn.Module = nn.Identity()
        wavelet = {"kernel": cfg.wtconv_kernel, "levels": cfg.wtconv_levels}
        if cfg.wtconv == "rgb":
            self.rgb_wavelet = WTConv(3, **wavelet)
        elif cfg.wtconv == "features":
            self.stem_wavelet = WTConv(cfg.stem_channels, **wavelet)
        self.stem = nn.Conv2d(
            3, cfg.stem_channels, kernel, cfg.stem_stride, padding=kernel // 2, bias=False
        )
        self.stem_norm = nn.BatchNorm2d(cfg.stem_channels)
        self.relu = nn.ReLU(inplace=True)
        self.stem_pool = nn.MaxPool2d(3, 2, padding=1) if cfg.stem_pool else nn.Identity()

        stages: list[nn.Module] = []
        attention: list[nn.Module] = []
        inputs = cfg.stem_channels
        plan = zip(cfg.depths, cfg.widths, cfg.outputs, strict=True)
        for s, (depth, width, outputs) in enumerate(plan):
            blocks = [
                Res2NetBlock(
                    inputs if b == 0 else outputs,
                    width,
                    outputs,
                    scale=cfg.scale,
                    stride=2 if s > 0 and b == 0 else 1,
                    first=b == 0,
                )
                for b in range(depth)
            ]
            stages.append(nn.Sequential(*blocks))
            between = cfg.cbam and s < len(cfg.depths) - 1
            attention.append(
                CBAM(outputs, reduction=cfg.cbam_reduction) if between else nn.Identity()
            )
            inputs = outputs
        self.stages = nn.ModuleList(stages)
        self.attention = nn.ModuleList(attention)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.groups == 1:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_wavelet(self.stem(self.rgb_wavelet(x)))
        x = self.stem_pool(self.relu(self.stem_norm(x)))
        for stage, attention in zip(self.stages, self.attention, strict=True):
            x = attention(stage(x))
        return x
