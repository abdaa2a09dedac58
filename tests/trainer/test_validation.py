# SPDX-License-Identifier: Apache-2.0
"""The last layer that validation fits: what is found is what the model then says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn", reason="needs the train extra: pip install '.[train]'")

from runtime.spec import StreamSpec  # noqa: E402
from tests.trainer.prepared import write_noise_set  # noqa: E402
from tests.trainer.test_fit import MODEL  # noqa: E402
from trainer.data.prepared import PreparedSet  # noqa: E402
from trainer.loop import validation  # noqa: E402
from trainer.model.msct import LAG_SCALE, MSCT  # noqa: E402
from trainer.recipes import FitConfig  # noqa: E402
from trainer.scoring.calibrate import Evidence  # noqa: E402
from trainer.scoring.windows import score_windows  # noqa: E402

STREAM = StreamSpec(window_tokens=20)


@pytest.mark.parametrize("network", [0.0, 0.6])
def test_what_is_found_is_what_the_model_says(
    network: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    model = MSCT(MODEL)
    torch.nn.init.normal_(model.fusion.head_lags.weight)
    torch.nn.init.normal_(model.fusion.head_lags.bias)
    write_noise_set(tmp_path, splits={"a": "val"}, clips=1, tokens=50, crop_px=32)
    clips = PreparedSet(tmp_path).clips
    before = score_windows(model, clips, STREAM)
    seen = []

    def add(lags, difference, peaks, fake, identity):
        seen.append((difference, peaks))
        return lags._replace(network=network)

    found_lags = Evidence(0.0, (-0.4, 0.1), 1.5)
    monkeypatch.setattr(validation, "fit_lags", lambda *_: found_lags)
    monkeypatch.setattr(validation, "add_network", add)
    found = validation.weigh_evidence(model, before, before)
    after = score_windows(model, clips, STREAM)
    (difference, peaks) = seen[0]
    np.testing.assert_allclose(peaks, LAG_SCALE * before.lag_peaks, rtol=1e-6)
    want = found.network * difference + peaks @ np.array(found.lags) + found.bias
    np.testing.assert_allclose(after.difference_av, want, atol=1e-4)
    np.testing.assert_array_equal(after.difference_v, before.difference_v)


@pytest.mark.parametrize("silent", ["fit_lags", "add_network"])
def test_without_an_answer_the_model_stays_as_it_is(
    silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    model = MSCT(MODEL)
    write_noise_set(tmp_path, splits={"a": "val"}, clips=1, tokens=50, crop_px=32)
    clips = PreparedSet(tmp_path).clips
    before = score_windows(model, clips, STREAM)
    monkeypatch.setattr(validation, "fit_lags", lambda *_: Evidence(0.0, (-0.4, 0.1), 1.5))
    monkeypatch.setattr(validation, silent, lambda *_: None)
    assert validation.weigh_evidence(model, before, before) is None
    after = score_windows(model, clips, STREAM)
    np.testing.assert_array_equal(after.difference_av, before.difference_av)


class TestTrials:
    @pytest.fixture
    def trials(self, tmp_path: Path):
        write_noise_set(tmp_path, splits={"a": "val", "b": "val"}, clips=1, tokens=50, crop_px=32)
        data = PreparedSet(tmp_path)
        part = validation.Validation(FitConfig(window_tokens=20), data, STREAM, [])
        genuine = [c for c in data.clips if c.category == "RealVideo-RealAudio"]
        return part._trials(), {c.identity: c for c in genuine}

    def test_every_genuine_clip_is_one_beside_as_many_voices_as_moves(self, trials):
        made, genuine = trials
        targets = [t for t in made if t.category == "RealVideo-RealAudio"]
        assert [t.identity for t in targets] == list(genuine)
        impostors = [t for t in made if t not in targets]
        assert all(t.fake_audio and not t.matched and t.length >= 20 for t in impostors)
        assert sorted(t.voice_identity == t.identity for t in impostors) == [False] * 2 + [True] * 8

    def test_pictures_are_the_persons_own_and_the_voice_is_not(self, trials):
        made, genuine = trials
        for t in (t for t in made if t.voice_identity != t.identity):
            other = genuine["b" if t.identity == "a" else "a"]
            np.testing.assert_array_equal(t.crops, genuine[t.identity].crops)
            np.testing.assert_array_equal(t.tokens, other.tokens)

    def test_the_own_voice_is_moved_as_far_as_a_forged_shift(self, trials):
        made, genuine = trials
        moved = [t for t in made if t.fake_audio and t.voice_identity == t.identity]
        for t in moved:
            own = genuine[t.identity]
            move = int(t.file.rsplit(" ", 1)[1])
            assert STREAM.forged_shift_tokens <= abs(move) <= 50 - 20
            first, at = max(0, -move), max(0, move)
            np.testing.assert_array_equal(t.crops, own.crops[first : first + t.length])
            np.testing.assert_array_equal(t.tokens, own.tokens[at : at + t.length])
            assert len(t.audio) == 640 * t.length
            assert t.length == 50 - abs(move)
        assert len({t.file for t in moved}) == len(moved)
