# SPDX-License-Identifier: Apache-2.0
"""What the CUDA bindings refuse before anything is launched; no GPU is needed, or touched.

The tensors here point nowhere.  Whatever passes every check would be launched, which on a machine
without a driver is an error of its own.
"""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest

from runtime.backends import native
from runtime.backends.cuda import device_count
from runtime.backends.native import DeviceTensor
from tests.native import cmake

SHAPE = (2, 4, 6, 8)


@pytest.fixture(autouse=True)
def module(cuda_build, monkeypatch):
    """runtime.backends.native over the module of the tests' CUDA build."""
    path = cmake.python_module(cuda_build)
    if path is None:
        pytest.skip("pybind11 or Python's headers are not installed")
    spec = importlib.util.spec_from_file_location("_native", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    monkeypatch.setattr(native, "_load", lambda: loaded)
    architectures = tuple(loaded.CUDA_ARCHITECTURES)
    found = native.Capabilities(True, None, "test", architectures)
    monkeypatch.setattr(native, "capabilities", lambda: found)
    return loaded


def tensor(shape=SHAPE, dtype="float16", strides=None, *, pointer):
    dense = [1]
    for size in reversed(shape[1:]):
        dense.insert(0, dense[0] * size)
    return DeviceTensor(pointer, tuple(shape), tuple(strides or dense), dtype)


def attention(**changes):
    """Arguments that would be launched, apart from ``changes``."""
    names = ("q_self", "q_cross", "key", "value", "out")
    arguments = {name: tensor(pointer=4096 * (i + 1)) for i, name in enumerate(names)}
    arguments["lam"] = tensor((4,), "float32", pointer=65536)
    return {**arguments, "scale": 0.5, **changes}


def key_conv(**changes):
    sizes = (1, 3, 5, 7)
    arguments = {
        "key": tensor(pointer=4096),
        "weights": [tensor((1, 1, k, k), pointer=8192 + 256 * k) for k in sizes],
        "biases": [tensor((1,), pointer=16384 + 256 * k) for k in sizes],
        "out": tensor(pointer=32768),
        "kernel_sizes": sizes,
    }
    return {**arguments, **changes}


def changed(argument, **fields):
    return dataclasses.replace(argument, **fields)


class TestCapabilities:
    def test_architectures_are_those_that_were_built(self, module, cuda_build):
        built = cmake.facts(cuda_build)["architectures"]["built"]
        assert list(module.CUDA_ARCHITECTURES) == [str(arch) for arch in built]

    def test_asking_for_devices_never_fails(self):
        assert len(native.cuda_devices()) == device_count()


ATTENTION = attention()
KEY, OUT = ATTENTION["key"], ATTENTION["out"]
REFUSED_ATTENTION = [
    ({"key": changed(KEY, pointer=0)}, ValueError, "key is a null pointer"),
    ({"value": tensor((2, 4, 5, 8), pointer=64)}, ValueError, r"value has shape \[2, 4, 5, 8\]"),
    ({"q_self": tensor((4, 6, 8), pointer=64)}, ValueError, r"q_self must be \[batch, heads"),
    ({"q_self": tensor((2, 0, 6, 8), pointer=64)}, ValueError, "q_self is empty"),
    ({"q_cross": changed(KEY, dtype="float32")}, TypeError, "q_cross has type float32"),
    ({"q_self": changed(KEY, dtype="float64")}, TypeError, "float64, expected float32, float16"),
    ({"lam": tensor((4,), pointer=64)}, TypeError, "lam has type float16, expected float32"),
    ({"lam": tensor((3,), "float32", pointer=64)}, ValueError, r"lam has shape \[3\]"),
    ({"lam": tensor((4,), "float32", (2,), pointer=64)}, ValueError, "lam must be contiguous"),
    ({"scale": float("inf")}, ValueError, "scale must be finite"),
    ({"out": ATTENTION["value"]}, ValueError, "out must not be one of the inputs"),
    ({"out": changed(OUT, strides=(192, 48, 0, 1))}, ValueError, "must not repeat memory"),
    ({"key": changed(KEY, strides=(384, 96, 16, 2))}, ValueError, "stride 1 over its last"),
    ({"key": changed(KEY, strides=(48, 8, 1))}, ValueError, "4 dimensions but 3 strides"),
]
KEY_CONV = key_conv()
ONE = tensor((1,), "float32", pointer=64)
REFUSED_KEY_CONV = [
    ({"key": tensor((2, 6, 6, 8), pointer=64)}, ValueError, "multiple of 4, not 6"),
    ({"weights": KEY_CONV["weights"][:3]}, ValueError, "4 entries each"),
    ({"kernel_sizes": (1, 3, 4, 7)}, ValueError, "odd and positive, not 4"),
    ({"prefix_tokens": 7}, ValueError, "from 0 to 6, not 7"),
    ({"weights": KEY_CONV["weights"][::-1]}, ValueError, r"weights\[0\] has shape \[1, 1, 7, 7\]"),
    ({"biases": 4 * [tensor((2,), pointer=64)]}, ValueError, r"biases\[0\] has shape \[2\]"),
    ({"biases": 4 * [ONE]}, TypeError, r"biases\[0\] has type float32, expected float16"),
    ({"out": KEY_CONV["key"]}, ValueError, "out must not be one of the inputs"),
    ({"out": changed(OUT, dtype="bfloat16")}, TypeError, "out has type bfloat16"),
]


class TestAttention:
    @pytest.mark.parametrize(("change", "error", "message"), REFUSED_ATTENTION)
    def test_what_it_refuses_it_refuses_in_one_line(self, change, error, message):
        with pytest.raises(error, match=message) as caught:
            native.differential_cross_attention_cuda(**attention(**change))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("shape", [(1, 4, 513, 64), (1, 4, 6, 12), (1, 4, 6, 136)])
    def test_what_the_kernel_does_not_take_is_refused(self, shape):
        tensors = {
            name: tensor(shape, pointer=4096 * (i + 1))
            for i, name in enumerate(("q_self", "q_cross", "key", "value", "out"))
        }
        with pytest.raises(ValueError, match=r"^DifferentialCrossAttention: "):
            native.differential_cross_attention_cuda(**attention(**tensors))

    @pytest.mark.skipif(device_count() > 0, reason="would be launched on the GPU")
    def test_a_failed_launch_is_an_error(self):
        with pytest.raises(RuntimeError, match=r"^DifferentialCrossAttention: .*(driver|device)"):
            native.differential_cross_attention_cuda(**attention())


class TestKeyConv:
    @pytest.mark.parametrize(("change", "error", "message"), REFUSED_KEY_CONV)
    def test_what_it_refuses_it_refuses_in_one_line(self, change, error, message):
        with pytest.raises(error, match=message) as caught:
            native.multi_scale_key_conv_cuda(**key_conv(**change))
        assert "\n" not in str(caught.value)

    def test_transposed_weights_are_refused(self):
        weights = [tensor((2, 2, k, k), pointer=64) for k in (1, 3, 5, 7)]
        weights[1] = changed(weights[1], strides=(9, 18, 3, 1))
        eight = {name: tensor((1, 8, 6, 8), pointer=p) for name, p in (("key", 64), ("out", 128))}
        biases = 4 * [tensor((2,), pointer=64)]
        with pytest.raises(ValueError, match=r"weights\[1\] must be contiguous"):
            native.multi_scale_key_conv_cuda(**key_conv(weights=weights, biases=biases, **eight))

    @pytest.mark.skipif(device_count() > 0, reason="would be launched on the GPU")
    def test_a_failed_launch_is_an_error(self):
        with pytest.raises(RuntimeError, match=r"^MultiScaleKeyConv: .*(driver|device)"):
            native.multi_scale_key_conv_cuda(**key_conv())
