# SPDX-License-Identifier: Apache-2.0
"""Baselines: their size against their publications, features and losses against reference numbers,
and that each learns, resumes and scores on a prepared set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra: pip install '.[train]'")

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from runtime.errors import ModelError, UsageError, UserError
from tests.trainer.prepared import write_noise_set
from trainer.data.prepared import PreparedSet
from trainer.loop.state import load_state, save_state
from trainer.paper.baselines import BASELINES, Labels, build, features
from trainer.paper.baselines import fit as fitting
from trainer.paper.baselines.base import parameter_count
from trainer.paper.baselines.fit import BaselineConfig, BaselineTrainer
from trainer.paper.baselines.mds import dissonance_loss
from trainer.paper.baselines.mrdf import margin_contrast
from trainer.paper.baselines.vfd import matching_loss
from trainer.scoring import metrics
from trainer.scoring.calibrate import Platt

SPLITS = {"a": "train", "b": "train", "c": "val", "d": "test"}
LAYER = 12 * 768 * 768 + 13 * 768  # of a transformer: 4 projections, FFN x4, two norms, biases


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noise")
    return write_noise_set(folder, splits=SPLITS, tokens=55, crop_px=32)


def batch(name: str, windows: int = 4) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A miniature and a batch of noise for it."""
    torch.manual_seed(0)
    model = build(name, miniature=True)
    rng = np.random.default_rng(0)
    t = model.window_tokens
    rows = [
        model.inputs(
            rng.integers(0, 256, (t, 32, 32, 3), dtype=np.uint8),
            rng.integers(-3000, 3000, 640 * t).astype(np.int16),
        )
        for _ in range(windows)
    ]
    return model, {k: torch.from_numpy(np.stack([r[k] for r in rows])) for k in rows[0]}


class TestSizes:
    """Built on the meta device: numbers of weights at the published sizes, no weights."""

    def count(self, name: str) -> int:
        with torch.device("meta"):
            return parameter_count(build(name))

    def test_mrdf_ce_has_the_104_million_that_its_code_reports(self):
        assert self.count("mrdf-ce") == 104_431_110

    def test_vfd_is_two_vit_b32(self):
        patches = 3 * 32 * 32 * 768 + 768
        one = patches + 768 + 50 * 768 + 12 * LAYER + 2 * 768
        assert one == 87_455_232  # ViT-B/32 without its classifier
        assert self.count("vfd") == 2 * one

    def test_mds_closes_with_4096_and_1024_on_both_sides(self):
        with torch.device("meta"):
            model = build("mds")
        faces, voice = model.face_closing[0], model.voice_closing[0]
        assert (faces.in_features, faces.out_features) == (256 * 7 * 7, 4096)
        assert (voice.in_features, voice.out_features) == (512 * 21, 4096)
        assert model.face_closing[3].out_features == 1024
        # 2D3D-ResNet18: two flat stages, two deep ones, the last of 256 channels, as published
        flat = 2 * (2 * 9 * 64**2 + 256) + 9 * (64 * 128 + 3 * 128**2) + 64 * 128 + 5 * 256
        deep = 27 * (128 * 256 + 7 * 256**2) + (128 + 256) * 256 + 10 * 512
        assert parameter_count(model.face) == 3 * 64 * 49 + 128 + flat + deep
        assert parameter_count(model) == 122_777_092

    def test_avoid_df_has_six_encoder_layers_and_five_joint_blocks_a_stream(self):
        patches = 3 * 16 * 16 * 768 + 768 + 768 + 197 * 768
        cross = 4 * 768 * 768 + 4 * 768 + 2 * 768
        streams = 2 * (patches + 6 * LAYER + 5 * (cross + LAYER))
        fusion = (2 * 768 * 768 + 768) + LAYER + (3 * 768 * 768 + 768) + (2 * 768 + 2)
        assert self.count("avoid-df") == streams + fusion


