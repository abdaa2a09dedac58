# SPDX-License-Identifier: Apache-2.0
"""Sessions: the same verdicts however media arrives, and an honest reason when there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.faces import Face
from runtime.flow.model_calls import drive
from runtime.flow.pictures import Load
from runtime.flow.session import Session
from runtime.flow.summary import WindowTimes
from runtime.flow.windows import WindowRecord, score_window
from runtime.grid import MISSING, nearest_before
from runtime.judging.decision import Decision
from runtime.judging.offset import lag_peak
from runtime.judging.verdict import Label, Reason, Verdict
from runtime.logits import fake_minus_real, sigmoid
from runtime.media import VideoChunk
from runtime.media.file import FileSource
from runtime.sound.tokens import AudioTokens, tokenize
from runtime.spec import PairSpec
from tests.runtime.doubles import (
    SPEC,
    TOKEN_SAMPLES,
    MockBackend,
    MockTracker,
    picture,
    speech,
    with_calibration,
    with_stream,
)

Push = Callable[[Session], list[Verdict]]


def video(tokens: Sequence[int] | range) -> list[tuple[float, Push]]:
    return [(t / 25, lambda s, t=t: s.push_video(t / 25, picture(t))) for t in tokens]


def sound(samples: np.ndarray[Any, Any], chunk: int = 1024, start_s: float = 0.0) -> list[
    tuple[float, Push]
]:  # fmt: skip
    out: list[tuple[float, Push]] = []
    for at in range(0, len(samples), chunk):
        t_s = start_s + at / 16_000
        piece = samples[at : at + chunk]
        out.append((t_s, lambda s, t_s=t_s, piece=piece: s.push_audio(t_s, piece)))
    return out


def play(
    *events: list[tuple[float, Push]],
    backend: MockBackend | None = None,
    tracker: MockTracker | None = None,
    interleaved: bool = True,
    **options: Any,
) -> tuple[list[Verdict], Session]:
    """Push everything in order of time (or one list after the other) and finish."""
    session = Session(
        backend or MockBackend(), source="test", tracker=tracker or MockTracker(), **options
    )
    queue = [e for events_ in events for e in events_]
    if interleaved:
        queue.sort(key=lambda e: e[0])
    verdicts = [v for _, push in queue for v in push(session)]
    return verdicts + session.finish(), session


def timeless(verdicts: list[Verdict]) -> list[Verdict]:
    return [replace(v, latency_ms=0.0) for v in verdicts]


def reasons(verdicts: list[Verdict]) -> list[str]:
    return [str(v.reason) if v.reason else str(v.label) for v in verdicts]


# Windows


def test_one_verdict_a_hop() -> None:
    verdicts, session = play(video(range(75)), sound(speech(75)))
    assert [(v.t_start_s, v.t_end_s) for v in verdicts] == [
        (pytest.approx(0.2 * i), pytest.approx(2.0 + 0.2 * i)) for i in range(6)
    ]
    assert {v.face_id for v in verdicts} == {0}
    assert {v.label for v in verdicts} == {Label.REAL}
    assert {v.model_id for v in verdicts} == {"mock-1"}
    assert all(v.latency_ms >= 0 for v in verdicts)
    assert (session.stats.verdicts, session.stats.coverage) == (6, 1.0)


def test_a_verdict_comes_as_soon_as_its_window_is_full() -> None:
    session = Session(MockBackend(), source="test", tracker=MockTracker())
    session.push_audio(0.0, speech(60))
    assert not [v for t in range(50) for v in session.push_video(t / 25, picture(t))]
    assert len(session.push_video(50 / 25, picture(50))) == 1  # it proves token 49


def test_window_and_hop_can_be_chosen() -> None:
    stream = replace(SPEC.stream, window_tokens=25, hop_tokens=10)
    verdicts, _ = play(video(range(75)), sound(speech(75)), stream=stream)
    assert [v.t_end_s for v in verdicts] == [1.0, 1.4, 1.8, 2.2, 2.6, 3.0]


def test_every_face_is_encoded_once() -> None:
    backend = MockBackend()
    play(video(range(100)), sound(speech(100)), backend=backend)
    assert sum(backend.encoded) == 100


def test_a_stream_shorter_than_a_window_abstains_once() -> None:
    verdicts, _ = play(video(range(30)), sound(speech(30)))
    assert reasons(verdicts) == ["too_short"]
    assert (verdicts[0].t_start_s, verdicts[0].t_end_s, verdicts[0].face_id) == (0.0, 1.2, None)


def test_an_empty_stream_abstains_once() -> None:
    verdicts, _ = play()
    assert reasons(verdicts) == ["too_short"]


def test_a_session_ends_once() -> None:
    _, session = play(video(range(3)))
    with pytest.raises(RuntimeError, match="finished"):
        session.push_video(9.0, picture(0))


def test_what_a_verdict_was_made_of_can_be_asked_for_and_gives_it_again() -> None:
    records: list[WindowRecord] = []
    verdicts, _ = play(
        video(range(120)), sound(speech(120, late_tokens=3)), on_scores=records.append
    )
    decision = Decision(SPEC)
    again = [decision.judge(r.facts, r.scores) for r in records]
    assert [(j.p_fake, j.label, j.reason) for j in again] == [
        (v.p_fake, v.label, v.reason) for v in verdicts
    ]
    assert len(records) == 15
    # three windows agree that the sound is 3 tokens late, then it is taken from there
    assert [r.compensation_tokens for r in records] == [0] * 3 + [3] * 12
    offsets = [r.compensation_tokens + lag_peak(r.curve).lag_tokens for r in records]
    assert offsets == [3] * 15
    assert {(r.visual.shape, r.audio.shape) for r in records} == {((50, 16), (50, 104))}


@pytest.mark.parametrize("late", [3, -2])
def test_a_sites_known_offset_is_compensated_from_the_first_window(late: int) -> None:
    records: list[WindowRecord] = []
    stream = replace(SPEC.stream, av_offset_tokens=late)
    sources = video(range(120)), sound(speech(120, late_tokens=late))
    verdicts, _ = play(*sources, stream=stream, on_scores=records.append)
    without, _ = play(*sources)
    assert {r.compensation_tokens for r in records} == {late}
    assert {v.av_offset_ms for v in verdicts} == {late * 40.0}  # the total, not the remainder
    assert verdicts[0].label is Label.REAL
    assert without[0].label is Label.FAKE  # of this model, until the offset is compensated


def test_a_record_of_an_abstention_has_no_scores() -> None:
    records: list[WindowRecord] = []
    play(video(range(60)), has_audio=False, tracker=MockTracker(lambda t: []),
         on_scores=records.append)  # fmt: skip
    assert len(records) == 3
    assert all((r.scores, r.curve, r.visual, r.audio) == (None,) * 4 for r in records)
    assert {r.facts.face_id for r in records} == {None}


def test_where_the_time_of_a_window_went_adds_up_and_counts_the_last_push_alone() -> None:
    times: list[WindowTimes] = []
    session = Session(
        MockBackend(), source="s", tracker=MockTracker(), on_judged=times.append
    )  # fmt: skip
    sounds = speech(60)
    verdicts = []
    for t in range(60):
        session.push_video(t / 25, picture(t))
        arrival = time.perf_counter() - 0.5  # half a second in a queue
        steps = session.audio_steps(t / 25, sounds[t * 640 : t * 640 + 640], arrival)
        verdicts += drive(steps, MockBackend())
    session.finish()
    assert [w.t_end_s for w in times] == [2.0, 2.2, 2.4]
    live = [w for w in times if w.waited_s is not None]
    assert live
    for window, verdict in zip(live, verdicts, strict=False):
        assert window.waited_s is not None
        assert 0.5 <= window.waited_s < 1.5  # and what a busy machine adds
        assert window.block_s == pytest.approx(0.04)
        assert (window.seconds["face"], window.seconds["encode"]) == (0.0, 0.0)  # done before
        assert window.seconds["fuse"] > 0
        assert sum(window.seconds.values()) <= window.worked_s
        total_ms = (window.waited_s + window.worked_s) * 1000
        assert 0 <= total_ms - verdict.latency_ms < 500


def test_a_window_that_only_the_end_completes_waited_for_nothing() -> None:
    times: list[WindowTimes] = []
    play(video(range(51)), has_audio=False, on_judged=times.append)
    assert [w.waited_s is None for w in times] == [False]  # the picture after it completed it
    times.clear()
    session = Session(MockBackend(), source="s", tracker=MockTracker(), on_judged=times.append)
    for t in range(50):  # the sound never comes
        session.push_video(t / 25, picture(t))
    session.finish()
    assert [w.waited_s for w in times] == [None]


# The same verdicts however the media arrives


def arrivals() -> Iterator[tuple[list[Verdict], Session]]:
    samples = speech(120, late_tokens=3)
    yield play(video(range(120)), sound(samples, 1024))
    yield play(video(range(120)), sound(samples, 37))
    yield play(video(range(120)), sound(samples, len(samples)))
    yield play(video(range(120)), sound(samples, 5000), interleaved=False)
    yield play(sound(samples, 1600), video(range(120)), interleaved=False)


def test_arrival_order_and_chunks_change_nothing() -> None:
    results = [timeless(verdicts) for verdicts, _ in arrivals()]
    assert len(results[0]) == 15
    assert all(result == results[0] for result in results)


def whole_window(backend: Any, crops: list[Any], audio: AudioTokens, start: int) -> float:
    t = backend.spec.stream.window_tokens
    out = score_window(backend, np.stack(crops[start : start + t]), audio.tokens[start : start + t])
    c = backend.spec.calibration
    return sigmoid(fake_minus_real(out.logits_av[0]) / c.temperature_av + c.bias_av)


def test_cached_features_equal_the_whole_window() -> None:
    backend = MockBackend(with_stream(smoothing=1.0))
    samples = speech(80)
    verdicts, _ = play(video(range(80)), sound(samples), backend=backend)
    tracker = MockTracker()
    crops = [tracker.update(picture(t), t)[0].crop for t in range(80)]
    audio = tokenize(samples, SPEC.audio)
    for i, verdict in enumerate(verdicts):
        assert verdict.p_fake == pytest.approx(whole_window(backend, crops, audio, 5 * i), abs=1e-6)


def test_cached_features_equal_the_whole_window_on_a_real_clip(
    real_pair: Path, grid_clip: Path
) -> None:
    """With a real network, real faces and real sound: within 1e-4."""
    from runtime.backends.onnx import OnnxBackend
    from runtime.faces.tracker import FaceTracker

    with OnnxBackend(real_pair, threads=1) as backend, FileSource(grid_clip) as source:
        spec = backend.spec
        stream = replace(spec.stream, smoothing=1.0, min_lag_confidence=9.0)
        session = Session(backend, source="clip", stream=stream)
        faces = FaceTracker(spec.face)
        verdicts: list[Verdict] = []
        crops: list[np.ndarray[Any, Any]] = []
        pieces: list[np.ndarray[Any, Any]] = []
        for chunk in source:
            if isinstance(chunk, VideoChunk):
                verdicts += session.push_video(chunk.t_s, chunk.frame)
                found = faces.update(chunk.frame, len(crops))
                crops.append(found[0].crop if found else crops[-1])
            else:
                verdicts += session.push_audio(chunk.t_s, chunk.samples)
                pieces.append(chunk.samples)
        verdicts += session.finish()
        audio = tokenize(np.concatenate(pieces), spec.audio)
        compared = 0
        for verdict in verdicts:
            start = round(verdict.t_start_s * 25)
            if verdict.p_fake is not None and start + 50 <= len(audio.tokens):
                compared += 1
                expected = whole_window(backend, crops, audio, start)
                assert verdict.p_fake == pytest.approx(expected, abs=1e-4)
        assert compared >= 4


# Pictures: rates, gaps, faces


def test_a_low_frame_rate_repeats_pictures() -> None:
    pictures = [(t, p) for t, p in video(range(100)) if round(t * 25) % 2 == 0]  # 12.5 fps
    tracker = MockTracker()
    verdicts, _ = play(pictures, sound(speech(100)), tracker=tracker)
    assert tracker.tokens == list(range(0, 100, 2))  # a repeated picture is not searched again
    assert all(v.label is not Label.ABSTAIN for v in verdicts)


def test_a_high_frame_rate_skips_pictures_without_converting_them() -> None:
    converted: list[float] = []

    def lazy(t_s: float) -> Push:
        def make() -> np.ndarray[Any, Any]:
            converted.append(t_s)
            return picture(round(t_s * 25))

        return lambda s: s.push_video(t_s, make)

    pictures = [(i / 100, lazy(i / 100)) for i in range(300)]
    _, session = play(pictures, sound(speech(75)))
    assert len(converted) == 75
    assert session.stats.skipped == 224  # and one more that waited at the end


def test_three_missing_pictures_are_bridged_and_four_are_not() -> None:
    for missing, expected in ((3, {"real"}), (4, {"too_many_drops"})):
        tokens = [t for t in range(75) if not 30 <= t < 30 + missing]
        verdicts, session = play(video(tokens), sound(speech(75)))
        assert set(reasons(verdicts)) == expected
        assert session.stats.gaps == (1 if missing > 3 else 0)


def test_after_a_gap_has_left_the_window_verdicts_come_back() -> None:
    tokens = [t for t in range(150) if not 20 <= t < 40]
    verdicts, session = play(video(tokens), sound(speech(150)))
    abstained = [v for v in verdicts if v.reason is Reason.TOO_MANY_DROPS]
    assert next(v.t_end_s for v in verdicts if v.reason is None) == pytest.approx(90 / 25)
    assert all(v.p_fake is None and v.p_fake_audio is not None for v in abstained)
    assert session.stats.gaps == 17  # the first three repeat the last picture


def test_bad_timestamps_are_dropped_and_counted() -> None:
    bad: list[tuple[float, Push]] = [
        (1.0, lambda s: s.push_video(0.5, picture(0))),
        (1.1, lambda s: s.push_video(float("nan"), picture(0))),
    ]
    verdicts, session = play(video(range(75)), sound(speech(75)), bad)
    assert session.stats.dropped == 2
    assert set(reasons(verdicts)) == {"real"}


def test_no_face_leaves_the_voice() -> None:
    backend = MockBackend()
    verdicts, _ = play(
        video(range(60)), sound(speech(60)), backend=backend, tracker=MockTracker(lambda t: [])
    )
    assert reasons(verdicts) == ["no_face"] * 3
    assert all(v.face_id is None and v.p_fake is None and v.sync is None for v in verdicts)
    assert all(v.p_fake_audio is not None and v.p_fake_video is None for v in verdicts)
    assert all(not visual.any() and audio.any() for visual, audio in backend.fused)


def test_a_face_that_comes_late_is_judged_when_it_filled_a_window() -> None:
    tracker = MockTracker(lambda t: [(0, 80.0)] if t >= 20 else [])
    verdicts, _ = play(video(range(90)), sound(speech(90)), tracker=tracker)
    # a window of 50 tokens bridges three at its start
    assert [(v.face_id, *reasons([v])) for v in verdicts] == [
        *[(0, "no_face")] * 4, *[(0, "real")] * 5
    ]  # fmt: skip


def test_a_face_seen_briefly_is_no_face_of_the_window() -> None:
    tracker = MockTracker(lambda t: [(0, 80.0), (1, 60.0)] if t < 10 else [(0, 80.0)])
    verdicts, _ = play(video(range(60)), sound(speech(60)), tracker=tracker)
    assert {v.face_id for v in verdicts} == {0}


def test_a_face_lost_for_long_abstains() -> None:
    tracker = MockTracker(lambda t: [] if 25 <= t < 35 else [(0, 80.0)])
    verdicts, _ = play(video(range(60)), sound(speech(60)), tracker=tracker)
    assert set(reasons(verdicts)) == {"no_face"}


def test_a_small_face_abstains() -> None:
    tracker = MockTracker(lambda t: [(0, 30.0)])
    verdicts, _ = play(video(range(60)), sound(speech(60)), tracker=tracker)
    assert set(reasons(verdicts)) == {"face_too_small"}


def test_a_face_turned_away_abstains() -> None:
    class Turned(MockTracker):
        def update(self, frame: np.ndarray[Any, Any], token: int) -> list[Face]:
            return [replace(face, turn_deg=50.0) for face in super().update(frame, token)]

    verdicts, _ = play(video(range(60)), sound(speech(60)), tracker=Turned())
    assert set(reasons(verdicts)) == {"face_turned"}
    assert all(v.p_fake is not None for v in verdicts)


@pytest.mark.parametrize(
    ("load", "ends", "searched"),
    [
        (Load(hops=2), [50, 60, 70], range(75)),
        (Load(hops=4), [50, 70], range(75)),
        (Load(pictures=2), [50, 55, 60, 65, 70, 75], range(0, 75, 2)),
        (Load(hops=4, pictures=3), [50, 70], range(0, 75, 3)),
    ],
)
def test_under_a_smaller_load_fewer_windows_and_pictures_are_judged_and_counted(
    load: Load, ends: list[int], searched: range
) -> None:
    tracker = MockTracker()
    session = Session(MockBackend(), source="test", tracker=tracker)
    session.load = load
    verdicts = [
        v for _, push in sorted(video(range(75)) + sound(speech(75)), key=lambda e: e[0])
        for v in push(session)
    ] + session.finish()  # fmt: skip
    assert [round(v.t_end_s * 25) for v in verdicts] == ends
    assert tracker.tokens == list(searched)
    assert session.stats.shed_windows == len(ends) * (load.hops - 1)
    assert session.stats.shed_pictures == 75 - len(searched)
    assert all(v.p_fake is not None for v in verdicts)  # no gap


def test_of_several_faces_only_the_one_that_speaks_gets_a_label() -> None:
    tracker = MockTracker(lambda t: [(1, 90.0), (0, 80.0)])
    backend = MockBackend()
    verdicts, _ = play(video(range(60)), sound(speech(60)), tracker=tracker, backend=backend)
    assert [(v.face_id, *reasons([v])) for v in verdicts] == [
        (0, "real"), (1, "no_active_speaker")
    ] * 3  # fmt: skip
    assert all(len(visual) == 2 for visual, _ in backend.fused)  # one batch for both


def test_when_no_face_matches_the_sound_none_is_called_fake_for_it() -> None:
    tracker = MockTracker(lambda t: [(1, 90.0), (2, 80.0)])
    verdicts, _ = play(video(range(60)), sound(speech(60)), tracker=tracker)
    assert set(reasons(verdicts)) == {"no_active_speaker"}


def test_a_new_frame_size_makes_the_tracker_start_again() -> None:
    tracker = MockTracker()
    session = Session(MockBackend(), source="test", tracker=tracker)
    for t in range(20):
        session.push_video(t / 25, picture(t, (48, 64) if t < 10 else (96, 128)))
    session.finish()
    assert tracker.resets == 1


# Sound: missing, silent, on a bad clock, late


def test_without_sound_only_the_picture_is_scored() -> None:
    backend = MockBackend()
    verdicts, _ = play(video(range(60)), backend=backend, has_audio=False)
    assert reasons(verdicts) == ["no_audio"] * 3
    assert all(v.p_fake is None and v.p_fake_audio is None for v in verdicts)
    assert all(v.p_fake_video is not None for v in verdicts)
    assert all(visual.any() and not audio.any() for visual, audio in backend.fused)


def test_without_pictures_only_the_sound_is_scored() -> None:
    verdicts, _ = play(sound(speech(60)), has_video=False)
    assert reasons(verdicts) == ["no_face"] * 3
    assert all(v.p_fake_audio is not None and v.p_fake_video is None for v in verdicts)


@pytest.mark.parametrize("level", [0.0, 1e-4])
def test_silence_is_no_speech(level: float) -> None:
    verdicts, _ = play(video(range(60)), sound(speech(60, level=level)))
    assert set(reasons(verdicts)) == {"no_speech"}
    assert all(v.p_fake_audio is None and v.p_fake_video is not None for v in verdicts)


def test_sound_that_starts_late_is_no_sound_before() -> None:
    verdicts, session = play(
        video(range(100)), sound(speech(100)[20 * TOKEN_SAMPLES :], start_s=20 / 25)
    )
    assert reasons(verdicts) == [*["no_audio"] * 4, *["real"] * 7]
    assert session.stats.clock_corrections == 0


@pytest.mark.parametrize("jump_tokens", [10, -10])
def test_a_jump_of_the_sounds_clock_abstains_while_it_is_in_the_window(jump_tokens: int) -> None:
    samples = speech(160)
    before = samples[: 60 * TOKEN_SAMPLES]
    after = samples[(60 + jump_tokens) * TOKEN_SAMPLES :]
    pushes = [p for _, p in sound(before) + sound(after, start_s=(60 + jump_tokens) / 25)]
    verdicts, session = play(video(range(150)), [(i * 0.064, p) for i, p in enumerate(pushes)])
    assert session.stats.clock_corrections >= 1
    found = [v.t_end_s for v in verdicts if v.reason is Reason.AV_CLOCK_UNRELIABLE]
    assert found == pytest.approx([e / 25 for e in range(65, 111, 5)])
    assert {str(v.label) for v in verdicts if v.reason is None} == {"real"}


def test_a_small_correction_of_the_clock_is_made_and_counted() -> None:
    samples = speech(75)
    cut = 40 * TOKEN_SAMPLES
    verdicts, session = play(
        video(range(75)), sound(samples[:cut]),
        sound(samples[cut + 800 :], start_s=(cut + 800) / 16_000),
    )  # fmt: skip
    assert session.stats.clock_corrections == 1
    assert set(reasons(verdicts)) == {"real"}


def test_rounded_timestamps_are_no_clock_error() -> None:
    jitter = np.random.default_rng(1).uniform(-0.005, 0.005, 200)
    chunks = [
        (t_s, lambda s, p=p, t=t_s + j: push(s, p, t))
        for (t_s, p), j in zip(sound_pieces(speech(75)), jitter, strict=False)
    ]

    def push(session: Session, piece: np.ndarray[Any, Any], t_s: float) -> list[Verdict]:
        return session.push_audio(max(0.0, t_s), piece)

    verdicts, session = play(video(range(75)), chunks)
    assert session.stats.clock_corrections == 0
    assert set(reasons(verdicts)) == {"real"}


def sound_pieces(samples: np.ndarray[Any, Any]) -> list[tuple[float, np.ndarray[Any, Any]]]:
    return [(at / 16_000, samples[at : at + 1024]) for at in range(0, len(samples), 1024)]


@pytest.mark.parametrize("late", [-4, 3])
def test_transport_is_compensated_and_reported_apart(late: int) -> None:
    verdicts, _ = play(video(range(150)), sound(speech(150, late_tokens=late)))
    whole = [v for v in verdicts if v.reason is None]
    assert {v.av_offset_ms for v in whole} == {late * 40.0}
    assert {str(v.label) for v in whole[6:]} == {"real"}


@pytest.mark.parametrize("late", [-12, 10])
def test_a_forged_shift_is_reported_and_not_compensated(late: int) -> None:
    verdicts, _ = play(video(range(150)), sound(speech(150, late_tokens=late)))
    assert {v.av_offset_ms for v in verdicts} == {late * 40.0}
    assert {str(v.label) for v in verdicts} == {"fake"}


# Domain


def test_a_window_that_the_encoders_cannot_read_abstains() -> None:
    spec: PairSpec = with_calibration(min_clarity=0.99)
    verdicts, _ = play(video(range(60)), sound(speech(60)), backend=MockBackend(spec))
    assert set(reasons(verdicts)) == {"out_of_domain"}


# Bounds


def test_a_long_stream_keeps_no_more_than_a_window() -> None:
    session = Session(MockBackend(), source="test", tracker=MockTracker())
    samples = speech(25)
    for t in range(2000):
        session.push_video(t / 25, picture(t % 25))
        if t % 25 == 0:
            session.push_audio(t / 25, samples)
    assert len(session._pictures.rings[0].features) <= 60
    assert len(session._sound._kept) <= 100
    assert len(session._pictures._pending) <= 5


def test_a_stream_whose_sound_stops_is_not_waited_for_without_end() -> None:
    session = Session(MockBackend(), source="test", tracker=MockTracker())
    verdicts = session.push_audio(0.0, speech(60))
    for t in range(600):
        verdicts += session.push_video(t / 25, picture(t))
    assert verdicts[-1].t_end_s >= 13.0  # ten seconds behind, not sixty
    assert len(session._pictures.rings[0].features) <= 320
    verdicts += session.push_audio(60 / 25, speech(60))
    verdicts += session.finish()
    assert session.stats.late > 0
    assert verdicts[-1].t_end_s == 24.0


def test_a_leap_of_an_hour_is_survived() -> None:
    session = Session(MockBackend(), source="test", tracker=MockTracker())
    session.push_video(0.0, picture(0))
    verdicts = session.push_video(600.0, picture(1)) + session.finish()
    assert set(reasons(verdicts)) == {"too_many_drops"}
    assert len(session._pictures._gaps) < 400


def test_stage_seconds_are_measured() -> None:
    _, session = play(video(range(60)), sound(speech(60)))
    seconds = session.stats.seconds
    assert set(seconds) == {"decode", "face", "audio", "encode", "fuse", "decide"}
    assert all(s > 0 for s in seconds.values())


# Which token stands for which


@pytest.mark.parametrize(
    ("have", "expected"),
    [
        ([0, 1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6]),
        ([1, 5], [1, 1, 1, 5, 5]),
        ([2], [2, 2, 2, 2, MISSING]),
        ([5], [5, 5, 5, 5, 5]),
        ([6], [MISSING, 6, 6, 6, 6]),
        ([], [MISSING] * 5),
    ],
)
def test_nearest_before(have: list[int], expected: list[int]) -> None:
    found = nearest_before(np.arange(2, 7), np.array(have, np.int64), 3)
    assert found.tolist() == expected
