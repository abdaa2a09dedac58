# SPDX-License-Identifier: Apache-2.0
"""Three pictures as SVG text, drawn by hand so that a device needs no plotting library.

They take light or dark from whoever shows them.  At 420 units wide they are readable on a phone.
The colours are Okabe and Ito's (2008).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH = 420
BLUE, ORANGE = "#0072b2", "#e69f00"
COLOURS = (BLUE, ORANGE, "#009e73", "#d55e00", "#cc79a7")
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


def roofline(
    title: str,
    caption: str,
    roofs: Mapping[str, tuple[float, float]],
    marks: Mapping[str, float],
) -> str:
    """Attainable TFLOP/s over FLOP/byte, both axes logarithmic.

    ``roofs`` by device: GB/s of the memory and TFLOP/s of the peak; ``marks`` by name: FLOP/byte of
    a workload, a dashed line.  Raises :class:`ValueError` for more roofs than :data:`COLOURS`.
    """
    if len(roofs) > len(COLOURS):
        raise ValueError(f"{len(roofs)} roofs, at most {len(COLOURS)} can be told apart")
    left, right, top, floor = 44, WIDTH - 10, 62 + 16 * len(roofs), 300 + 16 * len(roofs)
    ridges = [peak * 1000 / memory for memory, peak in roofs.values()]
    first = math.log10(min(marks.values())) - 0.3
    last = math.log10(max(*ridges, *marks.values())) + 0.3
    low = min(memory for memory, _ in roofs.values()) * 10**first / 1000
    bottom, ceiling = math.log10(low), math.log10(max(p for _, p in roofs.values())) + 0.1

    def x(flop_per_byte: float) -> float:
        return left + (right - left) * (math.log10(flop_per_byte) - first) / (last - first)

    def y(tflops: float) -> float:
        return floor - (floor - top) * (math.log10(tflops) - bottom) / (ceiling - bottom)

    parts = [_text(10, 14, title, "bold"), _text(10, 30, caption, soft=True)]
    for i, (name, (memory, peak)) in enumerate(roofs.items()):
        at, ridge, colour = 38 + 16 * i, peak * 1000 / memory, COLOURS[i]
        parts += [
            _rect(10, at, 10, 10, colour),
            _text(25, at + 9, f"{name}: {memory:g} GB/s, {peak:.3g} TFLOP/s"),
            f'<polyline points="{x(10**first):.1f},{y(memory * 10**first / 1000):.1f} '
            f'{x(ridge):.1f},{y(peak):.1f} {right},{y(peak):.1f}" fill="none" stroke="{colour}" '
            'stroke-width="2"/>',
        ]
    for i, (name, flop_per_byte) in enumerate(marks.items()):
        across, up = x(flop_per_byte), floor - 8 - 15 * (len(marks) - 1 - i)
        parts += [
            f'<line x1="{across:.1f}" y1="{top - 4}" x2="{across:.1f}" y2="{floor}" '
            'stroke-dasharray="4 3"/>',
            _text(across + 4, up, f"{name} {flop_per_byte:.3g}", soft=True),
        ]
    parts += [_line(left, floor, right, floor), _line(left, top - 4, left, floor)]
    for power in range(math.ceil(first), math.floor(last) + 1):
        parts.append(_text(x(10.0**power), floor + 15, f"{10.0**power:g}", anchor="middle"))
    for power in range(math.ceil(bottom), math.floor(ceiling) + 1):
        parts.append(_text(left - 5, y(10.0**power) + 4, f"{10.0**power:g}", anchor="end"))
    parts.append(_text(right, floor + 31, "TFLOP/s over FLOP/byte", anchor="end", soft=True))
    return _svg(title, floor + 40, parts)


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
