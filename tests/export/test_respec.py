# SPDX-License-Identifier: Apache-2.0
"""A pair of an older version, written anew: the same graphs under the spec of today."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx", reason="needs onnx (.[export])")

from export import precision, respec  # noqa: E402
from runtime.backends.onnx import read_pair  # noqa: E402
from runtime.errors import EXIT_ERROR, EXIT_OK, EXIT_USAGE, ModelError  # noqa: E402
from runtime.spec import FRAME_ENCODER_FILE, FUSION_FILE, METADATA_KEY, PairSpec  # noqa: E402
from tests.export import synthetic  # noqa: E402


def aged(text: str) -> str:
    """A spec as version 1 wrote it."""
    data = json.loads(text)
    del data["face"]["stage"], data["model"]["geometry_dim"]
    return json.dumps({**data, "version": 1}, sort_keys=True)


@pytest.fixture
def older(tmp_path: Path) -> Path:
    folder = synthetic.write_pair(tmp_path / "older")
    for name in (FRAME_ENCODER_FILE, FUSION_FILE):
        model = onnx.load(folder / name)
        (entry,) = model.metadata_props
        entry.value = aged(entry.value)
        (folder / name).write_bytes(model.SerializeToString())
    return folder


def test_the_runtime_refuses_it_and_says_how_to_go_on(older: Path) -> None:
    with pytest.raises(ModelError, match="has version 1, this runtime reads 2; python -m export"):
        read_pair(older)


def test_graphs_weights_and_names_stay(
    older: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new"
    assert respec.main([str(older), "--output", str(output)]) == EXIT_OK
    assert capsys.readouterr().out == f"{output}: mini-01234567, spec version 2\n"
    spec, _ = read_pair(output)
    assert spec == synthetic.SPEC
    assert (spec.face.stage, spec.model.geometry_dim) == ("dlib", 0)
    for name in (FRAME_ENCODER_FILE, FUSION_FILE):
        before, after = onnx.load(older / name), onnx.load(output / name)
        assert precision.read_spec(after) == spec
        for model in (before, after):
            del model.metadata_props[:]
        assert before == after


def test_what_was_measured_is_kept(older: Path, tmp_path: Path) -> None:
    manifest = {"files": {}, "backend": "onnx", "parity": {"checks": [1]}, "model_id": "x"}
    (older / "manifest.json").write_text(json.dumps(manifest))
    respec.respec(older, tmp_path / "new")
    written = json.loads((tmp_path / "new" / "manifest.json").read_text())
    assert written["parity"] == {"checks": [1]}
    assert written["model_id"] == "mini-01234567"


def test_a_pair_of_today_is_written_as_it_is(tmp_path: Path) -> None:
    folder = synthetic.write_pair(tmp_path / "pair", synthetic.FOLLOWING)
    assert respec.respec(folder, tmp_path / "new") == synthetic.FOLLOWING


@pytest.mark.parametrize("damage", ["missing", "garbage", "foreign", "mixed"])
def test_what_is_no_pair_is_one_line_and_nothing_is_written(
    damage: str, older: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = older / FUSION_FILE
    if damage == "missing":
        path.unlink()
    elif damage == "garbage":
        path.write_bytes(b"\xff" * 99)
    else:
        model = onnx.load(path)
        if damage == "foreign":
            del model.metadata_props[:]
        else:
            text = PairSpec.from_older_json(model.metadata_props[0].value).to_json()
            model.metadata_props[0].value = text.replace("mini-0", "maxi-0")
            assert model.metadata_props[0].key == METADATA_KEY
        path.write_bytes(model.SerializeToString())
    assert respec.main([str(older), "--output", str(tmp_path / "new")]) == EXIT_ERROR
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_the_folder_itself_is_no_output(older: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert respec.main([str(older), "--output", str(older / ".." / "older")]) == EXIT_USAGE
    assert "give another one" in capsys.readouterr().err
