# SPDX-License-Identifier: Apache-2.0
"""Is it still the same after an hour?  Memory, drops and latency of one live stream over time.

    python -m benchmarks.soak --source rtsp://camera/stream [--minutes 60] [--output J.json]
    python -m benchmarks.soak --source CLIP [--restart-at MINUTE] [-- OPTIONS OF runtime.stream]

``runtime.stream`` itself runs in a process of its own, quiet, with JSON Lines and metrics on and
with what stands behind ``--``.  From outside its memory, threads and open files are read every
:data:`SAMPLE_S`, its drops from its own metrics, its latency from its JSON Lines.  A file is looped
and transcoded once to the length of the run and served over RTSP by GStreamer on this machine;
``--restart-at`` kills that server and starts it again :data:`DOWN_S` later.  Reported, after a
warm-up of a sixth of the run, at most ten minutes:

- resident memory, and its slope by least squares; that of its anonymous part, too, in which a leak
  would be: pages of files (libraries) come when they are used and go when the system wants them;
- latency from capture to verdict beyond the evidence wait, and the slope of that;
- drops by cause; verdicts by label, of the whole run;
- after a restart: how long after the server's return the first window came that is whole again, of
  which 2 s are the window's own length.

Linux alone: memory is read from ``/proc``.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.environment import describe
from benchmarks.looped import parse_size, write_loop
from benchmarks.soak.rtsp import RtspServer, free_port, why_no_rtsp_server
from runtime import leftovers, waits
from runtime.command import Parser, guarded
from runtime.errors import DependencyError, UsageError, UserError
from runtime.files import write_json
from runtime.interrupt import leave
from runtime.media.open import is_live
from runtime.models import DEFAULT_PRESET, model_files
from runtime.naming import plain
from runtime.optional import optional
from runtime.overwrites import refuse_overwrites

SAMPLE_S = 5.0
DOWN_S = 3.0  # that a restarted server is away
OUTAGE = ("too_many_drops", "no_audio", "no_face")  # what windows say that reach into one
SPARE_S = 60.0  # of media beyond the run
STOP_S = 30.0  # that a stream may take to end
MAX_WARM_UP_S = 600.0
MAX_SLOPE_MB_PER_H = 1.0
MAX_P99_MS = 150.0  # on two cores

Float64 = NDArray[np.float64]


class SoakError(UserError):
    """The stream ended by itself, or did not end when asked to."""


class Sample(NamedTuple):
    """Of the stream's process."""

    t_s: float  # since its start
    memory_mb: float  # resident, 10^6 bytes
    threads: int
    files: int  # open
    anonymous_mb: float = 0.0  # of memory_mb: not pages of files, which the system takes and gives


def sample(pid: int, t_s: float) -> Sample:
    """Raises OSError where the process is gone."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    if "VmRSS" not in fields:  # it has ended, and nobody has asked for its exit code yet
        raise ProcessLookupError(pid)
    memory_mb, anonymous_mb = (
        int(fields[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "RssAnon")
    )
    files = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return Sample(t_s, memory_mb, int(fields["Threads"]), files, anonymous_mb)


def slope(x: Float64, y: Float64) -> float | None:
    """Of the least-squares line through [n] points; None where there is no such line."""
    if len(x) < 2 or np.ptp(x) == 0:
        return None
    return float(np.polyfit(x, y, 1)[0])


def drops_by_cause(metrics: str) -> dict[str, int]:
    """From Prometheus' text format."""
    found: Counter[str] = Counter()
    for cause, n in re.findall(r'^msct_drops_total\{.*?cause="([^"]*)".*?\} (\S+)$', metrics, re.M):
        found[cause] += round(float(n))
    return {cause: n for cause, n in sorted(found.items()) if n}


def read_verdicts(path: Path) -> tuple[Float64, Float64, dict[str, int]]:
    """JSON Lines -> end of each window in stream seconds [n], latency in ms [n], labels."""
    ends, latencies, labels = [], [], Counter[str]()
    with path.open(encoding="utf-8") as file:
        for line in file:
            verdict = json.loads(line)
            ends.append(verdict["t_end_s"])
            latencies.append(verdict["latency_ms"])
            labels[verdict["reason"] or verdict["label"]] += 1
    return np.array(ends, float), np.array(latencies, float), dict(labels)


