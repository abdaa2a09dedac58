# SPDX-License-Identifier: Apache-2.0
"""A site file travels as JSON, belongs to one model, and changes two values and nothing else."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.fuzz.targets import example_site
from runtime.backends.base import Backend
from runtime.calibrate.site import SiteBackend, SiteCalibration, SiteError
from runtime.errors import UserError
from tests.runtime.doubles import SPEC, MockBackend

SITE = example_site(SPEC.model_id, SPEC.pair_id)


def test_a_site_file_comes_back_as_it_went(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "site.json"
    SITE.write(path)
    assert SiteCalibration.read(path) == SITE
    assert SiteCalibration.from_json(SITE.to_json()) == SITE
    assert len(path.read_text().splitlines()) > 20  # people read it


def test_an_editor_may_put_a_byte_order_mark_before_it(tmp_path: Path) -> None:
    path = tmp_path / "site.json"
    path.write_text(SITE.to_json(), encoding="utf-8-sig")
    assert SiteCalibration.read(path) == SITE


def test_the_headline_names_date_threshold_and_rate() -> None:
    assert SITE.headline == (
        "site calibration of 2026-03-01, threshold 0.62 at 5 %, A/V offset +80 ms"
    )


def test_it_changes_threshold_and_offset_and_nothing_else() -> None:
    applied = SITE.apply(SPEC)
    assert applied == replace(
        SPEC,
        stream=replace(SPEC.stream, av_offset_tokens=2),
        calibration=replace(SPEC.calibration, threshold=0.62, false_alarm_rate=0.05),
    )
    assert applied.model_id == SPEC.model_id


def test_a_backend_at_a_site_computes_the_same_under_another_spec() -> None:
    inner = MockBackend()
    with SiteBackend(inner, SITE) as backend:
        assert isinstance(backend, Backend)
        assert (backend.spec, backend.provider) == (SITE.apply(SPEC), "mock")
        frames = np.full((3, 32, 32, 3), 100, np.uint8)
        assert np.array_equal(backend.encode(frames), inner.encode(frames))
        visual = np.ones((1, 4, 16), np.float32)
        audio = np.ones((1, 4, 104), np.float32)
        assert np.array_equal(backend.fuse(visual, audio).sync, inner.fuse(visual, audio).sync)


def test_a_site_file_of_another_model_is_refused_with_the_remedy() -> None:
    other = replace(SPEC, pair_id="other", model_id="other-1")
    with pytest.raises(SiteError, match=r"made with mock-1 .*not with other-1 .*calibrate again"):
        SITE.apply(other)
    with pytest.raises(SiteError):
        SiteBackend(MockBackend(other), SITE)


def test_windows_must_be_those_it_was_made_with() -> None:
    SITE.check_windows(SPEC.stream, 25.0)
    with pytest.raises(SiteError, match=r"windows of 2 s every 0.2 s, not of 1 s every 0.2 s"):
        SITE.check_windows(replace(SPEC.stream, window_tokens=25), 25.0)


def test_an_offset_beyond_what_the_model_allows_is_refused() -> None:
    with pytest.raises(SiteError, match="av_offset_tokens"):
        replace(SITE, offset=replace(SITE.offset, tokens=6)).apply(SPEC)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), 1, "its version is 1, this runtime reads 2"),
        (("colour",), "red", "unknown fields colour"),
        (("offset", "colour"), "red", "Offset: unknown fields colour"),
        (("blocks",), "29", "blocks"),
        (("left_out",), [1], "left_out"),
        (("left_out", "no_face"), "many", "left_out.no_face"),
        (("offset", "found"), 1, "found"),
        (("offset",), None, "Offset"),
        (("threshold", "threshold"), 1.5, "threshold.threshold is 1.5"),
        (("threshold", "false_alarm_rate"), -0.1, "false_alarm_rate"),
        (("threshold", "quantile"), float("nan"), "threshold.quantile is nan"),
        (("offset", "ms"), float("inf"), "offset.ms is inf"),
        (("created",), "yesterday", "no date"),
    ],
)
def test_what_is_no_site_file_is_one_line(
    path: tuple[str, ...], value: object, message: str, tmp_path: Path
) -> None:
    data = dataclasses.asdict(SITE)
    inner: Any = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file = tmp_path / "site.json"
    file.write_text(json.dumps(data))
    with pytest.raises(SiteError, match=message) as caught:
        SiteCalibration.read(file)
    assert str(caught.value).startswith(f"{file} is no site calibration: ")
    assert "calibrate again: python -m runtime.calibrate" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["threshold", "pair_id", "left_out"])
def test_a_missing_field_is_named(field: str) -> None:
    data = dataclasses.asdict(SITE)
    del data[field]
    with pytest.raises(UserError, match=f"SiteCalibration: no {field}"):
        SiteCalibration.from_json(json.dumps(data))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b" " * (2 << 20)]
)
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "site.json"
    file.write_bytes(content)
    with pytest.raises(SiteError, match="is no site calibration"):
        SiteCalibration.read(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"cannot read .*gone.json: no such file"):
        SiteCalibration.read(tmp_path / "gone.json")
    with pytest.raises(SiteError, match="cannot read"):
        SiteCalibration.read(tmp_path)
