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
from trainer import validation  # noqa: E402
from trainer.calibrate import Evidence  # noqa: E402
from trainer.data.prepared import PreparedSet  # noqa: E402
from trainer.model.msct import LAG_SCALE, MSCT  # noqa: E402
from trainer.scoring import score_windows  # noqa: E402

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

    def fit(difference, peaks, fake, identity):
        seen.append((difference, peaks))
        return Evidence(network, (-0.4, 0.1), 1.5)

    monkeypatch.setattr(validation, "fit_evidence", fit)
    found = validation.weigh_evidence(model, before)
    after = score_windows(model, clips, STREAM)
    (difference, peaks) = seen[0]
    np.testing.assert_allclose(peaks, LAG_SCALE * before.lag_peaks, rtol=1e-6)
    want = found.network * difference + peaks @ np.array(found.lags) + found.bias
    np.testing.assert_allclose(after.difference_av, want, atol=1e-4)
    np.testing.assert_array_equal(after.difference_v, before.difference_v)


def test_without_an_answer_the_model_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    model = MSCT(MODEL)
    write_noise_set(tmp_path, splits={"a": "val"}, clips=1, tokens=50, crop_px=32)
    clips = PreparedSet(tmp_path).clips
    before = score_windows(model, clips, STREAM)
    monkeypatch.setattr(validation, "fit_evidence", lambda *_: None)
    assert validation.weigh_evidence(model, before) is None
    after = score_windows(model, clips, STREAM)
    np.testing.assert_array_equal(after.difference_av, before.difference_av)
