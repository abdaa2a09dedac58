# SPDX-License-Identifier: Apache-2.0
"""Clip scores -> metrics with intervals: of all clips, per category, per method, per group.

Every figure carries a 95 % interval over draws of whole identities and stands beside the number of
identities that it rests on.  A category or method is measured together with the genuine clips,
since most metrics need both classes.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.sheets import safe
from trainer.data.layouts import CATEGORIES
from trainer.scoring import metrics
from trainer.scoring.bootstrap import METRICS, draw_identities, interval, point, weighted_metrics
from trainer.scoring.clips import ClipScores

Array = npt.NDArray[Any]
ROUNDS = 1000
FEW_IDENTITIES = 10  # below it an interval over identities says little, and the report says so


def figures(scores: ClipScores, threshold: float, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """Everything that the report shows of one table of scores, JSON-ready."""
    genuine = scores.fake == 0

    def part(mask: Array) -> dict[str, Any]:
        return _part(scores.where(mask), threshold, rounds)

    result: dict[str, Any] = {
        "threshold": threshold,
        "rounds": rounds,
        "windows": int(scores.windows.sum()),
        "in_domain": _share(scores.judged.sum(), scores.windows.sum()),
        **part(np.ones(len(scores), bool)),
        "heads": _heads(scores, rounds),
        "category": {},
        "method": {},
        "group": {},
    }
    for kind in ("category", "method"):
        names = getattr(scores, kind)
        for name in _in_order(set(names[~genuine].tolist())):
            mine = (names == name) & ~genuine
            entry = part(mine | genuine)
            entry["identities_forged"] = len(set(scores.identity[mine].tolist()))
            result[kind][name] = entry
    for group, values in scores.groups.items():
        named = sorted(set(values.tolist()) - {""})
        result["group"][group] = {name: part(values == name) for name in named}
    return result


def _in_order(names: set[str]) -> list[str]:
    """The four categories as they are always listed, anything else by name."""
    known = [c for c in CATEGORIES if c in names]
    return known + sorted(names - set(known))


def _part(scores: ClipScores, threshold: float, rounds: int) -> dict[str, Any]:
    weights = draw_identities(scores.identity, rounds, seed=0)
    drawn = weighted_metrics(scores.fake, scores.p_fake, weights, threshold)
    value = point(scores.fake, scores.p_fake, threshold)
    return {
        "clips": len(scores),
        "genuine": int((scores.fake == 0).sum()),
        "fake": int((scores.fake == 1).sum()),
        "identities": len(set(scores.identity.tolist())),
        "metrics": {name: figure(value[name], drawn[name]) for name in METRICS},
    }


def _heads(scores: ClipScores, rounds: int) -> dict[str, Any]:
    """Area under the ROC of the heads of one modality, against what each can tell."""
    result = {}
    for name, label, score in (
        ("picture, against a forged picture", scores.fake_video, scores.p_fake_video),
        ("sound, against FakeAVCeleb's label", scores.fake_audio, scores.p_fake_audio),
        ("sound, against a synthetic voice", scores.synthetic_voice, scores.p_fake_audio),
    ):
        if np.isnan(score).any() or label.min() == label.max():
            continue
        drawn = weighted_metrics(label, score, draw_identities(scores.identity, rounds, 0), 0.5)
        result[name] = figure(metrics.auc(label, score), drawn["auc"])
    return result


def figure(value: float, drawn: npt.NDArray[np.float64]) -> dict[str, float | None]:
    """A value with its interval; None where it, or the interval, does not exist."""
    low, high = interval(drawn)
    return {
        name: None if math.isnan(x) else round(x, 6)
        for name, x in (("value", value), ("low", low), ("high", high))
    }


def _share(part: Any, whole: Any) -> float | None:
    return round(float(part / whole), 4) if whole else None


def rows(result: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(kind, name, entry) of everything that :func:`figures` measured."""
    yield "all", "all", result
    for kind in ("category", "method"):
        for name, entry in result[kind].items():
            yield kind, name, entry
    for group, values in result["group"].items():
        for name, entry in values.items():
            yield group, name, entry


def write_csv(path: Path, variants: dict[str, dict[str, Any]]) -> None:
    """One line a figure: variant, of what, metric, value, interval, clips, identities."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(
            ["variant", "kind", "name", "metric", "value", "low", "high", "clips", "identities"]
        )
        for variant, result in variants.items():
            for kind, name, entry in rows(result):
                for metric, f in entry["metrics"].items():
                    figure_ = ["" if f[k] is None else f[k] for k in ("value", "low", "high")]
                    counts = [entry["clips"], entry["identities"]]
                    texts = map(safe, (variant, kind, name, metric))
                    out.writerow([*texts, *figure_, *counts])
