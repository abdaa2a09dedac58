# SPDX-License-Identifier: Apache-2.0
"""The rules that turn scores into verdicts, one by one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from runtime.judging.decision import MAX_TURN_DEG, Decision, Judgement, WindowFacts, WindowScores
from runtime.judging.offset import OFFSET_WINDOWS, STABLE_WINDOWS, OffsetTracker
from runtime.judging.verdict import Label, Reason
from runtime.logits import fake_minus_real, sigmoid
from runtime.spec import Calibration, StreamSpec
from tests.runtime.doubles import SPEC, with_calibration, with_stream

FACTS = WindowFacts(
    end_token=50, face_id=0, face_throughout=True, face_width_px=80.0, picture_gap=False,
    sound_throughout=True, speech_fraction=1.0, clock_error_s=0.0,
)  # fmt: skip
SCORES = WindowScores(logit_av=3.0, logit_v=1.0, logit_a=-1.0, sync=0.5, speaker=True, clarity=0.5)
BOUNDED = with_calibration(min_clarity=0.3)


def judge(scores: WindowScores | None = SCORES, **facts: Any) -> Judgement:
    return Decision(BOUNDED).judge(replace(FACTS, **facts), scores)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


# Probabilities


def test_index_one_is_fake() -> None:
    assert fake_minus_real(np.array([1.0, 3.5], np.float32)) == 2.5


def test_sigmoid_does_not_overflow() -> None:
    assert (sigmoid(-1e4), sigmoid(0.0), sigmoid(1e4)) == (0.0, 0.5, 1.0)


def test_each_head_has_its_own_calibration() -> None:
    spec = with_calibration(
        temperature_av=2.0, bias_av=0.5, temperature_v=4.0, bias_v=-1.0, temperature_a=0.5,
        bias_a=2.0,
    )  # fmt: skip
    judged = Decision(spec).judge(FACTS, SCORES)
    assert judged.p_fake == pytest.approx(sigmoid(3.0 / 2 + 0.5))
    assert judged.p_fake_video == pytest.approx(sigmoid(1.0 / 4 - 1))
    assert judged.p_fake_audio == pytest.approx(sigmoid(-1.0 / 0.5 + 2))


# Labels


def labels(probabilities: list[float], **calibration: Any) -> list[str]:
    """Of one face's windows one after the other, without smoothing."""
    spec = with_calibration(with_stream(smoothing=1.0, hysteresis=0.05), **calibration)
    decision = Decision(spec)
    return [
        str(decision.judge(replace(FACTS, end_token=50 + 5 * i),
                           replace(SCORES, logit_av=logit(p))).label)
        for i, p in enumerate(probabilities)
    ]  # fmt: skip


def test_label_follows_the_threshold() -> None:
    assert labels([0.9, 0.1]) == ["fake", "real"]
    assert labels([0.7, 0.9], threshold=0.8) == ["real", "fake"]


def test_inside_the_band_a_face_keeps_its_label() -> None:
    assert labels([0.9, 0.46, 0.54, 0.44, 0.54]) == ["fake", "fake", "fake", "real", "real"]


def test_inside_the_band_without_a_label_it_abstains() -> None:
    assert labels([0.52, 0.48, 0.9]) == ["abstain", "abstain", "fake"]
    judged = Decision(SPEC).judge(FACTS, replace(SCORES, logit_av=0.0))
    assert (judged.label, judged.reason, judged.p_fake) == (Label.ABSTAIN, Reason.UNCERTAIN, 0.5)


@pytest.mark.parametrize("threshold", [0.01, 0.99])
def test_both_labels_can_be_reached_at_an_extreme_threshold(threshold: float) -> None:
    assert labels([0.9999, 0.0001], threshold=threshold) == ["fake", "real"]


