# SPDX-License-Identifier: Apache-2.0
"""What README and docs say exists: pages, anchors, files, commands and their options."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"python3? -m ((?:runtime|trainer|export|benchmarks)(?:\.\w+)+)([^|`\n]*)")
FILE_NAMED = re.compile(r"`((?:runtime|trainer|export|benchmarks|tests|csrc|docs)/[\w./-]+\.\w+)`")
MAX_README_LINES = 150


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    found = set()
    for line in page.read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"#+ (.*)", line):
            plain = re.sub(r"[^\w\- ]", "", heading[1].lower())
            found.add(plain.replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_link_is_dead(page: Path) -> None:
    dead = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    named = set(FILE_NAMED.findall(page.read_text(encoding="utf-8")))
    made = {"runtime/_native_build.py"}  # by the build
    assert not {path for path in named - made if not (ROOT / path).exists()}


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert {link for link in LINK.findall(index) if link.endswith(".md")} == pages


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_README_LINES


def test_the_site_is_built_with_every_page_and_no_dead_link(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="mkdocs-material is not installed (extra dev)")
    command = ["build", "--strict", "-f", "docs/mkdocs.yml", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", *command], cwd=ROOT, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    front = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    fetched = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=.?https?://[^ >]+", front)
    assert not [f for f in fetched if "canonical" not in f]
    for page in (ROOT / "docs").glob("*.md"):
        place = "" if page.stem == "index" else page.stem
        assert (tmp_path / "site" / place / "index.html").is_file()


@functools.cache
def options(module: str) -> set[str]:
    """Of a command, by its help."""
    found = importlib.import_module(module)
    if hasattr(found, "__path__"):  # a folder of its own
        found = importlib.import_module(f"{module}.__main__")
    if not inspect.signature(found.main).parameters:
        return set()
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit) as left:
        found.main(["--help"])
    assert not left.value.code
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", said.getvalue()))


@functools.cache
def commands() -> dict[str, set[str]]:
    """Each module with the options that are used with it, in all pages."""
    used: dict[str, set[str]] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for module, rest in COMMAND.findall(text):
            try:
                words = shlex.split(rest.split(" #")[0].split("&&")[0], comments=True)
            except ValueError:  # a quotation mark of the prose behind it
                words = rest.split()
            found = {w.split("=")[0].strip(".,;:()") for w in words if w.startswith("--")}
            used.setdefault(module, set()).update(found)
    return used


@pytest.mark.parametrize("module", sorted(commands()))
def test_every_command_exists_with_the_options_it_is_shown_with(module: str) -> None:
    path = ROOT / module.replace(".", "/")
    assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    if module.startswith("trainer."):
        pytest.importorskip("torch", reason="torch is not installed (extra train)")
    assert commands()[module] <= options(module)
