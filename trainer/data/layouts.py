# SPDX-License-Identifier: Apache-2.0
"""Which person is in which genuine clip.

A folder of clips says it by its sub-folders (``anna/*.mp4`` is one identity), or by a CSV
``file,identity`` (paths relative to the folder; shell patterns allowed; the first match counts).
A clip that lies loose in the folder is its own identity.
"""

from __future__ import annotations

import csv
import fnmatch
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import MediaError, UsageError
from trainer.data.clips import VIDEO_SUFFIXES

# FakeAVCeleb's four categories, by their folder names
REAL_PAIR, FAKE_AUDIO, FAKE_VIDEO, FAKE_BOTH = CATEGORIES = (
    "RealVideo-RealAudio",
    "RealVideo-FakeAudio",
    "FakeVideo-RealAudio",
    "FakeVideo-FakeAudio",
)


@dataclass(frozen=True)
class GenuineClip:
    path: Path
    identity: str


def find_genuine(folder: Path, identities: Path | None = None) -> list[GenuineClip]:
    """Every clip below ``folder``, sorted by path, with its identity.

    Raises :class:`UsageError` for a missing folder or a CSV with other columns, and
    :class:`MediaError` for a folder without clips.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; --genuine wants a folder of genuine clips")
    rules = _rules(identities) if identities else []
    clips = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
            relative = path.relative_to(folder)
            identity = next((i for p, i in rules if fnmatch.fnmatch(relative.as_posix(), p)), None)
            if identity is None:
                identity = relative.parts[0] if len(relative.parts) > 1 else path.stem
            clips.append(GenuineClip(path, identity))
    if not clips:
        raise MediaError(f"{folder} has no video files ({', '.join(sorted(VIDEO_SUFFIXES))})")
    return clips


def _rules(path: Path) -> list[tuple[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames is None or not {"file", "identity"} <= set(reader.fieldnames):
                raise UsageError(f"{path}: the first line must be 'file,identity'")
            return [(row["file"].strip(), row["identity"].strip()) for row in reader]
    except OSError as err:
        raise UsageError(f"{path} cannot be read ({err.strerror})") from err
