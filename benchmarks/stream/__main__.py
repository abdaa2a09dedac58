# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of one whole stream: decoding, faces, sound, model, verdicts.

    python -m benchmarks.stream [--source CLIP] [--loop-to 60] [--size 640x480] [--output J.json]

The clip is looped and transcoded once to the asked length and size at 25 frames a second (H.264,
AAC 48 kHz stereo), then streamed by a fresh process exactly as ``runtime.stream`` does it, so that
its peak memory is that of a stream and of nothing else.  Reported:

- real-time factor: seconds of work for a second of media, loading of the model apart;
- its split by stage;
- peak resident memory, the decoder's process included;
- model time for one more verdict: with the feature cache, by encoding its whole window again, and
  what it was within the stream, where face detection and decoding compete for the same caches.

    python -m benchmarks.stream --streams N|auto [--run-for 30] [--bound-ms 150]

plays that clip as N cameras at once, in real time, in one process, and says whether the machine
holds them (:mod:`benchmarks.stream.many`); ``auto`` finds the largest N.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.environment import describe, memory_field_mb, peak_memory_mb
from benchmarks.looped import FPS, parse_seconds, parse_size, write_loop
from benchmarks.stream import many as streams
from runtime import leftovers, waits
from runtime.backends.base import Backend, FaceOutput, FusionOutput
from runtime.closing import Closing
from runtime.command import Parser, guarded
from runtime.files import write_json
from runtime.interrupt import leave
from runtime.judging.verdict import Verdict
from runtime.models import DEFAULT_PRESET, model_files
from runtime.overwrites import refuse_overwrites
from runtime.spec import PairSpec

COMPARED_WINDOWS = 20  # with the feature cache and without
TARGET_REAL_TIME_FACTOR = 0.35  # on two cores
TARGET_PEAK_MEMORY_MB = 700.0
TARGET_CACHE_GAIN = 5.0


class MeteredBackend(Closing):
    """Passes everything on to a backend and counts what it did and how long it took."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.frames = 0
        self.windows = 0
        self.seconds = 0.0

    @property
    def spec(self) -> PairSpec:
        return self._backend.spec

    @property
    def provider(self) -> str:
        return self._backend.provider

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        start = time.perf_counter()
        visual = self._backend.encode(frames)  # [N, C]
        self.seconds += time.perf_counter() - start
        self.frames += len(frames)
        return visual

    def follow(self, frames: NDArray[np.uint8]) -> FaceOutput:
        start = time.perf_counter()
        output = self._backend.follow(frames)
        self.seconds += time.perf_counter() - start
        self.frames += len(frames)
        return output

    def fuse(self, visual: NDArray[np.float32], audio: NDArray[np.float32]) -> FusionOutput:
        start = time.perf_counter()
        output = self._backend.fuse(visual, audio)
        self.seconds += time.perf_counter() - start
        self.windows += len(visual)
        return output

    def close(self) -> None:
        self._backend.close()


class WatchSink:
    """Keeps the latency of every verdict, in milliseconds, and the decoder's peak of memory."""

    def __init__(self, decoder: int) -> None:
        self.latencies_ms: list[float] = []
        self.decoder_mb = 0.0
        self._decoder = decoder  # its process

    def write(self, verdict: Verdict) -> None:
        self.latencies_ms.append(verdict.latency_ms)
        with contextlib.suppress(OSError):  # it has ended; or this system has no /proc
            self.decoder_mb = max(self.decoder_mb, memory_field_mb("VmHWM", self._decoder))


