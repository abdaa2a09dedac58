# SPDX-License-Identifier: Apache-2.0
"""Names of files are no formulas in a spreadsheet, numbers stay numbers, and both can be read."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.sheets import original, safe


@pytest.mark.parametrize(
    "text",
    ["=1+1", "=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "-x.mp4",
     "\uff1d1+1", "'=1", "--1", "-1 ", "=HYPERLINK(\"http://x\")"],
)  # fmt: skip
def test_what_would_be_a_formula_begins_with_an_apostrophe(text: str) -> None:
    assert safe(text) == "'" + text
    assert original("'" + text) == text


@pytest.mark.parametrize("text", ["", "-", "a=1", "-1", "+1.5", "-3.2e-05", "'a'", "clip.mp4", "'"])
def test_what_is_none_stays(text: str) -> None:
    assert safe(text) == text
    assert original(text) == text


@pytest.mark.parametrize("value", [None, -1, -0.5, True])
def test_what_is_no_text_stays(value: object) -> None:
    assert safe(value) is value


@given(st.text())
def test_every_text_comes_back(text: str) -> None:
    written = io.StringIO()
    csv.writer(written).writerow(["x", safe(text)])
    (row,) = csv.reader(io.StringIO(written.getvalue(), newline=""))
    assert original(str(safe(text))) == text
    if "\x00" not in text:
        assert original(row[1]) == text
    assert not str(safe(text)).startswith(("=", "@", "\t", "\r"))
