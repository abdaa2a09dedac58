# SPDX-License-Identifier: Apache-2.0
"""Calibrate on site: ``python -m runtime.calibrate --source camera --duration 120``.

From genuine footage of the camera and the microphone that will be used: the constant A/V offset
and a threshold at a stated rate of false alarms, in a JSON file for ``runtime.stream --site``.
:mod:`runtime.calibrate.estimate` has the statistics.  The footage is
judged as it comes and not kept.

The file appears whole or not at all: too little footage, an error or Ctrl-C leave an earlier one as
it was.  Exit codes: 0 done, 1 operational error, among them footage that cannot calibrate, 2 usage,
130 interrupted.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from runtime.address import scheme_of
from runtime.calibrate import conformal
from runtime.calibrate.around import SourceAround
from runtime.calibrate.estimate import (
    FALSE_ALARM_RATE,
    MIN_THRESHOLD,
    Recording,
    duration,
    estimate,
    estimate_offset,
)
from runtime.calibrate.site import SiteCalibration
from runtime.command import (
    Parser,
    add_model_options,
    add_source_options,
    guarded,
    load_model,
    open_input,
    other_inputs,
    stream_spec,
)
from runtime.errors import EXIT_OK, MediaError, UsageError
from runtime.interrupt import check, leave
from runtime.media import Chunk, MediaInfo, Source
from runtime.media.open import name_sources
from runtime.naming import plain
from runtime.overwrites import refuse_overwrites
from runtime.spec import StreamSpec

if TYPE_CHECKING:
    from rich.console import Console

    from runtime.backends.base import Backend

LIVE_DURATION_S = 120.0
NEARLY_BLIND = 0.5  # a threshold that finds less of the shifted sound is said to find little


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return guarded(lambda: run_command(parser().parse_args(arguments)))


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="python -m runtime.calibrate",
        description="From genuine footage of this camera and microphone: the A/V offset and "
        "the threshold for runtime.stream --site.",
        epilog="Let the people speak who will be watched, in the light and at the distance of "
        "every day. Nothing of the footage is kept.",
    )
    add_source_options(p)
    add_model_options(p)
    p.add_argument("--duration", type=_duration, default=None, metavar="S",
                   help="seconds to take from each source (default: a file to its end, a live "
                        f"source {LIVE_DURATION_S:g})")  # fmt: skip
    p.add_argument("--output", type=Path, default=Path("site.json"), metavar="FILE",
                   help="default: site.json")  # fmt: skip
    p.add_argument("--false-alarm-rate", type=_rate, default=FALSE_ALARM_RATE, metavar="P",
                   help="of genuine blocks, two windows long (default: %(default)s)")  # fmt: skip
    p.set_defaults(allow_untrained=False)
    return p


def run_command(options: argparse.Namespace) -> int:
    from runtime.sinks import terminal

    if options.audio.kind == "none":
        raise UsageError("--audio none: a calibration needs picture and sound")
    sources = name_sources(options.source, options.name)
    _check_output(options.output)
    refuse_overwrites([("--output", options.output)], [*sources, *other_inputs(options)])
    out = terminal.console()
    with load_model(options) as backend:
        spec = backend.spec
        stream = stream_spec(spec.stream, spec.audio.token_hz, options)
        terminal.print_line(
            out, f"model {spec.model_id} on {backend.provider}: {len(sources)} source(s), which "
            "are taken to be genuine", style="dim",
        )  # fmt: skip
        footage = record(sources, options, backend, stream)
        offset = estimate_offset([f.recording for f in footage], spec, stream)
        if offset.tokens and not any(f.live for f in footage):  # a file can be read once more
            stream = replace(stream, av_offset_tokens=offset.tokens)
            footage = record(sources, options, backend, stream)
        kind = "+".join(sorted({f.kind for f in footage}))
        check()
        site = estimate([f.recording for f in footage], backend, stream, options.false_alarm_rate,
                        offset, kind)  # fmt: skip
        check()
    site.write(options.output)
    print_report(out, site, spec.audio.token_hz)
    terminal.print_line(
        out, f"{options.output} written; use it: python -m runtime.stream --site {options.output}"
    )
    return EXIT_OK


class Footage(NamedTuple):
    recording: Recording
    kind: str
    live: bool


def record(
    sources: Mapping[str, str],
    options: argparse.Namespace,
    backend: Backend,
    stream: StreamSpec,
) -> list[Footage]:
    """Judge each source in turn, for ``options.duration``, and keep the numbers.

    ``sources``: each with what it is called.

    Raises :class:`runtime.errors.MediaError` for one without picture or sound, and
    KeyboardInterrupt also where a live source would have ended in peace.
    """
    from runtime.flow.driver import run

    footage = []
    seconds, rate_hz = options.duration, backend.spec.audio.sample_rate_hz
    for given, name in sources.items():
        with (
            open_input(given, options, rate_hz, name) as source,
            progress(name, source, seconds) as advance,
        ):
            limited = Limited(source, _limit(source, seconds), advance)
            _check_media(source.info)
            recording = Recording(stream)
            summary = run(limited, backend, stream=stream, on_scores=recording.add)
            if not limited.complete:
                raise KeyboardInterrupt
            for line in summary.warnings:
                print(plain(line), file=sys.stderr)
            recording.seconds = limited.seconds
            footage.append(Footage(recording, source_kind(given, source), source.live))
    return footage


class Limited(SourceAround):
    """The first ``limit_s`` seconds of a source; ``complete`` once they, or it, are over."""

    def __init__(
        self, source: Source, limit_s: float | None, advance: Callable[[float], None]
    ) -> None:
        super().__init__(source)
        self._limit_s, self._advance = limit_s, advance
        self.seconds = 0.0
        self.complete = False

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in self._source:
            if self._limit_s is not None and chunk.t_s >= self._limit_s:
                break
            self.seconds = max(self.seconds, chunk.t_s)
            self._advance(self.seconds)
            yield chunk
        self.complete = True


@contextmanager
def progress(name: str, source: Source, seconds: float | None) -> Iterator[Callable[[float], None]]:
    """A bar on a terminal's standard error over the seconds of a source; yields what moves it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    console = Console(stderr=True, emoji=False)
    known = [s for s in (_limit(source, seconds), source.info.duration_s) if s is not None]
    verb = "recording" if source.live else "reading"
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(f"{verb} {escape(plain(name))}", total=min(known) if known else None)
        yield lambda seconds: bar.update(task, completed=seconds)


