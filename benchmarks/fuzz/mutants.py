# SPDX-License-Identifier: Apache-2.0
"""Short real clips in many containers, and damage to them that is the same whenever it is made.

:func:`make_seeds` writes :data:`SECONDS` of each given clip in the containers and codecs of
:data:`RECIPES`.  :func:`mutant` damages one of them: which one and how follows from ``(seed,
number)`` alone, so that a mutant need not be kept to be seen again.  The kinds of damage are those
of transfers (cut off, blocks lost, sent twice or out of order, zeros for what never came), of
storage (bits, runs of bytes), of tools (files joined in the middle, a wrong extension) and of
people with bad intentions (extreme values in the fields of headers).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.looped import FPS, SOURCE_RATE_HZ, fit, pictures_and_sound
from runtime.errors import UsageError
from runtime.media.local_files import ffmpeg_name

SECONDS = 2.2  # one window and a hop of the shipped model
SIZE = (240, 192)  # a face in it is large enough to be judged, and a run of thousands short enough
MAX_AS_IS_BYTES = 1_000_000  # a given clip that is smaller is damaged as it is, too
MAX_BYTES = 4_000_000  # of a mutant
HEADER_BYTES = 2048


class Recipe(NamedTuple):
    """A container with its codecs; ``picture`` None: sound alone."""

    name: str  # of the file
    picture: str | None
    sound: str
    rate_hz: int = 48_000
    options: dict[str, str] = {}  # noqa: RUF012 - of the container; never changed


RECIPES = (
    Recipe("h264.mp4", "libx264", "aac"),
    Recipe("fragments.mp4", "libx264", "aac", 48_000, {"movflags": "frag_keyframe+empty_moov"}),
    Recipe("mpeg4.mov", "mpeg4", "pcm_s16le"),
    Recipe("h264.mkv", "libx264", "flac"),
    Recipe("vp8.webm", "libvpx", "libopus"),
    Recipe("vp9.webm", "libvpx-vp9", "libopus"),
    Recipe("mpeg4.avi", "mpeg4", "libmp3lame", 44_100),
    Recipe("mpeg2.ts", "mpeg2video", "mp2"),
    Recipe("h264.ts", "libx264", "aac"),
    Recipe("mpeg1.mpg", "mpeg1video", "mp2"),
    Recipe("sorenson.flv", "flv", "libmp3lame", 44_100),
    Recipe("sound.wav", None, "pcm_s16le"),
    Recipe("sound.ogg", None, "libopus"),
    Recipe("sound.mp3", None, "libmp3lame"),
)

# What stands beside sizes, counts, durations and timestamps in the headers of these containers.
MARKERS = (
    *(b"moov", b"mvhd", b"tkhd", b"mdhd", b"elst", b"stsd", b"stts", b"ctts", b"stsc", b"stsz"),
    *(b"stco", b"moof", b"tfhd", b"tfdt", b"trun", b"avc1", b"avcC", b"mp4a", b"esds", b"mdat"),
    *(b"\x1a\x45\xdf\xa3", b"\x2a\xd7\xb1", b"\x44\x89", b"\x16\x54\xae\x6b"),  # Matroska: EBML,
    *(b"\x23\xe3\x83", b"\x1f\x43\xb6\x75", b"\x1c\x53\xbb\x6b"),  # scale, duration, tracks, ...
    *(b"RIFF", b"avih", b"strh", b"strf", b"movi", b"idx1", b"fmt ", b"data"),
    *(b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"\x00\x00\x01\xe0", b"\x00\x00\x01\xc0"),  # MPEG
    *(b"FLV", b"onMetaData", b"duration", b"OggS", b"OpusHead", b"ID3", b"Xing", b"Info"),
)


@dataclass(frozen=True)
class Seed:
    """An undamaged clip."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Mutant:
    """A damaged clip, and what was done to it."""

    number: int
    base: str  # name of the seed
    suffix: str  # that its file is to have
    data: bytes
    damage: tuple[str, ...]

    @property
    def description(self) -> str:
        return f"{self.base} as {self.suffix}: {', '.join(self.damage)}"


# --- the clips ------------------------------------------------------------------------------


