# SPDX-License-Identifier: Apache-2.0
"""Our CUDA kernels against the best that torch does without them, on a GPU.

    python -m benchmarks.ops [--quick] [--compile none|some|all] [--output FILE.json]

Each op runs as it would in an engine: captured into a CUDA graph, its inputs just written and so in
the cache.  A sample is one replay of a graph of CALLS_PER_GRAPH calls, between two events; the
variants of a case take turns, so that a change of the GPU's clock meets them all.  Compared are

- ours: one kernel, from runtime.native;
- sdpa-*: two fused attentions and one pointwise kernel, by torch's backends: what TensorRT makes of
  the op without a plugin has the same shape;
- eager: the plain torch of trainer.ops;
- compiled: the same through torch.compile (``some``: float16 at 51 tokens, since it takes seconds).

Each result is checked against float64 first.  A case's floor is what its bytes, each moved once, or
its operations take at the rates measured here on a large copy and a large matrix product.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from benchmarks.environment import describe
from runtime import native
from runtime.errors import DependencyError, UserError
from runtime.files import write_json
from runtime.stream import guarded

if TYPE_CHECKING:
    import torch

ATTENTION = "DifferentialCrossAttention"
KEY_CONV = "MultiScaleKeyConv"
KERNEL_SIZES = (1, 3, 5, 7)
DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
BATCHES = (1, 4, 16)
TOKENS = (26, 51, 101, 151)
MODELS = {"msct": (8, 64), "msct-tiny": (4, 32)}  # heads, channels a head
CALLS_PER_GRAPH = 20
ROUNDS = 60
RESAMPLES = 2000  # of the bootstrap
TOLERANCE = {"float16": 1e-2, "bfloat16": 6e-2, "float32": 1e-4}  # of the largest value
OURS = "ours"


@dataclass(frozen=True)
class Case:
    """One op at one size."""

    op: str
    dtype: str
    batch: int
    heads: int
    tokens: int
    dim: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.heads, self.tokens, self.dim

    @property
    def flops(self) -> int:
        """Multiplications and additions of the definition, without the softmax."""
        elements = math.prod(self.shape)
        if self.op == ATTENTION:
            return 8 * elements * self.tokens  # two products for the scores, two with the values
        group = self.heads // 4
        return sum(2 * elements // 4 * group * k * k for k in KERNEL_SIZES)

    @property
    def bytes(self) -> int:
        """Every input read once and the output written once."""
        size = DTYPE_BYTES[self.dtype]
        elements = math.prod(self.shape)
        if self.op == ATTENTION:
            return 5 * elements * size + 4 * self.heads
        group = self.heads // 4
        weights = sum(group * group * k * k + group for k in KERNEL_SIZES)
        return (2 * elements + weights) * size


def cases(quick: bool = False) -> list[Case]:
    if quick:
        return [Case(op, "float16", 1, *_at(51, "msct")) for op in (ATTENTION, KEY_CONV)]
    return [
        Case(op, dtype, batch, *_at(tokens, model))
        for op in (ATTENTION, KEY_CONV)
        for dtype in DTYPE_BYTES
        for model in MODELS
        for batch in BATCHES
        for tokens in TOKENS
    ]


def _at(tokens: int, model: str) -> tuple[int, int, int]:
    heads, dim = MODELS[model]
    return heads, tokens, dim


# Statistics ---------------------------------------------------------------------------------------


def spread(samples_us: Sequence[float]) -> dict[str, float]:
    """Median and the middle 90 per cent."""
    low, middle, high = np.percentile(samples_us, [5, 50, 95])
    return {"median_us": float(middle), "p05_us": float(low), "p95_us": float(high)}


def speedup(
    ours_us: Sequence[float],
    other_us: Sequence[float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, float]:
    """How many times faster ours is: the ratio of medians and its 95 per cent bootstrap interval.

    Rounds are drawn whole, since the samples of one round share the GPU's clock.
    """
    ours, other = np.asarray(ours_us), np.asarray(other_us)
    if ours.shape != other.shape or ours.ndim != 1 or not len(ours):
        raise ValueError(f"the samples are not of the same rounds: {ours.shape}, {other.shape}")
    drawn = np.random.default_rng(seed).integers(len(ours), size=(resamples, len(ours)))
    ratios = np.median(other[drawn], axis=1) / np.median(ours[drawn], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    ratio = np.median(other) / np.median(ours)
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

        self._torch = torch
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


def measure(
    case: Case,
    variants: dict[str, Callable[[], Any]],
    error: Callable[[Any], float],
    prepare: Prepare,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """One row of the report.

    Parameters
    ----------
    variants : name -> what computes the op; :data:`OURS` must be among them
    error : of a variant's result, as a share of the largest value; too large a one is an error
        for ours, and leaves out any other

    A variant that cannot run is left out with the reason.
    """
    samplers: dict[str, Sampler] = {}
    report: dict[str, dict[str, Any]] = {}
    for name, function in variants.items():
        try:
            found = error(function())
            if not found <= TOLERANCE[case.dtype]:
                raise UserError(f"wrong: error {found:.2g} of the largest value")
            samplers[name] = prepare(function)
        except Exception as err:  # torch's own errors have many types
            if name == OURS:
                raise UserError(f"{case}: our kernel failed: {_first_line(err)}") from err
            report[name] = {"left_out": _first_line(err)}
            continue
        report[name] = {"error": found}
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    for _ in range(rounds):
        for name, sampler in samplers.items():
            samples[name].append(sampler.sample_us())
    for name, times in samples.items():
        report[name] |= spread(times)
        if name != OURS:
            report[name]["speedup_of_ours"] = speedup(samples[OURS], times)
    others = [name for name in samples if name != OURS]
    best = min(others, key=lambda name: report[name]["median_us"], default=None)
    return {**asdict(case), "flops": case.flops, "bytes": case.bytes, "best_other": best} | {
        "variants": report
    }


def _first_line(err: BaseException) -> str:
    return next(iter(str(err).splitlines()), "") or type(err).__name__


def build(
    case: Case, compiled: bool
) -> tuple[dict[str, Callable[[], Any]], Callable[[Any], float]]:
    """The variants of a case over fresh random inputs on the GPU, and the error of a result."""
    import torch

    from trainer import ops

    dtype = getattr(torch, case.dtype)
    generator = torch.Generator("cuda").manual_seed(hash(case.shape) % 2**31)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda").to(dtype)

    out = torch.full(case.shape, torch.nan, dtype=dtype, device="cuda")
    variants: dict[str, Callable[[], Any]]
    if case.op == ATTENTION:
        q_self, q_cross, keys, values = (normal(*case.shape) for _ in range(4))
        lam = torch.rand(case.heads, generator=generator, device="cuda") + 0.5
        scale = case.dim**-0.5
        exact = ops.differential_cross_attention(
            q_self.double(),
            q_cross.double(),
            keys.double(),
            values.double(),
            lam.double(),
            scale=scale,
        )
        described = [native.DeviceTensor.of(x) for x in (q_self, q_cross, keys, values, lam, out)]
        arguments: tuple[Any, ...] = (*described, scale)

        def ours() -> torch.Tensor:
            native.differential_cross_attention_cuda(*arguments, stream=_stream())
            return out

        def eager() -> torch.Tensor:
            return ops.differential_cross_attention(q_self, q_cross, keys, values, lam, scale=scale)

        fused = _fused(q_self, q_cross, keys, values, lam, scale)
        variants = {OURS: ours, **fused, "eager": eager}
    else:
        group = case.heads // 4
        key = normal(*case.shape)
        weights = [normal(group, group, k, k) / k for k in KERNEL_SIZES]
        biases = [normal(group) for _ in KERNEL_SIZES]
        exact = ops.multi_scale_key_conv(
            key.double(), [w.double() for w in weights], [b.double() for b in biases]
        )
        key_in, out_in = native.DeviceTensor.of(key), native.DeviceTensor.of(out)
        weights_in = [native.DeviceTensor.of(w) for w in weights]
        biases_in = [native.DeviceTensor.of(b) for b in biases]

        def ours() -> torch.Tensor:
            native.multi_scale_key_conv_cuda(
                key_in, weights_in, biases_in, out_in, KERNEL_SIZES, 1, stream=_stream()
            )
            return out

        def eager() -> torch.Tensor:
            return ops.multi_scale_key_conv(key, weights, biases)

        variants = {OURS: ours, "eager": eager}
    if compiled:
        torch._dynamo.reset()
        variants["compiled"] = torch.compile(eager, fullgraph=True, dynamic=False)
    size = float(exact.abs().max())

    def error(result: torch.Tensor) -> float:
        return float((result.double() - exact).abs().max()) / size

    return variants, error


def _fused(
    q_self: torch.Tensor,
    q_cross: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lam: torch.Tensor,
    scale: float,
) -> dict[str, Callable[[], Any]]:
    """Two fused attentions and a subtraction, by each of torch's backends."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    minus_lam = -lam.to(q_self.dtype)[:, None, None]  # [h, 1, 1]
    backends = {
        "sdpa-flash": SDPBackend.FLASH_ATTENTION,
        "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
        "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    }

    def by(backend: SDPBackend) -> Callable[[], Any]:
        def run() -> torch.Tensor:
            with sdpa_kernel(backend), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # why a backend does not take the case
                own = scaled_dot_product_attention(q_self, key, value, scale=scale)
                cross = scaled_dot_product_attention(q_cross, key, value, scale=scale)
            return torch.addcmul(own, minus_lam, cross)

        return run

    return {name: by(backend) for name, backend in backends.items()}


def _stream() -> int:
    import torch

    return int(torch.cuda.current_stream().cuda_stream)


def peaks() -> dict[str, Any]:
    """Rates of this GPU: bytes a second of a large copy, operations a second of a large product."""
    import torch

    def best_s(function: Callable[[], Any], repeats: int = 5) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        times = []
        for _ in range(repeats + 1):  # the first one warms up
            start.record()
            function()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        return float(min(times[1:]))

    source = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    found: dict[str, Any] = {
        "bytes_per_s": 2 * source.nbytes / best_s(lambda: target.copy_(source))
    }
    n = 4096
    for name in DTYPE_BYTES:
        a, b = (torch.randn(n, n, device="cuda").to(getattr(torch, name)) for _ in range(2))
        found[f"{name}_flops_per_s"] = 2 * n**3 / best_s(functools.partial(torch.matmul, a, b))
    return found


def floor_us(case: Case, rates: dict[str, Any]) -> float:
    """No way of doing it takes less: the longer of its bytes and its operations."""
    seconds = case.bytes / rates["bytes_per_s"], case.flops / rates[f"{case.dtype}_flops_per_s"]
    return 1e6 * max(seconds)


# Report -------------------------------------------------------------------------------------------


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a case: microseconds a call, and how many times faster ours is than the best other."""
    names = [n for row in rows for n in row["variants"] if n != OURS]
    columns = list(dict.fromkeys(names))
    head = f"{'op':<11}{'type':<9}{'B':>3}{'h':>3}{'T':>5}{'D':>4}{'floor':>9}{'ours':>9}"
    lines = [head + "".join(f"{name:>16}" for name in columns) + "   ours is faster than the best"]
    for row in rows:
        variants = row["variants"]
        cells = "".join(_cell(variants.get(name)) for name in columns)
        line = f"{_short(row['op']):<11}{row['dtype']:<9}{row['batch']:>3}{row['heads']:>3}"
        line += f"{row['tokens']:>5}{row['dim']:>4}{row['floor_us']:>9.2f}"
        line += f"{variants[OURS]['median_us']:>9.2f}{cells}"
        if row["best_other"] is not None:
            gain = variants[row["best_other"]]["speedup_of_ours"]
            line += f"   {gain['ratio']:.2f}x [{gain['low']:.2f}, {gain['high']:.2f}]"
        lines.append(line)
    return "\n".join(lines)


def _cell(variant: dict[str, Any] | None) -> str:
    measured = variant is not None and "median_us" in variant
    return f"{variant['median_us']:>16.2f}" if measured and variant else f"{'-':>16}"


def _short(op: str) -> str:
    return {ATTENTION: "attention", KEY_CONV: "key conv"}[op]


def gpu() -> dict[str, Any]:
    """Name, compute capability and versions of what the cases run on.

    Raises :class:`DependencyError` without torch for CUDA, our CUDA kernels or a GPU.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise DependencyError(
            "torch is not installed: pip install torch, in a build for CUDA"
        ) from None
    if not torch.cuda.is_available():
        reason = "no NVIDIA GPU is seen" if torch.version.cuda else "this torch is built for CPUs"
        raise DependencyError(f"{reason}: the ops are measured on a GPU, with torch for CUDA")
    if not native.capabilities().cuda_architectures:
        raise DependencyError(
            "our CUDA kernels are not compiled in: pip install . -C cmake.define.MSCT_CUDA=ON"
        )
    major, minor = torch.cuda.get_device_capability()
    return {
        "name": torch.cuda.get_device_name(),
        "compute_capability": f"{major}.{minor}",
        "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count,
        "torch_cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "kernels_compiled_for": list(native.capabilities().cuda_architectures),
    }


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.ops", description="Our CUDA kernels against torch, on a GPU."
    )
    options.add_argument("--quick", action="store_true", help="two cases only")
    options.add_argument("--compile", choices=("none", "some", "all"), default="some")
    options.add_argument("--rounds", type=_rounds, default=ROUNDS)
    options.add_argument("--output", type=Path, metavar="FILE.json")
    return options


