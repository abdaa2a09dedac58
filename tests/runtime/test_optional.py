# SPDX-License-Identifier: Apache-2.0
"""A missing import is one line with its remedy; the table of extras is that of pyproject.toml."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import DependencyError
from runtime.optional import PACKAGES, first_of, installed, optional

ROOT = Path(__file__).resolve().parents[2]
CATCHES = re.compile(r"except \(?(ImportError|ModuleNotFoundError)\b[^,]*:")
OWN = ("runtime", "trainer", "export", "benchmarks")


def test_a_missing_module_names_its_package_and_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DependencyError) as end, optional("to write a table"):
        import pyarrow  # noqa: F401
    assert str(end.value) == "pyarrow is needed to write a table: pip install '.[scan]'"


def test_the_package_is_named_where_a_part_of_it_is_missing() -> None:
    with (
        pytest.raises(DependencyError, match=r"^torch is needed to train: pip install"),
        optional("to train"),
    ):
        raise ModuleNotFoundError("no", name="torch.utils.tensorboard")


def test_what_is_there_and_does_not_load_says_why() -> None:
    said = r"^opencv-python-headless is .* does not load \(libGL.so.1: no\): pip"
    with pytest.raises(DependencyError, match=said), optional("to write a report"):
        raise ImportError("libGL.so.1: no", name="cv2")


def test_an_extra_and_a_remedy_of_ones_own() -> None:
    with pytest.raises(DependencyError, match=r"'\.\[cpu,web\]'$"), optional("", extra="cpu,web"):
        raise ModuleNotFoundError("no", name="aiortc")
    with pytest.raises(DependencyError, match=r": ask NVIDIA$"), optional("", remedy="ask NVIDIA"):
        raise ModuleNotFoundError("no", name="tensorrt")


def test_another_error_passes() -> None:
    with pytest.raises(ZeroDivisionError), optional("to count"):
        _ = 1 // 0


def test_the_first_of_several_that_loads() -> None:
    assert first_of(("no_such_module.driver", "json"), "to use the GPU").__name__ == "json"
    with pytest.raises(DependencyError, match=r"^no_such_module is needed to use the GPU: "):
        first_of(("no_such_module.driver", "nor_this"), "to use the GPU")


def test_installed_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed("this")  # the standard library's, which prints when it is imported
    assert "this" not in sys.modules
    assert not installed("no_such_module")


def test_the_table_says_what_pyproject_says() -> None:
    tomllib: Any = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = {
        name: {re.split(r"[\[<>=;]", line)[0].strip() for line in lines}
        for name, lines in project["optional-dependencies"].items()
    }
    extras["cpu"] |= {re.split(r"[\[<>=;]", line)[0].strip() for line in project["dependencies"]}
    wrong = {m: p for m, (p, extra) in PACKAGES.items() if p not in extras[extra]}
    assert not wrong


def test_nobody_else_catches_an_import_error() -> None:
    found = {
        str(path.relative_to(ROOT))
        for package in OWN
        for path in (ROOT / package).rglob("*.py")
        if CATCHES.search(path.read_text("utf-8"))
    }
    assert found == {"runtime/optional.py"}
