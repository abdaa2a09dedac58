# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from runtime.errors import UserError


def write_json(path: Path, value: Any) -> None:
    """Indented JSON in one rename; folders on the way are made.  Raises as :func:`write_text`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """UTF-8 in one rename; folders on the way are made.

    Raises :class:`UserError` where the file cannot be written; nothing is left behind then.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as err:
        raise UserError(f"cannot write {path} ({err.strerror}); choose another path") from err
