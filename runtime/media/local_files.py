# SPDX-License-Identifier: Apache-2.0
"""Files as file systems know them: how FFmpeg is told of one, which of a folder's are media.

A path is a path.  FFmpeg takes what stands before the first colon of a name for a protocol
(``2024-01-01T10:30:00.mpg``, ``C:``) unless it is told that the name is a file's
(https://ffmpeg.org/ffmpeg-protocols.html#file).
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from runtime.errors import UsageError

APPLE_DOUBLE = "._"  # macOS keeps what a foreign file system cannot store in ``._clip.mpg``


def ffmpeg_name(path: str | os.PathLike[str]) -> str:
    """What FFmpeg opens as that file, whatever colons are in its name."""
    return f"file:{os.fspath(path)}"


def is_media(file: Path, suffixes: Collection[str]) -> bool:
    """By its name, and by being a file.  macOS' ``._*`` are called like clips and are none."""
    named = file.suffix.lower() in suffixes and not file.name.startswith(APPLE_DOUBLE)
    return named and file.is_file()


def media_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Those in a folder and in all folders below it, sorted."""
    return sorted(file for file in folder.rglob("*") if is_media(file, suffixes))


def to_reopen(path: Path) -> Path:
    """The name under which another process finds this file, too.

    ``/dev/stdin`` and ``/proc/self/fd/3`` name what this process has open: elsewhere they are
    something else.  Raises :class:`UsageError` for what is no file, or has no name.
    """
    if not path.is_file():
        raise UsageError(f"{path}: a pipe or a device, and no file; save it to a file first")
    real = Path(os.path.realpath(path))
    if real.is_relative_to("/dev") or not real.is_file() or not real.samefile(path):
        raise UsageError(f"{path}: an open file that has no name; give the path of a file")
    return real
