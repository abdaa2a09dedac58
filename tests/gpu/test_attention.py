# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernel of DifferentialCrossAttention, on a GPU."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from runtime.backends.native import DeviceTensor, differential_cross_attention_cuda  # noqa: E402
from tests.gpu.tensors import (  # noqa: E402
    DTYPES,
    LAYOUTS,
    attend,
    filled,
    lake,
    same_bits,
    within_twice,
)
from trainer.model.ops import differential_cross_attention  # noqa: E402

pytestmark = pytest.mark.usefixtures("compiled")

LENGTHS = (
    1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 51, 63, 64, 65, 101, 127, 128, 129, 150, 151,
    191, 193, 255, 256, 257, 383, 384, 511, 512,
)  # fmt: skip
DIMS = tuple(range(8, 129, 8))


def inputs(shape, dtype, layout="dense", *, seed=0, spread=1.0):
    """q_self, q_cross, key, value, lam."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def normal():
        return torch.randn(shape, generator=generator, device="cuda")

    tensors = [filled(spread * normal(), dtype, layout) for _ in range(2)]
    tensors += [filled(normal(), dtype, layout) for _ in range(2)]
    lam = 0.2 + 1.3 * torch.rand(shape[1], generator=generator, device="cuda")
    return [*tensors, lam]


def exactly(q_self, q_cross, key, value, lam, scale):
    """In float64, and the size of the first term."""
    q_self, q_cross, key, value = (x.double() for x in (q_self, q_cross, key, value))

    def attention(query):
        return torch.softmax(scale * query @ key.transpose(-1, -2), -1) @ value

    own = attention(q_self)
    return own - lam.double()[:, None, None] * attention(q_cross), float(own.abs().max())


def check(tensors, scale, layout="dense"):
    """Run into poisoned memory; returns the result, or fails."""
    place = lake(tuple(tensors[0].shape), tensors[0].dtype, layout)
    attend(*tensors, place.tensor, scale)
    torch.cuda.synchronize()
    exact, size = exactly(*tensors, scale)
    plain = differential_cross_attention(*tensors, scale=scale)
    problem = within_twice(place.tensor, plain, exact, size)
    assert problem is None, f"{tuple(tensors[0].shape)} {tensors[0].dtype} {layout}: {problem}"
    assert place.intact(), f"{tuple(tensors[0].shape)} {layout}: memory around the output changed"
    return place.tensor


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_at_most_twice_that_of_torch_at_every_length(dim, dtype):
    for tokens in LENGTHS:
        check(inputs((2, 4, tokens, dim), dtype, seed=tokens), dim**-0.5)


@pytest.mark.parametrize(
    "shape", [(1, 1, 51, 64), (16, 8, 151, 64), (64, 4, 51, 32), (3, 5, 77, 40)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_windows_and_heads(shape, dtype):
    check(inputs(shape, dtype), shape[-1] ** -0.5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dim", [8, 40, 64, 120])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_inputs_and_outputs(layout, dim, dtype):
    for tokens in (1, 17, 51, 130):
        tensors = inputs((2, 4, tokens, dim), dtype, layout, seed=tokens)
        dense = [x.contiguous() for x in tensors]
        result = check(tensors, dim**-0.5, layout)
        if layout != "shifted":  # which takes another path: no wide loads
            assert same_bits(result, check(dense, dim**-0.5))


def test_one_key_for_all_windows():
    q_self, q_cross, key, value, lam = inputs((4, 4, 51, 64), torch.float16)
    check([q_self, q_cross, key[:1].expand(4, -1, -1, -1), value, lam], 0.125)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_every_time(dtype):
    tensors = inputs((8, 8, 151, 64), dtype)
    outs = [torch.full_like(tensors[0], torch.nan) for _ in range(5)]
    for out in outs:
        attend(*tensors, out, 0.125)
    torch.cuda.synchronize()
    assert all(same_bits(outs[0], out) for out in outs[1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_captured_graph_replays_on_new_data(dtype):
    tensors = inputs((1, 8, 51, 64), dtype)
    out = torch.full_like(tensors[0], torch.nan)
    attend(*tensors, out, 0.125)  # loads the module before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend(*tensors, out, 0.125)
    for seed in (1, 2):
        fresh = inputs((1, 8, 51, 64), dtype, seed=seed)
        for captured, new in zip(tensors, fresh, strict=True):
            captured.copy_(new)
        out.fill_(torch.nan)
        graph.replay()
        torch.cuda.synchronize()
        assert same_bits(out, check(fresh, 0.125))


@pytest.mark.parametrize("dim", [32, 64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_scores_neither_overflow_nor_lose_the_winner(dim, dtype):
    """Small integers: every score is exact in float32, up to some thousands."""
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (2, 4, 150, dim)
    q_self, q_cross, key = (
        torch.randint(-8, 9, shape, generator=generator, device="cuda").to(dtype) for _ in range(3)
    )
    value = torch.randn(shape, generator=generator, device="cuda").to(dtype)
    lam = torch.ones(4, device="cuda")
    out = torch.full_like(value, torch.nan)
    attend(q_self, q_cross, key, value, lam, out, 1.0)
    exact, size = exactly(q_self, q_cross, key, value, lam, 1.0)
    tolerance = 2e-3 + 2 * torch.finfo(dtype).eps
    assert torch.isfinite(out).all()
    assert float((out.double() - exact).abs().max()) <= tolerance * size


@pytest.mark.parametrize("scale", [0.0, -0.125])
def test_scales_that_nobody_uses_still_mean_what_they_say(scale):
    check(inputs((2, 4, 51, 64), torch.float16), scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_stays_visible_and_in_its_row(dtype):
    tensors = inputs((1, 2, 51, 64), dtype)
    tensors[0][0, 1, 20, 3] = torch.nan
    out = torch.zeros_like(tensors[0])
    attend(*tensors, out, 0.125)
    wrong = torch.isnan(out)
    assert wrong[0, 1, 20].all()
    assert int(wrong.sum()) == 64


def test_it_runs_on_the_stream_it_is_given():
    tensors = inputs((16, 8, 512, 128), torch.float32)
    out = torch.empty_like(tensors[0])
    attend(*tensors, out, 0.1)  # loads the module, which may wait for the GPU
    out.fill_(torch.nan)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    done = torch.cuda.Event()
    described = [DeviceTensor.of(x) for x in (*tensors, out)]
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # the side stream is busy, the others are not
        differential_cross_attention_cuda(*described, 0.1, stream=side.cuda_stream)
        done.record()
    assert not done.query(), "the call waited for its stream"
    early = out.clone()  # on the default stream of torch, which waits for nobody
    torch.cuda.current_stream().synchronize()
    assert bool(torch.isnan(early).all()), "the kernel ran on another stream"
    done.synchronize()
    assert bool(torch.isfinite(out).all())
