# SPDX-License-Identifier: Apache-2.0
"""Training: what it draws, that it learns, that a stop changes nothing, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra: pip install '.[train]'")

import torch

from runtime.errors import MediaError, UsageError
from tests.trainer.prepared import write_noise_set
from trainer.checkpoint import load_checkpoint
from trainer.config import preset
from trainer.data.prepared import REAL_PAIR, PreparedSet, Sampler
from trainer.fit import FitConfig, Trainer, main

SPLITS = {"a": "train", "b": "train", "c": "val", "d": "test"}
# a model of the same make, small enough for a test
MODEL = preset(
    "msct-tiny",
    channels=32,
    blocks=1,
    align_dim=16,
    crop_px=32,
    backbone={
        "stem_channels": 8,
        "widths": (4, 4, 4, 4),
        "outputs": (16, 16, 16, 16),
        "cbam_reduction": 4,
        "pooling": "mean",
    },
)
CONFIG = FitConfig(
    align_steps=2,
    joint_steps=4,
    batch=4,
    window_tokens=30,
    threads=1,
    validate_every=3,
    save_every=3,
    warmup=1,
)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noise")
    return write_noise_set(folder, splits=SPLITS, tokens=45, crop_px=32)


def sampler(folder: Path, **options) -> Sampler:
    values = {
        "window_tokens": 30,
        "max_lag_tokens": 5,
        "forged_shift_tokens": 10,
        "seed": 0,
        "augment": False,
        "modality_dropout": 0.0,
        **options,
    }
    return Sampler(PreparedSet(folder).select("train"), **values)


class TestWindows:
    def test_categories_come_in_equal_parts(self, noise: Path):
        batch = sampler(noise, remix=0.0).batch(0, 16)
        assert batch.crops.shape == (16, 30, 32, 32, 3)
        assert batch.audio.shape == (16, 30, 104)
        assert batch.fake.sum() == 12
        assert batch.fake_video.sum() == 8
        assert batch.synthetic_voice.sum() == 4  # vocoded; a replaced voice is a genuine one

    def test_a_batch_is_a_function_of_seed_and_step(self, noise: Path):
        draw = sampler(noise, augment=True)
        first, again, other = draw.batch(7, 4), draw.batch(7, 4), draw.batch(8, 4)
        assert np.array_equal(first.crops, again.crops)
        assert np.array_equal(first.audio, again.audio)
        assert not np.array_equal(first.crops, other.crops)

    def test_the_transport_offset_is_the_one_the_label_says(self, noise: Path):
        """Audio token i + lag of the window is the one that belongs to video token i."""
        draw, clips = sampler(noise), PreparedSet(noise).select("train")
        batch = draw.batch(1, 12, genuine_only=True)
        lags = set()
        for crops, audio, lag in zip(batch.crops, batch.audio, batch.lag_tokens, strict=True):
            clip, start = next(
                (c, i)
                for c in clips
                if c.category == REAL_PAIR
                for i in range(len(c.crops) - 29)
                if np.array_equal(c.crops[i : i + 30], crops)
            )
            i = 10
            assert np.array_equal(audio[i + lag], clip.tokens[start + i])
            lags.add(int(lag))
        assert len(lags) > 3
        assert max(abs(v) for v in lags) <= 5

    def test_remixed_windows_never_have_their_own_sound(self, noise: Path):
        draw, clips = sampler(noise, remix=1.0), PreparedSet(noise).select("train")
        tokens = {c.tokens[i].tobytes(): (c.file, i) for c in clips for i in range(len(c.tokens))}
        pictures = {c.crops[i].tobytes(): (c.file, i) for c in clips for i in range(len(c.crops))}
        seen = 0
        for step in range(6):
            batch = draw.batch(step, 8)
            for k in range(8):
                if batch.fake[k] and not batch.fake_video[k]:
                    seen += 1
                    voice, place = tokens[batch.audio[k, 0].tobytes()]
                    face, at = pictures[batch.crops[k, 0].tobytes()]
                    assert voice != face or abs(place - at) >= 10
                    assert not batch.matched[k]
        assert seen == 12

    def test_modality_dropout_never_takes_both(self, noise: Path):
        batch = sampler(noise, modality_dropout=1.0).batch(0, 16)
        assert (batch.has_video ^ batch.has_audio).all()

    def test_held_out_clips_leave_with_everything_forged_from_them(self, tmp_path: Path):
        folder = write_noise_set(tmp_path, splits={"a": "train"}, clips=12, tokens=32, crop_px=32)
        kept, held = PreparedSet(folder).holdout(0.25, seed=0)
        assert len(held) == 12
        assert len(kept) == 36
        assert not {c.clip for c in kept} & {c.clip for c in held}

    def test_clips_shorter_than_a_window_are_refused(self, noise: Path):
        with pytest.raises(MediaError, match="as long as a window"):
            sampler(noise, window_tokens=60)


class TestRun:
    def test_a_stop_and_a_resume_give_the_weights_of_an_unbroken_run(
        self, noise: Path, tmp_path: Path
    ):
        whole = Trainer(CONFIG, MODEL, PreparedSet(noise), tmp_path / "whole")
        whole.run()
        first = Trainer(CONFIG, MODEL, PreparedSet(noise), tmp_path / "broken")
        first.folder.mkdir()
        for _ in range(3):
            first.train_step()
        first.save_state()
        second = Trainer(CONFIG, MODEL, PreparedSet(noise), tmp_path / "broken")
        second.resume()
        second.run()
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, second.model.state_dict()[name]), name
        for name, value in whole.average.state_dict().items():
            assert torch.equal(value, second.average.state_dict()[name]), name

    def test_traces_in_the_noise_are_learnt_and_the_run_says_so(self, noise: Path, tmp_path: Path):
        config = dataclasses.replace(
            CONFIG, align_steps=0, joint_steps=60, batch=8, lr=3e-3, validate_every=20
        )
        result = Trainer(config, MODEL, PreparedSet(noise), tmp_path / "run").run()
        assert result["test"]["identities"] == 1
        assert result["test"]["video_head_auc"] > 0.9
        assert result["test"]["auc"] > 0.8
        written = json.loads((tmp_path / "run" / "metrics.json").read_text())
        assert set(written["test"]["flagged"]) >= {"RealVideo-RealAudio", "FakeVideo-FakeAudio"}
        _, cfg, spec = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")
        assert cfg == MODEL
        assert spec is not None
        assert spec.trained
        assert spec.calibration.false_alarm_rate == config.false_alarm_rate
        assert 0.5 <= spec.calibration.threshold < 1
        assert spec.calibration.min_clarity > 0

    def test_a_state_of_other_options_is_not_resumed(self, noise: Path, tmp_path: Path):
        first = Trainer(CONFIG, MODEL, PreparedSet(noise), tmp_path)
        first.train_step()
        first.save_state()
        other = dataclasses.replace(CONFIG, lr=1e-4)
        with pytest.raises(UsageError, match="other options"):
            Trainer(other, MODEL, PreparedSet(noise), tmp_path).resume()


class TestCommand:
    def test_an_unknown_preset_is_one_line_and_exit_2(self, capsys, noise: Path):
        assert main(["--preset", "huge", "--data", str(noise)]) == 2
        err = capsys.readouterr().err
        assert "msct-tiny" in err
        assert err.count("\n") == 1

    def test_a_folder_that_is_no_set_is_one_line_and_exit_2(self, capsys, tmp_path: Path):
        assert main(["--data", str(tmp_path)]) == 2
        assert "trainer.prepare" in capsys.readouterr().err

    def test_crops_of_another_size_are_refused(self, capsys, noise: Path, tmp_path: Path):
        assert main(["--data", str(noise), "--output", str(tmp_path)]) == 2
        assert "--crop-px 64" in capsys.readouterr().err

    def test_a_finished_run_is_not_overwritten(self, capsys, tmp_path: Path):
        folder = write_noise_set(tmp_path / "set", splits=SPLITS, tokens=55)
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "state.safetensors").touch()
        assert main(["--data", str(folder), "--output", str(tmp_path / "run")]) == 2
        assert "--resume" in capsys.readouterr().err
