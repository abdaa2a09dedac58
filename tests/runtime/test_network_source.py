# SPDX-License-Identifier: Apache-2.0
"""Network streams, with real servers on 127.0.0.1: faults they survive, and what they may open."""

from __future__ import annotations

import itertools
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import av
import pytest

from benchmarks.rtsp import RtspServer, free_port, why_no_rtsp_server
from runtime.errors import MediaError, UsageError
from runtime.media import AudioChunk, Chunk, LiveSource, VideoChunk
from runtime.media.feed import Feed
from runtime.media.network import NetworkSource
from tests.runtime.clips import write_clip
from tests.runtime.live_server import Response, http_server, serve


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
        assert (source.live, source.paced) == (True, True)
        assert (source.info.has_video, source.info.has_audio) == (True, True)
        assert (source.info.width, source.info.height, source.info.fps) == (160, 120, 25.0)
        chunks = read(source, pictures=40)
    assert rising(times(chunks, VideoChunk))
    assert rising(times(chunks, AudioChunk))
    assert all(c.captured_s is not None for c in chunks)
    assert source.warnings == []


def test_a_server_that_goes_and_comes_back(tmp_path: Path) -> None:
    body = ts(tmp_path)
    notes: list[str] = []
    with (
        http_server([Response(body), Response(body), Response(body, hang=True)]) as url,
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
    assert 0.5 < took_s < 5
    assert "nothing came for 0.5 s" in source.warnings[0]


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


def test_resolution_that_changes_with_the_connection(tmp_path: Path) -> None:
    responses = [
        Response(ts(tmp_path)), Response(ts(tmp_path, size=(320, 240)), hang=True)
    ]  # fmt: skip
    with http_server(responses) as url, NetworkSource(url) as source:
        chunks = read(source, pictures=70)
    assert shapes(chunks) == [(120, 160), (240, 320)]
    assert source.info.width == 160  # what it was when the stream was opened


def test_sound_that_drops_out_leaves_the_picture(tmp_path: Path) -> None:
    responses = [
        Response(ts(tmp_path)),
        Response(ts(tmp_path, "mute.ts", sound=None)),
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


def test_damaged_packets_are_counted_and_passed_over(tmp_path: Path) -> None:
    body = bytearray(ts(tmp_path, seconds=4.0))
    for at in range(len(body) // 3, len(body) // 2, 401):
        body[at] ^= 0xFF
    with http_server([Response(bytes(body), hang=True)]) as url, NetworkSource(url) as source:
        chunks = read(source, until_s=3)
    assert rising(times(chunks, VideoChunk))
    assert source.damaged > 0
    assert max(times(chunks, VideoChunk)) > 3.0


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
        assert time.monotonic() - start < 3


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


def test_close_from_another_thread_ends_a_read_that_hangs(tmp_path: Path) -> None:
    with http_server([Response(ts(tmp_path), hang=True)]) as url:
        source = NetworkSource(url, stall_s=8.0)
        with source, Feed(source) as feed:
            while feed.get(0.3) is not None:
                pass
            start = time.monotonic()
        assert time.monotonic() - start < 5  # it does not wait for the read
        feed._thread.join(20)
        assert not feed._thread.is_alive()


def test_close_during_an_outage_is_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.media.live.FIRST_PAUSE_S", 60.0)
    with http_server([Response(ts(tmp_path))]) as url, NetworkSource(url) as source:
        with Feed(source) as feed:
            while source.outages == 0:
                feed.get(0.05)
            start = time.monotonic()
        assert time.monotonic() - start < 5
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
            time.sleep(max(0.0, killed_s + 3.0 - time.monotonic()))
            returned_s = server.start()
            after = wait_for_pictures(feed, 20)
            recovery_s = after[0][0] - returned_s
    finally:
        server.kill()
    record_property("recovery_s", recovery_s)
    print(f"recovered {recovery_s:.2f} s after the server's return")
    assert recovery_s < 5
    assert len(notes) == 2
    (at0, t0), (at1, t1) = before[-1], after[0]
    assert t1 - t0 == pytest.approx(at1 - at0, abs=0.5)


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


def test_a_machine_that_is_too_slow_leaves_pictures_out_and_does_not_fall_behind(
    rtsp_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding that takes twice the time there is: key pictures alone keep it up."""
    decode = NetworkSource._decode

    def slow(self: NetworkSource, packet: Any) -> list[Any]:
        frames = decode(self, packet)
        time.sleep(0.08 * sum(isinstance(f, av.VideoFrame) for f in frames))
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
