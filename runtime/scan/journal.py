# SPDX-License-Identifier: Apache-2.0
"""The rows so far, which survive a kill: ``OUTPUT.parts/rows.jsonl``.

Its first line says which model and which windows the rows are of; then one row a line, on the disk
before the next one is asked for.  A row belongs to a file's path, size and modification time, so a
file that changed is scored anew.  A line that a kill cut short is dropped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import UsageError, UserError
from runtime.scan.table import COLUMNS, Row, unwritable
from runtime.spec import SCHEMA_VERSION

ROWS_FILE = "rows.jsonl"


@dataclass(frozen=True)
class Settings:
    """What the rows depend on apart from the clips."""

    model_id: str
    pair_id: str
    precision: str
    window_tokens: int
    hop_tokens: int
    audio: bool
    video_track: int | None = None  # None: as players do
    audio_track: int | None = None
    schema_version: int = SCHEMA_VERSION


class Journal(contextlib.AbstractContextManager["Journal"]):
    """``kept``: rows by the key of their clip.  One scan at a time has the file.

    Raises :class:`UserError` where it cannot be written, is in use, or holds the rows of another
    model or of other windows.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._path = folder / ROWS_FILE
        self.kept: dict[str, Row] = {}
        with contextlib.ExitStack() as opened:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = opened.enter_context(self._path.open("a+b"))
                self._lock()
                self._read(dataclasses.asdict(settings))
            except OSError as err:
                raise unwritable(folder, err) from None
            opened.pop_all()

    def add(self, row: Row) -> None:
        """On the disk when this returns."""
        self._append(row)
        self.kept[row["key"]] = row

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # every row was flushed when it was added
            self._file.close()

    def _lock(self) -> None:
        """Until the file is closed or this process ends, however it ends."""
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"another scan is writing to {self._path.parent}; wait for its end"
            ) from None

    def _append(self, line: Row) -> None:
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as err:
            raise unwritable(self._path, err) from None

    def _read(self, settings: Row) -> None:
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        self._file.truncate(whole)  # a kill cut the last line short
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                row = json.loads(line)
                if number == 1 and not isinstance(row, dict):
                    raise ValueError
                if number > 1 and set(row) != {"key", *COLUMNS}:
                    raise ValueError
            except (ValueError, TypeError):
                raise UserError(
                    f"{self._path}, line {number} is damaged; remove that line, or the folder "
                    f"{self._path.parent} to score everything anew"
                ) from None
            if number == 1:
                self._check_same(row, settings)
            else:
                self.kept[row["key"]] = row
        if not whole:
            self._append(settings)

    def _check_same(self, before: Row, now: Row) -> None:
        for name, value in now.items():
            if before.get(name) != value:
                raise UsageError(
                    f"{self._path.parent} holds results of another scan ({name} "
                    f"{before.get(name)}, now {value}); remove that folder to score everything "
                    "anew, or give another --output"
                )


def written_files(output: Path, parts: Path) -> list[Path]:
    """Everything that a scan writes: both tables, and the journal in ``parts``."""
    return [output, output.with_suffix(".csv"), parts / ROWS_FILE]
