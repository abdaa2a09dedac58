# SPDX-License-Identifier: Apache-2.0
"""What is in a folder of clips: who is in each, and what was done to it.

Layouts
-------
``forged``       the folder has ``forge.json``: :mod:`trainer.forge` wrote it
``fakeavceleb``  the four category folders: :mod:`trainer.data.fakeavceleb`
``grid``         GRID's ``s1/*.mpg``, ``s2/...``: genuine; the speaker is the folder ``s<number>``
``folder``       any folder of genuine clips

A folder of genuine clips says who is in them by its sub-folders (``anna/*.mp4`` is one identity),
or by a CSV ``file,identity`` (paths relative to the folder; shell patterns allowed; the first match
counts).  A clip that lies loose in the folder is its own identity.
"""

from __future__ import annotations

import csv
import fnmatch
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.errors import MediaError, UsageError
from runtime.media.local_files import media_files
from runtime.sheets import original
from trainer.data.clips import VIDEO_SUFFIXES

# FakeAVCeleb's four categories, by their folder names
REAL_PAIR, FAKE_AUDIO, FAKE_VIDEO, FAKE_BOTH = CATEGORIES = (
    "RealVideo-RealAudio",
    "RealVideo-FakeAudio",
    "FakeVideo-RealAudio",
    "FakeVideo-FakeAudio",
)
LAYOUTS = FORGED, FAKEAVCELEB, GRID, FOLDER = ("forged", "fakeavceleb", "grid", "folder")
FORGE_INDEX = "forge.json"
GRID_SPEAKER = re.compile(r"s\d+")


@dataclass(frozen=True)
class GenuineClip:
    path: Path
    identity: str


@dataclass(frozen=True)
class LabelledClip:
    """A clip and what its labels are; the fields after ``path`` go into index.json as they are."""

    path: Path
    file: str  # relative to the set's root, with forward slashes
    identity: str  # whose face
    voice_identity: str | None  # whose voice; None: unknown
    swapped_identity: str | None  # whose face was put in; None: nobody's, or unknown
    clip: str  # name of the genuine clip that it is or was made from
    category: str
    method: str
    fake_video: bool
    fake_audio: bool
    synthetic_voice: bool
    matched: bool
    split: str | None
    groups: dict[str, str]
    transport_ms: float | None = None  # how late the sound was made to come; None: unknown

    def row(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "path"}


@dataclass
class Listing:
    """The clips of a folder, the ones left out with the reason, and what its reader should know."""

    layout: str
    clips: list[LabelledClip]
    dropped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find_genuine(folder: Path, identities: Path | None = None) -> list[GenuineClip]:
    """Every clip below ``folder``, sorted by path, with its identity.

    Raises :class:`UsageError` for a missing folder or a CSV with other columns, and
    :class:`MediaError` for a folder without clips.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; --genuine wants a folder of genuine clips")
    rules = _rules(identities) if identities else []
    clips = []
    for path in video_files(folder):
        relative = path.relative_to(folder)
        identity = next((i for p, i in rules if fnmatch.fnmatch(relative.as_posix(), p)), None)
        if identity is None:
            identity = relative.parts[0] if len(relative.parts) > 1 else path.stem
        clips.append(GenuineClip(path, identity))
    if not clips:
        raise MediaError(f"{folder} has no video files ({', '.join(sorted(VIDEO_SUFFIXES))})")
    return clips


def video_files(folder: Path) -> list[Path]:
    return media_files(folder, VIDEO_SUFFIXES)


def list_genuine(folder: Path, layout: str, identities: Path | None) -> Listing:
    """A folder of genuine clips.  With layout ``grid``, a clip outside ``s<number>`` is dropped
    unless the CSV names its speaker."""
    rules = _rules(identities) if identities else []
    listing = Listing("genuine", [])
    for found in find_genuine(folder, identities):
        file = found.path.relative_to(folder).as_posix()
        identity = found.identity
        if layout == GRID and not any(fnmatch.fnmatch(file, pattern) for pattern, _ in rules):
            speakers = [p for p in Path(file).parent.parts if GRID_SPEAKER.fullmatch(p)]
            if not speakers:
                listing.dropped[file] = "in no speaker folder s<number>, and in no --identities CSV"
                continue
            identity = speakers[0]
        listing.clips.append(
            LabelledClip(
                path=found.path,
                file=file,
                identity=identity,
                voice_identity=identity,
                swapped_identity=None,
                clip=Path(file).with_suffix("").as_posix(),
                category=REAL_PAIR,
                method="real",
                fake_video=False,
                fake_audio=False,
                synthetic_voice=False,
                matched=True,
                split=None,
                groups={},
            )
        )
    return listing


def list_forged(folder: Path) -> Listing:
    """What :mod:`trainer.forge` wrote."""
    path = folder / FORGE_INDEX
    try:
        records = json.loads(path.read_text(encoding="utf-8-sig"))["clips"]
        clips = [_forged_clip(folder, record) for record in records]
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise UsageError(f"{path} cannot be read ({err}); make the set by trainer.forge") from err
    return Listing(FORGED, clips)


def _forged_clip(folder: Path, record: dict[str, Any]) -> LabelledClip:
    own = record["identity"]
    donor = record.get("donor")
    # without a word on the voice it is known only where nobody else lent anything
    voice = record.get("voice_identity", own if donor in (None, own) else None)
    return LabelledClip(
        path=folder / record["file"],
        file=record["file"],
        identity=own,
        voice_identity=voice,
        swapped_identity=record.get("swapped_identity"),
        clip=record["clip"],
        category=record["category"],
        method=record["method"],
        fake_video=record["fake_video"],
        fake_audio=record["fake_audio"],
        synthetic_voice=record["synthetic_voice"],
        matched=record["matched"],
        split=record["split"],
        groups=record.get("groups", {}),
        transport_ms=record["params"]["transport_ms"],
    )


def _text(cell: str | None) -> str:
    return original((cell or "").strip())


def _rules(path: Path) -> list[tuple[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames is None or not {"file", "identity"} <= set(reader.fieldnames):
                raise UsageError(f"{path}: the first line must be 'file,identity'")
            rules = []
            for row in reader:
                rule = (_text(row["file"]), _text(row["identity"]))
                if not all(rule):
                    raise UsageError(f"{path}, line {reader.line_num}: needs a file, an identity")
                rules.append(rule)
            return rules
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise UsageError(f"{path} cannot be read ({err})") from err
