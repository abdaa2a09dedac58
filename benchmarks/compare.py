# SPDX-License-Identifier: Apache-2.0
"""Has it become slower?  Two results of ``benchmarks.latency`` side by side.

    python -m benchmarks.compare A.json B.json [--tolerance 0.1] [--force]

A is before, B is after.  A figure has grown worse when B is more than ``--tolerance`` above A and
their 95 % intervals, where there are any, do not overlap.  Results of different machines, providers
or settings say nothing about the code and are refused; ``--force`` compares them all the same.

Exit codes: 0 nothing has grown worse, 1 something has, or an operational error; 2 usage.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import columns
from runtime.command import Parser, guarded
from runtime.errors import EXIT_ERROR, EXIT_OK, UsageError
from runtime.interrupt import leave

COMPARED_PERCENTILES = ("p50", "p99")
SAME = (  # what must be equal for a comparison to mean anything
    ("machine", "processor"),
    ("machine", "cores"),
    ("machine", "system"),
    ("device", "gpus"),
    ("device", "power_mode"),
    ("model", "provider"),
    ("model", "precision"),
    ("settings", "size"),
    ("settings", "fps"),
    ("settings", "source_sha256"),
    ("settings", "threads"),
)


@dataclass(frozen=True)
class Figure:
    """Something of which less is better; ``low`` and ``high``: its interval, where it has one."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    has_interval: bool = False


@dataclass(frozen=True)
class Row:
    """One figure before and after."""

    name: str
    before: float
    after: float
    overlap: bool | None  # of the intervals; None: there are none

    @property
    def ratio(self) -> float:
        if self.before == 0:
            return 1.0 if self.after == 0 else math.inf
        return self.after / self.before

    def worse(self, tolerance: float) -> bool:
        return self.ratio > 1 + tolerance and self.overlap is not True


def figures(result: dict[str, Any]) -> list[Figure]:
    """What is compared of one result."""
    found = []
    named = [(case["name"], case["latency"]) for case in result["engine"]["cases"]]
    named.append(("capture to verdict", result["capture"]["beyond_evidence"]))
    for name, latency in named:
        for percentile in COMPARED_PERCENTILES:
            p = latency["percentiles"].get(percentile)
            if p is not None:
                text = f"{name} {percentile}, ms"
                found.append(Figure(text, p["ms"], p["low_ms"], p["high_ms"], True))
    capture = result["capture"]
    found.append(Figure("first verdict, s", capture["first_verdict"]["from_capture_s"]))
    found.append(Figure("peak memory, MB", capture["peak_memory_mb"]))
    found.append(Figure("processor share", capture["cpu_share"]))
    for reading in result["power"]["readings"]:
        name = f"{reading['source']}, J for a second of stream"
        found.append(Figure(name, reading["joules_per_stream_s"]))
    return found


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[Row]:
    """The figures that both have, in A's order."""
    others = {figure.name: figure for figure in figures(after)}
    return [
        Row(a.name, a.value, others[a.name].value, overlap(a, others[a.name]))
        for a in figures(before)
        if a.name in others
    ]


def overlap(a: Figure, b: Figure) -> bool | None:
    """Do the intervals share a value?  An open end reaches as far as one likes."""
    if not (a.has_interval and b.has_interval):
        return None
    ends = [
        (-math.inf if f.low is None else f.low, math.inf if f.high is None else f.high)
        for f in (a, b)
    ]
    return max(low for low, _ in ends) <= min(high for _, high in ends)


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is not the same and makes a comparison meaningless, in words."""
    return [
        f"{part} {name}: {before[part][name]} and {after[part][name]}"
        for part, name in SAME
        if before[part][name] != after[part][name]
    ]


def report(rows: Sequence[Row], tolerance: float) -> str:
    """The table for people."""
    lines = [["figure", "A", "B", "B/A", "intervals", ""]]
    kinds = {None: "none", True: "overlap", False: "apart"}
    for row in rows:
        slower = row.ratio > 1 + tolerance
        judged = "WORSE" if row.worse(tolerance) else "within the intervals" if slower else ""
        numbers = (f"{row.before:.2f}", f"{row.after:.2f}", f"{row.ratio:.2f}")
        lines.append([row.name, *numbers, kinds[row.overlap], judged])
    return "\n".join(line.rstrip() for line in columns(lines))


def read(path: Path) -> dict[str, Any]:
    """Raises :class:`UsageError` for a file that is no such result."""
    from benchmarks.latency.schema import SCHEMA_VERSION, SchemaError, check

    try:
        result: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as err:
        raise UsageError(f"cannot read {path} ({err.strerror})") from err
    except ValueError as err:
        raise UsageError(f"{path} is not JSON ({err})") from err
    if not isinstance(result, dict) or result.get("benchmark") != "latency":
        raise UsageError(f"{path} is no result of python -m benchmarks.latency")
    if result.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(
            f"{path} has schema version {result.get('schema_version')!r}, this one reads "
            f"{SCHEMA_VERSION}; measure again"
        )
    try:
        check(result)
    except SchemaError as err:
        raise UsageError(f"{path}: {err}") from err
    return result


def parse_tolerance(text: str) -> float:
    """A share from 0 to 10."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 10:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 10, as 0.1")
    return value


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="python -m benchmarks.compare",
        description="Two results of benchmarks.latency: what has grown worse from A to B.",
        epilog="Exit codes: 0 nothing has grown worse, 1 something has, or an error, 2 usage.",
    )
    p.add_argument("before", type=Path, metavar="A.json")
    p.add_argument("after", type=Path, metavar="B.json")
    p.add_argument("--tolerance", type=parse_tolerance, default=0.1, metavar="SHARE",
                   help="above which a growth counts (default: %(default)s)")  # fmt: skip
    p.add_argument("--force", action="store_true",
                   help="compare what was measured on different machines, too")  # fmt: skip
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of :mod:`runtime.errors`."""
    options = parser().parse_args(argv)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    before, after = read(options.before), read(options.after)
    different = differences(before, after)
    if different and not options.force:
        raise UsageError(
            f"the two were not measured alike ({'; '.join(different)}); give --force to compare "
            "them all the same"
        )
    for line in different:
        print(f"not alike: {line}", file=sys.stderr)
    rows = compare(before, after)
    print(report(rows, options.tolerance))
    worse = [row.name for row in rows if row.worse(options.tolerance)]
    if worse:
        print(f"worse by more than {options.tolerance:.0%}: {'; '.join(worse)}", file=sys.stderr)
        return EXIT_ERROR
    return EXIT_OK


if __name__ == "__main__":
    leave(main)
