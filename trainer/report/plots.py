# SPDX-License-Identifier: Apache-2.0
"""Plots as SVG text that takes the colour of the page around it, light or dark.

Lines and letters are drawn in one marker colour, which becomes ``currentColor``.  The data's
colours are Okabe and Ito's (2008), told apart by people with colour-blindness as well.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.layouts import CATEGORIES

Array = npt.NDArray[Any]
INK = "#123456"
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
MARKERS = ("o", "^", "s", "D")  # of the four categories
SHORT = {  # the paper's names of the categories
    "RealVideo-RealAudio": "RARV",
    "RealVideo-FakeAudio": "FARV",
    "FakeVideo-RealAudio": "RAFV",
    "FakeVideo-FakeAudio": "FAFV",
}
_RASTER_FROM = 1500  # points of a scatter plot; beyond it a bitmap is smaller


def figure_and_axes(
    width: float, height: float, columns: int = 1, rows: int = 1
) -> tuple[Any, Any]:
    """A transparent figure of inches with axes [rows, columns], drawn in :data:`INK`."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    ink = dict.fromkeys(inked, INK)
    with mpl.rc_context({**ink, "font.size": 11}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
    for a in axes.flat:
        a.spines[["top", "right"]].set_visible(False)
        a.patch.set_alpha(0)
    figure.patch.set_alpha(0)
    return figure, axes


def as_svg(figure: Any, title: str) -> str:
    """The figure as one <svg> element that a screen reader can name."""
    import matplotlib as mpl

    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(text, format="svg", dpi=150, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # ids are unique within one figure only: make them so within the page
    prefix = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def add_legend(axes: Any, **options: Any) -> None:
    legend = axes.legend(frameon=False, fontsize=10, **options)
    for text in legend.get_texts():
        text.set_color(INK)


def roc(curves: Mapping[str, tuple[Array, Array]]) -> str:
    """``curves``: name -> (fake [n], score [n]); a set of one class has no curve."""
    from sklearn.metrics import roc_auc_score, roc_curve

    figure, axes = figure_and_axes(4.4, 4.2)
    a = axes[0, 0]
    a.plot((0, 1), (0, 1), color=INK, lw=0.7, ls=":")
    for colour, (name, (fake, score)) in zip(COLOURS, curves.items(), strict=False):
        if fake.min() == fake.max():
            continue
        x, y, _ = roc_curve(fake, score)
        a.plot(x, y, color=colour, lw=2, label=f"{name}: {roc_auc_score(fake, score):.3f}")
    a.set(xlabel="false alarms", ylabel="detections", xlim=(-0.02, 1), ylim=(0, 1.02), aspect=1)
    if a.get_legend_handles_labels()[0]:
        add_legend(a, loc="lower right", title="area")
        a.get_legend().get_title().set_color(INK)
    return as_svg(figure, "ROC")


def reliability(curves: Mapping[str, tuple[Array, Array]], bins: int = 10) -> str:
    """Share of forged clips among those with a score near p, and how many clips those are."""
    figure, axes = figure_and_axes(4.4, 4.2)
    a = axes[0, 0]
    a.plot((0, 1), (0, 1), color=INK, lw=0.7, ls=":")
    for colour, (name, (fake, score)) in zip(COLOURS, curves.items(), strict=False):
        which = np.minimum((score * bins).astype(int), bins - 1)
        used = np.unique(which)
        x = [score[which == b].mean() for b in used]
        y = [fake[which == b].mean() for b in used]
        n = np.array([(which == b).sum() for b in used])
        a.plot(x, y, color=colour, lw=1.2, label=name)
        a.scatter(x, y, s=12 + 160 * n / n.sum(), color=colour, alpha=0.8, linewidth=0)
    a.set(xlabel="p_fake", ylabel="share forged", xlim=(0, 1), ylim=(-0.02, 1.02), aspect=1)
    add_legend(a, loc="upper left")
    return as_svg(figure, "Reliability")


def confusion(
    counts: Array, called: Sequence[str], truth: Sequence[str], title: str = "Confusion"
) -> str:
    """counts [truth, called]; the shade is the share of its row."""
    from matplotlib.colors import LinearSegmentedColormap

    figure, axes = figure_and_axes(4.2, 0.9 + 0.55 * len(truth))
    a = axes[0, 0]
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    fade = LinearSegmentedColormap.from_list("fade", [(0, 0.447, 0.698, 0), (0, 0.447, 0.698, 1)])
    a.imshow(share, cmap=fade, vmin=0, vmax=1.3, aspect="auto")
    for i in range(len(truth)):
        for j in range(len(called)):
            text = f"{counts[i, j]} ({share[i, j]:.0%})"
            a.text(j, i, text, ha="center", va="center", color=INK)
    a.set_xticks(range(len(called)), [f"called {c}" for c in called])
    a.set_yticks(range(len(truth)), truth)
    a.tick_params(length=0)
    for spine in a.spines.values():
        spine.set_visible(False)
    return as_svg(figure, title)


def embed(vectors: Array, seed: int = 0) -> Array:
    """t-SNE of [n, E] -> [n, 2]; the perplexity is 30, less where there are few points."""
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    n = len(vectors)
    if n < 4:
        return np.zeros((n, 2))
    x = StandardScaler().fit_transform(vectors.astype(np.float64))
    perplexity = min(30.0, (n - 1) / 3)
    with threadpool_limits(1):  # sums in another order give another picture
        return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(x)


def tsne(panels: Mapping[str, tuple[Array, Array]], title: str = "t-SNE") -> str:
    """``panels``: name -> (embedding [n, E], category [n]); two panels a row, as in Fig. 5."""
    return as_svg(_tsne_figure(panels), title)


def save_tsne(panels: Mapping[str, tuple[Array, Array]], path: Any) -> None:
    """The same as a bitmap on white."""
    figure = _tsne_figure(panels)
    figure.patch.set_alpha(1)
    figure.savefig(path, dpi=160)


def _tsne_figure(panels: Mapping[str, tuple[Array, Array]]) -> Any:
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = figure_and_axes(4.4 * columns, 4.0 * rows + 0.4, columns, rows)
    handles: dict[str, Any] = {}
    for a, (name, (vectors, category)) in zip(axes.flat, panels.items(), strict=False):
        points = embed(vectors)
        for colour, marker, kind in zip(COLOURS, MARKERS, CATEGORIES, strict=False):
            mask = category == kind
            if mask.any():
                handles[SHORT[kind]] = a.scatter(
                    *points[mask].T,
                    s=16 if len(points) < _RASTER_FROM else 6,
                    color=colour,
                    marker=marker,
                    alpha=0.75,
                    linewidth=0,
                    rasterized=len(points) >= _RASTER_FROM,
                )
        a.set(xticks=[], yticks=[])
        if len(panels) > 1:
            a.set_title(name, color=INK, fontsize=11)
    for a in axes.flat[len(panels) :]:
        a.set_visible(False)
    legend = figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=4, frameon=False
    )
    for text in legend.get_texts():
        text.set_color(INK)
    return figure
