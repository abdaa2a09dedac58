# SPDX-License-Identifier: Apache-2.0
"""Res2Net and CBAM: shapes, sizes, and each block against its published definition."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402

from trainer.config import BackboneConfig  # noqa: E402
from trainer.model.cbam import CBAM  # noqa: E402
from trainer.model.res2net import Res2Net, Res2NetBlock  # noqa: E402


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def unsettled(module):
    """Eval mode, with norms whose statistics and weights are not the identity."""
    generator = torch.manual_seed(3)
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)
            norm.bias.data.uniform_(-0.5, 0.5, generator=generator)
            norm.running_mean.uniform_(-0.5, 0.5, generator=generator)
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
    return module.double().eval()


def normed(norm, x):
    shift = [
        t[:, None, None] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    ]
    mean, var, weight, bias = shift
    return (x - mean) / torch.sqrt(var + norm.eps) * weight + bias


def block_reference(block, x, *, stride, first):
    """y_1 = K_1(x_1), y_i = K_i(x_i + y_{i-1}), y_4 = x_4; as res2net.py's Bottle2neck."""
    x1, x2, x3, x4 = F.relu(normed(block.reduce_norm, F.conv2d(x, block.reduce.weight))).chunk(4, 1)

    def k(i, t):
        y = F.conv2d(t, block.convs[i].weight, stride=stride, padding=1)
        return F.relu(normed(block.norms[i], y))

    if first:
        y1, y2, y3 = k(0, x1), k(1, x2), k(2, x3)
        # The published pooling divides by 9 at the border too: zeros count.
        y4 = F.conv2d(
            x4, torch.full((x4.shape[1], 1, 3, 3), 1 / 9, dtype=x.dtype),
            stride=stride, padding=1, groups=x4.shape[1],
        )  # fmt: skip
        conv, norm = block.shortcut
        x = normed(norm, F.conv2d(x, conv.weight, stride=stride))
    else:
        y1 = k(0, x1)
        y2 = k(1, x2 + y1)
        y3 = k(2, x3 + y2)
        y4 = x4
    y = torch.cat((y1, y2, y3, y4), dim=1)
    return F.relu(normed(block.expand_norm, F.conv2d(y, block.expand.weight)) + x)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1)])
@pytest.mark.parametrize(
    ("inputs", "stride", "first"), [(40, 1, True), (24, 2, True), (40, 1, False)]
)
def test_block_is_its_definition(inputs, stride, first, size):
    torch.manual_seed(0)
    block = unsettled(Res2NetBlock(inputs, 6, 40, stride=stride, first=first))
    x = torch.randn(3, inputs, *size, dtype=torch.float64)
    want = block_reference(block, x, stride=stride, first=first)
    torch.testing.assert_close(block(x), want, rtol=0, atol=1e-12)


def test_res2net_50_has_its_published_size():
    bare = Res2Net(BackboneConfig(wtconv="off", cbam=False))
    assert round(parameters(bare) / 1e6, 2) == 23.65


@pytest.mark.parametrize("crop_px", [64, 100, 112])
def test_stages_of_res2net_50(crop_px):
    backbone = Res2Net(BackboneConfig()).eval()
    shapes = []
    for stage in backbone.stages:
        stage.register_forward_hook(lambda _m, _i, y: shapes.append(tuple(y.shape[1:])))
    with torch.no_grad():
        backbone(torch.randn(1, 3, crop_px, crop_px))
    sides = [-(-crop_px // stride) for stride in (4, 8, 16, 32)]  # rounded up
    assert shapes == [(c, s, s) for c, s in zip((256, 512, 1024, 2048), sides, strict=True)]


def test_cbam_stands_between_the_stages_only():
    kinds = [type(m) for m in Res2Net(BackboneConfig()).attention]
    assert kinds == [CBAM, CBAM, CBAM, torch.nn.Identity]


@pytest.mark.parametrize(("position", "channels"), [("features", 64), ("rgb", 3)])
def test_wtconv_position(position, channels):
    backbone = Res2Net(BackboneConfig(wtconv=position))
    with_base = [m for m in backbone.modules() if type(m).__name__ == "WTConv"]
    assert [len(m.base_scale) for m in with_base] == [channels]


def test_cbam_is_its_definition():
    torch.manual_seed(0)
    cbam = unsettled(CBAM(32, reduction=16))
    x = torch.randn(2, 32, 5, 6, dtype=torch.float64)
    reduce, _, expand = cbam.mlp
    w1, b1, w2, b2 = (
        t.detach().numpy() for t in (reduce.weight, reduce.bias, expand.weight, expand.bias)
    )
    assert w1.shape == (2, 32)

    def mlp(v):
        return w2 @ np.maximum(w1 @ v + b1, 0) + b2

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    for image, got in zip(x.numpy(), cbam(x).detach().numpy(), strict=True):
        channel = sigmoid(mlp(image.mean((1, 2))) + mlp(image.max((1, 2))))
        y = image * channel[:, None, None]
        stacked = torch.from_numpy(np.stack((y.max(0), y.mean(0))))[None]
        plane = normed(cbam.norm, F.conv2d(stacked, cbam.spatial.weight, padding=3))
        want = y * sigmoid(plane.detach().numpy()[0])
        np.testing.assert_allclose(got, want, atol=1e-12)
