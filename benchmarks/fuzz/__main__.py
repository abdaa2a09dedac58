# SPDX-License-Identifier: Apache-2.0
"""Can a damaged or hostile file hurt?  Thousands of mutated clips through the whole product.

    python -m benchmarks.fuzz --clips FOLDER|FILE... [--count 5000] [--seed 0] [--minutes M]
                            [--output J.json]
    python -m benchmarks.fuzz --clips ... --only NUMBER [--keep DIR]

The clips are written once in many containers and codecs, then damaged
(:mod:`benchmarks.fuzz.mutants`) and judged as ``runtime.stream`` judges a file, with
the shipped model, in worker processes (:mod:`benchmarks.fuzz.worker`) with a limit on memory and on
time.  Every mutant must end as

- ``verdict``: some window of it was judged,
- ``abstained``: every window abstained, ``too_short`` among the reasons, or
- ``error``: one clear line that says what is wrong with the file.

A failure is a ``traceback`` (any other exception, a RuntimeWarning included), a ``crash`` (the
process died), a ``hang`` (longer than ``--limit-s``) or ``memory`` (more than ``--memory-mb``).
Exit code 0: no failure; 1: some.  A mutant follows from the clips, ``--seed`` and its number:
``--only`` judges one again in this process, ``--keep`` stores the failing files.

Linux alone: memory is read from ``/proc``.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import hashlib
import math
import os
import queue
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from json import loads
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from benchmarks.environment import ROOT, describe, usable_cores
from benchmarks.fuzz import worker as fuzz_worker
from benchmarks.fuzz.mutants import Mutant, Seed, make_seeds, mutant
from benchmarks.fuzz.worker import ABSTAINED, ERROR, MEMORY, READY, TRACEBACK, VERDICT
from runtime import leftovers, waits
from runtime.command import Parser, guarded, positive_int
from runtime.errors import EXIT_ERROR, EXIT_OK, UsageError, UserError
from runtime.files import write_json
from runtime.interrupt import leave
from runtime.media.open import DECODERS, INLINE, expand_sources
from runtime.models import DEFAULT_PRESET
from runtime.overwrites import refuse_overwrites
from runtime.sinks.terminal import print_line

CRASH, HANG = "crash", "hang"  # failures that end a worker
OUTCOMES = (VERDICT, ABSTAINED, ERROR, TRACEBACK, CRASH, HANG, MEMORY)
FAILURES = (TRACEBACK, CRASH, HANG, MEMORY)
START_S = 120.0  # that a worker may take to load the model
RENEW_AFTER = 250  # mutants: then a fresh worker, so that damage done to one does not go far
SHOWN_ERRORS = 12
UNITS = {"seconds": "s", "memory_mb": "MB", "media_s": "s of media"}  # of what is spread
SETTINGS = ("count", "seed", "limit_s", "memory_mb", "jobs", "model", "decoder")  # in the JSON


class FuzzError(UserError):
    """A worker that cannot begin."""


@dataclass(frozen=True)
class Result:
    """What became of one mutant."""

    number: int
    base: str
    damage: str
    outcome: str
    detail: str
    seconds: float
    memory_mb: float | None = None  # the most that was resident; None: the worker died
    media_s: float = 0.0

    @property
    def failed(self) -> bool:
        return self.outcome in FAILURES


class Worker:
    """A process that judges files; it is started when it is needed, and again after it ended."""

    def __init__(self, command: Sequence[str], limit_s: float) -> None:
        self._command, self._limit_s = list(command), limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._said: BinaryIO | None = None  # its standard error
        self._judged = 0
        self.starts = 0

    def judge(self, path: Path) -> dict[str, Any]:
        """``outcome`` and ``detail``, and what else a living worker says of a file."""
        if self._process is None or self._judged >= RENEW_AFTER:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        self._judged += 1
        start = time.monotonic()
        try:
            self._process.stdin.write(os.fsencode(path) + b"\n")
            self._process.stdin.flush()
            line = self._line(self._limit_s)
        except TimeoutError:
            self.close()
            return {"outcome": HANG, "detail": f"not done after {self._limit_s:g} s",
                    "seconds": self._limit_s}  # fmt: skip
        except (BrokenPipeError, EOFError):
            return {"outcome": CRASH, "detail": self._end(), "seconds": time.monotonic() - start}
        found: dict[str, Any] = loads(line)
        return found

    def close(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # a path that it never read
                continue
        self._process = None
        if self._said is not None:
            self._said.close()

    def _start(self) -> None:
        self.close()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process lives
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said,
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for this process, which ends the worker
        )  # fmt: skip
        self._judged = 0
        self.starts += 1
        try:
            ready = self._line(START_S).strip() == READY.encode()
        except (TimeoutError, EOFError):
            ready = False
        if not ready:
            raise FuzzError(f"the worker does not begin: {self._end()}")

    def _line(self, limit_s: float) -> bytes:
        """Raises TimeoutError, and EOFError where the process ended first."""
        assert self._process is not None
        assert self._process.stdout is not None
        end, line = time.monotonic() + limit_s, b""
        handle = self._process.stdout.fileno()
        while not line.endswith(b"\n"):
            if not select.select([handle], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError
            read = os.read(handle, 65_536)
            if not read:
                raise EOFError
            line += read
        return line

    def _end(self) -> str:
        """How the process ended, and the last that it said."""
        assert self._process is not None
        assert self._said is not None
        try:
            code = self._process.wait(5)
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            how = "no answer"
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip().splitlines()
        self.close()
        return "\n".join([how, *said[-fuzz_worker.TRACE_LINES :]])


def worker_command(model: str, decoder: str, memory_mb: float) -> list[str]:
    """A RuntimeWarning (NaN, overflow) in what the product computes is a failure, too."""
    python = [sys.executable, "-W", "error::RuntimeWarning"]
    return [*python, "-m", "benchmarks.fuzz.worker", model, decoder, str(memory_mb)]


def fuzz(
    seeds: Sequence[Seed],
    *,
    count: int,
    seed: int,
    jobs: int,
    limit_s: float,
    command: Sequence[str],
    keep: Path | None = None,
    minutes: float | None = None,
) -> list[Result]:
    """Judge mutants 0 to ``count`` - 1, or as many of them as fit into ``minutes``; by number."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    with ExitStack() as stack:
        folder = stack.enter_context(leftovers.folder("msct-fuzz-"))
        workers: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for _ in range(jobs):
            worker = Worker(command, limit_s)
            stack.callback(worker.close)
            workers.put(worker)

        def judge(number: int) -> Result:
            worker = workers.get()
            try:
                return judge_one(worker, seeds, seed, number, folder, keep)
            finally:
                workers.put(worker)

        pool = stack.enter_context(ThreadPoolExecutor(jobs))
        stack.callback(pool.shutdown, cancel_futures=True)
        results = []
        end_s = math.inf if minutes is None else time.monotonic() + 60 * minutes
        judged = waits.polled(pool.map(judge, range(count)))
        for result in track(judged, "judging mutants", total=count, console=console):
            results.append(result)
            if result.failed:
                print_line(console, f"{result.outcome}: mutant {result.number}, {result.damage}")
            if time.monotonic() > end_s:
                break
    return results


