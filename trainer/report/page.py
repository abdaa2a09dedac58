# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML file out of clip scores: figures with intervals, plots, how to read them.

No script, no font and no picture from elsewhere; it follows the reader's light or dark setting and
fits a phone (tables scroll sideways, plots shrink).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import UserError
from runtime.files import write_json
from runtime.pages import fill
from trainer.data.layouts import CATEGORIES
from trainer.probe import ACROSS, WITHIN
from trainer.report import plots
from trainer.scoring.clips import ClipScores
from trainer.scoring.figures import FEW_IDENTITIES, figures, write_csv

NAMES = {  # of the metrics, as the report prints them
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy (the paper's “AUC”)",
    "auc": "score AUC",
    "eer": "equal error rate",
    "average_precision": "average precision",
    "brier": "Brier score",
    "detection_rate": "detections",
    "false_alarm_rate": "false alarms",
}
_SMALLER_IS_BETTER = {"eer", "brier", "false_alarm_rate"}
_IN_PARTS = ("detection_rate", "balanced_accuracy", "auc", "eer")
_IN_GROUPS = ("accuracy", "balanced_accuracy", "auc", "detection_rate", "false_alarm_rate")

TEMPLATE = Path(__file__).with_name("page.html")
Cell = tuple[str, str]  # a text, and what stands small below it
Table = tuple[list[Cell], list[list[Cell]]]  # header, body

FILES = (
    "report.html",
    "metrics.json",
    "metrics.csv",
    "scores-untrimmed.csv",
    "scores-trimmed.csv",
)  # that may be written


def write_report(
    folder: Path,
    variants: Mapping[str, ClipScores],
    threshold: float,
    *,
    title: str,
    about: Mapping[str, str],
    floors: Mapping[str, Any] | None = None,
    probe: Mapping[str, Any] | None = None,
    rounds: int = 1000,
) -> dict[str, Any]:
    """report.html, metrics.json, metrics.csv and one scores-*.csv a variant, in ``folder``.

    ``variants`` are tables of the same model on the same clips, side by side ("untrimmed",
    "trimmed"); ``about`` is printed at the top; ``floors`` is what :mod:`trainer.report.floor`
    measured beside the first of them, ``probe`` what :mod:`trainer.probe` found in the set.
    Returns what metrics.json holds.
    """
    measured = {n: figures(s, threshold, rounds=rounds) for n, s in variants.items()}
    result = {"title": title, "about": dict(about), "variants": measured}
    if floors:
        result["floors"] = dict(floors)
    if probe:
        result["probe"] = dict(probe)
    try:
        for name, scores in variants.items():
            scores.write(folder / f"scores-{name}.csv")
        write_csv(folder / "metrics.csv", measured)
        html = render(
            variants, measured, threshold, title=title, about=about, floors=floors, probe=probe
        )
        (folder / "report.html").write_text(html, encoding="utf-8")
    except OSError as err:
        raise UserError(f"cannot write into {folder} ({err.strerror}); choose another") from err
    write_json(folder / "metrics.json", result)
    return result


def render(
    variants: Mapping[str, ClipScores],
    measured: Mapping[str, dict[str, Any]],
    threshold: float,
    *,
    title: str,
    about: Mapping[str, str],
    floors: Mapping[str, Any] | None = None,
    probe: Mapping[str, Any] | None = None,
) -> str:
    first = next(iter(measured.values()))
    people = first["identities"]
    panels = {n: (s.embedding, s.category) for n, s in variants.items() if s.embedding is not None}
    pairs = {name: (s.fake, s.p_fake) for name, s in variants.items()}
    return fill(
        TEMPLATE,
        title=title,
        counts=f"{first['clips']} clips ({first['genuine']} genuine, {first['fake']} forged) of "
        f"{people} identities, {first['windows']} windows",
        threshold=f"{threshold:.4g}",
        about=about,
        people=people,
        few=people < FEW_IDENTITIES,
        rounds=first["rounds"],
        overall=_overall(measured),
        in_domain=[(n.capitalize(), f"{m['in_domain']:.0%}") for n, m in measured.items()],
        roc=plots.roc(pairs),
        reliability=plots.reliability(pairs),
        confusions=[
            (name, _confusion(scores, threshold, f"Confusion, {name}"))
            for name, scores in variants.items()
        ],
        floors=_floors(floors) if floors else None,
        variant=next(iter(measured)),
        probe=_probe(probe) if probe else None,
        sections=_sections(measured),
        tsne=plots.tsne(panels) if panels else None,
        several=len(panels) > 1,
    )


def _confusion(scores: ClipScores, threshold: float, title: str) -> str:
    present = [c for c in CATEGORIES if (scores.category == c).any()]
    called = scores.p_fake >= threshold
    counts = np.array(
        [[(called[scores.category == c] == answer).sum() for answer in (0, 1)] for c in present]
    )
    return plots.confusion(counts, ("real", "fake"), [plots.SHORT[c] for c in present], title)


def _overall(measured: Mapping[str, dict[str, Any]]) -> Table:
    header = [("", "")] + [
        (name, f"{m['clips']} clips, {m['identities']} identities") for name, m in measured.items()
    ]
    body = []
    for metric, name in NAMES.items():
        note = "smaller is better" if metric in _SMALLER_IS_BETTER else ""
        body.append(
            [(name, note), *(show(m["metrics"][metric], metric) for m in measured.values())]
        )
    for head in next(iter(measured.values()))["heads"]:
        cells = [show(m["heads"].get(head), "auc") for m in measured.values()]
        body.append([("AUC of the head of one modality", head), *cells])
    return header, body


def _floors(floors: Mapping[str, Any]) -> Table:
    body = [
        [(name, ""), show(entry["auc"], "auc"), show(entry["gain"], "auc")]
        for name, entry in floors.items()
    ]
    return _plain("", NAMES["auc"], "this model above it"), body


def _probe(found: Mapping[str, Any]) -> dict[str, Any] | None:
    tables = [_comparisons(kind, found[kind]) for kind in (ACROSS, WITHIN) if found.get(kind)]
    if not tables:
        return None
    return {
        "clips": sum(found["clips"].values()),
        "genuine": found["genuine_clips"],
        "identities": found["identities"],
        "tables": tables,
    }


def _comparisons(kind: str, found: Mapping[str, Any]) -> Table:
    body = []
    for feature in next(iter(found.values())):
        figures = [cells[feature] for cells in found.values()]
        cells = [(f"{f['auc']:.3f}", f"[{f['low']:.2f}, {f['high']:.2f}]") for f in figures]
        body.append([(feature, ""), *cells])
    return _plain(f"AUC {kind}", *found), body


def _sections(
    measured: Mapping[str, dict[str, Any]],
) -> list[tuple[str, str, list[Cell], list[list[Cell]]]]:
    """Heading, text and table of each."""
    parts = []
    for kind, text in (
        ("category", "Each kind of forgery, measured against all genuine clips."),
        ("method", "Each method, measured against all genuine clips."),
    ):
        entries = {n: m[kind] for n, m in measured.items()}
        if any(entries.values()):
            table = _entries(entries, _IN_PARTS, count="fake", people="identities_forged")
            parts.append((kind, text, *table))
    for group in next(iter(measured.values()))["group"]:
        entries = {n: m["group"].get(group, {}) for n, m in measured.items()}
        if any(entries.values()):
            table = _entries(entries, _IN_GROUPS, count="clips", people="identities")
            parts.append((group, "Genuine and forged clips of each.", *table))
    return parts


def _entries(
    entries: Mapping[str, Mapping[str, Any]], shown: Sequence[str], *, count: str, people: str
) -> Table:
    several = len(entries) > 1
    clips = "forged clips" if count == "fake" else "clips"
    names = [NAMES[m].replace(" (the paper's “AUC”)", "") for m in shown]
    header = _plain("", *([""] if several else []), clips, "identities", *names)
    body = []
    for name in next(iter(entries.values())):
        for number, (variant, values) in enumerate(entries.items()):
            entry = values.get(name)
            if entry is None:
                continue
            label = ["" if number else name, *([variant] if several else [])]
            cells = [show(entry["metrics"][m], m) for m in shown]
            body.append([*_plain(*label, str(entry[count]), str(entry[people])), *cells])
    return header, body


def _plain(*texts: str) -> list[Cell]:
    return [(text, "") for text in texts]


def show(value: Mapping[str, float | None] | None, metric: str) -> Cell:
    """A figure: per cent, or three decimals for the Brier score; a dash for none."""
    if value is None or value["value"] is None:
        return "-", ""
    scale, digits = (1, 3) if metric == "brier" else (100, 1)
    unit = "" if metric == "brier" else " %"
    text = f"{value['value'] * scale:.{digits}f}{unit}"
    if value["low"] is None or value["high"] is None:
        return text, "no interval"
    low, high = value["low"] * scale, value["high"] * scale
    return text, f"[{low:.{digits}f}, {high:.{digits}f}]"
