# SPDX-License-Identifier: Apache-2.0
"""Which of a container's tracks is judged: the one that players play, or the one asked for.

Players follow the container's default flag (FFmpeg's disposition).  So the picture is the first
moving one with that flag, else the first moving one; an attached cover picture never is.  The sound
is the first one with that flag, else the first that is not meant for people who cannot see or hear
well (an audio description), else the first.  Without a decoder a track is none.

Tracks are counted as FFmpeg counts them (``-map 0:a:1``): of their kind, from 0, in the order of
the file, cover pictures and what cannot be decoded included.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runtime.errors import UsageError

MAX_LISTED = 8  # tracks in one message


@dataclass(frozen=True)
class Tracks:
    """What was asked for: numbers as in FFmpeg's ``v:N`` and ``a:N``; None: as players do."""

    video: int | None = None  # --video-track
    audio: int | None = None  # --audio-track


@dataclass(frozen=True)
class _Kind:
    letter: str
    word: str
    option: str


PICTURE = _Kind("v", "picture", "--video-track")
SOUND = _Kind("a", "sound", "--audio-track")


class Track:
    """One stream of a container, under its number."""

    def __init__(self, av: Any, kind: _Kind, number: int, stream: Any) -> None:
        flags = av.stream.Disposition
        found = stream.disposition
        self.kind, self.number, self.stream = kind, number, stream
        self.is_default = bool(found & flags.default)
        self.is_cover = bool(found & (flags.attached_pic | flags.timed_thumbnails))
        self.is_aid = bool(found & (flags.visual_impaired | flags.hearing_impaired))
        self.is_playable = stream.codec_context is not None and not self.is_cover

    def __str__(self) -> str:
        """``a:1 (eng, aac, default)``.  A title may say anything, so it is not shown."""
        said = str(self.stream.metadata.get("language", ""))
        codec = self.stream.codec_context
        parts = [
            said if re.fullmatch(r"[A-Za-z][A-Za-z-]{1,7}", said) and said != "und" else "",
            codec.name if codec is not None else "no decoder",
            "cover picture" if self.is_cover else "",
            "default" if self.is_default else "",
        ]
        return f"{self.kind.letter}:{self.number} ({', '.join(filter(None, parts))})"


def pick(av: Any, container: Any, name: str, tracks: Tracks) -> tuple[Track | None, Track | None]:
    """Picture and sound of a container, each None where there is none.

    Raises :class:`UsageError` where a track that was asked for is not there.
    """
    videos = [Track(av, PICTURE, n, s) for n, s in enumerate(container.streams.video)]
    audios = [Track(av, SOUND, n, s) for n, s in enumerate(container.streams.audio)]
    return (
        _pick(PICTURE, videos, tracks.video, name),
        _pick(SOUND, audios, tracks.audio, name),
    )


def notes(av: Any, container: Any, tracks: Tracks) -> list[str]:
    """One line for each kind of which there are several to choose from, and none was chosen."""
    kinds = (
        (PICTURE, container.streams.video, tracks.video),
        (SOUND, container.streams.audio, tracks.audio),
    )
    lines = []
    for kind, streams, wanted in kinds:
        playable = [t for n, s in enumerate(streams) if (t := Track(av, kind, n, s)).is_playable]
        if wanted is None and len(playable) > 1:
            picked = min(playable, key=_rank)
            others = [t for t in playable if t is not picked]
            lines.append(
                f"{len(playable)} {kind.word} tracks: {picked} is taken, as players do; not "
                f"judged: {_listed(others)}; {kind.option} N chooses"
            )
    return lines


def _pick(kind: _Kind, found: Sequence[Track], wanted: int | None, name: str) -> Track | None:
    if wanted is None:
        return min((t for t in found if t.is_playable), key=_rank, default=None)
    if wanted < len(found) and found[wanted].is_playable:
        return found[wanted]
    what = f"it has {_listed(found)}" if found else f"it has no {kind.word} at all"
    raise UsageError(
        f"{name}: {kind.option} {wanted}: there is no {kind.word} {kind.letter}:{wanted} that can "
        f"be judged; {what}"
    )


def _rank(track: Track) -> tuple[bool, bool, int]:
    """The least is played."""
    return not track.is_default, track.is_aid, track.number


def _listed(tracks: Sequence[Track]) -> str:
    more = len(tracks) - MAX_LISTED
    shown = ", ".join(map(str, tracks[:MAX_LISTED]))
    return f"{shown} and {more} more" if more > 0 else shown
