# SPDX-License-Identifier: Apache-2.0
"""Files: what they hold, when, and what happens when they are not what they say."""

from __future__ import annotations

import gc
import math
import wave
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import MediaError, UsageError
from runtime.media import AudioChunk, VideoChunk
from runtime.media.decoding import (
    MAX_SIDE_PX,
    MAX_SOUND_HZ,
    MAX_STREAMS,
    MIN_SOUND_HZ,
    clean_samples,
    next_packet,
)
from runtime.media.file import MAX_GAP_S, MAX_JUMP_S, MIN_BYTES_PER_S, FileSource, StreamClock
from tests.runtime.clips import tone, write_clip


def read(path: Path) -> tuple[FileSource, list[VideoChunk], list[AudioChunk]]:
    with FileSource(path) as source:
        chunks = list(source)
    return (
        source,
        [c for c in chunks if isinstance(c, VideoChunk)],
        [c for c in chunks if isinstance(c, AudioChunk)],
    )


# What is in the file


def test_pictures_and_sound_come_with_their_times(tmp_path: Path) -> None:
    source, pictures, sound = read(write_clip(tmp_path / "clip.mkv"))
    assert (source.info.width, source.info.height, source.info.fps) == (160, 120, 25.0)
    assert source.info.duration_s == pytest.approx(3.0, abs=0.05)
    np.testing.assert_allclose([p.t_s for p in pictures], np.arange(75) / 25, atol=1e-3)
    assert sum(c.samples.size for c in sound) == 48_000
    assert (source.damaged, source.warnings) == (0, [])


def test_pixels_are_rgb_and_samples_mono_float(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", codec="ffv1", pix_fmt="bgr0")
    _, pictures, sound = read(clip)
    frame = pictures[10].frame
    assert (frame.shape, frame.dtype) == ((120, 160, 3), np.uint8)
    assert frame[60, 10].tolist() == [138, 0, 0]  # red on the left
    assert frame[60, 150].tolist() == [0, 0, 138]  # blue on the right
    samples = np.concatenate([c.samples for c in sound])
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, tone(3.0), atol=1e-4)


def test_sound_at_another_rate_is_resampled_not_decimated(tmp_path: Path) -> None:
    import av

    path = tmp_path / "high.wav"
    t = np.arange(48_000) / 48_000
    wave = 0.3 * np.sin(2 * np.pi * 440 * t) + 0.3 * np.sin(2 * np.pi * 11_000 * t)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=48_000)
        stream.layout = "stereo"
        data = np.repeat((wave * 32767).astype(np.int16), 2)[None]
        frame = av.AudioFrame.from_ndarray(data, "s16", "stereo")
        frame.sample_rate = 48_000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    samples = np.concatenate([c.samples for c in read(path)[2]])
    spectrum = np.abs(np.fft.rfft(samples[1000:15_000] * np.hanning(14_000)))
    pitches = np.fft.rfftfreq(14_000, 1 / 16_000)
    assert pitches[spectrum.argmax()] == pytest.approx(440, abs=3)
    alias = spectrum[np.abs(pitches - 5_000).argmin()]  # where 11 kHz would fold to
    assert alias < 1e-3 * spectrum.max()


def test_a_picture_that_nobody_reads_is_not_converted() -> None:
    calls: list[int] = []

    def convert() -> np.ndarray[Any, Any]:
        calls.append(1)
        return np.zeros((2, 2, 3), np.uint8)

    chunk = VideoChunk(0.0, convert)
    assert calls == []
    assert chunk.frame is chunk.frame
    assert calls == [1]


def test_variable_frame_rate_keeps_every_timestamp(tmp_path: Path) -> None:
    times_ms = [0, 40, 90, 300, 333, 1000, 1010]
    _, pictures, _ = read(write_clip(tmp_path / "vfr.mp4", times_ms=times_ms))
    np.testing.assert_allclose([p.t_s for p in pictures], np.array(times_ms) / 1000, atol=1e-6)


def test_sound_that_starts_later_says_so(tmp_path: Path) -> None:
    _, pictures, sound = read(write_clip(tmp_path / "late.mkv", sound_starts_ms=500))
    assert pictures[0].t_s == 0.0
    assert sound[0].t_s == pytest.approx(0.5, abs=1e-3)


def test_sound_that_starts_first_sets_the_zero(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "early.mkv", times_ms=[400, 440, 480])
    _, pictures, sound = read(clip)
    assert sound[0].t_s == 0.0
    assert pictures[0].t_s == pytest.approx(0.4, abs=1e-3)


