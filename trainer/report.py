# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML file out of clip scores: figures with intervals, plots, how to read them.

No script, no font and no picture from elsewhere; it follows the reader's light or dark setting and
fits a phone (tables scroll sideways, plots shrink).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import UserError
from runtime.files import write_json
from trainer import plots
from trainer.clip_scores import ClipScores
from trainer.data.layouts import CATEGORIES
from trainer.figures import FEW_IDENTITIES, figures, write_csv
from trainer.probe import ACROSS, WITHIN

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

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6470; --line: #d9dee4;
  --page: #fff; --note: #f3f6f9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa4b0; --line: #333b45;
  --page: #14181d; --note: #1d232a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { max-width: 46rem; }
.soft { color: var(--soft); }
.note { background: var(--note); border-left: 4px solid #e69f00; padding: .5rem .8rem;
  max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .3rem .7rem .3rem 0; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 6.5rem; }
th { font-weight: 600; white-space: normal; vertical-align: bottom; }
th small { font-weight: 400; }
th small, td small { color: var(--soft); display: block; font-size: .8em; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1rem; }
figure { margin: 0; }
figure svg { width: 100%; height: auto; max-width: 30rem; }
figure.wide svg { max-width: 60rem; }
figcaption { color: var(--soft); font-size: .88rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""


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
    "trimmed"); ``about`` is printed at the top; ``floors`` is what :mod:`trainer.floor` measured
    beside the first of them, ``probe`` what :mod:`trainer.probe` found in the set.  Returns what
    metrics.json holds.
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
    people, rounds = first["identities"], first["rounds"]
    counts = (
        f"{first['clips']} clips ({first['genuine']} genuine, {first['fake']} forged) of "
        f"{people} identities, {first['windows']} windows"
    )
    terms = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in about.items())
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{counts}. A clip is called fake from p_fake {threshold:.4g} on.</p>",
        f"<dl>{terms}</dl>",
    ]
    if people < FEW_IDENTITIES:
        parts.append(
            f'<p class="note">Only {people} identities: the intervals below are drawn from so few '
            "people that they say little about anybody else.</p>"
        )
    parts += [
        "<h2>All clips</h2>",
        _overall(measured),
        f'<p class="soft">In square brackets: 95 % interval over {rounds} draws of whole '
        "identities, with replacement. Every clip is scored: the mean over its windows. "
        + " ".join(
            f"{escape(name.capitalize())}: {m['in_domain']:.0%} of the windows lie in the domain "
            "of the calibration; the product would abstain on the others."
            for name, m in measured.items()
        )
        + "</p>",
        "<p><strong>Balanced accuracy is the paper's “AUC”.</strong> The paper, and the code it "
        "descends from, feed called labels instead of scores to the AUC, which gives the mean of "
        "detections and of genuine clips left alone. Calling every clip fake scores 50 % on it, "
        "and 75 % accuracy where three in four clips are forged. The score AUC is the area under "
        "the ROC of p_fake: how often a forged clip scores above a genuine one.</p>",
        '<div class="plots">',
        _plot(plots.roc(_pairs(variants)), "ROC over clips. Dotted: guessing."),
        _plot(
            plots.reliability(_pairs(variants)),
            "Reliability: of the clips with this p_fake, how many are forged. Larger dots hold "
            "more clips. Where forged clips outnumber genuine ones the line lies above the dots "
            "of a probability calibrated for even odds.",
        ),
        *(
            _plot(
                _confusion(scores, threshold, f"Confusion, {name}"),
                f"Called against true, {escape(name)}; shares are of the row.",
            )
            for name, scores in variants.items()
        ),
        "</div>",
    ]
    parts += _floors(floors or {}, next(iter(measured)))
    parts += _probe(probe or {})
    parts += _sections(measured)
    panels = {n: (s.embedding, s.category) for n, s in variants.items() if s.embedding is not None}
    if panels:
        parts += [
            "<h2>Embedding</h2>",
            _plot(
                plots.tsne(panels),
                "t-SNE of the embedding (class tokens for MSCT), one point a clip. RA, FA: real "
                "and forged sound; RV, FV: real and forged picture. Distances between groups mean "
                "little in t-SNE.",
                wide=len(panels) > 1,
            ),
        ]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _pairs(variants: Mapping[str, ClipScores]) -> dict[str, tuple[Any, Any]]:
    return {name: (s.fake, s.p_fake) for name, s in variants.items()}


def _plot(svg: str, caption: str, *, wide: bool = False) -> str:
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}>{svg}<figcaption>{caption}</figcaption></figure>"


def _confusion(scores: ClipScores, threshold: float, title: str) -> str:
    present = [c for c in CATEGORIES if (scores.category == c).any()]
    called = scores.p_fake >= threshold
    counts = np.array(
        [[(called[scores.category == c] == answer).sum() for answer in (0, 1)] for c in present]
    )
    return plots.confusion(counts, ("real", "fake"), [plots.SHORT[c] for c in present], title)


