# SPDX-License-Identifier: Apache-2.0
"""From what a person writes to a source.

==================== ===========================================================================
camera, 0,           a camera through OpenCV
/dev/video0
csi://0              a Jetson's camera through GStreamer
browser              camera and microphone of a browser, by the page (:mod:`runtime.web`)
rtsp:// rtsps://     a network stream
http:// https://     HLS, MPEG-TS and what else HTTP carries
talk.mp4             a file; also a folder or a glob of them
door.streams         a list: one source a line, ``#`` starts a comment, paths count from the list;
                     ``front door = SOURCE`` gives it a name
==================== ===========================================================================

What a source is called everywhere is decided here, once: :func:`name_sources`.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.address import check_address, public_name, public_text, remember, scheme_of
from runtime.errors import UsageError
from runtime.files import read_bounded
from runtime.media.camera import camera_index, camera_name
from runtime.media.csi import csi_name, csi_sensor
from runtime.media.live import Notice, silent
from runtime.media.local_files import media_files
from runtime.media.picking import Tracks
from runtime.naming import name_of_file, plain, told_apart

if TYPE_CHECKING:
    from runtime.media import LiveSource, Source

BROWSER = "browser"
ISOLATED, INLINE = DECODERS = ("process", "inline")  # where a file is decoded
LIST_SUFFIX = ".streams"
MAX_LIST_BYTES = 1 << 20
NAMED = re.compile(r"(?P<name>[^=]*[^=\s])\s+=\s+(?P<source>.*)")  # a line of a list
MEDIA_SUFFIXES = frozenset(
    [
        *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts"),
        *(".mts", ".vob", ".flv", ".wmv", ".asf", ".ogv", ".mxf", ".gif"),
        *(".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".oga", ".opus", ".wma", ".aiff"),
    ]
)


@dataclass(frozen=True)
class Sound:
    """Where the sound comes from: ``same``, ``none``, ``mic`` or ``mic:ID``."""

    kind: str = "same"  # same, none, mic
    device: str | None = None  # of a microphone: a number or a part of its name


def parse_sound(text: str) -> Sound:
    """Raises :class:`UsageError` for anything else."""
    kind, colon, device = text.partition(":")
    if kind == "mic" and (device.strip() or not colon):
        return Sound("mic", device.strip() or None)
    if text in ("same", "none"):
        return Sound(text)
    raise UsageError(f"--audio {text}: it is same, none, mic, or mic: and a number or a name")


def is_live(source: str) -> bool:
    """Does it need somebody to stop it, as far as its name tells?"""
    return source == BROWSER or scheme_of(source) is not None or _camera(source) is not None


def expand_sources(given: Sequence[str]) -> list[str]:
    """Lists, folders and globs become what is in them; each source once, in order.

    Raises :class:`UsageError` for what does not exist, a folder, glob or list without sources, an
    address that is not supported.
    """
    return list(name_sources(given))


def name_sources(given: Sequence[str], names: Sequence[str] = ()) -> dict[str, str]:
    """The sources of :func:`expand_sources`, each with what it is called everywhere.

    That is the name in ``names`` (one for each of ``given``) or in a list, or else what may be
    shown of its address, or its path.  Names that would be equal get a number, in order.

    Raises :class:`UsageError` as :func:`expand_sources`, and for names that do not go with them.
    """
    if names and len(names) != len(given):
        raise UsageError(
            f"--name: {len(names)} for {len(given)} sources; give one with each --source, in the "
            "same order"
        )
    found: dict[str, str | None] = {}
    for i, source in enumerate(given):
        inside = _expand(source)
        if names:
            inside = _called(source, names[i], list(inside))
        for one, name in inside.items():
            found[one] = found.get(one) or name
    shown = told_apart([name or own_name(source) for source, name in found.items()])
    return dict(zip(found, shown, strict=True))


def _called(given: str, name: str, inside: Sequence[str]) -> dict[str, str | None]:
    """``name`` for the one source that ``given`` is."""
    called = plain(name)
    if not called:
        raise UsageError("a source's name is empty")
    if len(inside) != 1:
        raise UsageError(
            f"{public_text(given)}: it is {len(inside)} sources, which cannot all be called "
            f"{called}; give them names in a {LIST_SUFFIX} list"
        )
    return {inside[0]: called}


def own_name(source: str) -> str:
    """What a source is called to which nobody gave a name."""
    if source == BROWSER:
        return source
    sensor = csi_sensor(source)
    if sensor is not None:
        return csi_name(sensor)
    if scheme_of(source) is not None:
        return plain(public_name(source))
    index = _camera(source)
    return name_of_file(Path(source)) if index is None else camera_name(index)


def open_source(
    source: str,
    *,
    name: str | None = None,
    sound: Sound | None = None,
    transport: str = "tcp",
    sample_rate_hz: int = 16_000,
    notice: Notice = silent,
    isolated: bool = True,
    tracks: Tracks | None = None,
) -> Source:
    """One source of :func:`expand_sources`, open.

    name : what it is called everywhere, of :func:`name_sources`; default: what may be shown of it
    sound : default ``same``; a microphone replaces the source's own sound
    transport : of RTSP, ``tcp`` or ``udp``
    notice : is told the outages of a live source
    isolated : decode a file in a process of its own (:mod:`runtime.media.sandbox.reader`)
    tracks : which of a file's or a network stream's; by default those that players play

    Raises :class:`runtime.errors.UserError` where it cannot be opened.
    """
    sound = sound or Sound()
    if sound.kind != "mic":
        return _open(source, name, transport, sample_rate_hz, notice, isolated, tracks)
    if tracks is not None and tracks.audio is not None:
        raise UsageError("--audio-track chooses the sound of a source, and --audio mic replaces it")
    if not is_live(source):
        raise UsageError(
            f"{public_text(source)}: a microphone goes with a live source, not with a file"
        )
    from runtime.media.joined import JoinedSource
    from runtime.media.microphone import MicrophoneSource

    microphone = MicrophoneSource(sound.device, sample_rate_hz=sample_rate_hz, notice=notice)
    try:
        pictures = _open(source, name, transport, sample_rate_hz, notice, isolated, tracks)
        try:
            return JoinedSource(_live(pictures), microphone)
        except BaseException:
            pictures.close()
            raise
    except BaseException:
        microphone.close()
        raise


def _live(source: Source) -> LiveSource:
    from runtime.media import LiveSource

    if not source.live or not isinstance(source, LiveSource):
        raise UsageError(f"{source.info.name}: a microphone goes with a live source, and this ends")
    return source


def _open(
    source: str,
    name: str | None,
    transport: str,
    sample_rate_hz: int,
    notice: Notice,
    isolated: bool,
    tracks: Tracks | None,
) -> Source:
    from runtime.media.camera import CameraSource
    from runtime.media.csi import CsiSource
    from runtime.media.file import FileSource
    from runtime.media.network import NetworkSource
    from runtime.media.sandbox.reader import IsolatedFile

    if source == BROWSER:
        raise UsageError(f"--source {BROWSER}: it is the page's camera, of runtime.stream --web")
    sensor, index = csi_sensor(source), _camera(source)
    if (sensor is not None or index is not None) and (tracks or Tracks()) != Tracks():
        raise UsageError(f"{source}: a camera has no tracks that one could choose from")
    if sensor is not None:
        return CsiSource(sensor, name=name, notice=notice)
    if scheme_of(source) is not None:
        return NetworkSource(
            source,
            name=name,
            sample_rate_hz=sample_rate_hz,
            transport=transport,
            tracks=tracks,
            notice=notice,
        )
    if index is not None:
        return CameraSource(index, name=name, notice=notice)
    open_file = IsolatedFile if isolated else FileSource
    return open_file(source, name=name, sample_rate_hz=sample_rate_hz, tracks=tracks)


def _camera(source: str) -> int | None:
    """A file that is called 0 is a file."""
    index = camera_index(source)
    return index if source.startswith("/dev/") or not Path(source).exists() else None


def _expand(source: str) -> dict[str, str | None]:
    """What it stands for, each with the name that a list gives it."""
    remember(source)
    if "\0" in source:  # no system can look it up, and Python's answer is no OSError
        raise UsageError("the name of a source holds a NUL character; this is no list of sources")
    try:
        path = Path(source)
        if path.suffix.lower() == LIST_SUFFIX and path.exists() and not path.is_dir():
            return _read_list(path)
        return dict.fromkeys(_find(source))
    except OSError as err:  # a name that is too long, a folder that nobody may look into
        raise UsageError(f"{public_text(source)}: cannot be looked up ({err.strerror})") from None


def _find(source: str) -> list[str]:
    if scheme_of(source) is not None:
        if csi_sensor(source) is None:
            check_address(source)
        return [source]
    if source == BROWSER:
        return [source]
    path = Path(source)
    if path.is_dir():
        inside = [str(file) for file in media_files(path, MEDIA_SUFFIXES)]
        if not inside:
            raise UsageError(f"{source}: the folder holds no media files")
        return inside
    if path.exists() or camera_index(source) is not None:
        return [source]
    if glob.has_magic(source):
        matches = sorted(f for f in glob.glob(source, recursive=True) if Path(f).is_file())  # noqa: PTH207
        if not matches:
            raise UsageError(f"{public_text(source)}: no file matches")
        return matches
    raise UsageError(f"{public_text(source)}: no such file or folder")


def _read_list(path: Path) -> dict[str, str | None]:
    """The sources of a list; a list in a list is refused."""
    try:
        lines = read_bounded(path, MAX_LIST_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        why = err.strerror if isinstance(err, OSError) else err
        raise UsageError(f"{path}: not a list of sources that can be read ({why})") from None
    found: dict[str, str | None] = {}
    for number, line in enumerate(lines, 1):
        source = line.strip()
        if not source or source.startswith("#"):
            continue
        if source.lower().endswith(LIST_SUFFIX):
            raise UsageError(f"{path}, line {number}: a list inside a list")
        try:
            named = NAMED.fullmatch(source)
            if named and scheme_of(source) is None and not os.path.exists(path.parent / source):  # noqa: PTH110, it never raises
                inside = _expand(_from_list(path, named["source"]))
                inside = _called(named["source"], named["name"], list(inside))
            else:
                inside = _expand(_from_list(path, source))
        except UsageError as err:
            raise UsageError(f"{path}, line {number}: {err}") from None
        for one, name in inside.items():
            found[one] = found.get(one) or name
    if not found:
        raise UsageError(f"{path}: the list holds no sources")
    return found


def _from_list(path: Path, source: str) -> str:
    local = scheme_of(source) is None and camera_index(source) is None
    return str(path.parent / source) if local else source


__all__ = [
    "BROWSER",
    "DECODERS",
    "INLINE",
    "ISOLATED",
    "MEDIA_SUFFIXES",
    "Sound",
    "expand_sources",
    "is_live",
    "name_sources",
    "open_source",
    "own_name",
    "parse_sound",
    "public_name",
]
