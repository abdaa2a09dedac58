# SPDX-License-Identifier: Apache-2.0
"""How long this device takes: the engine alone, and from the camera to the verdict.

    python -m benchmarks.latency [--duration 60] [--model NAME|DIR] [--output DIR|FILE.json]

Two parts, each in a process of its own, each for ``--duration`` seconds:

- engine: the two graphs call by call (:mod:`benchmarks.latency.engine`);
- capture to verdict: the clip as a live camera of 25 pictures a second through the whole pipeline,
  by stage (:mod:`benchmarks.latency.capture`), with memory, power, heat and throttling meanwhile
  (:mod:`benchmarks.latency.power`).

Flags are named as trtexec's.  Written: JSON, checked against ``schema.json`` where jsonschema is
installed.  No torch, no plotting library: ``python -m benchmarks.latency.page`` draws the pictures
and the page from it, on any machine; ``python -m benchmarks.compare`` finds regressions between two
such files.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import describe
from benchmarks.latency import capture as capture_latency
from benchmarks.latency import engine as engine_latency
from benchmarks.latency import table
from benchmarks.latency.device import describe_device, temperatures_c, throttle_count
from benchmarks.latency.distribution import DEFAULT_PERCENTILES
from benchmarks.latency.power import PowerReader, find_readers
from benchmarks.latency.schema import SCHEMA_VERSION, check
from benchmarks.looped import FPS, parse_seconds, parse_size, write_loop
from runtime import leftovers, waits
from runtime.backends import BACKENDS, load_backend
from runtime.command import Parser, guarded, positive_int, provider
from runtime.errors import EXIT_OK, UsageError
from runtime.files import write_json
from runtime.interrupt import leave
from runtime.models import DEFAULT_PRESET, model_dir, model_files
from runtime.overwrites import refuse_overwrites

MAX_LOOP_S = 60.0  # of the clip on disk; a longer run plays it again
MAX_BATCH = 32  # windows a call
IDLE_S = 2.0  # of power before the run
DEFAULT_OUTPUT = Path("bench/latency")
HASHED_SUFFIXES = (".onnx", ".engine", ".plan")


def parse_batches(text: str) -> list[int]:
    """``1,4`` -> [1, 4]: windows a call, ascending, each once."""
    numbers = text.split(",")
    if not all(n.isdecimal() and 1 <= int(n) <= MAX_BATCH for n in numbers):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of numbers from 1 to {MAX_BATCH}, as 1,4"
        )
    return sorted({int(n) for n in numbers})


def parse_percentiles(text: str) -> list[float]:
    """``90,99`` -> [90.0, 99.0]; each above 0 and below 100."""
    try:
        numbers = [float(p) for p in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(0 < p < 100 for p in numbers):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of percentiles above 0 and below 100, as 50,90,99"
        )
    return sorted(set(numbers))


def parse_warmup(text: str) -> float:
    """Milliseconds from 0 to a minute."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 60_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of milliseconds up to 60000")
    return value


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="python -m benchmarks.latency",
        description="Latency of the engine and from capture to verdict on this device.",
        epilog="Exit codes: 0 done, 1 operational error, 2 usage.",
    )
    p.add_argument("--model", default=DEFAULT_PRESET, metavar="NAME|DIR",
                   help="a shipped preset, or a folder with an ONNX pair or engines")  # fmt: skip
    p.add_argument("--backend", choices=BACKENDS, default="auto",
                   help="what runs the model (default: %(default)s)")  # fmt: skip
    p.add_argument("--provider", type=provider, metavar="cpu|cuda|cuda:N",
                   help="where ONNX Runtime computes (default: cpu)")  # fmt: skip
    p.add_argument("--threads", type=positive_int, metavar="N",
                   help="threads of the model in ONNX Runtime (default: 1)")  # fmt: skip
    p.add_argument("--warmup", type=parse_warmup, default=engine_latency.WARMUP_MS, metavar="MS",
                   help="before each graph is timed (default: %(default)g)")  # fmt: skip
    p.add_argument("--duration", type=parse_seconds, default=10.0, metavar="S",
                   help="of each of the two parts (default: %(default)g)")  # fmt: skip
    p.add_argument("--iterations", type=positive_int, default=engine_latency.MIN_CALLS, metavar="N",
                   help="calls of each graph, at least (default: %(default)s)")  # fmt: skip
    p.add_argument("--percentile", type=parse_percentiles, default=list(DEFAULT_PERCENTILES),
                   metavar="P1,P2,...", help="to report (default: 50,90,95,99)")  # fmt: skip
    p.add_argument("--batch", type=parse_batches, default=[1, 4], metavar="N1,N2,...",
                   help="windows a call of the engine (default: 1,4)")  # fmt: skip
    p.add_argument("--source", type=Path, metavar="CLIP",
                   help="with picture and sound (default: the sample clip)")  # fmt: skip
    p.add_argument("--size", type=parse_size, default=(640, 480), metavar="WxH",
                   help="of the camera's pictures (default: 640x480)")  # fmt: skip
    p.add_argument("--export-times", type=Path, metavar="FILE",
                   help="every single sample, as JSON")  # fmt: skip
    p.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, metavar="DIR|FILE.json",
                   help="where the JSON goes (default: %(default)s)")  # fmt: skip
    p.add_argument("--part", choices=("engine", "capture"), help=argparse.SUPPRESS)
    p.add_argument("--spawned", type=float, help=argparse.SUPPRESS)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of :mod:`runtime.errors`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    if options.part is not None:
        return guarded(lambda: _run_part(options))
    return guarded(lambda: _run(options, arguments))


