# SPDX-License-Identifier: Apache-2.0
"""Training: what it draws, that it learns, that a stop changes nothing, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra: pip install '.[train]'")

import torch

from runtime.errors import MediaError, ModelError, UsageError
from tests.trainer.prepared import write_noise_set
from trainer.config import preset
from trainer.data.prepared import REAL_PAIR, PreparedSet, Sampler
from trainer.fit import FitConfig, Options, Trainer, _config, _parser, main, train
from trainer.loop import state
from trainer.loop.batches import Batches, EpochSampler
from trainer.loop.schedule import Progress, learning_rate
from trainer.model.checkpoint import load_checkpoint, save_checkpoint
from trainer.recipes import RECIPES

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
    @pytest.mark.thorough
    def test_a_stop_and_a_resume_give_the_weights_of_an_unbroken_run(
        self, noise: Path, tmp_path: Path
    ):
        """In fp16 too, whose loss scale is part of the state, and where no average is kept."""
        config = dataclasses.replace(
            CONFIG, precision="fp16", ema=0.0, schedule="plateau", accumulate=2
        )
        whole = Trainer(config, MODEL, PreparedSet(noise), tmp_path / "whole")
        whole.run()
        first = Trainer(config, MODEL, PreparedSet(noise), tmp_path / "broken")
        for _ in range(3):
            first.train_step()
        first.save_state()
        second = Trainer(config, MODEL, PreparedSet(noise), tmp_path / "broken")
        second.resume()
        assert second.progress.step == 3
        assert second.scaler.get_scale() == first.scaler.get_scale() > 0
        second.run()
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, second.model.state_dict()[name]), name

    @pytest.mark.thorough
    def test_traces_in_the_noise_are_learnt_and_the_run_says_so(self, noise: Path, tmp_path: Path):
        config = dataclasses.replace(
            CONFIG, align_steps=0, joint_steps=90, batch=8, lr=3e-3, validate_every=30
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
        starts = json.loads((tmp_path / "run" / "environment.json").read_text())["starts"]
        assert [s["from_step"] for s in starts] == [0]
        assert starts[0]["packages"]["torch"] == torch.__version__
        assert starts[0]["precision"] == "float32"

    def test_a_state_of_other_options_is_not_resumed(self, noise: Path, tmp_path: Path):
        first = Trainer(CONFIG, MODEL, PreparedSet(noise), tmp_path)
        first.train_step()
        first.save_state()
        other = dataclasses.replace(CONFIG, lr=1e-4)
        with pytest.raises(UsageError, match=r"lr 0\.001 there, 0\.0001 here"):
            Trainer(other, MODEL, PreparedSet(noise), tmp_path).resume()
        model = dataclasses.replace(MODEL, blocks=2)
        with pytest.raises(UsageError, match="blocks 1 there, 2 here"):
            Trainer(CONFIG, model, PreparedSet(noise), tmp_path).resume()
        longer = write_noise_set(tmp_path / "b", splits=SPLITS, tokens=46, crop_px=32)
        with pytest.raises(UsageError, match="another set"):
            train(CONFIG, MODEL, PreparedSet(longer), tmp_path)

    @pytest.mark.thorough
    def test_early_stopping_and_the_log_say_when(self, noise: Path, tmp_path: Path):
        config = dataclasses.replace(
            CONFIG, align_steps=0, joint_steps=40, lr=1e-9, validate_every=2, patience=2,
            frozen_norm=True,
        )  # fmt: skip
        result = train(config, MODEL, PreparedSet(noise), tmp_path, resume=False)
        rows = [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines()]
        validations = [r["step"] for r in rows if "validation" in r]
        assert validations == [2, 4, 6]  # nothing moves: the first is the best, two wait
        assert max(r["step"] for r in rows) == 6
        assert result["step"] == 2
        again = train(config, MODEL, PreparedSet(noise), tmp_path, resume=True)
        assert again == result  # a run that is over is not gone on with

    @pytest.mark.thorough
    def test_the_last_step_is_kept_where_validation_is_not_to_choose(
        self, noise: Path, tmp_path: Path
    ):
        with pytest.raises(UsageError, match="patience 0"):
            dataclasses.replace(CONFIG, select="last", patience=2)
        config = dataclasses.replace(
            CONFIG, align_steps=0, joint_steps=6, lr=1e-9, validate_every=2,
            patience=0, select="last",
        )  # fmt: skip
        result = train(config, MODEL, PreparedSet(noise), tmp_path, resume=False)
        assert result["step"] == 6  # the first was as good

    @pytest.mark.thorough
    def test_fine_tuning_goes_on_from_a_checkpoint_of_the_same_model(
        self, noise: Path, tmp_path: Path
    ):
        first = Trainer(CONFIG, MODEL, PreparedSet(noise), tmp_path / "a")
        save_checkpoint(tmp_path / "init.safetensors", first.model, MODEL, None)
        values = {"batch": 4, "window_tokens": 30, "threads": 1, "joint_steps": 2, "lr": 1e-12}
        config = FitConfig(recipe="finetune", **values)
        assert config.align_steps == 0
        second = Trainer(
            dataclasses.replace(config, seed=7), MODEL, PreparedSet(noise), tmp_path / "b"
        )
        second.start_from(tmp_path / "init.safetensors")
        second.run()
        for name, value in first.model.state_dict().items():  # statistics as well: frozen
            torch.testing.assert_close(value, second.model.state_dict()[name], atol=1e-6, rtol=0)
        (tmp_path / "b" / "state.safetensors").unlink()  # as after a kill before the first save
        init = tmp_path / "init.safetensors"
        again = dataclasses.replace(config, seed=7)
        with pytest.raises(UsageError, match="same --init"):
            train(again, MODEL, PreparedSet(noise), tmp_path / "b", resume=True)
        before = json.loads((tmp_path / "b" / "metrics.json").read_text())
        assert train(again, MODEL, PreparedSet(noise), tmp_path / "b", init=init) == before
        other = Trainer(
            config, dataclasses.replace(MODEL, blocks=2), PreparedSet(noise), tmp_path / "c"
        )
        with pytest.raises(ModelError, match="blocks 1 instead of 2"):
            other.start_from(tmp_path / "init.safetensors")

    def test_a_gradient_that_is_not_finite_is_one_line(self, noise: Path, tmp_path: Path):
        config = dataclasses.replace(CONFIG, align_steps=0)
        trainer = Trainer(config, MODEL, PreparedSet(noise), tmp_path)
        with torch.no_grad():
            next(trainer.model.fusion.parameters()).fill_(math.nan)
        with pytest.raises(ModelError, match=r"not finite at step 0.*--lr"):
            trainer.train_step()

    def test_sets_that_do_not_fit_are_refused_before_anything_is_written(self, tmp_path: Path):
        untrained = write_noise_set(tmp_path / "a", splits={"c": "val"}, tokens=45, crop_px=32)
        with pytest.raises(UsageError, match=r"no training clips .* 'given'"):
            train(CONFIG, MODEL, PreparedSet(untrained), tmp_path / "run")
        unseen = write_noise_set(tmp_path / "b", splits={"a": "train"}, tokens=45, crop_px=32)
        plateau = dataclasses.replace(CONFIG, schedule="plateau")
        with pytest.raises(UsageError, match="no clip validates"):
            train(plateau, MODEL, PreparedSet(unseen), tmp_path / "run")
        short = write_noise_set(tmp_path / "c", splits=SPLITS, tokens=25, crop_px=32)
        with pytest.raises(UsageError, match="as long as a window of 30"):
            train(CONFIG, MODEL, PreparedSet(short), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_folder_without_the_run_is_not_resumed(self, noise: Path, tmp_path: Path):
        with pytest.raises(UsageError, match="no run to resume"):
            train(CONFIG, MODEL, PreparedSet(noise), tmp_path, resume=True)
        (tmp_path / "state.safetensors").write_bytes(b"half of a")
        with pytest.raises(ModelError, match="cannot be read"):
            train(CONFIG, MODEL, PreparedSet(noise), tmp_path, resume=True)

    def test_threads_make_the_same_batches(self, noise: Path):
        draw = sampler(noise, augment=True)
        part = range(2, 6)
        with_threads = Batches(draw, part, align_steps=1, workers=3)
        got = list(with_threads.between(0, 4))
        with_threads.close()
        want = list(Batches(draw, part, align_steps=1, workers=0).between(0, 4))
        assert len(got) == len(want) == 4
        for one, two in zip(got, want, strict=True):
            for name, value in vars(one).items():
                assert np.array_equal(value, getattr(two, name)), name
        assert not got[0].fake.any()  # the first stage has genuine clips alone
        assert got[1].fake.any()


@pytest.fixture(scope="module")
def outcomes(noise: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of each run of ``fit_process.py``."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    script = Path(__file__).with_name("fit_process.py")
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, script, noise, folder], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {r.pop("name"): r for r in rows}


@pytest.mark.thorough
@pytest.mark.timeout(1000)  # fifteen runs: of the first test, which makes them
class TestKilled:
    @pytest.mark.parametrize(
        "moment",
        [
            "before the first state",
            "between two states",
            "in the first save",
            "in the second save",
            "while the best weights are saved",
            "after the last step",
        ],
    )
    def test_a_kill_and_a_rerun_give_the_run_that_was_not_killed(
        self, outcomes: dict[str, Any], moment: str
    ):
        whole, broken = outcomes["whole"], outcomes[moment]
        assert whole["status"] == [0, ""]
        assert broken["first"][0] == 9  # SIGKILL
        assert broken["again"] == [0, ""]
        assert broken["last"] == whole["last"]  # weights, average, optimizer, to the bit
        assert broken["metrics"] == whole["metrics"]  # with the hash of the weights that ship
        assert broken["log"] == whole["log"]
        assert not [f for f in broken["files"] if f.startswith(".")]

    def test_a_full_disk_is_one_line_and_costs_no_more_than_the_last_steps(
        self, outcomes: dict[str, Any]
    ):
        full, whole = outcomes["full disk"], outcomes["whole"]
        status, message = full["first"]
        assert status == 256  # exit code 1
        assert message.startswith("UserError: cannot write")
        assert "is intact" in message
        assert "\n" not in message
        assert "state.safetensors" in full["files"]
        assert not [f for f in full["files"] if f.startswith(".")]
        assert full["again"] == [0, ""]
        assert full["last"] == whole["last"]


class TestRecipes:
    def test_what_is_not_given_is_the_recipes(self):
        paper = FitConfig(recipe="paper")
        assert dataclasses.asdict(paper) == {"recipe": "paper", **RECIPES["paper"]}
        # a value that equals another recipe's is a given value all the same
        assert FitConfig(recipe="paper", contrast_weight=0.5).contrast_weight == 0.5
        assert FitConfig().contrast_weight == 0.5
        assert FitConfig(contrast_weight=0.0).contrast_weight == 0.0

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"recipe": "best"}, "unknown recipe"),
            ({"batch": 0}, "at least 1"),
            ({"batch": 9, "accumulate": 2}, "equal parts"),
            ({"optimizer": "lion"}, "not one of adamw, adam"),
            ({"epochs": 3}, "sampling 'epoch'"),
            ({"recipe": "paper", "remix": 0.1}, "remix 0"),
            ({"joint_steps": -1}, "negative"),
            ({"lr": 0.0}, "above 0"),
        ],
    )
    def test_contradictions_are_refused(self, values: dict[str, Any], message: str):
        with pytest.raises(UsageError, match=message):
            FitConfig(**values)

    def test_the_paper_and_nothing_else(self, noise: Path, tmp_path: Path):
        """Adam; four losses, FakeAVCeleb's labels; no average, no contrast; every clip once an
        epoch, in random crops."""
        config = FitConfig(
            recipe="paper", preset="msct-tiny", epochs=3, batch=8, window_tokens=30, threads=1
        )
        model = dataclasses.replace(MODEL, inject_alignment=False, inject_lags=0, lag_evidence=0)
        trainer = Trainer(config, model, PreparedSet(noise), tmp_path)
        assert type(trainer.optimizer) is torch.optim.Adam
        settings = trainer.optimizer.param_groups[0]
        assert (settings["betas"], settings["weight_decay"]) == ((0.5, 0.9), 1e-4)
        assert trainer.steps == 6  # 16 clips, 3 times, by 8
        assert trainer.average is trainer.model
        batch = trainer.batches.of(0)
        assert batch.crops.shape == (8, 30, 29, 29, 3)  # 100 of 112
        assert batch.has_audio.all()
        assert batch.has_video.all()
        assert not batch.lag_tokens.any()
        heads = {k: v.clone() for k, v in trainer.model.fusion.align_visual.state_dict().items()}
        terms = trainer.train_step(batch)
        assert set(terms) == {"loss", "lr", "ce_audio", "ce_visual", "ce_both", "alignment"}
        assert terms["loss"] == pytest.approx(
            sum(terms[k] for k in terms if k not in ("loss", "lr")), rel=1e-5
        )
        for name, value in trainer.model.fusion.align_visual.state_dict().items():
            assert torch.equal(value, heads[name]), name
        result = train(config, MODEL, PreparedSet(noise), tmp_path / "run")
        rows = [json.loads(x) for x in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
        assert [r["step"] for r in rows if "validation" in r] == [2, 4, 6]
        assert result["validation"]["windows"] > 0

    def test_the_audio_head_learns_the_label_of_the_recipe(self, tmp_path: Path):
        """A replaced voice is genuine to who hears it alone, and fake to FakeAVCeleb."""
        folder = write_noise_set(tmp_path, splits=SPLITS, tokens=45, crop_px=32)
        seen = {}
        for recipe in ("default", "paper"):
            values: dict[str, Any] = {"batch": 16, "window_tokens": 30, "threads": 1}
            if recipe == "default":
                values |= {"align_steps": 0, "joint_steps": 1, "remix": 0.0}
            config = FitConfig(recipe=recipe, **values)
            trainer = Trainer(config, MODEL, PreparedSet(folder), tmp_path / recipe)
            batch = trainer.batches.of(0)
            seen[recipe] = int(getattr(batch, config.audio_label).sum())
        assert seen == {"default": 4, "paper": 8}

    def test_an_epoch_has_every_clip_once(self, noise: Path):
        clips = PreparedSet(noise).select("train")
        draw = EpochSampler(clips, window_tokens=30, batch=6, seed=0, crops=False, keep_size=False)
        rows = [draw.row(step, i) for step in range(8) for i in range(6)]  # 48 = 3 * 16
        which = []
        for row in rows:
            which.append(
                next(
                    n
                    for n, c in enumerate(clips)
                    if any(np.array_equal(row[0][0], crop) for crop in c.crops)
                )
            )
        for epoch in range(3):
            assert sorted(which[16 * epoch : 16 * epoch + 16]) == list(range(16))
        assert which[:16] != which[16:32]
        again = draw.row(3, 2)
        assert all(np.array_equal(a, b) for a, b in zip(again, rows[20], strict=True))

    def test_sound_and_picture_of_an_epochs_window_are_of_one_moment(self, noise: Path):
        clips = PreparedSet(noise).select("train")
        draw = EpochSampler(clips, window_tokens=30, batch=4, seed=1, crops=False, keep_size=False)
        starts = set()
        for i in range(12):
            row = draw.row(0, i)
            clip = next(c for c in clips if any(np.array_equal(row[0][0], x) for x in c.crops))
            at = next(t for t, x in enumerate(clip.crops) if np.array_equal(row[0][0], x))
            assert np.array_equal(row[1], clip.tokens[at : at + 30])
            starts.add(at)
        assert len(starts) > 3


class TestSchedule:
    def test_warm_up_and_cosine_in_each_stage(self):
        config = FitConfig(align_steps=100, joint_steps=200, warmup=10, lr=1.0)
        rates = [learning_rate(config, Progress(step=s), 100, 200) for s in range(300)]
        assert rates[0] == pytest.approx(0.1)
        assert rates[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.09)))
        assert rates[50] == pytest.approx(0.5)
        assert rates[99] < 0.001
        assert rates[100] == pytest.approx(0.1)
        assert rates[200] == pytest.approx(0.5)

    def test_plateau_halves_after_the_fourth_validation_without_a_lower_loss(self):
        config = FitConfig(recipe="paper")
        progress = Progress()
        rates = []
        for loss in (1.0, 0.9, 0.95, 0.9, 0.92, 0.91, 0.95, 0.96, 0.97, 0.98, 0.5):
            progress = Progress.from_dict(json.loads(json.dumps(progress.to_dict())))
            progress.validated(config, 0.5, loss)
            rates.append(learning_rate(config, progress, 0, 1000) / config.lr)
        assert rates == [1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]
        assert not progress.stopped  # the paper trains to the end
        # what torch's own scheduler does with these losses
        other = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        torch_plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            other, factor=0.5, patience=3, threshold=0.0
        )
        theirs = []
        for loss in (1.0, 0.9, 0.95, 0.9, 0.92, 0.91, 0.95, 0.96, 0.97, 0.98, 0.5):
            torch_plateau.step(loss)
            theirs.append(other.param_groups[0]["lr"])
        assert rates == theirs


class TestState:
    def test_rows_of_steps_that_are_done_again_leave_the_log(self, tmp_path: Path):
        rows = [{"step": s, "loss": 0.5} for s in range(1, 6)]
        text = "".join(json.dumps(r) + "\n" for r in rows)
        (tmp_path / "log.jsonl").write_text(text + '{"step": 3, "lo')  # a kill in a line
        log = state.Log(tmp_path, 3, tensorboard=False)
        log.row({"step": 4, "loss": 0.25})
        log.close()
        kept = [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert kept == [*rows[:3], {"step": 4, "loss": 0.25}]

    def test_tensorboard_is_an_extra_and_its_lack_one_line(
        self, noise: Path, tmp_path: Path, monkeypatch, capsys
    ):
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        assert main(["--data", str(noise), "--output", str(tmp_path), "--tensorboard"]) == 1
        err = capsys.readouterr().err
        assert "pip install '.[tensorboard]'" in err
        assert err.count("\n") == 1

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_tensorboard_gets_the_losses(self, noise: Path, tmp_path: Path):
        pytest.importorskip("tensorboard", reason="needs pip install '.[tensorboard]'")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        options = Options(tensorboard=True)
        train(CONFIG, MODEL, PreparedSet(noise), tmp_path, options=options)
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        tags = set(events.Tags()["scalars"])
        assert tags >= {"align/loss", "joint/ce_both", "joint/lr", "validation/score"}
        assert [e.step for e in events.Scalars("joint/loss")] == [3, 4, 5, 6]


class TestCommand:
    @pytest.mark.parametrize(
        ("splits", "words"),
        [
            ({"a": "train"}, "one person trains and nobody is left to validate or test on"),
            ({"a": "train", "b": "train"}, "2 people train and nobody is left"),
            ({"a": "train", "b": "test"}, "nobody validates: the weights of the last step"),
            ({"a": "train", "b": "val"}, "nobody tests: the only scores"),
        ],
    )
    def test_who_is_missing_is_said_once_in_plain_words(
        self, tmp_path: Path, capsys, splits: dict[str, str], words: str
    ):
        folder = write_noise_set(tmp_path / "set", splits=splits, tokens=35)
        options = "--align-steps 0 --joint-steps 2 --batch 4 --window-tokens 30 --threads 1"
        arguments = ["--data", str(folder), "--output", str(tmp_path / "run"), *options.split()]
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert out.count(words) == 1
        for part in ("val", "test"):
            name = {"val": "validation"}.get(part, part)
            assert (f"{name}: " in out) == (part in splits.values())
        assert "skipped" not in out
        metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
        assert metrics["identities"] == {
            s: list(splits.values()).count(s) for s in ("train", "val", "test")
        }

    @pytest.mark.thorough
    def test_a_stop_before_the_run_began_is_resumed(self, tmp_path: Path, monkeypatch):
        """Clips were being forged: what is there is gone on with, and there is no run yet."""
        made = []

        def forge_and_prepare(genuine: Path, folder: Path, **options: Any) -> None:
            made.append(write_noise_set(folder / "prepared", splits=SPLITS, tokens=35))

        monkeypatch.setattr("trainer.fit._forge_and_prepare", forge_and_prepare)
        options = "--align-steps 0 --joint-steps 2 --batch 4 --window-tokens 30 --threads 1"
        command = ["--genuine", str(tmp_path), "--output", str(tmp_path / "run"), *options.split()]
        assert main([*command, "--resume"]) == 0
        assert main(command) == 2  # a run that is there is never begun anew
        assert main([*command, "--resume"]) == 0
        assert len(made) == 3

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

    @pytest.mark.thorough
    def test_the_recipe_and_its_overrides_reach_the_run(self, tmp_path: Path, capsys):
        folder = write_noise_set(tmp_path / "set", splits=SPLITS, tokens=35)
        options = "--recipe paper --preset msct-tiny --epochs 1 --batch 8 --window-tokens 30"
        arguments = ["--data", str(folder), "--output", str(tmp_path / "run"), "--threads", "1"]
        assert main([*arguments, *options.split(), "--no-trimmed", "--lr", "0.01"]) == 0
        config = json.loads((tmp_path / "run" / "config.json").read_text())["fit"]
        assert (config["recipe"], config["lr"], config["ema"]) == ("paper", 0.01, 0.0)
        assert "checkpoint:" in capsys.readouterr().out

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
    def test_a_gpu_that_is_not_there_is_one_line_and_exit_2(self, capsys, noise: Path):
        assert main(["--data", str(noise), "--device", "cuda", "--preset", "msct-tiny"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1

    def test_own_clips_and_a_checkpoint_are_fine_tuning(self):
        arguments = ["--genuine", "clips", "--init", "a.safetensors"]
        assert _config(_parser().parse_args(arguments)).recipe == "finetune"
        assert _config(_parser().parse_args([*arguments, "--recipe", "default"])).lr == 1e-3
        assert _config(_parser().parse_args(arguments[:2])).recipe == "default"
        assert _config(_parser().parse_args([])).joint_steps == 20  # the miniature

    def test_a_checkpoint_of_another_model_is_one_line_and_exit_1(self, capsys, tmp_path: Path):
        folder = write_noise_set(tmp_path / "set", splits=SPLITS, tokens=55)
        other = Trainer(
            CONFIG,
            dataclasses.replace(MODEL, crop_px=64),
            PreparedSet(folder),
            tmp_path / "x",
        ).model
        save_checkpoint(tmp_path / "init.safetensors", other, other.cfg, None)
        arguments = ["--data", str(folder), "--output", str(tmp_path / "run")]
        assert main([*arguments, "--init", str(tmp_path / "init.safetensors")]) == 1
        err = capsys.readouterr().err
        assert "another configuration" in err
        assert err.count("\n") == 1
