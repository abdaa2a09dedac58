# SPDX-License-Identifier: Apache-2.0
"""One verdict, four ways: the same weights and the same windows, on this machine, in turns.

    python -m benchmarks.peers [--model PAIR] [--source CLIP] [--output J.json]

    torch eager      every window encoded anew, as research code usually does it
    torch.compile    the same, compiled
    ONNX whole       every window encoded anew, in ONNX Runtime
    ONNX cached      this project's way: a hop's new crops encoded, the rest from the ring

Each round takes the next window of the clip through all four, in an order that changes from round
to round, so that all see the same machine; a ratio is the median of the rounds' ratios, with a
bootstrap interval.  Decoding, faces and sound are the same for all and not part of it.  The four
must agree: p_fake within :data:`MAX_DIFFERENCE`.

The weights are the pair's, put back into the network by :mod:`trainer.loop.from_pair`; or those of
``--checkpoint``; or with ``--preset`` random, whose arithmetic takes as long.  Needs torch and the
extra ``export``.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.environment import columns, describe
from benchmarks.latency.distribution import bootstrap_median, distribution
from benchmarks.looped import parse_seconds
from runtime import leftovers
from runtime.command import Parser, guarded, positive_int
from runtime.errors import EXIT_ERROR, EXIT_OK, UsageError
from runtime.files import write_json
from runtime.interrupt import check, leave
from runtime.logits import fake_minus_real, sigmoid
from runtime.models import DEFAULT_PRESET, PRESETS, model_dir, model_files
from runtime.optional import optional
from runtime.overwrites import refuse_overwrites

if TYPE_CHECKING:
    from export.parity import Window
    from runtime.backends import Backend
    from runtime.spec import PairSpec
    from trainer.model.msct import MSCT

MAX_DIFFERENCE = 1e-4  # of p_fake, to torch eager
MAX_WINDOWS = 64  # of the clip
MIN_ROUNDS = 10
WARM_UP_ROUNDS = 3
SEED = 1  # of random weights
OURS = "ONNX cached"
REFERENCE = "torch eager"

Float32 = NDArray[np.float32]
Way = Callable[[int], float]  # number of the window -> p_fake


class Ways:
    """What the four need, prepared once: windows, and the ring as it stands before each."""

    def __init__(self, model: MSCT, backend: Backend, windows: Sequence[Window], hop: int) -> None:
        self._model, self._backend, self._hop = model, backend, hop
        pairs = [
            (before, window)
            for before, window in itertools.pairwise(windows)
            if np.array_equal(before.frames[hop:], window.frames[:-hop])
        ]
        if not pairs:
            raise UsageError(
                "the clip has no two windows in a row with a face and sound; give a longer one "
                "with --source"
            )
        self.windows = [window for _, window in pairs]
        self._rings = [backend.encode(before.frames)[hop:] for before, _ in pairs]  # [T - hop, C]

    def eager(self, i: int) -> float:
        return self._torch(self._model.frame_encoder, self._model.fusion, i)

    def compiled(self) -> Way:
        """Raises whatever torch raises where it cannot compile."""
        import torch

        encoder: Any = torch.compile(self._model.frame_encoder)
        fusion: Any = torch.compile(self._model.fusion)
        return lambda i: self._torch(encoder, fusion, i)

    def _torch(self, encoder: Any, fusion: Any, i: int) -> float:
        import torch

        window = self.windows[i]
        with torch.inference_mode():
            visual = encoder(torch.from_numpy(window.frames))  # [T, C]
            out = fusion(visual[None], torch.from_numpy(window.audio)[None])
            return p_fake(out.logits_av[0].numpy())

    def whole(self, i: int) -> float:
        from runtime.flow.windows import score_window

        window = self.windows[i]
        return p_fake(score_window(self._backend, window.frames, window.audio).logits_av[0])

    def cached(self, i: int) -> float:
        window = self.windows[i]
        fresh = self._backend.encode(window.frames[-self._hop :])  # [hop, C]
        visual = np.concatenate([self._rings[i], fresh])  # [T, C]
        return p_fake(self._backend.fuse(visual[None], window.audio[None]).logits_av[0])


def p_fake(logits: Float32) -> float:
    """A pair of logits [2], without calibration: it is the same for all."""
    return float(sigmoid(fake_minus_real(logits)))


def in_turns(
    ways: dict[str, Way], windows: int, *, duration_s: float
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Milliseconds of every round by way, and the largest difference of p_fake to the first way.

    At least :data:`MIN_ROUNDS` rounds; :data:`WARM_UP_ROUNDS` before them are not timed.
    """
    names = list(ways)
    times_ms: dict[str, list[float]] = {name: [] for name in names}
    differences = dict.fromkeys(names, 0.0)
    start = time.perf_counter()
    done = -WARM_UP_ROUNDS
    while done < MIN_ROUNDS or time.perf_counter() - start < duration_s:
        if done == 0:
            start = time.perf_counter()
        window = done % windows
        turn = done % len(names)
        scores = {}
        for name in names[turn:] + names[:turn]:
            check()
            before = time.perf_counter()
            scores[name] = ways[name](window)
            spent_ms = (time.perf_counter() - before) * 1000
            if done >= 0:
                times_ms[name].append(spent_ms)
        for name in names:
            difference = abs(scores[name] - scores[names[0]])
            differences[name] = max(differences[name], difference)
        done += 1
    return times_ms, differences