def make_seeds(clips: Sequence[Path], folder: Path) -> list[Seed]:
    """Each recipe of a clip, the clips taking turns, and the first small clip as it is.

    Raises :class:`UsageError` for a clip without picture or sound, and the errors of its source.
    """
    found = []
    read: dict[Path, tuple[list[NDArray[np.uint8]], NDArray[np.float32]]] = {}
    for i, recipe in enumerate(RECIPES):
        clip = clips[i % len(clips)]
        if clip not in read:
            read[clip] = _read(clip)
        target = folder / recipe.name
        _write(target, recipe, *read[clip])
        found.append(Seed(recipe.name, target.read_bytes()))
    small = next((c for c in clips if c.stat().st_size <= MAX_AS_IS_BYTES), None)
    if small is not None:
        found.append(Seed(f"as_is{small.suffix}", small.read_bytes()))
    return found


def _read(clip: Path) -> tuple[list[NDArray[np.uint8]], NDArray[np.float32]]:
    """The first seconds: pictures [H, W, 3] at 25 Hz, and samples [n] at 16 kHz."""
    pictures: list[NDArray[np.uint8]] = []
    samples: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
    for picture in pictures_and_sound(clip, samples):
        pictures.append(fit(picture, *SIZE))
        if len(pictures) > SECONDS * FPS:
            break
    sound = np.concatenate(samples)[: round(SECONDS * SOURCE_RATE_HZ)]
    if not pictures or not sound.size:
        raise UsageError(f"{clip}: a clip with picture and sound is needed")
    return pictures, sound


def _write(
    path: Path, recipe: Recipe, pictures: list[NDArray[np.uint8]], sound: NDArray[np.float32]
) -> None:
    """One thread and no random ids: the same bytes each time, with the same libraries; H.264 and
    AAC nearly so."""
    import av

    packets: list[Any] = []
    muxer = {"fflags": "+bitexact", **recipe.options}
    with av.open(ffmpeg_name(path), "w", options=muxer) as container:
        video: Any = None
        if recipe.picture is not None:
            options = {"preset": "veryfast"} if recipe.picture == "libx264" else {}
            if recipe.picture.startswith("libvpx"):
                options = {"deadline": "good", "cpu-used": "5"}  # "realtime" looks at the clock
            video = container.add_stream(recipe.picture, rate=FPS, options=options)
            video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
            video.codec_context.thread_count = 1
        audio: Any = container.add_stream(recipe.sound, rate=recipe.rate_hz, layout="mono")
        for index, picture in enumerate(pictures if video is not None else []):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            packets += video.encode(frame)
        if video is not None:
            packets += video.encode()
        block = av.AudioFrame.from_ndarray(sound[None], format="flt", layout="mono")
        block.sample_rate, block.pts = SOURCE_RATE_HZ, 0
        block.time_base = Fraction(1, SOURCE_RATE_HZ)
        packets += [*audio.encode(block), *audio.encode()]
        container.mux(sorted(packets, key=lambda p: float((p.dts or 0) * p.time_base)))


# --- the damage -----------------------------------------------------------------------------


def mutant(seeds: Sequence[Seed], seed: int, number: int) -> Mutant:
    """Mutant ``number`` of the run that ``seed`` begins; nothing else decides what it is."""
    rng = random.Random(f"{seed}/{number}")
    base = rng.choice(seeds)
    data = bytearray(base.data)
    damage = []
    for _ in range(rng.choices((1, 2, 3, 4), (55, 25, 12, 8))[0]):
        done = rng.choice(DAMAGE)(data, rng, rng.choice(seeds).data)
        del data[MAX_BYTES:]
        damage.append(done)
    suffix = Path(base.name).suffix
    if rng.random() < 0.1:
        suffix = rng.choice(sorted({Path(s.name).suffix for s in seeds} | {".jpg", ".txt"}))
    return Mutant(number, base.name, suffix, bytes(data), tuple(damage))


def _flip_bits(data: bytearray, rng: random.Random, other: bytes) -> str:
    count = _log_uniform(rng, 1, 256)
    for _ in range(count if data else 0):
        data[_place(data, rng)] ^= 1 << rng.randrange(8)
    return f"{count} bits flipped"


