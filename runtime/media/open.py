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
door.streams         a list: one source a line, ``#`` starts a comment, paths count from the list
==================== ===========================================================================

Addresses are never shown with user, password or query (:func:`runtime.media.address.public_name`).
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import UsageError
from runtime.media.address import check_address, public_name, scheme_of
from runtime.media.camera import camera_index
from runtime.media.csi import csi_sensor
from runtime.media.live import Notice, silent

if TYPE_CHECKING:
    from runtime.media import LiveSource, Source

BROWSER = "browser"
ISOLATED, INLINE = DECODERS = ("process", "inline")  # where a file is decoded
LIST_SUFFIX = ".streams"
MAX_LIST_BYTES = 1_000_000
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
    found: dict[str, None] = {}
    for source in given:
        found.update(dict.fromkeys(_expand(source)))
    return list(found)


def open_source(
    source: str,
    *,
    sound: Sound | None = None,
    transport: str = "tcp",
    sample_rate_hz: int = 16_000,
    notice: Notice = silent,
    isolated: bool = True,
) -> Source:
    """One source of :func:`expand_sources`, open.

    sound : default ``same``; a microphone replaces the source's own sound
    transport : of RTSP, ``tcp`` or ``udp``
    notice : is told the outages of a live source
    isolated : decode a file in a process of its own (:mod:`runtime.media.isolated`)

    Raises :class:`runtime.errors.UserError` where it cannot be opened.
    """
    sound = sound or Sound()
    if sound.kind != "mic":
        return _open(source, transport, sample_rate_hz, notice, isolated)
    if not is_live(source):
        raise UsageError(f"{source}: a microphone goes with a live source, not with a file")
    from runtime.media.joined import JoinedSource
    from runtime.media.microphone import MicrophoneSource

    microphone = MicrophoneSource(sound.device, sample_rate_hz=sample_rate_hz, notice=notice)
    try:
        pictures = _open(source, transport, sample_rate_hz, notice, isolated)
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
    source: str, transport: str, sample_rate_hz: int, notice: Notice, isolated: bool
) -> Source:
    from runtime.media.camera import CameraSource
    from runtime.media.csi import CsiSource
    from runtime.media.file import FileSource
    from runtime.media.isolated import IsolatedFile
    from runtime.media.network import NetworkSource

    if source == BROWSER:
        raise UsageError(f"--source {BROWSER}: it is the page's camera, of runtime.stream --web")
    sensor = csi_sensor(source)
    if sensor is not None:
        return CsiSource(sensor, notice=notice)
    if scheme_of(source) is not None:
        return NetworkSource(
            source, sample_rate_hz=sample_rate_hz, transport=transport, notice=notice
        )
    index = _camera(source)
    if index is not None:
        return CameraSource(index, notice=notice)
    open_file = IsolatedFile if isolated else FileSource
    return open_file(source, sample_rate_hz=sample_rate_hz)


def _camera(source: str) -> int | None:
    """A file that is called 0 is a file."""
    index = camera_index(source)
    return index if source.startswith("/dev/") or not Path(source).exists() else None


def _expand(source: str) -> list[str]:
    if "\0" in source:  # no system can look it up, and Python's answer is no OSError
        raise UsageError("the name of a source holds a NUL character; this is no list of sources")
    try:
        return _find(source)
    except OSError as err:  # a name that is too long, a folder that nobody may look into
        raise UsageError(f"{source}: cannot be looked up ({err.strerror})") from None


def _find(source: str) -> list[str]:
    if scheme_of(source) is not None:
        if csi_sensor(source) is None:
            check_address(source)
        return [source]
    if source == BROWSER:
        return [source]
    path = Path(source)
    if path.suffix.lower() == LIST_SUFFIX and path.is_file():
        return _read_list(path)
    if path.is_dir():
        inside = sorted(
            str(file)
            for file in path.rglob("*")
            if file.suffix.lower() in MEDIA_SUFFIXES and file.is_file()
        )
        if not inside:
            raise UsageError(f"{source}: the folder holds no media files")
        return inside
    if path.exists() or camera_index(source) is not None:
        return [source]
    if glob.has_magic(source):
        matches = sorted(f for f in glob.glob(source, recursive=True) if Path(f).is_file())  # noqa: PTH207
        if not matches:
            raise UsageError(f"{source}: no file matches")
        return matches
    raise UsageError(f"{source}: no such file or folder")


def _read_list(path: Path) -> list[str]:
    """The sources of a list; a list in a list is refused."""
    if path.stat().st_size > MAX_LIST_BYTES:
        raise UsageError(f"{path}: a list of sources is small; this is none")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(f"{path}: not a list of sources that can be read ({err})") from None
    found: list[str] = []
    for number, line in enumerate(lines, 1):
        source = line.strip()
        if not source or source.startswith("#"):
            continue
        if source.lower().endswith(LIST_SUFFIX):
            raise UsageError(f"{path}, line {number}: a list inside a list")
        local = scheme_of(source) is None and camera_index(source) is None
        try:
            found += _expand(str(path.parent / source) if local else source)
        except UsageError as err:
            raise UsageError(f"{path}, line {number}: {err}") from None
    if not found:
        raise UsageError(f"{path}: the list holds no sources")
    return found


__all__ = [
    "BROWSER",
    "DECODERS",
    "INLINE",
    "ISOLATED",
    "MEDIA_SUFFIXES",
    "Sound",
    "expand_sources",
    "is_live",
    "open_source",
    "parse_sound",
    "public_name",
]
