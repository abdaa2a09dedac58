# SPDX-License-Identifier: Apache-2.0
"""WTConv's Haar transform against PyWavelets, and the whole module against its definition."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pywt = pytest.importorskip("pywt")
from scipy.signal import correlate2d  # noqa: E402

from trainer.model.wavelet import WTConv, haar, inverse_haar  # noqa: E402


def planes(n, c, height, width):
    return torch.randn(n, c, height, width, dtype=torch.float64, generator=torch.manual_seed(0))


@pytest.mark.parametrize(("height", "width"), [(2, 2), (8, 8), (6, 10), (56, 32)])
def test_haar_is_pywavelets_haar(height, width):
    x = planes(2, 3, height, width)
    bands = haar(x).numpy().reshape(2, 4, 3, height // 2, width // 2)
    ll, (along_h, along_w, both) = pywt.dwt2(x.numpy(), "haar")
    for band, want in enumerate((ll, along_w, along_h, both)):
        np.testing.assert_allclose(bands[:, band], want, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (6, 10), (56, 32)])
def test_reconstruction_is_perfect_and_keeps_energy(height, width):
    x = planes(2, 3, height, width)
    bands = haar(x)
    torch.testing.assert_close(inverse_haar(bands), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(bands.square().sum(), x.square().sum())


def depthwise(x, kernels):
    pad = kernels.shape[-1] // 2
    return np.stack(
        [correlate2d(np.pad(p, pad), k, mode="valid") for p, k in zip(x, kernels, strict=True)]
    )


def wtconv_reference(module, x):
    """The recursion of the paper for one image [C, H, W], by PyWavelets and SciPy, in float64."""
    c = x.shape[0]
    ll, filtered = x, []
    for conv, scale in zip(module.levels, module.level_scales, strict=True):
        low, (along_h, along_w, both) = pywt.dwt2(ll, "haar", mode="zero")
        bands = np.concatenate((low, along_w, along_h, both))
        bands = depthwise(bands, conv.weight.detach().numpy()[:, 0])
        bands *= scale.detach().numpy()[:, None, None]
        filtered.append((bands.reshape(4, c, *bands.shape[1:]), ll.shape[1:]))
        ll = low
    rebuilt = 0.0
    for (low, along_w, along_h, both), (height, width) in reversed(filtered):
        rebuilt = pywt.idwt2((low + rebuilt, (along_h, along_w, both)), "haar", mode="zero")
        rebuilt = rebuilt[:, :height, :width]
    base = depthwise(x, module.base.weight.detach().numpy()[:, 0])
    base += module.base.bias.detach().numpy()[:, None, None]
    return base * module.base_scale.detach().numpy()[:, None, None] + rebuilt


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (56, 56), (25, 25), (7, 12), (11, 5)])
def test_wtconv_is_its_definition(height, width, levels):
    torch.manual_seed(1)
    module = WTConv(3, kernel=5, levels=levels).double()
    with torch.no_grad():  # scales away from their first values, or they would not be tested
        for p in (module.base_scale, *module.level_scales):
            p.add_(torch.randn_like(p))
    x = planes(2, 3, height, width)
    got = module(x).detach().numpy()
    assert got.shape == (2, 3, height, width)
    for image, want in zip(got, x.numpy(), strict=True):
        np.testing.assert_allclose(image, wtconv_reference(module, want), atol=1e-11)


def test_scales_start_as_published():
    module = WTConv(2, levels=2)
    assert module.base_scale.tolist() == [1.0, 1.0]
    assert all(torch.equal(s, torch.full((8,), 0.1)) for s in module.level_scales)


def test_size_on_64_channels():
    # base 64*25 + 64 bias + 64 scale; per level 256*25 + 256 scale
    assert sum(p.numel() for p in WTConv(64, kernel=5, levels=3).parameters()) == 21_696


def test_channels_last_gives_the_same():
    module, x = WTConv(8, levels=2), torch.randn(2, 8, 14, 14)
    got = module(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, module(x))
