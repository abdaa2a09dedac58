# SPDX-License-Identifier: Apache-2.0
"""Where an output file goes, and that it appears whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from runtime.errors import UsageError
from runtime.sinks.jsonl import OutputError

MAX_STEM = 80  # characters of a source's name in the name of an output


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
            handle, name = tempfile.mkstemp(
                prefix=f".{self.target.name}.", suffix=".tmp", dir=self.target.parent
            )
            os.close(handle)
        except OSError as err:
            raise self.failure(err) from None
        self.path = Path(name)
        mask = os.umask(0)
        os.umask(mask)
        self.path.chmod(0o666 & ~mask)  # mkstemp's 0600 would surprise the reader

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

    def discard(self) -> None:
        """Drop it; an older file of that name stays as it was."""
        self.given_up = True
        self.path.unlink(missing_ok=True)

    def failure(self, err: OSError) -> OutputError:
        return OutputError(f"cannot write {self.target}: {(err.strerror or str(err)).lower()}")


def is_folder(target: Path, suffix: str) -> bool:
    """Does an option's PATH|DIR name a folder: one that exists, or a name without the suffix?"""
    return target.is_dir() or target.suffix.lower() != suffix


def target_of(target: Path, suffix: str, source: str, taken: set[Path]) -> Path:
    """The output file of one source; in a folder it is named after the source.

    ``taken`` holds the targets so far and gets this one.  Raises :class:`UsageError` where the
    output would replace its source.
    """
    file = target
    if is_folder(target, suffix):
        stem = re.sub(r"[^\w.-]+", "_", Path(source).stem).strip("._")[:MAX_STEM] or "source"
        names = (f"{stem}{'' if n == 1 else f'-{n}'}{suffix}" for n in range(1, len(taken) + 2))
        file = next(f for name in names if (f := target / name) not in taken)
    if Path(source).exists() and file.exists() and file.samefile(source):
        raise UsageError(f"{file} is the source itself; choose another path for the output")
    taken.add(file)
    return file
