# SPDX-License-Identifier: Apache-2.0
"""Which backend to build for, and for which GPUs; always with the reason."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.backends import cuda
from runtime.backends.manifest import FLAVOURS, MODULES, TENSORRT, TENSORRT_RTX, TITLES
from runtime.errors import DependencyError, UsageError

ONNX = "onnx"
BACKENDS = ("auto", ONNX, TENSORRT, TENSORRT_RTX)

# What TensorRT-RTX can build for by name, without that GPU.
RTX_TARGETS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
# Turing only when asked for: one engine that includes it gives up what Turing cannot do for all
# (it is the size of one for Turing alone), while the five others together are no larger and take
# no longer to build than one of them.
RTX_DEFAULT_TARGETS = RTX_TARGETS[1:]
TURING = "7.5"


@dataclass(frozen=True)
class Choice:
    """A backend and why it is that one."""

    backend: str
    reason: str


@dataclass(frozen=True)
class Target:
    """The GPUs that an engine is built for."""

    compute_capabilities: tuple[str, ...]
    here: bool  # the GPU of this machine, which the builder asks itself


def installed(flavour: str) -> bool:
    """Is its Python package there?  It is not imported."""
    return importlib.util.find_spec(MODULES[flavour]) is not None


def choose(asked: str) -> Choice:
    """What ``--backend`` stands for on this machine.

    Raises :class:`DependencyError` where a backend was asked for that cannot build here.
    """
    gpu = cuda.device_count() > 0
    if asked == ONNX:
        return Choice(ONNX, "asked for")
    if asked in FLAVOURS:
        if not installed(asked):
            jetson = " (on a Jetson: apt install python3-libnvinfer)" if asked == TENSORRT else ""
            raise DependencyError(
                f"{TITLES[asked]} is not installed; pip install '.[{asked}]'{jetson}, or give "
                "--backend onnx"
            )
        if asked == TENSORRT and not gpu:
            raise DependencyError(
                "TensorRT builds on the GPU that the engine is for, and there is none here; run "
                "this on that machine, or give --backend tensorrt-rtx (ahead of time) or "
                "--backend onnx"
            )
        return Choice(asked, "asked for")
    if gpu and installed(TENSORRT):
        return Choice(TENSORRT, "auto: an NVIDIA GPU and TensorRT are here")
    if installed(TENSORRT_RTX):
        where = "an NVIDIA GPU, no TensorRT" if gpu else "no NVIDIA GPU here, built ahead of time"
        return Choice(TENSORRT_RTX, f"auto: TensorRT-RTX is installed; {where}")
    missing = "no TensorRT is installed" if gpu else "no NVIDIA GPU here, no TensorRT-RTX installed"
    return Choice(ONNX, f"auto: {missing}")


def target(flavour: str, asked: Sequence[str], *, half: bool) -> Target:
    """The GPUs to build for.

    ``asked`` are those of ``--target-sm``; without it, the GPU that is here, and on a machine
    without one :data:`RTX_DEFAULT_TARGETS`.  Raises :class:`UsageError` for what cannot be built.
    """
    if asked and flavour != TENSORRT_RTX:
        raise UsageError(
            "--target-sm is for --backend tensorrt-rtx: TensorRT builds for the GPU that is here"
        )
    for name in asked:
        if name not in RTX_TARGETS:
            raise UsageError(
                f"--target-sm {name}: TensorRT-RTX builds ahead of time for "
                f"{', '.join(RTX_TARGETS)}; for another GPU (Orin, Thor, H100) build on it with "
                "--backend tensorrt"
            )
    if TURING in asked and not half:
        raise UsageError(
            f"--target-sm {TURING} needs --fp16: TensorRT-RTX has no fp32 matrix product for it"
        )
    if asked:
        return Target(tuple(sorted(set(asked), key=RTX_TARGETS.index)), here=False)
    if cuda.device_count() > 0:
        with cuda.Device() as device:
            return Target((device.compute_capability,), here=True)
    return Target(RTX_DEFAULT_TARGETS, here=False)
