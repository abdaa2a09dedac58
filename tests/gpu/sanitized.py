# SPDX-License-Identifier: Apache-2.0
"""Launches both kernels at many shapes, for compute-sanitizer; driver API only, no torch.

Each tensor is an allocation of exactly its size, so that memcheck sees every byte too far, and the
output is left as it was allocated, so that initcheck sees who reads it.  Results are compared with
the CPU reference.  The last line says how many launches there were.
"""

from __future__ import annotations

import ctypes
import itertools
import sys

import numpy as np

from runtime.backends import native
from tests.native.references import attention_inputs, key_conv_inputs

TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}  # of the largest value
LENGTHS = (1, 17, 51, 130)
DIMS = (8, 40, 64, 128)


class Driver:
    """Memory of the first GPU."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)

    def call(self, name: str, *arguments) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise SystemExit(f"{name} failed with {code}")

    def allocate(self, nbytes: int) -> int:
        pointer = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(nbytes))
        return pointer.value

    def upload(self, array: np.ndarray) -> int:
        array = np.ascontiguousarray(array)
        pointer = self.allocate(array.nbytes)
        self.call("cuMemcpyHtoD_v2", ctypes.c_uint64(pointer), _address(array), _size(array))
        return pointer

    def download(self, pointer: int, array: np.ndarray) -> None:
        self.call("cuMemcpyDtoH_v2", _address(array), ctypes.c_uint64(pointer), _size(array))

    def free(self, pointer: int) -> None:
        self.call("cuMemFree_v2", ctypes.c_uint64(pointer))


def _address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _size(array: np.ndarray) -> ctypes.c_size_t:
    return ctypes.c_size_t(array.nbytes)


def narrow(array: np.ndarray, dtype: str) -> np.ndarray:
    """As the GPU sees it; bfloat16 as uint16."""
    if dtype == "bfloat16":
        return (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)  # cut off
    return array.astype(dtype)


def widen(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


class Launch:
    """One launch: what it was given on the GPU, freed at the end."""

    def __init__(self, driver: Driver, dtype: str) -> None:
        self.driver, self.dtype = driver, dtype
        self.pointers: list[int] = []

    def tensor(self, array: np.ndarray, dtype: str | None = None) -> native.DeviceTensor:
        pointer = self.driver.upload(array)
        self.pointers.append(pointer)
        return self._describe(pointer, array.shape, dtype or self.dtype)

    def output(self, like: np.ndarray) -> native.DeviceTensor:
        pointer = self.driver.allocate(like.nbytes)
        self.pointers.append(pointer)
        return self._describe(pointer, like.shape, self.dtype)

    def finish(self, out: native.DeviceTensor, like: np.ndarray, expected: np.ndarray) -> None:
        result = np.empty_like(like)
        self.driver.download(out.pointer, result)  # waits for the kernel
        for pointer in self.pointers:
            self.driver.free(pointer)
        error = np.abs(widen(result) - expected).max() / max(1.0, np.abs(expected).max())
        if not error <= TOLERANCE[self.dtype]:
            raise SystemExit(f"{like.shape} {self.dtype}: error {error:.3g}")

    @staticmethod
    def _describe(pointer: int, shape: tuple[int, ...], dtype: str) -> native.DeviceTensor:
        strides = [1]
        for size in reversed(shape[1:]):
            strides.insert(0, strides[0] * size)
        return native.DeviceTensor(pointer, tuple(shape), tuple(strides), dtype)


def attention(driver: Driver, shape: tuple[int, int, int, int], dtype: str) -> None:
    *tensors, lam = attention_inputs(shape, np.float32)
    tensors = [narrow(x, dtype) for x in tensors]
    launch = Launch(driver, dtype)
    given = [launch.tensor(x) for x in tensors]
    out = launch.output(tensors[0])
    scale = shape[-1] ** -0.5
    native.differential_cross_attention_cuda(*given, launch.tensor(lam, "float32"), out, scale)
    expected = native.differential_cross_attention(*map(widen, tensors), lam, scale)
    launch.finish(out, tensors[0], expected)


def key_conv(driver: Driver, shape: tuple[int, int, int, int], dtype: str) -> None:
    key, weights, biases = key_conv_inputs(shape, np.float32)
    key, *rest = (narrow(x, dtype) for x in (key, *weights, *biases))
    weights, biases = rest[:4], rest[4:]
    launch = Launch(driver, dtype)
    out = launch.output(key)
    native.multi_scale_key_conv_cuda(
        launch.tensor(key), [*map(launch.tensor, weights)], [*map(launch.tensor, biases)], out
    )
    expected = native.multi_scale_key_conv(
        widen(key), [*map(widen, weights)], [*map(widen, biases)]
    )
    launch.finish(out, key, expected)


def main() -> int:
    driver = Driver()
    launches = 0
    for tokens, dim, dtype in itertools.product(LENGTHS, DIMS, TOLERANCE):
        for op in (attention, key_conv):
            op(driver, (2, 4, tokens, dim), dtype)
            launches += 1
    print(f"launches: {launches}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
