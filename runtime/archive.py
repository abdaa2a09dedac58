# SPDX-License-Identifier: Apache-2.0
"""An archive of clips: what to score, one row a clip, and the journal that survives a kill.

The journal is ``OUTPUT.parts/``: ``scan.json`` says which model and which windows its rows are of,
``rows.jsonl`` has one row a line, on the disk before the next one is asked for.  A row belongs to a
file's path, size and modification time, so a file that changed is scored anew.  A line that a kill
cut short is dropped when the journal is opened again.

:mod:`runtime.scan` is the command; this module needs neither Ray nor, until the table is written,
PyArrow.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import json
import os
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from runtime.backends import load_backend
from runtime.errors import DependencyError, UsageError, UserError
from runtime.files import write_json
from runtime.spec import SCHEMA_VERSION, StreamSpec
from runtime.verdict import FLOAT_DIGITS, Label, Verdict

JOURNAL_VERSION = 1
TIMING_COLUMNS = ("wall_s",)  # all that may differ between two runs
Row = dict[str, Any]


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
class Settings:
    """What the rows depend on apart from the clips."""

    model_id: str
    pair_id: str
    precision: str
    window_tokens: int
    hop_tokens: int
    audio: bool
    schema_version: int = SCHEMA_VERSION
    journal_version: int = JOURNAL_VERSION


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


def find_clips(folder: Path, suffixes: Iterable[str]) -> list[Clip]:
    """Media files below ``folder`` by the ending of their names, sorted by path.

    Raises :class:`UsageError` where there is no such folder, or no media in it.
    """
    if not folder.is_dir():
        raise UsageError(
            f"{folder}: {'a file, not a folder' if folder.exists() else 'no such folder'}; "
            "give the folder of the archive (one clip: python -m runtime.stream --source)"
        )
    wanted, root = frozenset(suffixes), folder.resolve()
    found = []
    for file in root.rglob("*"):
        if file.suffix.lower() not in wanted or not file.is_file():
            continue
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
        from runtime.media.isolated import IsolatedFile
        from runtime.pipeline import run

        start = time.perf_counter()
        row = _empty_row(clip, self._work.settings.model_id)
        row["provider"] = self._backend.provider
        offsets = _Offsets()
        try:
            with IsolatedFile(os.fsdecode(clip.file)) as source:
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
            row["error"] = _without_folder(" ".join(str(err).split()), clip)
        except Exception as err:  # one clip in a hundred thousand must not end the run
            said = " ".join(str(err).split())
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
    absolute = os.fsdecode(clip.file).encode("utf-8", "replace").decode()
    return text.replace(absolute, clip.path).removeprefix(f"{clip.path}: ")


class Journal:
    """The rows so far, in a folder that one scan at a time may use; a context manager.

    Raises :class:`UserError` where it cannot be written, is in use, or holds the rows of another
    model or of other windows.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder, self._rows = folder, folder / "rows.jsonl"
        self._lock: TextIO | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(folder / "lock")
            self._check_settings(settings)
            self._kept = self._read()
            self._out = self._rows.open("a", encoding="utf-8")
        except OSError as err:
            self._unlock()
            raise _unwritable(folder, err) from None
        except BaseException:
            self._unlock()
            raise

    @property
    def kept(self) -> Mapping[str, Row]:
        """Rows by the key of their clip."""
        return self._kept

    def add(self, row: Row) -> None:
        """On the disk when this returns."""
        try:
            self._out.write(json.dumps(row) + "\n")
            self._out.flush()
            os.fsync(self._out.fileno())
        except OSError as err:
            raise _unwritable(self._rows, err) from None
        self._kept[row["key"]] = row

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # every row was flushed when it was added
            self._out.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def _check_settings(self, settings: Settings) -> None:
        path, now = self._folder / "scan.json", dataclasses.asdict(settings)
        if not path.exists():
            write_json(path, now)
            return
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            differing = [name for name in now if before.get(name) != now[name]]
        except (ValueError, AttributeError):
            raise UserError(f"{path} is damaged; remove the folder {self._folder}") from None
        if differing:
            name = differing[0]
            raise UsageError(
                f"{self._folder} holds results of another scan ({name} {before.get(name)}, now "
                f"{now[name]}); remove that folder to score everything anew, or give another "
                "--output"
            )

    def _read(self) -> dict[str, Row]:
        if not self._rows.exists():
            return {}
        data = self._rows.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):  # a kill cut the last line short
            os.truncate(self._rows, whole)
        found = {}
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                row = json.loads(line)
                if set(row) != {"key", *COLUMNS}:
                    raise ValueError
            except (ValueError, TypeError):
                raise UserError(
                    f"{self._rows}, line {number} is damaged; remove that line, or the folder "
                    f"{self._folder} to score everything anew"
                ) from None
            found[row["key"]] = row
        return found


