# SPDX-License-Identifier: Apache-2.0
"""The report: one page that needs nothing, hides nothing and believes nothing from outside."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime.flow.pictures
from runtime.files import OutputError
from runtime.flow.driver import run
from runtime.flow.session import Session
from runtime.flow.sink import Picture
from runtime.flow.summary import FakeSpan
from runtime.flow.windows import WindowRecord
from runtime.judging.decision import WindowFacts
from runtime.judging.verdict import Label, Reason, Verdict
from runtime.media.file import FileSource
from runtime.models import model_dir
from runtime.sinks.report import page as report_page
from runtime.sinks.report.history import History
from runtime.sinks.report.moments import BLUR, BLUR_BLOCKS, NONE, SHOW, Moment
from runtime.sinks.report.page import render
from runtime.sinks.report.sink import MAX_CANDIDATES, MAX_MOMENTS, ReportSink, blurred
from tests.runtime.clips import write_clip
from tests.runtime.doubles import SPEC, MockBackend, MockTracker, picture, speech
from tests.runtime.sinks.test_overlay import face
from tests.runtime.sinks.test_terminal import at, summary

pytest.importorskip("cv2", reason="OpenCV is not installed")
pytest.importorskip("kaldi_native_fbank", reason="kaldi-native-fbank is not installed")

EVIL = "<script>alert('x')</script>&\"\x00.mp4"


class Page(HTMLParser):
    """Every tag must be closed in order; collects texts, attributes and images."""

    VOID = ("meta", "img", "br", "rect", "line", "polyline")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.images: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "action", "data", "xlink:href", "srcset"):
                self.links.append(value or "")
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def sink(folder: Path, **options: Any) -> ReportSink:
    return ReportSink(folder / "out.html", SPEC, SPEC.stream, **options)


def feed(s: ReportSink, tokens: int = 75, late_tokens: int = 0) -> None:
    """What a session of such a stream tells the sink, as in a run."""
    session = Session(
        MockBackend(), source="a.mp4", tracker=MockTracker(), on_scores=s.scores,
        on_picture=lambda t, frame, faces: s.picture(Picture("a.mp4", t, frame, faces)),
    )  # fmt: skip
    sound = speech(tokens, late_tokens=late_tokens).reshape(tokens, -1)
    verdicts = []
    for t in range(tokens):
        verdicts += session.push_video(t / 25, picture(t))
        verdicts += session.push_audio(t / 25, sound[t])
    for v in [*verdicts, *session.finish()]:
        s.write(v)


def page(moments: tuple[Moment, ...] = (), history: History | None = None, **changes: Any) -> Page:
    options = {"faces": changes.pop("faces", SHOW), "model_card": changes.pop("card", None)}
    html = render(
        summary(**changes), SPEC, SPEC.stream, history or History(0.2), moments, **options
    )
    return Page(html)


def judged(*verdicts: Verdict) -> History:
    h = History(0.2)
    for v in verdicts:
        h.take(v)
    return h


# Which moments


def test_the_worst_moments_are_distinct_in_time_and_sorted(tmp_path: Path) -> None:
    s = sink(tmp_path)
    for i in range(200):
        end_s = 2.0 + 0.2 * i
        s.write(at(end_s, Label.FAKE, 0.6 + 0.001 * i if i % 40 == 20 else 0.1))
    s.abandon()
    kept = [m.verdict for m in s._candidates]
    assert [round(v.p_fake or 0, 3) for v in kept[:5]] == [0.78, 0.74, 0.7, 0.66, 0.62]
    for a in kept:
        assert all(abs(a.t_end_s - b.t_end_s) >= 2 - 1e-6 for b in kept if b is not a)


def test_another_face_at_the_same_time_is_another_moment(tmp_path: Path) -> None:
    s = sink(tmp_path)
    s.write(at(2.0, Label.FAKE, 0.9, face_id=0))
    s.write(at(2.2, Label.FAKE, 0.8, face_id=1))
    s.abandon()
    assert len(s._candidates) == 2


def test_a_score_that_is_not_shown_makes_no_moment(tmp_path: Path) -> None:
    s = sink(tmp_path)
    s.write(at(2.0, Label.ABSTAIN, 0.99, reason=Reason.OUT_OF_DOMAIN))
    s.write(at(2.0, Label.ABSTAIN, None, reason=Reason.NO_FACE))
    s.abandon()
    assert s._candidates == []


def test_a_long_stream_keeps_seconds_of_media_and_a_few_candidates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = sink(tmp_path)
    records: list[WindowRecord] = []
    monkeypatch.setattr(s, "scores", records.append)
    feed(s, 1000)
    monkeypatch.undo()
    for record in records:  # none of them meets its verdict
        s.scores(record)
    s.abandon()
    assert len(records) == 191
    assert max(len(p) for p in s._portraits.values()) <= 14 * 5 + 1
    assert len(s._records) <= 14 * 5 + 1
    assert all(r.visual is None and r.audio is None for r in s._records.values())
    assert len(s._candidates) == MAX_CANDIDATES


def test_a_face_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    s = sink(tmp_path)
    for t in range(0, 1000, 5):
        s.picture(Picture("a", t / 25, picture(t), [face((0, 0, 40, 40), track_id=t)]))
    s.abandon()
    assert len(s._portraits) <= 14 * 25 / 5 + 1


# From a stream to a page


def test_a_stream_becomes_a_page_with_what_its_moments_were_judged_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.flow.pictures, "FaceTracker", lambda spec: MockTracker())
    s, backend = sink(tmp_path), MockBackend()
    clip = write_clip(
        tmp_path / "clip.mkv", sound=speech(75, late_tokens=12), size=(64, 48),
        picture=lambda i, size: picture(i, (size[1], size[0])), codec="ffv1", pix_fmt="bgr0",
    )  # fmt: skip
    with FileSource(clip) as source:
        result = run(source, backend, sinks=[s])
    assert not (tmp_path / "out.html").exists()
    s.finish(result, model_card="# Card\n\nA *demonstration*.")
    shown = Page((tmp_path / "out.html").read_text(encoding="utf-8"))
    assert "▲ Judged fake face 0, 0 s to 3 s" in shown.text
    assert len([link for link in shown.links if link.startswith("data:image/jpeg")]) == 1
    assert "lips and sound fit best at +480 ms; the peak stands 0." in shown.text
    assert "This window alone: both 0.9" in shown.text
    assert sorted(f.name for f in tmp_path.iterdir()) == ["clip.mkv", "out.html"]


def test_a_real_clip_with_the_real_model_shows_its_lag_curves(
    grid_clip: Path, real_pair: Path, tmp_path: Path
) -> None:
    pytest.importorskip("dlib", reason="dlib is not installed")
    from runtime.backends.onnx import OnnxBackend

    with OnnxBackend(real_pair) as backend, FileSource(grid_clip) as source:
        s = ReportSink(tmp_path / "out.html", backend.spec, backend.spec.stream)
        result = run(source, backend, sinks=[s])
        s.finish(result)
    shown = Page((tmp_path / "out.html").read_text(encoding="utf-8"))
    assert result.stats.verdicts == 6
    if result.stats.coverage:
        assert "lips and sound fit best at" in shown.text
        assert "personal data" in shown.text
    assert grid_clip.name in shown.text
    assert str(grid_clip.parent) not in shown.text  # folders are nobody's business
    assert (tmp_path / "out.html").stat().st_size < 500_000


def test_the_page_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out.html"
    target.write_text("older")
    s = sink(tmp_path)
    s.abandon()
    assert target.read_text() == "older"
    assert list(tmp_path.iterdir()) == [target]
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        ReportSink(tmp_path / "folder.html", SPEC, SPEC.stream)


# What the page says


def test_it_loads_nothing_and_runs_nothing() -> None:
    html = render(
        summary(), SPEC, SPEC.stream, judged(at(2.0, Label.FAKE, 0.9)), [],
        faces=SHOW, model_card=(model_dir("msct-tiny") / "README.md").read_text(encoding="utf-8"),
    )  # fmt: skip
    shown = Page(html)
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(shown.tags)
    assert all(link.startswith("data:image/jpeg;base64,") for link in shown.links)
    assert not re.search(r"url\(|@import|https?://|\son\w+=", html.split("<body>")[0])
    assert "default-src 'none'" in html
    assert "prefers-color-scheme:dark" in html
    assert "width=device-width" in html


def test_what_comes_from_outside_is_escaped() -> None:
    s = summary(
        source=EVIL, model_id=EVIL, provider=EVIL, warnings=[EVIL], spans=[FakeSpan(0, 0.0, 1.0)]
    )
    card = f"# x\n\n{EVIL} **{EVIL}** `{EVIL}` [{EVIL}](javascript:alert(1))\n\n- {EVIL}\n"
    history = judged(at(2.0, Label.FAKE))
    html = render(s, SPEC, SPEC.stream, history, [], faces=SHOW, model_card=card)
    shown = Page(html)
    assert "script" not in shown.tags
    assert "<script" not in html
    assert "javascript:" not in html
    assert shown.text.count("<script>alert") >= 7


def test_without_a_verdict_it_says_so_and_draws_no_conclusion() -> None:
    stats = replace(summary().stats, labels={"real": 0, "fake": 0, "abstain": 10},
                    reasons={"out_of_domain": 10})  # fmt: skip
    history = judged(*(at(2.0 + i / 5, Label.ABSTAIN, 0.9, reason=Reason.OUT_OF_DOMAIN)
                       for i in range(10)))  # fmt: skip
    shown = page(history=history, stats=stats)
    assert "Nothing could be judged" in shown.text
    assert "neither good nor bad news" in shown.text
    assert "out of domain 10 the model cannot read" in shown.text
    assert "nothing to look at, and nothing to conclude" in shown.text


def test_real_is_not_called_genuine() -> None:
    stats = replace(summary().stats, labels={"real": 8, "fake": 0, "abstain": 2})
    shown = page(history=judged(at(2.0, Label.REAL, 0.1)), stats=stats)
    assert "Nothing was judged fake" in shown.text
    assert "clears nobody" in shown.text
    assert "the 20% of windows that abstained" in shown.text


def test_the_timeline_has_a_column_a_bin_and_says_why_windows_abstain() -> None:
    history = judged(
        at(2.0, Label.FAKE, 0.9, p_fake_video=0.8, p_fake_audio=0.2),
        at(2.2, Label.REAL, 0.1), at(2.4, Label.ABSTAIN, None, reason=Reason.NO_SPEECH),
    )  # fmt: skip
    html = render(summary(), SPEC, SPEC.stream, history, [], faces=SHOW, model_card=None)
    Page(html)
    assert html.count('class="f1"') == 1
    assert html.count('class="r1"') == 1
    assert "2.2 s to 2.4 s: abstained (no_speech 1)" in html
    assert "1.8 s to 2 s: fake, p_fake 0.90" in html


def test_losses_warnings_and_offsets_are_shown() -> None:
    stats = replace(summary().stats, dropped=3, late=2)
    shown = page(
        history=judged(at(2.0, Label.REAL, 0.1, av_offset_ms=80.0)),
        stats=stats, damaged=7, warnings=["--save-video: lost: 2 pictures (queue full)"],
        drops={"queue_full": 8},
    )  # fmt: skip
    assert "damaged packets or timestamps 7" in shown.text
    assert "timestamps that jump or could not be used 3" in shown.text
    assert "pictures dropped because the model was busy 8" in shown.text
    assert "--save-video: lost: 2 pictures (queue full)" in shown.text
    assert "face 3 +80 ms" in shown.text
    assert "Nothing was lost or damaged" in page().text


def test_the_shipped_model_card_is_summed_up_with_what_it_cannot_do() -> None:
    shown = page(card=(model_dir("msct-tiny") / "README.md").read_text(encoding="utf-8"))
    card = shown.text[shown.text.index("chosen at false alarms") :]
    assert "A demonstration, not a forensic tool." in card
    assert "What it cannot do" in card
    assert shown.tags.count("strong") >= 2
    assert shown.tags.count("code") >= 3
    assert "|" not in card  # no tables
    assert "](" not in card


def test_its_style_is_the_style_sheet_letter_by_letter() -> None:
    html = render(summary(), SPEC, SPEC.stream, History(0.2), [], faces=SHOW, model_card=None)
    assert (Path(report_page.__file__).with_name("report.css")).read_text().strip() in html


def test_random_weights_are_called_so() -> None:
    html = render(
        summary(), replace(SPEC, trained=False), SPEC.stream, History(0.2), [],
        faces=SHOW, model_card=None,
    )  # fmt: skip
    assert "weights are random" in html


# Faces are personal data


def colours(seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 255, (256, 256, 3), np.uint8)


def test_a_blurred_face_has_a_few_blocks_of_one_colour_each() -> None:
    image = blurred(colours())
    assert len(np.unique(image.reshape(-1, 3), axis=0)) <= BLUR_BLOCKS**2


@pytest.mark.parametrize(("faces", "images"), [(SHOW, 1), (BLUR, 1), (NONE, 0)])
def test_faces_are_shown_blurred_or_left_out(tmp_path: Path, faces: str, images: int) -> None:
    s = sink(tmp_path, faces=faces)
    feed(s)
    s.finish(summary())
    shown = Page((tmp_path / "out.html").read_text(encoding="utf-8"))
    assert len(shown.links) == images
    assert ("faces were left out" in shown.text) == (faces == NONE)
    assert ("(blurred)" in shown.text) == (faces == BLUR)
    assert ("shows faces of persons" in shown.text) == (faces != NONE)


def test_the_lag_curve_is_the_judged_one_on_the_axis_of_the_whole_offset() -> None:
    """Of a window whose sound the session had already moved by 2 tokens."""
    curve = np.zeros(31)
    curve[15 + 1], curve[15 - 15] = 0.5, 0.25
    facts = WindowFacts(50, 0, True, 80.0, False, True, 1.0, 0.0)
    record = WindowRecord(facts, None, 2, curve, None, None)
    html = render(
        summary(), SPEC, SPEC.stream, History(0.2),
        [Moment(at(2.0, Label.FAKE, 0.9), record, None)], faces=NONE, model_card=None,
    )  # fmt: skip
    assert "lips and sound fit best at +120 ms; the peak stands 0.50" in Page(html).text
    points = re.search(r'viewBox="-13 -4 30 108".*?points="([^"]*)"', html, re.DOTALL)
    assert points is not None
    assert points[1].split()[:2] == ["-13,50.0", "-12,100.0"]
    assert "3,0.0" in points[1].split()


def test_no_more_moments_than_a_reader_takes_in(tmp_path: Path) -> None:
    s = sink(tmp_path)
    for i in range(20):
        s.write(at(2.0 + 2 * i, Label.FAKE, 0.9))
    s.finish(summary())
    shown = Page((tmp_path / "out.html").read_text(encoding="utf-8"))
    assert shown.tags.count("article") == MAX_MOMENTS
    assert "was lost on the way to the report" in shown.text  # nobody told the sink of scores