def measure(clip: Path, *, model: str, provider: str | None, threads: int | None) -> dict[str, Any]:
    """Stream ``clip`` as it is, in this process, and say what it took (JSON-ready)."""
    from runtime.backends import load_backend
    from runtime.flow.driver import run
    from runtime.media.sandbox.reader import IsolatedFile

    start = time.perf_counter()
    backend = MeteredBackend(load_backend(model, provider=provider, threads=threads))
    load_s = time.perf_counter() - start
    with backend:
        cpu_start = cpu_seconds()
        with IsolatedFile(clip, sample_rate_hz=backend.spec.audio.sample_rate_hz) as source:
            sink = WatchSink(source.pid)
            summary = run(source, backend, sinks=[sink])
        cpu_s = cpu_seconds() - cpu_start
        peak_mb = peak_memory_mb()  # before the comparison below adds its own
        stream_ms = backend.seconds * 1000 / backend.windows if backend.windows else None
        frames, windows, active = backend.frames, backend.windows, backend.provider
        cached_ms, whole_ms = compare_cache(backend)
    stages = dict(summary.stats.seconds)
    stages["other"] = summary.wall_s - sum(stages.values())
    latencies = np.array(sink.latencies_ms or [math.nan])
    return {
        "model_id": backend.spec.model_id,
        "trained": backend.spec.trained,
        "precision": backend.spec.precision,
        "provider": active,
        "threads": threads,
        "media_s": summary.media_s,
        "wall_s": summary.wall_s,
        "cpu_s": cpu_s,
        "load_s": load_s,
        "real_time_factor": summary.wall_s / summary.media_s,
        "stage_s": stages,
        "peak_memory_mb": peak_mb + sink.decoder_mb,
        "peak_memory_of_decoder_mb": sink.decoder_mb,
        "verdicts": summary.stats.verdicts,
        "coverage": summary.stats.coverage,
        "verdict_latency_ms": {
            "p50": float(np.percentile(latencies, 50)),
            "p99": float(np.percentile(latencies, 99)),
            "max": float(latencies.max()),
        },
        "frames_encoded": frames,
        "windows_fused": windows,
        "model_ms_per_window": {
            "in_stream": stream_ms,
            "cached": cached_ms,
            "whole": whole_ms,
            "gain": whole_ms / cached_ms,
        },
    }


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def compare_cache(backend: Backend) -> tuple[float, float]:
    """Median milliseconds of the model for one more verdict: with the cache, and without it.

    With it: a hop's new frames are encoded and the window fused; without: all its frames are.
    The two alternate, so that both see the same machine; what the pictures show is no matter.
    """
    from runtime.flow.windows import score_window

    spec, rng = backend.spec, np.random.default_rng(0)
    tokens, hop, side = spec.stream.window_tokens, spec.stream.hop_tokens, spec.face.crop_px
    frames = rng.integers(0, 256, (tokens, side, side, 3), dtype=np.uint8)  # [T, H, W, 3]
    audio = rng.standard_normal((tokens, spec.audio.token_dim)).astype(np.float32)  # [T, 104]
    ring = backend.encode(frames)  # [T, C]
    cached_s, whole_s = [], []
    for _ in range(COMPARED_WINDOWS + 2):
        start = time.perf_counter()
        visual = np.concatenate([ring[hop:], backend.encode(frames[-hop:])])
        backend.fuse(visual[None], audio[None])
        middle = time.perf_counter()
        score_window(backend, frames, audio)
        cached_s.append(middle - start)
        whole_s.append(time.perf_counter() - middle)
    # the first two warm up
    return float(np.median(cached_s[2:])) * 1000, float(np.median(whole_s[2:])) * 1000


def report(result: dict[str, Any]) -> str:
    """The table for people."""
    media_s, model = result["media_s"], result["model_ms_per_window"]
    size = result["settings"]["size"]
    machine = result["machine"]
    lines = [
        f"{media_s:.0f} s of {size} at {FPS} frames/s, {result['model_id']} "
        f"({result['precision']}) on {result['provider']}, {machine['cores']} cores "
        f"({machine['processor']})",
        _row("real-time factor", f"{result['real_time_factor']:.3f}", TARGET_REAL_TIME_FACTOR),
        *(
            f"    {stage:<20}{seconds / media_s:>9.3f}"
            for stage, seconds in result["stage_s"].items()
        ),
        _row("peak memory, MB", f"{result['peak_memory_mb']:.0f}", TARGET_PEAK_MEMORY_MB)
        + f" (decoder {result['peak_memory_of_decoder_mb']:.0f})",
        f"{'processor seconds':<24}{result['cpu_s'] / media_s:>9.3f}    a second of media",
        f"{'verdicts':<24}{result['verdicts']:>9}    coverage {result['coverage']:.0%}",
        f"{'model ms a window':<24}{model['cached']:>9.1f}    whole window {model['whole']:.1f}, "
        f"in the stream {_number(model['in_stream'])}",
        f"{'gain of the cache':<24}{model['gain']:>8.1f}x    to reach: >= {TARGET_CACHE_GAIN:g}x",
    ]
    return "\n".join(lines)


def _row(name: str, value: str, target: float) -> str:
    return f"{name:<24}{value:>9}    to reach on 2 cores: <= {target:g}"


def _number(value: float | None) -> str:
    return "none: no window reached the model" if value is None else f"{value:.1f}"


def parse_streams(text: str) -> int | str:
    """A number of streams from 1, or auto."""
    if text == "auto":
        return text
    if not text.isdecimal() or not 1 <= int(text) <= streams.MAX_STREAMS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number from 1 to {streams.MAX_STREAMS} nor auto"
        )
    return int(text)


