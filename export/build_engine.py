# SPDX-License-Identifier: Apache-2.0
"""Build what a device runs from a preset, a checkpoint or an ONNX pair.

``python -m export.build_engine [--preset NAME] [--fp16]`` starts from an ONNX pair (a shipped
preset, or ``--onnx DIR``) and then needs no torch; a ``--checkpoint``, or a preset
that ships no weights, goes through :mod:`export.graphs` first (the latter with seeded random
weights and ``trained: false``, which the runtime refuses to score with).

Writes a folder: the pair (typed fp16 with ``--fp16``, the frame encoder quantised with
``--int8``), with a TensorRT backend the graph that was parsed for plugins and the two engines, and
the manifest with a hash of each.  Nothing is written unless everything went well, the check of the
pair in ONNX Runtime included.  The engines are checked where they can run; where they cannot,
output, report and manifest say so.

Exit codes: 0 done, 1 operational error, 2 usage, 130 interrupted (:mod:`runtime.errors`).
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import contextlib
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from export import engines, options, pair
from export.builder import DEFAULT_MAX_BATCH
from export.choice import ONNX, Choice, choose, target
from export.manifest import check_writable, file_facts, staged_folder, write_manifest
from export.pair import PAIR, Probes, Step
from export.parity import summary
from runtime.backends import native
from runtime.backends.base import OP_DOMAIN
from runtime.backends.manifest import ENGINE_FILES, MANIFEST_FILE, TITLES
from runtime.backends.onnx_file import read_onnx
from runtime.errors import EXIT_INTERRUPTED, EXIT_OK, UserError
from runtime.files import write_json
from runtime.interrupt import check, leave
from runtime.naming import plain
from runtime.overwrites import refuse_overwrites
from runtime.spec import PairSpec


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    try:
        args = options.parser(__doc__.split("\n\n")[0]).parse_args(argv)
        with _progress(args.quiet) as step:
            report = build(args, step)
        _tell(report)
    except UserError as err:
        print(f"error: {plain(str(err))}", file=sys.stderr)
        return err.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK


def build(args: argparse.Namespace, step: Step) -> dict[str, Any]:
    """Do what the options say and return the report."""
    started = time.perf_counter()
    choice = choose(args.backend)
    options.check(args, choice)
    library = _plugin_library(args, choice)
    with pair.open_source(
        preset=args.preset,
        onnx=args.onnx,
        checkpoint=args.checkpoint,
        real=args.parity_clip,
        step=step,
    ) as (source, probes):
        plan = _plan(args, choice, library, source.spec)
        typed = options.half(args, source.spec) and source.spec.precision.startswith("fp32")
        output = options.output(args, source.spec, choice.backend)
        _refuse_overwrites(args, output, source.folder, library)
        if args.report is not None:
            check_writable(args.report)
        clips = pair.calibration(args.calibration, source, step) if args.int8 else None
        if clips is not None:
            probes = Probes(held_out=[*clips.check, *probes.real])
        with staged_folder(output) as staging:
            step("write the ONNX pair")
            pair.write_pair(
                source.folder, staging, half=typed, clips=clips, for_engine=plan is not None
            )
            step("check in ONNX Runtime")
            made, checks = pair.check_pair(source, staging, probes)
            facts: dict[str, Any] = {"backend": choice.backend, "parity": summary(checks)}
            names: tuple[str, ...] = PAIR
            built = None
            if plan is not None:
                built = engines.build(plan, staging, made, step)
                names = (*PAIR, *built.files)
                facts["engine"] = built.facts.to_dict()
                facts["parity"]["engine"] = engines.why_not_run(plan.target) or engines.COMPARED
            write_manifest(staging, names, made, facts)
            if plan is not None and built is not None and _runs(facts):
                step("check the engines")  # as the runtime opens them: by the manifest
                checks.append(engines.check(source, staging, plan, built, probes))
                facts["parity"] = {**summary(checks), "engine": engines.COMPARED}
                write_manifest(staging, names, made, facts)
        files = {name: file_facts(output / name) for name in names}
    report = {
        "backend": choice.backend,
        "backend_reason": choice.reason,
        "precision": made.precision,
        "plugin_layers": 0 if built is None else sum(built.layers.values()),
        "custom_op_nodes": _custom_op_nodes(output),
        "engine_bytes": sum(files[name]["bytes"] for name in (ENGINE_FILES if built else PAIR)),
        "build_s": round(time.perf_counter() - started, 3),
        "parity": facts["parity"],
        "model_id": made.model_id,
        "pair_id": made.pair_id,
        "trained": made.trained,
        "source": source.origin,
        "output": str(output),
        "engine": None if built is None else built.report(),
        "calibration": None if clips is None else clips.report(),
        "files": files,
        "versions": _versions(),
    }
    if args.report is not None:
        write_json(args.report, report)
    return report


def _refuse_overwrites(
    args: argparse.Namespace, output: Path, pair_folder: Path, library: Path | None
) -> None:
    """The pair may lie in ``--output`` under any spelling; so may a clip, or a report."""
    clips = pair.calibration_clips(args.calibration) if args.int8 else []
    made = (*PAIR, *ENGINE_FILES, MANIFEST_FILE)
    refuse_overwrites(
        [
            *(("--output", output / name) for name in made),
            None if args.report is None else ("--report", args.report),
            None if args.timing_cache is None else ("--timing-cache", args.timing_cache),
        ],
        [*pair_folder.iterdir(), args.checkpoint, args.parity_clip, library, *clips],
    )


def _plugin_library(args: argparse.Namespace, choice: Choice) -> Path | None:
    """Looked for before anything takes time; ONNX Runtime runs the ops' function bodies."""
    if choice.backend == ONNX or args.plugins == "off":
        return None
    return native.plugin_library(args.plugin_library).resolve()


