# SPDX-License-Identifier: Apache-2.0
"""Build what a device runs from a preset, a checkpoint or an ONNX pair.

``python -m export.build_engine [--preset NAME] [--fp16]`` starts from an ONNX pair (a shipped
preset, or ``--onnx DIR``) and then needs no torch; a ``--checkpoint``, or a preset
that ships no weights, goes through :mod:`export.graphs` first (the latter with seeded random
weights and ``trained: false``, which the runtime refuses to score with).

Writes a folder with the pair and its manifest; nothing is written unless everything went well,
the check of the written files against where they came from included.

Exit codes: 0 done, 1 operational error, 2 usage (:mod:`runtime.errors`).
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from export.manifest import check_writable, file_facts, staged_folder, write_manifest
from export.parity import (
    LOGIT_LIMIT_FP32,
    PROBABILITY_LIMIT_FP16,
    Parity,
    Window,
    compare,
    real_windows,
    summary,
)
from runtime.backends.base import FRAME_ENCODER_FILE, FUSION_FILE, OP_DOMAIN
from runtime.backends.onnx import OnnxBackend, read_pair
from runtime.backends.onnx_file import read_onnx
from runtime.errors import EXIT_ERROR, EXIT_OK, DependencyError, UsageError, UserError
from runtime.files import write_json
from runtime.models import DEFAULT_PRESET, PRESETS, model_dir, model_folder, shipped_presets
from runtime.spec import PairSpec

_PAIR = (FRAME_ENCODER_FILE, FUSION_FILE)
Step = Callable[[str], None]


@dataclass
class Source:
    """The fp32 (or already fp16) pair to start from."""

    folder: Path
    origin: str
    spec: PairSpec
    real: Sequence[Window] = ()
    parity: Parity | None = None  # against torch, when it was exported just now


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    try:
        args = _parser().parse_args(argv)
        with _progress(args.quiet) as step:
            report = build(args, step)
        _tell(report)
    except UserError as err:
        print(f"error: {err}", file=sys.stderr)
        return err.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return EXIT_ERROR
    return EXIT_OK


def build(args: argparse.Namespace, step: Step) -> dict[str, Any]:
    """Do what the options say and return the report."""
    started = time.perf_counter()
    if args.backend in ("tensorrt", "tensorrt-rtx"):
        raise UsageError(
            f"this version does not build {args.backend} engines yet; use --backend onnx, whose "
            "ONNX pair runs in ONNX Runtime on the CPU or with CUDA"
        )
    if args.report is not None:
        check_writable(args.report)
    with _source(args, step) as source:
        spec = source.spec
        half = args.fp16 and spec.precision == "fp32"
        precision = "fp16" if half else spec.precision
        output = args.output or Path("engines") / f"{spec.model.name}-{precision}-onnx"
        if output.resolve() == source.folder.resolve():
            raise UsageError(f"--output {output} is where the pair comes from; give another folder")
        with staged_folder(output) as staging:
            if half:
                step("type the graphs fp16")
                _convert(source.folder, staging)
            else:
                for name in _PAIR:
                    shutil.copyfile(source.folder / name, staging / name)
            step("check in ONNX Runtime")
            made, checks = _check(source, staging)
            facts = {"backend": "onnx", "parity": summary(checks)}
            write_manifest(staging, _PAIR, made, facts)
        files = {name: file_facts(output / name) for name in _PAIR}
    graphs = [read_onnx((output / name).read_bytes()) for name in _PAIR]
    report = {
        "backend": "onnx",
        "backend_reason": (
            "auto: this version builds no engines, ONNX Runtime runs everywhere"
            if args.backend == "auto"
            else "asked for"
        ),
        "precision": made.precision,
        "plugin_layers": 0,  # ONNX Runtime runs the custom ops' function bodies
        "custom_op_nodes": sum(graph.node_domains[OP_DOMAIN] for graph in graphs),
        "engine_bytes": sum(facts["bytes"] for facts in files.values()),
        "build_s": round(time.perf_counter() - started, 3),
        "parity": summary(checks),
        "model_id": made.model_id,
        "pair_id": made.pair_id,
        "trained": made.trained,
        "source": source.origin,
        "output": str(output),
        "files": files,
        "versions": _versions(),
    }
    if args.report is not None:
        write_json(args.report, report)
    return report


@contextlib.contextmanager
def _source(args: argparse.Namespace, step: Step) -> Iterator[Source]:
    if args.onnx is not None or (args.checkpoint is None and args.preset in shipped_presets()):
        shipped = args.onnx is None
        folder = model_dir(args.preset) if shipped else model_folder(args.onnx)
        spec, _ = read_pair(folder)
        origin = f"shipped preset {args.preset}" if shipped else f"ONNX pair {args.onnx}"
        yield Source(folder, origin, spec, _real(args.parity_clip, spec, step))
        return
    if args.checkpoint is None and args.preset not in PRESETS:
        raise UsageError(f"unknown preset {args.preset!r}; there are: {', '.join(PRESETS)}")
    if args.checkpoint is not None and not args.checkpoint.is_file():
        raise UsageError(f"no such checkpoint: {args.checkpoint}")
    step("load torch")
    graphs = _graphs()
    if args.checkpoint is not None:
        model, spec = graphs.from_checkpoint(args.checkpoint)
        origin = f"checkpoint {args.checkpoint}"
    else:
        model, spec = graphs.untrained(args.preset)
        origin = f"preset {args.preset}, random weights"
    real = _real(args.parity_clip, spec, step)
    with tempfile.TemporaryDirectory(prefix="msct-export-") as scratch:
        folder = Path(scratch) / "pair"
        exported = graphs.export_pair(model, spec, folder, real=real, progress=step)
        yield Source(folder, origin, exported.spec, real, exported.parity)


def _graphs() -> Any:
    """:mod:`export.graphs`, loaded only when weights have to become an ONNX pair."""
    try:
        import export.graphs
    except ImportError as err:
        raise DependencyError(
            f"this needs torch and its exporter ({err}); pip install '.[cpu,train,export]', or "
            f"start from an ONNX pair with --onnx DIR or a shipped preset "
            f"({', '.join(shipped_presets()) or 'none'})"
        ) from err
    return export.graphs


def _convert(source: Path, target: Path) -> None:
    try:
        import onnx

        from export.precision import to_fp16
    except ImportError as err:
        raise DependencyError(f"--fp16 needs onnx ({err}); pip install '.[export]'") from err
    for name in _PAIR:
        typed = to_fp16(onnx.load_from_string((source / name).read_bytes()))
        (target / name).write_bytes(typed.SerializeToString(deterministic=True))


def _check(source: Source, made: Path) -> tuple[PairSpec, list[Parity]]:
    """Open what was made as the runtime does and compare it with its source."""
    checks = [source.parity] if source.parity is not None else []
    with OnnxBackend(made) as ours, OnnxBackend(source.folder) as theirs:
        names = (f"written {ours.spec.precision} pair", f"source {theirs.spec.precision} pair")
        parity = compare(ours, theirs, source.spec, names=names, real=source.real)
        if ours.spec.precision == theirs.spec.precision:
            parity.check(logits=LOGIT_LIMIT_FP32)
        else:
            parity.check(probability=PROBABILITY_LIMIT_FP16)
        return ours.spec, [*checks, parity]


def _real(clip: Path | None, spec: PairSpec, step: Step) -> list[Window]:
    if clip is None:
        return []
    step("read the clip")
    return real_windows(clip, spec)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("msct", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Step]:
    """A line on the terminal with the step at work and its time; nothing in a log."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    off = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=off) as progress:
        task = progress.add_task("start", total=None)
        yield lambda what: progress.update(task, description=what)


