# SPDX-License-Identifier: Apache-2.0
"""The report's one HTML page: no script, no font, no picture and no style from elsewhere.

It says so itself: its Content-Security-Policy lets a browser load nothing but the images inside.
It follows the reader's light or dark setting, fits a phone and a sheet of paper.  Colours are those
of Okabe & Ito (2008), and each is also said in words or by a shape.  ``page.html`` has the words
and the shapes, this module the numbers; what comes from outside (names of files, warnings, a
model's card) is escaped by the template.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.flow.summary import in_words, losses
from runtime.flow.windows import WindowRecord
from runtime.judging.offset import lag_peak
from runtime.judging.verdict import MEANINGS, Label, Reason
from runtime.logits import probability
from runtime.naming import name_of_file
from runtime.pages import fill
from runtime.sinks.report.history import OTHERS, Cell, History
from runtime.sinks.report.moments import BLUR, NONE, PORTRAIT_PX, Moment
from runtime.sinks.terminal import number, offset, shown_scores, speed_line
from runtime.spec import PairSpec, StreamSpec

if TYPE_CHECKING:
    from runtime.flow.summary import Summary

HASHED_BYTES = 1 << 20  # at a time
MAX_SPANS = 12  # listed; the timeline shows all
TEMPLATE = Path(__file__).with_name("page.html")
SYMBOLS = {Label.FAKE: "▲", Label.REAL: "●", Label.ABSTAIN: "○"}
Values = dict[str, Any]  # what a part of the template is filled with
Block = tuple[str, Any]  # of a card: "h3" and a text, "p" and runs, "ul" and runs of each item


def render(
    summary: Summary,
    spec: PairSpec,
    stream: StreamSpec,
    history: History,
    moments: Sequence[Moment],
    *,
    faces: str,
    model_card: str | None,
    file: Path | None = None,
) -> str:
    """The whole page; ``file``: what was judged, where it is one."""
    unjudged = 1 - summary.stats.coverage
    return fill(
        TEMPLATE,
        trained=spec.trained,
        faces_left_out=faces == NONE,
        faces_blurred=faces == BLUR,
        faces_shown=faces != NONE and any(m.portrait is not None for m in moments),
        unjudged=f"{unjudged:.0%}" if unjudged > 0 else "",
        moments=[_moment(m, spec, stream, faces) for m in moments],
        window_s=f"{stream.window_tokens / spec.audio.token_hz:g}",
        within=stream.max_transport_tokens,
        clear_from=f"{stream.min_lag_confidence:.2f}",
        portrait_px=PORTRAIT_PX,
        reasons=_reasons(summary),
        warnings=summary.warnings,
        lost=in_words(losses(summary.stats, summary.damaged, summary.drops)),
        speed=speed_line(summary),
        model=_model(summary, spec),
        card=card_summary(model_card) if model_card else [],
        **_header(summary, spec, stream, file),
        **_timeline(history, spec),
        **_offsets(history, stream, spec),
    )


def _header(s: Summary, spec: PairSpec, stream: StreamSpec, file: Path | None) -> Values:
    labels, total = s.stats.labels, s.stats.verdicts
    hz = spec.audio.token_hz
    if s.spans:
        kind, said = "fake", f"{SYMBOLS[Label.FAKE]} Judged fake"
        spans = [
            f"face {span.face_id}, {_clock(span.start_s)} to {_clock(span.end_s)}"
            for span in s.spans[:MAX_SPANS]
        ]
        more = len(s.spans) - len(spans)
        told = "; ".join(spans) + (f"; and {more} more" if more else "")
    elif labels["real"]:
        kind, said = "real", f"{SYMBOLS[Label.REAL]} Nothing was judged fake"
        told = "That clears nobody: it says what this model found in the windows that it judged."
    else:
        kind, said = "none", f"{SYMBOLS[Label.ABSTAIN]} Nothing could be judged"
        told = "Every window abstained, for the reasons below. That is neither good nor bad news."
    info, names = s.info, ("fake", "real", "abstain")
    picture = f"{info.width}x{info.height}" if info.has_video else "none"
    if info.has_video and info.fps:
        picture += f", {info.fps:.4g} pictures a second"
    about = {
        **_fingerprint(s.source, file or (None if s.ended else Path(s.source))),
        "length": f"{_clock(s.media_s)} read",
        "picture": picture,
        "sound": "yes" if info.has_audio else "none",
        "judged": f"windows of {stream.window_tokens / hz:g} s every {stream.hop_tokens / hz:g} s: "
        "picture, voice, and whether they belong together",
        "coverage": f"{s.stats.coverage:.0%} of {total} windows got a verdict",
        "highest p_fake": "no window was judged"
        if s.highest_p_fake is None
        else f"{s.highest_p_fake:.2f} (fake from {spec.calibration.threshold:.2f} on)",
        "model": s.model_id,
        "computed by": s.provider,
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }
    return {
        "name": _short(s.source),
        "outcome": {"kind": kind, "said": said, "told": told},
        "shares": [(n, f"{100 * labels[n] / total:.2f}") for n in names if total and labels[n]],
        "counts": [(n, labels[n]) for n in names],
        "coverage": f"{s.stats.coverage:.0%}",
        "about": about,
    }


def _fingerprint(source: str, path: Path | None) -> dict[str, str]:
    """Of a file, so that somebody can tell years later what was judged; its folder is private."""
    if path is None or not os.path.isfile(path):  # noqa: PTH113, it never raises
        return {"source": source}
    name = name_of_file(path.name)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(HASHED_BYTES):
                digest.update(piece)
    except OSError:  # it was there when it was judged
        return {"source": name}
    return {"source": name, "SHA-256": digest.hexdigest()}


def _timeline(history: History, spec: PairSpec) -> Values:
    faces = sorted(history.faces.items(), key=lambda item: (item[0] is None, _order(item[0])))
    return {
        "bins": history.bins,
        "bin_s": f"{history.bin_s:g}",
        "marks": _marks(history.bins * history.bin_s),
        "threshold_y": 100 - round(100 * spec.calibration.threshold),
        "faces": [_face(face, sorted(cells.items()), history) for face, cells in faces],
    }


def _face(face: int | None, cells: list[tuple[int, Cell]], history: History) -> Values:
    def bars(field: str) -> list[tuple[int, int]]:
        found = ((i, getattr(cell, field)) for i, cell in cells)
        return [(i, max(4, round(100 * p))) for i, p in found if p is not None]

    parts = [("picture", bars("p_fake_video")), ("voice", bars("p_fake_audio"))]
    return {
        "name": _face_name(face),
        "judged": face is not None,
        "columns": [_column(i, cell, history.bin_s) for i, cell in cells],
        "parts": parts if face is not None else parts[1:],
    }


def _column(i: int, cell: Cell, bin_s: float) -> Values:
    when = f"{_clock(i * bin_s)} to {_clock((i + 1) * bin_s)}"
    if cell.label is Label.ABSTAIN:
        reasons = ", ".join(f"{r} {n}" for r, n in cell.reasons.most_common())
        return {"x": i, "kind": "a", "title": f"{when}: abstained ({reasons})"}
    return {
        "x": i,
        "kind": "f" if cell.label is Label.FAKE else "r",
        "high": max(3, round(100 * (cell.p_fake or 0.0))),
        "title": f"{when}: {cell.label}, p_fake {number(cell.p_fake).strip()}",
    }


def _marks(end_s: float) -> list[tuple[str, str]]:
    """Places along the axis in per cent, and their times."""
    if not end_s:
        return []
    steps = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400)
    step = next((s for s in steps if end_s / s <= 6), math.ceil(end_s / 6 / 86400) * 86400)
    marks = [i * step for i in range(int(end_s / step) + 1) if i * step <= 0.97 * end_s]
    return [(f"{100 * t / end_s:.2f}", _clock(t)) for t in marks]


def _reasons(s: Summary) -> list[tuple[str, int, str]]:
    found = sorted(s.stats.reasons.items(), key=lambda item: (-item[1], item[0]))
    return [(r.replace("_", " "), n, MEANINGS.get(Reason(r), "")) for r, n in found]


def _moment(m: Moment, spec: PairSpec, stream: StreamSpec, faces: str) -> Values:
    v = m.verdict
    label = v.label.value if v.reason is None else f"{v.label}: {v.reason.value.replace('_', ' ')}"
    transport_ms = stream.max_transport_tokens * 1000 / spec.audio.token_hz
    far = v.av_offset_ms is not None and abs(v.av_offset_ms) > transport_ms
    beyond = f": more than ordinary transport, ±{transport_ms:.0f} ms" if far else ""
    caption = ""
    if m.portrait is not None:
        blurred = ", blurred" if faces == BLUR else ""
        caption = f"at {_clock(m.portrait.token / spec.audio.token_hz)}{blurred}"
    return {
        "when": f"{_clock(v.t_start_s)} to {_clock(v.t_end_s)}",
        "face": _face_name(v.face_id),
        "label": v.label.value,
        "said": f"{SYMBOLS[v.label]} {label}",
        "jpeg": "" if m.portrait is None else base64.b64encode(m.portrait.jpeg).decode(),
        "caption": caption,
        "curve": _lag_curve(m.record, 1000 / spec.audio.token_hz),
        "scores": [
            (name, f"{100 * (p or 0.0):.1f}", number(p).strip())
            for name, p in zip(("both", "picture", "voice"), shown_scores(v), strict=True)
        ],
        "alone": _alone(m, spec),
        "offset": f"{offset(v)}{beyond}",
    }


def _lag_curve(record: WindowRecord | None, token_ms: float) -> Values | None:
    """How well lips and sound fit at each offset between them."""
    if record is None or record.curve is None:
        return None
    curve, shift = record.curve, record.compensation_tokens  # [2 L + 1]
    first = shift - len(curve) // 2  # the offset of the first point
    low, high = float(curve.min()), float(curve.max())
    heights = [100 - 100 * (float(c) - low) / max(high - low, 1e-6) for c in curve]
    peak = lag_peak(curve)
    return {
        "first": first,
        "width": len(curve) - 1,
        "points": " ".join(f"{first + i},{y:.1f}" for i, y in enumerate(heights)),
        "from": f"{first * token_ms:+.0f} ms",
        "to": f"{(first + len(curve) - 1) * token_ms:+.0f} ms",
        "best": f"{(shift + peak.lag_tokens) * token_ms:+.0f} ms",
        "height": f"{peak.confidence:.2f}",
    }


def _alone(m: Moment, spec: PairSpec) -> str:
    """The window's own joint scores; ``p_fake`` is smoothed over the windows before it."""
    if m.record is None or m.record.scores is None:
        return "What this window was judged by was lost on the way to the report."
    c, scores = spec.calibration, m.record.scores
    alone = probability(scores.logit_av, c.temperature_av, c.bias_av)
    return (
        f"This window alone: both {alone:.2f}, picture and voice belong together {scores.sync:.2f}."
    )


