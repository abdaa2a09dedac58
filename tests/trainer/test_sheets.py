# SPDX-License-Identifier: Apache-2.0
"""The trainer's CSV files: names of clips and people are no formulas, and are read back as were."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra: pip install '.[train]'")
pytest.importorskip("scipy", reason="needs the train extra: pip install '.[train]'")

from tests.trainer.test_report import table
from trainer.data.fakeavceleb import _read_csv
from trainer.data.layouts import Listing, _rules
from trainer.forge import _write_meta
from trainer.paper import tables
from trainer.scoring import figures
from trainer.scoring.clips import ClipScores

FORMULAS = ("=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", '=HYPERLINK("http://x")')


def cells(path: Path) -> set[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return {cell for row in csv.reader(file) for cell in row}


def hold_marked(path: Path, texts: tuple[str, ...] = FORMULAS) -> None:
    found = cells(path)
    assert not found & set(texts)
    assert {f"'{text}" for text in texts} <= found


def test_scores_of_clips(tmp_path: Path) -> None:
    scores = table(people=1)
    names = np.array([*FORMULAS, "a.mp4", "'=1"])  # eight clips
    named = dict.fromkeys(("file", "identity", "category", "method"), names)
    scores = dataclasses.replace(scores, **named, groups={"of": names})
    scores.write(tmp_path / "scores.csv")
    hold_marked(tmp_path / "scores.csv")
    again = ClipScores.read(tmp_path / "scores.csv")
    for field in named:
        assert getattr(again, field).tolist() == names.tolist()
    assert again.groups["of"].tolist() == names.tolist()
    assert again.p_fake.tolist() == scores.p_fake.tolist()
    assert again.embedding is not None  # they are those of the same names


def test_figures(tmp_path: Path) -> None:
    one, two, three, four, five, six = FORMULAS
    entry = {
        "metrics": {five: {"value": -0.5, "low": None, "high": 1.0}},
        "clips": 2,
        "identities": 1,
    }
    result = entry | {"category": {two: entry}, "method": {three: entry}}
    result["group"] = {four: {six: entry}}
    figures.write_csv(tmp_path / "figures.csv", {one: result})
    hold_marked(tmp_path / "figures.csv")
    assert "-0.5" in cells(tmp_path / "figures.csv")  # a number is one


def test_tables_of_the_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "cells", lambda *_: (["arm", "AUC"], [[f, "-"] for f in FORMULAS]))
    tables.write(tmp_path / "table", [], title="t", about="a", reference="r")
    hold_marked(tmp_path / "table.csv")
    assert "-" in cells(tmp_path / "table.csv")  # there is nothing


@pytest.mark.parametrize("text", FORMULAS)
def test_the_list_of_a_forged_set(text: str, tmp_path: Path) -> None:
    name, person = f"{text.replace('/', '_')}.mp4", text.replace("/", "_")
    file = f"RealVideo-RealAudio/Unknown/unknown/{person}/{name}"
    record = {"identity": person, "donor": None, "method": "real", "file": file}
    _write_meta(tmp_path / "meta_data.csv", [record | {"category": "RealVideo-RealAudio"}])
    hold_marked(tmp_path / "meta_data.csv", (person, name))
    (entry,) = _read_csv(tmp_path / "meta_data.csv", Listing("fakeavceleb", [])).values()
    assert entry.file == file


def test_a_table_of_people_may_come_from_a_spreadsheet(tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_text("file,identity\n'=1+1.mp4,'@ann\n-1.mp4,o'neil\n")
    assert _rules(tmp_path / "people.csv") == [("=1+1.mp4", "@ann"), ("-1.mp4", "o'neil")]
