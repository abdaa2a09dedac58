# SPDX-License-Identifier: Apache-2.0
"""From a folder in FakeAVCeleb's shape to Table 1, Table 2 and Fig. 5, by the README's commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the train extra: pip install '.[train]'")

from tests.trainer.fakeavceleb import write_fakeavceleb
from tests.trainer.test_ablate import use_small_miniature
from trainer import ablate, evaluate, prepare
from trainer.paper import published

PROTOCOL = ["--protocol", "1:1:1:1"]


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_prepare_train_evaluate_and_both_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    root, prepared, output = tmp_path / "FakeAVCeleb", tmp_path / "prepared", tmp_path / "ablation"
    write_fakeavceleb(root, people=5, seconds=1.2)
    words = ["--data", str(root), "--output", str(prepared), "--crop-px", "32", "--workers", "0"]
    assert prepare.main(words) == 0
    use_small_miniature(monkeypatch, prepared, output)
    data = ["--data", str(prepared), *PROTOCOL]
    words = ["--table", "1", "--table", "2", "--figure", "5", "--miniature", "--seeds", "0"]
    assert ablate.main([*words, *data, "--output", str(output)]) == 0
    for name, printed in (("table1", published.TABLE_1), ("table2", published.TABLE_2)):
        rows = {r["arm"]: r for r in json.loads((output / f"{name}.json").read_text())["rows"]}
        text = (output / f"{name}.md").read_text()
        for arm, paper in printed.items():
            assert f"{paper.accuracy:.2f}" in text
            assert rows[arm]["paper"]["accuracy"] == paper.accuracy
            if arm != "busterx":
                figure = rows[arm]["metrics"]["balanced_accuracy"]
                assert 0 <= figure["value"] <= 1
                assert rows[arm]["identities"] >= 1
    assert "pre-training" in next(
        line for line in (output / "table1.md").read_text().splitlines() if "| VFD" in line
    )
    assert (output / "figure5.png").stat().st_size > 10_000
    assert "DCA+MSSA" in (output / "figure5.svg").read_text()

    checkpoint = output / "runs" / "dca+mssa" / "seed0-fold0" / "checkpoint.safetensors"
    report = tmp_path / "report"
    words = ["--checkpoint", str(checkpoint), "--both", "--argmax", "--output", str(report)]
    assert evaluate.main([*data, *words]) == 0
    result = json.loads((report / "metrics.json").read_text())["variants"]
    table = {r["arm"]: r for r in json.loads((output / "table2.json").read_text())["rows"]}
    mine = table["dca+mssa"]["metrics"]["balanced_accuracy"]["value"]
    assert result["untrimmed"]["metrics"]["balanced_accuracy"]["value"] == pytest.approx(mine)
    assert set(result["untrimmed"]["group"]) == {"race", "gender"}