class TestFeatures:
    """Against python_speech_features 0.6, run once on this signal."""

    N = np.arange(16000)
    AUDIO = (
        8000 * np.sin(2 * np.pi * 440 * N / 16000)
        + 3000 * np.sin(2 * np.pi * 2500 * N / 16000) * (N % 4000) / 4000
        + ((N * 7919) % 101 - 50) * 5
    ).astype(np.int16)

    def test_mfcc(self):
        ours = features.mfcc(self.AUDIO)
        assert ours.shape == (99, 13)
        np.testing.assert_allclose(
            ours[[0, 50, 98]][:, [0, 1, 2, 12]],
            [
                [19.13903401, 4.81633701, 6.21143955, -2.23616792],
                [19.17373714, 3.10219648, 8.57555715, 3.00143901],
                [20.40963368, 0.44777943, -6.60580835, -5.09011884],
            ],
            atol=1e-7,
        )
        assert ours.mean() == pytest.approx(-1.9295041310097323)

    def test_log_filterbank(self):
        ours = features.log_filterbank(self.AUDIO)
        assert ours.shape == (99, 26)
        np.testing.assert_allclose(
            ours[[0, 50, 98]][:, [0, 5, 13, 25]],
            [
                [11.02088545, 18.06648742, 11.93428947, 12.58217853],
                [12.28376326, 18.0704178, 12.50632531, 13.43032095],
                [12.18130636, 17.78602674, 13.79322701, 13.28986154],
            ],
            atol=1e-7,
        )
        assert ours.std() == pytest.approx(2.1381853715478285)

    def test_silence_has_features(self):
        silence = np.zeros(16000, np.int16)
        for values in (
            features.mfcc(silence),
            features.log_filterbank(silence),
            features.log_spectrogram(silence),
        ):
            assert np.isfinite(values).all()

    def test_a_tone_is_a_line_of_the_spectrogram(self):
        n = np.arange(16000)
        tone = (8000 * np.sin(2 * np.pi * 1000 * n / 16000)).astype(np.int16)
        assert features.log_spectrogram(tone).mean(1).argmax() == 32  # of 512 bins at 16 kHz


class TestLosses:
    def test_dissonance(self):
        distance = torch.tensor([0.5, 2.0, 0.5, 2.0])
        loss = dissonance_loss(distance, torch.tensor([0, 0, 1, 1]), 0.99)
        assert float(loss) == pytest.approx((0.25 + 4 + 0.49**2 + 0) / 4)

    def test_margin_contrast(self):
        d = torch.tensor([0.2, -0.5, 0.2, -0.5])
        loss = margin_contrast(d, torch.tensor([0, 0, 1, 1]))
        assert float(loss) == pytest.approx((0.8 + 1.5 + 0.2 + 0) / 4)

    def test_matching_counts_forged_pairs_among_the_negatives(self):
        s = torch.tensor([[0.9, 0.1, 0.3], [0.2, 0.8, -0.4], [0.0, 0.5, 0.7]])
        fake = torch.tensor([0, 0, 1])
        x = s.numpy() / 0.5
        expected = []
        for i in (0, 1):
            for negatives in (x[i], x[:, i]):
                total = np.exp(negatives).sum() + np.exp(x[2, 2])
                expected.append(-np.log(np.exp(x[i, i]) / total))
        assert float(matching_loss(s, fake, 0.5)) == pytest.approx(np.mean(expected), rel=1e-6)

    def test_matching_without_genuine_clips_is_nothing(self):
        s = torch.eye(2, requires_grad=True)
        loss = matching_loss(s, torch.tensor([1, 1]), 0.1)
        loss.backward()
        assert float(loss.detach()) == 0
        assert (s.grad == 0).all()

    def test_modal_heads_of_mrdf_have_their_own_labels(self):
        """Each head's loss moves with its own label and not with the other's."""
        model, inputs = batch("mrdf-ce")
        out = model.eval()(inputs)
        zero, one = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.long)
        base = model.loss(out, Labels(one, zero, zero))
        video = model.loss(out, Labels(one, one, zero))
        assert video["ce_v"] != base["ce_v"]
        assert video["ce_a"] == base["ce_a"]

    @pytest.mark.parametrize("name", BASELINES)
    def test_every_weight_has_a_gradient(self, name: str):
        model, inputs = batch(name)
        labels = Labels(*torch.tensor([[0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0]]))
        terms = model.loss(model.train()(inputs), labels)
        terms["loss"].backward()
        assert torch.isfinite(terms["loss"])
        without = [n for n, p in model.named_parameters() if p.grad is None]
        assert not without


class TestScores:
    @pytest.mark.parametrize("name", BASELINES)
    def test_a_window_does_not_depend_on_its_neighbours(self, noise: Path, name: str):
        torch.manual_seed(0)
        model = build(name, miniature=True)
        clips = PreparedSet(noise).select("test")
        together = fitting.score_clips(model, clips, Platt(1.0, 0.0))
        alone = fitting.score_clips(model, clips[3:4], Platt(1.0, 0.0))
        assert alone.p_fake[0] == pytest.approx(together.p_fake[3], abs=1e-5)
        assert together.embedding is not None
        assert np.isfinite(together.embedding).all()

    def test_a_short_clip_goes_on_in_silence_with_its_last_frame(self):
        model = build("mds", miniature=True)
        crops = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
        crops_, audio = fitting.window(model, crops, np.ones(6400, np.int16), 0)
        assert crops_[:, 0, 0, 0].tolist() == [*range(10)] + [9] * 15
        assert (audio[:6400] == 1).all()
        assert (audio[6400:] == 0).all()
        assert len(audio) == 16000


