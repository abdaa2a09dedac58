# SPDX-License-Identifier: Apache-2.0
"""Channels that cancel each other out are noticed, by the samples alone; others are mixed."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.media import AudioChunk
from runtime.media.decoding import Resampler
from runtime.media.downmix import BLOCK_S, EVIDENCE, MAX_HELD, Downmix
from runtime.media.file import FileSource
from runtime.media.network import NetworkSource
from runtime.media.sandbox.reader import IsolatedFile
from tests.runtime.live_server import Response, http_server

RATE_HZ = 16_000
STEREO = (0.5**0.5, 0.5**0.5)  # FFmpeg's
NOTE = (
    "the channels of the sound are out of phase and cancel each other out when they are mixed: "
    "channel 1 is heard alone"
)
Array = np.ndarray[Any, Any]


def noise(seconds: float, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(round(seconds * RATE_HZ))).astype(np.float32)


def voice(seconds: float, seed: int = 0) -> Array:
    """Syllables of noise with pauses between them."""
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    gate = (np.sin(2 * np.pi * 3 * t + seed) > -0.2).astype(np.float32)
    return (noise(seconds, seed) * gate + 0.001 * noise(seconds, seed + 100)).astype(np.float32)


def opposite(sound: Array, gain: float = 1.0) -> Array:
    return np.stack([sound, -gain * sound])


def mono(channels: Array, *, hold: bool, sizes: list[int] | None = None) -> tuple[Array, Downmix]:
    """The whole, given in chunks of these sizes, over and over."""
    mix = Downmix(STEREO, RATE_HZ, hold=hold)
    at, n, out = 0, 0, []
    sizes = sizes or [channels.shape[1]]
    while at < channels.shape[1]:
        size = sizes[n % len(sizes)]
        out += mix.push(channels[:, at : at + size], at)
        at, n = at + size, n + 1
    out += mix.finish()
    tags = [tag for tag, _ in out]
    assert tags == sorted(set(tags))
    return np.concatenate([samples for _, samples in out]), mix


def power(samples: Array) -> float:
    return float(np.mean(samples.astype(np.float64) ** 2))


# What is noticed


@pytest.mark.parametrize("gain", [1.0, 0.9, 0.8])
def test_of_a_file_that_is_out_of_phase_one_channel_is_heard_from_its_start(gain: float) -> None:
    sound = voice(4.0)
    heard, mix = mono(opposite(sound, gain), hold=True)
    np.testing.assert_array_equal(heard, sound)
    assert (mix.alone, mix.ever) == (0, 0)


def test_the_louder_one_is_taken() -> None:
    sound = voice(4.0)
    heard, mix = mono(np.stack([-0.8 * sound, sound]), hold=True)
    np.testing.assert_array_equal(heard, sound)
    assert mix.ever == 1


def test_of_a_live_source_the_first_second_is_mixed_and_nothing_waits() -> None:
    sound = noise(4.0)
    mix = Downmix(STEREO, RATE_HZ, hold=False)
    begun = round(EVIDENCE * BLOCK_S * RATE_HZ)
    pieces = [
        mix.push(opposite(sound[at : at + 160]), at)[0][1] for at in range(0, len(sound), 160)
    ]
    assert [len(p) for p in pieces] == [160] * len(pieces)
    heard = np.concatenate(pieces)
    assert power(heard[:begun]) < 1e-12
    np.testing.assert_array_equal(heard[begun:], sound[begun:])


def test_silence_before_it_changes_nothing() -> None:
    sound = np.concatenate([np.zeros(RATE_HZ // 2, np.float32), noise(3.0)])
    heard, _ = mono(opposite(sound), hold=True)
    np.testing.assert_array_equal(heard, sound)


def test_noise_of_two_microphones_beside_it_does_not_hide_it() -> None:
    sound = voice(4.0)
    both = opposite(sound) + 0.05 * np.stack([noise(4.0, 8), noise(4.0, 9)])
    _, mix = mono(both, hold=True)
    assert mix.ever is not None


def test_a_short_file_decides_by_what_it_has() -> None:
    sound = noise(0.33)
    heard, _ = mono(opposite(sound), hold=True)
    np.testing.assert_array_equal(heard, sound)


def test_where_it_ends_the_mix_is_taken_again() -> None:
    sound = noise(8.0)
    half = len(sound) // 2
    both = np.stack([sound, np.concatenate([-sound[:half], sound[half:]])])
    heard, mix = mono(both, hold=True)
    assert (mix.alone, mix.ever) == (None, 0)
    np.testing.assert_array_equal(heard[:half], sound[:half])
    later = half + RATE_HZ
    np.testing.assert_allclose(heard[later:], 2 * STEREO[0] * sound[later:], rtol=1e-6)


def test_of_more_than_two_channels_the_mix_decides() -> None:
    """5.1 whose front pair is out of phase: with the voice in it, and with the voice in the
    centre."""
    weights = [0.707, 0.707, 1.0, 0.0, 0.5, 0.5]
    sound, centre = voice(4.0), voice(4.0, 5)
    channels = np.zeros((6, len(sound)), np.float32)
    channels[:2] = opposite(sound)
    mix = Downmix(weights, RATE_HZ, hold=True)
    out = [*mix.push(channels), *mix.finish()]
    np.testing.assert_array_equal(np.concatenate([s for _, s in out]), sound)
    channels[2] = centre
    mix = Downmix(weights, RATE_HZ, hold=True)
    mix.push(channels)
    assert mix.ever is None


# What must not be taken for it


def delayed(seconds: float) -> Array:
    sound, shift = voice(seconds + 1), 24  # 1.5 ms: microphones half a metre apart
    return np.stack([sound[shift:], sound[:-shift]])[:, : round(seconds * RATE_HZ)]


GENUINE = {
    "mono": lambda: np.stack([voice(8.0)] * 2),
    "decorrelated": lambda: np.stack([noise(8.0, 1), noise(8.0, 2)]),
    "two voices": lambda: np.stack([voice(8.0, 1), voice(8.0, 2)]),
    "left alone": lambda: np.stack([voice(8.0), np.zeros(8 * RATE_HZ, np.float32)]),
    "delayed": lambda: delayed(8.0),
    "wide": lambda: np.stack([voice(8.0) + noise(8.0, 3), voice(8.0) - noise(8.0, 3)]),
    "opposite but quiet": lambda: opposite(voice(8.0), 0.5),
    "silence": lambda: np.zeros((2, 8 * RATE_HZ), np.float32),
    "hum below hearing": lambda: opposite(0.001 * noise(8.0)),
}


@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize("kind", GENUINE)
def test_genuine_stereo_is_mixed(kind: str, hold: bool) -> None:
    both = GENUINE[kind]().astype(np.float32)
    heard, mix = mono(both, hold=hold)
    assert mix.ever is None
    np.testing.assert_allclose(heard, STEREO[0] * (both[0] + both[1]), atol=1e-6)


def test_decorrelated_noise_is_never_taken_for_it_at_any_moment() -> None:
    """Eight minutes of it."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        both = rng.standard_normal((2, 120 * 1600)).astype(np.float32)
        mix = Downmix(STEREO, 1600, hold=False)
        mix.push(both)
        assert mix.ever is None


