# SPDX-License-Identifier: Apache-2.0
"""The clips of an archive, and the worker that turns each into a row.

:mod:`runtime.scan` is the command; this module needs neither Ray nor PyArrow.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.backends import load_backend
from runtime.errors import DependencyError, UsageError, UserError
from runtime.judging.verdict import FLOAT_DIGITS, Label, Verdict
from runtime.media.local_files import media_files
from runtime.naming import name_of_file, plain
from runtime.scan.journal import Settings
from runtime.scan.table import COLUMNS, Row
from runtime.spec import StreamSpec

TIMING_COLUMNS = ("wall_s",)  # all that may differ between two runs


@dataclass(frozen=True)
class Clip:
    """A media file of the archive, as it was when the folder was read."""

    path: str  # below the archive's folder, "/" between the parts; for people
    file: bytes  # absolute, as the file system spells it: a name may be no text
    size_bytes: int
    modified_ns: int

    def key(self) -> str:
        """Stays the same as long as the file does."""
        facts = f"{self.size_bytes} {self.modified_ns} ".encode() + self.file
        return hashlib.sha256(facts).hexdigest()[:32]


@dataclass(frozen=True)
class Work:
    """What a worker is told; plain values, so that it can travel to another process."""

    model: str | None
    backend: str
    provider: str | None
    threads: int | None
    plugin_library: Path | None
    stream: StreamSpec
    settings: Settings


def find_clips(folder: Path, suffixes: Collection[str]) -> list[Clip]:
    """Media files below ``folder`` by the ending of their names, sorted by path.

    Raises :class:`UsageError` where there is no such folder, or no media in it.
    """
    if not folder.is_dir():
        raise UsageError(
            f"{folder}: {'a file, not a folder' if folder.exists() else 'no such folder'}; "
            "give the folder of the archive (one clip: python -m runtime.stream --source)"
        )
    root = folder.resolve()
    found = []
    for file in media_files(root, suffixes):
        facts = file.stat()
        path = os.fsencode(file.relative_to(root).as_posix()).decode("utf-8", "replace")
        found.append(Clip(path, os.fsencode(file), facts.st_size, facts.st_mtime_ns))
    if not found:
        raise UsageError(f"{folder}: the folder holds no media files")
    return sorted(found, key=lambda clip: (clip.path, clip.file))


class Scorer:
    """A worker: loads the model once, then turns clips into rows, one call a clip.

    It runs in another process, where an exception would arrive wrapped in that process's affairs:
    what ends the whole scan (no model, a missing package) is an answer of its own.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._fatal = ""
        try:
            self._backend = load_backend(
                work.model, work.backend, work.provider, work.threads, work.plugin_library
            )
        except UserError as err:
            self._fatal = str(err)
            return
        found = self._backend.spec
        if found.pair_id != work.settings.pair_id:
            self._fatal = (
                f"a worker found the model {found.model_id} where the scan is of "
                f"{work.settings.model_id}; put the same files on every machine"
            )

    def __call__(self, item: Mapping[str, Any]) -> dict[str, str]:
        """``item`` has the fields of a :class:`Clip`.

        The answer is ``{"fatal": "", "row": JSON}``, so that no library on the way guesses at a
        row's types, or ``{"fatal": what is wrong, "row": ""}``.
        """
        if self._fatal:
            return {"fatal": self._fatal, "row": ""}
        try:
            return {"fatal": "", "row": json.dumps(self.score(Clip(**item)))}
        except DependencyError as err:
            return {"fatal": str(err), "row": ""}

    def score(self, clip: Clip) -> Row:
        """A clip that cannot be read is a row with its error.

        Raises :class:`DependencyError`, which is about the machine and not about the clip.
        """
        from runtime.flow.driver import run
        from runtime.media.picking import Tracks
        from runtime.media.sandbox.reader import IsolatedFile

        start = time.perf_counter()
        row = _empty_row(clip, self._work.settings.model_id)
        row["provider"] = self._backend.provider
        offsets = _Offsets()
        try:
            tracks = Tracks(self._work.settings.video_track, self._work.settings.audio_track)
            with IsolatedFile(os.fsdecode(clip.file), tracks=tracks) as source:
                row["video"], row["audio"] = source.info.has_video, source.info.has_audio
                summary = run(
                    source,
                    self._backend,
                    sinks=[offsets],
                    stream=self._work.stream,
                    with_audio=self._work.settings.audio,
                    name=clip.path,
                )
        except DependencyError:
            raise
        except UserError as err:
            row["error"] = _without_folder(str(err), clip)
        except Exception as err:  # one clip in a hundred thousand must not end the run
            said = _without_folder(str(err), clip)
            row["error"] = f"unexpected {type(err).__name__}: {said} (an error of this program)"
        else:
            _fill(row, summary, offsets.values_ms)
        row["wall_s"] = round(time.perf_counter() - start, 3)
        return row


class _Offsets:
    """A sink that keeps the measured A/V offsets."""

    def __init__(self) -> None:
        self.values_ms: list[float] = []

    def write(self, verdict: Verdict) -> None:
        if verdict.av_offset_ms is not None:
            self.values_ms.append(verdict.av_offset_ms)


def lost_row(clip: Clip, model_id: str) -> Row:
    """Of a clip whose worker died in both passes; not for the journal: a rerun tries again."""
    row = _empty_row(clip, model_id)
    row["error"] = "the worker died on this clip, each time: it crashed, or memory ran out"
    return row


def _empty_row(clip: Clip, model_id: str) -> Row:
    row: Row = dict.fromkeys(COLUMNS)
    row.update(
        key=clip.key(),
        path=clip.path,
        size_bytes=clip.size_bytes,
        modified_ns=clip.modified_ns,
        model_id=model_id,
        windows=0,
        coverage=0.0,
        fake_spans=[],
        reasons=[],
        damaged=0,
        warnings=[],
        wall_s=0.0,
    )
    return row


def _fill(row: Row, summary: Any, offsets_ms: Sequence[float]) -> None:
    stats = summary.stats
    total = stats.verdicts
    by_count = sorted(stats.reasons.items(), key=lambda item: (-item[1], item[0]))
    row.update(
        duration_s=_rounded(summary.media_s),
        windows=total,
        coverage=_rounded(stats.coverage),
        highest_p_fake=_rounded(summary.highest_p_fake),
        fake_spans=[
            {"face_id": s.face_id, "start_s": _rounded(s.start_s), "end_s": _rounded(s.end_s)}
            for s in summary.spans
        ],
        reasons=[{"reason": str(reason), "windows": count} for reason, count in by_count],
        av_offset_median_ms=_rounded(statistics.median(offsets_ms)) if offsets_ms else None,
        damaged=summary.damaged,
        warnings=list(summary.warnings),
    )
    for label in Label:
        row[f"share_{label}"] = _rounded(stats.labels[label.value] / total) if total else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, FLOAT_DIGITS) + 0.0


def _without_folder(text: str, clip: Clip) -> str:
    """The row has the clip's path already; the rest of the absolute one is nobody's business."""
    absolute = os.fsdecode(clip.file)
    for name in (absolute, name_of_file(absolute)):
        text = text.replace(name, clip.path)
    return plain(text.removeprefix(f"{clip.path}: "))


# The table
