# SPDX-License-Identifier: Apache-2.0
"""A verdict: what the runtime says of one face in one window, and its one line of JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from enum import Enum
from typing import Any

from runtime.spec import SCHEMA_VERSION

FLOAT_DIGITS = 6  # of a number in JSON


class Label(str, Enum):
    """``abstain`` is no verdict: it counts neither for nor against the face."""

    REAL = "real"
    FAKE = "fake"
    ABSTAIN = "abstain"

    def __str__(self) -> str:
        return self.value


class Reason(str, Enum):
    """Why a window got no verdict.  :mod:`runtime.judging.decision` says when each one is given."""

    TOO_SHORT = "too_short"
    NO_FACE = "no_face"
    FACE_TOO_SMALL = "face_too_small"
    FACE_TURNED = "face_turned"
    TOO_MANY_DROPS = "too_many_drops"
    NO_AUDIO = "no_audio"
    NO_SPEECH = "no_speech"
    AV_CLOCK_UNRELIABLE = "av_clock_unreliable"
    OUT_OF_DOMAIN = "out_of_domain"
    NO_ACTIVE_SPEAKER = "no_active_speaker"
    UNCERTAIN = "uncertain"

    def __str__(self) -> str:
        return self.value


MEANINGS = {  # in plain words, behind "the window abstains because"
    Reason.TOO_SHORT: "the stream ended before one window was full",
    Reason.NO_FACE: "no face was in view throughout",
    Reason.FACE_TOO_SMALL: "the face is too small to read; come closer",
    Reason.FACE_TURNED: "the head is turned away",
    Reason.TOO_MANY_DROPS: "too many pictures are missing",
    Reason.NO_AUDIO: "there is no sound, or not throughout",
    Reason.NO_SPEECH: "hardly anything is audible",
    Reason.AV_CLOCK_UNRELIABLE: "the timestamps of the sound jump",
    Reason.OUT_OF_DOMAIN: "the model cannot read this face or this sound: too unlike its training",
    Reason.NO_ACTIVE_SPEAKER: "another face matches the voice better, or none does",
    Reason.UNCERTAIN: "the probability lies at the threshold",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One window of one face.  Times are stream seconds; a score is None where it has no basis.

    A score beside an abstention says what the model computed, not what the product claims.
    """

    schema_version: int = SCHEMA_VERSION
    source: str
    model_id: str
    t_start_s: float
    t_end_s: float
    face_id: int | None  # None: no face in the window
    p_fake: float | None  # picture and sound together, smoothed over windows
    p_fake_video: float | None  # this window's picture
    p_fake_audio: float | None  # this window's sound
    sync: float | None  # mean cosine of picture and sound after the last block, -1 to 1
    av_offset_ms: float | None  # transport: > 0 means that the sound comes late
    label: Label
    reason: Reason | None  # set when the label is abstain, and only then
    latency_ms: float  # from the arrival of the last evidence to this verdict

    def to_json(self) -> str:
        """One line: keys in the order of the schema, numbers rounded to 6 digits; ASCII."""
        values = {k: _plain(v) for k, v in dataclasses.asdict(self).items()}
        return json.dumps(values, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        return round(value, FLOAT_DIGITS) + 0.0  # no "-0.0"
    return value