def test_smoothing_is_a_running_mean_of_the_log_odds() -> None:
    decision = Decision(with_stream(smoothing=0.25))
    first = decision.judge(FACTS, replace(SCORES, logit_av=4.0))
    second = decision.judge(replace(FACTS, end_token=55), replace(SCORES, logit_av=-4.0))
    assert first.p_fake == pytest.approx(sigmoid(4.0))
    assert second.p_fake == pytest.approx(sigmoid(0.75 * 4.0 + 0.25 * -4.0))


def test_smoothing_starts_anew_after_a_window_without_scores() -> None:
    decision = Decision(with_stream(smoothing=0.25))
    decision.judge(FACTS, replace(SCORES, logit_av=4.0))
    later = decision.judge(replace(FACTS, end_token=100), replace(SCORES, logit_av=-4.0))
    assert later.p_fake == pytest.approx(sigmoid(-4.0))


def test_abstentions_do_not_enter_the_running_mean() -> None:
    decision = Decision(BOUNDED)
    decision.judge(FACTS, replace(SCORES, logit_av=4.0))
    decision.judge(replace(FACTS, end_token=55), replace(SCORES, logit_av=-40.0, clarity=0.0))
    third = decision.judge(replace(FACTS, end_token=60), replace(SCORES, logit_av=4.0))
    assert third.p_fake == pytest.approx(sigmoid(4.0))


def test_one_clear_window_does_not_bring_an_unreadable_face_into_the_domain() -> None:
    """Clarity is a running mean, as the scores are: 0.1, then 0.1 + 0.5 (0.45 - 0.1) < 0.3."""
    decision = Decision(BOUNDED)
    seen = []
    for i, clarity in enumerate((0.1, 0.45, 0.45, 0.45)):
        facts = replace(FACTS, end_token=50 + 5 * i)
        seen.append(decision.judge(facts, replace(SCORES, clarity=clarity)).reason)
    assert seen == [Reason.OUT_OF_DOMAIN, Reason.OUT_OF_DOMAIN, None, None]


def test_faces_do_not_share_their_state() -> None:
    decision = Decision(SPEC)
    decision.judge(FACTS, replace(SCORES, logit_av=9.0))
    other = decision.judge(replace(FACTS, face_id=1), replace(SCORES, logit_av=0.0))
    assert other.label is Label.ABSTAIN


# Reasons to abstain, strongest first: each case also holds everything below it.

BAD_SCORES = replace(SCORES, speaker=False, clarity=0.1)
LADDER: list[tuple[dict[str, Any], WindowScores | None, Reason]] = [
    ({"face_throughout": False}, BAD_SCORES, Reason.NO_FACE),
    ({"face_width_px": 20.0}, BAD_SCORES, Reason.FACE_TOO_SMALL),
    ({"face_turn_deg": MAX_TURN_DEG + 1}, BAD_SCORES, Reason.FACE_TURNED),
    ({"picture_gap": True}, BAD_SCORES, Reason.TOO_MANY_DROPS),
    ({"sound_throughout": False}, BAD_SCORES, Reason.NO_AUDIO),
    ({"speech_fraction": 0.1}, BAD_SCORES, Reason.NO_SPEECH),
    ({"clock_error_s": 0.3}, BAD_SCORES, Reason.AV_CLOCK_UNRELIABLE),
    ({}, BAD_SCORES, Reason.OUT_OF_DOMAIN),
    ({}, replace(SCORES, speaker=False), Reason.NO_ACTIVE_SPEAKER),
]


@pytest.mark.parametrize("rung", range(len(LADDER)), ids=[str(r) for _, _, r in LADDER])
def test_the_first_reason_that_holds_is_given(rung: int) -> None:
    # a gap in the pictures explains a missing face, so only one of the two is ever the reason
    below = {k: v for facts, _, _ in LADDER[rung + 1 :] for k, v in facts.items()}
    facts, scores, reason = LADDER[rung]
    if reason is Reason.NO_FACE:
        below.pop("picture_gap")
    judged = judge(scores, **{**below, **facts})
    assert (judged.label, judged.reason) == (Label.ABSTAIN, reason)


