# SPDX-License-Identifier: Apache-2.0
"""The forms in which one model can run on this machine, and why the others cannot."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.backends import Backend, load_backend
from runtime.backends.onnx import OnnxBackend
from runtime.errors import DependencyError, UsageError
from runtime.spec import PairSpec


@dataclass(frozen=True)
class Form:
    """A backend and precision; ``open`` may build it first, in a folder of its own."""

    name: str
    open: Callable[[], Backend]
    wanted: bool = False  # it was asked for: that it cannot run is an error, not a line


def reference(folder: Path) -> Form:
    """The fp32 pair in ONNX Runtime on the CPU, with which all others are compared."""
    return Form("ONNX Runtime CPU, fp32", lambda: OnnxBackend(folder))


def forms(folder: Path, scratch: Path, candidates: Sequence[Path]) -> list[Form]:
    """Everything to compare with :func:`reference`, the candidates last.

    ``scratch`` is where fp16 pairs and engines are made.  Opening a form raises
    :class:`DependencyError` where what it needs is not here.
    """
    half = scratch / "fp16"
    return [
        Form("ONNX Runtime CPU, fp16", lambda: OnnxBackend(_typed(folder, half))),
        Form("ONNX Runtime CUDA, fp32", lambda: OnnxBackend(folder, provider="cuda")),
        Form(
            "ONNX Runtime CUDA, fp16",
            lambda: OnnxBackend(_typed(folder, half), provider="cuda"),
        ),
        Form("TensorRT, fp16", lambda: load_backend(_engines(folder, scratch / "engines"))),
        *(
            Form(f"candidate {path.name}", lambda path=path: load_backend(path), wanted=True)  # type: ignore[misc]
            for path in candidates
        ),
    ]


def _typed(folder: Path, target: Path) -> Path:
    """The pair typed fp16, as ``export.build_engine --fp16 --backend onnx`` does it; made once."""
    from export.pair import write_pair

    if not target.is_dir():
        target.mkdir(parents=True)
        write_pair(folder, target, half=True, clips=None, for_engine=False)
    return target


def _engines(folder: Path, target: Path) -> Path:
    """fp16 engines for the GPU that is here, by TensorRT, or else by TensorRT-RTX."""
    from export import build_engine, options
    from export.choice import ONNX, choose
    from runtime.backends.cuda import device_count

    if device_count() == 0:
        raise DependencyError("no NVIDIA GPU here, or no driver for it")
    choice = choose("auto")
    if choice.backend == ONNX:
        raise DependencyError(f"{choice.reason}; pip install '.[tensorrt]' or '.[tensorrt-rtx]'")
    arguments = ["--onnx", str(folder), "--fp16", "--backend", choice.backend, "--quiet"]
    build_engine.build(
        options.parser("").parse_args([*arguments, "--output", str(target)]), lambda step: None
    )
    return target


def check_same_model(found: PairSpec, expected: PairSpec, name: str) -> None:
    """Raises :class:`UsageError` unless ``found`` is ``expected`` in another precision."""
    same = dataclasses.replace(
        found,
        pair_id=expected.pair_id,
        model_id=expected.model_id,
        precision=expected.precision,
    )
    if same != expected or not found.pair_id.startswith(expected.pair_id):
        raise UsageError(
            f"{name} is no form of {expected.model_id}: it says {found.model_id}, or its spec "
            "differs in more than precision; make it of the same pair with "
            "python -m export.build_engine --onnx DIR"
        )