def test_damaged_samples_are_no_evidence() -> None:
    both = np.stack([voice(3.0), voice(3.0, 2)])
    both[:, 5000:5010] = np.nan
    both[0, 9000] = np.inf
    heard, mix = mono(both, hold=True)
    assert mix.ever is None
    assert np.isfinite(heard).all()


# Chunks

SCENES = {
    "opposite": lambda: opposite(voice(5.0)),
    "turns": lambda: np.concatenate(
        [opposite(voice(2.5)), np.stack([voice(2.5, 1)] * 2), opposite(noise(2.0, 2), 0.9)], axis=1
    ),
    "short": lambda: opposite(noise(0.4)),
    "genuine": lambda: np.stack([voice(3.0, 1), voice(3.0, 2)]),
}


@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize("scene", SCENES)
@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=6))
def test_any_chunking_gives_the_same_sound(scene: str, hold: bool, sizes: list[int]) -> None:
    both = SCENES[scene]().astype(np.float32)
    sizes = [*sizes, 4000]  # not by single samples all the way
    whole, batch = mono(both, hold=hold)
    pieces, chunked = mono(both, hold=hold, sizes=sizes)
    np.testing.assert_array_equal(pieces, whole)
    assert (chunked.alone, chunked.ever) == (batch.alone, batch.ever)
    assert len(whole) == both.shape[1]


def test_no_more_is_held_back_than_two_seconds() -> None:
    mix = Downmix(STEREO, RATE_HZ, hold=True)
    silence = np.zeros((2, 1600), np.float32)
    given_out = [len(mix.push(silence)) for _ in range(MAX_HELD + 5)]
    assert given_out == [0] * (MAX_HELD - 1) + [MAX_HELD] + [1] * 5


# From sources


def write_wav(path: Path, channels: Array, rate_hz: int = RATE_HZ) -> Path:
    with wave.open(str(path), "wb") as out:
        out.setparams((len(channels), 2, rate_hz, 0, "NONE", ""))
        out.writeframes((channels.T * 32767).astype("<i2").tobytes())
    return path


def heard_from(source: Any) -> Array:
    with source:
        return np.concatenate([c.samples for c in source if isinstance(c, AudioChunk)])