def _offsets(history: History, stream: StreamSpec, spec: PairSpec) -> Values:
    found = {
        face: {i: c.offset_ms for i, c in cells.items() if c.offset_ms is not None}
        for face, cells in sorted(history.faces.items(), key=lambda item: _order(item[0]))
    }
    faces = {face: points for face, points in found.items() if points}
    transport = stream.max_transport_tokens * 1000 / spec.audio.token_hz
    reach = 1.15 * max(
        transport, *(abs(ms) for points in faces.values() for ms in points.values()), 0.0
    )
    last = ((_face_name(face).lower(), points[max(points)]) for face, points in faces.items())
    return {
        "offsets": [(_face_name(face), _lines(points, reach)) for face, points in faces.items()],
        "transport": f"{transport:.0f}",
        "reach": f"{reach:.0f}",
        "band_y": f"{50 - 50 * transport / reach:.1f}",
        "band_height": f"{100 * transport / reach:.1f}",
        "last_measured": "; ".join(f"{name} {ms:+.0f} ms" for name, ms in last),
    }


def _lines(points: dict[int, float], reach: float) -> list[str]:
    """One of steps for each run of bins without a gap."""
    return [
        " ".join(f"{x:g},{50 - 50 * points[i] / reach:.1f}" for i in run for x in (i, i + 1))
        for run in _runs(sorted(points))
    ]


