# SPDX-License-Identifier: Apache-2.0
"""A latency result as pictures: SVG that takes the colour of the page around it (matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.report import plots

BLUE, ORANGE = plots.COLOURS[:2]
WIDTH_IN = 5.2


def draw(result: Mapping[str, Any]) -> dict[str, str]:
    """Name -> SVG, of a result of ``benchmarks.latency``."""
    capture = result["capture"]
    drawn = {
        "waterfall": waterfall("From capture to verdict, by stage", capture["stages"]),
        "capture": histogram(
            "Capture to verdict, beyond the evidence wait", capture["beyond_evidence"]
        ),
    }
    for case in result["engine"]["cases"]:
        name = case["name"].replace(" ", "-").replace("=", "").lower()
        drawn[name] = histogram(case["name"], case["latency"])
    return drawn


def histogram(title: str, latency: Mapping[str, Any]) -> str:
    """Of one distribution, both axes logarithmic: the median and the last percentile are dashed.

    A bin with one sample in it is still seen: outliers are what such a picture is for.
    """
    from matplotlib import ticker

    edges, counts = latency["histogram"]["edges_ms"], latency["histogram"]["counts"]
    figure, axes = plots.figure_and_axes(WIDTH_IN, 2.6)
    a = axes[0, 0]
    a.stairs(counts, edges, fill=True, color=BLUE, baseline=0.5)
    a.set(xscale="log", yscale="log", ylim=(0.5, None), ylabel="calls")
    a.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 5, 7)))
    a.xaxis.set_major_formatter("{x:g}")
    a.xaxis.set_minor_formatter(ticker.NullFormatter())
    a.set_xlabel(_caption(latency), fontsize=9)
    a.set_title(title, loc="left", fontsize=10, color=plots.INK)
    percentiles = latency["percentiles"]
    for name in sorted({"p50", max(percentiles, key=lambda p: float(p[1:]))}):
        a.axvline(percentiles[name]["ms"], color=ORANGE, lw=1.5, ls="--")
    return plots.as_svg(figure, title)


def _caption(latency: Mapping[str, Any]) -> str:
    first, *others = latency["percentiles"].items()  # more than four do not fit
    shown = ", ".join(f"{name} {p['ms']:.3g}" for name, p in (first, *others[-3:]))
    return f"ms: {shown}, max {latency['max_ms']:.3g}; {latency['samples']} samples"


def waterfall(title: str, stages: Mapping[str, Mapping[str, float]]) -> str:
    """Stage by stage, each bar from where the one before ended: all windows, and the slowest."""
    kinds = (("mean_ms", BLUE, "all windows"), ("mean_of_slowest_ms", ORANGE, "the slowest 5 %"))
    figure, axes = plots.figure_and_axes(WIDTH_IN, 0.9 + 0.34 * len(stages))
    a = axes[0, 0]
    for k, (key, colour, label) in enumerate(kinds):
        widths = [figures[key] for figures in stages.values()]
        starts = [sum(widths[:i]) for i in range(len(widths))]
        places = [i + 0.38 * k for i in range(len(widths))]
        a.barh(places, widths, 0.36, starts, color=colour, label=f"{label}: {sum(widths):.1f} ms")
    a.set_yticks([i + 0.19 for i in range(len(stages))], list(stages))
    a.invert_yaxis()
    a.set_xlabel("ms")
    a.set_title(title, loc="left", fontsize=10, color=plots.INK)
    plots.add_legend(a, loc="lower left")
    return plots.as_svg(figure, title)
