# SPDX-License-Identifier: Apache-2.0
"""The statistics of a site calibration, on windows whose numbers are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from runtime.calibrate import estimate
from runtime.calibrate.estimate import (
    CalibrationError,
    Recording,
    estimate_offset,
)
from runtime.calibrate.site import SiteCalibration
from runtime.flow.windows import WindowRecord
from runtime.judging.decision import Decision, WindowFacts, WindowScores
from runtime.judging.offset import lag_peak
from runtime.judging.verdict import Label
from runtime.spec import PairSpec
from tests.runtime.doubles import SPEC, MockBackend, with_calibration

STREAM = SPEC.stream
LAGS = 2 * STREAM.max_lag_tokens + 1
WINDOWS_A_BLOCK = 11  # of 20 that begin in it: the others reach into the next


def window(
    end: int,
    *,
    logit: float = -3.0,
    clarity: float = 0.8,
    lag: int = 0,
    height: float = 0.5,
    shift: int = 0,
    face: int | None = 0,
    width: float = 80.0,
    speech: float = 1.0,
    speaker: bool = True,
) -> WindowRecord:
    """``lag`` is what the curve shows under a compensation of ``shift`` tokens."""
    facts = WindowFacts(
        end_token=end,
        face_id=face,
        face_throughout=face is not None,
        face_width_px=width if face is not None else math.nan,
        picture_gap=False,
        sound_throughout=True,
        speech_fraction=speech,
        clock_error_s=0.0,
    )
    curve = np.zeros(LAGS)
    curve[LAGS // 2 + lag] = height
    if face is None or not speech:
        return WindowRecord(facts, None, shift, None, None, None)
    scores = WindowScores(logit, 0.0, 0.0, 0.5, speaker, clarity)
    return WindowRecord(facts, scores, shift, curve, None, None)


def recording(tokens: int, make: Callable[[int], WindowRecord] = window) -> Recording:
    """A window every 5 tokens."""
    made = Recording(STREAM)
    for end in range(50, tokens + 1, 5):
        made.add(make(end))
    made.seconds = tokens / 25
    return made


def run(
    footage: Sequence[Recording],
    spec: PairSpec = SPEC,
    *,
    rate: float = 0.2,
) -> SiteCalibration:
    offset = estimate_offset(footage, spec, spec.stream)
    return estimate.estimate(footage, MockBackend(spec), spec.stream, rate, offset, "file")


# The offset


def test_the_offset_is_the_median_of_the_clear_peaks_with_its_spread() -> None:
    lags = [3] * 14 + [2] * 2 + [4] * 2 + [-7, 12]  # two outliers
    footage = [recording(50 + 5 * 19, lambda end: window(end, lag=lags[(end - 50) // 5]))]
    offset = estimate_offset(footage, SPEC, STREAM)
    assert (offset.tokens, offset.ms, offset.found) == (3, 120.0, True)
    assert (offset.clear_windows, offset.measured_windows) == (20, 20)
    assert offset.spread_low_tokens <= 2
    assert offset.spread_high_tokens >= 4


def test_what_was_compensated_already_counts() -> None:
    offset = estimate_offset([recording(300, lambda e: window(e, lag=-1, shift=3))], SPEC, STREAM)
    assert offset.tokens == 2


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda e: window(e, height=0.1), id="no clear peak"),
        pytest.param(lambda e: window(e, height=0.5 if e % 15 == 0 else 0.1), id="too few"),
        pytest.param(lambda e: window(e, lag=e // 5 % 31 - 15), id="they disagree"),
        pytest.param(
            lambda e: window(e, lag=12 if e % 50 == 0 else 0, height=0.5 if e % 25 < 15 else 0.1),
            id="too few that agree",
        ),
        pytest.param(lambda e: window(e, width=20.0), id="the face is too small"),
        pytest.param(lambda e: window(e, face=None), id="no face"),
    ],
)
def test_an_offset_that_is_not_clear_is_not_found(make: Callable[[int], WindowRecord]) -> None:
    offset = estimate_offset([recording(400, make)], SPEC, STREAM)
    assert (offset.tokens, offset.found) == (0, False)


@pytest.mark.parametrize(("lag", "word"), [(8, "320 ms late"), (-15, "600 ms early")])
def test_an_offset_beyond_transport_is_refused_with_the_remedy(lag: int, word: str) -> None:
    with pytest.raises(CalibrationError, match=rf"{word}.*\+-200 ms.*calibrate again"):
        estimate_offset([recording(300, lambda e: window(e, lag=lag))], SPEC, STREAM)


def test_of_several_faces_the_one_that_matches_gives_the_offset() -> None:
    made = Recording(STREAM)
    for end in range(50, 400, 5):
        made.add(window(end, face=0, lag=9, height=0.15))
        made.add(window(end, face=1, lag=2, height=0.6))
    assert estimate_offset([made], SPEC, STREAM).tokens == 2


def test_windows_before_a_live_offset_was_known_are_left_out() -> None:
    def make(end: int) -> WindowRecord:
        known = end >= 65
        return window(end, lag=0 if known else 3, shift=3 if known else 0, logit=-3 if known else 9)

    site = run([recording(500, make)])
    assert site.offset.tokens == 3
    assert site.left_out["before_offset_was_known"] == 3
    assert site.threshold.alarms_before == 0


# Blocks


def test_windows_across_two_blocks_and_an_unfinished_block_are_left_out() -> None:
    site = run([recording(480)])
    assert site.blocks == 4
    assert site.used_windows == 4 * WINDOWS_A_BLOCK
    assert site.left_out == {"between_blocks": 4 * 9, "unfinished_block": 7}
    assert site.windows == 87 == site.used_windows + sum(site.left_out.values())


def test_a_recording_shorter_than_a_block_is_one() -> None:
    site = run([recording(75) for _ in range(5)])
    assert (site.blocks, site.used_windows, site.left_out) == (5, 30, {})
    assert (site.recordings, site.duration_s) == (5, 15.0)


def test_abstentions_are_left_out_by_reason() -> None:
    def make(end: int) -> WindowRecord:
        if end <= 100:
            return window(end, face=None)
        return (
            window(end, speech=0.0) if end <= 150 else window(end, width=20.0 if end == 200 else 80)
        )

    site = run([recording(700, make)])
    abstained = {k: n for k, n in site.left_out.items() if k != "between_blocks"}
    assert abstained == {"no_face": 11, "no_speech": 10, "face_too_small": 1}


# The threshold


def test_the_threshold_is_the_conformal_rank_of_the_blocks_highest_p_fake() -> None:
    tops = [0.2, 1.0, 0.4, 1.6, 0.8, 0.6, 1.4, 1.2, 1.8]
    spec = replace(SPEC, stream=replace(STREAM, smoothing=1.0, hysteresis=0.0))

    def make(end: int) -> WindowRecord:
        return window(end, logit=tops[(end - 50) // 100] if end % 100 == 75 else -1.0)

    site = run([recording(900, make)], spec, rate=0.2)  # ceil(10 * 0.8) = 8 of 9
    assert (site.blocks, site.threshold.rank) == (9, 8)
    assert site.threshold.quantile == pytest.approx(1 / (1 + math.exp(-1.6)))
    assert 0 < site.threshold.threshold - site.threshold.quantile < 2e-4  # rounded up
    assert site.threshold.replaces == 0.5
    assert (site.threshold.alarms_before, site.threshold.alarms_after) == (9, 1)


@pytest.mark.parametrize("quantile", [0.56, 0.8, 0.949, 0.97, 0.999])
def test_with_its_hysteresis_it_says_fake_just_above_the_quantile(quantile: float) -> None:
    def make(end: int) -> WindowRecord:
        return window(end, logit=math.log(quantile / (1 - quantile)))

    threshold = run([recording(500, make)]).threshold
    assert (threshold.quantile, threshold.alarms_after) == (pytest.approx(quantile), 0)
    site = with_calibration(threshold=threshold.threshold)
    above = quantile + 4e-4
    record = window(50, logit=math.log(above / (1 - above)))
    assert Decision(site).judge(record.facts, record.scores).label is Label.FAKE


def test_it_is_never_below_one_half() -> None:
    site = run([recording(500)])
    assert site.threshold.quantile < 0.1
    assert site.threshold.threshold == 0.5


def test_too_little_footage_says_how_much_more() -> None:
    with pytest.raises(CalibrationError) as caught:
        run([recording(1000)], rate=0.05)
    assert "needs 19 blocks of 4 s with a verdict, 40 s of footage gave 10" in str(caught.value)
    assert "record 40 s more of the same, 1 min 20 s in all" in str(caught.value)
    assert run([recording(1900)], rate=0.05).blocks == 19


def test_the_commonest_abstention_comes_with_its_remedy() -> None:
    with pytest.raises(CalibrationError, match=r"8 windows abstained \(no_face\): let a face look"):
        run([recording(250, lambda e: window(e, face=0 if e > 85 else None))], rate=0.05)
    with pytest.raises(CalibrationError, match="1 min 20 s would be enough if all of it"):
        run([recording(250, lambda e: window(e, speech=0.0))], rate=0.05)


def test_an_empty_recording_is_too_little() -> None:
    with pytest.raises(CalibrationError, match="gave 0"):
        run([Recording(STREAM)])


def alarm_rate(rounds: int, *, spoil: float = 0.0) -> float:
    """Calibrate on 9 blocks at a rate of 0.2, then watch a tenth; its false alarms."""
    spec = replace(SPEC, stream=replace(STREAM, hysteresis=0.0))
    rng = np.random.default_rng(11)
    alarms = 0
    for _ in range(rounds):
        place = 4 + rng.normal()
        levels = place + rng.normal(size=10)
        levels[9] += spoil
        blocks = [
            recording(75, lambda e, level=level: window(e, logit=level + 0.3 * rng.normal()))
            for level in levels
        ]
        site = run(blocks[:9], spec, rate=0.2)
        decision = Decision(site.apply(spec))
        labels = [decision.judge(r.facts, r.scores).label for r in blocks[9].records]
        alarms += Label.FAKE in labels
    return alarms / rounds


def test_a_new_block_raises_a_false_alarm_as_rarely_as_promised() -> None:
    rounds = 300
    error = math.sqrt(0.2 * 0.8 / rounds)
    assert alarm_rate(rounds) == pytest.approx(0.2, abs=4 * error)  # 1 - 8/10, up to rounding


def test_the_promise_holds_only_for_blocks_like_the_others() -> None:
    assert alarm_rate(50, spoil=3.0) > 0.6


# What is kept of the footage while it lasts


def test_the_models_input_is_kept_of_few_windows() -> None:
    made = Recording(STREAM)
    big = np.zeros((50, 16), np.float32)
    for end in range(50, 3000, 5):
        made.add(replace(window(end), visual=big, audio=big))
    assert lag_peak(made.records[0].curve).confidence == 0.5
    kept = [r.facts.end_token for r in made.records if r.visual is not None]
    assert kept[:6] == [50, 70, 90, 150, 170, 190]
    assert len(kept) == pytest.approx(3 * 30, abs=3)
