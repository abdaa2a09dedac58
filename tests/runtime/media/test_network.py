# SPDX-License-Identifier: Apache-2.0
"""Network streams, with real servers on 127.0.0.1: faults they survive, and what they may open."""

from __future__ import annotations

import itertools
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from benchmarks.soak.rtsp import RtspServer, free_port, why_no_rtsp_server
from runtime.errors import MediaError, UsageError
from runtime.media import AudioChunk, Chunk, LiveSource, VideoChunk
from runtime.media.feed import Feed
from runtime.media.file import FileSource
from runtime.media.network import NetworkSource
from runtime.media.open import open_source
from tests.runtime.clips import write_clip
from tests.runtime.live_server import Response, http_server, serve
from tests.waiting import patient, pause


def ts(folder: Path, name: str = "clip.ts", **options: Any) -> bytes:
    """A clip as MPEG-TS; 2 s of 25 fps with sound if nothing else is said."""
    options = {"seconds": 2.0, **options}
    return write_clip(folder / name, **options).read_bytes()


def read(source: NetworkSource, *, until_s: float = 20.0, pictures: int = 10**9) -> list[Chunk]:
    """Chunks until there are so many pictures, or for so long, or to the end."""
    return [chunk for _, chunk in read_timed(source, until_s=until_s, pictures=pictures)]


def read_timed(
    source: NetworkSource, *, until_s: float = 20.0, pictures: int = 10**9
) -> list[tuple[float, Chunk]]:
    """The same with the moment of each one's arrival."""
    found: list[tuple[float, Chunk]] = []
    deadline = time.monotonic() + until_s
    with Feed(source, max_pictures=10**6) as feed:
        while pictures > 0 and not feed.ended and time.monotonic() < deadline:
            chunk = feed.get(0.05)
            if chunk is not None:
                found.append((time.monotonic(), chunk))
                pictures -= isinstance(chunk, VideoChunk)
    if feed.error is not None:
        raise feed.error
    return found


def times(chunks: list[Chunk], kind: type[Chunk]) -> list[float]:
    return [c.t_s for c in chunks if isinstance(c, kind)]


def shapes(chunks: list[Chunk]) -> list[tuple[int, ...]]:
    """Sizes of the pictures, each once, in order."""
    found = [c.frame.shape[:2] for c in chunks if isinstance(c, VideoChunk)]
    return list(dict.fromkeys(found))


def rising(values: list[float]) -> bool:
    return all(a < b for a, b in itertools.pairwise(values))


def test_an_endless_stream_is_live_and_has_both_modalities(tmp_path: Path) -> None:
    with http_server([Response(ts(tmp_path), hang=True)]) as url, NetworkSource(url) as source:
        assert isinstance(source, LiveSource)
        assert source.live
        assert (source.info.has_video, source.info.has_audio) == (True, True)
        assert (source.info.width, source.info.height, source.info.fps) == (160, 120, 25.0)
        chunks = read(source, pictures=40)
    assert rising(times(chunks, VideoChunk))
    assert rising(times(chunks, AudioChunk))
    assert all(c.captured_s is not None for c in chunks)
    assert source.warnings == []


def test_an_address_in_capitals_is_opened(tmp_path: Path) -> None:
    with http_server([Response(ts(tmp_path), hang=True)]) as url:
        loud = url.replace("http://", "HTTP://")
        with open_source(loud) as source:
            assert source.info.name == url
            assert source.info.has_video


@pytest.mark.thorough
def test_a_server_that_goes_and_comes_back(tmp_path: Path) -> None:
    body = ts(tmp_path)
    notes: list[str] = []
    with (
        http_server(
            [Response(body, over_s=2), Response(body, over_s=2), Response(body, hang=True)]
        ) as url,
        NetworkSource(url, notice=notes.append) as source,
    ):
        chunks = read(source, pictures=120)
    video, sound = times(chunks, VideoChunk), times(chunks, AudioChunk)
    assert len(video) == 120
    assert rising(video)
    assert rising(sound)
    assert source.outages == 2
    words = [note.removeprefix(f"{source.name}: ") for note in notes]
    assert all(w.endswith("; trying again") for w in words[::2])
    assert all(w.startswith("back after") for w in words[1::2])
    assert len(words) == 4
    assert len(source.warnings) == 1
    assert "was lost 2 times" in source.warnings[0]