def _plan(
    args: argparse.Namespace, choice: Choice, library: Path | None, spec: PairSpec
) -> engines.Plan | None:
    """What to build engines for; None with ONNX Runtime."""
    half = options.half(args, spec)
    window_tokens = options.window_tokens(args.window, spec)
    if choice.backend == ONNX:
        return None
    return engines.Plan(
        choice,
        target(choice.backend, args.target_sm, half=half),
        library,
        window_tokens,
        args.max_batch or DEFAULT_MAX_BATCH,
        args.timing_cache,
    )


def _runs(facts: dict[str, Any]) -> bool:
    return bool(facts["parity"]["engine"] == engines.COMPARED)


def _custom_op_nodes(folder: Path) -> int:
    graphs = [read_onnx((folder / name).read_bytes()) for name in PAIR]
    return sum(graph.node_domains[OP_DOMAIN] for graph in graphs)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    names = ("msct", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "torch")
    for name in (*names, "tensorrt", "tensorrt-rtx"):
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

        def step(what: str) -> None:
            check()
            progress.update(task, description=what)

        yield step


def _tell(report: dict[str, Any]) -> None:
    parity, engine = report["parity"], report["engine"]
    print(
        f"{report['output']}: {report['model_id']}, {report['precision']}, backend "
        f"{report['backend']} ({report['backend_reason']})\n"
        f"  {report['engine_bytes'] / 1e6:.2f} MB, {report['custom_op_nodes']} custom op nodes, "
        f"{report['build_s']:.1f} s, from {report['source']}"
    )
    if engine is not None:
        plugins = "no plugins"
        if engine["plugins"] is not None:
            plugins = f"{report['plugin_layers']} plugin layers ({engine['plugins']['library']})"
        capabilities = " ".join(engine["compute_capabilities"])
        print(
            f"  {TITLES[engine['flavour']]} {engine['version']} for compute capability "
            f"{capabilities}, {plugins}"
        )
    print(
        f"  parity: logits within {parity['max_logit_difference']:.2g}, probabilities within "
        f"{parity['max_probability_difference']:.2g}"
    )
    for each in parity["checks"]:
        real = f" and {each['real_windows']} real windows" if each["real_windows"] else ""
        random = each["probes"] - each["real_windows"]
        print(f"    {each['form']} against {each['against']}: {random} random probes{real}")
    if engine is not None and parity["engine"] != "compared":
        print(f"  {parity['engine']}")
    if not report["trained"]:
        print("  random weights (trained: false): runtime.stream refuses it")


if __name__ == "__main__":
    leave(main)
