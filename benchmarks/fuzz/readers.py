# SPDX-License-Identifier: Apache-2.0
"""Can a file of settings or a model's file hurt?  Coverage-guided fuzzing of what reads them.

    python -m benchmarks.fuzz.readers [--reader NAME ...] [--seconds 60] [--seed 1]
                                      [--keep DIR] [--output J.json]

Atheris (libFuzzer for Python) mutates good inputs, keeps what reaches a branch of the runtime that
none before did, and goes on from there: site calibrations, specs, manifests, the bytes of an ONNX
file, lists of sources (:mod:`benchmarks.fuzz.targets`, in a process of their own).  Whatever is
in them, they must be read or refused by the reader's own error.  Any other exception, 10 s for one
input or 2 GB are a finding: it is printed, and stored in ``--keep``.  Exit code 0: none; 1: some.

Atheris has wheels for Linux on x86-64.  Media files: :mod:`benchmarks.fuzz`.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import re
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.environment import ROOT, describe
from benchmarks.fuzz.targets import READERS
from runtime import leftovers, waits
from runtime.command import Parser, guarded, positive_int
from runtime.errors import EXIT_ERROR, EXIT_OK, DependencyError, UserError
from runtime.files import write_json
from runtime.interrupt import leave
from runtime.optional import installed

INPUT_S, MEMORY_MB, INPUT_BYTES = 10, 2000, 1 << 14
ENDED = 0  # libFuzzer's exit codes: the time is over
FOUND = (70, 71, 76, 77)  # too slow, too large, and two kinds of exceptions
# What libFuzzer or Python calls it.
FINDING = r"^(?:\w+\.)*\w*(?:Error|Exception)\b.*|^ALARM.*|.*out-of-memory.*"


class FuzzError(UserError):
    """A fuzzer that does not run."""


@dataclass(frozen=True)
class Outcome:
    """What became of one reader."""

    reader: str
    inputs: int
    branches: int  # of the runtime, reached
    kept: int  # inputs that reached a new one
    finding: str  # the last line of the exception; empty: none


def command(reader: str) -> list[str]:
    """The process; a corpus and libFuzzer's options follow."""
    return [sys.executable, "-m", "benchmarks.fuzz.targets", reader]


def fuzz(reader: str, seconds: int, seed: int, keep: Path) -> Outcome:
    """Raises :class:`FuzzError` where the process ended in no way that libFuzzer announces."""
    # The kernel counts the highest memory of whoever starts a process as that of the process, too.
    inherited_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    with leftovers.folder("msct-fuzz-") as corpus:
        done = waits.run_program(
            [*command(reader), corpus,
             f"-max_total_time={seconds}", f"-seed={seed}", f"-timeout={INPUT_S}",
             f"-rss_limit_mb={MEMORY_MB + inherited_mb}", f"-max_len={INPUT_BYTES}",
             "-print_final_stats=1", f"-artifact_prefix={keep}/{reader}-"],
            cwd=ROOT, capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        kept = len(list(Path(corpus).iterdir()))
    said = done.stdout + done.stderr
    if done.returncode not in (ENDED, *FOUND):
        last = (said.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise FuzzError(f"the fuzzer of {reader} does not run: {last}")
    found = re.findall(FINDING, said, re.MULTILINE) or said.strip().splitlines()[-1:]
    return Outcome(
        reader,
        inputs=_last(r"number_of_executed_units: (\d+)", said),
        branches=_last(r"cov: (\d+)", said),
        kept=kept,
        finding="" if done.returncode == ENDED else found[-1].strip(),
    )


def _last(pattern: str, said: str) -> int:
    return int(re.findall(pattern, said)[-1]) if re.search(pattern, said) else 0


def parser() -> argparse.ArgumentParser:
    options = Parser(
        prog="python -m benchmarks.fuzz.readers", description=(__doc__ or "").split("\n")[0]
    )
    options.add_argument("--reader", action="append", choices=READERS, help="default: all")
    options.add_argument("--seconds", type=positive_int, default=60, help="for each reader")
    options.add_argument("--seed", type=positive_int, default=1)
    options.add_argument("--keep", type=Path, metavar="DIR", help="store inputs that are findings")
    options.add_argument("--output", type=Path, metavar="FILE.json")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of :mod:`runtime.errors`."""
    options = parser().parse_args(argv)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from rich.progress import track

    if not installed("atheris"):
        raise DependencyError(
            "atheris (wheels for Linux on x86-64) is needed: pip install '.[fuzz]'"
        )
    readers = options.reader or READERS
    with leftovers.folder("msct-found-") as folder:
        keep = options.keep or Path(folder)
        keep.mkdir(parents=True, exist_ok=True)
        outcomes = [
            fuzz(reader, options.seconds, options.seed, keep.absolute())
            for reader in track(readers, "fuzzing", transient=True)
        ]
    print(f"{'reader':10}{'inputs':>10}{'branches':>10}{'kept':>7}  finding")
    for o in outcomes:
        print(f"{o.reader:10}{o.inputs:>10}{o.branches:>10}{o.kept:>7}  {o.finding or 'none'}")
    if options.output is not None:
        result = {
            "benchmark": "fuzz_readers",
            "schema_version": 1,
            **describe(),
            "settings": {"seconds": options.seconds, "seed": options.seed},
            "readers": [asdict(o) for o in outcomes],
        }
        write_json(options.output, result)
        print(f"written: {options.output}", file=sys.stderr)
    return EXIT_ERROR if any(o.finding for o in outcomes) else EXIT_OK


if __name__ == "__main__":
    leave(main)