def _overwrite(data: bytearray, rng: random.Random, other: bytes) -> str:
    at, size = _place(data, rng), _log_uniform(rng, 1, 4096)
    size = min(size, len(data) - at)
    source = rng.choice(("noise", "ones", "another clip"))
    start = rng.randrange(max(1, len(other) - size))
    filling = {
        "noise": rng.randbytes(size),
        "ones": b"\xff" * size,
        "another clip": other[start : start + size].ljust(size, b"\0"),
    }
    data[at : at + size] = filling[source]
    return f"{size} bytes from {at} overwritten with {source}"


def _truncate(data: bytearray, rng: random.Random, other: bytes) -> str:
    size = rng.choice((_place(data, rng), len(data) - _log_uniform(rng, 1, 1024)))
    del data[max(0, size) :]
    return f"cut off at {max(0, size)}"


def _remove(data: bytearray, rng: random.Random, other: bytes) -> str:
    at, size = _place(data, rng), _log_uniform(rng, 1, 65_536)
    del data[at : at + size]
    return f"{size} bytes from {at} removed"


def _duplicate(data: bytearray, rng: random.Random, other: bytes) -> str:
    at, size, copies = _place(data, rng), _log_uniform(rng, 1, 65_536), _log_uniform(rng, 1, 32)
    data[at:at] = bytes(data[at : at + size]) * copies
    return f"{size} bytes from {at} {copies} times more"


def _swap(data: bytearray, rng: random.Random, other: bytes) -> str:
    size = min(_log_uniform(rng, 1, 65_536), len(data) // 2)
    first = rng.randrange(len(data) - 2 * size + 1)
    second = rng.randrange(first + size, len(data) - size + 1)
    a, b = data[first : first + size], data[second : second + size]
    data[first : first + size], data[second : second + size] = b, a
    return f"{size} bytes from {first} and from {second} swapped"


def _append(data: bytearray, rng: random.Random, other: bytes) -> str:
    data += other
    return "another clip behind it"


def _splice(data: bytearray, rng: random.Random, other: bytes) -> str:
    at, start = _place(data, rng), rng.randrange(len(other))
    data[at:] = other[start:]
    return f"from {at} on another clip from {start} on"


def _extreme(data: bytearray, rng: random.Random, other: bytes) -> str:
    """One to four numbers beside a marker of a header become the ends of their range."""
    markers = [m for m in MARKERS if m in data]
    done = []
    for _ in range(rng.randint(1, 4) if markers and len(data) > 8 else 0):
        marker = rng.choice(markers)
        starts = [data.find(marker)]
        while len(starts) < 64 and (found := data.find(marker, starts[-1] + 1)) >= 0:
            starts.append(found)
        if starts[0] < 0:  # the number before went over it
            continue
        width = rng.choice((1, 2, 4, 8))
        at = rng.choice(starts) + rng.choice((-8, -4, len(marker) + rng.randrange(48)))
        at = min(max(0, at), len(data) - width)
        top = (1 << 8 * width) - 1
        value = rng.choice((0, 1, top, top - 1, top >> 1, (top >> 1) + 1, 1 << 4 * width))
        data[at : at + width] = value.to_bytes(width, rng.choice(("big", "little")))
        done.append(f"{value:#x} in {width} bytes at {at}")
    return "extreme fields: " + (", ".join(done) or "none found")


def _zero_tail(data: bytearray, rng: random.Random, other: bytes) -> str:
    at = _place(data, rng)
    data[at:] = bytes(len(data) - at)
    return f"zeros from {at} on"


DAMAGE: tuple[Callable[[bytearray, random.Random, bytes], str], ...] = (
    _flip_bits,
    _overwrite,
    _truncate,
    _remove,
    _duplicate,
    _swap,
    _append,
    _splice,
    _extreme,
    _extreme,  # reaches the most code of a demuxer
    _zero_tail,
)


def _place(data: bytearray, rng: random.Random) -> int:
    """A third of them among the first bytes, where headers are."""
    end = max(1, len(data))
    return rng.randrange(min(end, HEADER_BYTES) if rng.random() < 1 / 3 else end)


def _log_uniform(rng: random.Random, low: int, high: int) -> int:
    """As likely from 1 to 10 as from 100 to 1000."""
    return round(low * (high / low) ** rng.random())
