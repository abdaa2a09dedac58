# SPDX-License-Identifier: Apache-2.0
"""The cases of one stream, under pytest-benchmark: the second half of ``make bench``.

Not a part of ``make test``.  The figures that we quote are those of ``python -m benchmarks.ops``,
where the variants take turns; here one follows the other.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (extra train)")

from benchmarks.ops import __main__ as ops
from benchmarks.ops import variants as op_variants
from benchmarks.ops.cases import CUDA, TOLERANCE, Case, cases
from runtime.errors import UserError


def _device() -> str:
    try:
        return ops.choose("auto")[0]
    except UserError:  # a GPU, and no kernels of ours
        return ops.choose("cpu")[0]


DEVICE = _device()
built = functools.cache(functools.partial(op_variants.build, device=DEVICE))


@pytest.fixture(autouse=True)
def _alike() -> Iterator[None]:
    with ops.alike(DEVICE):
        yield


@pytest.mark.parametrize(
    ("case", "name"),
    [
        pytest.param(case, name, id=f"{case.op}-{case.dtype}-{name}")
        for case in cases(DEVICE, quick=True)
        for name in built(case).makers
    ],
)
def test_speed(benchmark: Any, case: Case, name: str) -> None:
    try:
        function = built(case).makers[name]()
        result = function()
    except (ImportError, RuntimeError, UserError) as err:  # torch: no such fused kernel here
        if name == ops.BASELINE[DEVICE]:
            raise
        pytest.skip(str(err))
    assert built(case).error(result) <= TOLERANCE[case.dtype]
    benchmark.group = f"{case.op} {case.shape} {case.dtype}"
    if DEVICE == CUDA:  # a call is a replay
        benchmark.extra_info["calls"] = ops.CALLS_PER_GRAPH
        function = ops.GraphSampler(function).sample_us
    benchmark(function)
