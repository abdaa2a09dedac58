# SPDX-License-Identifier: Apache-2.0
"""The annotated video: pictures on time, the original sound as it was, whole or not at all."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime.flow.pictures
from runtime.errors import DependencyError
from runtime.files import OutputError
from runtime.flow.driver import run
from runtime.flow.sink import Picture
from runtime.judging.verdict import Label
from runtime.media import AudioChunk
from runtime.media.file import FileSource
from runtime.media.sandbox import reader
from runtime.media.sandbox.reader import IsolatedFile
from runtime.sinks import video as module
from runtime.sinks.overlay import COLOURS
from runtime.sinks.video import VideoSink
from tests.runtime.clips import tone, write_clip
from tests.runtime.doubles import MockBackend, MockTracker
from tests.runtime.media.sandbox.test_reader import INFO, decoder, message
from tests.runtime.sinks.test_overlay import face, near
from tests.runtime.sinks.test_terminal import at, summary

av = pytest.importorskip("av", reason="PyAV is not installed")

HEARD = "it is what the model heard, mono, as AAC"
SOUND = {"codec": "aac", "layout": "mono", "sample_rate_hz": 16_000, "time_base": [1, 16_000]}
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _mock_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.flow.pictures, "FaceTracker", lambda spec: MockTracker())


def save(clip: Path, target: Path) -> list[str]:
    """The video of a file, as the command line makes it; its notes."""
    with FileSource(clip) as source:
        sink = VideoSink(
            target, token_hz=25, hop_s=0.2, sound_hz=16_000, original=source.original_sound
        )
        run(source, MockBackend(), sinks=[sink])
    return sink.notes


def said(kind: str, payload: bytes = b"", **fields: Any) -> bytes:
    """A message of the process that reads a file."""
    return message({"kind": kind, "size": len(payload), **fields}, payload)


def write_sound(path: Path, codec: str, rate_hz: int, layout: str) -> None:
    """A second of pictures, and of a tone in every channel."""
    with av.open(str(path), "w") as out:
        picture = "mpeg2video" if path.suffix in (".mxf", ".mpg") else "mpeg4"
        video: Any = out.add_stream("libvpx" if path.suffix == ".webm" else picture, rate=25)
        video.width, video.height, video.pix_fmt = 160, 120, "yuv420p"
        sound: Any = out.add_stream(codec, rate=rate_hz)
        sound.layout, sound.bit_rate = layout, 128_000
        made = []
        for i in range(25):
            grey = np.full((120, 160, 3), 4 * i, np.uint8)
            made += video.encode(av.VideoFrame.from_ndarray(grey, "rgb24"))
        made += video.encode(None)
        samples = np.repeat(tone(1.0, rate_hz)[None], len(av.AudioLayout(layout).channels), axis=0)
        frame = av.AudioFrame.from_ndarray(samples, "fltp", layout)
        frame.sample_rate, frame.pts = rate_hz, 0
        form = sound.codec_context.codec.audio_formats[0].name
        to_form = av.AudioResampler(format=form, layout=layout, rate=rate_hz)
        for piece in to_form.resample(frame):
            made += sound.encode(piece)
        made += sound.encode(None)
        for packet in sorted(made, key=lambda p: float(p.dts * p.time_base)):
            out.mux(packet)


def live(target: Path, *, sound_hz: int | None = 16_000) -> VideoSink:
    return VideoSink(target, token_hz=25, hop_s=0.2, sound_hz=sound_hz)


def flat(t_s: float, value: int = 100) -> Picture:
    return Picture("camera:0", t_s, np.full((120, 160, 3), value, np.uint8), [])


def packets(path: Path, *, zero_s: float = 0.0) -> list[tuple[float, bytes]]:
    """Start and bytes of the sound's packets."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return [
            (float(p.pts * p.time_base) - zero_s, bytes(p))
            for p in container.demux(stream)
            if p.pts is not None and p.size
        ]


