# SPDX-License-Identifier: Apache-2.0
"""The C++ kernels of the two custom ops, where the package was built with them.

They are the reference that runs without a framework: checks of other implementations use them, the
streams do not (their backends bring their own kernels).  The native part is optional:
:func:`capabilities` says whether it is there and, if not, why.  A part that was built and does not
load is an error, never a quiet fall-back.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import DependencyError

_REBUILD = "install a C++ compiler and Python's headers, then `pip install .` again"


@dataclass(frozen=True)
class Capabilities:
    """What the installed package carries in native code."""

    built: bool
    reason: str | None  # why not, where built is False
    compiler: str | None  # e.g. "GNU 12.2.0"
    cuda_architectures: tuple[str, ...] = ()  # for which CUDA kernels were compiled; none: CPU only


def capabilities() -> Capabilities:
    """Raises :class:`DependencyError` where the part was built and cannot be loaded."""
    try:
        build = importlib.import_module("runtime._native_build")
    except ModuleNotFoundError:
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


def _required() -> Any:
    found = capabilities()
    if not found.built:
        raise DependencyError(f"the native kernels are not there: {found.reason}; {_REBUILD}")
    return _load()


def _load() -> Any:
    try:
        return importlib.import_module("runtime._native")
    except ImportError as err:
        raise DependencyError(
            f"the native kernels were built but do not load ({err}); `pip install .` again"
        ) from err
