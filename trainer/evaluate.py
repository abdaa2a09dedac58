# SPDX-License-Identifier: Apache-2.0
"""What the product says of a forged set: coverage, false alarms and detections together.

    python -m trainer.evaluate --clips forged --split test

runs every clip of the split through the runtime as it ships (decoder, faces, sound, ONNX pair,
decision) and counts its verdicts per category and per method, with the number of identities behind
each row.  An abstention is no verdict: shares are of the judged windows, and coverage says how
many those are.  Needs no torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends.base import Backend
from runtime.errors import EXIT_ERROR, MediaError, UsageError, UserError
from runtime.files import write_json
from runtime.media.file import FileSource
from runtime.models import DEFAULT_PRESET
from runtime.pipeline import run
from runtime.sinks import Collector
from runtime.verdict import Label, Verdict
from trainer import metrics
from trainer.data.layouts import REAL_PAIR


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
        records = json.loads((clips / "forge.json").read_text())["clips"]
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
    console.print(
        f"{result['model_id']} on {result['provider']}, split {result['split']}: "
        f"{result['clips']} clips, {result['windows']} windows, "
        f"{result['identities']} identities"
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
            name,
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
        console.print(f"failed {file}: {reason}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.evaluate", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--clips", type=Path, required=True, help="folder written by trainer.forge")
    parser.add_argument("--split", default="test", choices=("train", "val", "test", "all"))
    parser.add_argument("--model", default=DEFAULT_PRESET, help="a preset or a folder with a pair")
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args(argv)
    from runtime.backends import load_backend

    try:
        with load_backend(args.model, provider=args.provider) as backend:
            result = evaluate(args.clips, backend, args.split)
        _print(result)
        if args.output:
            write_json(args.output, result)
    except UserError as err:
        print(f"trainer.evaluate: {err}", file=sys.stderr)
        return err.exit_code
    except OSError as err:
        print(f"trainer.evaluate: {err.filename}: {err.strerror}", file=sys.stderr)
        return EXIT_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
