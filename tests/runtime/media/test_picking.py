# SPDX-License-Identifier: Apache-2.0
"""Of several tracks the one is judged that players play, or the one that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import UsageError
from runtime.media import AudioChunk, Source, VideoChunk
from runtime.media.file import FileSource
from runtime.media.network import NetworkSource
from runtime.media.open import Sound, open_source
from runtime.media.picking import Tracks
from runtime.media.sandbox.reader import IsolatedFile
from tests.runtime.clips import Extra, loudest_hz, write_clip, write_tracks
from tests.runtime.live_server import Response, http_server

LOW_HZ, HIGH_HZ = 300.0, 1200.0
RED, GREEN, BLUE = 0, 1, 2
FORGED_DEFAULT = [
    Extra(colour=RED),
    Extra(colour=BLUE, default=True),
    Extra(pitch_hz=LOW_HZ, language="eng"),
    Extra(pitch_hz=HIGH_HZ, default=True, language="deu"),
]


def seen(source: Source) -> tuple[int | None, float | None, list[str]]:
    """Colour, pitch and what was said of them."""
    colour: int | None = None
    sound: list[Any] = []
    with source:
        for chunk in source:
            if isinstance(chunk, VideoChunk):
                colour = int(chunk.frame[24, 32].argmax())
            else:
                assert isinstance(chunk, AudioChunk)
                sound.append(chunk.samples)
    pitch = loudest_hz(np.concatenate(sound)) if sound else None
    return colour, pitch and round(pitch / 100) * 100, source.warnings


@pytest.mark.parametrize("open_file", [FileSource, IsolatedFile])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_the_default_track_is_judged_and_the_others_are_told(
    tmp_path: Path, suffix: str, open_file: Callable[..., Source]
) -> None:
    """A forgery flagged default is what every player shows."""
    path = write_tracks(tmp_path / f"two{suffix}", FORGED_DEFAULT)
    colour, pitch, warnings = seen(open_file(path))
    assert (colour, pitch) == (BLUE, HIGH_HZ)
    assert warnings == [
        "2 picture tracks: v:1 (mpeg4, default) is taken, as players do; not judged: "
        "v:0 (mpeg4); --video-track N chooses",
        "2 sound tracks: a:1 (deu, aac, default) is taken, as players do; not judged: "
        "a:0 (eng, aac); --audio-track N chooses",
    ]


@pytest.mark.parametrize("suffix", [".ts", ".avi"])
def test_without_flags_the_first_is_judged(tmp_path: Path, suffix: str) -> None:
    """These containers have none."""
    path = write_tracks(tmp_path / f"two{suffix}", FORGED_DEFAULT)
    colour, pitch, warnings = seen(FileSource(path))
    assert (colour, pitch) == (RED, LOW_HZ)
    assert len(warnings) == 2


def test_of_two_default_tracks_the_first_is_judged(tmp_path: Path) -> None:
    tracks = [Extra(colour=c, default=True) for c in (GREEN, BLUE)]
    assert seen(FileSource(write_tracks(tmp_path / "two.mkv", tracks)))[0] == GREEN


def test_one_track_of_each_needs_no_word(tmp_path: Path) -> None:
    assert seen(FileSource(write_clip(tmp_path / "clip.mkv")))[2] == []


def test_a_cover_picture_is_never_judged(tmp_path: Path) -> None:
    tracks = [
        Extra(colour=RED, cover=True),
        Extra(colour=BLUE),
        Extra(pitch_hz=LOW_HZ),
    ]
    path = write_tracks(tmp_path / "cover.mp4", tracks)
    colour, _, warnings = seen(FileSource(path))
    assert (colour, warnings) == (BLUE, [])
    cover = next(n for n in (0, 1) if n != picture_number(path))
    with pytest.raises(UsageError, match=rf"there is no picture v:{cover} that can be judged; .*"
                       r"v:\d \(mjpeg, cover picture"):  # fmt: skip
        FileSource(path, tracks=Tracks(video=cover))


def picture_number(path: Path) -> int:
    """Of the moving picture; where a cover stands among the streams is the muxer's affair."""
    import av

    with av.open(str(path)) as container:
        return [s.codec_context.name for s in container.streams.video].index("mpeg4")


def test_an_audio_description_is_judged_only_where_nothing_else_is(tmp_path: Path) -> None:
    described = Extra(pitch_hz=LOW_HZ, described=True)
    both = write_tracks(tmp_path / "both.mkv", [described, Extra(pitch_hz=HIGH_HZ)])
    assert seen(FileSource(both))[1] == HIGH_HZ
    alone = write_tracks(tmp_path / "alone.mkv", [described])
    assert seen(FileSource(alone))[1] == LOW_HZ