def picture_times(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [float(f.time) for f in container.decode(video=0)]


def loudness(path: Path) -> tuple[np.ndarray[Any, Any], int]:
    """Decoded sound on the file's clock: samples from second 0 [n], and their rate."""
    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate
        out = np.zeros(0, np.float32)
        for frame in container.decode(audio=0):
            samples = frame.to_ndarray().astype(np.float32).reshape(frame.layout.nb_channels, -1)[0]
            start = max(0, round(float(frame.time) * rate))
            out = np.concatenate([out[:start], np.zeros(max(0, start - len(out)), np.float32)])
            out = np.concatenate([out, samples])
    return out, rate


def heard_from(path: Path) -> float:
    """Second at which the tone begins."""
    samples, rate = loudness(path)
    return float(np.argmax(np.abs(samples) > 0.1)) / rate


# Sound


@pytest.mark.parametrize(
    ("name", "codec", "rate_hz", "layout"),
    [
        ("clip.mp4", "aac", 44_100, "stereo"),
        ("clip.mkv", "ac3", 48_000, "5.1(side)"),
        ("clip.mkv", "alac", 44_100, "mono"),
        ("clip.mkv", "eac3", 32_000, "stereo"),
        ("clip.mkv", "flac", 16_000, "stereo"),
        ("clip.mpg", "mp2", 44_100, "stereo"),
        ("clip.avi", "libmp3lame", 22_050, "mono"),
        ("clip.webm", "libopus", 48_000, "stereo"),
    ],
)
def test_the_sound_of_a_file_is_copied_packet_by_packet_and_on_time(
    tmp_path: Path, name: str, codec: str, rate_hz: int, layout: str
) -> None:
    clip, target = tmp_path / name, tmp_path / "out.mp4"
    write_sound(clip, codec, rate_hz, layout)
    assert save(clip, target) == []
    before, after = packets(clip), packets(target)
    assert [data for _, data in before] == [data for _, data in after]
    assert len(before) > 10
    with FileSource(clip) as source:
        assert source.original_sound is not None
        zero_s = source.original_sound.zero_s
    times = [t - zero_s for t, _ in before]
    np.testing.assert_allclose(times, [t for t, _ in after], atol=0.001)
    with av.open(str(target)) as container:
        stream = container.streams.audio[0]
        assert (stream.rate, stream.layout.name) == (rate_hz, layout)
        assert sum(frame.samples for frame in container.decode(stream)) >= 0.9 * rate_hz


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("clip.avi", "pcm_s16le"),
        ("clip.mxf", "pcm_s24le"),
        ("clip.mkv", "pcm_s16le"),
        ("clip.mov", "pcm_f32le"),
        ("clip.mov", "pcm_s16be"),
        ("clip.mov", "pcm_alaw"),
        ("clip.avi", "wmav2"),
    ],
)
def test_sound_that_does_not_go_into_an_mp4_is_what_the_model_heard_and_that_is_said(
    tmp_path: Path, name: str, codec: str
) -> None:
    clip, target = tmp_path / name, tmp_path / "out.mp4"
    write_sound(clip, codec, 48_000, "stereo")
    (note,) = save(clip, target)
    assert (
        note == f"{codec} sound does not go into an MP4: it is what the model heard, mono, as AAC"
    )
    with av.open(str(target)) as container:
        assert container.streams.audio[0].codec_context.codec.canonical_name == "aac"
    samples, rate = loudness(target)
    assert rate == 16_000
    assert len(samples) == pytest.approx(16_000, abs=2048)
    assert np.abs(samples[4000:12_000]).max() > 0.1


def test_the_file_of_a_stranger_is_not_opened_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", seconds=0.4)
    opened = []
    with IsolatedFile(clip) as source:
        sink = VideoSink(
            tmp_path / "out.mp4", token_hz=25, hop_s=0.2, sound_hz=16_000,
            original=source.original_sound,
        )  # fmt: skip
        plain = av.open
        monkeypatch.setattr(
            av, "open", lambda file, *a, **k: opened.append(file) or plain(file, *a, **k)
        )
        run(source, MockBackend(), sinks=[sink])
    assert packets(tmp_path / "out.mp4")
    assert opened
    assert not [file for file in opened if str(clip) in str(file)]