def _run(options: argparse.Namespace, arguments: list[str]) -> int:
    source = options.source
    if source is None:
        from runtime.demo.sample import sample_clip

        source = sample_clip()
    target = options.output
    if target.suffix != ".json":
        target /= "latency.json"
    refuse_overwrites(
        [
            ("--output", target),
            options.export_times and ("--export-times", options.export_times),
        ],
        [source, *model_files(options.model)],
        options=vars(options),
    )
    digest = _sha256(source)
    width, height = options.size
    command = [sys.executable, "-m", "benchmarks.latency", *arguments]
    load_average = os.getloadavg()[0]
    parts = {}
    with leftovers.folder("msct-latency-") as folder:
        clip = Path(folder) / "loop.mp4"
        seconds = min(options.duration, MAX_LOOP_S)
        _say(f"making {seconds:g} s of {width}x{height} ...")
        write_loop(source, clip, seconds=seconds, width=width, height=height)
        for part in ("engine", "capture"):
            _say(f"{part}: {options.duration:g} s ...")
            done = waits.run_program(
                [*command, "--source", str(clip), "--part", part, "--spawned", str(time.time())],
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            if done.returncode:
                return done.returncode  # it has said why
            parts[part] = json.loads(done.stdout.splitlines()[-1])
    result = {
        "benchmark": "latency",
        "schema_version": SCHEMA_VERSION,
        **describe(),
        "device": describe_device(),
        "load_average_before": load_average,
        "settings": {
            "source": source.name,
            "source_sha256": digest,
            "size": f"{width}x{height}",
            "fps": FPS,
            "duration_s": options.duration,
            "warmup_ms": options.warmup,
            "iterations": options.iterations,
            "batches": options.batch,
            "percentiles": options.percentile,
            "threads": options.threads,
        },
        "model": parts["engine"]["model"],
        "engine": parts["engine"]["figures"],
        "capture": parts["capture"]["figures"],
        "power": parts["capture"]["power"],
        "heat": parts["capture"]["heat"],
    }
    note = check(result)
    print(table.table(result))
    if note:
        _say(note)
    if options.export_times is not None:
        write_json(options.export_times, {name: part["samples"] for name, part in parts.items()})
        _say(f"written: {options.export_times}")
    write_json(target, result)
    _say(f"written: {target}")
    _say(f"pictures and a page: python -m benchmarks.latency.page {target}")
    return EXIT_OK


def _run_part(options: argparse.Namespace) -> int:
    """One part in this process; prints one line of JSON."""
    start = time.perf_counter()
    backend = load_backend(options.model, options.backend, options.provider, options.threads)
    load_s = time.perf_counter() - start
    with backend:
        part: dict[str, Any] = {
            "model": {
                "model_id": backend.spec.model_id,
                "pair_id": backend.spec.pair_id,
                "trained": backend.spec.trained,
                "precision": backend.spec.precision,
                "provider": backend.provider,
                "files": file_hashes(model_dir(options.model)),
            }
        }
        if options.part == "engine":
            part["figures"], part["samples"] = engine_latency.measure(
                backend,
                batches=options.batch,
                warmup_ms=options.warmup,
                duration_s=options.duration,
                iterations=options.iterations,
                percentiles=options.percentile,
            )
        else:
            meters = Meters(*find_readers())
            meters.start()
            part["figures"], part["samples"] = capture_latency.measure(
                backend,
                options.source,
                duration_s=options.duration,
                percentiles=options.percentile,
                load_s=load_s,
                spawned_s=options.spawned + meters.idle_s,
            )
            part["power"], part["heat"] = meters.stop(part["figures"]["media_s"])
    print(json.dumps(part))
    return EXIT_OK


class Meters:
    """Power and heat around a run; JSON-ready."""

    def __init__(self, readers: Sequence[PowerReader], missing: dict[str, str]) -> None:
        self._readers, self._missing = list(readers), dict(missing)
        self._idle_w: dict[str, float] = {}
        self.idle_s = 0.0  # that reading the idle power took

    def start(self) -> None:
        """First the power that is drawn anyway, where there is anything to read it with."""
        begun = time.time()
        if self._readers:
            for reader in self._readers:
                reader.start()
            waits.sleep(IDLE_S)
            for reader in self._readers:
                idle = reader.stop()
                if idle is not None:
                    self._idle_w[reader.source] = idle.mean_w
        self._before_c, self._throttled = temperatures_c(), throttle_count()
        for reader in self._readers:
            reader.start()
        self.idle_s = time.time() - begun

    def stop(self, media_s: float) -> tuple[dict[str, Any], dict[str, Any]]:
        """``media_s``: seconds of the stream that was judged meanwhile."""
        readings = []
        for reader in self._readers:
            reading = reader.stop()
            if reading is None:
                self._missing[reader.source] = "it gave no usable sample"
                continue
            readings.append(
                {
                    **reading.to_dict(),
                    "idle_w": self._idle_w.get(reader.source),
                    "joules_per_stream_s": reading.joules / media_s,
                }
            )
        throttled = throttle_count()
        known = throttled is not None and self._throttled is not None
        return {"readings": readings, "missing": self._missing}, {
            "before_c": self._before_c,
            "after_c": temperatures_c(),
            "cpu_throttle_events": (throttled or 0) - (self._throttled or 0) if known else None,
        }


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the graphs and engines in a model's folder."""
    return {
        path.name: _sha256(path)
        for path in sorted(folder.iterdir())
        if path.suffix in HASHED_SUFFIXES
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as err:
        raise UsageError(f"cannot read {path} ({err.strerror})") from err
    return digest.hexdigest()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    leave(main)
