# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels' own sources, run without a GPU on the SIMT machine of tests/native/simt.

Right against float64, by the rule that the kernel's error is at most twice that of the same
computation in plain torch (or NumPy) at the same type; the same bits in every order of threads;
nothing read or written outside the tensors; no race in shared memory.  What this cannot show is
time, and whether PTX does what its manual says: the tests marked ``gpu`` do.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native.simt import machine as simt
from tests.native.simt.machine import DTYPES, Layout, Machine, rounded

REASON = simt.why_not()
pytestmark = [
    pytest.mark.thorough,  # compiles the kernels for the CPU, several times
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]

HALVES = ("float16", "bfloat16")
PRECISION = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # of one rounding
TOKEN_MAJOR = Layout(order="bth")  # as a projection leaves it: [B, T, h, D]
GAPS = Layout(gap=8)
MISALIGNED = Layout(offset=1)
ODD_GAPS = Layout(order="bth", gap=3)


def sanitizer(name):
    """The build, or a skip where the compiler has no such library."""
    try:
        simt.build(name)
    except AssertionError as err:
        if "cannot find" in str(err):  # the linker: libasan, libubsan or libtsan is not installed
            pytest.skip(f"g++ has no {name} sanitizer here")
        raise
    return name


def check_bits_in_every_order(launch, first):
    for order in ("reverse", "random"):
        again = launch(Machine(order=order, seed=7))
        assert again.status == 0, again.message
        assert again.bits == first.bits, order


def error(result, expected):
    """Largest difference; NaN where there is one."""
    return np.abs(result - expected).max()


# Attention ---------------------------------------------------------------------------------------


def attention_inputs(shape, dtype, *, seed=0, spread=1.0):
    """q_self, q_cross, key, value that `dtype` can hold, and lam."""
    rng = np.random.default_rng(seed)
    tensors = [rounded(rng.standard_normal(shape) * s, dtype) for s in (spread, spread, spread, 1)]
    return (*tensors, rng.uniform(-0.5, 1.5, shape[1]).astype(np.float32))


def attention_float64(q_self, q_cross, key, value, lam, scale):
    q_self, q_cross, key, value, lam = (
        x.astype(np.float64) for x in (q_self, q_cross, key, value, lam)
    )

    def weights(query):
        scores = scale * query @ key.swapaxes(-1, -2)  # [B, h, T, T]
        powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)

    return (weights(q_self) - lam[:, None, None] * weights(q_cross)) @ value


def attention_plain(dtype, q_self, q_cross, key, value, lam, scale):
    """The operator's reference at `dtype`, every intermediate rounded to it; softmax in float32."""
    try:
        import torch
    except ImportError:

        def weights(query):
            scores = rounded(
                rounded(query * np.float32(scale), dtype) @ key.swapaxes(-1, -2), dtype
            )
            powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
            return powers / powers.sum(axis=-1, keepdims=True)

        difference = weights(q_self) - lam[:, None, None] * weights(q_cross)
        return rounded(rounded(difference, dtype) @ value, dtype)
    from trainer.model.ops import differential_cross_attention

    tensors = [torch.from_numpy(x).to(getattr(torch, dtype)) for x in (q_self, q_cross, key, value)]
    out = differential_cross_attention(*tensors, torch.from_numpy(lam), scale=scale)
    return out.float().numpy()


def check_attention(machine, dtype, shape, *, layouts=None, scale=None, seed=0, spread=1.0):
    """Runs one launch and holds it to the 2x rule; gives the outcome back."""
    scale = shape[3] ** -0.5 if scale is None else scale
    inputs = attention_inputs(shape, dtype, seed=seed, spread=spread)
    outcome = simt.attention(machine, dtype, *inputs, scale, layouts)
    assert outcome.status == 0, outcome.message
    assert outcome.untouched, "written outside the output tensor"
    assert outcome.bank_conflicts == 0
    expected = attention_float64(*inputs, scale)
    plain = error(attention_plain(dtype, *inputs, scale), expected)
    # The result is rounded once; the two terms, which may cancel, are float32.
    terms = np.abs(inputs[3]).max() * max(1.0, np.abs(inputs[4]).max())
    floor = PRECISION[dtype] * np.abs(expected).max() + 2 * PRECISION["float32"] * terms
    assert error(outcome.values, expected) <= 2 * plain + floor
    return outcome


def used_tensor_cores(outcome):
    return outcome.multiply_adds > 0


class TestAttention:
    # Every T with several D and every D with several T; 512 with small D only, for time.
    SHAPES = (
        (2, 3, 1, 8),
        (1, 2, 1, 128),
        (2, 2, 2, 16),
        (1, 2, 15, 24),
        (1, 2, 15, 64),
        (1, 2, 16, 32),
        (1, 1, 16, 96),
        (1, 2, 17, 40),
        (1, 1, 17, 128),
        (1, 4, 51, 32),
        (2, 2, 51, 64),
        (1, 1, 64, 64),
        (1, 1, 64, 24),
        (1, 1, 65, 96),
        (1, 1, 65, 8),
        (1, 1, 150, 64),
        (1, 1, 512, 16),
    )

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_twice_the_error_of_plain_torch_at_most(self, shape, dtype):
        outcome = check_attention(Machine(), dtype, shape)
        assert used_tensor_cores(outcome) == (dtype in HALVES)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", [(2, 2, 51, 64), (1, 1, 130, 40)], ids=str)
    def test_the_same_bits_in_every_order_of_threads(self, shape, dtype):
        def launch(machine):
            return simt.attention(machine, dtype, *attention_inputs(shape, dtype), 0.125)

        check_bits_in_every_order(launch, launch(Machine()))

    @settings(max_examples=25, deadline=None)
    @given(
        dtype=st.sampled_from(DTYPES),
        batch=st.integers(1, 2),
        heads=st.integers(1, 3),
        tokens=st.integers(1, 80),
        chunks=st.integers(1, 16),
        layout=st.sampled_from([simt.DENSE, TOKEN_MAJOR, GAPS, MISALIGNED, ODD_GAPS]),
        order=st.sampled_from(simt.ORDERS),
        seed=st.integers(0, 1000),
    )
    def test_any_shape_and_layout(self, dtype, batch, heads, tokens, chunks, layout, order, seed):
        layouts = dict.fromkeys(("q_self", "key", "out"), layout)
        shape = (batch, heads, tokens, 8 * chunks)
        check_attention(Machine(order=order, seed=seed), dtype, shape, layouts=layouts, seed=seed)

    @pytest.mark.parametrize("dtype", HALVES)
    @pytest.mark.parametrize("name", ["q_self", "q_cross", "key", "value", "out"])
    def test_tensor_cores_wherever_rows_are_aligned(self, name, dtype):
        for layout in (simt.DENSE, TOKEN_MAJOR, GAPS, Layout(offset=8)):
            outcome = check_attention(Machine(), dtype, (1, 2, 5, 16), layouts={name: layout})
            assert used_tensor_cores(outcome), layout
        for layout in (MISALIGNED, ODD_GAPS, Layout(gap=4)):
            outcome = check_attention(Machine(), dtype, (1, 2, 5, 16), layouts={name: layout})
            assert not used_tensor_cores(outcome), layout

    def test_the_stride_of_a_dimension_of_one_does_not_matter(self):
        outcome = check_attention(Machine(), "float16", (1, 1, 1, 16), layouts={"key": ODD_GAPS})
        assert used_tensor_cores(outcome)

    @pytest.mark.parametrize(
        ("capability", "expected"), [(75, False), (80, True), (87, True), (90, True), (110, True)]
    )
    def test_tensor_cores_from_compute_capability_8_on(self, capability, expected):
        outcome = check_attention(Machine(capability=capability), "float16", (1, 2, 17, 32))
        assert used_tensor_cores(outcome) == expected

    def test_as_many_rows_a_block_as_the_device_can_share_out(self):
        """Few multiprocessors: four pairs of warps share a tile of K and V; many: one pair each."""
        inputs = attention_inputs((1, 2, 150, 64), "float16")
        few, some, many = (
            simt.attention(Machine(processors=n), "float16", *inputs, 0.125) for n in (1, 8, 1000)
        )
        assert (few.threads_per_block, few.blocks) == (4 * 64, 2 * 3)
        assert (some.threads_per_block, some.blocks) == (3 * 64, 2 * 4)
        assert (many.threads_per_block, many.blocks) == (64, 2 * 10)
        assert few.bits == some.bits == many.bits

    def test_one_pass_over_keys_and_values(self):
        """Each block copies K and V once, 16 bytes a thread and time, for both score sets."""
        outcome = check_attention(Machine(processors=1), "float16", (1, 1, 51, 64))
        assert outcome.blocks == 1
        assert outcome.async_copies == 2 * 64 * 64 * 2 // 16
        # Per pair of rows and set: 64 keys x 64 dims in two products of 16 x 8 x 16 each.
        assert outcome.multiply_adds == 2 * 4 * 2 * (8 * 4)

    @pytest.mark.parametrize("dim", [16, 32, 64, 96, 128])
    def test_shared_memory_is_within_every_device_s_limit(self, dim):
        inputs = attention_inputs((1, 1, 65, dim), "float16")
        outcome = simt.attention(Machine(capability=86), "float16", *inputs, 0.125)
        assert outcome.status == 0, outcome.message
        assert outcome.shared_bytes == 2 * 2 * 64 * (dim + 8) * 2 <= 99 * 1024

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("scale", [-0.25, 0.0, 3.0])
    def test_any_scale(self, scale, dtype):
        check_attention(Machine(), dtype, (1, 2, 70, 16), scale=scale)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_scores_beyond_the_range_of_float16(self, dtype):
        """Raw scores of +-10^6: plain float16 overflows, float32 accumulators do not."""
        scale = 1 / 4096
        inputs = attention_inputs((1, 2, 70, 64), dtype, spread=300.0)
        outcome = simt.attention(Machine(), dtype, *inputs, scale)
        expected = attention_float64(*inputs, scale)
        assert np.abs(inputs[0] @ inputs[2].swapaxes(-1, -2)).max() > 1e6
        # A score of 10^6 / 4096 is 250: a rounding of 2^-24 of it moves a weight by 2^-16.
        tolerance = (2.0**-13 + 4 * PRECISION[dtype]) * np.abs(expected).max()
        assert error(outcome.values, expected) <= tolerance

    def test_an_infinite_score_of_minus_infinity_is_a_weight_of_zero(self):
        """A whole first tile of -inf: the running maximum must not turn it into NaN."""
        q_self, q_cross, key, value, lam = attention_inputs((1, 1, 100, 16), "float16")
        q_self[...], q_cross[...] = 1.0, 1.0
        key[:, :, :64, 0] = -np.inf
        rest = [x[:, :, 64:] for x in (q_self, q_cross, key, value)]
        expected = attention_float64(*rest, lam, 0.25)[:, :, :1]
        for dtype in DTYPES:
            outcome = simt.attention(Machine(), dtype, q_self, q_cross, key, value, lam, 0.25)
            np.testing.assert_allclose(outcome.values[:, :, :1], expected, rtol=0, atol=0.02)

    @pytest.mark.parametrize(
        ("claimed", "message"),
        [
            ((1, 1, 0, 8), "tokens must be from 1 to 512"),
            ((1, 1, 513, 8), "tokens must be from 1 to 512"),
            ((1, 1, 1, 12), "multiple of 8, at most 128"),
            ((1, 1, 1, 136), "multiple of 8, at most 128"),
            ((0, 1, 1, 8), "at least 1"),
            ((1 << 20, 1 << 12, 1, 8), "too large"),
            ((1 << 16, 1 << 14, 512, 8), "too large"),
        ],
    )
    def test_refusals_say_why(self, claimed, message):
        inputs = attention_inputs((1, 1, 1, 8), "float16")
        outcome = simt.attention(Machine(), "float16", *inputs, 1.0, claimed=claimed)
        assert outcome.status == simt.REFUSED
        assert message in outcome.message

    def test_a_scale_that_is_no_number_is_refused(self):
        inputs = attention_inputs((1, 1, 1, 8), "float16")
        for scale in (np.nan, np.inf):
            outcome = simt.attention(Machine(), "float16", *inputs, scale)
            assert outcome.status == simt.REFUSED
            assert "scale must be finite" in outcome.message

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        ("shape", "layout"),
        [((2, 1, 1, 8), simt.DENSE), ((1, 2, 66, 24), TOKEN_MAJOR), ((1, 1, 51, 64), ODD_GAPS)],
        ids=str,
    )
    def test_nothing_outside_the_tensors_is_touched(self, shape, layout, dtype):
        names = ("q_self", "q_cross", "key", "value", "out")
        machine = Machine(build=sanitizer("address"), order="random", processors=4)
        check_attention(machine, dtype, shape, layouts=dict.fromkeys(names, layout))

    @pytest.mark.parametrize(
        ("dtype", "shape", "processors"),
        [
            ("float32", (1, 1, 40, 16), 1),
            ("float16", (1, 1, 140, 16), 1),
            ("bfloat16", (1, 2, 66, 32), 1000),
        ],
        ids=str,
    )
    def test_no_race(self, dtype, shape, processors):
        """Several tiles, so that buffers are used again; one pair of warps a block and four."""
        machine = Machine(build=sanitizer("thread"), order="random", processors=processors)
        check_attention(machine, dtype, shape)


