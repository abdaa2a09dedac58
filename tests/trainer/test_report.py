# SPDX-License-Identifier: Apache-2.0
"""The report: its figures, its intervals, and that the page needs nothing but itself."""

from __future__ import annotations

import csv
import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra: pip install '.[train]'")

from trainer.data.layouts import CATEGORIES
from trainer.report import plots
from trainer.report.page import write_report
from trainer.scoring import metrics
from trainer.scoring.clips import ClipScores
from trainer.scoring.figures import figures


def table(people: int = 12, *, separation: float = 1.0, seed: int = 0) -> ClipScores:
    """Eight clips a person, two a category; forged clips score higher by ``separation``."""
    rng = np.random.default_rng(seed)
    category = np.tile(CATEGORIES, 2 * people)
    n = len(category)
    video = np.char.startswith(category, "Fake").astype(int)
    audio = np.char.endswith(category, "FakeAudio").astype(int)
    fake = video | audio
    p = 1 / (1 + np.exp(-rng.normal(0, 1, n) - separation * (2 * fake - 1)))
    return ClipScores(
        file=np.array([f"{i}.mp4" for i in range(n)]),
        identity=np.repeat([f"id{i}" for i in range(people)], 8),
        category=category,
        method=np.where(fake, "<wav2lip>", "real"),
        fake=fake,
        fake_video=video,
        fake_audio=audio,
        synthetic_voice=audio,
        p_fake=p,
        p_fake_video=p,
        p_fake_audio=np.full(n, np.nan),
        windows=np.full(n, 4),
        judged=np.full(n, 3),
        groups={"gender": np.repeat(["men", "women"], n // 2)},
        embedding=rng.normal(fake[:, None], 1, (n, 8)),
    )


class TestFigures:
    def test_values_are_the_metrics_and_lie_in_their_intervals(self):
        scores = table()
        result = figures(scores, 0.5)
        expected = metrics.summary(scores.fake, scores.p_fake)
        assert result["identities"] == 12
        assert result["in_domain"] == 0.75
        for name, figure in result["metrics"].items():
            assert figure["value"] == pytest.approx(expected[name], abs=1e-6)
            assert figure["low"] <= figure["value"] <= figure["high"]
            assert figure["low"] < figure["high"]

    def test_a_category_is_measured_against_all_genuine_clips(self):
        scores = table()
        entry = figures(scores, 0.5)["category"]["FakeVideo-RealAudio"]
        mask = (scores.category == "FakeVideo-RealAudio") | (scores.fake == 0)
        assert (entry["genuine"], entry["fake"]) == (24, 24)
        assert entry["metrics"]["auc"]["value"] == pytest.approx(
            metrics.auc(scores.fake[mask], scores.p_fake[mask]), abs=1e-6
        )

    def test_groups_hold_both_classes_of_their_people(self):
        groups = figures(table(), 0.5)["group"]["gender"]
        assert {k: (v["identities"], v["genuine"]) for k, v in groups.items()} == {
            "men": (6, 12),
            "women": (6, 12),
        }

    def test_a_head_that_the_model_lacks_has_no_figure(self):
        assert list(figures(table(), 0.5)["heads"]) == ["picture, against a forged picture"]

    def test_one_class_alone_has_no_auc_and_says_so(self):
        scores = table()
        result = figures(scores.where(scores.fake == 1), 0.5)
        assert result["metrics"]["auc"] == {"value": None, "low": None, "high": None}
        assert result["metrics"]["detection_rate"]["value"] > 0.5
        json.dumps(result, allow_nan=False)


class Page(html.parser.HTMLParser):
    """What a browser would load, the ids, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.images = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [v for k, v in attrs if k == "id" and v]
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]
        self.images += values.get("role") == "img"
        assert tag != "script"
        if tag not in ("meta", "path", "use", "image", "rect", "line", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(
        folder,
        {"untrimmed": table(), "trimmed": table(separation=0.2, seed=1)},
        0.5,
        title="A & B",
        about={"data": "<set>"},
        rounds=200,
    )
    return folder


class TestPage:
    def test_it_needs_nothing_from_elsewhere(self, written: Path):
        page = Page((written / "report.html").read_text())
        assert not page.open
        assert all(link.startswith(("#", "data:")) for link in page.links)
        assert len(page.ids) == len(set(page.ids))
        assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
        assert page.images == 5  # ROC, reliability, two confusions, t-SNE

    def test_it_names_the_paper_metric_and_counts_people_beside_figures(self, written: Path):
        text = (written / "report.html").read_text()
        assert "balanced accuracy (the paper&#39;s" in text
        assert text.count("12 identities") >= 3
        assert "&lt;wav2lip&gt;" in text
        assert "A &amp; B" in text
        assert "prefers-color-scheme: dark" in text

    def test_ink_follows_the_page(self, written: Path):
        text = (written / "report.html").read_text()
        assert "currentColor" in text
        assert plots.INK not in text

    def test_few_people_are_warned_of(self, tmp_path: Path, written: Path):
        write_report(tmp_path, {"untrimmed": table(3)}, 0.5, title="x", about={}, rounds=50)
        assert "Only 3 identities" in (tmp_path / "report.html").read_text()
        assert "Only" not in (written / "report.html").read_text()

    def test_the_same_figures_stand_in_json_and_csv(self, written: Path):
        result = json.loads((written / "metrics.json").read_text())
        figure = result["variants"]["trimmed"]["metrics"]["auc"]
        with (written / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        mine = [
            r for r in rows if (r["variant"], r["kind"], r["metric"]) == ("trimmed", "all", "auc")
        ]
        assert [float(mine[0][k]) for k in ("value", "low", "high")] == list(figure.values())
        assert mine[0]["identities"] == "12"
        shown = f"{figure['value'] * 100:.1f} %"
        assert shown in (written / "report.html").read_text()

    def test_scores_are_kept_beside_it(self, written: Path):
        assert len(ClipScores.read(written / "scores-trimmed.csv")) == 96


class TestPlots:
    def test_tsne_is_the_same_every_time(self):
        vectors = np.random.default_rng(0).normal(size=(30, 8))
        assert np.array_equal(plots.embed(vectors), plots.embed(vectors))
        assert plots.embed(vectors[:2]).shape == (2, 2)

    def test_two_groups_stay_apart(self):
        rng = np.random.default_rng(0)
        vectors = np.concatenate((rng.normal(0, 1, (40, 8)), rng.normal(8, 1, (40, 8))))
        points = plots.embed(vectors)
        first, second = points[:40], points[40:]
        gap = np.linalg.norm(first.mean(0) - second.mean(0))
        assert gap > 2 * max(first.std(), second.std())

    def test_a_curve_of_one_class_is_left_out(self):
        fake, score = np.ones(5, int), np.linspace(0, 1, 5)
        both = plots.roc({"a": (np.array([0, 1, 0, 1, 1]), score), "b": (fake, score)})
        assert "a: " in both
        assert "b: " not in both
        assert re.search(r'aria-label="ROC"', both)
