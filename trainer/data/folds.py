# SPDX-License-Identifier: Apache-2.0
"""Three folds of the sources of genuine talking heads, chosen once: ``folds.json`` beside this.

    python -m trainer.data.folds --clips DIR      # chooses them again and says whether they differ

Everything that learns is trained once per fold, on the sources of the other two.  Sources that
share a person stay together; who shares one without the index saying so is written here.  Folds
weigh alike in people and in minutes of evidence (a clip of n seconds has n - 0.6 of them).  Larger
groups are dealt first, then moved or exchanged while that evens the folds out: the same index gives
the same folds.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.command import Parser
from runtime.errors import UsageError, UserError
from runtime.files import write_json
from runtime.interrupt import leave

FILE = Path(__file__).with_name("folds.json")
FOLDS = 3
WAIT_S = 0.6  # after a face's first picture, before there is evidence: see the runtime's windows
GRID = "grid"  # the folder of GRID beside the talking heads

# Sources with people in common that no index tells of: GRID's speakers.
TOGETHER = (
    ("dr-pato/audio-visual-speech-inpainting", "amrkh97/Lipify-LipReading", GRID),
)  # fmt: skip
# In no training but at the hand of whoever knows why: what is odd about a source's clips.
TRAPS = {
    "looking-to-listen/looking-to-listen.github.io": "a thin box is drawn on the face; some noise",
    "filyp/mcgurk_task": "single syllables",
    "ageitgey/face_recognition": "music beside the voice; the sound starts 0.84 s early",
    "facebookresearch/VisualVoice": "two people side by side; strong noise",
    "modelscope/ClearerVoice-Studio": "two people side by side",
    "himanshu8426/testvideos": "cuts, captions, music",
}


@dataclass(frozen=True)
class Folds:
    """What ``folds.json`` holds."""

    sources: tuple[tuple[str, ...], ...]  # by fold
    traps: dict[str, str]  # source -> what is odd
    left_out: dict[str, str]  # person -> why no training may see them
    left_out_files: dict[str, str]  # file -> the same

    def fold_of(self, source: str) -> int | None:
        """None: a source that no fold knows, such as one of photographs."""
        return next((i for i, part in enumerate(self.sources) if source in part), None)


def load_folds(path: Path = FILE) -> Folds:
    """Raises :class:`UserError` where the file is missing or damaged."""
    try:
        values = json.loads(path.read_text("utf-8"))
        return Folds(
            tuple(tuple(fold["sources"]) for fold in values["folds"]),
            values["traps"],
            values["left_out"]["people"],
            values["left_out"]["files"],
        )
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise UserError(f"{path} cannot be read ({err}); reinstall the package") from err


def choose(rows: Sequence[Mapping[str, str]], count: int = FOLDS) -> list[list[str]]:
    """Rows of an index (source, person, seconds) -> the sources of each fold."""
    groups = [sorted(g) for g in _groups(rows)]
    measures = {s: _measure(rows, s) for g in groups for s in g}
    totals = [sum(m[k] for m in measures.values()) or 1.0 for k in (0, 1)]
    sizes = [
        tuple(sum(measures[s][k] for s in group) / totals[k] for k in (0, 1)) for group in groups
    ]
    order = sorted(range(len(groups)), key=lambda g: (-sum(sizes[g]), groups[g]))

    def unevenness(assigned: Sequence[int]) -> float:
        loads = [[0.0, 0.0] for _ in range(count)]
        for g, fold in enumerate(assigned):
            if fold >= 0:
                loads[fold][0] += sizes[g][0]
                loads[fold][1] += sizes[g][1]
        return sum((load[k] - 1 / count) ** 2 for load in loads for k in (0, 1))

    placed = [-1] * len(groups)
    for g in order:
        tried = [unevenness([*placed[:g], fold, *placed[g + 1 :]]) for fold in range(count)]
        placed[g] = tried.index(min(tried))
    while (better := _improved(placed, count, unevenness)) is not None:
        placed = better
    folds: list[list[str]] = [[] for _ in range(count)]
    for g, fold in enumerate(placed):
        folds[fold] += groups[g]
    return sorted((sorted(f) for f in folds), key=lambda f: f[0])


def _improved(placed: list[int], count: int, unevenness: Any) -> list[int] | None:
    """The best of all moves of one group and exchanges of two, if it is better."""
    options = []
    for g in range(len(placed)):
        options += [[*placed[:g], f, *placed[g + 1 :]] for f in range(count)]
    for a, b in itertools.combinations(range(len(placed)), 2):
        swapped = list(placed)
        swapped[a], swapped[b] = placed[b], placed[a]
        options.append(swapped)
    best = min(options, key=unevenness)
    return best if unevenness(best) < unevenness(placed) - 1e-12 else None


def _measure(rows: Sequence[Mapping[str, str]], source: str) -> tuple[float, float]:
    """People and seconds of evidence of a source."""
    own = [r for r in rows if r["source"] == source]
    people = {r["person"] for r in own}
    return float(len(people)), sum(max(0.0, float(r["seconds"]) - WAIT_S) for r in own)


def _groups(rows: Sequence[Mapping[str, str]]) -> list[set[str]]:
    """Sources that are tied by a person, one group each."""
    ties: list[set[str]] = [{r["source"]} for r in rows]
    ties += [set(t) for t in TOGETHER if any(s in t for s in {r["source"] for r in rows})]
    for person in {r["person"] for r in rows} - {"", "unknown"}:
        ties.append({r["source"] for r in rows if r["person"] == person})
    groups: list[set[str]] = []
    for tie in ties:
        for group in [g for g in groups if g & tie]:
            groups.remove(group)
            tie = tie | group
        groups.append(tie)
    return sorted(groups, key=min)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m trainer.data.folds", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clips", type=Path, required=True, help="a folder with clips.tsv")
    parser.add_argument("--write", action="store_true", help="write folds.json anew")
    options = parser.parse_args(argv)
    try:
        return _run(options.clips, write=options.write)
    except UserError as err:
        print(f"error: {err}", file=sys.stderr)
        return err.exit_code


def _run(clips: Path, *, write: bool) -> int:
    import csv

    index = clips / "clips.tsv"
    if not index.is_file():
        raise UsageError(f"{index}: no such file; give the folder that holds the index")
    with index.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    chosen = choose(rows)
    for number, sources in enumerate(chosen):
        people = {r["person"] for r in rows if r["source"] in sources}
        seconds = sum(_measure(rows, s)[1] for s in sources)
        print(
            f"fold {number}: {len(sources)} sources, {len(people)} people, {seconds / 60:.1f} min"
        )
    known = json.loads(FILE.read_text("utf-8")) if FILE.is_file() else {}
    if write:
        left_out = known.get("left_out", {"people": {}, "files": {}})
        folds = [{"sources": s} for s in chosen]
        write_json(FILE, {"folds": folds, "traps": TRAPS, "left_out": left_out})
        return 0
    same = [fold["sources"] for fold in known.get("folds", [])] == chosen
    print("these are the committed folds" if same else "the committed folds are others")
    return 0 if same else 1


if __name__ == "__main__":
    leave(main)