# Convolution -------------------------------------------------------------------------------------

SIZES = (1, 3, 5, 7)


def conv_inputs(shape, dtype, *, sizes=SIZES, seed=0):
    rng = np.random.default_rng(seed)
    group = shape[1] // 4
    key = rounded(rng.standard_normal(shape), dtype)
    weights = [rounded(rng.standard_normal((group, group, k, k)) / k, dtype) for k in sizes]
    biases = [rounded(rng.standard_normal(group), dtype) for _ in sizes]
    return key, weights, biases


def conv_by_taps(key, weights, biases, prefix, wide):
    """out[o] = bias[o] + sum over heads i and taps of shifted planes, sums at the type `wide`."""
    tokens, dim = key.shape[2:]
    group = key.shape[1] // 4
    seen = key.astype(wide)
    seen[:, :, :prefix] = 0
    out = np.empty(key.shape, wide)  # [B, h, T, D]
    for g, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        half = weight.shape[-1] // 2
        padded = np.pad(seen[:, g * group : (g + 1) * group], [(0, 0)] * 2 + [(half, half)] * 2)
        total = np.zeros((key.shape[0], group, tokens, dim), wide)
        for i in range(2 * half + 1):
            for j in range(2 * half + 1):
                shifted = padded[:, :, i : i + tokens, j : j + dim]
                total += np.einsum("oc,bctd->botd", weight[:, :, i, j].astype(wide), shifted)
        out[:, g * group : (g + 1) * group] = total + bias.astype(wide)[:, None, None]
    out[:, :, :prefix] = key[:, :, :prefix]
    return out


