# SPDX-License-Identifier: Apache-2.0
"""Model folders appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from export.manifest import check_writable, staged_folder, write_manifest
from runtime.errors import UserError
from runtime.files import write_json
from runtime.spec import PairSpec


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_new_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    with staged_folder(target) as staging:
        (staging / "a.onnx").write_text("a")
        assert not target.exists()
    assert contents(target) == {"a.onnx": "a"}
    assert [path.name for path in target.parent.iterdir()] == ["model"]


def test_a_new_folder_can_be_read_by_others(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with staged_folder(tmp_path / "model"):
        pass
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with staged_folder(tmp_path / "model") as staging:
            (staging / "a.onnx").write_text("a")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("old")

    def fail() -> None:
        with staged_folder(tmp_path) as staging:
            (staging / "a.onnx").write_text("new")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert contents(tmp_path) == {"a.onnx": "old"}


def test_files_of_a_folder_that_exists_are_replaced_and_others_stay(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "a.onnx").write_text("old")
    (target / "README.md").write_text("card")
    with staged_folder(target) as staging:
        (staging / "a.onnx").write_text("new")
        (staging / "manifest.json").write_text("{}")
    assert contents(target) == {"a.onnx": "new", "README.md": "card", "manifest.json": "{}"}


def test_what_the_old_manifest_lists_and_the_new_one_does_not_goes(tmp_path: Path) -> None:
    target, spec = tmp_path / "model", PairSpec(pair_id="p")
    for names in (("a.onnx", "a.engine"), ("a.onnx",)):
        with staged_folder(target) as staging:
            for name in names:
                (staging / name).write_text(name)
            write_manifest(staging, names, spec, {})
        (target / "README.md").write_text("card")
    assert sorted(contents(target)) == ["README.md", "a.onnx", "manifest.json"]


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine")
    target = tmp_path / "model"
    target.mkdir()
    (target / "manifest.json").write_text('{"files": {"../other": {}}}')
    with staged_folder(target) as staging:
        (staging / "a.onnx").write_text("a")
    assert (tmp_path / "other").read_text() == "mine"


@pytest.mark.parametrize("name", ["file", "file/model"])
def test_a_file_in_the_way_is_one_clear_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(UserError, match=f"cannot write to {tmp_path / name}.*--output") as caught,
        staged_folder(tmp_path / name),
    ):
        raise AssertionError("the block must not run")
    assert "\n" not in str(caught.value)


def test_the_manifest_says_what_the_files_are(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"abc")
    spec = PairSpec(pair_id="p", model_id="m", trained=True)
    path = write_manifest(tmp_path, ("a.onnx",), spec, {"backend": "onnx"})
    manifest = json.loads(path.read_text())
    assert manifest["files"] == {
        "a.onnx": {"sha256": hashlib.sha256(b"abc").hexdigest(), "bytes": 3}
    }
    assert manifest["model_id"] == "m"
    assert manifest["backend"] == "onnx"
    assert PairSpec.from_json(json.dumps(manifest["spec"])) == spec


def test_a_report_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    for value in (1, 2):
        write_json(path, {"value": value})
        assert json.loads(path.read_text()) == {"value": value}
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]


@pytest.mark.parametrize("check", [check_writable, lambda path: write_json(path, {})])
def test_a_report_that_cannot_be_written_is_one_clear_line(tmp_path: Path, check: object) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=f"cannot write {tmp_path / 'file' / 'r.json'}"):
        check(tmp_path / "file" / "r.json")  # type: ignore[operator]
    with pytest.raises(UserError, match=f"cannot write {tmp_path}"):
        check(tmp_path)  # type: ignore[operator]


def test_checking_leaves_no_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "r.json")
    assert list(tmp_path.iterdir()) == []
