# SPDX-License-Identifier: Apache-2.0
"""A thousand files opened, judged and closed leave nothing behind: no handle, thread or memory.

Real decoding and resampling, the model and the face tracker by doubles (their work is the same
for one long stream, which :mod:`benchmarks.soak` watches).
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from benchmarks.soak.__main__ import Sample, sample
from runtime.errors import MediaError
from runtime.flow.session import Session
from runtime.media import AudioChunk, VideoChunk
from runtime.media.file import FileSource
from tests.runtime.clips import write_clip
from tests.runtime.doubles import MockBackend, MockTracker

WARM_UP = 100  # cycles in which libraries fill their caches and the allocator finds its size
CYCLES = 1000
# One RGB picture of the clip has 0.23 MB and a decoder more: leaked once a cycle they would be
# hundreds of megabytes.  What the decoder's threads had freed is given back now and then: 2,000
# cycles went up and down between three levels, 5.4 MB apart.
MAX_GROWTH_MB = 20.0

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc"),
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    return write_clip(folder / "tiny.mp4", seconds=0.2, size=(320, 240))


def judge(clip: Path, chunks: int | None = None) -> None:
    """All of it, or its first chunks."""
    with FileSource(clip) as source:
        session = Session(MockBackend(), source="tiny", tracker=MockTracker())
        for index, chunk in enumerate(source):
            if index == chunks:
                break
            if isinstance(chunk, AudioChunk):
                session.push_audio(chunk.t_s, chunk.samples)
            else:
                session.push_video(chunk.t_s, chunk.convert)
        assert session.finish()


def growth(
    cycle: Callable[[Path], None], clip: Path, cycles: int = CYCLES
) -> tuple[Sample, Sample]:
    """After the warm-up, and at the end; in a process of its own, since one that has run other
    tests has memory to spare in which a leak of megabytes would not be seen."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run_cycles, cycle, clip, cycles).result()


def run_cycles(cycle: Callable[[Path], None], clip: Path, cycles: int) -> tuple[Sample, Sample]:
    def now() -> Sample:
        gc.collect()
        return sample(os.getpid(), 0.0)

    for _ in range(WARM_UP):
        cycle(clip)
    before = now()
    for _ in range(cycles - WARM_UP):
        cycle(clip)
    return before, now()


def leave_in_the_middle(clip: Path) -> None:
    judge(clip, chunks=2)


def be_refused(clip: Path) -> None:
    with pytest.raises(MediaError):
        list(FileSource(clip))


KEPT: list[object] = []


def keep_a_picture(clip: Path) -> None:
    with FileSource(clip) as source:
        KEPT.append(next(c.frame for c in source if isinstance(c, VideoChunk)))


def check(before: Sample, after: Sample) -> None:
    assert after.files == before.files
    assert after.threads == before.threads
    assert after.memory_mb - before.memory_mb < MAX_GROWTH_MB


def test_files_that_are_read_to_their_end(clip: Path) -> None:
    check(*growth(judge, clip))


def test_files_that_are_left_in_the_middle(clip: Path) -> None:
    check(*growth(leave_in_the_middle, clip))


def test_files_that_are_refused(clip: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[:-400])  # into its index, which stands at the end
    check(*growth(be_refused, cut))


def test_a_leak_is_seen(clip: Path) -> None:
    """The check itself: a picture kept from each file is far beyond the bound."""
    before, after = growth(keep_a_picture, clip, 4 * WARM_UP)
    assert after.memory_mb - before.memory_mb > 2 * MAX_GROWTH_MB
