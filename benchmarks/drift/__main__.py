# SPDX-License-Identifier: Apache-2.0
"""Does another precision give other verdicts?  Real clips, the whole stream, window by window.

    python -m benchmarks.drift --source CLIP [--source ...] [--genuine CLIP ...]
                               [--model NAME|DIR] [--candidate DIR ...] [--output FILE.json]

Every clip goes through :func:`runtime.flow.driver.run`, as in ``runtime.stream``, once with the
fp32 pair in ONNX Runtime on the CPU and once with each other form that this machine can run: the
same pair typed fp16 there, on CUDA in both, fp16 engines where TensorRT and a GPU are, and every
``--candidate`` folder (an INT8 pair, engines built elsewhere for this GPU).  What cannot run is
named with the reason.  Reported is what changed in the verdicts: the calibrated ``p_fake``, labels,
abstentions, and on ``--genuine`` clips the rate of false alarms (:mod:`benchmarks.drift.compare`).

Exit codes: 0 done, whatever has changed; 1 operational error; 2 usage; 3 every window abstained in
fp32, so that labels and false alarms say nothing.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.drift.compare import Key, Verdicts, compare, key
from benchmarks.drift.forms import check_same_model, forms, reference
from benchmarks.environment import columns, describe
from runtime import leftovers
from runtime.backends import Backend
from runtime.command import Parser, guarded
from runtime.errors import (
    EXIT_ALL_ABSTAINED,
    EXIT_OK,
    DependencyError,
    UsageError,
)
from runtime.files import write_json
from runtime.flow.driver import run
from runtime.interrupt import leave
from runtime.judging.verdict import Label, Verdict
from runtime.media.open import expand_sources, is_live, open_source, public_name
from runtime.models import DEFAULT_PRESET, model_dir, model_files, model_folder
from runtime.overwrites import refuse_overwrites
from runtime.sinks.terminal import console
from runtime.spec import PairSpec


class _Collector:
    """A sink that keeps the verdicts of one clip after the other."""

    def __init__(self) -> None:
        self.source = ""
        self.verdicts: dict[Key, Verdict] = {}

    def write(self, verdict: Verdict) -> None:
        self.verdicts[key(self.source, verdict)] = verdict


def judge(backend: Backend, clips: Sequence[str], form: str) -> Verdicts:
    """The verdicts of all clips, each in a stream of its own; ``form`` titles the progress bar.

    Raises :class:`runtime.errors.MediaError` for a clip that cannot be read to its end.
    """
    from rich.progress import track

    out = console(stderr=True)
    if not out.is_terminal:  # a log
        print(f"{form}: clips to judge: {len(clips)} ...", file=sys.stderr, flush=True)
    collector = _Collector()
    for clip in track(clips, form, console=out, transient=True, disable=not out.is_terminal):
        collector.source = clip
        rate_hz = backend.spec.audio.sample_rate_hz
        with open_source(clip, sample_rate_hz=rate_hz) as source:
            run(source, backend, sinks=[collector])
    return collector.verdicts


def measure(
    folder: Path, clips: Sequence[str], genuine: Sequence[str], candidates: Sequence[Path]
) -> dict[str, Any]:
    """Every form against the reference; JSON-ready.  ``genuine`` are some of the ``clips``.

    Raises :class:`UsageError` for a pair that is not fp32 or not trained and for a candidate of
    another model, :class:`DependencyError` for a candidate that cannot run here.
    """
    first = reference(folder)
    with leftovers.folder("msct-drift-") as scratch:
        others = forms(folder, Path(scratch), candidates)
        with first.open() as backend:
            spec = backend.spec
            _check(spec, folder)
            for form in others:
                if form.wanted:  # what cannot run is said now, not after a long run
                    with form.open() as candidate:
                        check_same_model(candidate.spec, spec, form.name)
            before = judge(backend, clips, first.name)
        found: list[dict[str, Any]] = []
        missing: list[dict[str, str]] = []
        for form in others:
            try:
                backend = form.open()
            except DependencyError as err:
                missing.append({"form": form.name, "reason": str(err)})
                continue
            with backend:
                check_same_model(backend.spec, spec, form.name)
                facts = {
                    "form": form.name,
                    "provider": backend.provider,
                    "precision": backend.spec.precision,
                    "model_id": backend.spec.model_id,
                }
                after = judge(backend, clips, form.name)
                found.append({**facts, **compare(before, after, set(genuine))})
    labels = [verdict.label for verdict in before.values()]
    calibration, stream = spec.calibration, spec.stream
    return {
        "model": {
            "model_id": spec.model_id,
            "pair_id": spec.pair_id,
            "threshold": calibration.threshold,
            "hysteresis": stream.hysteresis,
        },
        "reference": {
            "form": first.name,
            "windows": len(labels),
            "labels": {str(label): labels.count(label) for label in Label},
        },
        "forms": found,
        "missing": missing,
    }


def _check(spec: PairSpec, folder: Path) -> None:
    if spec.precision != "fp32":
        raise UsageError(
            f"{folder} is {spec.precision}; the reference is an fp32 pair, and other forms of it "
            "go with --candidate"
        )
    if not spec.trained:
        raise UsageError(f"{spec.model_id}: its weights are random, its verdicts mean nothing")


def report(result: dict[str, Any]) -> str:
    """The table for people."""
    first, model, machine = result["reference"], result["model"], result["machine"]
    labels = ", ".join(f"{n} {label}" for label, n in first["labels"].items())
    lines = [
        f"{model['model_id']}, clips: {len(result['clips'])}, {machine['cores']} cores "
        f"({machine['processor']})",
        f"{first['form']}: {first['windows']} windows ({labels})",
    ]
    rows = [["change to it", "p_fake max", "p99", "mean", "label flips", "abstention flips",
             "false alarms before", "after"]]  # fmt: skip
    for form in result["forms"]:
        change, abstentions, alarms = (
            form["p_fake"], form["abstention_flips"], form["false_alarms"],
        )  # fmt: skip
        sizes = (
            ["-"] * 3 if change is None else [f"{change[n]:.1e}" for n in ("max", "p99", "mean")]
        )
        sides = ["-"] * 2 if alarms is None else [_share(alarms[n]) for n in ("before", "after")]
        rows.append(
            [form["form"], *sizes, str(sum(form["label_flips"].values())),
             str(abstentions["to_abstain"] + abstentions["from_abstain"]), *sides]
        )  # fmt: skip
    lines += columns(rows) if result["forms"] else []
    lines += [f"{m['form']}: not here ({m['reason']})" for m in result["missing"]]
    return "\n".join(lines)


def _share(alarms: dict[str, Any]) -> str:
    share = "" if alarms["rate"] is None else f" ({alarms['rate']:.1%})"
    return f"{alarms['fake']} of {alarms['judged']}{share}"


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="python -m benchmarks.drift",
        description="What other precisions and backends change in the verdicts on real clips.",
        epilog="Exit codes: 0 done, 1 operational error, 2 usage, 3 every window abstained.",
    )
    p.add_argument("--source", action="append", default=[], metavar="CLIP",
                   help="a file, a folder or a glob; may be given several times")  # fmt: skip
    p.add_argument("--genuine", action="append", default=[], metavar="CLIP",
                   help="the same, but genuine: false alarms are counted on these")  # fmt: skip
    p.add_argument("--model", default=DEFAULT_PRESET, metavar="NAME|DIR",
                   help="a shipped preset, or a folder with an fp32 pair "
                        "(default: %(default)s)")  # fmt: skip
    p.add_argument("--candidate", action="append", default=[], type=Path, metavar="DIR",
                   help="another form of it, such as an INT8 pair or engines; may be given "
                        "several times")  # fmt: skip
    p.add_argument("--output", type=Path, metavar="FILE.json")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of :mod:`runtime.errors`."""
    options = parser().parse_args(argv)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if not options.source and not options.genuine:
        raise UsageError("nothing to judge: give --source CLIP, or --genuine CLIP")
    genuine = expand_sources(options.genuine)
    clips = list(dict.fromkeys([*expand_sources(options.source), *genuine]))
    for clip in clips:
        if is_live(clip):
            raise UsageError(f"{public_name(clip)} is live: two runs of it differ; give clips")
    candidates = [model_folder(folder) for folder in options.candidate]
    models = [file for folder in candidates for file in folder.iterdir()]
    refuse_overwrites(
        [options.output and ("--output", options.output)],
        [*clips, *models, *model_files(options.model)],
        options=vars(options),
    )
    measured = measure(model_dir(options.model), clips, genuine, candidates)
    result = {
        "benchmark": "drift",
        "schema_version": 1,
        **describe(),
        "clips": [Path(clip).name for clip in clips],
        "genuine": [Path(clip).name for clip in genuine],
        **measured,
    }
    print(report(result))
    if options.output is not None:
        write_json(options.output, _without_folders(result))
        print(f"written: {options.output}", file=sys.stderr)
    judged = measured["reference"]["windows"] - measured["reference"]["labels"]["abstain"]
    return EXIT_OK if judged else EXIT_ALL_ABSTAINED


def _without_folders(result: dict[str, Any]) -> dict[str, Any]:
    """Clips by their file names alone: where they lie is nobody's business."""
    for form in result["forms"]:
        if form["p_fake"] is not None:
            worst = form["p_fake"]["worst"]
            worst["source"] = Path(worst["source"]).name
    return result


if __name__ == "__main__":
    leave(main)