def source_kind(name: str, source: Source) -> str:
    """What a file may say of a source: never its name, its address or its credentials."""
    return scheme_of(name) or ("camera" if source.live else "file")


def print_report(out: Console, site: SiteCalibration, token_hz: float) -> None:
    """A table for people, and what it means in words."""
    from rich import box
    from rich.table import Table

    from runtime.sinks.terminal import print_line

    left = ", ".join(f"{reason} {n}" for reason, n in site.left_out.items())
    print_line(
        out, f"{duration(site.duration_s)} in {site.recordings} recording(s): {site.windows} "
        f"windows, {site.used_windows} used in {site.blocks} blocks of "
        f"{site.block_tokens / token_hz:g} s" + (f"; left out: {left}" if left else ""),
    )  # fmt: skip
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "as shipped", "here"):
        table.add_column(heading, no_wrap=True)
    table.add_column("95 % interval, basis")
    for row in report_rows(site, token_hz):
        table.add_row(*row)
    out.print(table)
    for line in statements(site):
        print_line(out, line)


def report_rows(site: SiteCalibration, token_hz: float) -> list[tuple[str, str, str, str]]:
    o, t = site.offset, site.threshold
    ms = 1000 / token_hz
    rate = f"{100 * t.false_alarm_rate:g} %"

    def share(hits: int, n: int) -> str:
        low, high = conformal.share_interval(hits, n)
        return f"{100 * low:.0f} to {100 * high:.0f} %" if n else "none tried"

    return [
        ("A/V offset", "0 ms", f"{o.ms:+.0f} ms" if o.found else "not found",
         f"{o.spread_low_tokens * ms:+.0f} to {o.spread_high_tokens * ms:+.0f} ms in 90 % of the "
         f"{o.clear_windows} windows of {o.measured_windows} with a clear peak"),
        ("threshold", f"{t.replaces:.3f}", f"{t.threshold:.4f}",
         f"at {rate}: rank {t.rank} of {site.blocks}, {t.quantile:.4f}; its own rate is "
         f"{100 * t.rate_low:.1f} to {100 * t.rate_high:.1f} %"),
        ("blocks with false alarms", f"{t.alarms_before} of {site.blocks}",
         f"{t.alarms_after} of {site.blocks}",
         f"as shipped {share(t.alarms_before, site.blocks)}; here few by construction"),
        ("moved sound found", f"{t.shifted_before} of {t.shifted}",
         f"{t.shifted_after} of {t.shifted}", share(t.shifted_after, t.shifted)),
    ]  # fmt: skip


def statements(site: SiteCalibration) -> list[str]:
    """What a person must know about these numbers, one line each."""
    o, t = site.offset, site.threshold
    lines = []
    if not o.found:
        lines.append(
            f"No common A/V offset: {o.clear_windows} of {o.measured_windows} windows had a clear "
            "peak, or these disagreed. Nothing is compensated from the start."
        )
    if 2 * t.alarms_before > site.blocks:
        lines.append(
            f"As shipped the model does not work at this site: it calls {t.alarms_before} of "
            f"{site.blocks} genuine blocks fake. A higher threshold makes it quieter, not better; "
            "to mend it, train it on footage of this camera (python -m trainer.fit --genuine)."
        )
    if t.shifted and t.shifted_after < NEARLY_BLIND * t.shifted:
        lines.append(
            f"Threshold {t.threshold:.4f} finds little: of {t.shifted} windows of this footage "
            f"whose sound was moved far beyond transport it calls {t.shifted_after} fake."
        )
    if t.threshold == MIN_THRESHOLD:
        lines.append(
            "The footage would allow a lower threshold; below one half a probability is no "
            "finding, so it stays there."
        )
    return lines


def _check_media(info: MediaInfo) -> None:
    for has, what in ((info.has_video, "picture"), (info.has_audio, "sound")):
        if not has:
            raise MediaError(
                f"{info.name} has no {what}; a calibration needs a source with picture and sound "
                "of people speaking"
            )


def _check_output(path: Path) -> None:
    """Now rather than after two minutes of recording."""
    folder = next(p for p in path.absolute().parents if os.path.exists(p))  # noqa: PTH110
    if os.path.isdir(path):  # noqa: PTH112, it never raises
        raise UsageError(f"--output {path} is a folder; give a file")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"--output {path}: cannot write in {folder}; choose another path")


def _limit(source: Source, seconds: float | None) -> float | None:
    return LIVE_DURATION_S if seconds is None and source.live else seconds


def _duration(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to a day")
    return value


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0001 <= value <= 0.5:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate from 0.0001 to 0.5")
    return value


if __name__ == "__main__":
    leave(main)