def summarise(
    samples: Sequence[Sample],
    ends_s: Float64,
    latencies_ms: Float64,
    drops: dict[str, int],
    warm_up_s: float,
) -> dict[str, Any]:
    """The figures of the time after the warm-up, JSON-ready."""
    kept = [s for s in samples if s.t_s >= warm_up_s]
    times_h = np.array([s.t_s for s in kept]) / 3600
    memory = np.array([s.memory_mb for s in kept])
    warm = ends_s >= warm_up_s
    latency = latencies_ms[warm]
    growth = slope(times_h, memory)
    p99 = float(np.percentile(latency, 99)) if len(latency) else None
    return {
        "holds": bool(
            growth is not None and growth < MAX_SLOPE_MB_PER_H
            and not drops and p99 is not None and p99 <= MAX_P99_MS
        ),
        "warm_up_s": warm_up_s,
        "memory_mb": {
            "slope_per_h": growth,
            "anonymous_slope_per_h": slope(times_h, np.array([s.anonymous_mb for s in kept])),
            "first": float(memory[0]) if len(memory) else None,
            "last": float(memory[-1]) if len(memory) else None,
            "peak": max((s.memory_mb for s in samples), default=None),
        },
        "threads": [kept[0].threads, kept[-1].threads] if kept else None,
        "open_files": [kept[0].files, kept[-1].files] if kept else None,
        "latency_ms": {
            "p50": float(np.median(latency)) if len(latency) else None,
            "p99": p99,
            "max": float(latency.max()) if len(latency) else None,
            "slope_per_min": slope(ends_s[warm] / 60, latency),
        },
        "drops": drops,
    }  # fmt: skip


