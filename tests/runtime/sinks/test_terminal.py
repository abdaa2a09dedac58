# SPDX-License-Identifier: Apache-2.0
"""The timeline for people."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from runtime.flow.summary import FakeSpan, Stats, Summary
from runtime.judging.verdict import Label, Reason, Verdict
from runtime.media import MediaInfo
from runtime.sinks.terminal import (
    TimelineSink,
    bar,
    note_lines,
    print_header,
    print_summary,
    print_table,
    result_line,
)
from tests.runtime.judging.test_verdict import verdict


def at(end_s: float, label: Label, p_fake: float | None = 0.5, **changes: Any) -> Verdict:
    return verdict(t_start_s=end_s - 2, t_end_s=end_s, label=label, p_fake=p_fake, **changes)


def show(*verdicts: Verdict) -> list[str]:
    out = io.StringIO()
    sink = TimelineSink(Console(file=out, width=40, highlight=False))
    for v in verdicts:
        sink.write(v)
    sink.flush()
    return out.getvalue().splitlines()


def summary(**changes: Any) -> Summary:
    stats = Stats(verdicts=10, labels={"real": 6, "fake": 2, "abstain": 2},
                  reasons={"uncertain": 1, "no_face": 1})  # fmt: skip
    info = MediaInfo("a.mp4", True, True, 640, 480, 25.0, 4.0)
    values: dict[str, Any] = {
        "source": "a.mp4", "model_id": "m-1", "provider": "cpu", "info": info, "stats": stats,
        "media_s": 4.0, "wall_s": 1.0,
    }  # fmt: skip
    return Summary(**{**values, **changes})


def test_one_row_a_second_and_face_under_one_heading() -> None:
    lines = show(
        at(2.0, Label.REAL, 0.1), at(2.2, Label.REAL, 0.2), at(2.8, Label.REAL, 0.3),
        at(3.0, Label.REAL, 0.4), at(3.0, Label.REAL, 0.1, face_id=4),
    )  # fmt: skip
    assert len(lines) == 4
    assert lines[0].split()[:3] == ["time", "face", "fake"]
    assert "2.8 s" in lines[1]
    assert "0.30" in lines[1]
    assert [line.split()[2] for line in lines[1:]] == ["3", "3", "4"]


def test_a_fake_window_is_not_hidden_by_others_of_its_second() -> None:
    lines = show(
        at(2.0, Label.REAL, 0.1), at(2.2, Label.FAKE, 0.9), at(2.4, Label.FAKE, 0.8),
        at(2.6, Label.REAL, 0.2),
    )  # fmt: skip
    assert "2.2 s" in lines[1]
    assert lines[1].endswith("fake")


def test_abstentions_say_why_and_scores_without_basis_are_blank() -> None:
    line = show(at(2.0, Label.ABSTAIN, None, reason=Reason.NO_FACE, face_id=None,
                   av_offset_ms=None))[1]  # fmt: skip
    assert line.endswith("abstain: no_face")
    assert " -- " in line


def test_rows_are_not_wrapped_in_a_narrow_log() -> None:
    assert all("s" in line for line in show(at(2.0, Label.REAL), at(3.0, Label.REAL))[1:])


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.0, " " * 8), (0.5, "████    "), (1.0, "████████"), (0.0625, "▌       "), (None, " " * 8)],
)
def test_bars(p: float | None, expected: str) -> None:
    assert bar(p) == expected


def test_bars_without_unicode() -> None:
    assert (bar(0.5, plain=True), bar(1.0, plain=True)) == ("####....", "########")


def test_summary_says_shares_reasons_coverage_spans_and_troubles() -> None:
    s = summary(spans=[FakeSpan(0, 1.0, 3.2)], damaged=3, warnings=["ends at 4 s"])
    assert result_line(s) == (
        "10 windows: 60% real, 20% fake, 20% abstain (no_face 1, uncertain 1); coverage 80%"
    )
    out = io.StringIO()
    print_summary(Console(file=out, width=200), s)
    text = out.getvalue()
    assert "judged fake: face 0, 1.0 to 3.2 s" in text
    assert "3 damaged packets or timestamps" in text
    assert "ends at 4 s" in text
    assert "real-time factor 0.25" in text


def test_a_clean_run_has_no_notes() -> None:
    assert note_lines(summary()) == []


def test_header_names_source_model_and_provider() -> None:
    out = io.StringIO()
    info = MediaInfo("[odd] name.mp4", True, False, 640, 480, None, None)
    print_header(Console(file=out, width=200), info, "m-1", "CPUExecutionProvider", "windows")
    text = out.getvalue()
    for part in ("[odd] name.mp4", "640x480", "no sound", "m-1", "CPUExecutionProvider"):
        assert part in text


def test_table_of_several_sources() -> None:
    out = io.StringIO()
    print_table(Console(file=out, width=120), [summary(highest_p_fake=0.7)], ["broken.mp4"])
    assert "80%" in out.getvalue()
    assert "not read" in out.getvalue()