def test_missing_pictures_explain_a_missing_face() -> None:
    judged = judge(face_throughout=False, picture_gap=True)
    assert judged.reason is Reason.TOO_MANY_DROPS


@pytest.mark.parametrize(
    ("facts", "left"),
    [
        ({"face_throughout": False}, {"p_fake_audio"}),
        ({"picture_gap": True}, {"p_fake_audio"}),
        ({"sound_throughout": False}, {"p_fake_video"}),
        ({"speech_fraction": 0.0}, {"p_fake_video"}),
        ({"clock_error_s": 1.0}, {"p_fake_video", "p_fake_audio"}),
        ({"face_width_px": 20.0}, {"p_fake", "p_fake_video", "p_fake_audio", "sync"}),
        ({"face_turn_deg": 50.0}, {"p_fake", "p_fake_video", "p_fake_audio", "sync"}),
    ],
)
def test_scores_without_a_basis_are_none(facts: dict[str, Any], left: set[str]) -> None:
    judged = judge(**facts)
    names = ("p_fake", "p_fake_video", "p_fake_audio", "sync")
    assert {n for n in names if getattr(judged, n) is not None} == left


def test_nothing_to_score_is_no_score() -> None:
    judged = judge(None, face_throughout=False, face_id=None, face_width_px=math.nan,
                   sound_throughout=False)  # fmt: skip
    assert judged == Judgement(None, None, None, None, Label.ABSTAIN, Reason.NO_FACE)


def test_a_model_without_a_domain_never_abstains_for_it() -> None:
    assert Calibration().min_clarity == 0.0
    judged = Decision(SPEC).judge(FACTS, replace(SCORES, clarity=0.0))
    assert judged.reason is None


# A/V offset


def curve(peak: int, height: float = 1.0, max_lag: int = 15) -> np.ndarray[Any, Any]:
    out = np.zeros(2 * max_lag + 1)
    out[max_lag + peak] = height
    return out


def test_a_flat_curve_says_nothing() -> None:
    tracker = OffsetTracker(StreamSpec())
    assert [tracker.update(curve(2, 0.05)) for _ in range(9)] == [None] * 9
    assert tracker.compensation_tokens == 0


@pytest.mark.parametrize("lag", [-5, -1, 1, 5])
def test_transport_is_compensated_once_it_is_stable(lag: int) -> None:
    tracker = OffsetTracker(StreamSpec())
    for _ in range(STABLE_WINDOWS - 1):
        assert tracker.update(curve(lag)) == lag
        assert tracker.compensation_tokens == 0
    assert tracker.update(curve(lag)) == lag
    assert tracker.compensation_tokens == lag
    # from now on the model sees the sound shifted, and the offset reported stays what it was
    assert [tracker.update(curve(0)) for _ in range(3)] == [lag] * 3
    assert tracker.compensation_tokens == lag


@pytest.mark.parametrize("lag", [-15, -10, -6, 6, 10, 15])
def test_a_larger_shift_is_reported_and_never_compensated(lag: int) -> None:
    tracker = OffsetTracker(StreamSpec())
    assert [tracker.update(curve(lag)) for _ in range(20)] == [lag] * 20
    assert tracker.compensation_tokens == 0


def test_an_offset_that_wanders_is_not_compensated() -> None:
    tracker = OffsetTracker(StreamSpec())
    for i in range(20):
        tracker.update(curve(i % 3, height=1.0 + i))  # the newest always wins the mean
    assert tracker.compensation_tokens == 0


def test_curves_are_averaged_over_recent_windows() -> None:
    tracker = OffsetTracker(StreamSpec())
    for _ in range(OFFSET_WINDOWS - 1):
        tracker.update(curve(8))
    assert tracker.update(curve(-8)) == 8  # one window does not outvote four