def conv_plain(dtype, key, weights, biases, prefix):
    try:
        import torch
    except ImportError:
        return rounded(conv_by_taps(key, weights, biases, prefix, np.float32), dtype)
    from trainer.model.ops import multi_scale_key_conv

    def tensors(arrays):
        return [torch.from_numpy(a).to(getattr(torch, dtype)) for a in arrays]

    out = multi_scale_key_conv(
        *tensors([key]), tensors(weights), tensors(biases), prefix_tokens=prefix
    )
    return out.float().numpy()


def accumulation(key, weights, biases, prefix):
    """What n float32 additions, one after the other, may lose: sqrt(n) u sum |terms|.

    The errors of the roundings are nearly independent, so they grow as sqrt(n) and not as n
    (Higham & Mary, SIAM J. Sci. Comput. 41, 2019, theorem 2.4).  Plain torch adds in blocks and may
    be better than that by more than the factor 2 of the rule.
    """
    sizes = [np.abs(x) for x in (key, *weights, *biases)]
    magnitude = conv_by_taps(sizes[0], sizes[1:5], sizes[5:], prefix, np.float64).max()
    terms = max(w[0].size for w in weights)
    return np.sqrt(terms) * PRECISION["float32"] * magnitude


def check_conv(machine, dtype, shape, *, sizes=SIZES, prefix=1, layouts=None, seed=0):
    inputs = conv_inputs(shape, dtype, sizes=sizes, seed=seed)
    outcome = simt.key_conv(machine, dtype, *inputs, prefix, layouts)
    assert outcome.status == 0, outcome.message
    assert outcome.untouched, "written outside the output tensor"
    assert outcome.shared_bytes <= 48 * 1024
    expected = conv_by_taps(*inputs, prefix, np.float64)
    plain = error(conv_plain(dtype, *inputs, prefix), expected)
    floor = PRECISION[dtype] * np.abs(expected).max() + accumulation(*inputs, prefix)
    assert error(outcome.values, expected) <= 2 * plain + floor
    np.testing.assert_array_equal(outcome.values[:, :, :prefix], inputs[0][:, :, :prefix])
    return outcome


