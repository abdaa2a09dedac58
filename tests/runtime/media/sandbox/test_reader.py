# SPDX-License-Identifier: Apache-2.0
"""A file decoded in a process of its own: the same chunks, and a decoder that may do anything."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.errors import MediaError, UsageError
from runtime.media import AudioChunk, VideoChunk
from runtime.media.file import FileSource
from runtime.media.open import open_source
from runtime.media.sandbox.reader import IsolatedFile
from tests.runtime.clips import write_clip
from tests.waiting import patient, pause, wait_for

INFO = {
    "kind": "info",
    "size": 0,
    "info": {
        "name": "somebody else's",
        "has_video": True,
        "has_audio": True,
        "width": 4,
        "height": 2,
        "fps": 25.0,
        "duration_s": None,
    },
    "sound": {"index": 1, "zero_s": 0.0},
}
PICTURE = {"kind": "video", "size": 24, "t_s": 0.0, "shape": [2, 4, 3], "damaged": 0}
END = {"kind": "end", "size": 0, "damaged": 0, "warnings": []}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "talk.mp4")


def message(header: Any, payload: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<I", len(text)) + text + payload


def decoder(*says: bytes, then: str = "") -> list[str]:
    """A decoder by hand: what it says, then what it does."""
    program = f"import os, signal, sys, time; os.write(1, {b''.join(says)!r}); {then}"
    return [sys.executable, "-I", "-c", program]


# The same as in this process


def content(chunk: VideoChunk | AudioChunk) -> Any:
    return chunk.frame if isinstance(chunk, VideoChunk) else chunk.samples


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: write_clip(folder / "both.mp4"),
        lambda folder: write_clip(folder / "silent.mkv", sound=None),
        lambda folder: write_clip(folder / "heard.mkv", video=False),
        lambda folder: write_clip(folder / "late.mkv", sound_starts_ms=400),
        lambda folder: write_clip(folder / "odd.mkv", size=(322, 242), seconds=0.52),
        lambda folder: write_clip(folder / "turned.mp4", rotation=90),
    ],
)
def test_chunks_are_those_of_a_file_that_is_decoded_here(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = make(tmp_path)
    with FileSource(path) as here, IsolatedFile(path) as there:
        assert there.info == here.info
        assert there.original_sound == here.original_sound
        ours_all, theirs_all = list(here), list(there)
        # Picture and sound each by itself: how they alternate is up to FFmpeg's threads.
        for kind in (VideoChunk, AudioChunk):
            ours = [chunk for chunk in ours_all if isinstance(chunk, kind)]
            theirs = [chunk for chunk in theirs_all if isinstance(chunk, kind)]
            assert [chunk.t_s for chunk in ours] == [chunk.t_s for chunk in theirs]
            for one, other in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(content(one), content(other))
        assert (there.damaged, there.warnings) == (here.damaged, here.warnings)


def test_a_file_that_is_cut_off_is_told_as_it_is_here(clip: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mkv"
    whole = write_clip(tmp_path / "whole.mkv").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    with FileSource(cut) as here, IsolatedFile(cut) as there:
        assert len(list(here)) == len(list(there)) > 0
        assert (there.damaged, there.warnings) == (here.damaged, here.warnings)
        assert there.warnings


@pytest.mark.parametrize("content", [b"", b"no media at all", b"\x00\x00\x00\x18ftypmp42"])
def test_the_error_is_the_one_of_a_file_that_is_decoded_here(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(MediaError) as here:
        FileSource(path)
    with pytest.raises(MediaError) as there:
        IsolatedFile(path)
    assert str(there.value) == str(here.value)


def test_what_is_not_there_needs_no_process(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        IsolatedFile(tmp_path / "none.mp4", command=["/nonexistent"])


def test_files_are_opened_so_unless_told_otherwise(clip: Path) -> None:
    with open_source(str(clip)) as source:
        assert isinstance(source, IsolatedFile)
    with open_source(str(clip), isolated=False) as source:
        assert isinstance(source, FileSource)


# A decoder that fails


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_is_an_error_of_one_line(clip: Path, number: signal.Signals) -> None:
    command = decoder(
        message(INFO), message({**PICTURE, "t_s": 3.2}, bytes(24)),
        then=f"os.kill(os.getpid(), {number.value})",
    )  # fmt: skip
    with IsolatedFile(clip, command=command) as source:
        chunks = iter(source)
        next(chunks)
        with pytest.raises(MediaError, match=rf"crashed \({number.name}\) after 3\.2 s") as caught:
            next(chunks)
    assert len(str(caught.value).splitlines()) == 1


def test_a_decoder_that_hangs_is_not_waited_for(clip: Path) -> None:
    command = decoder(message(INFO), then="time.sleep(600)")
    started = time.monotonic()
    with (
        IsolatedFile(clip, command=command, stall_s=0.5) as source,
        pytest.raises(MediaError, match=r"hangs: nothing for 0\.5 s"),
    ):
        list(source)
    assert time.monotonic() - started < patient(30)


@pytest.mark.thorough
def test_time_that_the_judge_takes_does_not_count(clip: Path) -> None:
    with IsolatedFile(clip, stall_s=2.0) as source:
        chunks = iter(source)
        next(chunks)
        pause(2.5)
        assert len(list(chunks)) > 100


def test_memory_beyond_the_limit_is_an_error_of_one_line(tmp_path: Path) -> None:
    large = write_clip(tmp_path / "large.mkv", size=(3840, 2160), seconds=0.2, sound=None)
    with IsolatedFile(large) as source:
        assert len(list(source)) == 5
    with pytest.raises(MediaError) as caught, IsolatedFile(large, memory_mb=15) as source:
        list(source)
    assert len(str(caught.value).splitlines()) == 1


def test_a_fault_of_ours_is_shown_with_its_trace(clip: Path) -> None:
    says = message({"kind": "error", "size": 0, "error": "KeyError", "message": "Traceback …"})
    with pytest.raises(RuntimeError, match="Traceback"):
        IsolatedFile(clip, command=decoder(says))


# A decoder that was taken over


@pytest.mark.parametrize(
    "says",
    [
        b"\xff\xff\xff\xff",  # a header of four gigabytes
        b"\x05\x00\x00\x00hello",
        message([]),
        message({"kind": "info"}),
        message({**INFO, "info": None}),
        message({**INFO, "info": {**INFO["info"], "width": -1}}),  # type: ignore[dict-item]
        message({**INFO, "info": {**INFO["info"], "fps": "25"}}),  # type: ignore[dict-item]
        message({**INFO, "sound": {"index": 0, "zero_s": math.nan}}),
        message(INFO) + message({**PICTURE, "size": 1 << 40}),
        message(INFO) + message({**PICTURE, "shape": [1, 4, 3]}, bytes(24)),
        message(INFO) + message({**PICTURE, "shape": [-2, -4, 3]}, bytes(24)),
        message(INFO) + message({**PICTURE, "shape": [24]}, bytes(24)),
        message(INFO) + message({**PICTURE, "t_s": math.nan}, bytes(24)),
        message(INFO) + message({**PICTURE, "t_s": True}, bytes(24)),
        message(INFO) + message({**PICTURE, "damaged": -1}, bytes(24)),
        message(INFO) + message({**PICTURE, "kind": "audio", "size": 3}, bytes(3)),
        message(INFO) + message({**PICTURE, "kind": "sing"}, bytes(24)),
        message(INFO) + message({**END, "warnings": [1]}),
        message(INFO) + message(INFO),
    ],
)
def test_what_cannot_be_is_refused(clip: Path, says: bytes) -> None:
    command = decoder(says, then="time.sleep(600)")
    with (
        pytest.raises(MediaError, match="cannot be"),
        IsolatedFile(clip, command=command, stall_s=60) as source,
    ):
        list(source)


def test_it_cannot_give_the_file_another_name(clip: Path) -> None:
    with IsolatedFile(clip, command=decoder(message(INFO), message(END))) as source:
        assert source.info.name == str(clip)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_noise_on_the_line_is_a_chunk_or_an_error(clip: Path, flips: list[tuple[int, int]]) -> None:
    says = bytearray(message(INFO) + message(PICTURE, bytes(24)) * 3 + message(END))
    for place, value in flips:
        says[place % len(says)] = value
    with (
        contextlib.suppress(MediaError, UsageError, RuntimeError),
        IsolatedFile(clip, command=decoder(bytes(says))) as source,
    ):
        for chunk in source:
            assert math.isfinite(chunk.t_s)


# Nothing stays behind


def test_closing_in_the_middle_ends_the_process(clip: Path) -> None:
    with IsolatedFile(clip) as source:
        next(iter(source))
        child = source._child
        assert child.poll() is None
    assert child.poll() is not None


@pytest.mark.parametrize("wait_s", [0.0, 0.002, 0.01, 0.2])
def test_it_may_be_closed_while_another_thread_waits_for_it(clip: Path, wait_s: float) -> None:
    source = IsolatedFile(clip, command=decoder(message(INFO), then="time.sleep(600)"))
    found: list[str] = []

    def read() -> None:
        try:
            list(source)
        except MediaError as err:
            found.append(str(err))

    reader = threading.Thread(target=read)
    reader.start()
    pause(wait_s)
    source.close()
    reader.join(10)
    assert not reader.is_alive()
    assert found == [f"{clip}: closed after 0.0 s; open it anew to read on"]


def test_a_closed_file_says_so(clip: Path) -> None:
    with IsolatedFile(clip) as source:
        chunks = iter(source)
        next(chunks)
    with pytest.raises(MediaError, match="open it anew"):
        next(chunks)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="handles are counted in /proc")
def test_thirty_decoders_leave_no_handle_and_no_process(clip: Path) -> None:
    def handles() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before, pids = handles(), []
    for number in range(30):
        crash = decoder(message(INFO), then="os.kill(os.getpid(), 11)")
        with IsolatedFile(clip, command=None if number % 10 == 0 else crash) as source:
            pids.append(source.pid)
            with contextlib.suppress(MediaError):
                list(source)
    assert handles() == before
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_decoder_ends_with_whoever_started_it(clip: Path) -> None:
    program = (
        "import os, sys, time; from runtime.media.sandbox.reader import IsolatedFile; "
        f"source = IsolatedFile({str(clip)!r}); next(iter(source)); "
        "print(source.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    pid = int(done.stdout)

    def gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_for(gone, "the decoder's end")
