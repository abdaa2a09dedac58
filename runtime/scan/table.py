# SPDX-License-Identifier: Apache-2.0
"""What a scan gives: one row a clip, as Parquet and CSV."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from runtime import leftovers
from runtime.errors import UsageError, UserError
from runtime.optional import optional
from runtime.sheets import safe

Row = dict[str, Any]

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

    In the CSV a cell of several values is JSON, what has no value is empty, and what a
    spreadsheet would take for a formula begins with an apostrophe.  Raises
    :class:`UserError` where they cannot be written, :class:`DependencyError` without PyArrow.
    """
    with optional("to write a table"):
        import pyarrow
        import pyarrow.parquet
    schema = pyarrow.schema([(name, _arrow_type(pyarrow, kind)) for name, kind in COLUMNS.items()])
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    table = pyarrow.Table.from_pydict(columns, schema=schema)
    text = output.with_suffix(".csv")
    with _whole(text) as part, part.open("w", encoding="utf-8", newline="") as handle:
        # all text in quotes: elsewhere a semicolon begins the next cell
        writer = csv.writer(handle, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(COLUMNS)
        writer.writerows([safe(_cell(row[name])) for name in COLUMNS] for row in rows)
    with _whole(output) as part:
        pyarrow.parquet.write_table(table, part)
    return output, text


def check_output(output: Path) -> None:
    """Raise :class:`UserError` now rather than after hours, where nothing could be written."""
    if output.suffix != ".parquet":
        raise UsageError(f"--output {output}: the name must end in .parquet (a .csv comes with it)")
    for path in (output, output.with_suffix(".csv")):
        if os.path.isdir(path):  # noqa: PTH112, it never raises
            raise UsageError(f"cannot write {path}: it is a folder")


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file to fill, which takes the name of ``path`` when the block ends well."""
    try:
        with leftovers.part_of(path) as part:
            yield part
            with part.open("rb") as handle:
                os.fsync(handle.fileno())
    except OSError as err:
        raise unwritable(path, err) from None


def unwritable(path: Path, err: OSError) -> UserError:
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
