# SPDX-License-Identifier: Apache-2.0
"""Clocks of live media: timestamps that jump, wrap and leap; sound cards that are fast or slow."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.media import Samples
from runtime.media.clock import LiveClock, Pace, SoundClock
from runtime.sound.tokens import AudioTokenizer
from runtime.sound.track import SoundTrack
from runtime.spec import AudioSpec

RATE_HZ = 16_000
STEP_S = 0.04


def play(clock: LiveClock, items: list[tuple[str, float | None, float]]) -> list[float | None]:
    """(kind, timestamp, arrival) -> stream times."""
    return [clock.place(kind, pts, STEP_S, arrival) for kind, pts, arrival in items]


def steady(pts_s: float, arrival_s: float, n: int = 50) -> list[tuple[str, float | None, float]]:
    """Pictures and sound, 25 a second, the sound 10 ms after the picture."""
    found: list[tuple[str, float | None, float]] = []
    for i in range(n):
        found.append(("video", pts_s + i * STEP_S, arrival_s + i * STEP_S))
        found.append(("audio", pts_s + i * STEP_S + 0.01, arrival_s + i * STEP_S))
    return found


def by_kind(
    items: list[tuple[str, float | None, float]], times: list[float | None]
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"video": [], "audio": []}
    for (kind, _, _), t in zip(items, times, strict=True):
        if t is not None:
            found[kind].append(t)
    return found


def test_stream_time_starts_at_the_first_item_and_keeps_both_together() -> None:
    items = steady(1000.0, 50.0)
    found = by_kind(items, play(LiveClock(), items))
    assert found["video"] == pytest.approx([i * STEP_S for i in range(50)])
    assert found["audio"] == pytest.approx([i * STEP_S + 0.01 for i in range(50)])


def test_sound_from_before_the_first_picture_is_left_out_and_is_no_fault() -> None:
    clock = LiveClock()
    items: list[tuple[str, float | None, float]] = [("video", 10.0, 5.0)]
    items += [("audio", 9.8 + i * STEP_S, 5.0) for i in range(10)]
    found = by_kind(items, play(clock, items))
    assert found["audio"] == pytest.approx([i * STEP_S for i in range(5)])
    assert (clock.jumps, clock.unusable) == (0, 0)


@pytest.mark.parametrize("jump", [-1000.0, -3.0, 90_000.0, 2**33 / 90_000, -(2**33) / 90_000])
def test_a_jump_or_wrap_of_both_timestamps_goes_on_where_time_is(jump: float) -> None:
    """2^33 ticks of 90 kHz are where MPEG-TS wraps around."""
    items = [*steady(1000.0, 50.0), *steady(1002.0 + jump, 52.0)]
    clock = LiveClock()
    found = by_kind(items, play(clock, items))
    assert found["video"] == pytest.approx([i * STEP_S for i in range(100)])
    assert found["audio"] == pytest.approx([i * STEP_S + 0.01 for i in range(100)])
    assert (clock.jumps, clock.unusable) == (2, 0)


def test_one_wild_timestamp_costs_no_more_than_itself() -> None:
    items = steady(1000.0, 50.0)
    items[40] = ("video", 5e6, items[40][2])
    clock = LiveClock()
    found = by_kind(items, play(clock, items))
    assert found["video"] == pytest.approx([i * STEP_S for i in range(50)])
    assert found["audio"] == pytest.approx([i * STEP_S + 0.01 for i in range(50)])


def test_repeated_and_slightly_late_timestamps_are_dropped_and_counted() -> None:
    items = steady(1000.0, 50.0)
    items[40] = ("video", 1000.0 + 19 * STEP_S, items[40][2])
    items[60] = ("video", 1000.0 + 27 * STEP_S, items[60][2])
    clock = LiveClock()
    found = by_kind(items, play(clock, items))
    assert len(found["video"]) == 48
    assert (clock.jumps, clock.unusable) == (0, 2)


def test_missing_timestamps_follow_the_last_one() -> None:
    items = steady(1000.0, 50.0)
    items[40] = ("video", None, items[40][2])
    items[42] = ("video", float("nan"), items[42][2])
    clock = LiveClock()
    found = by_kind(items, play(clock, items))
    assert found["video"] == pytest.approx([i * STEP_S for i in range(50)])
    assert clock.unusable == 2


def test_after_an_outage_the_gap_is_what_passed_on_the_wall() -> None:
    before, after = steady(1000.0, 50.0), steady(0.0, 60.0)
    clock = LiveClock()
    first = by_kind(before, play(clock, before))
    clock.connect()
    second = by_kind(after, play(clock, after))
    assert first["video"][-1] == pytest.approx(49 * STEP_S)
    assert second["video"][0] == pytest.approx(10.0)
    assert second["audio"][0] == pytest.approx(10.01)
    assert clock.jumps == 0


def test_a_gap_of_lost_packets_is_a_gap() -> None:
    items = [*steady(1000.0, 50.0), *steady(1005.0, 55.0)]
    clock = LiveClock()
    found = by_kind(items, play(clock, items))
    assert found["video"][50] == pytest.approx(5.0)
    assert clock.jumps == 0


def test_a_buffer_that_is_sent_at_once_counts_from_its_youngest_picture() -> None:
    """A second of the past arrives at once, then each picture as it is taken."""
    clock = LiveClock()
    for i in range(25):
        clock.place("video", i * STEP_S, STEP_S, 100.0)
    t = clock.place("video", 1.0, STEP_S, 100.04)
    assert t == pytest.approx(1.0)
    assert clock.captured_s(1.0) == pytest.approx(100.04)


def test_another_connection_is_not_late_because_the_first_one_sent_its_buffer_at_once() -> None:
    clock = LiveClock()
    burst = [("video", 10.0 + i * STEP_S, 5.0) for i in range(26)]  # a second of the past at once
    play(clock, [*burst, *steady(11.04, 5.04, n=50)])
    clock.connect()
    items = steady(500.0, 12.0)
    found = by_kind(items, play(clock, items))["video"]
    assert found == sorted(found)
    lags = [12.0 + i * STEP_S - clock.captured_s(t) for i, t in enumerate(found)]
    assert lags == pytest.approx([0.0] * 50, abs=0.011)  # the sound is 10 ms ahead


@pytest.mark.parametrize("rate", [10.0, 60.0])
def test_any_frame_rate(rate: float) -> None:
    clock = LiveClock()
    found = [clock.place("video", i / rate, 1 / rate, 5 + i / rate) for i in range(100)]
    assert found == pytest.approx([i / rate for i in range(100)])


def sound_card(ppm: float, seconds: float, jitter_s: float = 0.0) -> list[tuple[float, Samples]]:
    """Blocks of 20 ms of a 300 Hz tone, from a card that is ``ppm`` fast; their measured times."""
    rng = np.random.default_rng(1)
    real_hz = RATE_HZ * (1 + ppm * 1e-6)
    block = 320
    found = []
    for at in range(0, round(seconds * real_hz), block):
        t = np.arange(at, at + block) / real_hz
        tone = 0.3 * np.sin(2 * np.pi * 300 * t)
        found.append((7.0 + at / real_hz + rng.normal(0, jitter_s), tone.astype(np.float32)))
    return found


@pytest.mark.parametrize("ppm", [200.0, -200.0])
def test_drift_is_measured_and_corrected_by_single_samples(ppm: float) -> None:
    clock = SoundClock(RATE_HZ)
    pieces = [clock.push(t, s) for t, s in sound_card(ppm, 300, jitter_s=0.004)]
    assert clock.report.drift_ppm == pytest.approx(ppm, abs=15)
    assert clock.report.jitter_ms == pytest.approx(4.0, rel=0.1)
    assert clock.jumps == 0
    total = sum(len(s) for _, s in pieces)
    assert abs(total / RATE_HZ - 300) < 0.002  # uncorrected: 60 ms
    assert max(abs(len(s) - 320) for _, s in pieces) == 1


def test_corrected_sound_has_no_steps() -> None:
    clock = SoundClock(RATE_HZ)
    out = np.concatenate([clock.push(t, s)[1] for t, s in sound_card(200.0, 60)])
    assert clock.corrections > 100
    steepest = 0.3 * 2 * np.pi * 300 / RATE_HZ  # of the tone itself, a sample
    assert np.abs(np.diff(out)).max() < 1.5 * steepest


def corrections_of_the_session(pieces: list[tuple[float, Samples]]) -> int:
    track = SoundTrack(AudioTokenizer(AudioSpec()))
    for t, samples in pieces:
        for piece in track.on_clock(t - 7.0, samples):
            track.take(piece)
    return track.corrections


def test_the_session_never_needs_to_cut_or_fill_because_of_drift() -> None:
    card = sound_card(200.0, 150)
    clock = SoundClock(RATE_HZ)
    assert corrections_of_the_session(card) > 0
    assert corrections_of_the_session([clock.push(t, s) for t, s in card]) == 0


def test_sound_that_was_lost_is_a_gap_and_no_drift() -> None:
    card = sound_card(0.0, 60)
    clock = SoundClock(RATE_HZ)
    found = [clock.push(t, s) for t, s in card[:1000]]
    found += [clock.push(t, s) for t, s in card[1500:]]  # ten seconds are missing
    assert clock.jumps == 1
    assert found[1000][0] == pytest.approx(7.0 + 30.0, abs=1e-6)
    assert clock.corrections == 0


def test_a_good_clock_is_left_alone() -> None:
    clock = SoundClock(RATE_HZ)
    card = sound_card(0.0, 60)
    for t, samples in card:
        assert clock.push(t, samples)[1] is samples
    assert clock.report.drift_ppm == pytest.approx(0.0, abs=0.1)
    assert clock.report.jitter_ms == pytest.approx(0.0, abs=0.01)


# The pace of a connection


def brought(media_s: float, passed_s: float, *, kept_s: float = 0.0) -> Pace:
    """25 a second, ``kept_s`` of them at once and the rest evenly."""
    pace = Pace(100.0)
    for i in range(round(media_s * 25) + 1):
        t_s = i / 25
        pace.came(5 + t_s, 100 + passed_s * max(0.0, t_s - kept_s) / (media_s - kept_s))
    return pace


def test_a_camera_keeps_the_pace_of_the_world() -> None:
    pace = brought(10, 10)
    assert pace.paced
    assert not pace.recorded(110.0)


def test_a_camera_that_gives_what_it_kept_first_is_seen_to_be_one_soon() -> None:
    assert not brought(2.5, 0.5, kept_s=2).paced
    pace = brought(10, 8, kept_s=2)
    assert pace.paced
    assert not pace.recorded(108.0)


def test_a_recording_comes_faster_than_it_happened() -> None:
    pace = brought(60, 20)
    assert not pace.paced
    assert pace.recorded(120.0)


def test_a_busy_judge_makes_no_camera_of_a_recording() -> None:
    """60 s that took 55, of which the connection was left alone for 40."""
    pace = brought(60, 55)
    pace.set_aside(40.0)
    assert pace.recorded(155.0)


def test_a_recording_that_waits_for_a_busy_judge_is_not_paced() -> None:
    pace = Pace(100.0)
    pace.set_aside(3.0)  # the model loads
    for i in range(100):
        pace.set_aside(0.08)  # twice what there is
        pace.came(i / 25, 103.0 + 0.08 * i)
        assert not pace.paced


def test_what_is_far_ahead_is_no_camera_whatever_it_seemed() -> None:
    pace = brought(10, 10)
    for i in range(1500):
        pace.came(15 + i / 25, 110.0)
    assert not pace.paced
    pace.came(75.0, 400.0)
    assert not pace.paced
