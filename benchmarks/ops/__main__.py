# SPDX-License-Identifier: Apache-2.0
"""The two ops: our CUDA kernels against the best without them; on the CPU what there is instead.

    python -m benchmarks.ops [--quick] [--device auto|cpu|cuda] [--output FILE.json]

On a GPU each op runs as it would in an engine: captured into a CUDA graph, its inputs just written
and so in the cache.  A sample is one replay of a graph of CALLS_PER_GRAPH calls, between two
events.  On the CPU, where no kernel of ours is but the C++ reference, a sample is a loop of about
SAMPLE_S on one thread, and times are compared with those of plain torch.

The variants of a case (``benchmarks.ops.variants`` says which) take turns, so that a change of the
clock meets them all.  Each result is checked against float64 first; what is wrong or cannot run is
left out with the reason.  torch.compile and TensorRT take seconds a case: ``some`` is the cases of
51 tokens in the first type (float16; on the CPU float32).

A case's floor is what its bytes, each moved once from or to memory, or its operations take at the
rates measured here on a large copy and a large matrix product.  Inputs that are in a cache can beat
the first of these.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import contextlib
import functools
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.environment import describe, processor
from benchmarks.ops import variants as op_variants
from benchmarks.ops.cases import (
    ATTENTION,
    CPU,
    CUDA,
    DTYPES,
    KEY_CONV,
    TOLERANCE,
    Case,
    cases,
    floor_us,
    wanted,
)
from benchmarks.ops.variants import CPU_THREADS, EAGER, OURS, Maker
from runtime.backends import native
from runtime.command import Parser, guarded
from runtime.errors import DependencyError, UserError
from runtime.files import write_json
from runtime.interrupt import check, leave
from runtime.optional import optional

BASELINE = {CUDA: OURS, CPU: EAGER}
ROUNDS = {CUDA: 60, CPU: 20}
CALLS_PER_GRAPH = 20
SAMPLE_S = 2e-3
RESAMPLES = 2000  # of the bootstrap


# Statistics ---------------------------------------------------------------------------------------


def spread(samples_us: Sequence[float]) -> dict[str, float]:
    """Median and the middle 90 per cent."""
    low, middle, high = np.percentile(samples_us, [5, 50, 95])
    return {"median_us": float(middle), "p05_us": float(low), "p95_us": float(high)}


def relative(
    times_us: Sequence[float],
    baseline_us: Sequence[float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, float]:
    """How many times as long as the baseline: ratio of medians, its 95 per cent bootstrap interval.

    Rounds are drawn whole, since the samples of one round share the clock.
    """
    times, baseline = np.asarray(times_us), np.asarray(baseline_us)
    if times.shape != baseline.shape or times.ndim != 1 or not len(times):
        raise ValueError(f"the samples are not of the same rounds: {times.shape}, {baseline.shape}")
    drawn = np.random.default_rng(seed).integers(len(times), size=(resamples, len(times)))
    ratios = np.median(times[drawn], axis=1) / np.median(baseline[drawn], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    ratio = np.median(times) / np.median(baseline)
    return {"ratio": float(ratio), "low": float(low), "high": float(high)}


# Measurement --------------------------------------------------------------------------------------


class Sampler(Protocol):
    """Something that was made ready and can be timed again and again."""

    def sample_us(self) -> float:
        """Microseconds of one call."""


Prepare = Callable[[Callable[[], Any]], Sampler]


class GraphSampler:
    """A function's launches, captured into one CUDA graph of :data:`CALLS_PER_GRAPH` calls."""

    def __init__(self, function: Callable[[], Any]) -> None:
        import torch

        self._function = function  # the graph has the addresses of its tensors
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # loads modules, chooses algorithms, fills workspaces
            for _ in range(3):
                function()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for _ in range(CALLS_PER_GRAPH):
                function()
        self._start = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)
        for _ in range(3):
            self._graph.replay()
        torch.cuda.synchronize()

    def sample_us(self) -> float:
        self._start.record()
        self._graph.replay()
        self._end.record()
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) * 1e3 / CALLS_PER_GRAPH


