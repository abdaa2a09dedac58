# SPDX-License-Identifier: Apache-2.0
"""Verdicts for people: one row a second and face with bars, and a summary at the end."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runtime.flow.summary import in_words, losses
from runtime.judging.verdict import Label, Reason, Verdict
from runtime.naming import plain, plain_line
from runtime.optional import optional

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from runtime.flow.summary import Summary
    from runtime.media import MediaInfo

BAR_CELLS = 8
LOG_COLUMNS = 140
HEADINGS = "    time  face  fake            picture         voice               A/V  verdict"
COLOURS = {Label.REAL: "green", Label.FAKE: "bold red", Label.ABSTAIN: "yellow"}
_UNREADABLE = (
    Reason.OUT_OF_DOMAIN,
    Reason.FACE_TOO_SMALL,
    Reason.FACE_TURNED,
    Reason.NO_ACTIVE_SPEAKER,
)
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def console(*, stderr: bool = False) -> Console:
    """Raises :class:`DependencyError` without rich."""
    with optional("to print"):
        from rich.console import Console
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):  # a name it cannot show must not end the run
        stream.reconfigure(errors="replace")
    out = Console(stderr=stderr, highlight=False, emoji=False)
    if not out.is_terminal:  # a log has no width: room for a table
        out.width = LOG_COLUMNS
    return out


class TimelineSink:
    """Prints a row when a second of the stream is over.

    Of the verdicts of a second the row shows the highest fake one, else the last one.  ``name``
    stands behind each row where several streams share the console.
    """

    def __init__(self, out: Console, name: str | None = None) -> None:
        self._out, self._name = out, name
        self._second: int | None = None
        self._rows: dict[int | None, Verdict] = {}
        self._started = False

    def write(self, verdict: Verdict) -> None:
        second = math.floor(verdict.t_end_s + 1e-9)
        if second != self._second:
            self.flush()
            self._second = second
        shown = self._rows.get(verdict.face_id)
        if shown is None or _weight(verdict) >= _weight(shown):
            self._rows[verdict.face_id] = verdict

    def flush(self) -> None:
        """Print the rows of the second that is over."""
        for verdict in sorted(self._rows.values(), key=lambda v: (v.t_end_s, v.face_id or 0)):
            if not self._started:
                self._started = True
                print_line(self._out, HEADINGS, style="dim")
            self._out.print(self._row(verdict), soft_wrap=True)
        self._rows.clear()

    def _row(self, v: Verdict) -> Text:
        from rich.text import Text

        plain = self._out.options.ascii_only
        scores = "  ".join(f"{bar(p, plain)} {number(p)}" for p in shown_scores(v))
        face = "-" if v.face_id is None else str(v.face_id)
        row = f"{v.t_end_s:6.1f} s  {face:>4}  {scores}  {offset(v):>7}  "
        behind = "" if self._name is None else f"  {plain_line(self._name)}"
        return Text.assemble(row, (outcome(v), COLOURS[v.label]), (behind, "dim"))


def _weight(verdict: Verdict) -> float:
    """Fake verdicts hide others of their second, the higher the lower."""
    return 1.0 + (verdict.p_fake or 0.0) if verdict.label is Label.FAKE else 0.0


def print_line(out: Console, text: str, style: str = "") -> None:
    """One line, never wrapped: a log file has no width.  What looks like markup is text."""
    out.print(cell(text, style), soft_wrap=True)


def cell(text: str, style: str = "") -> Text:
    """Plain text for rich: whatever is in a name or a message, it is shown as it is."""
    from rich.text import Text

    return Text(plain_line(text), style)


def print_header(out: Console, info: MediaInfo, model: str, provider: str, stream: str) -> None:
    from rich.text import Text

    parts = []
    if info.has_video:
        rate = f" at {info.fps:.4g} fps" if info.fps else ""
        parts.append(f"{info.width}x{info.height}{rate}")
    parts.append("with sound" if info.has_audio else "no sound")
    if info.duration_s:
        parts.append(f"{info.duration_s:.1f} s")
    name = (plain_line(info.name), "bold")
    out.print(Text.assemble(name, f"  {', '.join(parts)}"), soft_wrap=True)
    print_line(out, f"model {model} on {provider}, {stream}", style="dim")


def print_name(out: Console, name: str) -> None:
    """Whose summary follows, where several streams share the console."""
    print_line(out, name, style="bold")


def print_summary(out: Console, summary: Summary) -> None:
    print_line(out, result_line(summary), style="bold")
    for line in (*fake_lines(summary), *note_lines(summary)):
        print_line(out, "  " + plain(line))
    print_line(out, "  " + speed_line(summary), style="dim")


def print_table(out: Console, summaries: Sequence[Summary], failed: Sequence[str]) -> None:
    """One row a source, when there were several."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("source", overflow="fold")
    for name in ("windows", "real", "fake", "abstained", "coverage", "highest p_fake"):
        table.add_column(name, justify="right", no_wrap=True)
    for s in summaries:
        labels = s.stats.labels
        table.add_row(
            cell(s.source),
            str(s.stats.verdicts),
            *(str(labels[label.value]) for label in (Label.REAL, Label.FAKE, Label.ABSTAIN)),
            f"{s.stats.coverage:.0%}",
            number(s.highest_p_fake).strip(),
            style="red" if s.spans else None,
        )
    for name in failed:
        table.add_row(cell(name), "not read", style="yellow")
    out.print(table)


