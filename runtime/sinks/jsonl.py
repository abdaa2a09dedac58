# SPDX-License-Identifier: Apache-2.0
"""Verdicts as JSON Lines: one object a line, in UTF-8.

Of files judged, an output file appears whole or not at all: lines go to a temporary file beside it,
which takes its name when :meth:`JsonLinesSink.commit` is called.  Of a live source, which may go on
for weeks, each line is in the file as soon as it is made: lines are added to what the file holds
already, whole ones only, also when the disk is full or the process is killed between two of them.
Standard output (``-``), and what is no regular file (a pipe, ``/dev/stderr``), get each line at
once.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from runtime import leftovers
from runtime.closing import Closing
from runtime.files import OutputError
from runtime.judging.verdict import Verdict
from runtime.overwrites import STANDARD_OUTPUT


class RecordError(OutputError):
    """The record of the whole run, ``--jsonl``, cannot be written."""


class JsonLinesSink(Closing):
    """A context manager; leaving it without :meth:`commit` leaves an existing file as it was.

    live : add each line to the file at once, whole; there is nothing to commit

    Raises :class:`RecordError` where the target cannot be written, before any verdict is made.
    """

    def __init__(self, target: str | Path, *, live: bool = False) -> None:
        self._target = Path(os.path.realpath(target))
        self._temporary: Path | None = None
        self._appended: int | None = None  # the handle of a live source's file
        self._stream: TextIO
        try:
            if str(target) == STANDARD_OUTPUT:
                self._stream = sys.stdout
            elif self._target.is_dir():
                raise IsADirectoryError(0, "it is a folder")
            elif self._target.exists() and not self._target.is_file():
                self._stream = self._target.open("w", encoding="utf-8")
            elif live:
                self._stream = self._open_append()
            else:
                self._stream = self._open_temporary()
        except OSError as err:
            raise RecordError(f"cannot write {target}: {_why(err)}") from None
        self._name = str(target)

    def write(self, verdict: Verdict) -> None:
        """Raises :class:`RecordError` on a full disk or a reader that went away."""
        try:
            if self._appended is not None:
                _append(self._appended, verdict.to_json().encode() + b"\n")
                return
            self._stream.write(verdict.to_json() + "\n")
            if self._temporary is None:
                self._stream.flush()
        except OSError as err:
            self._give_up(err)

    def commit(self) -> None:
        """Give the file its name; everything written so far is in it."""
        if self._temporary is None:
            return
        try:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._temporary.replace(self._target)
        except OSError as err:
            self._give_up(err)
        leftovers.forget(self._temporary)
        self._temporary = None

    def close(self) -> None:
        """Drop what was not committed."""
        if self._stream is not sys.stdout:
            with suppress(OSError):  # what it still held is given up; write and commit said why
                self._stream.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            leftovers.forget(self._temporary)
            self._temporary = None

    def _open_temporary(self) -> TextIO:
        self._temporary = leftovers.new_file(self._target)
        return self._temporary.open("w", encoding="utf-8")

    def _open_append(self) -> TextIO:
        handle = os.open(self._target, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._appended = handle
        size = os.lseek(handle, 0, os.SEEK_END)
        if size:
            os.lseek(handle, size - 1, os.SEEK_SET)
            if os.read(handle, 1) != b"\n":  # a power cut in the middle of a line
                _append(handle, b"\n")
        return os.fdopen(handle, "a", encoding="utf-8")

    def _give_up(self, err: OSError) -> None:
        if self._stream is sys.stdout:  # or Python would complain once more when it exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise RecordError(f"cannot write {self._name}: {_why(err)}") from None


def _append(handle: int, line: bytes) -> None:
    """All of the line or nothing of it; raises :class:`OSError`."""
    size = os.fstat(handle).st_size
    try:
        done = os.write(handle, line)
        while done < len(line):  # a disk that is nearly full takes a part; the rest says why
            done += os.write(handle, line[done:])
    except OSError:
        os.ftruncate(handle, size)
        raise


def _why(err: OSError) -> str:
    return (err.strerror or str(err)).lower()
