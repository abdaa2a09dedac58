# SPDX-License-Identifier: Apache-2.0
"""The native kernels of the two custom ops, where the package was built with them.

On the CPU they are the reference that runs without a framework, over NumPy arrays.  The functions
that end in ``_cuda`` launch the CUDA kernels over raw device pointers.  Checks and benchmarks use
both; the streams do not: their backends bring kernels, TensorRT ours, from :func:`plugin_library`.

The native part is optional: :func:`capabilities` says whether it is there and, if not, why.  A part
that was built and does not load is an error, never a quiet fall-back.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import DependencyError, UsageError
from runtime.optional import installed, optional

PLUGIN_LIBRARY = "libmsct_plugins.so"
PLUGIN_LIBRARY_VARIABLE = "MSCT_PLUGIN_LIBRARY"  # environment variable: where the library is

_REBUILD = "install a C++ compiler and Python's headers, then `pip install .` again"
_REBUILD_CUDA = "install CUDA's nvcc, then `pip install . -C cmake.define.MSCT_CUDA=ON`"


@dataclass(frozen=True)
class Capabilities:
    """What the installed package carries in native code."""

    built: bool
    reason: str | None  # why not, where built is False
    compiler: str | None  # e.g. "GNU 12.2.0"
    cuda_architectures: tuple[str, ...] = ()  # for which CUDA kernels were compiled; none: CPU only


@dataclass(frozen=True)
class CudaDevice:
    """A GPU, as its driver names it."""

    name: str  # e.g. "NVIDIA H100 80GB HBM3"
    compute_capability: str  # e.g. "9.0"


@dataclass(frozen=True)
class DeviceTensor:
    """Memory of the current GPU: what a CUDA kernel is told of a tensor.  It owns nothing."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # elements
    dtype: str  # "float32", "float16" or "bfloat16"

    @classmethod
    def of(cls, tensor: Any) -> DeviceTensor:
        """What has ``data_ptr()``, ``shape``, ``stride()`` and ``dtype``, as torch's tensors do."""
        dtype = str(tensor.dtype).rpartition(".")[2]
        return cls(tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), dtype)


def capabilities() -> Capabilities:
    """Raises :class:`DependencyError` where the part was built and cannot be loaded."""
    build = _build_facts()
    if build is None:
        reason = "the package runs from its sources without being installed"
        return Capabilities(built=False, reason=reason, compiler=None)
    if not build.BUILT:
        return Capabilities(built=False, reason=build.REASON, compiler=None)
    module = _load()
    return Capabilities(
        built=True,
        reason=None,
        compiler=build.COMPILER,
        cuda_architectures=tuple(module.CUDA_ARCHITECTURES),
    )


def cuda_devices() -> tuple[CudaDevice, ...]:
    """The GPUs that the CUDA kernels see; none without a driver or without CUDA compiled in."""
    if not capabilities().cuda_architectures:
        return ()
    return tuple(
        CudaDevice(name=name, compute_capability=f"{major}.{minor}")
        for name, major, minor in _load().cuda_devices()
    )


def plugin_library(explicit: Path | None = None) -> Path:
    """The TensorRT plugin library: ``explicit``, $MSCT_PLUGIN_LIBRARY, the installed or built one.

    Raises :class:`UsageError` if a library that was named does not exist, and
    :class:`DependencyError` if none was named and there is none.
    """
    variable = os.environ.get(PLUGIN_LIBRARY_VARIABLE)
    named = explicit or (Path(variable) if variable else None)
    if named is not None:
        if not named.is_file():
            source = "" if explicit else f" (${PLUGIN_LIBRARY_VARIABLE})"
            raise UsageError(
                f"no plugin library: {named}{source} is no file; `make native` builds one"
            )
        return named
    package = Path(__file__).resolve().parents[1]
    folders = [package, package.parent / "build" / "native"]
    reason = "no plugin library was built"
    if (build := _build_facts()) is not None:
        folders.insert(0, Path(build.__file__).parent)  # an editable install puts it there
        reason = build.PLUGINS_REASON or reason
    for folder in folders:
        if (folder / PLUGIN_LIBRARY).is_file():
            return folder / PLUGIN_LIBRARY
    raise DependencyError(
        f"the TensorRT plugins are not there: {reason}; `make native` builds them, "
        "`--plugins off` does without"
    )


