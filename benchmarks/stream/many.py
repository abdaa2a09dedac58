# SPDX-License-Identifier: Apache-2.0
"""How many live streams one process holds: the part of ``benchmarks.stream --streams``.

Each stream is a copy of the clip behind :class:`benchmarks.stream.paced.PacedSource`: decoded by
a thread of its own, paced by the clock, looped, started at another moment of the hop than its
neighbours, as cameras are.  A trial holds when at most :data:`MAX_LOSS` of the pictures and of the
windows were dropped or left out and the 99th percentile from the capture of the last evidence to
the verdict is within the bound.  The first :data:`WARM_UP_S` are not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import peak_memory_mb
from benchmarks.stream.paced import PacedSource
from runtime import waits
from runtime.errors import UserError
from runtime.judging.verdict import Verdict

MAX_LOSS = 0.01
BOUND_MS = 150.0  # on 2 cores, see the README
WARM_UP_S = 4.0  # of each stream
MAX_STREAMS = 256

Trial = dict[str, Any]


class TrialError(UserError):
    """A trial that did not run to its end; it has said why."""


class CaptureToVerdict:
    """A sink that keeps how late each verdict came after the warm-up, and shows the time."""

    def __init__(self, progress: Callable[[float], None] | None = None) -> None:
        self.latencies_ms: list[float] = []
        self._progress = progress

    def write(self, verdict: Verdict) -> None:
        if self._progress is not None:
            self._progress(verdict.t_end_s)
        if verdict.t_end_s > WARM_UP_S:
            self.latencies_ms.append(verdict.latency_ms)


def measure(
    clip: Path, count: int, *, seconds: float, bound_ms: float, backend: Any, quiet: bool = False
) -> Trial:
    """Run ``count`` streams for ``seconds`` in this process; JSON-ready."""
    from runtime.flow.driver import Stream, run_many
    from runtime.media.file import FileSource

    shown = 0.0

    def progress(t_s: float) -> None:
        nonlocal shown
        if t_s >= shown + 5:
            shown = t_s
            print(f"  {count} streams: {t_s:.0f} of {seconds:g} s", file=sys.stderr, flush=True)

    rate_hz = backend.spec.audio.sample_rate_hz
    hop_s = backend.spec.stream.hop_tokens / backend.spec.audio.token_hz
    changes: list[str] = []
    sinks = [CaptureToVerdict(None if quiet or i else progress) for i in range(count)]
    with ExitStack() as stack:
        sources = [
            stack.enter_context(
                PacedSource(
                    lambda: FileSource(clip, sample_rate_hz=rate_hz),
                    name=f"{clip.name}:{i}", seconds=seconds, delay_s=i * hop_s / count,
                )
            )
            for i in range(count)
        ]  # fmt: skip
        cpu_start, start = time.process_time(), time.perf_counter()
        outcomes = run_many(
            [Stream(source, [sink]) for source, sink in zip(sources, sinks, strict=True)],
            backend,
            on_load=lambda change: changes.append(str(change)),
        )
        wall_s = time.perf_counter() - start
        cpu_s = time.process_time() - cpu_start
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    stats = [outcome.summary.stats for outcome in outcomes]
    latencies = np.concatenate([np.array(sink.latencies_ms) for sink in sinks])
    pictures = sum(s.tokens for s in stats)
    lost = sum(sum(o.summary.drops.values()) for o in outcomes)
    shed_pictures, shed_windows = (
        sum(s.shed_pictures for s in stats), sum(s.shed_windows for s in stats)
    )  # fmt: skip
    windows = sum(s.verdicts for s in stats) + shed_windows
    p99_ms = float(np.percentile(latencies, 99)) if len(latencies) else float("inf")
    picture_loss = (lost + shed_pictures) / max(1, pictures + lost)
    window_loss = shed_windows / max(1, windows)
    return {
        "streams": count,
        "holds": bool(picture_loss <= MAX_LOSS and window_loss <= MAX_LOSS and p99_ms <= bound_ms),
        "seconds": seconds,
        "wall_s": wall_s,
        "cpu_share": cpu_s / wall_s,  # 1 is one core
        "bound_ms": bound_ms,
        "capture_to_verdict_ms": {
            "p50": float(np.median(latencies)) if len(latencies) else None,
            "p99": p99_ms if len(latencies) else None,
            "max": float(latencies.max()) if len(latencies) else None,
        },
        "pictures": pictures,
        "dropped": lost,
        "shed_pictures": shed_pictures,
        "windows": windows,
        "shed_windows": shed_windows,
        "picture_loss": picture_loss,
        "window_loss": window_loss,
        "load_changes": changes,
        "verdicts": sum(s.verdicts for s in stats),
        # of the thread that judges, for a second; decoding runs in the feeds' threads
        "stage_share": {
            stage: sum(s.seconds[stage] for s in stats) / wall_s for stage in stats[0].seconds
        },
        "peak_memory_mb": peak_memory_mb(),
        "model_id": backend.spec.model_id,
        "provider": backend.provider,
    }


def run_trial(command: Sequence[str], count: int) -> Trial:
    """One trial in a fresh process, which prints its progress; raises :class:`TrialError`."""
    done = waits.run_program(
        [*command, "--streams", str(count)], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise TrialError(f"the trial with {count} streams ended with exit code {done.returncode}")
    trial: Trial = json.loads(done.stdout.splitlines()[-1])
    print(line(trial), file=sys.stderr, flush=True)
    return trial


def find(trial: Callable[[int], Trial]) -> list[Trial]:
    """Trials until the most streams that hold are known: doubled until too many, then halved in."""
    trials = [trial(1)]
    good, bad = (1, MAX_STREAMS + 1) if trials[0]["holds"] else (0, 1)
    while bad - good > 1:
        count = min(2 * good, MAX_STREAMS) if bad > MAX_STREAMS else (good + bad) // 2
        trials.append(trial(count))
        good, bad = (count, bad) if trials[-1]["holds"] else (good, count)
    return trials


def most(trials: Sequence[Trial]) -> int:
    """The most streams that held; 0 for none."""
    return max((t["streams"] for t in trials if t["holds"]), default=0)


def line(trial: Trial) -> str:
    """One trial for people."""
    latency = trial["capture_to_verdict_ms"]
    p99 = "no verdict" if latency["p99"] is None else f"p99 {latency['p99']:.0f} ms"
    return (
        f"{trial['streams']:>4} streams: {'hold' if trial['holds'] else 'too many'}, {p99}, "
        f"pictures lost {trial['picture_loss']:.1%}, windows left out {trial['window_loss']:.1%}, "
        f"{trial['cpu_share']:.2f} cores, {trial['peak_memory_mb']:.0f} MB"
    )
