# SPDX-License-Identifier: Apache-2.0
"""The process in which :mod:`benchmarks.fuzz` has its mutants judged, one after the other.

Reads a path a line from standard input; answers with one JSON object a line: ``outcome``,
``detail``, ``seconds``, ``memory_mb`` (the most that was resident), ``media_s``.  It may use
``memory_mb`` of address space beyond what it has when it is ready: what asks for more gets an
error, as it would on a small device.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.environment import ROOT, memory_field_mb
from runtime.errors import MediaError, UsageError
from runtime.judging.verdict import Verdict
from runtime.media.open import INLINE, ISOLATED, open_source

VERDICT, ABSTAINED, ERROR = "verdict", "abstained", "error"  # as it should be
TRACEBACK, MEMORY = "traceback", "memory"  # failures that a worker survives
READY = "ready"
TRACE_LINES = 12


class Judged(NamedTuple):
    """What the product made of a file."""

    outcome: str
    detail: str
    media_s: float  # stream seconds read


Judge = Callable[[Path], Judged]


class _Lines:
    """A sink that makes every line of JSON, as ``--jsonl`` would."""

    def write(self, verdict: Verdict) -> None:
        verdict.to_json()


def product(model: str, decoder: str = INLINE) -> Judge:
    """The path of ``runtime.stream --decoder``: the model is loaded once, the rest is new for each
    file."""
    from runtime.backends import load_backend
    from runtime.flow.driver import run

    backend = load_backend(model)

    def judge(path: Path) -> Judged:
        rate_hz = backend.spec.audio.sample_rate_hz
        isolated = decoder == ISOLATED
        with open_source(str(path), sample_rate_hz=rate_hz, isolated=isolated) as source:
            summary = run(source, backend, sinks=[_Lines()])
        labels = {label: n for label, n in summary.stats.labels.items() if n}
        outcome = VERDICT if set(labels) - {"abstain"} else ABSTAINED
        return Judged(outcome, f"{labels} {summary.stats.reasons}", summary.media_s)

    return judge


def answer(judge: Judge, path: Path, memory_mb: float) -> dict[str, Any]:
    """One file's outcome, whatever happens short of the death of the process."""
    _forget_peak()
    start = time.perf_counter()
    try:
        outcome, detail, media_s = judge(path)
    except (MediaError, UsageError) as err:  # one clear line is the right answer to damage
        outcome, detail, media_s = ERROR, str(err), 0.0
        if not detail or len(detail.splitlines()) > 1:
            outcome, detail = TRACEBACK, f"no single line: {detail!r}"
    except MemoryError as err:
        outcome, detail, media_s = MEMORY, f"an allocation failed: {err}", 0.0
    except Exception:
        tail = traceback.format_exc().strip().splitlines()[-TRACE_LINES:]
        outcome, detail, media_s = TRACEBACK, "\n".join(tail).replace(f"{ROOT}/", ""), 0.0
    seconds, peak_mb = time.perf_counter() - start, memory_field_mb("VmHWM")
    if peak_mb > memory_mb:
        outcome, detail = MEMORY, f"{peak_mb:.0f} MB resident ({outcome}: {detail})"
    return {
        "outcome": outcome,
        "detail": detail,
        "seconds": round(seconds, 4),
        "memory_mb": round(peak_mb, 1),
        "media_s": round(media_s, 3),
    }


def serve(judge: Judge, memory_mb: float) -> None:
    """Until standard input ends."""
    faulthandler.enable()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    limit = round((memory_field_mb("VmSize") + memory_mb) * 1e6)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(READY, file=answers, flush=True)
    for line in sys.stdin:
        result = answer(judge, Path(line.rstrip("\n")), memory_mb)
        print(json.dumps(result), file=answers, flush=True)


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM becomes VmRSS


def main() -> None:
    model, decoder, memory_mb = sys.argv[1:]
    serve(product(model, decoder), float(memory_mb))


if __name__ == "__main__":
    main()
