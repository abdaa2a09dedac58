# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernel of MultiScaleKeyConv, on a GPU."""

from __future__ import annotations

import warnings

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from tests.gpu.tensors import (  # noqa: E402
    DTYPES,
    LAYOUTS,
    convolve,
    filled,
    lake,
    same_bits,
    within_twice,
)
from trainer.model.ops import multi_scale_key_conv  # noqa: E402

pytestmark = pytest.mark.usefixtures("compiled", "float32_in_full")

SIZES = (1, 3, 5, 7)
LENGTHS = (1, 2, 3, 7, 15, 16, 17, 31, 33, 51, 64, 65, 101, 127, 129, 150, 151, 257, 511, 512)
DIMS = tuple(range(8, 129, 8))


@pytest.fixture(scope="module")
def float32_in_full():
    """No TF32 in cuDNN's convolutions: the yardstick of float32 is float32."""

    def allow_tf32(allowed: bool) -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some versions announce a newer way to say it
            before = torch.backends.cudnn.allow_tf32
            torch.backends.cudnn.allow_tf32 = allowed
        return before

    before = allow_tf32(False)
    yield
    allow_tf32(before)


def inputs(shape, dtype, layout="dense", *, sizes=SIZES, seed=0):
    """key, four weights, four biases."""
    generator = torch.Generator("cuda").manual_seed(seed)
    group = shape[1] // 4

    def normal(*size):
        return torch.randn(size, generator=generator, device="cuda")

    key = filled(normal(*shape), dtype, layout)
    weights = [(normal(group, group, k, k) / k).to(dtype) for k in sizes]
    biases = [normal(group).to(dtype) for _ in sizes]
    return key, weights, biases


def check(key, weights, biases, layout="dense", *, sizes=SIZES, prefix=1):
    """Run into poisoned memory; returns the result, or fails."""
    place = lake(tuple(key.shape), key.dtype, layout)
    convolve(key, weights, biases, place.tensor, sizes, prefix)
    torch.cuda.synchronize()
    plain = multi_scale_key_conv(key, weights, biases, prefix_tokens=prefix)
    wide = [[x.double() for x in some] for some in (weights, biases)]
    exact = multi_scale_key_conv(key.double(), *wide, prefix_tokens=prefix)
    problem = within_twice(place.tensor, plain, exact, float(exact.abs().max()))
    at = f"{tuple(key.shape)} {key.dtype} {layout} prefix {prefix}"
    assert problem is None, f"{at}: {problem}"
    assert same_bits(place.tensor[:, :, :prefix], key[:, :, :prefix]), f"{at}: the prefix changed"
    assert place.intact(), f"{at}: memory around the output changed"
    return place.tensor


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_at_most_twice_that_of_torch_at_every_length(dim, dtype):
    for tokens in LENGTHS:
        check(*inputs((2, 8, tokens, dim), dtype, seed=tokens))


@pytest.mark.parametrize(
    "shape", [(1, 4, 51, 32), (16, 8, 151, 64), (3, 12, 77, 40), (2, 32, 51, 64)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_windows_and_heads(shape, dtype):
    check(*inputs(shape, dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dim", [8, 40, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_inputs_and_outputs(layout, dim, dtype):
    for tokens in (1, 17, 51, 130):
        key, weights, biases = inputs((2, 8, tokens, dim), dtype, layout, seed=tokens)
        result = check(key, weights, biases, layout)
        assert same_bits(result, check(key.contiguous(), weights, biases))


@pytest.mark.parametrize("prefix", [0, 1, 2, 16, 17, 51])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_prefix_tokens_pass_untouched_and_unseen(prefix, dtype):
    key, weights, biases = inputs((2, 8, 51, 32), dtype)
    result = check(key, weights, biases, prefix=prefix).clone()
    key[:, :, :prefix] += 100
    again = check(key, weights, biases, prefix=prefix)
    assert same_bits(again[:, :, prefix:], result[:, :, prefix:])


@pytest.mark.parametrize("sizes", [(7, 5, 3, 1), (9, 1, 1, 3), (11, 13, 3, 31)])
def test_other_kernel_sizes(sizes):
    for dtype in DTYPES:
        check(*inputs((1, 8, 51, 32), dtype, sizes=sizes), sizes=sizes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_every_time(dtype):
    key, weights, biases = inputs((8, 8, 151, 64), dtype)
    outs = [torch.full_like(key, torch.nan) for _ in range(5)]
    for out in outs:
        convolve(key, weights, biases, out)
    torch.cuda.synchronize()
    assert all(same_bits(outs[0], out) for out in outs[1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_captured_graph_replays_on_new_data(dtype):
    key, weights, biases = inputs((1, 8, 51, 64), dtype)
    out = torch.full_like(key, torch.nan)
    convolve(key, weights, biases, out)  # loads the module before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        convolve(key, weights, biases, out)
    for seed in (1, 2):
        fresh, _, _ = inputs((1, 8, 51, 64), dtype, seed=seed)
        key.copy_(fresh)
        out.fill_(torch.nan)
        graph.replay()
        torch.cuda.synchronize()
        assert same_bits(out, check(fresh, weights, biases))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_values_do_not_overflow_where_the_type_holds_them(dtype):
    key, weights, biases = inputs((1, 8, 51, 64), dtype)
    key.mul_(1e30)
    check(key, weights, biases)


def test_what_float16_cannot_hold_becomes_infinite_and_not_nan():
    key, weights, biases = inputs((1, 4, 9, 8), torch.float16)
    key.fill_(60000)
    weights = [torch.ones_like(w) for w in weights]
    out = torch.zeros_like(key)
    convolve(key, weights, biases, out)
    assert not torch.isnan(out).any()
    assert torch.isinf(out[:, 1:, 2:-2, 2:-2]).all()
    assert torch.isfinite(out[:, 0]).all()
