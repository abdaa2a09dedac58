# SPDX-License-Identifier: Apache-2.0
"""That no output of a run is one of its inputs, or another of its outputs.

Compared is what a path names, not how it is spelled: links, hard ones too, ``./`` and ``..``, and
capitals where a file system does not tell them apart.  Of files that are not there yet the nearest
folder that is counts, and the names below it.  Devices and pipes can be written by anybody any
number of times.
"""

from __future__ import annotations

import os
import stat
import sys
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from runtime.errors import UsageError

STANDARD_OUTPUT = "-"

Target = tuple[str, str | Path]  # the option that asked for it, and the file
_File = tuple[int, int]  # device and inode
_Place = tuple[_File, tuple[str, ...]]  # something that is there, and names below it that are not


def refuse_overwrites(
    targets: Iterable[Target | None],
    inputs: Iterable[str | Path | None] = (),
    *,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Raises :class:`UsageError` where a target is an input or another target, or lies below one.

    To be called before anything is opened.  ``targets``: every file that will be written, None
    where an option was not given; folders and files that cannot be written are not looked at.
    ``inputs``: files, and None, or what is no file (an address, a camera) and is passed over.
    ``options``: all that the command was given, by name (``vars`` of what argparse gives): of each
    file named in it that is no target it is taken for granted that it is read.
    """
    targets = list(targets)
    if options is not None:
        inputs = [*inputs, *_named(options, {t[0] for t in targets if t is not None})]
    places: dict[_Place, Target] = {}
    for target in targets:
        place = None if target is None else _place(target[1])
        if target is None or place is None:
            continue
        if place in places:
            raise UsageError(_both(places[place], target))
        places[place] = target
    for (there, names), target in places.items():
        for n in range(len(names)):
            if (there, names[:n]) in places:  # one would be a file, and a folder for the other
                raise UsageError(_both(places[there, names[:n]], target))
    written = {there: target for (there, _), target in places.items()}
    for path in inputs:  # a target below one that is a file is as wrong
        found = None if path is None else _file(path, regular=True)
        if found in written:
            option, target_path = written[found]
            raise UsageError(
                f"{option} {target_path} would overwrite {path}, which is read; choose another "
                "path for the output"
            )


def _named(options: Mapping[str, Any], targets: Collection[str]) -> Iterator[str | Path]:
    """Every path, or what may be one, but the targets' own."""
    for name, value in options.items():
        if f"--{name.replace('_', '-')}" not in targets:
            for one in value if isinstance(value, list | tuple) else (value,):
                if isinstance(one, str | Path):
                    yield one


def same_name(path: Path) -> Path:
    """Equal for names that a file system may take for one: capitals, composed letters."""
    return Path(_folded(str(path)))


def _both(one: Target, other: Target) -> str:
    return (
        f"{one[0]} {one[1]} and {other[0]} {other[1]} are in each other's way; choose another path "
        "for one of them"
    )


def _place(path: str | Path) -> _Place | None:
    """None: a device, a pipe, a folder, a name that cannot be; any number of writers, or none."""
    if str(path) == STANDARD_OUTPUT:
        return _standard_output()
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
        if not stat.S_ISREG(mode):
            return None
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError):
        return None
    real = Path(os.path.realpath(path))
    names: list[str] = []
    while (there := _file(real)) is None:
        if real == real.parent:
            return None
        names.insert(0, real.name)
        real = real.parent
    if names and _takes_capitals_for_one(real):
        names = [_folded(name) for name in names]
    return there, tuple(names)


def _takes_capitals_for_one(folder: Path) -> bool:
    """As far as something in it, or its own name, can tell."""
    try:
        with os.scandir(folder) as entries:
            inside = next((e.name for e in entries if e.name.swapcase() != e.name), None)
    except OSError:
        inside = None
    known = folder if inside is None else folder / inside
    other = known.parent / known.name.swapcase()
    return other.name != known.name and _file(other) == _file(known)


def _standard_output() -> _Place:
    """A file where it was redirected to one."""
    try:
        found = os.fstat(sys.stdout.fileno())
        if stat.S_ISREG(found.st_mode):
            return (found.st_dev, found.st_ino), ()
    except (OSError, ValueError):  # closed, or replaced by something that is no file
        pass
    return (-1, 1), ()


def _file(path: str | Path, *, regular: bool = False) -> _File | None:
    """None: there is nothing, or, where only a ``regular`` file counts, a folder or a device."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return None if regular and not stat.S_ISREG(found.st_mode) else (found.st_dev, found.st_ino)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
