# SPDX-License-Identifier: Apache-2.0
"""What works on this machine, and what to install for the rest: ``python -m runtime.doctor``.

The checks are those of :mod:`runtime.doctor.checks`.  ``--run`` also scores a synthetic second of
pictures and sound through the model.

Exit codes: 0 the default path (files, ONNX Runtime on the CPU) works, 1 it does not; 2 usage.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import json
from collections.abc import Sequence

from runtime.command import Parser, guarded
from runtime.doctor.checks import Finding, State, checks, examine
from runtime.errors import EXIT_ERROR, EXIT_OK
from runtime.interrupt import check, leave
from runtime.naming import plain_line


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return guarded(lambda: run_command(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="python -m runtime.doctor",
        description="What works on this machine, and what to install for the rest.",
        epilog="Exit codes: 0 files can be judged on the CPU, 1 they cannot, 2 usage.",
    )
    p.add_argument("--json", action="store_true", help="for programs, on standard output")
    p.add_argument("--run", action="store_true",
                   help="also score a synthetic second of media, as proof")  # fmt: skip
    return p


def run_command(options: argparse.Namespace) -> int:
    findings = []
    for each in checks(run=options.run):
        check()
        findings.append(examine(each))
    check()
    works = default_path_works(findings)
    if options.json:
        print(json.dumps({"works": works, "checks": [f._asdict() for f in findings]}, indent=2))
        return EXIT_OK if works else EXIT_ERROR
    for f in findings:
        print(plain_line(f"{f.state.value:8} {f.name:19} {f.detail}"))
        if f.state is not State.OK:
            print(" " * 28 + plain_line(f"for {f.purpose}" + (f": {f.remedy}" if f.remedy else "")))
    print("files can be judged on the CPU" if works else "files cannot be judged: see above")
    return EXIT_OK if works else EXIT_ERROR


def default_path_works(findings: Sequence[Finding]) -> bool:
    """Is everything there that judging a file on the CPU needs?"""
    return all(f.state is State.OK for f in findings if f.needed)


if __name__ == "__main__":
    leave(main)
