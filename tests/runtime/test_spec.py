# SPDX-License-Identifier: Apache-2.0
"""The spec travels as JSON: what comes back is what went in, and anything else is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest

from runtime.spec import (
    AudioSpec,
    Calibration,
    FaceSpec,
    ModelSpec,
    PairSpec,
    SpecError,
    StreamSpec,
)

FULL = PairSpec(
    model=ModelSpec("other", 64, 4, 3, 32),
    face=FaceSpec(crop_px=112, max_faces=2),
    stream=StreamSpec(window_tokens=75),
    calibration=Calibration(temperature_av=1.7, threshold=0.61, false_alarm_rate=0.01),
    trained=True,
    pair_id="ab12",
    model_id="other-ab12",
    precision="fp16",
)


@pytest.mark.parametrize("spec", [PairSpec(), FULL])
def test_a_spec_survives_json(spec: PairSpec) -> None:
    assert PairSpec.from_json(spec.to_json()) == spec


def test_equal_specs_give_equal_text_on_one_line() -> None:
    assert FULL.to_json() == PairSpec.from_json(FULL.to_json()).to_json()
    assert "\n" not in FULL.to_json()


def test_whole_numbers_are_read_where_a_fraction_is_meant() -> None:
    data = json.loads(PairSpec().to_json())
    data["audio"]["hop_ms"] = 10
    assert PairSpec.from_json(json.dumps(data)).audio.hop_ms == 10.0


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), 99, "has version 99, this runtime reads 2"),
        (("colour",), "red", "unknown fields colour"),
        (("trained",), 1, "trained"),
        (("model", "channels"), "128", "channels"),
        (("model", "channels"), True, "channels"),
        (("face",), [64], "FaceSpec"),
        (("audio", "dither"), 1.0, "dither must be 0"),
        (("stream", "hop_tokens"), 0, "hop_tokens"),
        (("stream", "max_lag_tokens"), 50, "max_lag_tokens"),
        (("stream", "av_offset_tokens"), 6, "av_offset_tokens"),
    ],
)
def test_what_is_no_spec_is_one_line(path: tuple[str, ...], value: object, message: str) -> None:
    data = json.loads(PairSpec().to_json())
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(SpecError, match=message) as caught:
        PairSpec.from_json(json.dumps(data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3"])
def test_text_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        PairSpec.from_json(text)


def test_specs_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        AudioSpec().mel_bins = 40  # type: ignore[misc]