class Run:
    """``runtime.stream`` in a process of its own; ``samples`` grow while it runs."""

    def __init__(self, source: str, model: str, folder: Path, extra: Sequence[str]) -> None:
        self.jsonl = folder / "verdicts.jsonl"
        self._log = folder / "stream.log"
        address = f"127.0.0.1:{free_port()}"
        self._metrics = f"http://{address}/metrics"
        command = [sys.executable, "-m", "runtime.stream", "--source", source, "--model", model]
        command += ["--jsonl", str(self.jsonl), "--metrics", address, "--quiet", *extra]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process, which ends the stream itself
            )  # fmt: skip
        self._start_s = time.monotonic()
        self.samples: list[Sample] = []
        self.drops: dict[str, int] = {}  # so far

    @property
    def t_s(self) -> float:
        return time.monotonic() - self._start_s

    def look(self) -> None:
        """Raises :class:`SoakError` where it has ended."""
        if self._process.poll() is not None:
            raise SoakError(
                f"the stream ended by itself (exit code {self._process.returncode}): "
                f"{self.said().strip()[-600:]}"
            )
        try:
            self.samples.append(sample(self._process.pid, self.t_s))
            with urllib.request.urlopen(self._metrics, timeout=5) as answer:
                self.drops = drops_by_cause(answer.read().decode())
        except OSError:
            if self.t_s > STOP_S and not self.drops and len(self.samples) > STOP_S / SAMPLE_S:
                raise SoakError(f"{self._metrics} does not answer; see -- --metrics") from None

    def stop(self) -> int:
        """As Ctrl-C does; returns the exit code."""
        self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise SoakError(f"the stream did not end within {STOP_S:g} s of Ctrl-C") from None

    def said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def verdicts(self) -> int:
        """Whole lines so far."""
        return self.jsonl.read_bytes().count(b"\n") if self.jsonl.is_file() else 0

    def reasons(self, first: int) -> list[str | None]:
        """Of the verdicts from that number on; None: judged."""
        lines = self.jsonl.read_bytes().split(b"\n")[first:-1]
        return [json.loads(line)["reason"] for line in lines]

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def soak(
    source: str,
    *,
    minutes: float,
    model: str,
    extra: Sequence[str] = (),
    server: RtspServer | None = None,
    restart_at: float | None = None,
) -> dict[str, Any]:
    """Run it and say how it went; JSON-ready, with ``samples`` and ``latency_by_minute``."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    warm_up_s = min(MAX_WARM_UP_S, minutes * 10)
    recovery_s: float | None = None
    with ExitStack() as stack:
        folder = stack.enter_context(leftovers.folder("msct-soak-"))
        run = Run(source, model, folder, extra)
        stack.callback(run.close)
        bar = stack.enter_context(Progress(console=console, disable=not console.is_terminal))
        task = bar.add_task(f"streaming {minutes:g} min", total=minutes * 60)
        told_s = 0.0
        at_first: dict[str, int] = {}  # dropped until the warm-up's end
        while run.t_s < minutes * 60:
            waits.sleep(min(SAMPLE_S, max(0.0, minutes * 60 - run.t_s)))
            run.look()
            bar.update(task, completed=run.t_s)
            if run.t_s <= warm_up_s:
                at_first = run.drops
            if not console.is_terminal and run.t_s >= told_s + 60:
                told_s = run.t_s
                now = run.samples[-1]
                print(f"{run.t_s / 60:.0f} min: {now.memory_mb:.1f} MB, {run.verdicts()} verdicts, "
                      f"drops {run.drops or 'none'}", file=sys.stderr, flush=True)  # fmt: skip
            if restart_at is not None and server is not None and run.t_s >= restart_at * 60:
                restart_at, recovery_s = None, _restart(server, run)
        code = run.stop()
        ends_s, latencies_ms, labels = read_verdicts(run.jsonl)
        said = run.said()
    later = {k: n - at_first.get(k, 0) for k, n in run.drops.items() if n != at_first.get(k, 0)}
    result = summarise(run.samples, ends_s, latencies_ms, later, warm_up_s)
    by_minute = [
        [float(np.percentile(part, q)) for q in (50, 99)] if len(part) else None
        for part in (
            latencies_ms[(ends_s >= 60 * m) & (ends_s < 60 * (m + 1))]
            for m in range(int(minutes + 0.999))
        )
    ]
    return {
        "minutes": minutes,
        "exit_code": code,
        **result,
        "drops_in_warm_up": at_first,
        "restart": None if recovery_s is None else {"down_s": DOWN_S, "recovery_s": recovery_s},
        "verdicts": len(ends_s),
        "labels": labels,
        "said": said.strip().splitlines()[-8:],
        "samples": [[round(v, 3) for v in s] for s in run.samples],
        "latency_by_minute": by_minute,
    }


def _restart(server: RtspServer, run: Run) -> float:
    """Seconds from the server's return to the first window that is whole again."""
    server.kill()
    waits.sleep(DOWN_S)
    back_s, before = server.start(), run.verdicts()
    while not any(reason not in OUTAGE for reason in run.reasons(before)):
        if time.monotonic() - back_s > 60:
            raise SoakError("no whole window within a minute of the server's return")
        waits.sleep(0.05)
    return time.monotonic() - back_s


def report(result: dict[str, Any]) -> str:
    """The table for people."""
    memory, latency = result["memory_mb"], result["latency_ms"]
    drops, early = (
        ", ".join(f"{cause} {n}" for cause, n in result[key].items()) or "none"
        for key in ("drops", "drops_in_warm_up")
    )
    lines = [
        f"{result['minutes']:g} minutes of {result['settings']['source']}, "
        f"{result['machine']['cores']} cores ({result['machine']['processor']})",
        f"memory            {_number(memory['first'])} to {_number(memory['last'])} MB, peak "
        f"{_number(memory['peak'])}, slope {_number(memory['slope_per_h'], '+.2f')} MB/h, of its "
        f"anonymous part {_number(memory['anonymous_slope_per_h'], '+.2f')} "
        f"(to reach: < {MAX_SLOPE_MB_PER_H:g})",
        f"capture to verdict  p50 {_number(latency['p50'])} ms, p99 {_number(latency['p99'])} ms "
        f"(to reach: <= {MAX_P99_MS:g}), max {_number(latency['max'])} ms, "
        f"slope {_number(latency['slope_per_min'], '+.3f')} ms/min",
        f"drops             {drops} (to reach: none); in the warm-up {early}",
        f"threads, files    {result['threads']}, {result['open_files']} (warmed up, at the end)",
        f"verdicts          {result['verdicts']}: "
        + ", ".join(f"{k} {n}" for k, n in sorted(result["labels"].items())),
    ]
    if result["restart"] is not None:
        lines.append(
            f"server restarted  first whole window {result['restart']['recovery_s']:.1f} s after "
            "its return (to reach: 5)"
        )
    return "\n".join(lines)