def _locked(path: Path) -> TextIO:
    """The file, locked until it is closed or this process ends, however it ends."""
    import fcntl

    handle = path.open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise UsageError(f"another scan is writing to {path.parent}; wait for its end") from None
    return handle


# The table

# name -> Arrow type, as a text that _arrow_type understands; the order is that of the columns
COLUMNS: dict[str, str] = {
    "path": "string",
    "error": "string",
    "duration_s": "double",
    "windows": "int64",
    "coverage": "double",
    "share_real": "double",
    "share_fake": "double",
    "share_abstain": "double",
    "highest_p_fake": "double",
    "fake_spans": "spans",
    "reasons": "reasons",
    "av_offset_median_ms": "double",
    "video": "bool",
    "audio": "bool",
    "damaged": "int64",
    "warnings": "texts",
    "model_id": "string",
    "provider": "string",
    "size_bytes": "int64",
    "modified_ns": "int64",
    "wall_s": "double",
}


def write_tables(output: Path, rows: Sequence[Row]) -> tuple[Path, Path]:
    """``output`` (Parquet) and the same as CSV beside it, each whole or not at all.

    In the CSV a cell of several values is JSON, and what has no value is empty.  Raises
    :class:`UserError` where they cannot be written, :class:`DependencyError` without PyArrow.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as err:
        raise DependencyError(
            f"PyArrow is needed to write a table ({err}): pip install '.[scan]'"
        ) from err
    schema = pyarrow.schema([(name, _arrow_type(pyarrow, kind)) for name, kind in COLUMNS.items()])
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    table = pyarrow.Table.from_pydict(columns, schema=schema)
    text = output.with_suffix(".csv")
    with _whole(text) as part, part.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(COLUMNS)
        writer.writerows([_cell(row[name]) for name in COLUMNS] for row in rows)
    with _whole(output) as part:
        pyarrow.parquet.write_table(table, part)
    return output, text


def check_output(output: Path) -> None:
    """Raise :class:`UserError` now rather than after hours, where nothing could be written."""
    if output.suffix != ".parquet":
        raise UsageError(f"--output {output}: the name must end in .parquet (a .csv comes with it)")
    for path in (output, output.with_suffix(".csv")):
        if path.is_dir():
            raise UsageError(f"cannot write {path}: it is a folder")


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file to fill, which takes the name of ``path`` when the block ends well."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb") as handle:
            os.fsync(handle.fileno())
        part.replace(path)
    except OSError as err:
        raise _unwritable(path, err) from None
    finally:
        part.unlink(missing_ok=True)


def _unwritable(path: Path, err: OSError) -> UserError:
    return UserError(f"cannot write {path} ({err.strerror or err}); give another --output")


def _arrow_type(pyarrow: Any, kind: str) -> Any:
    if kind == "spans":
        span = [("face_id", "int64"), ("start_s", "double"), ("end_s", "double")]
        return pyarrow.list_(pyarrow.struct([(n, pyarrow.type_for_alias(t)) for n, t in span]))
    if kind == "reasons":
        return pyarrow.list_(
            pyarrow.struct([("reason", pyarrow.string()), ("windows", pyarrow.int64())])
        )
    if kind == "texts":
        return pyarrow.list_(pyarrow.string())
    return pyarrow.type_for_alias(kind)


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return json.dumps(value) if value else ""
    return value
