# SPDX-License-Identifier: Apache-2.0
"""A Jetson's CSI camera: GStreamer's test picture replaces NVIDIA's element, all else is real."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import runtime.media.csi
from runtime.errors import DependencyError, MediaError
from runtime.media import LiveSource, VideoChunk
from runtime.media.csi import ARGUS, INSPECT, LAUNCH, CsiSource, argus
from runtime.media.feed import Feed

SIZE = (64, 48)
GSTREAMER = pytest.mark.skipif(
    shutil.which(LAUNCH) is None, reason=f"no {LAUNCH}: apt install gstreamer1.0-tools"
)


def red(*options: str) -> list[str]:
    return [
        *("videotestsrc", "pattern=red", *options, "!"),
        f"video/x-raw,format=I420,width={SIZE[0]},height={SIZE[1]},framerate=30/1",
    ]


def gone(source: CsiSource, child: subprocess.Popen[bytes]) -> bool:
    """Ended and waited for: no zombie is left."""
    return source._handle is None and child.returncode is not None


@GSTREAMER
def test_raw_pictures_come_through_the_pipe() -> None:
    with CsiSource(0, elements=red("is-live=true"), size=SIZE) as source:
        assert isinstance(source, LiveSource)
        assert source.info.name == "csi:0"
        child: Any = source._handle
        chunks = []
        for chunk in source:
            assert isinstance(chunk, VideoChunk)
            chunks.append(chunk)
            if len(chunks) == 10:
                source.close()
    assert gone(source, child)
    frame = chunks[0].frame
    assert frame.shape == (48, 64, 3)
    assert frame[24, 32].tolist() == pytest.approx([255, 0, 0], abs=6)
    assert chunks[9].t_s > chunks[0].t_s == 0.0


@GSTREAMER
def test_a_pipeline_that_ends_is_started_again() -> None:
    notes: list[str] = []
    elements = red("num-buffers=5")
    with (
        CsiSource(0, elements=elements, size=SIZE, notice=notes.append) as source,
        Feed(source) as feed,
    ):
        pictures = 0
        deadline = time.monotonic() + 60
        while pictures < 12 and time.monotonic() < deadline:
            pictures += feed.get(0.1) is not None
    assert pictures == 12
    assert notes[0] == "csi:0: its GStreamer pipeline ended; trying again"


@GSTREAMER
def test_a_pipeline_that_gives_nothing_is_an_error_and_its_child_is_gone() -> None:
    stuck = ["fakesrc", "num-buffers=0"]
    with CsiSource(0, elements=stuck, size=SIZE) as source:
        child: Any = source._handle
        with pytest.raises(MediaError, match="ended before it gave anything"):
            list(source)
    assert gone(source, child)


@GSTREAMER
def test_a_child_that_hangs_is_noticed_and_killed(tmp_path: Path) -> None:
    fifo = tmp_path / "nothing"
    subprocess.run(["mkfifo", str(fifo)], check=True)
    hangs = ["filesrc", f"location={fifo}"]
    with CsiSource(0, elements=hangs, size=SIZE, stall_s=0.3) as source:
        child: Any = source._handle
        with pytest.raises(MediaError, match=r"no picture for 0\.3 s"):
            list(source)
    assert gone(source, child)


@GSTREAMER
def test_without_nvidias_element_the_remedy_is_named() -> None:
    if subprocess.run([INSPECT, "--exists", ARGUS], check=False).returncode == 0:
        pytest.skip("this is a Jetson")
    with pytest.raises(DependencyError, match="JetPack"):
        CsiSource(0)


def test_without_gstreamer_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.media.csi.shutil, "which", lambda name: None)
    with pytest.raises(DependencyError, match=r"apt install gstreamer1\.0-tools"):
        CsiSource(0)


def test_the_pipeline_of_a_jetson() -> None:
    assert " ".join(argus(1)) == (
        "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width=1280,height=720,"
        "framerate=30/1 ! nvvidconv ! video/x-raw,format=I420,width=1280,height=720"
    )
