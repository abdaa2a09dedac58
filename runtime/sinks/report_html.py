# SPDX-License-Identifier: Apache-2.0
"""The report's one HTML page: no script, no font, no picture and no style from elsewhere.

It says so itself: its Content-Security-Policy lets a browser load nothing but the images inside.
It follows the reader's light or dark setting, fits a phone and a sheet of paper.  Colours are those
of Okabe & Ito (2008), and each is also said in words or by a shape.  Everything that comes from
outside (names of files, warnings, a model's card) is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.losses import in_words, losses
from runtime.sinks.heat_maps import driver, picture_map, voice_map
from runtime.sinks.history import OTHERS, Cell, History
from runtime.sinks.occlusion import UInt8
from runtime.sinks.report import BLUR, NONE, Moment
from runtime.sinks.timeline import number, offset, shown_scores, speed_line
from runtime.spec import PairSpec, StreamSpec
from runtime.verdict import MEANINGS, Label, Reason

if TYPE_CHECKING:
    from runtime.pipeline import Summary

MIN_SCALE = 0.5  # log-odds of full colour, at least: noise must not glow
HASHED_BYTES = 1 << 20  # at a time
MAX_SPANS = 12  # listed; the timeline shows all
STYLE = Path(__file__).with_name("report.css")
SYMBOLS = {Label.FAKE: "▲", Label.REAL: "●", Label.ABSTAIN: "○"}


def render(
    summary: Summary,
    spec: PairSpec,
    stream: StreamSpec,
    history: History,
    moments: Sequence[Moment],
    *,
    faces: str,
    model_card: str | None,
) -> str:
    """The whole page."""
    parts = [
        _header(summary, spec, stream),
        _timeline(history, spec),
        _abstentions(summary),
        _moments(moments, spec, stream, faces),
        _offsets(history, stream, spec),
        _losses(summary),
        _model(summary, spec, model_card),
        _limits(summary, moments, faces),
    ]
    name = escape(_short(summary.source))
    style = STYLE.read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{name}: is it genuine?</title><style>{style}</style></head><body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def _header(s: Summary, spec: PairSpec, stream: StreamSpec) -> str:
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
    shares = "".join(
        f'<i class="fill-{name}" style="width:{100 * labels[name] / total:.2f}%"></i>'
        for name in ("fake", "real", "abstain")
        if total and labels[name]
    )
    key = "".join(
        f'<span><i class="fill-{name}"></i>{labels[name]} {name}</span>'
        for name in ("fake", "real", "abstain")
    )
    info = s.info
    picture = f"{info.width}x{info.height}" if info.has_video else "none"
    if info.has_video and info.fps:
        picture += f", {info.fps:.4g} pictures a second"
    facts = {
        **_fingerprint(s.source),
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
    random = "" if spec.trained else _note("The weights are random: nothing here means anything.")
    return (
        "<header><h1>Is this talking face genuine?</h1>"
        f'<p class="name">{escape(_short(s.source))}</p>{random}'
        f'<div class="outcome {kind}"><b>{said}</b><p>{escape(told)}</p>'
        f'<div class="share">{shares}</div><div class="key">{key}'
        f"<span>coverage {s.stats.coverage:.0%}</span></div></div>{_facts(facts)}</header>"
    )


def _fingerprint(source: str) -> dict[str, str]:
    """Of a file, so that somebody can tell years later what was judged; its folder is private."""
    path = Path(source)
    if not path.is_file():
        return {"source": source}
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(HASHED_BYTES):
                digest.update(piece)
    except OSError:  # it was there when it was judged
        return {"source": path.name}
    return {"source": path.name, "SHA-256": digest.hexdigest()}


def _timeline(history: History, spec: PairSpec) -> str:
    if not history.faces:
        return "<section><h2>When</h2><p>There is no verdict.</p></section>"
    faces = sorted(history.faces.items(), key=lambda item: (item[0] is None, _order(item[0])))
    axis = _axis(history.bins * history.bin_s)
    rows = "".join(_face_rows(face, cells, history, spec) + axis for face, cells in faces)
    return (
        "<section><h2>When</h2>"
        '<p class="soft">Height is the probability of fake, the dashed line is the threshold. Each '
        f"column is {history.bin_s:g} s and shows the gravest verdict that ended in it; a verdict "
        "looks at the window before it. “Both” also weighs whether picture and voice belong "
        "together, so it can be high where each alone is not.</p>"
        '<div class="key"><span><i class="fill-fake"></i>fake</span>'
        '<span><i class="fill-real"></i>real</span>'
        '<span><i class="fill-abstain"></i>abstained: a thin line</span></div>'
        f"{rows}</section>"
    )


def _face_rows(face: int | None, cells: dict[int, Cell], history: History, spec: PairSpec) -> str:
    line = 100 - round(100 * spec.calibration.threshold)
    both = [_verdict_column(i, cell, history) for i, cell in sorted(cells.items())]
    if face is not None:
        both.append(f'<line class="t" x1="0" x2="{history.bins}" y1="{line}" y2="{line}"/>')
    parts = [("picture", "p_fake_video"), ("voice", "p_fake_audio")]
    first = ("both", "both") if face is not None else ("part", "abstains")
    lanes = [_lane(*first, both, history.bins)]
    for name, field in parts if face is not None else parts[1:]:
        bars = [_bar(i, getattr(cell, field)) for i, cell in sorted(cells.items())]
        lanes.append(_lane("part", name, bars, history.bins))
    return f"<h3>{_face_name(face)}</h3>" + "".join(lanes)


def _lane(kind: str, name: str, content: Iterable[str], bins: int) -> str:
    return (
        f'<div class="lane {kind}"><span>{name}</span><svg viewBox="0 0 {bins} 100" '
        f'preserveAspectRatio="none" role="img" aria-label="{name} over time">'
        f"{''.join(content)}</svg></div>"
    )


def _verdict_column(i: int, cell: Cell, history: History) -> str:
    when = f"{_clock(i * history.bin_s)} to {_clock((i + 1) * history.bin_s)}"
    if cell.label is Label.ABSTAIN:
        reasons = ", ".join(f"{r} {n}" for r, n in cell.reasons.most_common())
        title = f"{when}: abstained ({reasons})"
        return f'<rect class="a" x="{i}" y="86" width="1" height="14">{_title(title)}</rect>'
    title = f"{when}: {cell.label}, p_fake {number(cell.p_fake).strip()}"
    kind = "f" if cell.label is Label.FAKE else "r"
    high = max(3, round(100 * (cell.p_fake or 0.0)))
    return (
        f'<rect class="{kind}0" x="{i}" y="0" width="1" height="100">{_title(title)}</rect>'
        f'<rect class="{kind}1" x="{i}" y="{100 - high}" width="1" height="{high}">'
        f"{_title(title)}</rect>"
    )


def _bar(i: int, p: float | None) -> str:
    if p is None:
        return ""
    high = max(4, round(100 * p))
    return f'<rect class="b" x="{i}" y="{100 - high}" width="1" height="{high}"/>'


def _axis(end_s: float) -> str:
    steps = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400)
    step = next((s for s in steps if end_s / s <= 6), math.ceil(end_s / 6 / 86400) * 86400)
    marks = [i * step for i in range(int(end_s / step) + 1) if i * step <= 0.97 * end_s]
    spans = (f'<span style="left:{100 * t / end_s:.2f}%">{_clock(t)}</span>' for t in marks)
    return f'<div class="axis">{"".join(spans)}</div>'


def _abstentions(s: Summary) -> str:
    if not s.stats.reasons:
        return ""
    rows = "".join(
        f"<tr><td>{escape(str(reason).replace('_', ' '))}</td>"
        f'<td class="n">{n}</td><td>{escape(MEANINGS.get(Reason(reason), ""))}</td></tr>'
        for reason, n in sorted(s.stats.reasons.items(), key=lambda item: (-item[1], item[0]))
    )
    return (
        "<section><h2>Why windows abstained</h2><p>An abstention is no verdict: it counts neither "
        'for nor against anybody.</p><div class="scroll"><table><tr><th>reason</th>'
        f'<th class="n">windows</th><th>the window abstains because</th></tr>{rows}</table></div>'
        "</section>"
    )


def _moments(moments: Sequence[Moment], spec: PairSpec, stream: StreamSpec, faces: str) -> str:
    head = "<section><h2>The most suspicious moments</h2>"
    if not moments:
        return (
            head + "<p>No window had a probability that can be shown: there is nothing to look at, "
            "and nothing to conclude from that.</p></section>"
        )
    maps = [m.driven_by for m in moments if m.driven_by is not None]
    scales = (
        max([MIN_SCALE, *(float(np.abs(m.picture).max()) for m in maps)]),
        max([MIN_SCALE, *(float(np.abs(m.voice).max()) for m in maps)]),
    )
    window_s = stream.window_tokens / spec.audio.token_hz
    legend = (
        '<p class="soft small">Colour: the part of the evidence was covered and the window judged '
        "again (occlusion). Full colour is a change of the log-odds by "
        f"{scales[0]:.1f} in the picture and {scales[1]:.1f} in the voice.</p>"
        '<div class="scale"></div><div class="ends"><span>speaks for genuine</span>'
        "<span>speaks for fake</span></div>"
        if maps
        else ""
    )
    transport_ms = stream.max_transport_tokens * 1000 / spec.audio.token_hz
    cards = "".join(_moment(m, spec, scales, faces, transport_ms) for m in moments)
    return (
        f"{head}<p>The windows with the highest probability of fake, at least {window_s:g} s "
        "apart. Being listed is no verdict: the label says what was decided.</p>"
        f'{legend}<div class="moments">{cards}</div></section>'
    )


def _moment(
    m: Moment, spec: PairSpec, scales: tuple[float, float], faces: str, transport_ms: float
) -> str:
    v = m.verdict
    names = ("both", "picture", "voice")
    scores = "".join(
        f'<div class="score"><span>{name}</span><i>'
        f'<b style="width:{100 * (p or 0.0):.1f}%"></b></i>'
        f"<span>{number(p).strip()}</span></div>"
        for name, p in zip(names, shown_scores(v), strict=True)
    )
    portrait = None if m.portrait is None else _decode(m.portrait.jpeg)
    if portrait is None:
        why = "faces were left out" if faces == NONE else "no picture"
        shown = f'<div class="empty">{why}</div>'
        caption = ""
    else:
        shown = _image(portrait, f"face {v.face_id}")
        assert m.portrait is not None
        blurred = ", blurred" if faces == BLUR else ""
        caption = f"at {_clock(m.portrait.token / spec.audio.token_hz)}{blurred}"
    label = v.label.value if v.reason is None else f"{v.label}: {v.reason.value.replace('_', ' ')}"
    head = (
        f"<h3>{_clock(v.t_start_s)} to {_clock(v.t_end_s)} "
        f'<span class="soft small">{_face_name(v.face_id)}</span>'
        f'<span class="tag {v.label}">{SYMBOLS[v.label]} {escape(label)}</span></h3>'
    )
    if m.driven_by is None:
        heat = '<div class="empty">This window could not be judged again, so there is no map.</div>'
        voice = ""
    else:
        heat = _image(picture_map(portrait, m.driven_by.picture, scales[0], spec), "what drove it")
        sound = voice_map(m.driven_by, scales[1], spec.audio)
        voice = (
            f"<figure>{_image(sound, 'what drove it in the voice')}<figcaption>the voice, "
            f"{_clock(v.t_start_s)} to {_clock(v.t_end_s)}, low pitches at the bottom</figcaption>"
            f"</figure><p class='small'>{escape(driver(m.driven_by, spec))}</p>"
        )
    far = v.av_offset_ms is not None and abs(v.av_offset_ms) > transport_ms
    beyond = f": more than ordinary transport, ±{transport_ms:.0f} ms" if far else ""
    return (
        f'<article class="moment">{head}<div class="pair">'
        f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"
        f"<figure>{heat}<figcaption>what the score hangs on</figcaption></figure></div>"
        f"{voice}{scores}"
        f'<p class="small soft">A/V offset {offset(v)}{beyond}</p></article>'
    )


def _offsets(history: History, stream: StreamSpec, spec: PairSpec) -> str:
    faces = {
        face: {i: c.offset_ms for i, c in cells.items() if c.offset_ms is not None}
        for face, cells in history.faces.items()
    }
    faces = {face: points for face, points in faces.items() if points}
    head = "<section><h2>Sound against lips</h2>"
    if not faces:
        return head + "<p>The offset could not be measured.</p></section>"
    transport = stream.max_transport_tokens * 1000 / spec.audio.token_hz
    reach = max(transport, *(abs(ms) for points in faces.values() for ms in points.values())) * 1.15
    rows = ""
    for face, points in sorted(faces.items(), key=lambda item: _order(item[0])):
        content = (
            f'<rect class="r0" x="0" y="{50 - 50 * transport / reach:.1f}" width="{history.bins}" '
            f'height="{100 * transport / reach:.1f}"/>'
            f'<line class="z" x1="0" x2="{history.bins}" y1="50" y2="50"/>'
        )
        for run in _runs(sorted(points)):
            steps = " ".join(
                f"{x:g},{50 - 50 * points[i] / reach:.1f}" for i in run for x in (i, i + 1)
            )
            content += f'<polyline class="o" points="{steps}"/>'
        name = _face_name(face)
        rows += _lane("both", name, [content], history.bins)
    last = {face: points[max(points)] for face, points in faces.items()}
    said = "; ".join(f"{_face_name(face).lower()} {ms:+.0f} ms" for face, ms in last.items())
    return (
        f'{head}<p class="soft">Above the line the sound comes late, up to {reach:.0f} ms. Within '
        f"the band of ±{transport:.0f} ms it is ordinary transport, which is compensated and held "
        f"against nobody. Last measured: {said}.</p>{rows}{_axis(history.bins * history.bin_s)}"
        "</section>"
    )


def _losses(s: Summary) -> str:
    counted = in_words(losses(s.stats, s.damaged, s.drops))
    lost = {name: str(n) for name, n in counted.items()}
    warnings = "".join(f"<li>{escape(line)}</li>" for line in s.warnings)
    told = _facts(lost) if lost else "<p>Nothing was lost or damaged.</p>"
    return (
        f"<section><h2>Lost and damaged</h2>{told}"
        + (f"<ul>{warnings}</ul>" if warnings else "")
        + f'<p class="soft small">{escape(speed_line(s))}</p></section>'
    )


def _model(s: Summary, spec: PairSpec, card: str | None) -> str:
    c = spec.calibration
    rate = "not stated" if c.false_alarm_rate is None else f"{c.false_alarm_rate:.1%} on validation"
    facts = {
        "model": s.model_id,
        "precision": spec.precision,
        "threshold": f"{c.threshold:.2f} on p_fake, chosen at false alarms of {rate}",
    }
    told = card_summary(card) if card else "<p>No model card came with these weights.</p>"
    return f"<section><h2>The model</h2>{_facts(facts)}{told}</section>"


def _limits(s: Summary, moments: Sequence[Moment], faces: str) -> str:
    unjudged = 1 - s.stats.coverage
    lines = [
        "Whether somebody lied, who made a forgery, or who the person is. Faces are judged, not "
        "identified; their numbers count within this source.",
        "Whether it is genuine beyond doubt. A low probability clears nobody, a high one convicts "
        "nobody: have a person look, and ask for the original.",
        "Forgeries of a kind, and cameras and voices, that the model was not trained on: see its "
        "card above.",
        "Where exactly a forgery is. The coloured maps show what the score hangs on; that can be "
        "an innocent detail.",
    ]
    if unjudged > 0:
        lines.insert(2, f"Anything about the {unjudged:.0%} of windows that abstained.")
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    shown = faces != NONE and any(m.portrait is not None for m in moments)
    privacy = (
        "This file shows faces of persons"
        + (" (blurred)" if faces == BLUR else "")
        + " and how they were judged: personal data. Share it only with those who may see it, and "
        "delete it when it has served its purpose. "
        if shown
        else "How a person was judged is personal data: share this file with care. "
    )
    return (
        f"<section><h2>What this cannot tell</h2><ul>{items}</ul></section>"
        f"<footer><p>{privacy}It loads nothing from anywhere: it was made on the machine that "
        "judged, and works without a network.</p></footer>"
    )


def card_summary(card: str) -> str:
    """What a model card calls the model, what it stresses, and what the model cannot do: HTML."""
    sections = re.split(r"^## +(.*)$", card, flags=re.MULTILINE)
    intro = re.sub(r"^# .*$", "", sections[0], flags=re.MULTILINE)
    first, *others = re.split(r"\n\s*\n", intro.strip())
    parts = [_markdown("\n\n".join([first, *(p for p in others if p.startswith("**"))]))]
    for title, text in zip(sections[1::2], sections[2::2], strict=True):
        if "cannot" in title.lower() or "limit" in title.lower():
            parts.append(f"<h3>{escape(title.strip())}</h3>{_markdown(text)}")
    return "".join(parts)


def _markdown(text: str) -> str:
    """Paragraphs, lists, bold, code and the words of links; anything else stays as it is."""
    html = []
    for block in re.split(r"\n\s*\n", text.strip()):
        if not block.strip():
            continue
        if block.lstrip().startswith("- "):
            items = re.split(r"^- ", block.strip(), flags=re.MULTILINE)[1:]
            html.append(f"<ul>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</ul>")
        else:
            html.append(f"<p>{_inline(block)}</p>")
    return "".join(html)


def _inline(text: str) -> str:
    html = escape(" ".join(text.split()))
    html = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", html)
    html = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", html)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html)


def _image(rgb: UInt8, alt: str) -> str:
    import cv2

    fine, jpeg = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert fine, rgb.shape
    data = base64.b64encode(jpeg.tobytes()).decode()
    size = f'width="{rgb.shape[1]}" height="{rgb.shape[0]}"'
    return f'<img {size} alt="{escape(alt)}" src="data:image/jpeg;base64,{data}">'


def _decode(jpeg: bytes) -> UInt8:
    import cv2

    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    return np.ascontiguousarray(pixels[..., ::-1])


def _runs(bins: Sequence[int]) -> list[list[int]]:
    """Rising numbers in runs without a gap."""
    runs: list[list[int]] = []
    for i in bins:
        if runs and i == runs[-1][-1] + 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def _facts(facts: dict[str, str]) -> str:
    terms = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    return f"<dl>{terms}</dl>"


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>"


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
