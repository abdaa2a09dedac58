# SPDX-License-Identifier: Apache-2.0
"""Scores of many runs -> one row an arm, with intervals over people and seeds.

A figure is the mean over runs (seeds and folds) of the metric on the run's test clips.  One draw
takes the identities with replacement, the same in every run that tests them, and the seeds with
replacement; all arms share the draws, so the difference of two arms is paired.

Dimensions: R draws, I identities, S seeds.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.sheets import safe
from trainer.paper.arms import Arm
from trainer.paper.published import Published
from trainer.scoring.bootstrap import point, weighted_metrics
from trainer.scoring.clips import ClipScores
from trainer.scoring.figures import figure

Float64 = npt.NDArray[np.float64]
SHOWN = ("accuracy", "balanced_accuracy", "auc", "eer")
THRESHOLD = 0.5  # the paper's argmax


@dataclass(frozen=True)
class Run:
    """One training run, scored: as they are, and without leading silence where there is any."""

    arm: str
    seed: int
    fold: int
    parameters: int
    untrimmed: ClipScores
    trimmed: ClipScores | None


class Draws:
    """Weights of identities and of seeds, made once for all arms."""

    def __init__(self, runs: Sequence[Run], rounds: int) -> None:
        self.identities = sorted({i for r in runs for i in r.untrimmed.identity.tolist()})
        self.seeds = sorted({r.seed for r in runs})
        rng = np.random.default_rng(0)
        people, seeds = len(self.identities), len(self.seeds)
        self.people = rng.multinomial(people, np.full(people, 1 / people), size=rounds)  # [R, I]
        self.seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=rounds)  # [R, S]

    def of(self, scores: ClipScores) -> Float64:
        """The weight of each clip, shape = (R, clips)."""
        index = np.searchsorted(self.identities, scores.identity)
        return self.people[:, index].astype(np.float64)


def combine(
    runs: Sequence[Run], draws: Draws, *, trimmed: bool = False
) -> dict[str, tuple[float, Float64]]:
    """Metric -> its mean over the runs of one arm, and that mean in every draw [R]."""
    values: dict[str, list[float]] = {name: [] for name in SHOWN}
    drawn: dict[str, list[Float64]] = {name: [] for name in SHOWN}
    for run in runs:
        scores = run.trimmed if trimmed and run.trimmed is not None else run.untrimmed
        mine = point(scores.fake, scores.p_fake, THRESHOLD)
        each = weighted_metrics(scores.fake, scores.p_fake, draws.of(scores), THRESHOLD)
        for name in SHOWN:
            values[name].append(mine[name])
            drawn[name].append(each[name])
    weight = np.stack([draws.seed[:, draws.seeds.index(r.seed)] for r in runs])  # [runs, R]
    result = {}
    for name in SHOWN:
        each_run = np.stack(drawn[name])  # [runs, R]
        known = ~np.isnan(each_run) * weight
        with np.errstate(invalid="ignore"):
            mean = (np.nan_to_num(each_run) * known).sum(0) / known.sum(0)
        result[name] = (float(np.mean(values[name])), mean)
    return result


def rows(
    arms: Mapping[str, Arm],
    runs: Sequence[Run],
    published: Mapping[str, Published],
    *,
    reference: str,
    rounds: int = 1000,
) -> list[dict[str, Any]]:
    """One entry an arm, JSON-ready; an arm that was published only has no figures of ours."""
    draws = Draws(runs, rounds) if runs else None
    combined = {
        arm: combine([r for r in runs if r.arm == arm], draws)
        for arm in arms
        if draws is not None and any(r.arm == arm for r in runs)
    }
    result = []
    for name in [*arms, *(n for n in published if n not in arms)]:
        mine = [r for r in runs if r.arm == name]
        paper = published.get(name)
        entry: dict[str, Any] = {
            "arm": name,
            "label": arms[name].label if name in arms else published[name].label,
            "note": arms[name].note if name in arms else "quoted only",
            "paper": None if paper is None else paper._asdict(),
            "parameters": mine[0].parameters if mine else None,
            "seeds": len({r.seed for r in mine}),
            "folds": len({r.fold for r in mine}),
            "clips": sum(len(r.untrimmed) for r in mine if r.seed == mine[0].seed),
            "identities": len({i for r in mine for i in r.untrimmed.identity.tolist()}),
            "metrics": {},
        }
        if mine and draws is not None:
            entry["metrics"] = {m: figure(v, d) for m, (v, d) in combined[name].items()}
            if all(r.trimmed is not None for r in mine):
                v, d = combine(mine, draws, trimmed=True)["auc"]
                entry["metrics"]["auc_trimmed"] = figure(v, d)
            if name != reference and reference in combined:
                (v, d), (v0, d0) = (combined[n]["balanced_accuracy"] for n in (name, reference))
                entry["metrics"]["gain"] = figure(v - v0, d - d0)
        result.append(entry)
    return result


# --- as text --------------------------------------------------------------------------------

_COLUMNS = {
    "accuracy": "ACC",
    "balanced_accuracy": "balanced ACC (the paper's AUC)",
    "auc": "score AUC",
    "eer": "EER",
}


def cells(
    entries: Sequence[Mapping[str, Any]], reference: str
) -> tuple[list[str], list[list[str]]]:
    """Header and rows as plain text, per cent."""
    header = ["model", "paper ACC", "our ACC", "paper AUC", "our balanced ACC", "our score AUC"]
    trimmed = any("auc_trimmed" in e["metrics"] for e in entries)
    paper = any(e["paper"] for e in entries)
    header += ["score AUC, trimmed"] if trimmed else []
    header += [
        "our EER",
        f"gain over {reference}",
        "test identities",
        "test clips",
        "seeds x folds",
    ]
    header += ["parameters", "note"]
    body = []
    for e in entries:
        m, p = e["metrics"], e["paper"] or {}
        row = [
            e["label"],
            _plain(p.get("accuracy")),
            show(m.get("accuracy")),
            _plain(p.get("balanced_accuracy")),
            show(m.get("balanced_accuracy")),
            show(m.get("auc")),
            *([show(m.get("auc_trimmed"))] if trimmed else []),
            show(m.get("eer")),
            show(m.get("gain"), signed=True),
            str(e["identities"] or "-"),
            str(e["clips"] or "-"),
            f"{e['seeds']} x {e['folds']}" if e["seeds"] else "-",
            f"{e['parameters'] / 1e6:.2f} M" if e["parameters"] else "-",
            e["note"],
        ]
        body.append(row)
    if not paper:
        drop = [header.index("paper ACC"), header.index("paper AUC")]
        header, *body = ([c for i, c in enumerate(r) if i not in drop] for r in [header, *body])
    return header, body


def show(value: Mapping[str, float | None] | None, *, signed: bool = False) -> str:
    """96.2 [91.0, 99.1], per cent; a dash for none."""
    if value is None or value["value"] is None:
        return "-"
    sign = "+" if signed else ""
    text = f"{value['value'] * 100:{sign}.1f}"
    if value["low"] is None or value["high"] is None:
        return text
    return f"{text} [{value['low'] * 100:{sign}.1f}, {value['high'] * 100:{sign}.1f}]"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def write(
    stem: Path,
    entries: Sequence[Mapping[str, Any]],
    *,
    title: str,
    about: str,
    reference: str,
) -> None:
    """``stem``.md and ``stem``.csv; the JSON is the caller's."""
    header, body = cells(entries, reference)
    lines = [f"# {title}", "", about, "", _markdown(header), _markdown(["---"] * len(header))]
    lines += [_markdown(row) for row in body]
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = io.StringIO()
    out = csv.writer(text)
    out.writerows(map(safe, row) for row in [header, *body])
    stem.with_suffix(".csv").write_text(text.getvalue(), encoding="utf-8")


def _markdown(row: Sequence[str]) -> str:
    return "| " + " | ".join(row) + " |"
