# SPDX-License-Identifier: Apache-2.0
"""docs/dependencies.md names every direct dependency as pyproject.toml and constraints.txt do.

The reasons there are written by hand; ranges, extras, tested versions and licences are held to the
files and to what is installed.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
tomllib: Any = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")

OLD, NEW = "3.10", "3.11 to 3.13"  # the Pythons that constraints.txt tells apart
BASE, BUILD = "base", "build"  # what is no extra: always installed, and to build the package


def requirements() -> dict[str, tuple[list[str], str]]:
    """By package: the extras that ask for it, and the range."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    found: dict[str, tuple[list[str], str]] = {}
    groups = {
        BASE: project["project"]["dependencies"],
        **project["project"]["optional-dependencies"],
        BUILD: project["build-system"]["requires"],
    }
    for group, lines in groups.items():
        for line in lines:
            match = re.fullmatch(r"([\w.-]+)(?:\[\w+\])?([<>=!~][^;]*)(?:;.*)?", line)
            assert match, f"{line}: a name and a range are expected"
            name, allowed = match.groups()
            extras, before = found.setdefault(name, ([], allowed))
            assert before == allowed, f"{name} has one range in every extra"
            extras.append(group)
    return found


def pins() -> dict[str, dict[str, str]]:
    """By package: Python -> the version in constraints.txt."""
    found: dict[str, dict[str, str]] = {}
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        pin, _, marker = line.partition("#")[0].strip().partition(";")
        if not pin:
            continue
        name, _, version = pin.strip().partition("==")
        pythons = {
            "": (OLD, NEW), 'python_version < "3.11"': (OLD,), 'python_version >= "3.11"': (NEW,)
        }[marker.strip()]  # fmt: skip
        for python in pythons:
            assert python not in found.setdefault(name, {}), f"{name} is there twice"
            found[name][python] = version
    return found


def shown(versions: dict[str, str]) -> str:
    """One version for every Python, one each, or none."""
    if not versions:
        return "none"
    old, new = versions[OLD], versions[NEW]
    return old if old == new else f"{new}; {OLD}: {old}"


def licence(name: str) -> str | None:
    """As the metadata of the installed package says; None: it is not installed, or says nothing."""
    try:
        said = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None
    if expression := said["License-Expression"]:
        return expression
    classified = [c for c in said.get_all("Classifier", []) if c.startswith("License :: ")]
    if classified:
        return classified[-1].rpartition(" :: ")[2]
    return (said["License"] or "").partition("\n")[0] or None


# Tests

PAGE = (ROOT / "docs" / "dependencies.md").read_text("utf-8")


def rows() -> dict[str, list[str]]:
    """By package: the other cells of its row in the table of direct dependencies."""
    found: dict[str, list[str]] = {}
    table = PAGE.partition("## Direct")[2].partition("\n## ")[0]
    for line in table.splitlines():
        if line.startswith("| `"):
            name, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
            assert name.strip("` ") not in found, f"{name} has two rows"
            found[name.strip("` ")] = [cell.strip("| ") for cell in cells]
    return found


ROWS, REQUIREMENTS, TESTED = rows(), requirements(), pins()


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.partition(".post")[0]))


def within(version: str, allowed: str) -> bool:
    """Of ranges as they are written here: ``>=``, ``<`` and ``==``, with a comma between."""
    for part in allowed.split(","):
        match = re.fullmatch(r"(>=|<|==)([\d.]+)", part)
        assert match, f"{part}: not a kind of range that is used here"
        given, bound = numbers(version), numbers(match[2])
        if not {">=": given >= bound, "<": given < bound, "==": given == bound}[match[1]]:
            return False
    return True


def test_every_dependency_has_its_row_and_no_row_is_left_over() -> None:
    assert set(ROWS) == set(REQUIREMENTS)


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_a_row_says_what_the_files_say(name: str) -> None:
    extras, reason, stated, allowed, tested, hostile = ROWS[name]
    assert extras == ", ".join(REQUIREMENTS[name][0])
    assert allowed == f"`{REQUIREMENTS[name][1]}`"
    assert tested == shown(TESTED.get(name, {}))
    assert reason
    assert stated
    assert hostile


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_a_licence_is_that_of_the_installed_version(name: str) -> None:
    """Where that is the tested one: a later release may say it in other words."""
    found = licence(name)
    pinned = TESTED.get(name, {}).values()
    if found is None or metadata.version(name).partition("+")[0] not in pinned:
        pytest.skip(f"{name} is not installed in the tested version, or states no licence")
    assert ROWS[name][2] == found


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_what_is_tested_is_within_the_range_for_every_python(name: str) -> None:
    if name not in TESTED:
        assert ROWS[name][4] == "none"
        return
    assert set(TESTED[name]) == {OLD, NEW}
    for version in TESTED[name].values():
        assert within(version, REQUIREMENTS[name][1])


def test_what_is_pinned_without_being_a_dependency_is_explained() -> None:
    others = PAGE.partition("## Pinned")[2].partition("\n## ")[0]
    explained = set(re.findall(r"^- `([\w.-]+)`", others, re.MULTILINE))
    assert explained == set(TESTED) - set(REQUIREMENTS)


def test_what_was_never_tested_is_named() -> None:
    """The lower ends of the ranges are claims; the page says so of all of them."""
    untested = PAGE.partition("## What is not tested")[2].partition("\n## ")[0]
    named = set(re.findall(r"^- `([\w.-]+)`", untested, re.MULTILINE))
    assert named == set(REQUIREMENTS) - set(TESTED)
    assert "The lower end of a range has not been run" in untested


@pytest.mark.parametrize(
    ("version", "allowed", "is_in"),
    [("2.4.6", ">=1.26", True), ("1.25.9", ">=1.26", False), ("0.3.0", "==0.3.0", True),
     ("2.64.0", ">=2.60,<2.64", False), ("2.60.0", ">=2.60,<2.64", True),
     ("20.0.1.post1", ">=19.24", True)],
)  # fmt: skip
def test_ranges_are_read_as_pip_does(version: str, allowed: str, is_in: bool) -> None:
    assert within(version, allowed) is is_in