@pytest.mark.parametrize(
    ("rotation", "top_left", "size"),
    [(90, 2, (160, 120)), (-90, 0, (160, 120)), (180, 2, (120, 160))],
)
def test_rotation_is_applied(
    tmp_path: Path, rotation: int, top_left: int, size: tuple[int, int]
) -> None:
    """Red is on the left as coded; ``rotation`` turns counter-clockwise."""
    import av

    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a rotation")
    _, pictures, _ = read(write_clip(tmp_path / "turned.mp4", rotation=rotation))
    frame = pictures[0].frame
    assert frame.shape == (*size, 3)
    assert int(frame[5, 5].argmax()) == top_left  # 0 red, 2 blue


def test_odd_sizes(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "odd.mkv", size=(161, 121), codec="ffv1", pix_fmt="bgr0")
    assert read(clip)[1][0].frame.shape == (121, 161, 3)


def test_pictures_without_sound(tmp_path: Path) -> None:
    source, pictures, sound = read(write_clip(tmp_path / "mute.mp4", sound=None))
    assert (source.info.has_video, source.info.has_audio) == (True, False)
    assert (len(pictures), len(sound)) == (75, 0)


def test_sound_without_pictures(tmp_path: Path) -> None:
    source, pictures, sound = read(write_clip(tmp_path / "radio.mp4", video=False))
    assert (source.info.has_video, source.info.has_audio, source.info.fps) == (False, True, None)
    assert pictures == []
    assert sum(c.samples.size for c in sound) >= 48_000


def test_long_frames_are_scaled_down(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "wide.mkv", size=(4000, 16), codec="ffv1", pix_fmt="gray",
                      seconds=0.2)  # fmt: skip
    assert read(clip)[1][0].frame.shape == (8, MAX_SIDE_PX, 3)


def test_the_same_file_twice_gives_the_same_chunks(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    (_, pictures, sound), (_, pictures2, sound2) = read(clip), read(clip)
    assert [p.t_s for p in pictures] == [p.t_s for p in pictures2]
    assert all(np.array_equal(a.frame, b.frame) for a, b in zip(pictures, pictures2, strict=True))
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(sound, sound2, strict=True))


@pytest.mark.parametrize(
    ("samples", "want"),
    [
        ([0.0, -1.0, 1.0, 0.25], [0.0, -1.0, 1.0, 0.25]),
        ([0.5, 1.5, -7.0], [0.5, 1.0, -1.0]),
        ([0.5, math.nan], [0.5, 0.0]),
        ([math.inf, -math.inf, math.nan, 2.0], [1.0, -1.0, 0.0, 1.0]),
        ([], []),
    ],
)
def test_sound_is_finite_and_within_full_scale(samples: list[float], want: list[float]) -> None:
    class Decoded:
        def to_ndarray(self) -> np.ndarray[Any, Any]:
            return np.array([samples], np.float32)

    found = clean_samples(Decoded())
    assert found.dtype == np.float32
    assert found.tolist() == want


def test_a_real_clip(grid_clip: Path) -> None:
    source, pictures, sound = read(grid_clip)
    assert len(pictures) == 75
    assert pictures[0].frame.shape == (288, 360, 3)
    assert sum(c.samples.size for c in sound) == pytest.approx(48_000, abs=800)
    assert source.damaged == 0


# What cannot be read: one line, nothing of FFmpeg's


def one_line(caught: pytest.ExceptionInfo[Exception], path: Path) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file") as caught:
        FileSource(tmp_path / "none.mp4")
    one_line(caught, tmp_path / "none.mp4")


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.mp4"
    path.touch()
    with pytest.raises(MediaError, match="empty") as caught:
        FileSource(path)
    one_line(caught, path)


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="not a file"):
        FileSource(tmp_path)


def test_url_is_refused_without_being_opened() -> None:
    with pytest.raises(UsageError, match="rtsp:// sources are not supported"):
        FileSource("rtsp://user:secret@host/stream")


NOT_MEDIA = {
    "text": b"hello world\n" * 500,
    "ones": b"\xff" * 9999,
    "jpeg_start": b"\xff\xd8\xff\xe0" + bytes(99),
}