def _tell(report: dict[str, Any]) -> None:
    parity = report["parity"]
    print(
        f"{report['output']}: {report['model_id']}, {report['precision']}, backend "
        f"{report['backend']} ({report['backend_reason']})\n"
        f"  {report['engine_bytes'] / 1e6:.2f} MB, {report['custom_op_nodes']} custom op nodes, "
        f"{report['build_s']:.1f} s, from {report['source']}\n"
        f"  parity: logits within {parity['max_logit_difference']:.2g}, probabilities within "
        f"{parity['max_probability_difference']:.2g}"
    )
    for check in parity["checks"]:
        print(f"    {check['form']} against {check['against']}: {check['probes']} probes")
    if not report["trained"]:
        print("  random weights (trained: false): runtime.stream refuses it")


class _Parser(argparse.ArgumentParser):
    """Errors in one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m export.build_engine", description=__doc__.split("\n\n")[0])
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--preset", default=DEFAULT_PRESET, help="default: %(default)s")
    start.add_argument("--onnx", metavar="DIR", type=Path, help="folder of an ONNX pair")
    start.add_argument(
        "--checkpoint", metavar="FILE", type=Path, help=".safetensors of trainer.fit"
    )
    parser.add_argument(
        "--fp16", "--half", action="store_true", help="type the graphs fp16 (default: as they are)"
    )
    parser.add_argument(
        "--backend", choices=("auto", "onnx", "tensorrt", "tensorrt-rtx"), default="auto"
    )
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="default: engines/MODEL-PRECISION-BACKEND"
    )
    parser.add_argument("--report", metavar="FILE.json", type=Path, help="what was built, as JSON")
    parser.add_argument(
        "--parity-clip",
        metavar="FILE",
        type=Path,
        help="also compare on the first face of this clip, not on random input alone",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
