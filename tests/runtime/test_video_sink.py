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

import runtime.session
from runtime.errors import DependencyError
from runtime.media import AudioChunk
from runtime.media.file import FileSource
from runtime.pipeline import run
from runtime.sinks import Picture
from runtime.sinks import video as module
from runtime.sinks.jsonl import OutputError
from runtime.sinks.overlay import COLOURS
from runtime.sinks.video import VideoSink
from runtime.verdict import Label
from tests.runtime.clips import tone, write_clip
from tests.runtime.doubles import MockBackend, MockTracker
from tests.runtime.test_overlay import face, near
from tests.runtime.test_timeline_sink import at, summary

av = pytest.importorskip("av", reason="PyAV is not installed")

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _mock_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.session, "FaceTracker", lambda spec: MockTracker())


def save(clip: Path, target: Path) -> list[str]:
    """The video of a file, as the command line makes it; its notes."""
    with FileSource(clip) as source:
        sink = VideoSink(
            target, token_hz=25, hop_s=0.2, sound_hz=16_000, original=source.original_sound
        )
        run(source, MockBackend(), sinks=[sink])
    return sink.notes


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


# Sound


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])  # AAC and PCM
def test_the_sound_of_a_file_is_copied_packet_by_packet_and_on_time(
    tmp_path: Path, name: str
) -> None:
    clip, target = write_clip(tmp_path / name), tmp_path / "out.mp4"
    assert save(clip, target) == []
    before, after = packets(clip), packets(target)
    assert [data for _, data in before] == [data for _, data in after]
    assert len(before) > 20
    np.testing.assert_allclose([t for t, _ in before], [t for t, _ in after], atol=0.001)


def test_the_sound_of_a_real_clip_is_the_same_to_the_bit(grid_clip: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    assert save(grid_clip, target) == []
    before, after = packets(grid_clip), packets(target)
    assert [data for _, data in before] == [data for _, data in after]
    assert len(before) > 100


def test_sound_that_starts_late_still_starts_late(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", sound_starts_ms=480)
    save(clip, tmp_path / "out.mp4")
    assert packets(tmp_path / "out.mp4")[0][0] == pytest.approx(0.48, abs=0.001)
    assert picture_times(tmp_path / "out.mp4")[0] == 0.0


def test_a_file_whose_clock_starts_elsewhere_stays_in_sync(tmp_path: Path) -> None:
    """Pictures from 5.0 s, sound from 5.2 s: second 0 of the stream is 5.0 s."""
    times = [5000 + 40 * i for i in range(75)]
    clip = write_clip(tmp_path / "clip.mkv", times_ms=times, sound_starts_ms=5200)
    save(clip, tmp_path / "out.mp4")
    assert picture_times(tmp_path / "out.mp4")[0] == 0.0
    assert packets(tmp_path / "out.mp4")[0][0] == pytest.approx(0.2, abs=0.001)


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
    samples, rate = loudness(tmp_path / "out.mp4")
    click = float(np.argmax(np.abs(samples) > 0.1)) / rate
    assert flash == pytest.approx(1.6, abs=0.001)
    assert click == pytest.approx(1.6, abs=0.02)


def test_sound_that_an_mp4_cannot_hold_is_what_the_model_heard_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module._CopiedSound, "codec", "wmav2")
    (note,) = save(write_clip(tmp_path / "clip.mkv"), tmp_path / "out.mp4")
    assert "wmav2 sound does not go into an MP4" in note
    samples, rate = loudness(tmp_path / "out.mp4")
    assert rate == 16_000
    assert len(samples) == pytest.approx(48_000, abs=2048)


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
        from runtime.sinks import Picture
        from runtime.sinks.background import in_background
        from runtime.sinks.video import VideoSink
        from tests.runtime.test_timeline_sink import summary

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
