# SPDX-License-Identifier: Apache-2.0
"""Torch tensors for the kernels' tests: every input and output lies in a sea of NaN.

What a kernel reads beyond an input makes its result NaN, and what it writes beyond the output is
missing from the sea.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.backends.native import (
    DeviceTensor,
    differential_cross_attention_cuda,
    multi_scale_key_conv_cuda,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("dense", "token-major", "padded", "shifted", "packed")


@dataclass(frozen=True)
class Lake:
    """A tensor and the NaN around it."""

    tensor: Tensor  # a view of `sea`
    sea: Tensor

    def intact(self) -> bool:
        """Nothing but the tensor itself was written."""
        before = self.tensor.clone()
        self.tensor.fill_(torch.nan)
        dry = bool(torch.isnan(self.sea).all())
        self.tensor.copy_(before)
        return dry


def lake(shape: tuple[int, int, int, int], dtype: torch.dtype, layout: str) -> Lake:
    """Room for [B, h, T, D] in one of :data:`LAYOUTS`, filled with NaN.

    ``shifted`` starts an odd number of elements after a 16-byte boundary and has odd rows, so that
    no wide load is possible; the rows of the others are as aligned as D allows.
    """
    b, h, t, d = shape

    def sea(*sizes: int) -> Tensor:
        return torch.full(sizes, torch.nan, dtype=dtype, device="cuda")

    if layout == "dense":
        whole = sea(b * h * t * d + 2 * 64)
        return Lake(whole[64:-64].view(shape), whole)
    if layout == "token-major":  # [B, T, h, D], as a projection leaves it
        whole = sea(b, t + 2, h, d)
        return Lake(whole[:, 1:-1].transpose(1, 2), whole)
    if layout == "padded":
        whole = sea(b, h + 1, t + 3, d + 16)
        return Lake(whole[:, :-1, 1:-2, 8:-8], whole)
    if layout == "shifted":
        whole = sea(b, h, t + 2, d + 3)
        return Lake(whole[:, :, 1:-1, 1:-2], whole)
    assert layout == "packed"  # one of three in [B, T, 3, h, D]
    whole = sea(b, t, 3, h, d)
    return Lake(whole[:, :, 1].transpose(1, 2), whole)


def filled(values: Tensor, dtype: torch.dtype, layout: str) -> Tensor:
    """``values``, rounded to ``dtype``, laid out as :func:`lake` does."""
    place = lake(tuple(values.shape), dtype, layout)
    place.tensor.copy_(values)
    return place.tensor


def attend(
    q_self: Tensor,
    q_cross: Tensor,
    key: Tensor,
    value: Tensor,
    lam: Tensor,
    out: Tensor,
    scale: float,
) -> None:
    """Our kernel on torch's current stream."""
    tensors = (DeviceTensor.of(x) for x in (q_self, q_cross, key, value, lam, out))
    differential_cross_attention_cuda(*tensors, scale, stream=current_stream())


def convolve(
    key: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    out: Tensor,
    sizes: tuple[int, ...] = (1, 3, 5, 7),
    prefix: int = 1,
) -> None:
    """Our kernel on torch's current stream."""
    multi_scale_key_conv_cuda(
        DeviceTensor.of(key),
        [DeviceTensor.of(w) for w in weights],
        [DeviceTensor.of(b) for b in biases],
        DeviceTensor.of(out),
        sizes,
        prefix,
        stream=current_stream(),
    )


def current_stream() -> int:
    return torch.cuda.current_stream().cuda_stream


def within_twice(ours: Tensor, torchs: Tensor, exact: Tensor, size: float) -> str | None:
    """The 2x rule: None, or by how much our error exceeds twice that of plain torch.

    One unit in the last place of ``size``, the largest value that was rounded, comes on top:
    torch's error can be zero by luck.
    """
    if not bool(torch.isfinite(ours).all()):
        return "the result is not finite"
    error = float((ours.double() - exact).abs().max())
    allowed = 2 * float((torchs.double() - exact).abs().max())
    allowed += size * torch.finfo(ours.dtype).eps
    return None if error <= allowed else f"error {error:.3g}, allowed {allowed:.3g}"


def same_bits(one: Tensor, other: Tensor) -> bool:
    kind = torch.int32 if one.dtype == torch.float32 else torch.int16
    return bool(torch.equal(one.contiguous().view(kind), other.contiguous().view(kind)))