def _overall(measured: Mapping[str, dict[str, Any]]) -> str:
    header = [""] + [
        f"{escape(name)}<small>{m['clips']} clips, {m['identities']} identities</small>"
        for name, m in measured.items()
    ]
    body = []
    for metric, name in NAMES.items():
        note = "smaller is better" if metric in _SMALLER_IS_BETTER else ""
        cells = [show(m["metrics"][metric], metric) for m in measured.values()]
        body.append([f"{name}<small>{note}</small>" if note else name, *cells])
    for head in next(iter(measured.values()))["heads"]:
        cells = [show(m["heads"].get(head), "auc") for m in measured.values()]
        body.append([f"AUC of the head of one modality<small>{escape(head)}</small>", *cells])
    return table(header, body)


def _floors(floors: Mapping[str, Any], variant: str) -> list[str]:
    if not floors:
        return []
    header = ["", NAMES["auc"], "this model above it"]
    body = [
        [escape(name), show(entry["auc"], "auc"), show(entry["gain"], "auc")]
        for name, entry in floors.items()
    ]
    return [
        "<h2>What looks for no forgery</h2>",
        "<p>Logistic regressions trained on the same training clips, scored on the same clips "
        f"({escape(variant)}): dlib's face descriptor, the mean log-mel spectrum, and these with "
        "file size, bit rates, silence, loudness and brightness together. A detector that is no "
        "better has learnt who is in the picture, or how the set was made.</p>",
        table(header, body),
    ]


def _probe(found: Mapping[str, Any]) -> list[str]:
    parts = []
    for kind in (ACROSS, WITHIN):
        if not found.get(kind):
            continue
        comparisons = found[kind]
        body = [
            [
                escape(feature),
                *(
                    f"{cells[feature]['auc']:.3f}"
                    f"<small>[{cells[feature]['low']:.2f}, {cells[feature]['high']:.2f}]</small>"
                    for cells in comparisons.values()
                ),
            ]
            for feature in next(iter(comparisons.values()))
        ]
        header = [f"AUC {kind}", *(escape(name) for name in comparisons)]
        parts.append(table(header, body))
    if not parts:
        return []
    return [
        "<h2>Short cuts left in the set</h2>",
        f"<p>Cross-validated regressions over all {sum(found['clips'].values())} clips of the set, "
        f"made from {found['genuine_clips']} genuine ones of {found['identities']} people; 0.5 is "
        "chance. Across people: nobody is scored by a regression that saw him, so this is what a "
        "short cut could add to the figures above. Within people a regression may learn how each "
        "face changes when it is forged: the face descriptor then sees the forgery itself.</p>",
        *parts,
    ]


def _sections(measured: Mapping[str, dict[str, Any]]) -> list[str]:
    parts = []
    for kind, text in (
        ("category", "Each kind of forgery, measured against all genuine clips."),
        ("method", "Each method, measured against all genuine clips."),
    ):
        entries = {n: m[kind] for n, m in measured.items()}
        if any(entries.values()):
            parts += [f"<h2>By {kind}</h2>", f"<p>{text}</p>"]
            parts.append(_entries(entries, _IN_PARTS, count="fake", people="identities_forged"))
    for group in next(iter(measured.values()))["group"]:
        entries = {n: m["group"].get(group, {}) for n, m in measured.items()}
        if any(entries.values()):
            parts += [f"<h2>By {escape(group)}</h2>", "<p>Genuine and forged clips of each.</p>"]
            parts.append(_entries(entries, _IN_GROUPS, count="clips", people="identities"))
    return parts


def _entries(
    entries: Mapping[str, Mapping[str, Any]], shown: Sequence[str], *, count: str, people: str
) -> str:
    several = len(entries) > 1
    clips = "forged clips" if count == "fake" else "clips"
    header = ["", *([""] if several else []), clips, "identities", *(NAMES[m] for m in shown)]
    header = [h.replace(" (the paper's “AUC”)", "") for h in header]
    body = []
    for name in next(iter(entries.values())):
        for number, (variant, values) in enumerate(entries.items()):
            entry = values.get(name)
            if entry is None:
                continue
            cells = [show(entry["metrics"][m], m) for m in shown]
            label = ["" if number else escape(name), *([escape(variant)] if several else [])]
            body.append([*label, str(entry[count]), str(entry[people]), *cells])
    return table(header, body)


def show(value: Mapping[str, float | None] | None, metric: str) -> str:
    """A figure as HTML: per cent, or three decimals for the Brier score; a dash for none."""
    if value is None or value["value"] is None:
        return "-"
    scale, digits = (1, 3) if metric == "brier" else (100, 1)
    unit = "" if metric == "brier" else " %"
    text = f"{value['value'] * scale:.{digits}f}{unit}"
    if value["low"] is None or value["high"] is None:
        return f"{text}<small>no interval</small>"
    low, high = value["low"] * scale, value["high"] * scale
    return f"{text}<small>[{low:.{digits}f}, {high:.{digits}f}]</small>"


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already."""
    head = "".join(f"<th>{h}</th>" for h in header)
    lines = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in body)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )
