# SPDX-License-Identifier: Apache-2.0
"""What the process that decodes has given up, on a kernel with Landlock."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.media.sandbox import landlock

TRY = """
import sys, socket
from pathlib import Path
from runtime.media.sandbox import landlock
mine, other, port = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
print(landlock.restrict([mine]))
def tell(what, act):
    try:
        act()
        print(what, "done")
    except OSError as err:
        print(what, type(err).__name__)
tell("read", mine.read_bytes)
tell("read the other", other.read_bytes)
tell("write", lambda: mine.write_bytes(b""))
tell("make", lambda: mine.with_name("new").touch())
tell("remove", mine.unlink)
tell("look around", lambda: list(mine.parent.iterdir()))
tell("start", lambda: __import__("os").execv("/bin/true", ["true"]))
if landlock.version() >= 4:
    tell("connect", lambda: socket.create_connection(("127.0.0.1", port)))
"""

needs_landlock = pytest.mark.skipif(landlock.version() == 0, reason="this kernel has no Landlock")


@needs_landlock
def test_all_that_is_left_is_reading_what_was_named(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.write_bytes(b"m")
    other.write_bytes(b"o")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-c", TRY, mine, other, port],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    version, *told = done.stdout.splitlines()
    assert int(version) == landlock.version()
    assert told.pop(0) == "read done"
    refused = ["read the other", "write", "make", "remove", "look around", "start"]
    refused += ["connect"] * (landlock.version() >= 4)
    assert told == [f"{what} PermissionError" for what in refused]
    assert mine.read_bytes() == b"m"


def test_a_kernel_without_it_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landlock, "version", lambda: 0)
    assert landlock.restrict([]) == 0
    (tmp_path / "new").touch()


@needs_landlock
def test_what_is_not_there_cannot_be_named(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from runtime.media.sandbox import landlock; "
        f"landlock.restrict([Path({os.fspath(tmp_path / 'none')!r})])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "FileNotFoundError" in done.stderr
