# SPDX-License-Identifier: Apache-2.0
"""What a model is worth on a set: through the product as it ships, or clip by clip.

    python -m trainer.evaluate --clips forged --split test

runs every clip of the split through the runtime as it ships (decoder, faces, sound, ONNX pair,
decision) and counts its verdicts per category and per method, with the number of identities behind
each row.  An abstention is no verdict: shares are of the judged windows, and coverage says how
many those are.  Needs no torch.

    python -m trainer.evaluate --data prepared --floor
    python -m trainer.evaluate --data prepared --checkpoint runs/a/checkpoint.safetensors --both

score every clip of the split, as the paper does, and write a report with intervals over people:
``report.html``, ``metrics.json``, ``metrics.csv`` and the scores themselves.  The first takes the
graphs of ``--model`` as they ship and needs no torch, the second a checkpoint, also a baseline's.
``--floor`` puts logistic regressions that look for no forgery beside the model
(:mod:`trainer.report.floor`), ``--both`` clips as they are beside clips without their leading
silence.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends import load_backend
from runtime.backends.base import Backend
from runtime.command import Parser
from runtime.errors import EXIT_ERROR, EXIT_INTERRUPTED, MediaError, UsageError, UserError
from runtime.files import write_json
from runtime.flow.driver import run
from runtime.flow.sink import Collector
from runtime.interrupt import check, leave
from runtime.judging.verdict import Label, Verdict
from runtime.media.file import FileSource
from runtime.media.local_files import media_files
from runtime.models import DEFAULT_PRESET, model_files
from runtime.naming import plain
from runtime.overwrites import refuse_overwrites
from runtime.sinks.terminal import cell, print_line
from trainer.data.clips import VIDEO_SUFFIXES
from trainer.data.layouts import FORGE_INDEX, REAL_PAIR
from trainer.data.prepared import set_files
from trainer.report.scorers import Scorer, checkpoint_scorer, pair_scorer
from trainer.scoring import metrics
from trainer.scoring.clips import ClipScores


@dataclass
class Row:
    """Counts of one category or method."""

    clips: int = 0
    identities: set[str] = field(default_factory=set)
    windows: int = 0
    fake: int = 0
    real: int = 0
    abstained: Counter[str] = field(default_factory=Counter)

    def add(self, identity: str, verdicts: list[Verdict]) -> None:
        self.clips += 1
        self.identities.add(identity)
        self.windows += len(verdicts)
        self.fake += sum(v.label is Label.FAKE for v in verdicts)
        self.real += sum(v.label is Label.REAL for v in verdicts)
        self.abstained.update(str(v.reason) for v in verdicts if v.label is Label.ABSTAIN)

    def to_dict(self) -> dict[str, Any]:
        judged = self.fake + self.real
        return {
            "clips": self.clips,
            "identities": len(self.identities),
            "windows": self.windows,
            "coverage": _share(judged, self.windows),
            "called_fake": _share(self.fake, judged),
            "abstained": dict(sorted(self.abstained.items())),
        }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def evaluate(clips: Path, backend: Backend, split: str) -> dict[str, Any]:
    """Raises UsageError where ``clips`` is no forged set or has nothing in ``split``."""
    from rich.progress import track

    try:
        records = json.loads((clips / "forge.json").read_text(encoding="utf-8-sig"))["clips"]
    except (OSError, ValueError, KeyError) as err:
        raise UsageError(
            f"{clips} has no readable forge.json; make the set by trainer.forge"
        ) from err
    chosen = [r for r in records if split in ("all", r["split"])]
    if not chosen:
        raise UsageError(f"{clips} has no clips in split {split!r}")
    total = Row()
    categories: dict[str, Row] = {}
    methods: dict[str, Row] = {}
    failed: dict[str, str] = {}
    scores: list[tuple[float, bool]] = []
    for record in track(chosen, "evaluating", transient=True):
        sink = Collector()
        check()
        try:
            with FileSource(clips / record["file"]) as source:
                run(source, backend, sinks=[sink])
        except MediaError as err:
            failed[record["file"]] = str(err)
            continue
        rows = (
            total,
            categories.setdefault(record["category"], Row()),
            methods.setdefault(record["method"], Row()),
        )
        for row in rows:
            row.add(record["identity"], sink.verdicts)
        fake = record["fake_video"] or record["fake_audio"]
        scores += [
            (v.p_fake, fake)
            for v in sink.verdicts
            if v.label is not Label.ABSTAIN and v.p_fake is not None
        ]
    result: dict[str, Any] = {
        "model_id": backend.spec.model_id,
        "provider": backend.provider,
        "split": split,
        "threshold": backend.spec.calibration.threshold,
        **total.to_dict(),
        "categories": {k: v.to_dict() for k, v in sorted(categories.items())},
        "methods": {k: v.to_dict() for k, v in sorted(methods.items())},
        "failed": failed,
    }
    p, y = np.array([s[0] for s in scores]), np.array([s[1] for s in scores], int)
    if len(set(y.tolist())) == 2:
        result["judged_windows"] = metrics.summary(y, p, result["threshold"])
    return result


def _print(result: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(110, Console().width))  # rows are not to be cut short
    print_line(
        console,
        f"{result['model_id']} on {result['provider']}, split {result['split']}: "
        f"{result['clips']} clips, {result['windows']} windows, "
        f"{result['identities']} identities",
    )
    table = Table(
        "",
        "clips",
        "people",
        "windows",
        "coverage",
        "called fake",
        "abstained",
        box=box.SIMPLE_HEAD,
    )
    rows = [("all", result), *result["categories"].items(), *result["methods"].items()]
    for name, row in rows:
        share = row["called_fake"]
        kind = "false alarms " if name in (REAL_PAIR, "real") else ""
        table.add_row(
            cell(name),
            str(row["clips"]),
            str(row["identities"]),
            str(row["windows"]),
            "-" if row["coverage"] is None else f"{row['coverage']:.1%}",
            "-" if share is None or name == "all" else f"{kind}{share:.1%}",
            ", ".join(f"{k} {v}" for k, v in row["abstained"].items()),
            end_section=name in ("all", REAL_PAIR),
        )
    console.print(table)
    if "judged_windows" in result:
        shown = "  ".join(f"{k} {v:.4g}" for k, v in result["judged_windows"].items())
        console.print(f"judged windows: {shown}")
    for file, reason in result["failed"].items():
        print_line(console, f"failed {file}: {reason}")


# --- clip by clip on a prepared set ---------------------------------------------------------


def evaluate_prepared(
    data: Path,
    scorer: Scorer,
    output: Path,
    *,
    about: Mapping[str, str],
    split: str = "test",
    protocol: str = "given",
    fold: int = 0,
    variants: Sequence[str] = ("untrimmed",),
    floor: bool = False,
    rounds: int = 1000,
) -> dict[str, Any]:
    """Write the report of one model into ``output``; returns what metrics.json holds.

    ``about``: what the report says of the model.  ``floor``: beside the first variant also what
    :mod:`trainer.report.floor` reaches, and :mod:`trainer.probe` of the whole set.

    Raises :class:`UsageError` where the set has other crops than the model takes, or no clip in
    the split.
    """
    from rich.progress import track

    from trainer.data.prepared import PreparedSet
    from trainer.report.floor import measure
    from trainer.report.page import write_report

    scores: dict[str, ClipScores] = {}
    measured: dict[str, Any] = {}
    for variant in variants:
        prepared = PreparedSet(data, protocol=protocol, fold=fold, trimmed=variant == "trimmed")
        if scorer.faces not in (None, prepared.face_stage):
            raise UsageError(
                f"{data} has the crops of --faces {prepared.face_stage}, {scorer.name} was trained "
                f"on those of {scorer.faces}; prepare with --faces {scorer.faces}"
            )
        if scorer.crop_px not in (None, prepared.crop_px):
            raise UsageError(
                f"{data} has crops of {prepared.crop_px} px, {scorer.name} wants {scorer.crop_px}; "
                f"prepare with --crop-px {scorer.crop_px}"
            )
        clips = prepared.clips if split == "all" else prepared.select(split)
        if not clips:
            raise UsageError(f"{data} has no clips in split {split!r} of protocol {protocol!r}")
        check()
        scores[variant] = scorer.score(list(track(clips, f"scoring {variant}", transient=True)))
        if floor and not measured:
            measured = measure(scores[variant], prepared, rounds=rounds)
    check()
    about = {
        **about,
        "data": f"{data}, protocol {protocol}" + (f", fold {fold}" if protocol != "given" else ""),
        "split": split,
    }
    title = f"{scorer.name} on {data.name}, split {split}"
    return write_report(
        output, scores, scorer.threshold, title=title, about=about, rounds=rounds, **measured
    )


def _print_report(result: dict[str, Any], output: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(120, Console().width))
    variants = result["variants"]
    columns = [f"{n}, {v['clips']} clips, {v['identities']} people" for n, v in variants.items()]
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("", *columns):
        table.add_column(column, no_wrap=True)
    for name in next(iter(variants.values()))["metrics"]:
        cells = []
        for variant in variants.values():
            value, low, high = (variant["metrics"][name][k] for k in ("value", "low", "high"))
            interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
            cells.append("-" if value is None else f"{value:.4f}{interval}")
        label = name + (" (the paper's AUC)" if name == "balanced_accuracy" else "")
        table.add_row(label, *cells)
    print_line(console, result["title"])
    console.print(table)
    for name, entry in result.get("floors", {}).items():
        (auc, low, high), (gain, worst, best) = (
            tuple(entry[k][x] for x in ("value", "low", "high")) for k in ("auc", "gain")
        )
        console.print(
            f"floor, {name}: score AUC {auc:.3f} [{low:.3f}, {high:.3f}]; "
            f"the model is {gain:+.3f} [{worst:+.3f}, {best:+.3f}] above it"
        )
    print_line(console, f"report: {output / 'report.html'}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m trainer.evaluate", description=(__doc__ or "").split("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--clips", type=Path, help="folder written by trainer.forge: the product")
    source.add_argument("--data", type=Path, help="folder written by trainer.prepare: clip by clip")
    parser.add_argument("--split", default="test", choices=("train", "val", "test", "all"))
    parser.add_argument(
        "--output",
        type=Path,
        help="with --clips a JSON file, with --data a folder (default: evaluation/ beside the "
        "checkpoint, or runs/evaluation)",
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--model", help=f"a preset or a folder with a pair of graphs (default: {DEFAULT_PRESET})"
    )
    model.add_argument(
        "--checkpoint", type=Path, help="with --data: of trainer.fit, or of a baseline"
    )
    parser.add_argument(
        "--provider", choices=("cpu", "cuda"), help="of ONNX Runtime (default: cpu)"
    )
    prepared = parser.add_argument_group("with --data")
    prepared.add_argument("--protocol", default="given", help="see trainer.data.splits")
    prepared.add_argument("--fold", type=int, default=0)
    silence = prepared.add_mutually_exclusive_group()
    silence.add_argument("--trimmed", action="store_true", help="without leading silence")
    silence.add_argument("--both", action="store_true", help="with and without, side by side")
    prepared.add_argument(
        "--argmax", action="store_true", help="decide as the paper does, without calibration"
    )
    prepared.add_argument(
        "--floor", action="store_true", help="beside it regressions that look for no forgery"
    )
    return parser


def _main(args: argparse.Namespace) -> None:
    _refuse_overwrites(args)
    if args.checkpoint is not None:
        if args.clips is not None:
            raise UsageError(
                "--clips runs the product, from graphs; for a checkpoint give --data, or export "
                "it by export.build_engine"
            )
        if args.provider is not None:
            raise UsageError("--provider is ONNX Runtime's, and a checkpoint runs in torch")
        scorer = checkpoint_scorer(args.checkpoint, argmax=args.argmax)
        about = {"checkpoint": str(args.checkpoint)}
        _report(args, scorer, about, args.checkpoint.parent / "evaluation")
        return
    with load_backend(args.model, provider=args.provider) as backend:
        if args.data is not None:
            about = {"model": backend.spec.model_id, "provider": backend.provider}
            scorer = pair_scorer(backend, argmax=args.argmax)
            _report(args, scorer, about, Path("runs/evaluation"))
            return
        counted = evaluate(args.clips, backend, args.split)
    _print(counted)
    if args.output:
        write_json(args.output, counted)


def _refuse_overwrites(args: argparse.Namespace) -> None:
    read: list[Path | None] = [args.checkpoint, *model_files(args.model)]
    if args.output is None:
        return  # a folder of its own
    if args.clips is not None:
        made = [args.output]
        read += [args.clips / FORGE_INDEX, *media_files(args.clips, VIDEO_SUFFIXES)]
    else:
        from trainer.report.page import FILES

        made = [args.output / name for name in FILES]
        read += set_files(args.data)
    refuse_overwrites((("--output", file) for file in made), read, options=vars(args))


def _report(
    args: argparse.Namespace, scorer: Scorer, about: Mapping[str, str], folder: Path
) -> None:
    """``folder``: where the report goes unless --output says otherwise."""
    trimmed = {"both": ("untrimmed", "trimmed"), "trimmed": ("trimmed",)}
    chosen = "both" if args.both else "trimmed" if args.trimmed else ""
    output = args.output or folder
    decision = "argmax of the logits" if args.argmax else "calibration of the model"
    result = evaluate_prepared(
        args.data,
        scorer,
        output,
        about={**about, "decision": decision},
        split=args.split,
        protocol=args.protocol,
        fold=args.fold,
        variants=trimmed.get(chosen, ("untrimmed",)),
        floor=args.floor,
    )
    _print_report(result, output)


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        _main(args)
    except UserError as err:
        print(f"trainer.evaluate: {plain(str(err))}", file=sys.stderr)
        return err.exit_code
    except OSError as err:
        print(plain(f"trainer.evaluate: {err.filename}: {err.strerror}"), file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("trainer.evaluate: interrupted; nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    leave(main)