@pytest.mark.parametrize("open_file", [FileSource, IsolatedFile])
def test_a_file_out_of_phase_is_heard_and_told(
    tmp_path: Path, open_file: Callable[..., Any]
) -> None:
    sound = voice(3.0)
    source = open_file(write_wav(tmp_path / "x.wav", opposite(sound)))
    np.testing.assert_allclose(heard_from(source), sound, atol=1e-4)
    assert source.warnings == [NOTE]
    source = open_file(write_wav(tmp_path / "y.wav", np.stack([sound, sound])))
    heard_from(source)
    assert source.warnings == []


def test_the_times_of_what_was_held_back_are_its_own(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "x.wav", opposite(voice(3.0)))
    with FileSource(path) as source:
        chunks = [c for c in source if isinstance(c, AudioChunk)]
    at = 0
    for chunk in chunks:
        assert chunk.t_s == pytest.approx(at / RATE_HZ, abs=2 / RATE_HZ)
        at += chunk.samples.size


def test_a_network_stream_out_of_phase_is_told_once_over_all_connections(tmp_path: Path) -> None:
    path = tmp_path / "x.ts"
    sound = opposite(noise(3.0))
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mp2", rate=RATE_HZ, layout="stereo")
        for at in range(0, sound.shape[1], 1152):
            block = (sound[:, at : at + 1152].T * 32767).astype(np.int16).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), "s16", "stereo")
            frame.sample_rate, frame.pts = RATE_HZ, at
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    body, lines, seconds = path.read_bytes(), [], 0.0
    responses = [Response(body), Response(body, hang=True)]
    with (
        http_server(responses) as url,
        NetworkSource(url, stall_s=2.0, notice=lines.append) as source,
    ):
        loud = []
        for chunk in source:
            assert isinstance(chunk, AudioChunk)
            loud.append(power(chunk.samples) > 1e-3)
            seconds += chunk.samples.size / RATE_HZ
            if seconds > 5.5:
                break
    assert sum(loud) / len(loud) > 0.5  # all but the first second of each connection
    assert [line for line in lines if NOTE in line] == [f"{source.name}: {NOTE}"]
    assert source.warnings[0] == NOTE
    assert NOTE not in source.warnings[1:]


# The resampler as a whole


def resampled(channels: Array, sizes: list[int], layout: str, rate_hz: int) -> Array:
    resampler, at, n, out = Resampler(av, RATE_HZ, hold=True), 0, 0, []
    while at < channels.shape[1]:
        size = sizes[n % len(sizes)]
        block = np.ascontiguousarray(channels[:, at : at + size].astype(np.float32))
        frame = av.AudioFrame.from_ndarray(block, "fltp", layout)
        frame.sample_rate, frame.pts = rate_hz, at
        out += resampler.push(frame)
        at, n = at + size, n + 1
    out += resampler.finish()
    return np.concatenate([f.to_ndarray().reshape(-1) for f in out])


@pytest.mark.parametrize("layout", ["stereo", "2.1", "quad", "5.1"])
def test_the_mix_is_that_of_ffmpeg(layout: str) -> None:
    count = av.AudioLayout(layout).nb_channels
    channels = np.stack([0.2 * voice(3.0, seed) for seed in range(count)])
    frame = av.AudioFrame.from_ndarray(channels, "fltp", layout)
    frame.sample_rate = 48_000
    plain = av.AudioResampler(format="flt", layout="mono", rate=RATE_HZ)
    want = [f.to_ndarray().reshape(-1) for f in (*plain.resample(frame), *plain.resample(None))]
    got = resampled(channels, [1024], layout, 48_000)
    np.testing.assert_allclose(got, np.concatenate(want), atol=1e-5)


@pytest.mark.parametrize("scene", SCENES)
def test_any_chunking_of_frames_gives_the_same_sound(scene: str) -> None:
    both = SCENES[scene]()
    whole = resampled(both, [both.shape[1]], "stereo", 44_100)
    for sizes in ([1024], [1, 700, 5000], [441]):
        np.testing.assert_array_equal(resampled(both, sizes, "stereo", 44_100), whole)


def test_a_change_of_layout_on_the_way_loses_nothing() -> None:
    sound = voice(2.0)
    resampler, out = Resampler(av, RATE_HZ, hold=True), []
    for block, layout in (
        (opposite(sound), "stereo"),
        (sound[None], "mono"),
        (np.stack([sound] * 3), "3.0"),
    ):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), "fltp", layout)
        frame.sample_rate = RATE_HZ
        out += resampler.push(frame)
    out += resampler.finish()
    assert sum(f.samples for f in out) == 3 * len(sound)
    first = np.concatenate([f.to_ndarray().reshape(-1) for f in out])[: 2 * len(sound)]
    np.testing.assert_allclose(first, np.concatenate([sound, sound]), atol=1e-6)
