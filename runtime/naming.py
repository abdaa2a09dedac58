# SPDX-License-Identifier: Apache-2.0
"""What a source is called, everywhere: terminal, files, JSON Lines, metrics, webhook, page, errors.

One rule each:

* **No secret.** An address has neither user nor password, query or fragment
  (:func:`runtime.address.public_name`).
* **Plain text.** A name is one line without control characters, whoever made it up, and so is each
  message (:func:`plain`): a terminal, a log or a file name never gets them.
* **Told apart.** Names that would be equal get a number in the order of the sources
  (:func:`told_apart`).
* **Fits.** The name of a file is limited in bytes; what is cut off leaves a digest behind, so that
  two long names stay different (:func:`file_stem`, :func:`temporary_name`).
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from runtime.address import without_secrets

MAX_NAME_BYTES = 255  # of a file, in every file system of Linux and macOS
TEMPORARY_BYTES = 32  # that a temporary name is longer than its target's
NUMBER_BYTES = 8  # of the number behind files that would have one name
JOINERS = "\u200c\u200d"  # within words of Persian and Indic scripts: no control characters


def plain(text: str) -> str:
    """One line without control characters and without the secrets of addresses."""
    return _printable(" ".join(without_secrets(text).split()))


def plain_line(line: str) -> str:
    """The same for a line whose spaces matter."""
    return _printable(without_secrets(line))


def name_of_file(path: str | os.PathLike[str]) -> str:
    """What a file is called: its path, as far as it can be printed."""
    return _printable(os.fspath(path))


def told_apart(names: Sequence[str]) -> list[str]:
    """The names; one that was there before gets a number: ``rtsp://cam/live (2)``."""
    own, given = set(names), set[str]()
    found = []
    for name in names:
        number, called = 1, name
        while called in given or (number > 1 and called in own):
            number += 1
            called = f"{name} ({number})"
        given.add(called)
        found.append(called)
    return found


def file_stem(name: str, suffix: str) -> str:
    """The name of an output that is named after a source, with room for ``suffix`` and a number."""
    stem = re.sub(r"[^\w.-]+", "_", name).strip("._") or "source"
    return _cut(stem, MAX_NAME_BYTES - NUMBER_BYTES - len(suffix.encode()))


def temporary_name(target: Path, ending: str = "") -> str:
    """The beginning of a hidden name beside ``target``, and ``ending`` (up to 24 bytes)."""
    return f".{_cut(target.name, MAX_NAME_BYTES - TEMPORARY_BYTES)}.{ending}"


def _cut(name: str, room: int) -> str:
    """At most ``room`` bytes; what is cut off leaves a digest behind."""
    data = os.fsencode(name)
    if len(data) <= room:
        return name
    mark = "-" + hashlib.sha256(data).hexdigest()[:8]
    return data[: room - len(mark)].decode("utf-8", "ignore") + mark


def _printable(text: str) -> str:
    return "".join(_shown(c) for c in text)


def _shown(char: str) -> str:
    if char.isprintable() or char in JOINERS:
        return char
    return " " if unicodedata.category(char) == "Zs" else "?"
