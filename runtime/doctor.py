# SPDX-License-Identifier: Apache-2.0
"""What works on this machine, and what to install for the rest: ``python -m runtime.doctor``.

The checks are those of :mod:`runtime.health`.  ``--run`` also scores a synthetic second of pictures
and sound through the model.

Exit codes: 0 the default path (files, ONNX Runtime on the CPU) works, 1 it does not; 2 usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from runtime.command import guarded
from runtime.errors import EXIT_ERROR, EXIT_OK, UserError
from runtime.health import Finding, State, checks, examine

if TYPE_CHECKING:
    from rich.console import Console


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return guarded(lambda: run_command(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m runtime.doctor",
        description="What works on this machine, and what to install for the rest.",
        epilog="Exit codes: 0 files can be judged on the CPU, 1 they cannot, 2 usage.",
    )
    p.add_argument("--json", action="store_true", help="for programs, on standard output")
    p.add_argument("--run", action="store_true",
                   help="also score a synthetic second of media, as proof")  # fmt: skip
    return p


def run_command(options: argparse.Namespace) -> int:
    findings = [examine(check) for check in checks(run=options.run)]
    works = default_path_works(findings)
    if options.json:
        print(json.dumps({"works": works, "checks": [asdict(f) for f in findings]}, indent=2))
    else:
        _print(findings, works=works)
    return EXIT_OK if works else EXIT_ERROR


def default_path_works(findings: Sequence[Finding]) -> bool:
    """Is everything there that judging a file on the CPU needs?"""
    return all(f.state is State.OK for f in findings if f.needed)


def _print(findings: Sequence[Finding], *, works: bool) -> None:
    """A table; plain lines where rich, which draws it, is what is missing."""
    end = "files can be judged on the CPU" if works else "files cannot be judged: see above"
    try:
        from runtime.sinks.timeline import console

        out = console()
    except UserError:
        for f in findings:
            print(f"{f.state:8} {f.name}: {f.detail}{f'; {f.remedy}' if f.remedy else ''}")
        print(end)
        return
    _print_table(out, findings)
    out.print(end, style="bold" if works else "bold red")


def _print_table(out: Console, findings: Sequence[Finding]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    colours = {State.OK: "green", State.MISSING: "yellow", State.BROKEN: "bold red"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "what", "found", "for", "remedy"):
        table.add_column(heading, overflow="fold")
    for f in findings:
        texts = (f.name, f.detail, "" if f.state is State.OK else f.purpose, f.remedy)
        table.add_row(f"[{colours[f.state]}]{f.state}[/]", *map(escape, texts))
    out.print(table)


if __name__ == "__main__":
    sys.exit(main())