def compile_way(ways: Ways) -> tuple[Way | None, float, str]:
    """The compiled way after its first call, the seconds that took, and why it is none."""
    start = time.perf_counter()
    try:
        way = ways.compiled()
        way(0)
    except Exception as err:  # no compiler, an unknown platform, a Python it does not know: any
        reason = str(err).strip().splitlines() or [type(err).__name__]
        return None, 0.0, f"torch.compile does not work here: {reason[0]}"
    return way, time.perf_counter() - start, ""


def measure(
    model: MSCT,
    backend: Backend,
    windows: Sequence[Window],
    *,
    threads: int,
    duration_s: float,
    compiling: bool = True,
) -> dict[str, Any]:
    """JSON-ready; ``threads`` for torch, as the backend has them."""
    import torch

    ways = Ways(model, backend, windows, backend.spec.stream.hop_tokens)
    had = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compiled, compile_s, reason = (
            compile_way(ways) if compiling else (None, 0.0, "torch.compile was left out")
        )
        chosen: dict[str, Way] = {REFERENCE: ways.eager}
        if compiled is not None:
            chosen["torch.compile"] = compiled
        chosen |= {"ONNX whole": ways.whole, OURS: ways.cached}
        times_ms, differences = in_turns(chosen, len(ways.windows), duration_s=duration_s)
    finally:
        torch.set_num_threads(had)
    ours = np.array(times_ms[OURS])
    rows = []
    for name, times in times_ms.items():
        ratios = np.array(times) / ours
        low, high = bootstrap_median(ratios)
        rows.append(
            {
                "way": name,
                "latency": distribution(times),
                "ratio": {"median": float(np.median(ratios)), "low": low, "high": high},
                "max_p_fake_difference": differences[name],
            }
        )
    return {
        "windows": len(ways.windows),
        "rounds": len(ours),
        "ways": rows,
        "compile_s": compile_s if compiled is not None else None,
        "compile_reason": reason,
    }


def report(result: dict[str, Any]) -> str:
    """The table for people."""
    machine, model = result["machine"], result["model"]
    head = (
        f"{model['model_id']} ({'trained' if model['trained'] else 'random weights'}), "
        f"{result['threads']} thread(s), {machine['cores']} cores ({machine['processor']}), "
        f"{result['rounds']} rounds of {result['windows']} windows"
    )
    rows = [["one verdict", "median ms", "p99 ms", f"times {OURS}", "95 %", "p_fake differs by"]]
    for way in result["ways"]:
        ratio, percentiles = way["ratio"], way["latency"]["percentiles"]
        rows.append(
            [
                way["way"],
                f"{percentiles['p50']['ms']:.2f}",
                f"{percentiles['p99']['ms']:.2f}",
                f"{ratio['median']:.2f}",
                f"{ratio['low']:.2f} to {ratio['high']:.2f}",
                f"{way['max_p_fake_difference']:.1e}",
            ]
        )
    last = result["compile_reason"] or f"compiling took {result['compile_s']:.1f} s"
    return "\n".join([head, *columns(rows), last])