@pytest.mark.parametrize("isolated", [True, False])
def test_the_track_that_was_asked_for_is_judged(tmp_path: Path, isolated: bool) -> None:
    path = write_tracks(tmp_path / "two.mkv", FORGED_DEFAULT)
    for tracks, want in (
        (Tracks(video=0), (RED, HIGH_HZ)),
        (Tracks(audio=0), (BLUE, LOW_HZ)),
        (Tracks(video=1, audio=0), (BLUE, LOW_HZ)),
    ):
        source = open_source(str(path), isolated=isolated, tracks=tracks)
        colour, pitch, warnings = seen(source)
        assert (colour, pitch) == want
        chosen = sum(n is not None for n in (tracks.video, tracks.audio))
        assert len(warnings) == 2 - chosen  # of what was chosen nothing need be said


@pytest.mark.parametrize("open_file", [FileSource, IsolatedFile])
def test_a_track_that_is_not_there_is_one_line_with_what_there_is(
    tmp_path: Path, open_file: Callable[..., Source]
) -> None:
    path = write_tracks(tmp_path / "two.mkv", FORGED_DEFAULT)
    with pytest.raises(UsageError) as caught:
        open_file(path, tracks=Tracks(audio=2))
    assert str(caught.value) == (
        f"{path}: --audio-track 2: there is no sound a:2 that can be judged; it has "
        "a:0 (eng, aac), a:1 (deu, aac, default)"
    )
    mute = write_clip(tmp_path / "mute.mkv", sound=None)
    with pytest.raises(UsageError, match="it has no sound at all"):
        open_file(mute, tracks=Tracks(audio=0))


def test_a_language_that_is_none_is_not_shown(tmp_path: Path) -> None:
    tracks = [Extra(pitch_hz=LOW_HZ, language="[red]\x1b]0;x"), Extra(pitch_hz=HIGH_HZ)]
    _, _, warnings = seen(FileSource(write_tracks(tmp_path / "two.mkv", tracks)))
    assert "a:0 (aac) is taken" in warnings[0]


@pytest.mark.parametrize("audio", [0, 1])
def test_the_sound_that_is_copied_is_the_one_that_was_judged(tmp_path: Path, audio: int) -> None:
    path = write_tracks(tmp_path / "two.mkv", FORGED_DEFAULT)
    for open_file in (FileSource, IsolatedFile):
        with open_file(path, tracks=Tracks(audio=audio)) as source:
            assert source.original_sound is not None
            assert source.original_sound.stream_index == 2 + audio
    with FileSource(path) as source:
        assert source.original_sound is not None
        assert source.original_sound.stream_index == 3


def test_a_network_stream_goes_by_the_same_rule(tmp_path: Path) -> None:
    endless = {"live": "1"}  # without a stated length
    path = write_tracks(tmp_path / "two.mkv", FORGED_DEFAULT, options=endless)
    body = path.read_bytes()
    for tracks, want in ((None, (BLUE, HIGH_HZ)), (Tracks(0, 0), (RED, LOW_HZ))):
        lines: list[str] = []
        with http_server([Response(body, hang=True)]) as url:
            source = NetworkSource(url, stall_s=0.3, tracks=tracks, notice=lines.append)
            with source:
                chunks = []
                for chunk in source:
                    chunks.append(chunk)
                    if sum(isinstance(c, VideoChunk) for c in chunks) == 20:
                        break
        pictures = [c for c in chunks if isinstance(c, VideoChunk)]
        sound = np.concatenate([c.samples for c in chunks if isinstance(c, AudioChunk)])
        assert int(pictures[-1].frame[24, 32].argmax()) == want[0]
        assert loudest_hz(sound) == pytest.approx(want[1], abs=50)
        told = 0 if tracks else 2
        assert len(source.warnings) == told
        assert lines == [f"{source.name}: {line}" for line in source.warnings]


def test_a_network_stream_without_the_track(tmp_path: Path) -> None:
    body = write_clip(tmp_path / "clip.ts").read_bytes()
    with (
        http_server([Response(body, hang=True)]) as url,
        pytest.raises(UsageError, match=r"--audio-track 1: there is no sound a:1"),
    ):
        NetworkSource(url, tracks=Tracks(audio=1))


@pytest.mark.parametrize("source", ["camera", "/dev/video7", "csi://0"])
def test_a_camera_has_no_tracks(source: str) -> None:
    with pytest.raises(UsageError, match="a camera has no tracks"):
        open_source(source, tracks=Tracks(video=1))


def test_a_microphone_replaces_every_track() -> None:
    with pytest.raises(UsageError, match="--audio mic replaces it"):
        open_source("rtsp://127.0.0.1/x", sound=Sound("mic"), tracks=Tracks(audio=1))
