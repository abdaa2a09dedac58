# SPDX-License-Identifier: Apache-2.0
"""Two latency results side by side: what counts as worse, and what may not be compared."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import compare
from benchmarks.compare import Figure, overlap
from benchmarks.latency.distribution import distribution

pytest.importorskip("jsonschema", reason="jsonschema is not installed (extra dev)")
COMMITTED = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "latency-2core.json"


@pytest.fixture
def before() -> dict[str, Any]:
    """The committed result with times that this test knows: 10 to 20 ms, 2000 of them."""
    result: dict[str, Any] = json.loads(COMMITTED.read_text(encoding="utf-8"))
    set_times(result, 1.0)
    return result


def set_times(result: dict[str, Any], factor: float, samples: int = 2000) -> None:
    times = np.linspace(10, 20, samples) * factor
    result["capture"]["beyond_evidence"] = distribution(times)


def run(tmp_path: Path, a: dict[str, Any], b: dict[str, Any], *options: str) -> int:
    paths = tmp_path / "a.json", tmp_path / "b.json"
    for path, result in zip(paths, (a, b), strict=True):
        path.write_text(json.dumps(result), encoding="utf-8")
    return compare.main([*map(str, paths), *options])


def test_a_result_is_no_worse_than_itself(
    before: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, before, before) == 0
    shown = capsys.readouterr().out
    assert "WORSE" not in shown
    assert "capture to verdict p99" in shown


def test_growth_beyond_tolerance_and_intervals_is_named_and_ends_with_1(
    before: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after = copy.deepcopy(before)
    set_times(after, 1.5)
    assert run(tmp_path, before, after) == 1
    told = capsys.readouterr()
    assert "capture to verdict p50, ms" in told.err
    assert "capture to verdict p99, ms" in told.err
    assert "frame_encoder" not in told.err


def test_what_is_faster_or_within_the_tolerance_is_fine(
    before: dict[str, Any], tmp_path: Path
) -> None:
    for factor in (0.5, 1.05):
        after = copy.deepcopy(before)
        set_times(after, factor)
        assert run(tmp_path, before, after) == 0
    assert run(tmp_path, before, after, "--tolerance", "0.01") == 1


def test_a_growth_that_the_intervals_allow_is_told_and_not_held_against_it(
    before: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after = copy.deepcopy(before)
    set_times(before, 1.0, samples=8)
    set_times(after, 1.15, samples=8)
    assert run(tmp_path, before, after) == 0
    assert "within the intervals" in capsys.readouterr().out


def test_memory_has_no_interval_and_counts_by_tolerance_alone(
    before: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after = copy.deepcopy(before)
    after["capture"]["peak_memory_mb"] *= 1.2
    assert run(tmp_path, before, after) == 1
    assert "peak memory, MB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("machine", "processor", "Mock CPU"),
        ("machine", "cores", 64),
        ("model", "provider", "CUDAExecutionProvider"),
        ("model", "precision", "fp16"),
        ("settings", "size", "1280x720"),
        ("device", "power_mode", "MAXN"),
    ],
)
def test_what_was_not_measured_alike_is_refused_unless_forced(
    before: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    part: str,
    name: str,
    value: Any,
) -> None:
    after = copy.deepcopy(before)
    after[part][name] = value
    assert run(tmp_path, before, after) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert str(value) in said[0]
    assert "--force" in said[0]
    assert run(tmp_path, before, after, "--force") == 0
    assert str(value) in capsys.readouterr().err


def test_only_what_both_have_is_compared(before: dict[str, Any]) -> None:
    after = copy.deepcopy(before)
    dropped = after["engine"]["cases"].pop()["name"]
    names = [row.name for row in compare.compare(before, after)]
    assert not [name for name in names if name.startswith(dropped)]
    assert len(names) == len(compare.figures(before)) - 2


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (Figure("x", 1, 0, 2, True), Figure("x", 3, 2, 4, True), True),
        (Figure("x", 1, 0, 2, True), Figure("x", 3, 2.1, 4, True), False),
        (Figure("x", 1, 0, None, True), Figure("x", 9, 8, 10, True), True),  # open end
        (Figure("x", 1), Figure("x", 3), None),
    ],
)
def test_intervals_overlap_where_they_share_a_value(
    a: Figure, b: Figure, expected: bool | None
) -> None:
    assert overlap(a, b) is expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "is no result"),
        ('{"benchmark": "stream"}', "is no result"),
        ('{"benchmark": "latency", "schema_version": 99}', "schema version 99"),
        ('{"benchmark": "latency", "schema_version": 1}', "does not fit"),
    ],
)
def test_another_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    path = tmp_path / "other.json"
    path.write_text(text, encoding="utf-8")
    assert compare.main([str(path), str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_a_byte_order_mark_is_no_part_of_the_json(tmp_path: Path, before: dict[str, Any]) -> None:
    path = tmp_path / "marked.json"
    path.write_text(json.dumps(before), encoding="utf-8-sig")
    assert compare.main([str(path), str(path)]) == 0


def test_a_file_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main([str(tmp_path / "none.json"), str(COMMITTED)]) == 2
    assert "cannot read" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["-0.1", "nan", "much", "11"])
def test_a_wrong_tolerance_is_usage(text: str) -> None:
    with pytest.raises(SystemExit) as end:
        compare.main(["a.json", "b.json", "--tolerance", text])
    assert end.value.code == 2