class TestKeyConv:
    SHAPES = (
        (2, 4, 1, 8),
        (1, 4, 2, 128),
        (1, 8, 15, 24),
        (1, 4, 16, 40),
        (2, 4, 17, 32),
        (1, 8, 51, 64),
        (1, 4, 65, 96),
        (1, 4, 150, 16),
        (1, 4, 512, 8),
    )
    # For the sanitizers; of the last, shared memory holds four of the five heads of a group.
    SMALL = (((1, 4, 1, 8), SIZES), ((1, 4, 18, 40), SIZES), ((1, 20, 3, 8), (1, 3, 1, 31)))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_twice_the_error_of_plain_torch_at_most(self, shape, dtype):
        outcome = check_conv(Machine(), dtype, shape)
        assert outcome.blocks == shape[0] * shape[1] * -(-shape[2] // 16)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_the_same_bits_in_every_order_of_threads(self, dtype):
        def launch(machine):
            return simt.key_conv(machine, dtype, *conv_inputs((1, 8, 20, 24), dtype), 1)

        check_bits_in_every_order(launch, launch(Machine()))

    @settings(max_examples=25, deadline=None)
    @given(
        dtype=st.sampled_from(DTYPES),
        batch=st.integers(1, 2),
        group=st.integers(1, 2),
        tokens=st.integers(1, 40),
        chunks=st.integers(1, 8),
        sizes=st.lists(st.sampled_from([1, 3, 5, 7, 9, 11]), min_size=4, max_size=4),
        prefix=st.integers(0, 4),
        layout=st.sampled_from([simt.DENSE, TOKEN_MAJOR, GAPS, MISALIGNED, ODD_GAPS]),
        order=st.sampled_from(simt.ORDERS),
        seed=st.integers(0, 1000),
    )
    def test_any_shape_and_layout(
        self, dtype, batch, group, tokens, chunks, sizes, prefix, layout, order, seed
    ):
        check_conv(
            Machine(order=order, seed=seed),
            dtype,
            (batch, 4 * group, tokens, 8 * chunks),
            sizes=sizes,
            prefix=min(prefix, tokens),
            layouts={"key": layout, "out": layout},
            seed=seed,
        )

    def test_more_heads_than_shared_memory_holds(self):
        """64 heads of 128: the planes of a group's 16 heads come in several rounds."""
        outcome = check_conv(Machine(), "float16", (1, 64, 5, 128), sizes=(1, 1, 3, 7))
        assert outcome.barriers > outcome.blocks  # one a block if all heads came at once

    def test_the_largest_kernel(self):
        check_conv(Machine(), "float32", (1, 4, 20, 128), sizes=(31, 1, 1, 31))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_prefix_tokens_pass_bit_by_bit_and_unseen(self, dtype):
        key, weights, biases = conv_inputs((1, 4, 19, 16), dtype)
        clean = simt.key_conv(Machine(), dtype, key, weights, biases, 2)
        key[:, :, :2] = np.nan
        outcome = simt.key_conv(Machine(), dtype, key, weights, biases, 2)
        np.testing.assert_array_equal(outcome.values[:, :, 2:], clean.values[:, :, 2:])
        assert np.isnan(outcome.values[:, :, :2]).all()

    @pytest.mark.parametrize(
        ("claimed", "sizes", "prefix", "message"),
        [
            ((1, 6, 1, 8), SIZES, 0, "heads must be a multiple of 4"),
            ((1, 0, 1, 8), SIZES, 0, "heads must be a multiple of 4"),
            ((1, 4, 513, 8), SIZES, 0, "tokens must be from 1 to 512"),
            ((1, 4, 1, 12), SIZES, 0, "multiple of 8, at most 128"),
            ((1, 4, 1, 8), (1, 3, 5, 4), 0, "odd, from 1 to 31"),
            ((1, 4, 1, 8), (1, 3, 5, 33), 0, "odd, from 1 to 31"),
            ((1, 4, 1, 8), SIZES, 2, "prefix_tokens must be from 0"),
            ((1, 4, 1, 8), SIZES, -1, "prefix_tokens must be from 0"),
            ((1 << 20, 1 << 12, 1, 8), SIZES, 0, "too large"),
        ],
    )
    def test_refusals_say_why(self, claimed, sizes, prefix, message):
        inputs = conv_inputs((1, 4, 1, 8), "float16", sizes=sizes)
        outcome = simt.key_conv(Machine(), "float16", *inputs, prefix, claimed=claimed)
        assert outcome.status == simt.REFUSED
        assert message in outcome.message

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("shape", "sizes"), SMALL, ids=str)
    def test_nothing_outside_the_tensors_is_touched(self, shape, sizes, dtype):
        for layout in (simt.DENSE, ODD_GAPS):
            machine = Machine(build=sanitizer("address"), order="random")
            layouts = {"key": layout, "out": layout}
            check_conv(machine, dtype, shape, sizes=sizes, layouts=layouts)

    @pytest.mark.parametrize(("shape", "sizes"), SMALL, ids=str)
    def test_no_race(self, shape, sizes):
        machine = Machine(build=sanitizer("thread"), order="random")
        check_conv(machine, "float16", shape, sizes=sizes)