def parser() -> argparse.ArgumentParser:
    options = Parser(
        prog="python -m benchmarks.stream", description="Speed and memory of one whole stream."
    )
    options.add_argument(
        "--source", type=Path, help="a clip with picture and sound (default: the sample clip)"
    )
    options.add_argument("--loop-to", type=parse_seconds, default=60.0, metavar="SECONDS")
    options.add_argument("--size", type=parse_size, default=(640, 480), metavar="WxH")
    options.add_argument("--model", default=DEFAULT_PRESET, help="a preset, or a pair's folder")
    options.add_argument(
        "--provider", choices=("cpu", "cuda"), help="of ONNX Runtime (default: cpu)"
    )
    options.add_argument("--threads", type=int, help="of the model (default: its backend's)")
    options.add_argument(
        "--streams", type=parse_streams, metavar="N|auto", help="live streams at the same time"
    )
    options.add_argument(
        "--run-for", type=parse_seconds, default=30.0, metavar="SECONDS", help="of --streams"
    )
    options.add_argument(
        "--bound-ms", type=float, default=streams.BOUND_MS, metavar="MS",
        help="of --streams: 99th percentile from capture to verdict (default: %(default)g)",
    )  # fmt: skip
    options.add_argument("--output", type=Path, metavar="FILE.json")
    options.add_argument(
        "--as-is",
        action="store_true",
        help="stream --source unchanged and in this process; print JSON",
    )
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of :mod:`runtime.errors`."""
    options = parser().parse_args(argv)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.source is None:
        from runtime.demo.sample import sample_clip

        options.source = sample_clip()
    refuse_overwrites(
        [options.output and ("--output", options.output)],
        model_files(options.model),
        options=vars(options),
    )
    if options.as_is:
        chosen = {k: getattr(options, k) for k in ("model", "provider", "threads")}
        if options.streams is not None:
            print(json.dumps(_measure_streams(options, chosen)))
            return 0
        print(json.dumps(measure(options.source, **chosen)))
        return 0
    width, height = options.size
    with leftovers.folder("msct-bench-") as folder:
        clip = Path(folder) / "loop.mp4"
        print(f"making {options.loop_to:g} s of {width}x{height} ...", file=sys.stderr)
        write_loop(options.source, clip, seconds=options.loop_to, width=width, height=height)
        command = [sys.executable, "-m", "benchmarks.stream", "--as-is", "--source", str(clip)]
        command += ["--model", options.model]
        if options.provider is not None:
            command += ["--provider", options.provider]
        if options.threads is not None:
            command += ["--threads", str(options.threads)]
        if options.streams is not None:
            return _streams(options, command)
        print("streaming it ...", file=sys.stderr)
        done = waits.run_program(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return done.returncode  # it has said why
    result = {
        "benchmark": "stream",
        "schema_version": 1,
        **describe(),
        "settings": {
            "source": options.source.name,
            "loop_to_s": options.loop_to,
            "size": f"{width}x{height}",
            "fps": FPS,
        },
        **json.loads(done.stdout.splitlines()[-1]),
    }
    print(report(result))
    if options.output is not None:
        write_json(options.output, result)
        print(f"written: {options.output}", file=sys.stderr)
    return 0


def _measure_streams(options: argparse.Namespace, chosen: dict[str, Any]) -> streams.Trial:
    from runtime.backends import load_backend

    name = chosen.pop("model")
    with load_backend(name, **chosen) as backend:
        return streams.measure(
            options.source,
            options.streams,
            seconds=options.run_for,
            bound_ms=options.bound_ms,
            backend=backend,
        )


def _streams(options: argparse.Namespace, command: list[str]) -> int:
    command += ["--run-for", str(options.run_for), "--bound-ms", str(options.bound_ms)]

    def trial(count: int) -> streams.Trial:
        print(f"{count} streams for {options.run_for:g} s ...", file=sys.stderr, flush=True)
        return streams.run_trial(command, count)

    auto = options.streams == "auto"
    trials = streams.find(trial) if auto else [trial(options.streams)]
    width, height = options.size
    held = streams.most(trials)
    for one in sorted(trials, key=lambda t: t["streams"]):
        print(streams.line(one))
    if auto:
        print(f"this machine holds {held} streams of {width}x{height} at {FPS} frames/s")
    if options.output is not None:
        result = {
            "benchmark": "streams",
            "schema_version": 1,
            **describe(),
            "settings": {
                "source": options.source.name,
                "size": f"{width}x{height}",
                "fps": FPS,
                "run_for_s": options.run_for,
                "bound_ms": options.bound_ms,
                "max_loss": streams.MAX_LOSS,
            },
            "holds": held,
            "trials": trials,
        }
        write_json(options.output, result)
        print(f"written: {options.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    leave(main)