@pytest.mark.parametrize("kind", NOT_MEDIA)
def test_not_media(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fake.mp4"
    path.write_bytes(NOT_MEDIA[kind])
    with pytest.raises(MediaError, match="not a media file") as caught:
        FileSource(path)
    one_line(caught, path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "text",
    ["#EXTM3U\n#EXTINF:3,\n{}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile '{}'\n"],
    ids=["hls", "concat"],
)
def test_a_play_list_opens_no_other_file(tmp_path: Path, text: str) -> None:
    other = write_clip(tmp_path / "other.mp4", seconds=0.5)
    path = tmp_path / "list.mp4"
    path.write_text(text.format(other))
    with pytest.raises(MediaError):
        FileSource(path)


def test_mp4_cut_off_before_its_index(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mp4").read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match="cut off") as caught:
        FileSource(path)
    one_line(caught, path)


def cut_in_the_middle(tmp_path: Path) -> Path:
    whole = write_clip(tmp_path / "whole.mp4", options={"movflags": "faststart"}).read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: len(whole) // 2])
    return path


def test_mp4_cut_off_after_its_index_gives_what_is_there_and_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, pictures, _ = read(cut_in_the_middle(tmp_path))
    assert 10 < len(pictures) < 75
    assert len(source.warnings) == 1
    assert "of the 3.0 s it declares" in source.warnings[0]
    assert capfd.readouterr() == ("", "")


def test_damage_in_the_middle_is_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(
        write_clip(tmp_path / "whole.mp4", options={"movflags": "faststart"}).read_bytes()
    )
    for i in range(len(data) // 2, len(data), 97):
        data[i] ^= 0xFF
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    source, pictures, sound = read(path)
    assert source.damaged > 0
    assert len(pictures) > 30
    assert all(np.abs(c.samples).max() <= 1 for c in sound)
    assert capfd.readouterr() == ("", "")


def test_frames_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "huge.mkv", size=(10_000, 3_700), codec="ffv1", pix_fmt="gray",
                      seconds=0.04, sound=None)  # fmt: skip
    with pytest.raises(MediaError, match="10000x3700 pixels are beyond the limit") as caught:
        FileSource(clip)
    one_line(caught, clip)


def test_pictures_that_grow_beyond_the_limit_are_damage(tmp_path: Path) -> None:
    """The decoder itself refuses them: their memory is never asked for."""
    small = write_clip(tmp_path / "small.ts", seconds=1.0)
    large = write_clip(tmp_path / "large.ts", size=(8000, 4800), times_ms=[1000], sound=None)
    grown = tmp_path / "grown.ts"
    grown.write_bytes(small.read_bytes() + large.read_bytes())
    source, pictures, _ = read(grown)
    assert len(pictures) == 25
    assert {p.frame.shape for p in pictures} == {(120, 160, 3)}
    assert source.damaged > 0


def test_more_streams_than_any_broadcast_are_refused(tmp_path: Path) -> None:
    assert len(read(write_sounds(tmp_path / "many.mov", MAX_STREAMS))[2]) > 0
    with pytest.raises(MediaError, match="more than 64 streams"):
        FileSource(write_sounds(tmp_path / "too_many.mov", MAX_STREAMS + 1))


def write_sounds(path: Path, streams: int) -> Path:
    import av

    with av.open(str(path), "w") as out:
        sounds = [out.add_stream("pcm_s16le", rate=8000, layout="mono") for _ in range(streams)]
        for sound in sounds:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 8000, 0
            out.mux([*sound.encode(frame), *sound.encode()])
    return path


def test_streams_that_appear_while_a_file_is_read_end_it_in_peace() -> None:
    """PyAV 18 looks up their last packets in its list of the streams that were there before."""

    def demux() -> Iterator[str]:
        yield "packet"
        raise IndexError("list index out of range")

    packets = demux()
    assert next_packet(packets) == "packet"
    assert next_packet(packets) is None


@pytest.mark.parametrize("rate_hz", [1, MIN_SOUND_HZ - 1, MAX_SOUND_HZ + 1, 2**31 - 1])
def test_sound_at_a_rate_that_cannot_be_is_never_resampled(tmp_path: Path, rate_hz: int) -> None:
    """At 1 Hz six kilobytes would become fifty minutes."""
    path = tmp_path / "slow.wav"
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(bytes(6000))
    data = bytearray(path.read_bytes())
    data[24:28] = rate_hz.to_bytes(4, "little")
    path.write_bytes(data)
    with FileSource(path) as source:
        with pytest.raises(MediaError, match="nothing in it could be decoded"):
            list(source)
        assert source.damaged > 0


def test_sound_that_cannot_be_resampled_is_damage_and_the_rest_is_heard(
    tmp_path: Path,
) -> None:
    """FFmpeg's decoders pass on layouts of channels that its resampler refuses."""
    import av

    resample, calls = av.AudioResampler.resample, iter(range(10**6))

    class Refusing:
        def __init__(self, **options: Any) -> None:
            self._inner = av.AudioResampler(**options)

        def resample(self, frame: Any) -> Any:
            if frame is not None and next(calls) == 3:
                raise av.error.ArgumentError(22, "Invalid argument")
            return resample(self._inner, frame)

    clip = write_clip(tmp_path / "clip.wav", video=False)
    with FileSource(clip) as source:
        whole = type(source._av)("av")
        whole.__dict__.update(vars(source._av))
        whole.AudioResampler = Refusing
        source._av = whole
        heard = sum(c.samples.size for c in source if isinstance(c, AudioChunk))
    assert source.damaged == 1
    assert 40_000 < heard < 48_000


def test_a_small_file_cannot_last_for_days(tmp_path: Path) -> None:
    """Each of its pictures claims to come 9.9 s after the one before."""
    clip = write_clip(tmp_path / "days.mkv", times_ms=[i * 9900 for i in range(1000)],
                      size=(16, 16), sound=None)  # fmt: skip
    source, pictures, _ = read(clip)
    limit_s = MAX_GAP_S + clip.stat().st_size / MIN_BYTES_PER_S
    assert limit_s - 10 < pictures[-1].t_s <= limit_s < 9000
    assert source.damaged == 1000 - len(pictures)
    assert "of the 9890.1 s it declares" in source.warnings[0]


@pytest.mark.parametrize("rate", [180_000.0, 2e-7, 0.0, math.nan, math.inf, -25.0, None])
def test_a_frame_rate_that_cannot_be_is_not_believed(tmp_path: Path, rate: float | None) -> None:
    """Times come from timestamps all the same."""
    clip = write_clip(tmp_path / "clip.mp4")
    with FileSource(clip) as source:
        real = source._video

        class Stream:
            average_rate = guessed_rate = rate

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

        source._video = Stream()
        assert source._describe().fps is None


def test_an_absurd_rate_in_the_container_changes_no_time(tmp_path: Path) -> None:
    source, pictures, _ = read(write_clip(tmp_path / "clip.mkv", rate=180_000))
    assert source.info.fps is None or source.info.fps <= 1000
    assert pictures[-1].t_s == pytest.approx(2.96, abs=0.05)


# Timestamps


def test_clock_passes_good_timestamps() -> None:
    clock = StreamClock()
    times = [0.0, 0.04, 0.08, 3.0]
    assert [clock.accept(t, 0.04) for t in times] == times
    assert clock.damaged == 0


def test_clock_fills_a_missing_timestamp_from_the_last_one() -> None:
    clock = StreamClock()
    assert [clock.accept(t, 0.04) for t in (0.0, None, math.nan)] == pytest.approx([0, 0.04, 0.08])
    assert clock.damaged == 2


def test_clock_drops_repeated_and_backward_timestamps() -> None:
    clock = StreamClock()
    assert [clock.accept(t, 0.04) for t in (1.0, 1.0, 0.5, 1.04)] == [1.0, None, None, 1.04]
    assert clock.damaged == 2


def test_clock_recovers_after_one_leap() -> None:
    clock = StreamClock()
    assert [clock.accept(t, 0.04) for t in (0.0, 900.0, 0.04)] == [0.0, None, 0.04]
    assert clock.damaged == 1


def test_clock_believes_a_leap_that_the_next_timestamp_confirms() -> None:
    clock = StreamClock()
    times = (0.0, MAX_JUMP_S + 20, MAX_JUMP_S + 20.04)
    assert [clock.accept(t, 0.04) for t in times] == [0.0, None, times[2]]


def test_clock_never_believes_a_leap_of_hours() -> None:
    clock = StreamClock()
    times = [MAX_GAP_S * 10 + i * 0.04 for i in range(5)]
    assert [clock.accept(t, 0.04) for t in (0.0, *times, 0.04)] == [0.0, *[None] * 5, 0.04]


def test_clock_never_believes_a_start_hours_before_the_start() -> None:
    clock = StreamClock()
    assert [clock.accept(t, 0.04) for t in (-1e12, -5.0, 0.0)] == [None, -5.0, 0.0]
    assert clock.damaged == 1


@given(st.lists(st.floats() | st.none(), max_size=60))
def test_clock_output_always_rises_and_nothing_is_lost_uncounted(times: list[float | None]) -> None:
    clock = StreamClock()
    out = [clock.accept(t, 0.04) for t in times]
    used = [t for t in out if t is not None]
    assert all(a < b for a, b in pairwise(used))
    assert all(math.isfinite(t) and t > -MAX_GAP_S for t in used)
    assert len(times) - len(used) <= clock.damaged


@pytest.mark.parametrize("rotation", [0, 90])
def test_a_frame_is_gone_with_its_chunk(tmp_path: Path, rotation: int) -> None:
    """Not when the garbage collector comes by: decoded frames are large, and wait for it."""
    av = pytest.importorskip("av")
    if rotation and not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a rotation")
    path = write_clip(tmp_path / "c.mp4", seconds=2.0, rotation=rotation)

    def frames() -> int:
        return sum(type(o) is av.VideoFrame for o in gc.get_objects())

    gc.collect()
    gc.disable()
    before = frames()  # of other tests
    try:
        with FileSource(path) as source:
            pictures = sum(c.frame.size > 0 for c in source if isinstance(c, VideoChunk))
            alive = frames() - before
    finally:
        gc.enable()
    assert pictures == 50
    assert alive <= 3  # the last one, and the first, whose side data said how to turn them all
