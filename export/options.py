# SPDX-License-Identifier: Apache-2.0
"""The options of ``export.build_engine``, and which of them go together."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from export.builder import DEFAULT_MAX_BATCH, MAX_WINDOW_TOKENS
from export.choice import BACKENDS, ONNX, RTX_TARGETS, Choice
from runtime.backends.manifest import TENSORRT_RTX
from runtime.command import Parser
from runtime.errors import UsageError
from runtime.models import DEFAULT_PRESET
from runtime.spec import PairSpec

MOST_BATCH = 256
# Options that are about engines; with ONNX Runtime they are an error, never ignored.
_ENGINE_OPTIONS = ("plugins", "plugin_library", "max_batch", "window", "timing_cache", "target_sm")


class _Parser(Parser):
    """Errors in one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")


def parser(description: str) -> argparse.ArgumentParser:
    """The command line."""
    found = _Parser(prog="python -m export.build_engine", description=description)
    start = found.add_mutually_exclusive_group()
    start.add_argument("--preset", default=DEFAULT_PRESET, help="default: %(default)s")
    start.add_argument("--onnx", metavar="DIR", type=Path, help="folder of an ONNX pair")
    start.add_argument(
        "--checkpoint", metavar="FILE", type=Path, help=".safetensors of trainer.fit"
    )
    found.add_argument(
        "--fp16", "--half", action="store_true", help="type the graphs fp16 (default: as they are)"
    )
    found.add_argument(
        "--int8",
        action="store_true",
        help="quantise the frame encoder, with --calibration; written only if it is good enough",
    )
    found.add_argument(
        "--calibration",
        metavar="PATH",
        type=Path,
        nargs="+",
        help="clips or folders of clips for --int8; a quarter of them is kept for the check",
    )
    found.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="auto: tensorrt where it and a GPU are, else tensorrt-rtx if installed, else onnx",
    )
    found.add_argument(
        "--output", metavar="DIR", type=Path, help="default: engines/MODEL-PRECISION-BACKEND"
    )
    found.add_argument("--report", metavar="FILE.json", type=Path, help="what was built, as JSON")
    found.add_argument(
        "--parity-clip",
        metavar="FILE",
        type=Path,
        help="also compare on the first face of this clip, not on random input alone",
    )
    found.add_argument("--quiet", action="store_true", help="no progress line")
    _engine_options(found.add_argument_group("engines"))
    return found


def _engine_options(group: Any) -> None:
    group.add_argument(
        "--plugins", choices=("on", "off"), help="run the project's own kernels (default: on)"
    )
    group.add_argument(
        "--plugin-library", metavar="FILE", type=Path, help="default: what `make native` built"
    )
    group.add_argument(
        "--max-batch",
        metavar="B",
        type=int,
        help=f"windows judged at a time (default: {DEFAULT_MAX_BATCH}, one a face)",
    )
    group.add_argument(
        "--window",
        metavar="S",
        type=float,
        help="length of a window in seconds that the engines are tuned for (default: the model's, "
        f"2.0); they take every length up to {MAX_WINDOW_TOKENS} tokens (20.44 s)",
    )
    group.add_argument(
        "--timing-cache",
        metavar="FILE",
        type=Path,
        help="TensorRT's kernel timings, read and written (default: in the user's cache folder)",
    )
    group.add_argument(
        "--target-sm",
        metavar="CC",
        nargs="+",
        default=(),
        help=f"compute capabilities that TensorRT-RTX builds for ({' '.join(RTX_TARGETS)}; "
        "default: the GPU here, without one all but the first)",
    )


def check(args: argparse.Namespace, choice: Choice) -> None:
    """Options that contradict each other or the backend; :class:`UsageError` names them."""
    if choice.backend == ONNX:
        for name in _ENGINE_OPTIONS:
            if getattr(args, name) not in (None, (), "off"):
                raise UsageError(
                    f"--{name.replace('_', '-')} is for engines, and this builds none (backend "
                    f"onnx, {choice.reason}); leave it out, or give a --backend"
                )
    if args.plugins == "off" and args.plugin_library is not None:
        raise UsageError("--plugin-library and --plugins off exclude each other")
    if choice.backend == TENSORRT_RTX and args.timing_cache is not None:
        raise UsageError(
            "--timing-cache is for TensorRT: TensorRT-RTX times nothing while it builds; what it "
            "compiles when an engine is loaded, the runtime keeps by itself"
        )
    if args.max_batch is not None and not 1 <= args.max_batch <= MOST_BATCH:
        raise UsageError(f"--max-batch must be from 1 to {MOST_BATCH}, not {args.max_batch}")
    if args.int8 != bool(args.calibration):
        raise UsageError("--int8 and --calibration PATH... go together")


def half(args: argparse.Namespace, spec: PairSpec) -> bool:
    """Will the pair be fp16?  Raises :class:`UsageError` if it cannot be typed as asked."""
    if args.int8 and spec.precision != "fp32":
        raise UsageError(f"--int8 starts from an fp32 pair, this one is {spec.precision}")
    return bool(args.fp16) or spec.precision.startswith("fp16")


def window_tokens(seconds: float | None, spec: PairSpec) -> int:
    """The window that engines are tuned for; the model's own without ``--window``."""
    if seconds is None:
        return spec.stream.window_tokens
    hz = spec.audio.token_hz
    tokens = round(seconds * hz) if abs(seconds) < 1e6 else 0  # NaN and infinity are 0
    if not 1 <= tokens <= MAX_WINDOW_TOKENS:
        raise UsageError(
            f"--window {seconds:g} does not fit: an engine takes {1 / hz:g} to "
            f"{MAX_WINDOW_TOKENS / hz:g} s (1 to {MAX_WINDOW_TOKENS} tokens)"
        )
    return tokens


def output(args: argparse.Namespace, spec: PairSpec, backend: str) -> Path:
    """``--output``, or a folder named after what is built."""
    if args.output is not None:
        return Path(args.output)
    precision = spec.precision.replace("fp32", "fp16") if args.fp16 else spec.precision
    parts = [spec.model.name, *precision.split("+"), *(["int8"] if args.int8 else []), backend]
    return Path("engines") / "-".join(parts)
