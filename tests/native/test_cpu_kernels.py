# SPDX-License-Identifier: Apache-2.0
"""The C++ kernels of the CPU against the float64 NumPy reference."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from runtime.backends import native
from runtime.errors import DependencyError
from tests.native.references import (
    KERNEL_SIZES,
    attention_inputs,
    error,
    key_conv_inputs,
    reference_difference,
    reference_key_conv,
)

FOUND = native.capabilities()
needs_native = pytest.mark.skipif(not FOUND.built, reason=f"native kernels: {FOUND.reason}")

TOKENS = [1, 2, 51, 150]
TOLERANCE = {np.float32: 2e-6, np.float64: 1e-12}
DTYPES = [np.float32, np.float64]


class TestCapabilities:
    def test_an_absent_native_part_has_a_reason_and_a_present_one_a_compiler(self):
        if FOUND.built:
            assert FOUND.reason is None
            assert FOUND.compiler
        else:
            assert FOUND.reason
            assert FOUND.compiler is None

    def test_an_absent_native_part_is_an_error_that_says_what_to_do(self, monkeypatch):
        absent = native.Capabilities(built=False, reason="no C++ compiler was found", compiler=None)
        monkeypatch.setattr(native, "capabilities", lambda: absent)
        with pytest.raises(DependencyError, match=r"no C\+\+ compiler was found; install"):
            native.multi_scale_key_conv(*key_conv_inputs((1, 4, 2, 3), np.float32))

    def test_sources_that_were_never_installed_are_not_built(self, monkeypatch):
        monkeypatch.setattr(native, "installed", lambda name: False)
        found = native.capabilities()
        assert not found.built
        assert "without being installed" in found.reason

    def test_a_built_part_that_does_not_load_is_an_error_not_a_fall_back(self, monkeypatch):
        class Build:
            BUILT = True
            COMPILER = "GNU 12"

        def broken(name):
            if name == "runtime._native_build":
                return Build
            raise ImportError("undefined symbol")

        monkeypatch.setattr(native, "installed", lambda name: True)
        monkeypatch.setattr(importlib, "import_module", broken)
        with pytest.raises(DependencyError, match="does not load"):
            native.capabilities()


class TestCuda:
    def test_no_gpu_is_seen_where_cuda_is_not_compiled_in(self, monkeypatch):
        cpu_only = native.Capabilities(built=True, reason=None, compiler="GNU 12")
        monkeypatch.setattr(native, "capabilities", lambda: cpu_only)
        assert native.cuda_devices() == ()

    @needs_native
    def test_what_is_seen_is_named_and_asking_never_fails(self):
        found = native.cuda_devices()
        assert all(device.name and "." in device.compute_capability for device in found)
        assert found == () or FOUND.cuda_architectures

    @needs_native
    @pytest.mark.skipif(bool(FOUND.cuda_architectures), reason="CUDA is compiled in")
    def test_without_cuda_the_kernels_are_an_error_that_says_what_to_do(self):
        tensor = native.DeviceTensor(16, (1, 4, 2, 8), (64, 16, 8, 1), "float16")
        lam = native.DeviceTensor(16, (4,), (1,), "float32")
        with pytest.raises(DependencyError, match=r"built without them.*MSCT_CUDA=ON"):
            native.differential_cross_attention_cuda(*4 * [tensor], lam, tensor, 1.0)
        with pytest.raises(DependencyError, match=r"built without them.*MSCT_CUDA=ON"):
            native.multi_scale_key_conv_cuda(tensor, [], [], tensor)

    def test_a_torch_tensor_is_described_without_being_touched(self):
        torch = pytest.importorskip("torch", reason="torch is not installed")
        tensor = torch.zeros(2, 5, 4, 8, dtype=torch.bfloat16).transpose(1, 2)
        described = native.DeviceTensor.of(tensor)
        assert described.pointer == tensor.data_ptr()
        assert described.shape == (2, 4, 5, 8)
        assert described.strides == (160, 8, 32, 1)
        assert described.dtype == "bfloat16"


@needs_native
class TestMultiScaleKeyConv:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("tokens", TOKENS)
    @pytest.mark.parametrize(("heads", "dim"), [(4, 33), (8, 7), (8, 64)])
    def test_equals_the_reference(self, tokens, heads, dim, dtype):
        key, weights, biases = key_conv_inputs((2, heads, tokens, dim), dtype)
        result = native.multi_scale_key_conv(key, weights, biases)
        assert result.dtype == dtype
        expected = reference_key_conv(key, weights, biases, KERNEL_SIZES, 1)
        assert error(result, expected) <= TOLERANCE[dtype]

    @pytest.mark.parametrize("prefix", [0, 1, 5])
    def test_prefix_tokens_pass_untouched_and_unseen(self, prefix):
        key, weights, biases = key_conv_inputs((1, 8, 5, 3), np.float64)
        result = native.multi_scale_key_conv(key, weights, biases, prefix_tokens=prefix)
        expected = reference_key_conv(key, weights, biases, KERNEL_SIZES, prefix)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(result[:, :, :prefix], key[:, :, :prefix])

        changed = key.copy()
        changed[:, :, :prefix] += 100
        again = native.multi_scale_key_conv(changed, weights, biases, prefix_tokens=prefix)
        np.testing.assert_array_equal(again[:, :, prefix:], result[:, :, prefix:])

    def test_other_kernel_sizes(self):
        sizes = (9, 1, 1, 3)
        key, weights, biases = key_conv_inputs((1, 4, 6, 4), np.float64, sizes)
        result = native.multi_scale_key_conv(key, weights, biases, sizes)
        expected = reference_key_conv(key, weights, biases, sizes, 1)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12)

    def test_strided_and_reversed_inputs(self):
        key, weights, biases = key_conv_inputs((2, 4, 7, 6), np.float32)
        strided = np.ascontiguousarray(key.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
        flipped = [w[:, :, ::-1].copy()[:, :, ::-1] for w in weights]
        assert not strided.flags.c_contiguous
        np.testing.assert_array_equal(
            native.multi_scale_key_conv(strided, flipped, biases),
            native.multi_scale_key_conv(key, weights, biases),
        )

    def test_wrong_shapes_and_types_are_refused_in_one_line(self):
        key, weights, biases = key_conv_inputs((1, 8, 3, 2), np.float32)
        with pytest.raises(ValueError, match="heads must be a multiple of 4, not 6"):
            native.multi_scale_key_conv(key[:, :6], weights, biases)
        with pytest.raises(ValueError, match=r"must be \[batch, heads, tokens, dim\]"):
            native.multi_scale_key_conv(key[0], weights, biases)
        with pytest.raises(ValueError, match="is empty"):
            native.multi_scale_key_conv(key[:0], weights, biases)
        with pytest.raises(ValueError, match=r"weights\[1\] has shape \[2, 2, 5, 5\], expected"):
            native.multi_scale_key_conv(key, [weights[0], weights[2], *weights[2:]], biases)
        with pytest.raises(ValueError, match=r"biases\[0\] has shape"):
            native.multi_scale_key_conv(key, weights, [biases[0][:1], *biases[1:]])
        with pytest.raises(ValueError, match="4 entries"):
            native.multi_scale_key_conv(key, weights[:3], biases)
        with pytest.raises(ValueError, match="odd and positive, not 2"):
            native.multi_scale_key_conv(key, weights, biases, (1, 2, 5, 7))
        with pytest.raises(ValueError, match="from 0 to 3, not 4"):
            native.multi_scale_key_conv(key, weights, biases, prefix_tokens=4)
        with pytest.raises(TypeError, match="float16, expected float32 or float64"):
            native.multi_scale_key_conv(key.astype(np.float16), weights, biases)
        with pytest.raises(TypeError, match=r"weights\[0\] has type float32, expected float64"):
            native.multi_scale_key_conv(key.astype(np.float64), weights, biases)


@needs_native
class TestDifferentialCrossAttention:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("tokens", TOKENS)
    @pytest.mark.parametrize(("heads", "dim"), [(1, 33), (4, 7), (2, 64)])
    def test_equals_the_reference(self, tokens, heads, dim, dtype):
        inputs = attention_inputs((2, heads, tokens, dim), dtype)
        result = native.differential_cross_attention(*inputs, scale=dim**-0.5)
        assert result.dtype == dtype
        expected, size = reference_difference(*inputs, dim**-0.5)
        assert np.abs(result - expected).max() / size <= TOLERANCE[dtype]

    def test_one_token_gives_the_value_less_lambda(self):
        q_self, q_cross, key, value, lam = attention_inputs((1, 4, 1, 5), np.float64)
        result = native.differential_cross_attention(q_self, q_cross, key, value, lam, 1.0)
        expected = value * (1 - lam.astype(np.float64))[:, None, None]
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-15)

    def test_large_scores_do_not_overflow(self):
        q_self, q_cross, key, value, lam = attention_inputs((1, 2, 9, 8), np.float32)
        result = native.differential_cross_attention(q_self, q_cross, key, value, lam, 1e4)
        assert np.isfinite(result).all()

    def test_nan_stays_visible(self):
        q_self, q_cross, key, value, lam = attention_inputs((1, 1, 3, 4), np.float32)
        q_self[0, 0, 1, 0] = np.nan
        result = native.differential_cross_attention(q_self, q_cross, key, value, lam, 0.5)
        assert np.isnan(result[0, 0, 1]).all()
        assert np.isfinite(result[0, 0, [0, 2]]).all()

    def test_strided_inputs(self):
        q_self, q_cross, key, value, lam = attention_inputs((2, 4, 5, 6), np.float32)
        strided = np.ascontiguousarray(key.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
        np.testing.assert_array_equal(
            native.differential_cross_attention(q_self, q_cross, strided, value, lam, 0.4),
            native.differential_cross_attention(q_self, q_cross, key, value, lam, 0.4),
        )

    def test_wrong_shapes_and_types_are_refused_in_one_line(self):
        q_self, q_cross, key, value, lam = attention_inputs((1, 2, 3, 4), np.float32)
        attend = native.differential_cross_attention
        with pytest.raises(ValueError, match=r"key has shape \[1, 2, 2, 4\], expected"):
            attend(q_self, q_cross, key[:, :, :2], value, lam, 1.0)
        with pytest.raises(ValueError, match=r"lam has shape \[1\], expected \[2\]"):
            attend(q_self, q_cross, key, value, lam[:1], 1.0)
        with pytest.raises(TypeError, match="lam has type float64, expected float32"):
            attend(q_self, q_cross, key, value, lam.astype(np.float64), 1.0)
        with pytest.raises(TypeError, match="value has type float64, expected float32"):
            attend(q_self, q_cross, key, value.astype(np.float64), lam, 1.0)
        with pytest.raises(ValueError, match="scale must be finite"):
            attend(q_self, q_cross, key, value, lam, float("nan"))