def result_line(s: Summary) -> str:
    labels, total = s.stats.labels, s.stats.verdicts
    shares = ", ".join(
        f"{labels[label.value] / total if total else 0:.0%} {label}"
        for label in (Label.REAL, Label.FAKE, Label.ABSTAIN)
    )
    by_count = sorted(s.stats.reasons.items(), key=lambda item: (-item[1], item[0]))
    reasons = ", ".join(f"{name} {n}" for name, n in by_count)
    return (
        f"{total} windows: {shares}{f' ({reasons})' if reasons else ''}; "
        f"coverage {s.stats.coverage:.0%}"
    )


def fake_lines(s: Summary) -> list[str]:
    return [
        f"judged fake: face {span.face_id}, {span.start_s:.1f} to {span.end_s:.1f} s"
        for span in s.spans
    ]


def note_lines(s: Summary) -> list[str]:
    """What went wrong on the way: nothing is passed over in silence."""
    counted = in_words(losses(s.stats, s.damaged, s.drops))
    lines = [", ".join(f"{n} {what}" for what, n in counted.items())]
    if s.shed_s:
        lines.append(f"could not keep up for {s.shed_s:.0f} s: less was done")
    lines.append(live_line(s))
    return [line for line in (*lines, *s.warnings) if line]


def live_line(s: Summary) -> str:
    """Lag, A/V offset and clocks of a live source: measured apart from the verdicts."""
    if not s.ended:
        return ""
    parts = [f"ended: {s.ended}"]
    if s.lag is not None:
        slope = s.lag.slope_ms_per_min
        growth = "run too short for its slope" if slope is None else f"slope {slope:+.1f} ms/min"
        parts.append(f"lag {s.lag.median_ms:.0f} ms (99 %: {s.lag.p99_ms:.0f} ms, {growth})")
    if s.av_offset_ms is not None:
        parts.append(f"A/V offset {s.av_offset_ms:+.0f} ms")
    if s.clock.drift_ppm is not None and s.clock.jitter_ms is not None:
        parts.append(f"sound clock {s.clock.drift_ppm:+.0f} ppm, jitter {s.clock.jitter_ms:.1f} ms")
    return "; ".join(parts)


def speed_line(s: Summary) -> str:
    stages = ", ".join(f"{name} {t:.2f}" for name, t in s.stats.seconds.items())
    factor = f", real-time factor {s.wall_s / s.media_s:.2f}" if s.media_s > 0 else ""
    return f"{s.media_s:.1f} s of media in {s.wall_s:.1f} s{factor} ({stages})"


def bar(p: float | None, plain: bool = False) -> str:
    """0 to 1 -> eight cells."""
    if p is None:
        return " " * BAR_CELLS
    eighths = round(min(1.0, max(0.0, p)) * BAR_CELLS * 8)
    full, part = divmod(eighths, 8)
    if plain:
        return ("#" * round(eighths / 8)).ljust(BAR_CELLS, ".")
    return ("█" * full + (_EIGHTHS[part] if part else "")).ljust(BAR_CELLS)


def number(p: float | None) -> str:
    return " -- " if p is None else f"{p:.2f}"


def shown_scores(v: Verdict) -> tuple[float | None, float | None, float | None]:
    """p_fake, picture, voice, as people get to see them: what the model makes of a face that it
    cannot read would be taken for a finding, so it stays in the JSON."""
    if v.reason in _UNREADABLE:
        return None, None, None
    return v.p_fake, v.p_fake_video, v.p_fake_audio


def offset(v: Verdict) -> str:
    return "--" if v.av_offset_ms is None else f"{v.av_offset_ms:+.0f} ms"


def outcome(v: Verdict) -> str:
    return f"{v.label}" if v.reason is None else f"{v.label}: {v.reason}"