def disagreeing(result: dict[str, Any]) -> list[str]:
    """The ways whose p_fake differs too much from torch eager's; torch.compile may."""
    return [
        way["way"]
        for way in result["ways"]
        if way["way"] != "torch.compile" and way["max_p_fake_difference"] > MAX_DIFFERENCE
    ]


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="python -m benchmarks.peers",
        description="One verdict in torch, compiled, in ONNX Runtime, and with cached features.",
        epilog="Exit codes: 0 done, 1 the ways disagree, or an operational error, 2 usage.",
    )
    p.add_argument("--model", metavar="PAIR",
                   help="a shipped preset's name, or a folder with a pair; its weights go into the "
                   f"network as well (default: {DEFAULT_PRESET})")  # fmt: skip
    p.add_argument("--checkpoint", type=Path, metavar="FILE.safetensors",
                   help="these weights; the pair is made of them, or is --model")  # fmt: skip
    p.add_argument("--preset", choices=PRESETS,
                   help="random weights of this size, and a pair made of them")  # fmt: skip
    p.add_argument("--source", type=Path, metavar="CLIP",
                   help="with a face and sound (default: the sample clip)")  # fmt: skip
    p.add_argument("--threads", type=positive_int, default=1, metavar="N",
                   help="of torch and of ONNX Runtime (default: %(default)s)")  # fmt: skip
    p.add_argument("--duration", type=parse_seconds, default=20.0, metavar="S",
                   help="of the rounds (default: %(default)g)")  # fmt: skip
    p.add_argument("--no-compile", action="store_true",
                   help="leave torch.compile out, which may take minutes")  # fmt: skip
    p.add_argument("--output", type=Path, metavar="FILE.json")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of :mod:`runtime.errors`."""
    options = parser().parse_args(argv)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.preset is not None and (options.checkpoint or options.model):
        raise UsageError("--preset is for random weights; a checkpoint or a pair knows its own")
    refuse_overwrites(
        [options.output and ("--output", options.output)],
        model_files(options.model),
        options=vars(options),
    )
    with optional("for the comparison", extra="train,export"):
        from export.graphs import export_pair, from_checkpoint, untrained
    from export.parity import real_windows
    from runtime.backends.onnx import OnnxBackend, read_pair
    from trainer.config import preset
    from trainer.loop.from_pair import load_pair

    with leftovers.folder("msct-peers-") as folder:
        if options.checkpoint is None and options.preset is None:
            pair = model_dir(options.model or DEFAULT_PRESET)
            spec, _ = read_pair(pair)
            model = load_pair(pair, preset(spec.model.name))
        else:
            made = (
                untrained(options.preset, SEED)
                if options.checkpoint is None
                else from_checkpoint(options.checkpoint)
            )
            model, pair = made[0], Path(folder) / "pair"
            if options.model is not None:
                pair = model_dir(options.model)
                check_pair(*made, read_pair(pair)[0], pair)
            else:
                print("making the ONNX pair ...", file=sys.stderr, flush=True)
                export_pair(*made, pair)
        with OnnxBackend(pair, threads=options.threads) as backend:
            if options.source is None:
                from runtime.demo.sample import sample_clip

                options.source = sample_clip()
            hop = backend.spec.stream.hop_tokens
            windows = real_windows(
                options.source, backend.spec, MAX_WINDOWS, step=hop, follow=backend.follow
            )
            print(f"{options.duration:g} s in turns ...", file=sys.stderr, flush=True)
            measured = measure(
                model, backend, windows, threads=options.threads, duration_s=options.duration,
                compiling=not options.no_compile,
            )  # fmt: skip
            found = backend.spec
    result = {
        "benchmark": "peers",
        "schema_version": 1,
        **describe(),
        "source": options.source.name,
        "threads": options.threads,
        "model": {
            "model_id": found.model_id,
            "pair_id": found.pair_id,
            "trained": found.trained,
            "precision": found.precision,
        },
        **measured,
    }
    print(report(result))
    if options.output is not None:
        write_json(options.output, result)
        print(f"written: {options.output}", file=sys.stderr)
    wrong = disagreeing(result)
    if wrong:
        print(
            f"p_fake differs by more than {MAX_DIFFERENCE:g}: {', '.join(wrong)}", file=sys.stderr
        )
        return EXIT_ERROR
    return EXIT_OK


def check_pair(model: MSCT, spec: PairSpec, found: PairSpec, folder: Path) -> None:
    """Raises :class:`UsageError` unless the pair was made of these very weights, in fp32."""
    from export.graphs import identify

    if identify(model, spec).pair_id != found.pair_id or found.precision != "fp32":
        raise UsageError(
            f"{folder} was not made of these weights in fp32; leave --model out, or make it with "
            "python -m export.build_engine --checkpoint FILE --backend onnx"
        )


if __name__ == "__main__":
    leave(main)
