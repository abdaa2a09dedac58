# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of the readers: it begins with good inputs, gets into the code, and tells
what it finds.  Short runs; long ones are a person's to start."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from benchmarks.fuzz import readers as fuzz_readers
from benchmarks.fuzz.targets import READERS, seeds, target
from runtime.backends.onnx_file import read_onnx
from runtime.errors import UserError

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed (extra fuzz)"
)
PLANTED = """
import sys, atheris
@atheris.instrument_func
def one(data):
    if data[:1] == b"a" and data[1:2] == b"b":
        raise IndexError("planted")
atheris.Setup([sys.argv[0], *sys.argv[2:], sys.argv[1]], one)
atheris.Fuzz()
"""


@pytest.mark.parametrize("reader", READERS)
def test_good_inputs_are_read_and_damaged_ones_refused(reader: str, tmp_path: Path) -> None:
    read = target(reader, tmp_path)
    for data in seeds(reader):
        read(data)
        read(data[: len(data) // 2])
        read(b"")


@pytest.mark.parametrize("reader", ["site", "spec", "manifest"])
def test_good_inputs_are_good(reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no error swallowed they are read, and damaged ones are not."""

    class Nothing(Exception):
        pass

    monkeypatch.setattr("runtime.errors.UserError", Nothing)
    read = target(reader, tmp_path)
    for data in seeds(reader):
        read(data)
        with pytest.raises(UserError):
            read(data[:-3])


def test_the_good_graph_is_an_onnx_model() -> None:
    (data,) = seeds("onnx")
    found = read_onnx(data)
    assert (found.inputs, found.outputs) == (["visual"], ["sync"])
    assert found.opsets == {"msct": 1}
    assert found.metadata == {"msct.spec": "{}"}


@pytest.mark.thorough
@needs_atheris
def test_branches_are_reached_and_nothing_is_found(tmp_path: Path) -> None:
    outcome = fuzz_readers.fuzz("onnx", 2, 1, tmp_path)
    assert outcome.finding == ""
    assert outcome.inputs > 100
    assert outcome.branches > 30
    assert outcome.kept > 10
    assert list(tmp_path.iterdir()) == []


@needs_atheris
def test_what_is_found_is_named_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz_readers, "command", lambda reader: [sys.executable, "-c", PLANTED])
    words = ["--reader", "site", "--seconds", "60", "--keep", str(tmp_path / "kept")]
    assert fuzz_readers.main([*words, "--output", str(tmp_path / "out.json")]) == 1
    assert "IndexError: planted" in capsys.readouterr().out
    (kept,) = (tmp_path / "kept").iterdir()
    assert kept.read_bytes().startswith(b"ab")
    (found,) = json.loads((tmp_path / "out.json").read_text())["readers"]
    assert found["finding"] == "IndexError: planted"


@needs_atheris
def test_a_process_that_does_not_begin_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        fuzz_readers, "command", lambda reader: [sys.executable, "-c", "raise SystemExit('no')"]
    )
    assert fuzz_readers.main(["--reader", "onnx", "--seconds", "1"]) == 1
    assert "the fuzzer of onnx does not run: no" in capsys.readouterr().err


def test_without_atheris_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert fuzz_readers.main([]) != 0
    assert "pip install '.[fuzz]'" in capsys.readouterr().err