def test_a_stall_is_noticed_and_the_connection_made_again(tmp_path: Path) -> None:
    body = ts(tmp_path)
    with (
        http_server([Response(body, hang=True), Response(body, hang=True)]) as url,
        NetworkSource(url, stall_s=0.5) as source,
    ):
        start = time.monotonic()
        chunks = read(source, pictures=60)
        took_s = time.monotonic() - start
    assert rising(times(chunks, VideoChunk))
    assert source.drops["stall"] == 1
    assert 0.5 < took_s < patient(5)
    assert "nothing came for 0.5 s" in source.warnings[0]


@pytest.mark.thorough
def test_the_gap_of_an_outage_is_what_passed_on_the_wall(tmp_path: Path) -> None:
    """The picture's time goes on where the wall clock is, not where the timestamps are."""
    body = ts(tmp_path)
    with (
        http_server([Response(body, hang=True), Response(body, hang=True)]) as url,
        NetworkSource(url, stall_s=3.0) as source,
    ):
        found = read_timed(source, pictures=60)
    at, t = zip(*[(at, c.t_s) for at, c in found if isinstance(c, VideoChunk)], strict=True)
    gap = max(range(1, len(t)), key=lambda i: t[i] - t[i - 1])
    # stream second 0 is the first arrival; the clip's two seconds came at once and ran ahead
    assert at[gap] - at[0] > 3.0
    assert t[gap] == pytest.approx(at[gap] - at[0], abs=0.3)


def test_resolution_and_timestamps_that_change_within_a_connection(tmp_path: Path) -> None:
    """Two clips one after the other: the timestamps of the second start anew."""
    body = ts(tmp_path) + ts(tmp_path, size=(320, 240)) + ts(tmp_path)
    with http_server([Response(body, hang=True)]) as url, NetworkSource(url) as source:
        chunks = read(source, pictures=130)
    assert shapes(chunks) == [(120, 160), (240, 320)]
    video = times(chunks, VideoChunk)
    assert rising(video)
    assert rising(times(chunks, AudioChunk))
    assert video[-1] == pytest.approx(130 / 25, abs=1.0)
    assert source.outages == 0
    assert source.drops["timestamp"] > 0


@pytest.mark.thorough
def test_resolution_that_changes_with_the_connection(tmp_path: Path) -> None:
    responses = [
        Response(ts(tmp_path), over_s=2), Response(ts(tmp_path, size=(320, 240)), hang=True)
    ]  # fmt: skip
    with http_server(responses) as url, NetworkSource(url) as source:
        chunks = read(source, pictures=70)
    assert shapes(chunks) == [(120, 160), (240, 320)]
    assert source.info.width == 160  # what it was when the stream was opened


@pytest.mark.thorough
def test_sound_that_drops_out_leaves_the_picture(tmp_path: Path) -> None:
    responses = [
        Response(ts(tmp_path), over_s=2),
        Response(ts(tmp_path, "mute.ts", sound=None), over_s=2),
        Response(ts(tmp_path), hang=True),
    ]
    with http_server(responses) as url, NetworkSource(url) as source:
        chunks = read(source, pictures=120)
    video, sound = times(chunks, VideoChunk), times(chunks, AudioChunk)
    assert rising(video)
    assert rising(sound)
    silent = [t for t in video if not any(abs(t - s) < 0.2 for s in sound)]
    assert 40 <= len(silent) <= 60
    assert sound[-1] > silent[-1]


