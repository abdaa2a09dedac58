# SPDX-License-Identifier: Apache-2.0
"""trainer.data.folds: the sources of the talking heads, in three parts chosen once."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from runtime.errors import UserError
from tests.conftest import REPOSITORY
from trainer.data.folds import FOLDS, GRID, TOGETHER, TRAPS, WAIT_S, choose, load_folds, main

TALKING = Path(
    os.environ.get("MSCT_TALKING_DIR", REPOSITORY.parent / "shared" / "data" / "talking")
)


@pytest.fixture
def rows() -> list[dict[str, str]]:
    if not (TALKING / "clips.tsv").is_file():
        pytest.skip(f"no talking heads in {TALKING}")
    with (TALKING / "clips.tsv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def row(source: str, person: str, seconds: float) -> dict[str, str]:
    return {"source": source, "person": person, "seconds": str(seconds)}


class TestChoosing:
    def test_sources_that_share_a_person_stay_together(self):
        rows = [row("a", "1", 9), row("b", "1", 9), row("b", "2", 9), row("c", "2", 9)]
        rows += [row(name, name, 9) for name in "defgh"]
        folds = choose(rows)
        assert [f for f in folds if {"a", "b", "c"} & set(f)] == [
            next(f for f in folds if "a" in f)
        ]

    def test_nobody_in_particular_ties_no_sources(self):
        rows = [row(name, "unknown", 9) for name in "abc"]
        assert sorted(map(len, choose(rows))) == [1, 1, 1]

    def test_grid_stays_with_the_sources_that_hold_its_people(self):
        rows = [row(name, name, 9) for name in ("x", "y", *TOGETHER[0][:2])]
        fold = next(f for f in choose(rows) if GRID in f)
        assert set(TOGETHER[0]) <= set(fold)

    def test_the_order_of_the_index_does_not_matter(self):
        rows = [row(f"s{n}", f"p{n}", 3 + 7 * n % 11) for n in range(12)]
        assert choose(rows) == choose(rows[::-1])

    def test_people_and_evidence_are_even(self):
        rows = [row(f"s{n % 12}", f"p{n}", 3 + 7 * n % 11) for n in range(60)]
        loads = [
            (
                len({r["person"] for r in rows if r["source"] in fold}),
                sum(float(r["seconds"]) - WAIT_S for r in rows if r["source"] in fold),
            )
            for fold in choose(rows)
        ]
        for values in zip(*loads, strict=True):
            assert max(values) < 1.1 * min(values)


class TestCommitted:
    def test_no_source_is_in_two_and_every_trap_in_one(self):
        folds = load_folds()
        everything = [s for part in folds.sources for s in part]
        assert len(folds.sources) == FOLDS
        assert len(set(everything)) == len(everything)
        assert folds.traps == TRAPS
        assert set(TRAPS) <= set(everything)
        assert folds.fold_of(GRID) == folds.fold_of(TOGETHER[0][0])
        assert folds.fold_of("a source of photographs") is None

    def test_they_are_what_the_command_chooses(self, rows, capsys):
        assert main(["--clips", str(TALKING)]) == 0
        assert "these are the committed folds" in capsys.readouterr().out

    def test_nobody_is_in_two_of_them(self, rows):
        folds = load_folds()
        where: dict[str, set[int | None]] = {}
        for r in rows:
            where.setdefault(r["person"], set()).add(folds.fold_of(r["source"]))
        where.pop("unknown", None)
        assert all(len(found) == 1 and None not in found for found in where.values())

    def test_they_weigh_alike(self, rows):
        folds = load_folds()
        people = [len({r["person"] for r in rows if r["source"] in f}) for f in folds.sources]
        minutes = [
            sum(float(r["seconds"]) - WAIT_S for r in rows if r["source"] in f) / 60
            for f in folds.sources
        ]
        assert max(people) - min(people) <= 3
        assert max(minutes) < 1.15 * min(minutes)

    def test_a_damaged_file_is_named(self, tmp_path):
        (tmp_path / "folds.json").write_text("{}", encoding="utf-8")
        with pytest.raises(UserError, match="cannot be read"):
            load_folds(tmp_path / "folds.json")

    def test_a_folder_without_an_index_is_named(self, tmp_path, capsys):
        assert main(["--clips", str(tmp_path)]) == 2
        assert "no such file" in capsys.readouterr().err
