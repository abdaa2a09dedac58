# SPDX-License-Identifier: Apache-2.0
"""The sizes at which the two ops are measured, and the work that each one is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

ATTENTION = "DifferentialCrossAttention"
KEY_CONV = "MultiScaleKeyConv"
KERNEL_SIZES = (1, 3, 5, 7)
CUDA, CPU = "cuda", "cpu"
DTYPES = {CUDA: ("float16", "bfloat16", "float32"), CPU: ("float32",)}
DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
BATCHES = (1, 4, 16)
TOKENS = (26, 51, 101, 151)
USUAL_TOKENS = 51  # a window of 2 s and the class token
MODELS = {"msct": (8, 64), "msct-tiny": (4, 32)}  # heads, channels a head
TOLERANCE = {"float16": 1e-2, "bfloat16": 6e-2, "float32": 1e-4}  # of the largest value


@dataclass(frozen=True)
class Case:
    """One op at one size."""

    op: str
    dtype: str
    batch: int
    heads: int
    tokens: int
    dim: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.heads, self.tokens, self.dim

    @property
    def scale(self) -> float:
        """Of queries times keys."""
        return float(self.dim**-0.5)

    @property
    def flops(self) -> int:
        """Multiplications and additions of the definition, without the softmax."""
        elements = math.prod(self.shape)
        if self.op == ATTENTION:
            return 8 * elements * self.tokens  # two products for the scores, two with the values
        group = self.heads // 4
        return sum(2 * elements // 4 * group * k * k for k in KERNEL_SIZES)

    @property
    def bytes(self) -> int:
        """Every input read once and the output written once."""
        size = DTYPE_BYTES[self.dtype]
        elements = math.prod(self.shape)
        if self.op == ATTENTION:
            return 5 * elements * size + 4 * self.heads
        group = self.heads // 4
        weights = sum(group * group * k * k + group for k in KERNEL_SIZES)
        return (2 * elements + weights) * size


def cases(device: str, quick: bool = False) -> list[Case]:
    """All that are measured on "cuda" or "cpu"; ``quick``: each op once, as one stream runs it."""
    if quick:
        return [
            Case(op, DTYPES[device][0], 1, *_at(USUAL_TOKENS, "msct"))
            for op in (ATTENTION, KEY_CONV)
        ]
    return [
        Case(op, dtype, batch, *_at(tokens, model))
        for op in (ATTENTION, KEY_CONV)
        for dtype in DTYPES[device]
        for model in MODELS
        for batch in BATCHES
        for tokens in TOKENS
    ]


def _at(tokens: int, model: str) -> tuple[int, int, int]:
    heads, dim = MODELS[model]
    return heads, tokens, dim


def wanted(case: Case, device: str, choice: str) -> bool:
    """Whether ``--compile`` or ``--tensorrt`` of none, some or all means this case."""
    usual = case.dtype == DTYPES[device][0] and case.tokens == USUAL_TOKENS
    return choice == "all" or (choice == "some" and usual)


def floor_us(case: Case, rates: Mapping[str, float]) -> float:
    """The longer of its bytes and its operations, at the measured rates."""
    seconds = case.bytes / rates["bytes_per_s"], case.flops / rates[f"{case.dtype}_flops_per_s"]
    return 1e6 * max(seconds)