def _number(value: float | None, form: str = ".1f") -> str:
    return "none" if value is None else format(value, form)


def draw(result: dict[str, Any], path: Path) -> None:
    """Memory and latency over the run, as a picture."""
    with optional("for --picture"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    times = [s[0] / 60 for s in result["samples"]]
    above.plot(times, [s[1] for s in result["samples"]], color="#2f6f9f", linewidth=1)
    above.set_ylim(0, 1.2 * max((s[1] for s in result["samples"]), default=1.0))
    above.set_ylabel("resident memory, MB")
    known = [(m + 0.5, v) for m, v in enumerate(result["latency_by_minute"]) if v is not None]
    for i, name in enumerate(("median", "99 %")):
        below.plot([m for m, _ in known], [v[i] for _, v in known], marker=".", label=name)
    below.axhline(MAX_P99_MS, color="#999999", linewidth=0.8, linestyle="--")
    below.set_ylim(bottom=0)
    below.set_ylabel("capture to verdict, ms")
    below.set_xlabel("minutes")
    below.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 7 * 24 * 60:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes, up to a week")
    return value


def parser() -> argparse.ArgumentParser:
    options = Parser(
        prog="python -m benchmarks.soak",
        description="Memory, drops and latency of one live stream over time.",
    )
    options.add_argument(
        "--source", required=True, help="a live source; or a clip, served over RTSP from here"
    )
    options.add_argument("--minutes", type=_minutes, default=60.0)
    options.add_argument("--model", default=DEFAULT_PRESET, help="a preset, or a pair's folder")
    options.add_argument("--size", type=parse_size, default=(640, 480), metavar="WxH")
    options.add_argument(
        "--as-is", action="store_true", help="serve the clip unchanged: it is long enough"
    )
    options.add_argument(
        "--restart-at", type=_minutes, metavar="MINUTE",
        help="kill the server of a clip then, and start it again",
    )  # fmt: skip
    options.add_argument("--output", type=Path, metavar="FILE.json")
    options.add_argument("--picture", type=Path, metavar="FILE.png")
    options.add_argument("extra", nargs="*", metavar="-- OPTIONS", help="for runtime.stream")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of :mod:`runtime.errors`."""
    options = parser().parse_args(argv)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if not Path("/proc/self/status").is_file():
        raise UsageError("benchmarks.soak reads memory from /proc, which this system has not")
    refuse_overwrites(
        [
            options.output and ("--output", options.output),
            options.picture and ("--picture", options.picture),
        ],
        model_files(options.model),
        options=vars(options),
    )
    width, height = options.size
    server: RtspServer | None = None
    with ExitStack() as stack:
        source = options.source
        if not is_live(source):
            if reason := why_no_rtsp_server():
                raise DependencyError(f"a clip needs an RTSP server: {reason}")
            clip = Path(source)
            if not options.as_is:
                clip = stack.enter_context(leftovers.folder("msct-soak-")) / "loop.mp4"
                seconds = options.minutes * 60 + SPARE_S
                print(f"making {seconds / 60:g} min of {width}x{height} ...", file=sys.stderr)
                write_loop(Path(source), clip, seconds=seconds, width=width, height=height)
            server = RtspServer(clip)
            stack.callback(server.kill)
            server.start()
            source = server.url
        elif options.restart_at is not None:
            raise UsageError("--restart-at restarts the server of a clip, not somebody's camera")
        result = {
            "benchmark": "soak",
            "schema_version": 1,
            **describe(),
            "settings": {
                "source": f"{Path(options.source).name} over RTSP" if server else "a live source",
                "size": f"{width}x{height}" if server and not options.as_is else None,
                "model": options.model,
                "options": [plain(option) for option in options.extra],
            },
            **soak(
                source, minutes=options.minutes, model=options.model, extra=options.extra,
                server=server, restart_at=options.restart_at,
            ),
        }  # fmt: skip
    print(report(result))
    if options.picture is not None:
        draw(result, options.picture)
    if options.output is not None:
        write_json(options.output, result)
        print(f"written: {options.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    leave(main)