@pytest.mark.parametrize(
    ("then", "words"),
    [
        (b"", "the decoder crashed"),
        (said("end", damaged=0, warnings=["the original sound breaks off: no"]), "no"),
    ],
)
def test_sound_that_breaks_off_is_noted_and_the_video_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: bytes, words: str
) -> None:
    """The process that reads it says what it likes."""
    clip = write_clip(tmp_path / "clip.mp4")
    with av.open(str(clip)) as container:
        extra = container.streams.audio[0].codec_context.extradata
    says = [message(INFO), said("format", extra, **SOUND)]
    for i, (_, data) in enumerate(packets(clip)[:10]):
        says.append(said("packet", data, pts=1024 * i, dts=1024 * i, duration=1024))
    monkeypatch.setattr(reader, "_command", lambda *_: decoder(*says, then))
    (note,) = save(clip, tmp_path / "out.mp4")
    assert note.startswith("the original sound breaks off: ")
    assert words in note
    assert len(picture_times(tmp_path / "out.mp4")) == 75
    assert len(packets(tmp_path / "out.mp4")) == 10


@pytest.mark.parametrize(
    "wrong",
    [
        {"layout": "mono|x"},
        {"layout": None},
        {"codec": 3},
        {"sample_rate_hz": 0.5},
        {"sample_rate_hz": 1 << 30},
        {"time_base": [1, 0]},
        {"time_base": [1]},
        {"time_base": "1/2"},
    ],
)
def test_what_cannot_be_of_the_sound_is_refused_and_the_model_s_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", seconds=0.4)
    says = [message(INFO), said("format", **SOUND | wrong)]
    monkeypatch.setattr(reader, "_command", lambda *_: decoder(*says))
    (note,) = save(clip, tmp_path / "out.mp4")
    assert "its decoder" in note
    assert note.endswith(HEARD)
    assert loudness(tmp_path / "out.mp4")[1] == 16_000


