# SPDX-License-Identifier: Apache-2.0
"""Clips and photographs with the source and the person of each, and their pictures at 25 Hz.

A folder may hold an index (``clips.tsv`` or ``photos.tsv``: ``file``, ``source``, ``person`` and
further columns, tabs between them).  Without one each folder at the top is a source, and each
folder with files in it a person; files that lie at the top are people of their own.  Where an index
does not know who it is, the file is a person of its own.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from runtime.errors import MediaError, UsageError
from runtime.grid import TimelineError, VideoGrid
from runtime.media import VideoChunk
from runtime.media.decoding import MAX_SIDE_PX
from runtime.media.file import FileSource
from runtime.spec import AudioSpec
from trainer.data.clips import MAX_CLIP_S, VIDEO_SUFFIXES

UInt8 = npt.NDArray[np.uint8]
Kind = Literal["clip", "photo"]

INDEXES: dict[Kind, str] = {"clip": "clips.tsv", "photo": "photos.tsv"}
PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
SUFFIXES: dict[Kind, frozenset[str]] = {"clip": VIDEO_SUFFIXES, "photo": PHOTO_SUFFIXES}
UNKNOWN = frozenset({"", "unknown"})  # people of an index that are nobody in particular


@dataclass(frozen=True)
class Item:
    """One file.  ``source`` and ``person`` say what must not be on both sides of a split."""

    path: Path
    file: str  # unique, with forward slashes
    kind: Kind
    source: str
    person: str


def list_items(folder: Path, kind: Kind) -> tuple[list[Item], dict[str, str]]:
    """The items of a folder in order of their names, and why other files are none.

    Raises :class:`UsageError` for what is no folder, and an index without its columns.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; give one with {kind}s in it")
    index = folder / INDEXES[kind]
    if index.is_file():
        return _indexed(folder, index, kind), {}
    items, others = [], {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        file = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in Path(file).parts):
            continue
        if path.suffix.lower() not in SUFFIXES[kind]:
            others[file] = f"not a {kind}: {path.suffix or 'no suffix'}"
            continue
        parts = Path(file).parts
        source = parts[0] if len(parts) > 1 else folder.resolve().name
        person = "/".join(parts[:-1]) if len(parts) > 2 else file
        items.append(Item(path, file, kind, source, f"{source}:{person}"))
    return items, others


def _indexed(folder: Path, index: Path, kind: Kind) -> list[Item]:
    with index.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    if rows and not {"file", "source", "person"} <= rows[0].keys():
        raise UsageError(f"{index}: the first line must name the columns file, source and person")
    items = []
    for row in sorted(rows, key=lambda r: r["file"]):
        person = (row["person"] or "").strip()
        who = f"{row['source']}:{row['file']}" if person in UNKNOWN else person
        items.append(Item(folder / row["file"], row["file"], kind, row["source"], who))
    return items


def pictures(item: Item) -> Iterator[UInt8 | None]:
    """RGB pictures [H, W, 3]: a photograph's one, or a clip's at 25 Hz, None where there is a gap.

    Raises :class:`MediaError` for what cannot be read.
    """
    if item.kind == "photo":
        yield _photo(item.path)
        return
    grid: VideoGrid[VideoChunk] = VideoGrid(AudioSpec().token_hz)
    given, last = 0, round(MAX_CLIP_S * AudioSpec().token_hz)
    source = FileSource(item.path, sample_rate_hz=AudioSpec().sample_rate_hz)
    try:
        if not source.info.has_video:
            raise MediaError(f"{item.path.name}: holds no pictures")
        for chunk in source:
            if not isinstance(chunk, VideoChunk):
                continue
            try:
                ready = grid.push(chunk.t_s, chunk)
            except TimelineError:
                continue  # a repeated timestamp: the grid shows the picture before it
            for piece in ready[: last - given]:
                yield piece.frame.frame if piece.frame is not None else None
            given += len(ready)
            if given >= last:
                return
        for piece in grid.finish()[: last - given]:
            yield piece.frame.frame if piece.frame is not None else None
    finally:
        source.close()


def _photo(path: Path) -> UInt8:
    import cv2

    try:
        bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    except cv2.error:  # more pixels than OpenCV takes
        bgr = None
    if bgr is None:
        raise MediaError(f"{path.name}: not a photograph that can be read")
    shrink = MAX_SIDE_PX / max(bgr.shape[:2])
    if shrink < 1:
        size = max(1, round(bgr.shape[1] * shrink)), max(1, round(bgr.shape[0] * shrink))
        bgr = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(bgr[..., ::-1])