def multi_scale_key_conv(
    key: NDArray[np.floating[Any]],
    weights: Sequence[NDArray[np.floating[Any]]],
    biases: Sequence[NDArray[np.floating[Any]]],
    kernel_sizes: Sequence[int] = (1, 3, 5, 7),
    prefix_tokens: int = 1,
) -> NDArray[np.floating[Any]]:
    """``msct::MultiScaleKeyConv`` on the CPU, float32 or float64 throughout.

    Parameters
    ----------
    key : shape = (B, h, T, D), h a multiple of 4; any strides
    weights : four, shape = (h/4, h/4, k, k), over (T, D) as a convolution in deep learning is
    biases : four, shape = (h/4,)
    kernel_sizes : the four odd k
    prefix_tokens : positions, 0 to T, that pass untouched and that no convolution sees

    Returns an array like ``key``.  Raises ValueError or TypeError for a wrong shape or type, and
    :class:`DependencyError` where the native part is absent.
    """
    result: NDArray[np.floating[Any]] = _required().multi_scale_key_conv(
        key, list(weights), list(biases), list(kernel_sizes), prefix_tokens
    )
    return result  # [B, h, T, D]


def differential_cross_attention(
    q_self: NDArray[np.floating[Any]],
    q_cross: NDArray[np.floating[Any]],
    key: NDArray[np.floating[Any]],
    value: NDArray[np.floating[Any]],
    lam: NDArray[np.float32],
    scale: float,
) -> NDArray[np.floating[Any]]:
    """``msct::DifferentialCrossAttention`` on the CPU, float32 or float64.

    Parameters
    ----------
    q_self, q_cross, key, value : shape = (B, h, T, D), one type; any strides
    lam : shape = (h,), always float32
    scale : multiplies both products of queries and keys

    Returns ``softmax(scale q_self keyT) value - lam softmax(scale q_cross keyT) value``, like
    ``q_self``.  Raises as :func:`multi_scale_key_conv` does.
    """
    result: NDArray[np.floating[Any]] = _required().differential_cross_attention(
        q_self, q_cross, key, value, lam, scale
    )
    return result  # [B, h, T, D]


def multi_scale_key_conv_cuda(
    key: DeviceTensor,
    weights: Sequence[DeviceTensor],
    biases: Sequence[DeviceTensor],
    out: DeviceTensor,
    kernel_sizes: Sequence[int] = (1, 3, 5, 7),
    prefix_tokens: int = 1,
    *,
    stream: int = 0,
) -> None:
    """``msct::MultiScaleKeyConv`` on the current GPU, into ``out``, without waiting.

    Parameters
    ----------
    key, out : shape = (B, h, T, D), one type, h a multiple of 4, T from 1 to 512, D a multiple of 8
        up to 128; any strides, except 1 over D; they do not overlap
    weights, biases : as in :func:`multi_scale_key_conv`, of the type of ``key``, contiguous
    stream : a CUDA stream's handle; 0 is the default stream

    Raises ValueError or TypeError for what the kernel does not take, RuntimeError if it could not
    be launched and :class:`DependencyError` where CUDA was not compiled in.
    """
    _required_cuda().multi_scale_key_conv_cuda(
        key, list(weights), list(biases), out, list(kernel_sizes), prefix_tokens, stream
    )


def differential_cross_attention_cuda(
    q_self: DeviceTensor,
    q_cross: DeviceTensor,
    key: DeviceTensor,
    value: DeviceTensor,
    lam: DeviceTensor,
    out: DeviceTensor,
    scale: float,
    *,
    stream: int = 0,
) -> None:
    """``msct::DifferentialCrossAttention`` on the current GPU, into ``out``, without waiting.

    Parameters
    ----------
    q_self, q_cross, key, value, out : shape = (B, h, T, D), one type, T from 1 to 512, D a multiple
        of 8 up to 128; any strides, except 1 over D; ``out`` overlaps no input
    lam : shape = (h,), float32, contiguous
    stream : a CUDA stream's handle; 0 is the default stream

    Raises as :func:`multi_scale_key_conv_cuda` does.
    """
    _required_cuda().differential_cross_attention_cuda(
        q_self, q_cross, key, value, lam, out, scale, stream
    )


def _required() -> Any:
    found = capabilities()
    if not found.built:
        raise DependencyError(f"the native kernels are not there: {found.reason}; {_REBUILD}")
    return _load()


def _required_cuda() -> Any:
    module = _required()
    if not module.CUDA_ARCHITECTURES:
        raise DependencyError(
            f"the CUDA kernels are not there: the package was built without them; {_REBUILD_CUDA}"
        )
    return module


def _build_facts() -> Any:
    """The module that the build wrote, or None where the package was never built."""
    name = "runtime._native_build"
    return importlib.import_module(name) if installed(name) else None


def _load() -> Any:
    with optional("for the native kernels", remedy="pip install . again"):
        return importlib.import_module("runtime._native")