def judge_one(
    worker: Worker,
    seeds: Sequence[Seed],
    seed: int,
    number: int,
    folder: Path,
    keep: Path | None = None,
) -> Result:
    made, path = _write(seeds, seed, number, folder)
    try:
        found = worker.judge(path)
    finally:
        path.unlink()
    result = Result(number, made.base, made.description, **found)
    if keep is not None and result.failed:
        _write(seeds, seed, number, keep)
    return result


def _write(seeds: Sequence[Seed], seed: int, number: int, folder: Path) -> tuple[Mutant, Path]:
    made = mutant(seeds, seed, number)
    path = folder / f"mutant-{seed}-{number:06}{made.suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(made.data)
    return made, path


def only(seeds: Sequence[Seed], options: argparse.Namespace) -> int:
    """One mutant in this process, for a debugger: a crash or a traceback is let through."""
    with leftovers.folder("msct-fuzz-") as temporary:
        folder = options.keep or Path(temporary)
        made, path = _write(seeds, options.seed, options.only, folder)
        print(f"mutant {options.only} of seed {options.seed}: {made.description}")
        outcome, detail, media_s = fuzz_worker.product(options.model, options.decoder)(path)
    print(f"{outcome}: {detail}, {media_s:.1f} s")
    return EXIT_OK


def summarise(results: Sequence[Result]) -> dict[str, Any]:
    """JSON-ready: counts, the extremes with their numbers, and every failure."""
    by_base: dict[str, Counter[str]] = {}
    for result in results:
        by_base.setdefault(result.base, Counter())[result.outcome] += 1
    counts = Counter(result.outcome for result in results)
    errors = Counter(_without_name(r.detail) for r in results if r.outcome == ERROR)
    return {
        "counts": {outcome: counts[outcome] for outcome in OUTCOMES},
        "by_clip": {name: dict(counted) for name, counted in sorted(by_base.items())},
        "errors": dict(errors.most_common(SHOWN_ERRORS)),
        **{name: _spread(results, name) for name in UNITS},
        "failures": [asdict(result) for result in results if result.failed],
    }


