# SPDX-License-Identifier: Apache-2.0
"""The trainer's reader: what it reads is what the runtime would have judged."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from runtime.spec import AudioSpec
from tests.runtime.clips import Extra, loudest_hz, tone, write_tracks
from tests.runtime.media.test_pixel_aspect import FORMATS, proportions, write_disc
from trainer.data.clips import _packet_bytes, read_clip

SPEC = AudioSpec()


def test_of_several_tracks_the_default_ones_are_read(tmp_path: Path) -> None:
    path = write_tracks(
        tmp_path / "two.mkv",
        [
            Extra(colour=0),
            Extra(colour=2, default=True),
            Extra(pitch_hz=300.0),
            Extra(pitch_hz=1200.0, default=True),
        ],
    )
    clip = read_clip(path, SPEC)
    assert int(clip.frames[10][24, 32].argmax()) == 2
    assert abs(loudest_hz(clip.audio) - 1200) < 20


def test_bytes_are_counted_of_the_tracks_that_are_read(tmp_path: Path) -> None:
    """A bit rate of the other track would be a false fact of the clip."""
    alone = write_tracks(tmp_path / "one.mkv", [Extra(colour=2), Extra(pitch_hz=1200.0)])
    two = write_tracks(
        tmp_path / "two.mkv",
        [
            Extra(colour=0),
            Extra(colour=2, default=True),
            Extra(pitch_hz=300.0, described=True),
            Extra(pitch_hz=1200.0, default=True),
        ],
    )
    assert _packet_bytes(two) == _packet_bytes(alone)
    other = write_tracks(tmp_path / "other.mkv", [Extra(colour=0), Extra(pitch_hz=300.0)])
    assert _packet_bytes(other) != _packet_bytes(alone)


def test_sound_out_of_phase_is_heard(tmp_path: Path) -> None:
    path = tmp_path / "opposite.mkv"
    sound = tone(2.0)
    with av.open(str(path), "w") as out:
        video = out.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = out.add_stream("pcm_s16le", rate=16_000, layout="stereo")
        for i in range(50):
            grey = np.full((48, 64, 3), 100, np.uint8)
            out.mux(video.encode(av.VideoFrame.from_ndarray(grey, "rgb24")))
            block = np.stack([sound, -sound], axis=1)[i * 640 : (i + 1) * 640]
            samples = np.ascontiguousarray((block * 32767).astype(np.int16).reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(samples, "s16", "stereo")
            frame.sample_rate, frame.pts = 16_000, i * 640
            out.mux(audio.encode(frame))
        out.mux(video.encode(None))
    np.testing.assert_allclose(read_clip(path, SPEC).audio, sound, atol=1e-3)


def test_pictures_have_true_proportions(tmp_path: Path) -> None:
    coded, aspect, shown = FORMATS[0]
    path = write_disc(tmp_path / "clip.mkv", coded, aspect, shown, frames=25, sound=True)
    clip = read_clip(path, SPEC)
    assert clip.frames[5].shape == (shown[1], shown[0], 3)
    assert abs(proportions(clip.frames[5]) - 1) < 0.01
