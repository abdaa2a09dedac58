# SPDX-License-Identifier: Apache-2.0
"""Containers that state no presentation times: no picture is lost, and sound stays in step."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from runtime.media import AudioChunk, VideoChunk
from runtime.media.file import FileSource
from runtime.media.network import NetworkSource
from runtime.media.sandbox.reader import IsolatedFile
from tests.runtime.live_server import Response, http_server

FPS, RATE_HZ, PICTURES = 25, 16_000, 300
EVERY = 50  # pictures between two events: a flash with a beep
SIZE = (96, 80)  # width, height
X264 = {"preset": "veryfast", "bf": "3", "b_strategy": "2", "x264-params": "b-pyramid=normal"}


def encoded(codec: str, *, b_frames: int, pictures: int = PICTURES) -> tuple[Any, list[Any]]:
    """Context and packets in decoding order.  A bar moves; every :data:`EVERY` pictures a flash."""
    context = av.CodecContext.create(codec, "w")
    context.width, context.height = SIZE
    context.pix_fmt, context.time_base = "yuv420p", Fraction(1, FPS)
    context.framerate = Fraction(FPS)
    context.max_b_frames, context.gop_size = b_frames, 60
    if codec == "libx264":
        context.options = {**X264, "bf": str(b_frames)}
    packets: list[Any] = []
    for i in range(pictures):
        pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
        pixels[:, 2 * (i % 40) : 2 * (i % 40) + 10] = 120
        if i % EVERY == EVERY // 2:
            pixels[:] = 255
        frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = i, Fraction(1, FPS)
        packets += context.encode(frame)
    return context, packets + list(context.encode(None))


def beeps(pictures: int = PICTURES) -> Any:  # int16 [n]
    sound = np.zeros(pictures * RATE_HZ // FPS, np.int16)
    one = (20_000 * np.sin(np.arange(RATE_HZ // FPS) * 0.3)).astype(np.int16)
    for i in range(EVERY // 2, pictures, EVERY):
        sound[i * len(one) : (i + 1) * len(one)] = one
    return sound


def write(
    path: Path, codec: str, *, b_frames: int, lost: frozenset[int] = frozenset(), **options: Any
) -> Path:
    """With PCM beside it; of the ``lost`` packets only the first bytes are kept."""
    context, packets = encoded(codec, b_frames=b_frames, **options)
    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=FPS)
        video.width, video.height = SIZE
        video.pix_fmt, video.codec_context.time_base = "yuv420p", Fraction(1, FPS)
        video.codec_context.max_b_frames = b_frames
        if codec == "libx264":
            video.options = {**X264, "bf": str(b_frames)}
        audio = out.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
        mixed = []
        for number, packet in enumerate(packets):
            if number in lost:
                broken = av.Packet(bytes(packet)[:4] + b"\xff" * 8)
                broken.pts, broken.dts = packet.pts, packet.dts
                packet = broken
            packet.stream, packet.time_base = video, Fraction(1, FPS)
            mixed.append(packet)
        sound = beeps(**options)
        for at in range(0, len(sound), 640):
            frame = av.AudioFrame.from_ndarray(sound[None, at : at + 640], "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, at, Fraction(1, RATE_HZ)
            mixed += audio.encode(frame)
        for packet in sorted(mixed, key=lambda p: float(p.dts * p.time_base)):
            out.mux(packet)
    del context
    return path


def read(source: Any) -> tuple[list[float], list[float], list[float]]:
    """Times of pictures, of flashes and of beeps."""
    times, flashes = [], []
    sound: list[tuple[float, Any]] = []
    with source:
        for chunk in source:
            if isinstance(chunk, AudioChunk):
                sound.append((chunk.t_s, chunk.samples))
                continue
            times.append(chunk.t_s)
            if chunk.frame.mean() > 200:
                flashes.append(chunk.t_s)
    return times, flashes, list(onsets(sound))


def onsets(sound: list[tuple[float, Any]]) -> Iterator[float]:
    last_s = -1.0
    for t_s, samples in sound:
        for at in np.flatnonzero(np.abs(samples) > 0.2):
            now_s = t_s + at / RATE_HZ
            if now_s - last_s > 0.5:
                yield now_s
            last_s = now_s


EVENTS_S = [i / FPS for i in range(EVERY // 2, PICTURES, EVERY)]
GRID_S = [i / FPS for i in range(PICTURES)]


@pytest.mark.parametrize(
    ("codec", "b_frames", "open_file"),
    [
        ("libx264", 0, FileSource),
        ("libx264", 2, FileSource),
        ("libx264", 2, IsolatedFile),
        ("libx264", 8, FileSource),
        ("mpeg4", 2, FileSource),
    ],
)
def test_every_picture_of_an_avi_is_there_and_in_step_with_the_sound(
    tmp_path: Path, codec: str, b_frames: int, open_file: Any
) -> None:
    source = open_file(write(tmp_path / "clip.avi", codec, b_frames=b_frames))
    times, flashes, heard = read(source)
    assert times == pytest.approx(GRID_S, abs=1e-6)
    assert source.damaged == 0
    assert flashes == pytest.approx(EVENTS_S, abs=1e-6)
    assert heard == pytest.approx(EVENTS_S, abs=0.002)


def test_other_containers_keep_the_times_that_they_state(tmp_path: Path) -> None:
    for suffix in (".mkv", ".mov"):
        source = FileSource(write(tmp_path / f"clip{suffix}", "libx264", b_frames=3))
        times, flashes, _ = read(source)
        assert times == pytest.approx(GRID_S, abs=1e-3)
        assert flashes == pytest.approx(EVENTS_S, abs=1e-3)
        assert source.damaged == 0


@pytest.mark.parametrize("lost", [{40}, {41}, {42}, {43}, set(range(90, 95))])
@pytest.mark.parametrize(("codec", "b_frames"), [("libx264", 2), ("libx264", 8), ("mpeg4", 2)])
def test_a_packet_that_is_lost_shifts_nothing_for_long(
    tmp_path: Path, codec: str, b_frames: int, lost: set[int]
) -> None:
    path = write(tmp_path / "c.avi", codec, b_frames=b_frames, lost=frozenset(lost), pictures=200)
    times, flashes, _ = read(FileSource(path))
    assert len(times) > 180  # what was predicted from it is lost, too
    assert all(a < b for a, b in pairwise(times))
    after = [t for t in EVENTS_S if t > 5 and t < 8]  # two key pictures later
    assert [t for t in flashes if t > 5] == pytest.approx(after, abs=1e-6)
    assert times[-1] == pytest.approx(199 / FPS, abs=1e-6)


@pytest.mark.parametrize(("form", "codec"), [("h264", "libx264"), ("hevc", "libx265")])
def test_a_bare_stream_goes_by_its_rate_and_is_not_damaged(
    tmp_path: Path, form: str, codec: str
) -> None:
    if codec not in av.codec.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    path = tmp_path / f"clip.{form}"
    with av.open(str(path), "w", format=form) as out:
        video = out.add_stream(codec, rate=FPS)
        video.width, video.height = SIZE
        video.pix_fmt = "yuv420p"
        video.options = {"bf": "3", "x265-params": "log-level=none"} if form == "hevc" else X264
        for i in range(60):
            pixels = np.full((SIZE[1], SIZE[0], 3), 4 * i, np.uint8)
            out.mux(video.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        out.mux(video.encode(None))
    with FileSource(path) as source:
        found = [(c.t_s, c.frame.mean()) for c in source if isinstance(c, VideoChunk)]
    assert [t for t, _ in found] == pytest.approx([i / FPS for i in range(60)], abs=1e-6)
    assert all(a < b for (_, a), (_, b) in pairwise(found))
    assert source.damaged == 0


def test_a_bare_stream_from_the_network_goes_by_its_arrival(tmp_path: Path) -> None:
    _, packets = encoded("libx264", b_frames=0, pictures=60)
    body = b"".join(map(bytes, packets))
    with (
        http_server([Response(body, hang=True)]) as url,
        NetworkSource(url, stall_s=1.0) as source,
    ):
        times = []
        for chunk in source:
            times.append(chunk.t_s)
            if len(times) == 30:
                break
    assert all(a < b for a, b in pairwise(times))


# Matroska that was made of an AVI: the same decoding times under another name


def ebml(name: int, *content: bytes) -> bytes:
    """An element; its size in eight bytes."""
    body = b"".join(content)
    width = (name.bit_length() + 7) // 8
    return name.to_bytes(width, "big") + (len(body) | 1 << 56).to_bytes(8, "big") + body


def number(name: int, value: int) -> bytes:
    return ebml(name, value.to_bytes(8, "big"))


def test_matroska_made_of_an_avi_states_decoding_times(tmp_path: Path) -> None:
    _, packets = encoded("libx264", b_frames=3, pictures=100)
    header = struct.pack("<IiiHH4sIiiII", 40, *SIZE, 1, 24, b"H264", 0, 0, 0, 0, 0)
    track = ebml(
        0xAE,  # TrackEntry: number, UID, type picture
        *(number(0xD7, 1), number(0x73C5, 1), number(0x83, 1)),
        ebml(0x86, b"V_MS/VFW/FOURCC"),
        ebml(0x63A2, header),
        number(0x23E383, 40_000_000),  # DefaultDuration, ns
        ebml(0xE0, number(0xB0, SIZE[0]), number(0xBA, SIZE[1])),
    )
    blocks = [
        ebml(0xA3, b"\x81", struct.pack(">hB", 40 * n, 0x80 * p.is_keyframe), bytes(p))
        for n, p in enumerate(packets)
    ]
    path = tmp_path / "clip.mkv"
    path.write_bytes(
        ebml(0x1A45DFA3, ebml(0x4282, b"matroska"), number(0x4287, 4), number(0x4285, 2))
        + ebml(
            0x18538067,
            ebml(0x1549A966, number(0x2AD7B1, 1_000_000)),
            ebml(0x1654AE6B, track),
            ebml(0x1F43B675, number(0xE7, 0), *blocks),
        )
    )
    source = FileSource(path)
    times, flashes, _ = read(source)
    assert len(times) == 100
    assert np.diff(times) == pytest.approx(np.full(99, 1 / FPS), abs=1e-3)
    first = times[0]
    assert [t - first for t in flashes] == pytest.approx(EVENTS_S[:2], abs=1e-3)
    assert source.damaged == 0


def test_packed_b_pictures_are_all_there(tmp_path: Path) -> None:
    """DivX put a P- and a B-picture into one chunk and an empty one after them, so that one chunk
    in gave one picture out."""
    context, packets = encoded("mpeg4", b_frames=1)
    chunks: list[bytes] = []
    pending = list(map(bytes, packets))
    kinds = [VOP_KINDS[(p[p.rindex(b"\0\0\1\xb6") + 4]) >> 6] for p in pending]
    i = 0
    while i < len(pending):
        if kinds[i] != "B" and i + 1 < len(pending) and kinds[i + 1] == "B":
            chunks += [pending[i] + pending[i + 1], NOT_CODED]
            i += 2
        else:
            chunks.append(pending[i])
            i += 1
    assert len(chunks) == PICTURES
    assert NOT_CODED in chunks
    header = bytes(context.extradata or b"") + b"\0\0\1\xb2DivX503b1393p"
    path = tmp_path / "packed.avi"
    with av.open(str(path), "w") as out:
        video = out.add_stream("mpeg4", rate=FPS)
        video.width, video.height = SIZE
        video.pix_fmt, video.codec_context.time_base = "yuv420p", Fraction(1, FPS)
        audio = out.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
        sound = beeps()
        for n, chunk in enumerate(chunks):
            packet = av.Packet((header if n == 0 else b"") + chunk)
            packet.stream, packet.time_base = video, Fraction(1, FPS)
            packet.pts = packet.dts = n
            out.mux(packet)
            frame = av.AudioFrame.from_ndarray(sound[None, n * 640 : (n + 1) * 640], "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, n * 640, Fraction(1, RATE_HZ)
            out.mux(audio.encode(frame))
    source = FileSource(path)
    times, flashes, heard = read(source)
    assert times == pytest.approx(GRID_S, abs=1e-6)
    assert flashes == pytest.approx(EVENTS_S, abs=1e-6)
    assert heard == pytest.approx(EVENTS_S, abs=0.002)
    assert source.damaged == 0


VOP_KINDS = "IPBS"
# vop_coding_type P, modulo_time_base 0, marker, 5 bits of time, marker, vop_coded 0
NOT_CODED = b"\0\0\1\xb6" + bytes([0b01_0_1_0000, 0b0_1_0_11111])
