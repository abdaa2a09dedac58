# SPDX-License-Identifier: Apache-2.0
"""FakeAVCeleb v1.2 as its users have it on disk (Khalid et al., NeurIPS 2021).

    ROOT/{Real,Fake}Video-{Real,Fake}Audio/<race>/<gender>/<source id>/<name>.mp4
    ROOT/meta_data.csv    source,target1,target2,method,category,type,race,gender,path,

The tenth column has no name and holds the folder (``FakeAVCeleb/<type>/<race>/...``); ``path`` is
the file name.  Of the 21,566 rows, 22 name a file a second time with another method
(``faceswap-wav2lip`` and ``wav2lip``).  The files on disk decide which clips there are; the CSV
says the method and who else is in a clip.  Without it, or for a file that it does not name, the
folder names give everything but that.

How ``source``, ``target1`` and ``target2`` are read:

=================  =============  ==================  ===========================================
method             face           voice               why
=================  =============  ==================  ===========================================
real               source         source
rtvc               source         source              SV2TTS imitates the source; lips do not fit
faceswap, fsgan    source         source              target1's face in the source's own clip
wav2lip            source         target1             lips made to fit target1's voice
*-wav2lip          source         target2             target1's face, lips to target2's voice; with
                                                      one id alone, that is the voice
=================  =============  ==================  ===========================================

A target that is no id (``-``, or a number from 0 to 12 that FSGAN's clips carry) is unknown.  The
sound's label is the category's: a voice of another person that Wav2Lip fitted lips to is real audio
there.  ``rtvc`` is the one method whose lips and voice do not belong together.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from runtime.errors import MediaError, UsageError
from runtime.sheets import original
from trainer.data.layouts import (
    CATEGORIES,
    FAKE_AUDIO,
    FAKEAVCELEB,
    REAL_PAIR,
    LabelledClip,
    Listing,
    video_files,
)

CSV_NAME = "meta_data.csv"
COLUMNS = ("source", "target1", "target2", "method", "type", "race", "gender", "path")
FOLDER_COLUMNS = ("", "Unnamed: 9")  # the tenth column, as it ships and as pandas writes it again
IDENTITY = re.compile(r"id\d+")
UNKNOWN = "unknown"
SURE_METHODS = {REAL_PAIR: "real", FAKE_AUDIO: "rtvc"}  # the only one of their category

Key = tuple[str, ...]  # category, race, gender, source, file name


class _Entry(NamedTuple):
    """One row of the CSV, as far as it matters."""

    file: str
    method: str
    targets: tuple[str, str]


def find_root(folder: Path) -> Path | None:
    """The folder that holds the categories: ``folder`` or its only child that does; else None."""
    if not folder.is_dir():
        return None
    candidates = [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]
    roots = [c for c in candidates if any((c / name).is_dir() for name in CATEGORIES)]
    if folder in roots:
        return folder
    return roots[0] if len(roots) == 1 else None


def list_fakeavceleb(folder: Path) -> Listing:
    """Every clip on disk with its labels; rows without a file are dropped and named.

    Raises :class:`UsageError` for a folder without all four categories or a CSV with other columns.
    """
    root = find_root(folder)
    missing = [c for c in CATEGORIES if root is None or not (root / c).is_dir()]
    if root is None or missing:
        raise UsageError(
            f"{root or folder} lacks {', '.join(missing)}; FakeAVCeleb has four folders of clips: "
            "unpack all of it, or read a part with --layout folder"
        )
    listing = Listing(FAKEAVCELEB, [])
    table = next((t for t in (root / CSV_NAME, root.parent / CSV_NAME) if t.is_file()), None)
    entries = _read_csv(table, listing) if table is not None else {}
    if table is None:
        listing.notes.append(
            f"no {CSV_NAME}: categories and identities are the folders', the methods of fake "
            "pictures and the voices in them stay unknown"
        )
    unnamed = 0
    for category in CATEGORIES:
        for path in video_files(root / category):
            file = path.relative_to(root).as_posix()
            key = _key(file)
            if key is None:
                listing.dropped[file] = "not in a folder <category>/<race>/<gender>/<identity>"
                continue
            entry = entries.pop(key, None)
            unnamed += entry is None and table is not None
            listing.clips.append(_label(path, file, entry))
    for entry in entries.values():
        listing.dropped[entry.file] = f"{CSV_NAME} names it, but the file is missing"
    if unnamed:
        listing.notes.append(f"{unnamed} clips are not in {CSV_NAME}: labels from their folders")
    if not listing.clips:
        raise MediaError(f"{root} has the folders of FakeAVCeleb, but no clips in them")
    return listing


def _label(path: Path, file: str, entry: _Entry | None) -> LabelledClip:
    category, race, gender, source, name = PurePosixPath(file).parts
    method = entry.method if entry else SURE_METHODS.get(category, UNKNOWN)
    voice, swapped = _others(source, method, entry.targets if entry else ("-", "-"))
    fake_audio = category.endswith("FakeAudio")
    groups = {"race": race, "gender": gender}
    return LabelledClip(
        path=path,
        file=file,
        identity=source,
        voice_identity=voice,
        swapped_identity=swapped,
        clip=Path(name).stem.split("_")[0],
        category=category,
        method=method,
        fake_video=category.startswith("FakeVideo"),
        fake_audio=fake_audio,
        synthetic_voice=fake_audio,
        matched=method != "rtvc",
        split=None,
        groups={k: v for k, v in groups.items() if v.lower() != UNKNOWN},
    )


def _others(source: str, method: str, targets: tuple[str, str]) -> tuple[str | None, str | None]:
    """(whose voice, whose face was put in); None where it is unknown or nobody's."""
    known = [t for t in targets if IDENTITY.fullmatch(t)]
    if method in ("real", "rtvc"):
        return source, None
    if method in ("faceswap", "fsgan"):
        return source, known[0] if known else None
    if method == "wav2lip" or (method.endswith("-wav2lip") and len(known) == 1):
        return known[0] if known else None, None
    if method.endswith("-wav2lip") and len(known) == 2:
        return known[1], known[0]
    return None, None


