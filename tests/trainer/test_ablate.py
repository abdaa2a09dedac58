# SPDX-License-Identifier: Apache-2.0
"""Ablation: its arms, its figures, and that neither a finished nor a killed run is repeated."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra: pip install '.[train]'")

from runtime.errors import UsageError
from tests.trainer.prepared import write_noise_set
from tests.trainer.test_fit import MODEL
from tests.trainer.test_report import table
from trainer import ablate
from trainer.ablate import Job, Settings
from trainer.config import PRESETS
from trainer.data.prepared import Batch, PreparedSet
from trainer.fit import Trainer
from trainer.model.msct import MSCT
from trainer.paper import arms, published, tables
from trainer.paper.baselines import BASELINES
from trainer.paper.baselines.base import parameter_count
from trainer.scoring import metrics

SPLITS = {"a": "train", "b": "train", "c": "val", "d": "test"}
FIT = {
    "align_steps": 1,
    "joint_steps": 3,
    "batch": 4,
    "window_tokens": 28,
    "validate_every": 4,
    "save_every": 1,
    "warmup": 1,
}
SMALL = {
    k: v
    for k, v in MODEL.to_dict().items()
    if k not in ("name", "inject_alignment", "inject_lags", "lag_evidence")
    and v != PRESETS["msct-tiny"].to_dict()[k]
}


def settings(data: Path, output: Path, **changes) -> Settings:
    values = {
        "preset": "msct-tiny",
        "seeds": (0,),
        "model": SMALL,
        "fit": FIT,
        "baseline": {"miniature": True, "steps": 2, "batch": 4, "validate_every": 1},
        **changes,
    }
    return Settings(data=data, output=output, **values)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noise")
    options = {"clips": 1, "tokens": 45, "crop_px": 32, "silence_tokens": 3}
    return write_noise_set(folder, splits=SPLITS, **options)


@pytest.fixture(scope="module")
def finished(noise: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished")
    assert ablate.run(Job(arms.TABLE_2["dca+sa"], 0, 0, settings(noise, output))) > 0
    return output


def run(arm: str, seed: int, fold: int, *, separation: float, people: int = 8) -> tables.Run:
    scores = table(people, separation=separation, seed=10 * seed + fold)
    names = np.char.add(scores.identity, f"-{fold}")  # folds test different people
    return tables.Run(arm, seed, fold, 1000, dataclasses.replace(scores, identity=names), None)


class TestArms:
    def test_table_2_has_the_papers_rows_and_a_control_of_the_same_size(self):
        assert set(published.TABLE_2) < set(arms.TABLE_2)
        small = settings(Path(), Path())
        sizes = {
            name: parameter_count(MSCT(Job(arm, 0, 0, small).model_config()))
            for name, arm in arms.TABLE_2.items()
        }
        assert sizes["ca+sa"] < sizes["dca+sa"]
        assert sizes["ca-matched+sa"] == pytest.approx(sizes["dca+sa"], rel=2e-3)
        assert sizes["ca-matched+mssa"] == pytest.approx(sizes["dca+mssa"], rel=2e-3)

    def test_table_1_has_the_papers_rows(self):
        assert set(published.TABLE_1) - {"busterx"} == set(arms.TABLE_1)

    @pytest.mark.parametrize("name", ["vfd", "avoid-df"])
    def test_a_recipe_that_is_our_choice_is_said_in_the_table(self, name: str, tmp_path: Path):
        chosen = {name: arms.TABLE_1[name]}
        entries = tables.rows(chosen, [], {}, reference=name)
        tables.write(tmp_path / "t", entries, title="", about="", reference=name)
        row = (tmp_path / "t.md").read_text().splitlines()[-1]
        assert chosen[name].note in row
        recipe = BASELINES[name].RECIPE
        assert f"learning rate {recipe.lr:g}" in row
        assert f"batch {recipe.batch} and {recipe.epochs} epochs our choice" in row

    def test_every_reading_changes_one_thing(self):
        base = Job(arms.READINGS[arms.REFERENCE], 0, 0, settings(Path(), Path(), fit={}))
        for name, arm in arms.READINGS.items():
            job = Job(arm, 0, 0, base.settings)
            mine = {**job.model_config().to_dict(), **dataclasses.asdict(job.fit_config())}
            theirs = {**base.model_config().to_dict(), **dataclasses.asdict(base.fit_config())}
            changed = {k for k in mine if mine[k] != theirs[k]} - {"name"}
            expected = {arms.REFERENCE: 0, "contrast-none": 2}.get(name, 1)
            assert len(changed) == expected, name

    def test_a_reading_that_the_recipe_has_already_is_left_out(self):
        paper = settings(Path(), Path(), fit={"recipe": "paper"})
        left_out = set(arms.READINGS) - set(ablate.distinct(arms.READINGS, paper))
        assert left_out == {"contrast-none"}
        default = settings(Path(), Path(), fit={})
        assert set(ablate.distinct(arms.READINGS, default)) == set(arms.READINGS)


class TestFigures:
    RUNS = tuple(
        run(arm, seed, fold, separation=s)
        for arm, s in (("ca+sa", 0.2), ("dca+mssa", 1.5))
        for seed in (0, 1)
        for fold in (0, 1)
    )

    def entries(self) -> dict[str, dict]:
        chosen = {n: arms.TABLE_2[n] for n in ("ca+sa", "dca+mssa")}
        found = tables.rows(chosen, self.RUNS, published.TABLE_2, reference="ca+sa", rounds=300)
        return {e["arm"]: e for e in found}

    def test_a_figure_is_the_mean_over_seeds_and_folds(self):
        entry = self.entries()["dca+mssa"]
        expected = np.mean(
            [
                metrics.auc(r.untrimmed.fake, r.untrimmed.p_fake)
                for r in self.RUNS
                if r.arm == "dca+mssa"
            ]
        )
        figure = entry["metrics"]["auc"]
        assert figure["value"] == pytest.approx(expected, abs=1e-6)
        assert figure["low"] < figure["value"] < figure["high"]
        assert (entry["seeds"], entry["folds"]) == (2, 2)
        assert (entry["identities"], entry["clips"]) == (16, 128)

    def test_the_gain_is_paired_and_its_interval_clear_of_nothing_here(self):
        entries = self.entries()
        gain = entries["dca+mssa"]["metrics"]["gain"]
        values = [
            entries[n]["metrics"]["balanced_accuracy"]["value"] for n in ("dca+mssa", "ca+sa")
        ]
        assert gain["value"] == pytest.approx(values[0] - values[1], abs=1e-6)
        assert gain["low"] > 0
        assert "gain" not in entries["ca+sa"]["metrics"]

    def test_an_arm_gains_nothing_over_itself(self):
        again = [dataclasses.replace(r, arm="dca+sa") for r in self.RUNS if r.arm == "ca+sa"]
        chosen = {n: arms.TABLE_2[n] for n in ("ca+sa", "dca+sa")}
        found = tables.rows(chosen, [*self.RUNS, *again], {}, reference="ca+sa", rounds=50)
        assert found[1]["metrics"]["gain"] == {"value": 0.0, "low": 0.0, "high": 0.0}

    def test_the_papers_figure_stands_beside_ours_and_quoted_rows_have_none(self, tmp_path: Path):
        entries = list(self.entries().values())
        tables.write(tmp_path / "t", entries, title="T", about="", reference="CA+SA")
        text = (tmp_path / "t.md").read_text()
        row = next(line for line in text.splitlines() if line.startswith("| DCA+MSSA"))
        assert "| 98.75 |" in row
        assert "| 98.83 |" in row
        assert "| 16 |" in row
        quoted = next(line for line in text.splitlines() if line.startswith("| DCA+SA"))
        assert "| 98.00 | - |" in quoted
        assert "quoted only" in quoted
        assert (
            (tmp_path / "t.csv").read_text().splitlines()[0].startswith("model,paper ACC,our ACC")
        )


@pytest.mark.thorough
class TestRuns:
    def job(self, noise: Path, output: Path, arm: str = "dca+sa", **changes) -> Job:
        return Job(arms.TABLE_2[arm], 0, 0, settings(noise, output, **changes))

    @pytest.fixture
    def whole(self, noise: Path, finished: Path) -> Job:
        """A run that is done."""
        return self.job(noise, finished)

    def test_a_killed_run_goes_on_to_the_same_scores(
        self, noise: Path, whole: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        broken = self.job(noise, tmp_path / "broken")
        step = Trainer.train_step

        def stop(trainer: Trainer, batch: Batch) -> dict[str, float]:
            if trainer.progress.step == 3:
                raise KeyboardInterrupt
            return step(trainer, batch)

        monkeypatch.setattr(Trainer, "train_step", stop)
        with pytest.raises(KeyboardInterrupt):
            ablate.run(broken)
        assert not ablate.check(broken)
        monkeypatch.setattr(Trainer, "train_step", step)
        ablate.run(broken)
        for name in ("scores.csv", "scores-trimmed.csv"):
            assert (whole.folder / name).read_text() == (broken.folder / name).read_text()

    def test_a_finished_run_is_not_repeated(self, whole: Job, monkeypatch: pytest.MonkeyPatch):
        assert ablate.check(whole)
        monkeypatch.setattr(ablate, "_train_and_score", lambda job: pytest.fail("trained again"))
        assert ablate.run(whole) == 0

    def test_a_folder_of_other_options_is_refused(self, noise: Path, whole: Job):
        other = self.job(noise, whole.settings.output, fit={**FIT, "lr": 0.1})
        with pytest.raises(UsageError, match="other options"):
            ablate.check(other)

    def test_scores_are_of_the_test_clips_with_and_without_silence(self, noise: Path, whole: Job):
        read = ablate.read(whole)
        test = PreparedSet(noise).select("test")
        assert read.untrimmed.file.tolist() == [c.file for c in test]
        assert read.trimmed is not None
        assert (read.trimmed.p_fake != read.untrimmed.p_fake).any()
        assert read.parameters == parameter_count(MSCT(whole.model_config()))


class TestCommand:
    def test_nothing_asked_for_is_one_line_and_exit_2(self, noise: Path, capsys):
        assert ablate.main(["--data", str(noise)]) == 2
        err = capsys.readouterr().err
        assert "--table 2" in err
        assert err.count("\n") == 1

    def test_an_unknown_arm_is_one_line_and_exit_2(self, noise: Path, capsys):
        assert ablate.main(["--data", str(noise), "--table", "2", "--arms", "xca"]) == 2
        assert "xca" in capsys.readouterr().err

    def test_a_folder_that_is_no_set_is_one_line_and_exit_2(self, tmp_path: Path, capsys):
        words = ["--data", str(tmp_path), "--table", "2", "--miniature"]
        assert ablate.main([*words, "--output", str(tmp_path / "out")]) == 2
        assert "trainer.prepare" in capsys.readouterr().err

    @pytest.mark.thorough
    def test_a_table_becomes_files_and_no_run_is_repeated(
        self, noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
    ):
        """All arms, the baselines and the figure are in test_reproduction.py."""
        use_small_miniature(monkeypatch, noise, tmp_path)
        words = ["--miniature", "--table", "2", "--arms", "ca+sa", "dca+mssa", "--seeds", "0"]
        words += ["--data", str(noise), "--output", str(tmp_path)]
        assert ablate.main(words) == 0
        rows = json.loads((tmp_path / "table2.json").read_text())["rows"]
        assert [r["arm"] for r in rows] == ["ca+sa", "dca+mssa"]
        assert all(r["identities"] == 1 and r["metrics"]["accuracy"]["value"] for r in rows)
        assert "miniature" in (tmp_path / "table2.md").read_text()
        before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*/*/scores.csv")}
        assert len(before) == 2
        monkeypatch.setattr(ablate, "_train_and_score", lambda job: pytest.fail("trained again"))
        assert ablate.main(words) == 0
        assert "98.83" in capsys.readouterr().out


def use_small_miniature(monkeypatch: pytest.MonkeyPatch, data: Path, output: Path) -> None:
    """A miniature of the miniature, in this process."""
    small = settings(data, output)
    values = {k: getattr(small, k) for k in ("preset", "model", "fit", "baseline")}
    monkeypatch.setattr(arms, "MINIATURE", values)
    monkeypatch.setattr(ablate, "over_processes", in_this_process)


def in_this_process(function, items, **options):
    """What :func:`trainer.data.parallel.over_processes` gives, without starting processes."""
    return [(item, function(*arguments)) for item, arguments in items]