class LoopSampler:
    """A function called in a loop of about :data:`SAMPLE_S`."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function, self._calls = function, 1
        self.sample_us()  # warms up
        self._calls = max(1, math.ceil(SAMPLE_S * 1e6 / self.sample_us()))

    def sample_us(self) -> float:
        start = time.perf_counter()
        for _ in range(self._calls):
            self._function()
        return (time.perf_counter() - start) * 1e6 / self._calls


SAMPLERS: dict[str, Prepare] = {CUDA: GraphSampler, CPU: LoopSampler}


def measure(
    case: Case,
    makers: Mapping[str, Maker],
    error: Callable[[Any], float],
    prepare: Prepare,
    baseline: str,
    rounds: int,
) -> dict[str, Any]:
    """One row of the report.

    Parameters
    ----------
    makers : variant -> what makes the function that computes the op
    error : of a variant's result, as a share of the largest value
    baseline : the variant that the others are compared with

    A variant that cannot run or is wrong is left out with the reason; for the baseline that is an
    error.
    """
    samplers: dict[str, Sampler] = {}
    report: dict[str, dict[str, Any]] = {}
    for name, make in makers.items():
        try:
            function = make()
            found = error(function())
            if not found <= TOLERANCE[case.dtype]:
                raise UserError(f"wrong: error {found:.2g} of the largest value")
            samplers[name] = prepare(function)
        except Exception as err:  # torch's own errors have many types
            if name == baseline:
                raise UserError(f"{case}: {baseline} failed: {_first_line(err)}") from err
            report[name] = {"left_out": _first_line(err)}
            continue
        report[name] = {"error": found}
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    for _ in range(rounds):
        check()
        for name, sampler in samplers.items():
            samples[name].append(sampler.sample_us())
    for name, times in samples.items():
        report[name] |= spread(times)
        if name != baseline:
            report[name]["times_baseline"] = relative(times, samples[baseline])
    others = [name for name in samples if name != baseline]
    best = min(others, key=lambda name: report[name]["median_us"], default=None)
    work = {"flops": case.flops, "bytes": case.bytes}
    return {**asdict(case), **work, "baseline": baseline, "best_other": best, "variants": report}


def _first_line(err: BaseException) -> str:
    return next(iter(str(err).splitlines()), "") or type(err).__name__


def peaks(device: str) -> dict[str, float]:
    """Rates here: bytes a second of a large copy, operations a second of a large product."""
    import torch

    def best_s(function: Callable[[], Any]) -> float:
        sampler = SAMPLERS[device](function)
        return min(sampler.sample_us() for _ in range(15)) / 1e6

    source = torch.empty(256 * 2**20, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    found = {"bytes_per_s": 2 * source.nbytes / best_s(lambda: target.copy_(source))}
    n = 4096 if device == CUDA else 1024
    for name in DTYPES[device]:
        a, b = (torch.randn(n, n, device=device).to(getattr(torch, name)) for _ in range(2))
        found[f"{name}_flops_per_s"] = 2 * n**3 / best_s(functools.partial(torch.matmul, a, b))
    return found


# Report -------------------------------------------------------------------------------------------


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a case: microseconds a call, and the best other variant beside the baseline."""
    baseline = rows[0]["baseline"]
    names = [name for row in rows for name in row["variants"] if name != baseline]
    columns = list(dict.fromkeys(names))
    head = f"{'op':<11}{'type':<9}{'B':>3}{'h':>3}{'T':>5}{'D':>4}{'floor':>10}{baseline:>10}"
    head += "".join(f"{name:>16}" for name in columns)
    lines = [f"{head}   the best other, in times of {baseline}"]
    for row in rows:
        variants = row["variants"]
        cells = "".join(_cell(variants.get(name)) for name in columns)
        line = f"{_short(row['op']):<11}{row['dtype']:<9}{row['batch']:>3}{row['heads']:>3}"
        line += f"{row['tokens']:>5}{row['dim']:>4}{row['floor_us']:>10.2f}"
        line += f"{variants[baseline]['median_us']:>10.2f}{cells}"
        if (best := row["best_other"]) is not None:
            times = variants[best]["times_baseline"]
            line += f"   {best} {times['ratio']:.2f}x [{times['low']:.2f}, {times['high']:.2f}]"
        lines.append(line)
    return "\n".join(lines)


