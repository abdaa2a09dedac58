# SPDX-License-Identifier: Apache-2.0
"""Latency of the two graphs alone, call by call, as trtexec measures an engine.

Through the Backend interface, so from NumPy arrays to NumPy arrays: what the stream waits for, with
the copies to a device and back where there is one.  Calls follow each other without a pause, which
is kinder to caches and clocks than a live stream is: capture to verdict is measured apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.environment import peak_memory_mb
from benchmarks.latency.distribution import distribution
from runtime.backends import Backend
from runtime.backends.base import PhasedBackend, Phases

WARMUP_MS = 200.0  # trtexec's
MIN_CALLS = 10  # trtexec's
PHASED_CALLS = 200  # with upload, compute and download apart, after all the others


@dataclass(frozen=True)
class Case:
    """One graph at one batch."""

    graph: str  # frame_encoder or fusion
    batch: int  # windows a call; of the encoder: hops, of ``frames`` each
    shape: dict[str, int]  # N, or B and T
    call: Callable[[], Any]
    phases: Callable[[], Phases] | None  # None: the backend cannot tell them

    @property
    def name(self) -> str:
        return f"{self.graph} " + " ".join(f"{k}={v}" for k, v in self.shape.items())


def cases(backend: Backend, batches: Sequence[int]) -> list[Case]:
    """Encoder at a hop's frames and fusion at one window, for 1 and for several at a time.

    The pictures and tokens are noise: dense arithmetic takes as long on noise as on faces.
    """
    spec, rng = backend.spec, np.random.default_rng(0)
    side, hop, tokens = spec.face.crop_px, spec.stream.hop_tokens, spec.stream.window_tokens
    phased = backend if isinstance(backend, PhasedBackend) else None
    found = []
    for batch in batches:
        frames = rng.integers(0, 256, (batch * hop, side, side, 3), dtype=np.uint8)  # [N, H, W, 3]
        encode = partial(backend.encode, frames)
        phases = partial(phased.encode_phases, frames) if phased else None
        found.append(Case("frame_encoder", batch, {"N": len(frames)}, encode, phases))
    for batch in batches:
        visual = rng.standard_normal((batch, tokens, spec.model.channels)).astype(np.float32)
        audio = rng.standard_normal((batch, tokens, spec.audio.token_dim)).astype(np.float32)
        fuse = partial(backend.fuse, visual, audio)
        phases = partial(phased.fuse_phases, visual, audio) if phased else None
        found.append(Case("fusion", batch, {"B": batch, "T": tokens}, fuse, phases))
    return found


def time_calls(
    call: Callable[[], Any], *, warmup_ms: float, duration_s: float, iterations: int
) -> list[float]:
    """Milliseconds of every call after the warm-up, for that long and at least that many."""
    until = time.perf_counter() + warmup_ms / 1000
    while True:
        call()
        if time.perf_counter() >= until:
            break
    times_ms: list[float] = []
    start = time.perf_counter()
    while True:
        before = time.perf_counter()
        call()
        after = time.perf_counter()
        times_ms.append((after - before) * 1000)
        if after - start >= duration_s and len(times_ms) >= iterations:
            return times_ms


def measure(
    backend: Backend,
    *,
    batches: Sequence[int],
    warmup_ms: float,
    duration_s: float,
    iterations: int,
    percentiles: Sequence[float],
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """JSON-ready figures of all cases, which share the duration; and all samples, by case."""
    todo = cases(backend, batches)
    figures, samples = [], {}
    for case in todo:
        times_ms = time_calls(
            case.call,
            warmup_ms=warmup_ms,
            duration_s=duration_s / len(todo),
            iterations=iterations,
        )
        samples[case.name] = times_ms
        figures.append(
            {
                "name": case.name,
                "graph": case.graph,
                "batch": case.batch,
                "shape": case.shape,
                "calls_per_s": 1000 / float(np.mean(times_ms)),
                "latency": distribution(times_ms, percentiles),
                "transfers": None if case.phases is None else _transfers(case.phases, percentiles),
            }
        )
    return {
        "cases": figures,
        "peak_memory_mb": peak_memory_mb(),
        "transfers_reason": why_no_transfers(backend),
    }, samples


def _transfers(phases: Callable[[], Phases], percentiles: Sequence[float]) -> dict[str, Any]:
    """Upload (H2D), compute and download (D2H) by the device's clock, of calls of their own."""
    for _ in range(MIN_CALLS):
        phases()
    calls = [phases() for _ in range(PHASED_CALLS)]
    return {
        name.removesuffix("_ms"): distribution([getattr(c, name) for c in calls], percentiles)
        for name in Phases._fields
    }


def why_no_transfers(backend: Backend) -> str | None:
    """None where the backend tells upload, compute and download apart."""
    if isinstance(backend, PhasedBackend):
        return None
    if "CPU" in backend.provider:
        return "the model runs on the CPU: nothing is copied to a device"
    return f"{backend.provider} makes upload, compute and download in one call"
