# SPDX-License-Identifier: Apache-2.0
"""The one line of JSON that a verdict becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.judging.verdict import MEANINGS, Label, Reason, Verdict

FIELDS = [
    "schema_version", "source", "model_id", "t_start_s", "t_end_s", "face_id", "p_fake",
    "p_fake_video", "p_fake_audio", "sync", "av_offset_ms", "label", "reason", "latency_ms",
]  # fmt: skip


def verdict(**changes: Any) -> Verdict:
    values: dict[str, Any] = {
        "source": "a.mp4", "model_id": "m-1", "t_start_s": 0.2, "t_end_s": 2.2, "face_id": 3,
        "p_fake": 1 / 3, "p_fake_video": 0.5, "p_fake_audio": None, "sync": -0.0,
        "av_offset_ms": 40.0, "label": Label.FAKE, "reason": None, "latency_ms": 1.23456789,
    }  # fmt: skip
    return Verdict(**{**values, **changes})


def test_fields_come_in_the_order_of_the_schema() -> None:
    assert list(json.loads(verdict().to_json())) == FIELDS


def test_every_reason_has_plain_words() -> None:
    assert set(MEANINGS) == set(Reason)
    assert all(words and "_" not in words for words in MEANINGS.values())


def test_one_line_with_six_digits_and_no_negative_zero() -> None:
    line = verdict(source="line\nbreak.mp4").to_json()
    assert "\n" not in line
    data = json.loads(line)
    assert (data["p_fake"], data["sync"], data["latency_ms"]) == (0.333333, 0.0, 1.234568)
    assert '"sync": 0.0' in line
    assert data["source"] == "line\nbreak.mp4"


def test_labels_and_reasons_are_plain_words() -> None:
    data = json.loads(verdict(label=Label.ABSTAIN, reason=Reason.NO_FACE).to_json())
    assert (data["label"], data["reason"], data["schema_version"]) == ("abstain", "no_face", 1)
    assert f"{Label.REAL}" == "real"
    assert f"{Reason.UNCERTAIN}" == "uncertain"


def test_a_number_that_json_lacks_is_a_bug_not_a_value() -> None:
    with pytest.raises(ValueError, match="JSON"):
        verdict(p_fake=float("nan")).to_json()
