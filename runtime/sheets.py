# SPDX-License-Identifier: Apache-2.0
"""Cells of CSV files that a spreadsheet takes for what they are.

A text that begins with one of a few characters is a formula there, and a file's name may be
anything.  Such a text gets an apostrophe in front, numbers stay numbers (OWASP, "CSV Injection").
"""

from __future__ import annotations

import re

_BEGINS_A_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_MARK = "'"


def safe(cell: object) -> object:
    """What to write for a cell; :func:`original` undoes it."""
    return _MARK + cell if isinstance(cell, str) and _needs_mark(cell) else cell


def original(text: str) -> str:
    """The text that :func:`safe` was given."""
    return text[1:] if text.startswith(_MARK) and _needs_mark(text[1:]) else text


def _needs_mark(text: str) -> bool:
    bare = text.lstrip(_MARK)  # one's own apostrophe must survive the way back
    return (
        bare.startswith(_BEGINS_A_FORMULA)
        and bare != "-"  # that there is nothing
        and _NUMBER.fullmatch(bare) is None
    )
