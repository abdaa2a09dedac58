# SPDX-License-Identifier: Apache-2.0
"""The four forms of each op agree over shapes that hypothesis chooses.

Float64 NumPy loops are the measure; the C++ CPU reference, plain torch and the ONNX function body
in ONNX Runtime must come as close to them as float32 allows.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")
onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra export)")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra cpu)")

from runtime.backends import native  # noqa: E402
from tests.native.references import (  # noqa: E402
    attention_inputs,
    error,
    key_conv_inputs,
    reference_difference,
    reference_key_conv,
)
from trainer.model import ops  # noqa: E402

FOUND = native.capabilities()
REFERENCE_TOLERANCE = 2e-6  # every sum in float64, rounded once
FLOAT32_TOLERANCE = 1e-5
OPSET = 18

tokens = st.one_of(st.integers(1, 96), st.sampled_from([127, 128, 129, 511, 512]))
dims = st.one_of(st.integers(1, 40), st.sampled_from([64, 96, 127, 128]))
seeds = st.integers(0, 2**32 - 1)
checked = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@functools.lru_cache(maxsize=64)
def session(op: str, inputs: tuple[str, ...], output: str, **attributes):
    """One node of the op with its function body, in ONNX Runtime on one thread."""
    value = functools.partial(onnx.helper.make_tensor_value_info, elem_type=1, shape=None)
    node = onnx.helper.make_node(op, inputs, [output], domain=ops.DOMAIN, **attributes)
    graph = onnx.helper.make_graph([node], op, [value(name) for name in inputs], [value(output)])
    domains = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(ops.DOMAIN, 1)]
    model = onnx.helper.make_model(
        graph, opset_imports=domains, functions=ops.onnx_functions(OPSET), ir_version=10
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


class TestKeyConv:
    @checked
    @given(
        batch=st.integers(1, 2),
        group=st.integers(1, 3),
        tokens=tokens,
        dim=dims,
        sizes=st.permutations((1, 3, 5, 7)),
        data=st.data(),
        seed=seeds,
    )
    def test_all_forms_agree_with_float64(self, batch, group, tokens, dim, sizes, data, seed):
        prefix = data.draw(st.integers(0, min(tokens, 3)), label="prefix")
        shape = (batch, 4 * group, tokens, dim)
        key, weights, biases = key_conv_inputs(shape, np.float32, sizes, seed)
        expected = reference_key_conv(key, weights, biases, sizes, prefix)

        tensors = [torch.from_numpy(x) for x in (key, *weights, *biases)]
        in_torch = ops.multi_scale_key_conv(
            tensors[0], tensors[1:5], tensors[5:], prefix_tokens=prefix
        ).numpy()
        names = ("K", *(f"W{g}" for g in range(4)), *(f"b{g}" for g in range(4)))
        attributes = {"kernel_sizes": tuple(sizes), "prefix_tokens": prefix}
        feed = dict(zip(names, (key, *weights, *biases), strict=True))
        (in_onnx,) = session(ops.KEY_CONV, names, "Y", **attributes).run(None, feed)

        assert error(in_torch, expected) <= FLOAT32_TOLERANCE
        assert error(in_onnx, expected) <= FLOAT32_TOLERANCE
        if FOUND.built:
            in_cpp = native.multi_scale_key_conv(key, weights, biases, sizes, prefix)
            assert error(in_cpp, expected) <= REFERENCE_TOLERANCE


class TestCrossAttention:
    @checked
    @given(
        batch=st.integers(1, 2),
        heads=st.integers(1, 4),
        tokens=tokens,
        dim=dims,
        sharpness=st.sampled_from([0.25, 1.0, 8.0]),
        seed=seeds,
    )
    def test_all_forms_agree_with_float64(self, batch, heads, tokens, dim, sharpness, seed):
        inputs = attention_inputs((batch, heads, tokens, dim), np.float32, seed)
        scale = float(np.float32(sharpness * dim**-0.5))  # an ONNX attribute is a float32
        expected, size = reference_difference(*inputs, scale)

        in_torch = ops.differential_cross_attention(
            *(torch.from_numpy(x) for x in inputs), scale=scale
        ).numpy()
        names = ("Q_self", "Q_cross", "K", "V", "lam")
        feed = dict(zip(names, inputs, strict=True))
        (in_onnx,) = session(ops.CROSS_ATTENTION, names, "Y", scale=scale).run(None, feed)

        # A score's rounding error grows with the score, and the weights with its exponential.
        tolerance = FLOAT32_TOLERANCE * max(1.0, sharpness)
        assert np.abs(in_torch - expected).max() / size <= tolerance
        assert np.abs(in_onnx - expected).max() / size <= tolerance
        if FOUND.built:
            in_cpp = native.differential_cross_attention(*inputs, scale)
            assert np.abs(in_cpp - expected).max() / size <= REFERENCE_TOLERANCE
