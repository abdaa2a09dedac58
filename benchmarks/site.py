# SPDX-License-Identifier: Apache-2.0
"""What calibrating on site does to false alarms on footage that it has not seen.

    python -m benchmarks.site --clips GRID/s1 [--snr-db 25] [--below-hz 4000] [--output J.json]

Of the folder's clips, in an order drawn by ``--seed``, the first ``--clips-each`` calibrate and as
many others are judged, under the calibration that ships and under the site's.  All of them are
genuine and heard as another room and microphone would give them: with white noise at
``--snr-db`` below the clip's sound, and without what lies above ``--below-hz``.  Pictures stay as
they are.  Reported for the others, each share with its 95 % interval (Clopper-Pearson):

- coverage: windows that are judged;
- clips with a false alarm, of those with a judged window;
- clips whose sound is moved by 0.8 s or more and that are called fake.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import describe
from runtime.backends import Backend, load_backend
from runtime.calibrate import conformal
from runtime.calibrate.around import SourceAround
from runtime.calibrate.estimate import (
    FALSE_ALARM_RATE,
    Recording,
    Tally,
    estimate,
    estimate_offset,
    tally,
)
from runtime.command import Parser, guarded
from runtime.errors import UsageError
from runtime.files import write_json
from runtime.flow.driver import run
from runtime.interrupt import check, leave
from runtime.media import AudioChunk, Chunk, Samples, Source, VideoChunk
from runtime.media.file import FileSource
from runtime.media.open import expand_sources
from runtime.models import model_files
from runtime.overwrites import refuse_overwrites
from runtime.spec import StreamSpec


class Elsewhere(SourceAround):
    """A short clip whose sound comes from another room and microphone; reads it whole at once."""

    def __init__(
        self, source: Source, *, snr_db: float | None, below_hz: float | None, rate_hz: int
    ) -> None:
        super().__init__(source)
        self._snr_db, self._below_hz, self._rate_hz = snr_db, below_hz, rate_hz

    def __iter__(self) -> Iterator[Chunk]:
        chunks = list(self._source)
        pieces = [c.samples for c in chunks if isinstance(c, AudioChunk)]
        heard = self._hear(np.concatenate(pieces)) if pieces else np.zeros(0, np.float32)
        at = 0
        for chunk in chunks:
            check()
            if isinstance(chunk, VideoChunk):
                yield chunk
                continue
            yield AudioChunk(chunk.t_s, heard[at : at + len(chunk.samples)])
            at += len(chunk.samples)

    def _hear(self, sound: Samples) -> Samples:  # [n] -> [n]
        heard = sound.astype(np.float64)
        if self._below_hz is not None:
            spectrum = np.fft.rfft(heard)
            spectrum[np.fft.rfftfreq(len(heard), 1 / self._rate_hz) > self._below_hz] = 0
            heard = np.fft.irfft(spectrum, len(heard))
        if self._snr_db is not None:
            level = np.sqrt(np.mean(heard**2)) * 10 ** (-self._snr_db / 20)
            heard = heard + level * np.random.default_rng(0).standard_normal(len(heard))
        return np.clip(heard, -1, 1).astype(np.float32)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return guarded(lambda: run_command(parser().parse_args(arguments)))


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m benchmarks.site", description=__doc__.split("\n")[0])
    p.add_argument("--clips", required=True, help="a folder or glob of genuine clips")
    p.add_argument("--clips-each", type=int, default=20)
    p.add_argument("--snr-db", type=float, default=None)
    p.add_argument("--below-hz", type=float, default=None)
    p.add_argument("--model", default=None)
    p.add_argument("--false-alarm-rate", type=float, default=FALSE_ALARM_RATE)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--output", type=Path, default=None)
    return p


def run_command(options: argparse.Namespace) -> int:
    files = expand_sources([options.clips])
    refuse_overwrites(
        [options.output and ("--output", options.output)],
        [*files, *model_files(options.model)],
        options=vars(options),
    )
    random.Random(options.seed).shuffle(files)
    n = options.clips_each
    if len(files) < 2 * n:
        raise UsageError(f"{options.clips}: {len(files)} clips, {2 * n} are needed")
    with load_backend(options.model) as backend:
        result = measure(files[:n], files[n : 2 * n], backend, options)
    result |= {"clips": n, "seed": options.seed, "environment": describe()}
    print(report(result))
    if options.output is not None:
        write_json(options.output, result)
    return 0


def measure(
    own: Sequence[str], others: Sequence[str], backend: Backend, options: argparse.Namespace
) -> dict[str, Any]:
    """Calibrate on ``own``, judge ``others``; for JSON."""
    spec, stream = backend.spec, backend.spec.stream

    def listen(files: Sequence[str], stream: StreamSpec) -> list[Recording]:
        footage = []
        for name in files:
            recording = Recording(stream)
            with Elsewhere(
                FileSource(name),
                snr_db=options.snr_db,
                below_hz=options.below_hz,
                rate_hz=spec.audio.sample_rate_hz,
            ) as source:
                summary = run(source, backend, stream=stream, on_scores=recording.add)
            recording.seconds = summary.media_s
            footage.append(recording)
        return footage

    footage = listen(own, stream)
    offset = estimate_offset(footage, spec, stream)
    at_site = replace(stream, av_offset_tokens=offset.tokens)
    footage = footage if at_site == stream else listen(own, at_site)
    site = estimate(footage, backend, at_site, options.false_alarm_rate, offset, "file")
    new = listen(others, stream)
    before = tally(new, backend, spec, stream)
    new = new if at_site == stream else listen(others, at_site)
    after = tally(new, backend, site.apply(spec), at_site)
    return {
        "model_id": spec.model_id,
        "snr_db": options.snr_db,
        "below_hz": options.below_hz,
        "site": asdict(site),
        "as_shipped": shares(before),
        "at_site": shares(after),
    }


def shares(t: Tally) -> dict[str, Any]:
    """Counts, and the intervals of their shares."""
    return t._asdict() | {
        f"{name}_interval_95": list(conformal.share_interval(hits, n))
        for name, hits, n in (
            ("alarms", t.alarms, t.blocks),
            ("shifted_found", t.shifted_found, t.shifted),
        )
    }


def report(result: dict[str, Any]) -> str:
    """A table for people."""
    site = result["site"]
    lines = [
        f"threshold {site['threshold']['replaces']:.4f} -> {site['threshold']['threshold']:.4f}, "
        f"A/V offset {site['offset']['ms']:+.0f} ms",
        f"{'other clips':12} {'windows judged':>16} {'false alarms':>26} {'moved sound found':>26}",
    ]
    for name in ("as_shipped", "at_site"):
        r = result[name]
        cells = [f"{r['judged']} of {r['windows']}"]
        for hits, n, interval in (
            ("alarms", "blocks", "alarms_interval_95"),
            ("shifted_found", "shifted", "shifted_found_interval_95"),
        ):
            low, high = (100 * x for x in r[interval])
            cells.append(f"{r[hits]} of {r[n]} ({low:.0f} to {high:.0f} %)")
        lines.append(f"{name:12} {cells[0]:>16} {cells[1]:>26} {cells[2]:>26}")
    return "\n".join(lines)


if __name__ == "__main__":
    leave(main)