def _key(file: str) -> Key | None:
    """The same for every spelling of a race's folder: ``Asian (East)``, ``Asian-East``."""
    parts = PurePosixPath(file).parts
    if len(parts) != 5:
        return None
    category, race, *rest = parts
    return (category, re.sub(r"[^a-z]+", "-", race.lower()).strip("-"), *rest)


def _read_csv(path: Path, listing: Listing) -> dict[Key, _Entry]:
    """One entry a file: of rows that name the same one, the first with the plainest method."""
    entries: dict[Key, _Entry] = {}
    again: Counter[str] = Counter()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            lacking = [c for c in COLUMNS if c not in columns]
            if lacking:
                raise UsageError(
                    f"{path} has no column {', '.join(lacking)} (it has: {', '.join(columns)}); "
                    "use the file that comes with FakeAVCeleb v1.2, or remove it to read the "
                    "folder names alone"
                )
            folder_column = next((c for c in FOLDER_COLUMNS if c in columns), None)
            for line, cells in enumerate(reader, start=2):
                entry = _entry(cells, folder_column)
                key = _key(entry.file)
                if key is None or key[0] not in CATEGORIES:
                    raise UsageError(f"{path}, line {line}: {entry.file!r} is no path of a clip")
                first = entries.setdefault(key, entry)
                if first is not entry:
                    again["all the same" if first == entry else "another method"] += 1
                    # Wav2Lip is in the file's name and a second target is not: the plainer one
                    entries[key] = min(first, entry, key=lambda e: len(e.method))
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise UsageError(f"{path} cannot be read ({err})") from err
    if again:
        listing.notes.append(
            f"{again.total()} rows of {path.name} name a file again ("
            + ", ".join(f"{n} with {what}" for what, n in sorted(again.items()))
            + "): the plainer method counts"
        )
    return entries


def _entry(row: dict[Any, Any], folder_column: str | None) -> _Entry:
    value = {k: original(v.strip()) for k, v in row.items() if isinstance(v, str)}
    beyond = row.get(None) or [""]  # more values than names: the comma after "path" is lost
    folder = value.get(folder_column, "") if folder_column is not None else beyond[0].strip()
    if not folder:
        folder = "/".join(value.get(k, "") for k in ("type", "race", "gender", "source"))
    parts = PurePosixPath(folder.replace("\\", "/")).parts
    start = next((i for i, part in enumerate(parts) if part in CATEGORIES), 0)
    file = PurePosixPath(*parts[start:], value.get("path", "")).as_posix()
    targets = (value.get("target1", "-"), value.get("target2", "-"))
    return _Entry(file, value.get("method", UNKNOWN) or UNKNOWN, targets)