@pytest.mark.thorough
def test_damaged_packets_are_counted_and_passed_over(tmp_path: Path) -> None:
    body = bytearray(ts(tmp_path, seconds=4.0))
    for at in range(len(body) // 3, len(body) // 2, 401):
        body[at] ^= 0xFF
    with http_server([Response(bytes(body), hang=True)]) as url, NetworkSource(url) as source:
        chunks = read(source, until_s=3)
    assert rising(times(chunks, VideoChunk))
    assert source.damaged > 0
    assert max(times(chunks, VideoChunk)) > 3.0


def rolling(index: int, size: tuple[int, int]) -> Any:
    """Coarse noise that moves: what is missing of it shows for as long as it is built upon."""
    width, height = size
    grain = np.random.default_rng(1).integers(0, 255, (height // 8, width // 8), np.uint8)
    picture = np.roll(np.kron(grain, np.ones((8, 8), np.uint8)), 3 * index, axis=1)
    fresh = np.random.default_rng(index).integers(0, 64, picture.shape, np.uint8)  # many packets
    return np.repeat((picture // 2 + fresh)[..., None], 3, axis=2)


def worst(chunks: list[Chunk], reference: list[Any]) -> float:
    """The mean difference from the picture of the reference that is most alike, in levels."""
    alike = [
        min(float(np.abs(c.frame.astype(int) - r).mean()) for r in reference)
        for c in chunks
        if isinstance(c, VideoChunk)
    ]
    assert alike
    return max(alike)


def reference(clip: Path) -> list[Any]:
    with FileSource(clip) as source:
        return [c.frame.astype(int) for c in source if isinstance(c, VideoChunk)]


def test_what_builds_on_what_was_lost_is_left_out(tmp_path: Path) -> None:
    """One packet of the twelfth picture is missing; the next key picture is the 26th."""
    clip = write_clip(
        tmp_path / "clip.ts", seconds=2.0, codec="libx264", gop=25, picture=rolling, sound=None
    )
    with av.open(str(clip)) as container:
        at = [p.pos for p in container.demux(video=0) if p.pos is not None]
    lost = at[12] // 188 * 188 + 188  # the second packet of that picture
    body = clip.read_bytes()
    response = Response(body[:lost] + body[lost + 188 :], chunked=True)
    with http_server([response]) as url, NetworkSource(url) as source:
        chunks = read(source)
    pictures = times(chunks, VideoChunk)
    assert worst(chunks, reference(clip)) < 1.0
    assert source.drops["decode_error"] > 0
    assert 10 <= source.drops["damaged_picture"] <= 16
    assert len(pictures) == pytest.approx(50 - source.drops["damaged_picture"], abs=1)
    assert max(b - a for a, b in itertools.pairwise(pictures)) > 0.4


@pytest.mark.thorough
def test_sound_at_a_rate_that_cannot_be_is_dropped_and_counted(tmp_path: Path) -> None:
    """At 1 Hz each second of work would become hours of sound."""
    body = bytearray(write_clip(tmp_path / "slow.wav", seconds=1.0, video=False).read_bytes())
    body[24:28] = (1).to_bytes(4, "little")
    with http_server([Response(bytes(body), hang=True)]) as url, NetworkSource(url) as source:
        assert read(source, until_s=2) == []
        assert source.drops["decode_error"] > 0


@pytest.mark.parametrize("fps", [10.0, 60.0])
def test_any_frame_rate(fps: float, tmp_path: Path) -> None:
    body = ts(tmp_path, fps=fps)
    with http_server([Response(body, hang=True)]) as url, NetworkSource(url) as source:
        video = times(read(source, pictures=round(fps)), VideoChunk)
    steps = [b - a for a, b in itertools.pairwise(video)]
    assert sum(steps) / len(steps) == pytest.approx(1 / fps, rel=0.02)


# A recording or a camera: bodies without a length


WHOLE = "taken for a recording"


def webm(folder: Path) -> bytes:
    """As a browser's MediaRecorder makes it: no duration, no index, clusters as they come."""
    path = write_clip(
        folder / "clip.webm", codec="libvpx", seconds=2.0, size=(64, 48), sound_codec="libopus",
        options={"live": "1"},
    )  # fmt: skip
    with av.open(str(path)) as container:
        assert container.duration is None
    return path.read_bytes()


@pytest.mark.parametrize("make", [ts, webm])
@pytest.mark.parametrize(
    ("framing", "said"),
    [({"chunked": True}, []), ({"length": True}, []), ({}, [WHOLE])],
    ids=["chunked", "length", "closed"],
)
def test_a_recording_without_a_duration_is_read_once_and_whole(
    make: Any, framing: dict[str, bool], said: list[str], tmp_path: Path
) -> None:
    """Also by a judge that is slower than the server: nothing is dropped."""
    body = make(tmp_path)
    with http_server([Response(body, **framing)] * 3) as url, NetworkSource(url) as source:
        assert source.live  # as far as anybody can tell
        with Feed(source, max_pictures=3) as feed:
            found = []
            while not feed.ended:
                chunk = feed.get(0.05)
                if isinstance(chunk, VideoChunk):
                    found.append(chunk)
                    pause(0.004)
    assert feed.error is None
    assert len(found) == 50
    assert rising(times(list(found), VideoChunk))
    assert source.outages == 0
    assert not any(feed.drops.values())
    assert [line for line in source.warnings if WHOLE in line] == [
        line for line in source.warnings if said
    ]
    assert len(source.warnings) == len(said)


def bare(folder: Path) -> bytes:
    """Pictures without any time."""
    path = folder / "clip.h264"
    return write_clip(path, codec="libx264", seconds=2.0, size=(64, 48), sound=None).read_bytes()


@pytest.mark.parametrize("make", [ts, webm, bare])
def test_a_recording_waits_for_a_judge_that_begins_late_and_is_slower_than_the_world(
    make: Any, tmp_path: Path
) -> None:
    """While a model loads, and on a device that cannot keep up."""
    with http_server([Response(make(tmp_path))] * 3) as url, NetworkSource(url) as source:
        pause(1.2)
        with Feed(source, max_pictures=3) as feed:
            found = []
            while not feed.ended:
                chunk = feed.get(0.05)
                assert feed.lossless
                if isinstance(chunk, VideoChunk):
                    found.append(chunk)
                    pause(0.045)
    seen = times(list(found), VideoChunk)
    assert len(seen) == 50
    assert seen[-1] - seen[0] == pytest.approx(49 / 25, abs=0.3)
    assert not any(feed.drops.values())
    assert source.outages == 0


@pytest.mark.thorough
@pytest.mark.parametrize("framing", [{}, {"chunked": True, "cut": True}], ids=["closed", "chunked"])
def test_a_camera_that_broke_off_is_connected_to_again(
    framing: dict[str, bool], tmp_path: Path
) -> None:
    body = ts(tmp_path)
    responses = [Response(body, over_s=2, **framing), Response(body, hang=True)]
    with http_server(responses) as url, NetworkSource(url) as source:
        chunks = read(source, pictures=90)
        assert source.paced
    assert len(times(chunks, VideoChunk)) == 90
    assert source.outages == 1


def test_a_chunked_body_that_ended_whole_is_over_also_at_a_cameras_pace(tmp_path: Path) -> None:
    response = Response(ts(tmp_path), over_s=2, chunked=True)
    with http_server([response] * 2) as url, NetworkSource(url) as source:
        chunks = read(source)
    assert len(times(chunks, VideoChunk)) == 50
    assert (source.outages, source.warnings) == (0, [])


@pytest.mark.thorough
def test_what_was_a_camera_once_is_none_less_when_it_sends_what_it_kept(tmp_path: Path) -> None:
    body = ts(tmp_path)
    responses = [Response(body, over_s=2), Response(body), Response(body, hang=True)]
    with http_server(responses) as url, NetworkSource(url) as source:
        chunks = read(source, pictures=130)
    assert len(times(chunks, VideoChunk)) == 130
    assert source.outages == 2


# What cannot be read


def test_no_server_is_one_line_without_the_password() -> None:
    port = free_port()
    with pytest.raises(MediaError) as caught:
        NetworkSource(f"rtsp://user:secret@127.0.0.1:{port}/live?token=secret")
    assert str(caught.value) == (
        f"rtsp://127.0.0.1:{port}/live: cannot be opened (Connection refused)"
    )


def test_a_server_that_never_answers(tmp_path: Path) -> None:
    with http_server([Response(b"", hang=True)]) as url:
        start = time.monotonic()
        with pytest.raises(MediaError, match=r"no answer for 0\.3 s"):
            NetworkSource(url, open_timeout_s=0.3)
        assert time.monotonic() - start < patient(3)


def test_a_page_is_no_stream() -> None:
    with (
        http_server([Response(b"<html>sign in</html>" * 99)]) as url,
        pytest.raises(MediaError, match="cannot be opened"),
    ):
        NetworkSource(url)


@pytest.mark.parametrize("url", ["udp://127.0.0.1:1", "file:///x.mp4", "concat://a", "rtsp://"])
def test_addresses_that_are_not_supported(url: str) -> None:
    with pytest.raises(UsageError):
        NetworkSource(url)


def test_a_redirect_to_a_local_file_is_refused(tmp_path: Path) -> None:
    ts(tmp_path)
    secret = Response(b"", redirect=f"file://{tmp_path}/clip.ts")
    with http_server([secret]) as url, pytest.raises(MediaError):
        NetworkSource(url)


# Ends


@pytest.mark.thorough
def test_close_from_another_thread_ends_a_read_that_hangs(tmp_path: Path) -> None:
    with http_server([Response(ts(tmp_path), hang=True)]) as url:
        source = NetworkSource(url, stall_s=8.0)
        with source, Feed(source) as feed:
            while feed.get(0.3) is not None:
                pass
            start = time.monotonic()
        assert time.monotonic() - start < patient(5)  # it does not wait for the read
        feed._thread.join(20)
        assert not feed._thread.is_alive()


def test_close_during_an_outage_is_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.media.live.FIRST_PAUSE_S", 60.0)
    response = Response(ts(tmp_path), over_s=2)
    with http_server([response]) as url, NetworkSource(url) as source:
        with Feed(source) as feed:
            while source.outages == 0 and not feed.ended:
                feed.get(0.05)
            start = time.monotonic()
        assert time.monotonic() - start < patient(5)
        feed._thread.join(20)
        assert not feed._thread.is_alive()  # it does not wait for the next try


# HLS


@pytest.fixture
def hls(tmp_path: Path) -> Path:
    """A play list with two segments, without an end: a live one."""
    for i in range(2):
        ts(tmp_path, f"{i}.ts")
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:2", "#EXT-X-MEDIA-SEQUENCE:0"]
    for i in range(2):
        lines += ["#EXTINF:2.0,", f"{i}.ts"]
    (tmp_path / "live.m3u8").write_text("\n".join(lines) + "\n")
    return tmp_path


def folder(path: Path) -> type[SimpleHTTPRequestHandler]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    return partial(Quiet, directory=str(path))  # type: ignore[return-value]


def test_hls_is_live_and_fetched_rather_than_pushed(hls: Path) -> None:
    with (
        serve(folder(hls)) as port,
        NetworkSource(f"http://127.0.0.1:{port}/live.m3u8?token=x") as source,
    ):
        assert source.info.name == f"http://127.0.0.1:{port}/live.m3u8"
        assert (source.live, source.paced) == (True, False)
        assert source.patience_s > 10
        chunks = read(source, pictures=60)
    assert rising(times(chunks, VideoChunk))
    assert times(chunks, AudioChunk)


def test_a_play_list_with_an_end_is_a_film(hls: Path) -> None:
    with (hls / "live.m3u8").open("a") as out:
        out.write("#EXT-X-ENDLIST\n")
    with (
        serve(folder(hls)) as port,
        NetworkSource(f"http://127.0.0.1:{port}/live.m3u8") as source,
    ):
        assert source.live is False
        assert source.info.duration_s == pytest.approx(4.0, abs=0.1)
        chunks = read(source)
    assert 98 <= len(times(chunks, VideoChunk)) <= 100
    assert source.warnings == []


@pytest.mark.parametrize("prefix", ["file://", "", "concat:", "subfile,,start,0,end,0,,:"])
def test_a_play_list_may_not_name_local_files(prefix: str, hls: Path, tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    local = hls / "0.ts"
    with av.open(str(local)) as container:
        assert container.streams.video  # it could be read, if it were allowed
    (tmp_path / "served" / "live.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\n{prefix}{local}\n#EXT-X-ENDLIST\n"
    )
    with serve(folder(tmp_path / "served")) as port, pytest.raises(MediaError):
        list(NetworkSource(f"http://127.0.0.1:{port}/live.m3u8", open_timeout_s=3))


# RTSP


@pytest.fixture(scope="module")
def rtsp_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := why_no_rtsp_server():
        pytest.skip(reason)
    path = tmp_path_factory.mktemp("rtsp") / "clip.mp4"
    return write_clip(path, seconds=20, codec="libx264", gop=25)


@pytest.mark.thorough
def test_an_rtsp_server_that_is_killed_and_restarted(rtsp_clip: Path, record_property: Any) -> None:
    """Recovery within 5 s of the server's return, on a clock that goes on as the wall's does."""
    server = RtspServer(rtsp_clip)
    notes: list[str] = []
    server.start()
    try:
        with NetworkSource(server.url, notice=notes.append) as source, Feed(source) as feed:
            assert source.info.has_audio
            before = wait_for_pictures(feed, 20)
            server.kill()
            killed_s = time.monotonic()
            while feed.get(0.1) is not None:
                pass
            pause(killed_s + 3.0 - time.monotonic())
            returned_s = server.start()
            after = wait_for_pictures(feed, 20)
            recovery_s = after[0][0] - returned_s
    finally:
        server.kill()
    record_property("recovery_s", recovery_s)
    print(f"recovered {recovery_s:.2f} s after the server's return")
    assert recovery_s < patient(5)
    assert len(notes) == 2
    (at0, t0), (at1, t1) = before[-1], after[0]
    assert t1 - t0 == pytest.approx(at1 - at0, abs=0.5)


@pytest.mark.thorough
def test_a_camera_with_few_key_pictures_is_waited_for(tmp_path: Path) -> None:
    """What was read to find out what it is holds the first key picture, and is not kept."""
    if reason := why_no_rtsp_server():
        pytest.skip(reason)
    notes: list[str] = []
    server = RtspServer(write_clip(tmp_path / "c.mp4", seconds=12, codec="libx264", gop=150))
    server.start()
    try:
        with NetworkSource(server.url, stall_s=1.5, notice=notes.append) as source:
            first = next(c for c in source if isinstance(c, VideoChunk))
    finally:
        server.kill()
    assert first.t_s > 2  # later than a stall, and without a new connection
    assert notes == []


@pytest.mark.thorough
def test_rtsp_over_udp_survives_loss(tmp_path: Path) -> None:
    if reason := why_no_rtsp_server():
        pytest.skip(reason)
    clip = write_clip(tmp_path / "c.mp4", seconds=12, codec="libx264", gop=25, picture=rolling)
    server = RtspServer(clip, "--lose", "0.03")
    server.start()
    try:
        with NetworkSource(server.url, transport="udp") as source:
            chunks = read(source, until_s=7)
    finally:
        server.kill()
    assert source.outages == 0
    for kind in (VideoChunk, AudioChunk):
        found = times(chunks, kind)
        assert rising(found)
        assert found[-1] > 3


def wait_for_pictures(feed: Feed, n: int) -> list[tuple[float, float]]:
    """(arrival, stream time) of n pictures."""
    found: list[tuple[float, float]] = []
    deadline = time.monotonic() + 20
    while len(found) < n:
        assert time.monotonic() < deadline, f"{len(found)} of {n} pictures"
        chunk = feed.get(0.5)
        if isinstance(chunk, VideoChunk):
            found.append((time.monotonic(), chunk.t_s))
    return found


@pytest.mark.thorough
def test_a_machine_that_is_too_slow_leaves_pictures_out_and_does_not_fall_behind(
    rtsp_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding that takes twice the time there is: key pictures alone keep it up."""
    decode = NetworkSource._decode

    def slow(self: NetworkSource, packet: Any) -> list[Any]:
        frames = decode(self, packet)
        pause(0.08 * sum(isinstance(f, av.VideoFrame) for f in frames))
        return frames

    monkeypatch.setattr(NetworkSource, "_decode", slow)
    server = RtspServer(rtsp_clip)
    server.start()
    try:
        with NetworkSource(server.url) as source:
            found = read_timed(source, until_s=8)
    finally:
        server.kill()
    lags = [
        at - c.captured_s
        for at, c in found
        if isinstance(c, VideoChunk) and c.captured_s is not None
    ]
    assert source.drops["behind"] > 0
    assert max(lags) < 4
    assert rising(times([c for _, c in found], VideoChunk))


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(502)

        def log_message(self, *_: object) -> None:
            pass

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    body = ts(tmp_path)
    with serve(Proxy) as port, http_server([Response(body)] * 2) as url:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        with NetworkSource(url.replace("//", "//user:secret@")) as source:
            assert source.info.has_video
        assert asked == []
        with pytest.raises(MediaError):  # elsewhere it is, as the environment says
            NetworkSource("http://camera.invalid/live.ts")
        assert asked
        assert set(asked) == {"http://camera.invalid:80/live.ts"}
