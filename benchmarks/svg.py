# SPDX-License-Identifier: Apache-2.0
"""Two pictures as SVG text, drawn by hand so that a device needs no plotting library.

They take light or dark from whoever shows them.  At 420 units wide they are readable on a phone.
The two colours are Okabe and Ito's (2008).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH = 420
BLUE, ORANGE = "#0072b2", "#e69f00"
_STYLE = (
    ".p{color:#1b1f24;font:12px system-ui,sans-serif}.p text{fill:currentColor}"
    ".p .soft{opacity:.7}.p line{stroke:currentColor}"
    "@media(prefers-color-scheme:dark){.p{color:#e6e9ed}}"
)


def histogram(title: str, latency: Mapping[str, Any]) -> str:
    """Of one distribution: a bar a bin on a logarithmic axis; the median and the last percentile.

    A bin with one sample in it is still drawn: outliers are what such a picture is for.
    """
    edges, counts = latency["histogram"]["edges_ms"], latency["histogram"]["counts"]
    left, right, top, floor = 10, WIDTH - 10, 44, 150
    low, high = math.log(edges[0]), math.log(edges[-1])

    def x(ms: float) -> float:
        return left + (right - left) * (math.log(max(ms, edges[0])) - low) / (high - low)

    parts = [_text(left, 14, title, "bold"), _text(left, 30, _caption(latency), soft=True)]
    most = max(counts)
    for count, a, b in zip(counts, edges, edges[1:], strict=False):
        if count:
            height = max(2.0, (floor - top) * count / most)
            parts.append(_rect(x(a), floor - height, max(0.5, x(b) - x(a) - 0.5), height, BLUE))
    parts.append(_line(left, floor, right, floor))
    last = 0.0  # where the previous label ended: labels must not overlap
    for tick in ticks(edges[0], edges[-1]):
        at, label = x(tick), f"{tick:g} ms"
        half = 3.3 * len(label)
        if at - half >= last and at + half <= WIDTH:
            parts += [
                _line(at, floor, at, floor + 4),
                _text(at, floor + 17, label, anchor="middle"),
            ]
            last = at + half + 4
    percentiles = latency["percentiles"]
    for name in sorted({"p50", max(percentiles, key=lambda p: float(p[1:]))}):
        at = x(percentiles[name]["ms"])
        dashed = f'<line x1="{at:.1f}" y1="{top - 6}" x2="{at:.1f}" y2="{floor}" stroke="{ORANGE}" '
        parts.append(dashed + f'stroke-width="2" style="stroke:{ORANGE}"/>')
    return _svg(title, 175, parts)


def _caption(latency: Mapping[str, Any]) -> str:
    first, *others = latency["percentiles"].items()  # more than four do not fit
    shown = ", ".join(f"{name} {p['ms']:.3g}" for name, p in (first, *others[-3:]))
    return f"{shown}, max {latency['max_ms']:.3g} ms; {latency['samples']} samples"


def ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of every power of ten between the two."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
    return [t for t in every if low <= t <= high]


def waterfall(title: str, stages: Mapping[str, Mapping[str, float]]) -> str:
    """Stage by stage, each bar from where the one before ended: all windows, and the slowest."""
    left, right, top, row = 76, WIDTH - 100, 62, 30
    kinds = (("mean_ms", BLUE, 12.0), ("mean_of_slowest_ms", ORANGE, 7.0))
    totals = [sum(s[key] for s in stages.values()) for key, _, _ in kinds]
    scale = (right - left) / max(*totals, 1e-9)
    parts = [
        _text(10, 14, title, "bold"),
        _rect(10, 24, 10, 10, BLUE), _text(25, 33, "mean of all windows"),
        _rect(170, 24, 10, 10, ORANGE), _text(185, 33, "mean of the slowest 5 %"),
    ]  # fmt: skip
    reached = [0.0, 0.0]
    for i, (name, figures) in enumerate(stages.items()):
        y = top + i * row
        parts.append(_text(left - 8, y + 10, name, anchor="end"))
        for k, (key, colour, height) in enumerate(kinds):
            start, width = left + scale * reached[k], scale * figures[key]
            parts.append(_rect(start, y + 13 * k, max(1.0, width), height, colour))
            reached[k] += figures[key]
        both = " / ".join(f"{figures[key]:.1f}" for key, _, _ in kinds)
        parts.append(_text(WIDTH - 10, y + 10, f"{both} ms", anchor="end", soft=True))
    y = top + len(stages) * row + 10
    parts.append(_line(left, top - 8, left, y - 14))
    total = f"{totals[0]:.1f} ms on average, {totals[1]:.1f} ms in the slowest 5 %"
    parts.append(_text(10, y + 2, total, "bold"))
    return _svg(title, y + 10, parts)


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    name = escape(title, quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="p" viewBox="0 0 {WIDTH} {height:g}" '
        f'role="img" aria-label="{name}"><title>{name}</title><style>{_STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _text(
    x: float, y: float, text: str, weight: str = "normal", *, anchor: str = "start",
    soft: bool = False,
) -> str:  # fmt: skip
    kind = ' class="soft"' if soft else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"{kind}>'
        f"{escape(text)}</text>"
    )


def _rect(x: float, y: float, width: float, height: float, colour: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'
    )


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