def _model(s: Summary, spec: PairSpec) -> dict[str, str]:
    c = spec.calibration
    rate = "not stated" if c.false_alarm_rate is None else f"{c.false_alarm_rate:.1%} on validation"
    return {
        "model": s.model_id,
        "precision": spec.precision,
        "threshold": f"{c.threshold:.2f} on p_fake, chosen at false alarms of {rate}",
    }


def card_summary(card: str) -> list[Block]:
    """What a model card calls the model, what it stresses, and what the model cannot do."""
    sections = re.split(r"^## +(.*)$", card, flags=re.MULTILINE)
    intro = re.sub(r"^# .*$", "", sections[0], flags=re.MULTILINE)
    first, *others = re.split(r"\n\s*\n", intro.strip())
    blocks = _markdown("\n\n".join([first, *(p for p in others if p.startswith("**"))]))
    for title, text in zip(sections[1::2], sections[2::2], strict=True):
        if "cannot" in title.lower() or "limit" in title.lower():
            blocks += [("h3", title.strip()), *_markdown(text)]
    return blocks


def _markdown(text: str) -> list[Block]:
    """Paragraphs, lists, bold, code and the words of links; anything else stays as it is."""
    blocks: list[Block] = []
    for block in filter(None, (b.strip() for b in re.split(r"\n\s*\n", text))):
        if block.startswith("- "):
            items = re.split(r"^- ", block, flags=re.MULTILINE)[1:]
            blocks.append(("ul", [_inline(item) for item in items]))
        else:
            blocks.append(("p", _inline(block)))
    return blocks


def _inline(text: str) -> list[tuple[str, str]]:
    """Runs of a text: strong, code or plain."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(text.split()))
    runs = []
    for piece in re.split(r"(\*\*[^*]+\*\*|`[^`]+`)", plain):
        kind = "strong" if piece.startswith("**") else "code" if piece.startswith("`") else ""
        runs.append((kind, piece.strip("*`") if kind else piece))
    return runs


def _runs(bins: Sequence[int]) -> list[list[int]]:
    """Rising numbers in runs without a gap."""
    runs: list[list[int]] = []
    for i in bins:
        if runs and i == runs[-1][-1] + 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def _face_name(face: int | None) -> str:
    return "No face" if face is None else "Further faces" if face == OTHERS else f"Face {face}"


def _order(face: int | None) -> float:
    return math.inf if face is None or face == OTHERS else face


def _clock(seconds: float) -> str:
    """0.4 s, 1:05, 2:01:05."""
    if seconds < 60:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _short(source: str) -> str:
    """The last part of a path; anything else as it is."""
    return source if "://" in source else source.rstrip("/").rsplit("/", 1)[-1] or source