@pytest.mark.thorough
def test_the_sound_of_a_real_clip_is_the_same_to_the_bit(grid_clip: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    assert save(grid_clip, target) == []
    before, after = packets(grid_clip), packets(target)
    assert [data for _, data in before] == [data for _, data in after]
    assert len(before) > 100


@pytest.mark.thorough
def test_sound_that_starts_late_still_starts_late(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", sound_starts_ms=480)
    save(clip, tmp_path / "out.mp4")
    assert heard_from(tmp_path / "out.mp4") == pytest.approx(0.48, abs=0.02)
    assert picture_times(tmp_path / "out.mp4")[0] == 0.0


def test_a_file_whose_clock_starts_elsewhere_stays_in_sync(tmp_path: Path) -> None:
    """Pictures from 5.0 s, sound from 5.2 s: second 0 of the stream is 5.0 s."""
    times = [5000 + 40 * i for i in range(75)]
    clip = write_clip(tmp_path / "clip.mkv", times_ms=times, sound_starts_ms=5200)
    save(clip, tmp_path / "out.mp4")
    assert picture_times(tmp_path / "out.mp4")[0] == 0.0
    assert heard_from(tmp_path / "out.mp4") == pytest.approx(0.2, abs=0.02)


def test_a_flash_and_a_click_at_one_moment_stay_together(tmp_path: Path) -> None:
    """At 1.6 s the picture turns white and a tone begins, in the file and in the saved one."""

    def picture(i: int, size: tuple[int, int]) -> np.ndarray[Any, Any]:
        return np.full((size[1], size[0], 3), 255 if i >= 40 else 0, np.uint8)

    sound = np.concatenate([np.zeros(25_600, np.float32), tone(1.4)])
    clip = write_clip(tmp_path / "clip.mp4", picture=picture, sound=sound)
    save(clip, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        flash = next(
            float(f.time)
            for f in container.decode(video=0)
            if f.to_ndarray(format="gray")[200:300, 300:400].mean() > 128
        )
    assert flash == pytest.approx(1.6, abs=0.001)
    assert heard_from(tmp_path / "out.mp4") == pytest.approx(1.6, abs=0.02)


def test_live_sound_is_encoded_in_sync_and_a_gap_is_silence(tmp_path: Path) -> None:
    sink = live(tmp_path / "out.mp4")
    loud = tone(3.0)
    for i in range(75):
        sink.picture(flat(i / 25))
        if not 25 <= i < 50:  # the microphone was away for a second
            sink.sound("camera:0", AudioChunk(i / 25, loud[i * 640 : i * 640 + 640]))
    sink.end(summary())
    samples, rate = loudness(tmp_path / "out.mp4")
    level = [float(np.abs(samples[round(t * rate) :][:1600]).max()) for t in (0.5, 1.5, 2.5)]
    assert level[0] > 0.2
    assert level[1] < 0.02
    assert level[2] > 0.2
    assert len(samples) / rate == pytest.approx(3.0, abs=0.15)


def test_sound_before_the_first_picture_is_not_lost(tmp_path: Path) -> None:
    sink = live(tmp_path / "out.mp4")
    for i in range(50):
        sink.sound("camera:0", AudioChunk(i / 25, tone(0.04)))
    sink.picture(flat(2.0))
    sink.end(summary())
    assert packets(tmp_path / "out.mp4")[0][0] == pytest.approx(0.0, abs=0.07)  # AAC's run-in


# Pictures


def test_pictures_keep_their_time_and_a_gap_stays_one(tmp_path: Path) -> None:
    sink = live(tmp_path / "out.mp4", sound_hz=None)
    times = [0.0, 0.04, 0.08, 0.2, 0.24, 1.24]
    for t in times:
        sink.picture(flat(t))
    sink.end(summary())
    assert picture_times(tmp_path / "out.mp4") == pytest.approx(times, abs=1e-6)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert not container.streams.audio


def test_a_picture_shows_the_newest_verdict_that_its_time_knows(tmp_path: Path) -> None:
    """The verdict of 2.0 s comes after the pictures up to 2.4 s; from 2.0 s on they show it."""
    sink = live(tmp_path / "out.mp4", sound_hz=None)
    for i in range(60):
        shown = Picture("a", i / 25, np.full((540, 720, 3), 90, np.uint8),
                        [face((200, 150, 400, 380))])  # fmt: skip
        sink.picture(shown)
        if i == 58:
            sink.write(at(2.0, Label.FAKE, 0.9))
    sink.end(summary())
    with av.open(str(tmp_path / "out.mp4")) as container:
        red = [
            near(f.to_ndarray(format="rgb24")[260:300, 196:205], COLOURS[Label.FAKE], 70).any()
            for f in container.decode(video=0)
        ]
    assert [i for i, fake in enumerate(red) if fake] == list(range(50, 60))


# Whole or not at all


def test_without_pictures_there_is_no_file_and_a_note(tmp_path: Path) -> None:
    sink = live(tmp_path / "out.mp4")
    sink.sound("radio", AudioChunk(0.0, tone(1.0)))
    sink.end(summary())
    assert list(tmp_path.iterdir()) == []
    assert sink.notes == ["no picture was judged, so no video was written"]


def test_what_is_given_up_leaves_nothing_and_an_older_file_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    target.write_bytes(b"older")
    sink = live(target)
    for i in range(50):
        sink.picture(flat(i / 25))
    sink.abandon()
    sink.end(summary())  # a thread that was given up may still come to its end
    assert target.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [target]


def test_a_target_that_cannot_be_written_is_one_line_before_the_stream(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write") as caught:
        live(tmp_path / "file" / "out.mp4")
    assert "\n" not in str(caught.value)


def test_a_ffmpeg_without_h264_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENCODERS", ("none",))
    with pytest.raises(DependencyError, match=r"no H\.264 encoder"):
        live(tmp_path / "out.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        import numpy as np
        from runtime.flow.sink import Picture
        from runtime.sinks.background import in_background
        from runtime.sinks.video import VideoSink
        from tests.runtime.sinks.test_terminal import summary

        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))  # no file may grow beyond
        sink = VideoSink(Path(sys.argv[1]), token_hz=25, hop_s=0.2)
        made = in_background(sink, "--save-video", live=False)
        rng = np.random.default_rng(0)
        for i in range(50):
            noise = rng.integers(0, 255, (120, 160, 3), np.uint8)
            made.picture(Picture("a", i / 25, noise, []))
        made.end(summary())
        made.worker.close()
        print(made.worker.error)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out.mp4")],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cannot write" in done.stdout
    assert done.stdout.strip().endswith("switched off")
    assert list(tmp_path.iterdir()) == []
