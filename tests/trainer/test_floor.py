# SPDX-License-Identifier: Apache-2.0
"""The floor beside a model: same clips, same draws, nothing it was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra: pip install '.[train]'")

from runtime.errors import UsageError
from tests.trainer.prepared import write_noise_set
from trainer.data.prepared import PreparedSet
from trainer.probe import DESCRIPTOR, LOG_MEL, TOGETHER, Features, baseline_scores, probe
from trainer.report.floor import FLOORS, floors
from trainer.report.page import write_report
from trainer.scoring import metrics
from trainer.scoring.clips import ClipRow, ClipScores

SPLITS = {"a": "train", "b": "train", "c": "test", "d": "test", "e": "test"}


@pytest.fixture
def data(tmp_path: Path) -> PreparedSet:
    return PreparedSet(write_noise_set(tmp_path / "set", splits=SPLITS, clips=3))


def features(data: PreparedSet) -> Features:
    """The spectrum leaks the label, the descriptor does not."""
    rows = json.loads((data.folder / "index.json").read_text())["clips"]
    rng = np.random.default_rng(0)
    fake = np.array([r["category"] != "RealVideo-RealAudio" for r in rows], float)
    return Features(
        rows,
        {
            LOG_MEL: rng.normal(0, 1, (len(rows), 2)) + 6 * fake[:, None],
            DESCRIPTOR: rng.normal(0, 1, (len(rows), 3)),
        },
    )


def scored(data: PreparedSet, split: str = "test", *, right: bool = True) -> ClipScores:
    clips = data.select(split)
    rows = []
    for clip in clips:
        fake = clip.fake_video or clip.fake_audio
        p = 0.9 if fake == right else 0.1
        rows.append(ClipRow(p, p, p, 1, 1, None))
    return ClipScores.of(clips, rows)


def test_a_floor_is_the_auc_of_its_regression_and_the_gain_is_the_rest(data: PreparedSet):
    made, scores = features(data), scored(data)
    found = floors(scores, data, made, rounds=50)
    assert list(found) == list(FLOORS)
    train = [c.file for c in data.select("train")]
    for name, entry in found.items():
        p = baseline_scores(made, train, scores.file.tolist(), name)
        expected = metrics.auc(scores.fake, np.array([p[f] for f in scores.file]))
        assert entry["auc"]["value"] == pytest.approx(expected, abs=1e-6)
        assert entry["gain"]["value"] == pytest.approx(1 - expected, abs=1e-6)
    assert found[LOG_MEL]["auc"]["value"] > 0.99
    assert found[TOGETHER]["auc"]["value"] > 0.99
    assert found[DESCRIPTOR]["auc"]["value"] < 0.9


def test_draws_are_paired(data: PreparedSet):
    """A model that ranks as the floor does gains nothing in any draw."""
    made, scores = features(data), scored(data)
    train = [c.file for c in data.select("train")]
    p = baseline_scores(made, train, scores.file.tolist(), DESCRIPTOR)
    scores.p_fake = np.array([p[f] for f in scores.file])
    gain = floors(scores, data, made, rounds=50)[DESCRIPTOR]["gain"]
    assert gain == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_a_model_below_the_floor_has_a_gain_below_zero(data: PreparedSet):
    found = floors(scored(data, right=False), data, features(data), rounds=50)
    assert found[LOG_MEL]["gain"]["high"] < 0


def test_training_clips_are_no_test(data: PreparedSet):
    with pytest.raises(UsageError, match="24 of the scored clips are training clips"):
        floors(scored(data, "train"), data, features(data), rounds=5)


@pytest.mark.thorough
def test_the_report_shows_it(data: PreparedSet, tmp_path: Path):
    scores = scored(data)
    made = features(data)
    found = {"floors": floors(scores, data, made, rounds=50), "probe": probe(made, rounds=50)}
    result = write_report(
        tmp_path, {"untrimmed": scores}, 0.5, title="t", about={}, rounds=50, **found
    )
    assert {k: result[k] for k in found} == found
    page = (tmp_path / "report.html").read_text()
    assert "What looks for no forgery" in page
    assert page.count("Short cuts left in the set") == 1
    assert "AUC across people" in page
    assert "made from 15 genuine ones of 5 people" in page
    assert page.count("dlib") == 1
    without = write_report(tmp_path, {"untrimmed": scores}, 0.5, title="t", about={}, rounds=5)
    assert not {"floors", "probe"} & set(without)
    page = (tmp_path / "report.html").read_text()
    assert not any(title in page for title in ("What looks for no forgery", "Short cuts"))