# The machine itself ------------------------------------------------------------------------------

(
    MIRROR,
    RACE,
    RACE_ON_REUSE,
    RACE_OF_BLOCKS,
    SHUFFLE_IS_NO_BARRIER,
    GLOBAL_OVERRUN,
    SHARED_OVERRUN,
    MISSING_WAIT,
    NEVER_WAITED,
    MISALIGNED_COPY,
    DIVERGENT_BARRIERS,
    EARLY_EXIT,
    DIVERGENT_WARP,
    UNINITIALISED_SHARED,
    BANK_CONFLICTS,
    TOO_MUCH_SHARED,
) = range(16)


class TestTheMachineFinds:
    @pytest.mark.parametrize("name", list(simt.BUILDS))
    def test_nothing_in_a_kernel_without_mistakes(self, name):
        outcome = simt.faulty(Machine(build=sanitizer(name)), MIRROR)
        assert outcome.status == 0, outcome.message
        np.testing.assert_array_equal(outcome.values, np.arange(64)[::-1])

    @pytest.mark.parametrize("order", simt.ORDERS)
    @pytest.mark.parametrize(
        "which", [RACE, RACE_ON_REUSE, RACE_OF_BLOCKS, SHUFFLE_IS_NO_BARRIER, MISSING_WAIT]
    )
    def test_races(self, which, order):
        outcome = simt.faulty(Machine(build=sanitizer("thread"), order=order), which)
        assert outcome.status not in (0, simt.REFUSED, simt.FAULT)
        assert "data race" in outcome.message

    @pytest.mark.parametrize("which", [RACE, RACE_ON_REUSE])
    def test_results_that_depend_on_the_order_of_threads(self, which):
        forward, reverse = (
            simt.faulty(Machine(order=order), which).values for order in ("forward", "reverse")
        )
        assert not np.array_equal(forward, reverse, equal_nan=True)

    @pytest.mark.parametrize("which", [GLOBAL_OVERRUN, SHARED_OVERRUN])
    def test_accesses_outside(self, which):
        outcome = simt.faulty(Machine(build=sanitizer("address")), which)
        assert outcome.status not in (0, simt.REFUSED, simt.FAULT)
        assert "heap-buffer-overflow" in outcome.message

    @pytest.mark.parametrize("which", [MISSING_WAIT, UNINITIALISED_SHARED])
    def test_shared_memory_that_nobody_has_written_yet(self, which):
        assert np.isnan(simt.faulty(Machine(), which).values).any()

    @pytest.mark.parametrize(
        ("which", "message"),
        [
            (NEVER_WAITED, "ended with copies under way"),
            (MISALIGNED_COPY, "not aligned to 16 bytes"),
            (DIVERGENT_BARRIERS, "wait at different barriers"),
            (EARLY_EXIT, "left before a block barrier"),
            (DIVERGENT_WARP, "left before a warp-wide instruction"),
        ],
    )
    def test_faults(self, which, message):
        outcome = simt.faulty(Machine(), which)
        assert outcome.status == simt.FAULT
        assert message in outcome.message

    def test_bank_conflicts(self):
        assert simt.faulty(Machine(), BANK_CONFLICTS).bank_conflicts == 2  # one a warp

    def test_more_shared_memory_than_a_device_has(self):
        outcome = simt.faulty(Machine(), TOO_MUCH_SHARED)
        assert outcome.status == simt.REFUSED
