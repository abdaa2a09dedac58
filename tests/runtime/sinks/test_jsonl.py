# SPDX-License-Identifier: Apache-2.0
"""JSON Lines: a file appears whole or not at all."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from runtime.files import OutputError
from runtime.sinks.jsonl import JsonLinesSink
from tests.runtime.judging.test_verdict import verdict


def test_the_file_appears_only_when_it_is_committed(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    with JsonLinesSink(target) as sink:
        sink.write(verdict())
        sink.write(verdict(face_id=None))
        assert not target.exists()
        sink.commit()
    lines = target.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["face_id"] for line in lines] == [3, None]
    assert list(tmp_path.iterdir()) == [target]


def test_without_a_commit_an_older_file_stays_and_nothing_is_left_behind(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("older\n")
    with JsonLinesSink(target) as sink:
        sink.write(verdict())
    assert target.read_text() == "older\n"
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), JsonLinesSink(tmp_path / "out.jsonl") as sink:  # noqa: PT012
        sink.write(verdict())
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_the_file_has_the_usual_permissions(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        with JsonLinesSink(tmp_path / "out.jsonl") as sink:
            sink.commit()
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out.jsonl").stat().st_mode) == 0o644


def test_a_link_is_followed_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "real" / "out.jsonl")
    with JsonLinesSink(link) as sink:
        sink.commit()
    assert link.is_symlink()
    assert (tmp_path / "real" / "out.jsonl").is_file()


def test_a_folder_or_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    for target in (tmp_path, tmp_path / "none" / "out.jsonl"):
        with pytest.raises(OutputError, match="cannot write") as caught:
            JsonLinesSink(target)
        assert "\n" not in str(caught.value)


def test_standard_output_gets_each_line_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with JsonLinesSink("-") as sink:
        sink.write(verdict())
        assert json.loads(capsys.readouterr().out)["label"] == "fake"
    print("still open")
    assert capsys.readouterr().out == "still open\n"


@pytest.mark.skipif(not Path("/dev/null").is_char_device(), reason="needs /dev/null")
def test_a_device_is_written_not_replaced() -> None:
    with JsonLinesSink("/dev/null") as sink:
        sink.write(verdict())
        sink.commit()
    assert Path("/dev/null").is_char_device()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with (
        pytest.raises(OutputError, match="/dev/full: no space left"),
        JsonLinesSink("/dev/full") as sink,
    ):
        sink.write(verdict())


# Live


def test_a_live_sources_lines_are_in_the_file_at_once_and_added(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("older\n")
    with JsonLinesSink(target, live=True) as sink:
        for n in range(1, 4):
            sink.write(verdict())
            assert target.read_text().count("\n") == n + 1
    lines = target.read_text().splitlines()
    assert lines[0] == "older"
    assert json.loads(lines[3])["label"] == "fake"
    assert list(tmp_path.iterdir()) == [target]


def test_a_line_that_was_torn_stays_apart_from_the_new_ones(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text('{"torn')
    with JsonLinesSink(target, live=True) as sink:
        sink.write(verdict())
    first, second = target.read_text().splitlines()
    assert first == '{"torn'
    assert json.loads(second)["label"] == "fake"


def test_a_live_file_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        JsonLinesSink(tmp_path / "none" / "out.jsonl", live=True)
