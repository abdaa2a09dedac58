# SPDX-License-Identifier: Apache-2.0
"""Disturbances: shapes, determinism, and that each does what it says."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("scipy", reason="needs the train extra: pip install '.[train]'")

from runtime.sound.tokens import tokenize
from runtime.spec import AudioSpec
from trainer.data import augment

SPEC = AudioSpec()
RATE = SPEC.sample_rate_hz


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Two seconds: a harmonic tone whose loudness and pitch move, a pause at 1 s; int16."""
    t = np.arange(2 * RATE) / RATE
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 3 * t)) / RATE
    x = sum(np.sin(k * phase) / k for k in range(1, 20)) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))
    x[RATE : RATE + 4000] = 0
    x += 1e-3 * rng().standard_normal(len(x))
    return (x * 6000).astype(np.int16)


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    y, x = np.mgrid[:64, :64]
    picture = np.stack([4 * x, 4 * y, 2 * (x + y)], -1).clip(0, 255)
    return np.repeat(picture[None].astype(np.uint8), 6, axis=0)


class TestPicture:
    def test_same_draw_same_crops_and_the_input_stays(self, crops):
        before = crops.copy()
        one, two = augment.augment_crops(crops, rng(3)), augment.augment_crops(crops, rng(3))
        assert one.shape == crops.shape
        assert one.dtype == np.uint8
        assert np.array_equal(one, two)
        assert np.array_equal(crops, before)
        assert not np.array_equal(one, augment.augment_crops(crops, rng(4)))

    def test_one_draw_a_window_but_for_the_unrest_of_the_tracker_and_noise(self, crops):
        """Equal frames stay equal in most windows; where not, they hardly move."""
        still = 0
        for seed in range(40):
            out = augment.augment_crops(crops, rng(seed)).astype(int)
            still += int((out == out[:1]).all())
            assert (
                np.abs(out.mean((1, 2)) - out.mean((0, 1, 2))).max() < 8
            )  # two pixels of this ramp
        assert 12 <= still <= 34  # 0.75 * 0.75 of them, on average

    @pytest.mark.parametrize(("keep_size", "side"), [(False, 57), (True, 64)])
    def test_lineage_crops_keep_100_of_112(self, crops, keep_size, side):
        seen = set()
        for seed in range(60):
            out = augment.lineage_crops(crops, rng(seed), keep_size=keep_size)
            assert out.shape == (6, side, side, 3)
            margin = (side - 57) // 2
            cut = out[0, margin : margin + 57, margin : margin + 57]
            mirrored = int(cut[0, 0, 0]) > int(cut[0, -1, 0])
            cut = cut[:, ::-1] if mirrored else cut
            x, y = int(cut[0, 0, 0]) // 4, int(cut[0, 0, 1]) // 4
            assert np.array_equal(cut, crops[0, y : y + 57, x : x + 57])
            seen.add((mirrored, x, y))
        assert len(seen) > 30
        assert {m for m, _, _ in seen} == {False, True}
        assert max(x for _, x, _ in seen) == 7


class TestSound:
    def test_an_untouched_waveform_gives_the_clips_own_tokens(self, speech):
        """Tokens made anew from a slice are those of the whole clip: no seam, no shift."""
        tokens = tokenize(speech / 32768.0, SPEC).tokens
        first = (20 - augment.LEAD_TOKENS) * SPEC.token_samples
        tail = SPEC.token_span_samples - SPEC.token_samples
        part = speech[first : 45 * SPEC.token_samples + tail] / 32768.0
        lead = augment.LEAD_TOKENS
        np.testing.assert_allclose(
            tokenize(part, SPEC).tokens[lead : lead + 25], tokens[20:45], atol=1e-5
        )

    def test_shape_type_and_determinism_whatever_is_drawn(self, speech):
        tokens = tokenize(speech / 32768.0, SPEC).tokens
        touched = 0
        for seed in range(40):
            for start, length in ((0, 50), (3, 30), (20, 30)):
                one = augment.augment_sound(speech, tokens, start, length, rng(seed))
                assert one.shape == (length, 104)
                assert one.dtype == np.float32
                assert np.isfinite(one).all()
            again = augment.augment_sound(speech, tokens, 20, 30, rng(seed))
            assert np.array_equal(one, again)
            touched += int(np.abs(one - tokens[20:50]).max() > 1)
        assert touched > 8

    def test_disturbed_tokens_stay_where_they_were_in_time(self, speech):
        """The pause at 1 s (token 25) is where it was, after every disturbance that moves none."""
        x = speech / 32768.0
        quiet = tokenize(x, SPEC).level_dbfs
        for y in (
            augment.telephone(x, 4000, RATE),
            augment.reverberate(x, 0.1, 10.0, RATE, rng()),
        ):
            level = tokenize(y.astype(np.float32), SPEC).level_dbfs
            assert abs(int(np.argmin(level)) - int(np.argmin(quiet))) <= 3

    def test_gain_changes_tokens_only_near_the_floor_of_the_filter_bank(self, speech):
        """A gain is a constant on all log-mel bins, and the LayerNorm takes it out."""
        x = speech / 32768.0
        whole, half = tokenize(x, SPEC), tokenize(0.5 * x, SPEC)
        change = np.abs(half.tokens - whole.tokens).max(-1)
        loud = np.convolve(whole.level_dbfs < -50, [1, 1, 1], "same") == 0
        assert 30 < loud.sum() < 50
        assert change[loud].max() < 2e-3
        assert change[~loud].max() > 0.1

    def test_noise_has_the_power_that_was_asked_for(self, speech):
        x = speech / 32768.0
        for pink in (False, True):
            noise = augment.add_noise(x, 12.0, pink, rng()) - x
            assert 10 * np.log10((x**2).mean() / (noise**2).mean()) == pytest.approx(12, abs=1e-6)
        low, high = np.split(np.abs(np.fft.rfft(noise))[1:] ** 2, 2)
        assert low.sum() > 3 * high.sum()  # pink

    def test_reverberation_starts_with_the_direct_sound_and_decays(self):
        click = np.zeros(RATE)
        click[100] = 1.0
        y = augment.reverberate(click, 0.3, 6.0, RATE, rng())
        assert not np.abs(y[:100]).max() > 1e-9
        assert y[100] == pytest.approx(1.0, abs=1e-9)
        assert (y[101:] ** 2).sum() == pytest.approx(10**-0.6, rel=1e-6)
        assert (y[101:1300] ** 2).sum() > 20 * (y[2500:3700] ** 2).sum()

    def test_telephone_takes_away_what_is_above_the_cutoff(self):
        t = np.arange(RATE) / RATE
        low = augment.telephone(0.3 * np.sin(2 * np.pi * 440 * t), 3400, RATE)
        high = augment.telephone(0.3 * np.sin(2 * np.pi * 7000 * t), 3400, RATE)
        assert low.std() == pytest.approx(0.3 / np.sqrt(2), rel=0.05)
        assert high.std() < 0.02 * low.std()

    def test_noise_follows_the_level_so_silence_stays_silent(self):
        assert not augment.add_noise(np.zeros(1600), 5, True, rng()).any()

    def test_silent_tokens_stay_all_zero(self, speech):
        tokens = tokenize(speech / 32768.0, SPEC).tokens.copy()
        tokens[5:8] = 0
        out = augment.augment_tokens(tokens, rng())
        assert not out[5:8].any()
        np.testing.assert_allclose(out[:5].mean(-1), 0, atol=1e-5)
        np.testing.assert_allclose(out[:5].var(-1), 1, atol=1e-3)
