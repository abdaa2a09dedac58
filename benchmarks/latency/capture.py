# SPDX-License-Identifier: Apache-2.0
"""From the capture of the last evidence to the verdict, stage by stage, of one live stream.

The clip is given out as a camera would (:class:`benchmarks.stream.paced.PacedSource`): in real
time, each chunk stamped with its capture, from a thread of its own, through
:func:`runtime.flow.driver.run` as ``runtime.stream`` does it, verdicts written as JSON Lines.
For every window:

    block      of sound, the wait until the block is full whose first sample was captured
    queue      from then until its turn: the threads' waking, other chunks being worked on
    decode     picture from the decoder's colours to RGB (the decoder itself runs ahead, in the
               source's thread, and is told apart as ``decoder_ms_per_picture``)
    faces      finding, following, aligning
    audio      sound to tokens
    encoder    the hop's crops through the frame encoder
    fusion     the window through the fusion graph
    decision   calibration, smoothing, hysteresis, abstention
    other      between the stages
    publish    from the verdict to the end of its line of JSON

The evidence wait is apart: a window has to be full before anything can be said of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import peak_memory_mb
from benchmarks.latency.distribution import distribution
from benchmarks.stream.paced import PacedSource
from runtime.backends import Backend
from runtime.errors import UserError
from runtime.flow.summary import WindowTimes
from runtime.judging.verdict import Label, Verdict

STAGES = (
    "block", "queue", "decode", "faces", "audio", "encoder", "fusion", "decision", "other",
    "publish",
)  # fmt: skip
_OF_STATS = {
    "decode": "decode",
    "faces": "face",
    "audio": "audio",
    "encoder": "encode",
    "fusion": "fuse",
    "decision": "decide",
}
SLOWEST = 0.05  # the share of the windows whose mean says what makes the tail


class NoVerdictError(UserError):
    """The run was too short, or the clip has nothing to judge."""


@dataclass
class WindowLog:
    """A sink, and the session's ``on_judged``: what each window took, publishing included.

    ``out`` is where the lines of JSON go.
    """

    out: Any
    times: dict[float, WindowTimes] = field(default_factory=dict)  # by end of the window
    published_s: dict[float, float] = field(default_factory=dict)
    first_s: float | None = None  # by time.time, of the first verdict
    first_judged_t_s: float | None = None  # stream seconds, of the first that is no abstention

    def judged(self, times: WindowTimes) -> None:
        self.times[times.t_end_s] = times

    def write(self, verdict: Verdict) -> None:
        self.out.write(verdict.to_json() + "\n")
        self.out.flush()
        self.published_s[verdict.t_end_s] = time.perf_counter()
        if self.first_s is None:
            self.first_s = time.time()
        if self.first_judged_t_s is None and verdict.label is not Label.ABSTAIN:
            self.first_judged_t_s = verdict.t_end_s

    def stages_ms(self) -> dict[str, list[float]]:
        """Stage -> milliseconds of every window that a chunk completed; ``total`` is their sum."""
        columns: dict[str, list[float]] = {name: [] for name in (*STAGES, "total")}
        for t_end_s, window in self.times.items():
            if window.waited_s is None or t_end_s not in self.published_s:
                continue
            row = {name: window.seconds[key] for name, key in _OF_STATS.items()}
            row["other"] = max(0.0, window.worked_s - sum(row.values()))
            row["block"] = min(window.block_s, window.waited_s)
            row["queue"] = window.waited_s - row["block"]
            row["publish"] = self.published_s[t_end_s] - window.judged_s
            row["total"] = sum(row.values())
            for name, seconds in row.items():
                columns[name].append(seconds * 1000)
        return columns


def measure(
    backend: Backend,
    clip: Path,
    *,
    duration_s: float,
    percentiles: Sequence[float],
    load_s: float,
    spawned_s: float,
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """JSON-ready figures, and the milliseconds of every window by stage.

    ``load_s`` is what loading the model took; ``spawned_s`` (by time.time) when the process began.
    """
    from runtime.flow.driver import run
    from runtime.media.file import FileSource

    spec, hz = backend.spec, backend.spec.audio.token_hz
    rate_hz = spec.audio.sample_rate_hz
    with Path(os.devnull).open("w", encoding="utf-8") as out:
        log = WindowLog(out)
        source = PacedSource(
            lambda: FileSource(clip, sample_rate_hz=rate_hz),
            name=clip.name,
            seconds=duration_s,
            sample_rate_hz=rate_hz,
        )
        cpu_s = time.process_time()
        began_s = time.time()
        with source:
            summary = run(source, backend, sinks=[log], on_judged=log.judged)
        cpu_s = time.process_time() - cpu_s
    columns = log.stages_ms()
    if not columns["total"] or log.first_s is None:
        raise NoVerdictError(
            f"no verdict in {duration_s:g} s; a window takes "
            f"{spec.stream.window_tokens / hz:g} s: give a longer --duration"
        )
    pictures = max(1, summary.stats.tokens - summary.stats.gaps)
    lag = summary.lag
    return {
        "evidence_wait": evidence_wait(backend),
        "beyond_evidence": distribution(columns["total"], percentiles),
        "stages": stage_figures(columns, percentiles),
        "first_verdict": {
            "from_capture_s": log.first_s - began_s,
            "from_process_start_s": log.first_s - spawned_s,
            "model_load_s": load_s,
            "first_judged_window_end_s": log.first_judged_t_s,
        },
        "windows": len(columns["total"]),
        "verdicts": summary.stats.verdicts,
        "coverage": summary.stats.coverage,
        "pictures": summary.stats.tokens,
        "drops": {
            "pictures_missing": summary.stats.gaps,
            "late": summary.stats.late,
            **{cause: n for cause, n in sorted(summary.drops.items()) if n},
        },
        "lag_slope_ms_per_min": None if lag is None else lag.slope_ms_per_min,
        "decoder_ms_per_picture": source.read_s * 1000 / pictures,
        "media_s": summary.media_s,
        "wall_s": summary.wall_s,
        "cpu_share": cpu_s / summary.wall_s,  # 1 is one core
        "peak_memory_mb": peak_memory_mb(),
    }, columns


def evidence_wait(backend: Backend) -> dict[str, float]:
    """What no machine can shorten: it belongs to the model, not to the device."""
    stream, audio, hz = backend.spec.stream, backend.spec.audio, backend.spec.audio.token_hz
    look_ahead = audio.token_span_samples - audio.token_samples
    return {
        "window_s": stream.window_tokens / hz,
        "hop_s": stream.hop_tokens / hz,
        "sound_look_ahead_ms": 1000 * look_ahead / audio.sample_rate_hz,
    }


def stage_figures(
    columns: dict[str, list[float]], percentiles: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Means, which add up to the mean of the whole, and of the slowest windows; percentiles."""
    total = np.array(columns["total"])
    slow = np.argsort(total)[-max(1, round(SLOWEST * total.size)) :]
    figures = {}
    for name in STAGES:
        values = np.array(columns[name])
        figures[name] = {
            "mean_ms": float(values.mean()),
            "mean_of_slowest_ms": float(values[slow].mean()),
            **{
                f"p{p:g}_ms": float(np.percentile(values, p))
                for p in sorted({50.0, *map(float, percentiles)})
            },
        }
    return figures
