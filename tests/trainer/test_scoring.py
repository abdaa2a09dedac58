# SPDX-License-Identifier: Apache-2.0
"""Clip scores: how windows become one score, and that a table survives its file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra: pip install '.[train]'")

import torch

from runtime.errors import UsageError
from runtime.spec import Calibration, StreamSpec
from tests.trainer.prepared import write_noise_set
from tests.trainer.test_fit import MODEL
from trainer.data.prepared import PreparedSet
from trainer.model.msct import MSCT
from trainer.scoring.clips import ClipScores, score_clips, window_starts
from trainer.scoring.windows import TorchPair

STREAM = StreamSpec(window_tokens=30)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noise")
    splits = {"a": "train", "b": "test"}
    return write_noise_set(folder, splits=splits, clips=1, tokens=50, crop_px=32, silence_tokens=4)


@pytest.fixture(scope="module")
def model() -> MSCT:
    torch.manual_seed(0)
    return MSCT(MODEL).eval()


@pytest.mark.parametrize("length", [1, 29, 30, 31, 44, 45, 75, 200])
def test_windows_leave_no_token_out(length: int):
    starts = window_starts(length, 30)
    seen = {t for s in starts for t in range(s, min(s + 30, length))}
    assert seen == set(range(length))
    assert starts[-1] == max(0, length - 30)


def test_a_clip_is_the_sigmoid_of_the_mean_over_its_windows(noise: Path, model: MSCT):
    clip = PreparedSet(noise).select("test")[0]
    scores = score_clips(TorchPair(model), [clip], STREAM)
    assert scores.windows.tolist() == [3]  # at 0, 15 and 20
    differences, embeddings = [], []
    with torch.inference_mode():
        for start in (0, 15, 20):
            crops = torch.from_numpy(clip.crops[None, start : start + 30])
            out = model(crops, torch.from_numpy(clip.tokens[None, start : start + 30]))
            differences.append(float(out.logits_av[0, 1] - out.logits_av[0, 0]))
            embeddings.append(out.embedding[0].numpy())
    expected = 1 / (1 + np.exp(-np.mean(differences)))
    assert scores.p_fake[0] == pytest.approx(expected, abs=1e-6)
    assert scores.embedding is not None
    np.testing.assert_allclose(scores.embedding[0], np.mean(embeddings, 0), atol=1e-5)


def test_calibration_scales_the_logit_and_its_domain_is_counted(noise: Path, model: MSCT):
    clips = PreparedSet(noise).select("test")
    plain = score_clips(TorchPair(model), clips, STREAM)
    calibration = Calibration(temperature_av=2.0, bias_av=0.5, min_clarity=3.0)
    shifted = score_clips(TorchPair(model), clips, STREAM, calibration)

    def logit(p: np.ndarray) -> np.ndarray:
        return np.log(p / (1 - p))

    np.testing.assert_allclose(logit(shifted.p_fake), logit(plain.p_fake) / 2 + 0.5, atol=1e-6)
    assert plain.judged.tolist() == plain.windows.tolist()
    assert shifted.judged.tolist() == [0] * len(clips)  # no clarity is above 2


def test_a_clip_shorter_than_a_window_is_one_window(noise: Path, model: MSCT):
    clip = PreparedSet(noise, trimmed=True).select("test")[0]
    scores = score_clips(TorchPair(model), [clip], StreamSpec(window_tokens=60))
    assert scores.windows.tolist() == [1]
    assert 0 < scores.p_fake[0] < 1


def test_a_table_survives_its_file(noise: Path, model: MSCT, tmp_path: Path):
    clips = [dataclasses.replace(c, groups={"race": "x, y"}) for c in PreparedSet(noise).clips]
    scores = score_clips(TorchPair(model), clips, STREAM)
    scores.p_fake_video[0] = np.nan
    scores.write(tmp_path / "scores.csv")
    again = ClipScores.read(tmp_path / "scores.csv")
    for name, value in vars(scores).items():
        if name == "groups":
            assert {k: v.tolist() for k, v in value.items()} == {"race": ["x, y"] * len(clips)}
        else:
            np.testing.assert_array_equal(getattr(again, name), value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scores.csv", "scores.npz"]


def test_another_file_is_one_line(tmp_path: Path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="no table of clip scores"):
        ClipScores.read(tmp_path / "x.csv")