def _rounds(text: str) -> int:
    if not text.isdecimal() or not 2 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rounds from 2 to 10000")
    return int(text)


def wants_compiled(case: Case, choice: str) -> bool:
    return choice == "all" or (choice == "some" and case.dtype == "float16" and case.tokens == 51)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of :mod:`runtime.errors`."""
    options = parser().parse_args(argv)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    device = gpu()
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions announce a newer way to say it
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32, for all alike
        torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    start = time.perf_counter()
    rates = peaks()
    rows: list[dict[str, Any]] = []
    chosen = cases(options.quick)
    with torch.no_grad():
        for i, case in enumerate(chosen):
            variants, error = build(case, wants_compiled(case, options.compile))
            row = measure(case, variants, error, GraphSampler, options.rounds)
            rows.append({**row, "floor_us": floor_us(case, rates)})
            print(f"\r{i + 1} of {len(chosen)} cases", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    result = {
        "benchmark": "ops",
        "schema_version": 1,
        **describe(),
        "gpu": device,
        "measured_rates": rates,
        "settings": {
            "calls_per_graph": CALLS_PER_GRAPH,
            "rounds": options.rounds,
            "compile": options.compile,
            "tf32": False,
        },
        "seconds": round(time.perf_counter() - start, 1),
        "rows": rows,
    }
    print(
        f"{device['name']}, CUDA graphs, microseconds a call (medians of {options.rounds} rounds)"
    )
    print(table(rows))
    if options.output is not None:
        write_json(options.output, result)
        print(f"written: {options.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