def left_out(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each variant and reason."""
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        for name, variant in row["variants"].items():
            if "left_out" in variant:
                key = name, variant["left_out"]
                counts[key] = counts.get(key, 0) + 1
    return [f"left out in {n} cases: {name}: {why}" for (name, why), n in counts.items()]


def _cell(variant: Mapping[str, Any] | None) -> str:
    measured = variant is not None and "median_us" in variant
    return f"{variant['median_us']:>16.2f}" if measured and variant else f"{'-':>16}"


def _short(op: str) -> str:
    return {ATTENTION: "attention", KEY_CONV: "key conv"}[op]


# Device -------------------------------------------------------------------------------------------


def choose(asked: str) -> tuple[str, str]:
    """The device, "cuda" or "cpu", and why; raises :class:`DependencyError` for what is missing."""
    with optional("to time the ops"):
        import torch
    if asked == CPU:
        return CPU, "asked for"
    if not torch.cuda.is_available():
        reason = "no NVIDIA GPU is seen" if torch.version.cuda else "this torch is built for CPUs"
        if asked == CUDA:
            raise DependencyError(
                f"{reason}: --device cuda needs a GPU and torch for CUDA; --device cpu does without"
            )
        return CPU, reason
    if not native.capabilities().cuda_architectures:
        raise DependencyError(
            "our CUDA kernels are not compiled in: pip install . -C cmake.define.MSCT_CUDA=ON, or "
            "give --device cpu"
        )
    return CUDA, "a GPU is here"


def facts(device: str) -> dict[str, Any]:
    """What the cases run on, JSON-ready."""
    import torch

    found = native.capabilities()
    if device == CPU:
        return {
            "kind": CPU,
            "name": processor(),
            "threads": CPU_THREADS,
            "torch_instructions": torch.backends.cpu.get_cpu_capability(),
            "reference_compiler": found.compiler,
        }
    major, minor = torch.cuda.get_device_capability()
    return {
        "kind": CUDA,
        "name": torch.cuda.get_device_name(),
        "compute_capability": f"{major}.{minor}",
        "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count,
        "torch_cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "kernels_compiled_for": list(found.cuda_architectures),
    }


@contextlib.contextmanager
def alike(device: str) -> Iterator[None]:
    """The same terms for all: no gradients; true float32 on a GPU; one thread on the CPU."""
    import torch

    threads = torch.get_num_threads()
    if device == CUDA:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some versions announce a newer way to say it
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    else:
        torch.set_num_threads(CPU_THREADS)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)


# Command ------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    options = Parser(
        prog="python -m benchmarks.ops",
        description="Our CUDA kernels against torch and TensorRT on a GPU; torch, ONNX Runtime "
        "and the C++ reference on a CPU.",
    )
    options.add_argument("--device", choices=("auto", CPU, CUDA), default="auto")
    options.add_argument("--quick", action="store_true", help="two cases only")
    choices = ("none", "some", "all")
    options.add_argument("--compile", choices=choices, default="some", help="torch.compile")
    options.add_argument("--tensorrt", choices=choices, default="some", help="on a GPU alone")
    options.add_argument(
        "--rounds", type=_rounds, help=f"default: {ROUNDS[CUDA]}, on the CPU {ROUNDS[CPU]}"
    )
    options.add_argument("--output", type=Path, metavar="FILE.json")
    return options


def _rounds(text: str) -> int:
    if not text.isdecimal() or not 2 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rounds from 2 to 10000")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of :mod:`runtime.errors`."""
    options = parser().parse_args(argv)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    device, reason = choose(options.device)
    rounds = options.rounds or ROUNDS[device]
    if device == CPU:
        print(f"CPU rows only ({reason}): float32, {CPU_THREADS} thread", file=sys.stderr)
    start = time.perf_counter()
    with alike(device):
        rates = peaks(device)
        rows = [_row(case, device, rates, rounds, options) for case in _counted(options, device)]
    here = facts(device)
    result = {
        "benchmark": "ops",
        "schema_version": 1,
        **describe(),
        "device": here,
        "measured_rates": rates,
        "settings": {
            "rounds": rounds,
            "compile": options.compile,
            **(
                {"sample_s": SAMPLE_S}
                if device == CPU
                else {
                    "calls_per_graph": CALLS_PER_GRAPH,
                    "tf32": False,
                    "tensorrt": options.tensorrt,
                }
            ),
        },
        "seconds": round(time.perf_counter() - start, 1),
        "rows": rows,
    }
    how = "CUDA graphs" if device == CUDA else f"{CPU_THREADS} thread"
    print(f"{here['name']}, {how}, microseconds a call (medians of {rounds} rounds)")
    print("\n".join([table(rows), *left_out(rows)]))
    if options.output is not None:
        write_json(options.output, result)
        print(f"written: {options.output}", file=sys.stderr)
    return 0


def _counted(options: argparse.Namespace, device: str) -> Iterator[Case]:
    chosen = cases(device, options.quick)
    for i, case in enumerate(chosen):
        yield case
        print(f"\r{i + 1} of {len(chosen)} cases", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def _row(
    case: Case, device: str, rates: Mapping[str, float], rounds: int, options: argparse.Namespace
) -> dict[str, Any]:
    built = op_variants.build(
        case,
        device,
        compiled=wanted(case, device, options.compile),
        tensorrt=wanted(case, device, options.tensorrt),
    )
    row = measure(case, built.makers, built.error, SAMPLERS[device], BASELINE[device], rounds)
    return {**row, "floor_us": floor_us(case, rates)}


if __name__ == "__main__":
    leave(main)
