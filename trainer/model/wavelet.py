# SPDX-License-Identifier: Apache-2.0
"""WTConv: a depthwise convolution with a large receptive field, by the Haar wavelet transform.

    y_0 = s_0 * conv(x)                                        base, k x k, bias
    LL_0 = x;  LL_i, H_i = haar(LL_{i-1})                      i = 1..levels
    (l_i, h_i) = s_i * conv_i(LL_i, H_i)                       k x k on 4C channels, no bias
    r_levels+1 = 0;  r_i = inverse_haar(l_i + r_{i+1}, h_i)    from the coarsest level up
    y = y_0 + r_1

Each level sees twice the distance for the same k.  The Haar filters are frozen; s_0 starts at 1
and s_i at 0.1.  Odd sizes are padded with one zero row or column, and cropped on the way back.

Source: Finder, Amoyal, Treister, Freifeld: Wavelet convolutions for large receptive fields,
ECCV 2024 (github BGU-CS-VIL/WTConv).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def haar(x: Tensor) -> Tensor:
    """One level of the orthonormal 2-D Haar transform, H and W even.

    Parameters
    ----------
    x : shape = (N, C, H, W)

    Returns
    -------
    shape = (N, 4C, H/2, W/2): all C of LL, then of the details along W, along H, and along both;
    ``pywt.dwt2(x, "haar")`` calls them cA, cV, cH, cD.
    """
    n, c, height, width = x.shape
    quads = x.permute(0, 2, 3, 1).reshape(n, height // 2, 2, width // 2, 2, c)
    top, bottom = quads.unbind(2)  # [N, H/2, W/2, 2, C]
    low, high = top + bottom, top - bottom
    bands = torch.cat(
        (
            low[..., 0, :] + low[..., 1, :],
            low[..., 0, :] - low[..., 1, :],
            high[..., 0, :] + high[..., 1, :],
            high[..., 0, :] - high[..., 1, :],
        ),
        -1,
    )
    return (0.5 * bands).permute(0, 3, 1, 2)  # [N, 4C, H/2, W/2]


def inverse_haar(bands: Tensor) -> Tensor:
    """The inverse of :func:`haar`: shape = (N, 4C, H, W) -> (N, C, 2H, 2W)."""
    n, c4, height, width = bands.shape
    c = c4 // 4
    ll, along_w, along_h, both = (0.5 * bands).permute(0, 2, 3, 1).split(c, dim=-1)
    low_left, low_right = ll + along_w, ll - along_w  # [N, H, W, C]
    high_left, high_right = along_h + both, along_h - both
    top = torch.stack((low_left + high_left, low_right + high_right), dim=3)  # [N, H, W, 2, C]
    bottom = torch.stack((low_left - high_left, low_right - high_right), dim=3)
    x = torch.stack((top, bottom), dim=2)  # [N, H, 2, W, 2, C]
    return x.reshape(n, 2 * height, 2 * width, c).permute(0, 3, 1, 2)


class WTConv(nn.Module):
    """Depthwise, keeps the shape: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, *, kernel: int = 5, levels: int = 3) -> None:
        super().__init__()
        self.base = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.base_scale = nn.Parameter(torch.ones(channels))
        wide = 4 * channels
        self.levels = nn.ModuleList(
            nn.Conv2d(wide, wide, kernel, padding=kernel // 2, groups=wide, bias=False)
            for _ in range(levels)
        )
        self.level_scales = nn.ParameterList(torch.full((wide,), 0.1) for _ in range(levels))

    def forward(self, x: Tensor) -> Tensor:
        c = x.shape[1]
        ll = x
        sizes: list[tuple[int, int]] = []
        filtered: list[Tensor] = []
        for conv, scale in zip(self.levels, self.level_scales, strict=True):
            height, width = ll.shape[-2:]
            sizes.append((height, width))
            if height % 2 or width % 2:
                ll = F.pad(ll, (0, width % 2, 0, height % 2))
            bands = haar(ll)  # [N, 4C, H/2, W/2]
            ll = bands[:, :c]
            # The scale belongs to the output; on the weights it is the same and costs nothing.
            filtered.append(
                F.conv2d(
                    bands,
                    conv.weight * scale[:, None, None, None],
                    padding=conv.padding,
                    groups=conv.groups,
                )
            )
        rebuilt: Tensor | None = None
        for bands, (height, width) in zip(reversed(filtered), reversed(sizes), strict=True):
            if rebuilt is not None:
                bands = torch.cat((bands[:, :c] + rebuilt, bands[:, c:]), dim=1)
            rebuilt = inverse_haar(bands)[..., :height, :width]
        base = F.conv2d(
            x,
            self.base.weight * self.base_scale[:, None, None, None],
            self.base.bias * self.base_scale,
            padding=self.base.padding,
            groups=self.base.groups,
        )
        return base + rebuilt
