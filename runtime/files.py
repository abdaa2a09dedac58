# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, and reading with an end."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from runtime import leftovers
from runtime.errors import UserError


def write_json(path: Path, value: Any) -> None:
    """Indented JSON in one rename; folders on the way are made.  Raises as :func:`write_text`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """UTF-8 in one rename; folders on the way are made.

    Raises :class:`UserError` where the file cannot be written; nothing is left behind then.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with leftovers.part_of(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as err:
        raise UserError(f"cannot write {path} ({err.strerror}); choose another path") from err


def read_bounded(path: Path, limit_bytes: int) -> bytes:
    """The content of a regular file of that size at most.

    A pipe or a device never ends, and a sparse file may be larger than any disk.  Raises
    :class:`OSError`, whose ``strerror`` says so in words.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # of a pipe: at once
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        with os.fdopen(handle, "rb", closefd=False) as file:
            data = b"" if facts.st_size > limit_bytes else file.read(limit_bytes + 1)
    finally:
        os.close(handle)
    if max(facts.st_size, len(data)) > limit_bytes:
        raise OSError(errno.EFBIG, f"larger than {limit_bytes >> 20} MiB", str(path))
    return data


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/msct``, by default ``~/.cache/msct``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "msct"


class OutputError(UserError):
    """An output that cannot be written."""


class PendingFile:
    """A temporary file beside the target, which takes its name when it is complete.

    Raises :class:`OutputError` where the folder cannot be written, before any work is done.
    """

    def __init__(self, target: Path) -> None:
        self.target = Path(os.path.realpath(target))
        self.given_up = False
        try:
            if self.target.exists() and not self.target.is_file():
                raise OSError(0, "not a regular file")
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self.path = leftovers.new_file(self.target)
        except OSError as err:
            raise self.failure(err) from None

    def commit(self) -> None:
        """Give the file its name, unless it was given up meanwhile."""
        if self.given_up:
            return
        try:
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())
            self.path.replace(self.target)
        except OSError as err:
            self.discard()
            raise self.failure(err) from None
        leftovers.forget(self.path)

    def discard(self) -> None:
        """Drop it; an older file of that name stays as it was.

        It is still kept track of: a sink's thread may be about to open it once more.
        """
        self.given_up = True
        self.path.unlink(missing_ok=True)

    def failure(self, err: OSError) -> OutputError:
        return OutputError(f"cannot write {self.target}: {(err.strerror or str(err)).lower()}")