class TestRun:
    CONFIG = BaselineConfig("vfd", miniature=True, steps=6, batch=4, validate_every=3, save_every=2)

    def test_a_stop_and_a_resume_give_the_weights_of_an_unbroken_run(
        self, noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        data = PreparedSet(noise)
        BaselineTrainer(self.CONFIG, data, tmp_path / "whole").run()
        broken = BaselineTrainer(self.CONFIG, data, tmp_path / "broken")
        step = broken.train_step

        def stop(batch: int) -> dict[str, float]:
            if batch == 5:
                raise KeyboardInterrupt
            return step(batch)

        monkeypatch.setattr(broken, "train_step", stop)
        with pytest.raises(KeyboardInterrupt):
            broken.run()
        BaselineTrainer(self.CONFIG, data, tmp_path / "broken").run()
        whole, _, platt = fitting.load(tmp_path / "whole" / "checkpoint.safetensors")
        again, _, same = fitting.load(tmp_path / "broken" / "checkpoint.safetensors")
        assert platt == same
        for name, value in whole.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), name

    @pytest.mark.thorough
    def test_a_trace_in_the_picture_is_learnt(self, noise: Path, tmp_path: Path):
        config = BaselineConfig(
            "avoid-df", miniature=True, steps=30, batch=8, lr=1e-3, validate_every=15
        )
        data = PreparedSet(noise)
        BaselineTrainer(config, data, tmp_path).run()
        model, again, platt = fitting.load(tmp_path / "checkpoint.safetensors")
        assert again == config
        scores = fitting.score_clips(model, data.select("test"), platt)
        seen = np.isin(scores.category, ["RealVideo-RealAudio", "FakeVideo-RealAudio"])
        assert metrics.auc(scores.fake[seen], scores.p_fake[seen]) > 0.9
        log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert len([row for row in log if "validation" in row]) == 2

    def test_a_run_of_other_options_is_not_resumed(self, noise: Path, tmp_path: Path):
        trainer = BaselineTrainer(self.CONFIG, PreparedSet(noise), tmp_path)
        trainer.save_state()
        other = BaselineConfig("vfd", miniature=True, steps=7, batch=4)
        with pytest.raises(UsageError, match="other options"):
            BaselineTrainer(other, PreparedSet(noise), tmp_path).run()

    def test_a_state_of_an_earlier_version_is_refused_in_one_line(
        self, noise: Path, tmp_path: Path
    ):
        earlier = {"config": json.dumps({"name": "vfd"}), "data": "a.mp4 train", "progress": "{}"}
        save_file({"model/a": torch.zeros(1)}, tmp_path / "state.safetensors", earlier)
        with pytest.raises(ModelError, match=r"cannot be read .*; delete it to begin anew"):
            BaselineTrainer(self.CONFIG, PreparedSet(noise), tmp_path).run()


def test_a_full_disk_is_one_line_and_the_file_before_it_stays(tmp_path: Path, monkeypatch):
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.zeros(1)}, {"step": 1})

    def full(*arguments):
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(UserError, match=r"No space left on device.*same command again"):
        save_state(path, {"a": torch.ones(1)}, {"step": 2})
    assert load_state(path)[1] == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_rate_of_mrdf_halves_on_a_plateau(noise: Path, tmp_path: Path):
    config = BaselineConfig("mrdf-ce", miniature=True)
    trainer = BaselineTrainer(config, PreparedSet(noise), tmp_path)
    rates = []
    for losses in ([], [1.0], [1.0, 0.9, 0.95, 0.95, 0.95], [1.0, 0.9, 0.95, 0.95, 0.95, 0.95]):
        trainer.losses = losses
        rates.append(trainer._learning_rate())
    assert rates == [1e-3, 1e-3, 1e-3, 5e-4]


def test_unknown_names_and_options_are_one_line():
    with pytest.raises(UsageError, match="mrdf-ce"):
        build("mrdf")
    with pytest.raises(UsageError, match="colour"):
        build("mds", colour=1)


def test_another_checkpoint_is_refused(tmp_path: Path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be read"):
        fitting.load(tmp_path / "x.safetensors")