def _spread(results: Sequence[Result], name: str) -> dict[str, float | int] | None:
    found = [(getattr(r, name), r.number) for r in results if getattr(r, name) is not None]
    if not found:
        return None
    median, p99 = np.percentile([value for value, _ in found], (50, 99)).tolist()
    return {"median": median, "p99": p99, "max": max(found)[0], "max_of": max(found)[1]}


def _without_name(message: str) -> str:
    """Errors are counted by what they say, not by the file they say it of."""
    return re.sub(r"\d+", "N", re.sub(r"\S*mutant-\d+-\d+\.\w+", "FILE", message))


def report(result: dict[str, Any]) -> str:
    """The table for people."""
    counts, machine, settings = result["counts"], result["machine"], result["settings"]
    total = sum(counts.values())
    lines = [
        f"{total} mutants of {len(settings['clips'])} clips, seed {settings['seed']}, "
        f"{machine['cores']} cores ({machine['processor']})"
    ]
    for outcome, n in counts.items():
        goal = "    to reach: none" if outcome in FAILURES else ""
        lines.append(f"    {outcome:<12}{n:>8}{n / total:>9.2%}{goal}")
    for name, unit in UNITS.items():
        if (spread := result[name]) is not None:
            lines.append(
                f"    {unit:<12}median {spread['median']:.2f}, 99 % {spread['p99']:.2f}, "
                f"max {spread['max']:.2f} (mutant {spread['max_of']})"
            )
    lines += [f"{n:>8}  {text}" for text, n in result["errors"].items()]
    lines += [f"{f['outcome']}: mutant {f['number']}, {f['damage']}" for f in result["failures"]]
    return "\n".join(lines)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def parser() -> argparse.ArgumentParser:
    options = Parser(
        prog="python -m benchmarks.fuzz", description="Mutated clips through the whole product."
    )
    options.add_argument("--clips", nargs="+", required=True, metavar="FOLDER|FILE")
    options.add_argument("--count", type=positive_int, default=5000, metavar="N")
    options.add_argument("--seed", type=_number, default=0)
    options.add_argument("--minutes", type=_positive, metavar="M", help="then no more are begun")
    options.add_argument("--limit-s", type=_positive, default=20.0, help="for one mutant")
    options.add_argument(
        "--memory-mb", type=_positive, default=2000.0, help="that a worker may have resident"
    )
    options.add_argument("--jobs", type=positive_int, default=usable_cores(), help="workers")
    options.add_argument("--model", default=DEFAULT_PRESET, help="a preset, or a pair's folder")
    options.add_argument(
        "--decoder", choices=DECODERS, default=INLINE,
        help="as of runtime.stream; inline (default) shows what the decoders do to a process",
    )  # fmt: skip
    options.add_argument("--only", type=_number, metavar="NUMBER", help="judge this one again")
    options.add_argument("--keep", type=Path, metavar="DIR", help="store the failing files")
    options.add_argument("--output", type=Path, metavar="FILE.json")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of :mod:`runtime.errors`."""
    options = parser().parse_args(argv)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if not Path("/proc/self/clear_refs").exists():
        raise UsageError("benchmarks.fuzz reads memory from /proc, which this system has not")
    clips = [Path(clip) for clip in expand_sources(options.clips)]
    kept = [clip for clip in clips if options.keep and clip.name.startswith("mutant-")]
    refuse_overwrites(
        [
            options.output and ("--output", options.output),
            *(("--keep", options.keep / clip.name) for clip in kept),
        ],
        clips,
        options=vars(options),
    )
    with leftovers.folder("msct-fuzz-") as folder:
        print("making the clips ...", file=sys.stderr)
        seeds = make_seeds(clips, Path(folder))
    if options.only is not None:
        return only(seeds, options)
    start = time.monotonic()
    results = fuzz(
        seeds, count=options.count, seed=options.seed, jobs=options.jobs,
        limit_s=options.limit_s, keep=options.keep, minutes=options.minutes,
        command=worker_command(options.model, options.decoder, options.memory_mb),
    )  # fmt: skip
    result = {
        "benchmark": "fuzz",
        "schema_version": 1,
        **describe(),
        "settings": {
            "clips": {s.name: hashlib.sha256(s.data).hexdigest()[:16] for s in seeds},
            **{name: getattr(options, name) for name in SETTINGS},
        },
        "wall_s": round(time.monotonic() - start, 1),
        **summarise(results),
    }
    print(report(result))
    if options.output is not None:
        write_json(options.output, result)
        print(f"written: {options.output}", file=sys.stderr)
    return EXIT_ERROR if result["failures"] else EXIT_OK


if __name__ == "__main__":
    leave(main)
