# SPDX-License-Identifier: Apache-2.0
"""A path is a path: colons, what a process has open, what macOS leaves beside a clip."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime.demo.__main__ import shift_sound
from runtime.errors import EXIT_USAGE, UsageError
from runtime.media import VideoChunk
from runtime.media.file import FileSource
from runtime.media.open import MEDIA_SUFFIXES, expand_sources, open_source
from runtime.media.sandbox.reader import IsolatedFile
from runtime.scan.clips import find_clips
from runtime.spec import AudioSpec
from runtime.stream.__main__ import main
from tests.runtime.clips import tone, write_clip

SECONDS = 0.4
PICTURES = 10
COLONS = ("2024-01-01T10:30:00.mkv", "file:x.mkv", "http:x.mkv", "concat:x.mkv", "C:/y.mkv")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mkv", seconds=SECONDS)


@pytest.fixture
def handle(clip: Path) -> Iterator[int]:
    """The clip, open in this process, and read to its end as a shell's ``<`` may leave it."""
    number = os.open(clip, os.O_RDONLY)
    os.lseek(number, 0, os.SEEK_END)
    yield number
    os.close(number)


def pictures(source: FileSource | IsolatedFile) -> int:
    with source:
        return sum(isinstance(chunk, VideoChunk) for chunk in source)


# Colons


@pytest.mark.parametrize("name", COLONS)
@pytest.mark.parametrize("kind", [FileSource, IsolatedFile])
def test_a_colon_in_a_name_is_no_protocol(
    name: str,
    kind: type[FileSource | IsolatedFile],
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    shutil.copy(clip, name)
    assert expand_sources([name]) == [name]
    with kind(name) as source:
        assert source.info.name == name
        assert sum(isinstance(chunk, VideoChunk) for chunk in source) == PICTURES


def test_a_folder_and_a_list_find_names_with_colons(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("9:00").mkdir()
    shutil.copy(clip, "9:00/1:2.mkv")
    Path("day.streams").write_text("9:00/1:2.mkv\n")
    for given in ("9:00", "day.streams", "9:00/1:*.mkv"):
        assert expand_sources([given]) == ["9:00/1:2.mkv"]
    assert [c.path for c in find_clips(Path("9:00"), MEDIA_SUFFIXES)] == ["1:2.mkv"]


def test_only_letters_and_two_slashes_make_an_address(tmp_path: Path) -> None:
    inner = tmp_path / "http:" / "x"
    inner.mkdir(parents=True)
    with pytest.raises(UsageError, match="no such file"):
        FileSource(f"{tmp_path}/http://x/none.mkv")  # a spelling of a path, and no address
    with pytest.raises(UsageError, match="file:// sources are not supported"):
        expand_sources([f"file://{inner}"])


def test_the_demo_reads_and_writes_names_with_colons(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(clip, "1:2.mkv")
    assert shift_sound(Path("1:2.mkv"), Path("3:4.mp4")) == pytest.approx(SECONDS / 2, abs=0.05)
    assert pictures(FileSource("3:4.mp4")) == PICTURES


def test_the_trainer_reads_and_writes_names_with_colons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.data.clips import _packet_bytes, read_clip
    from trainer.data.clips import write_clip as write

    monkeypatch.chdir(tmp_path)
    for name in ("1:2.mp4", "file:x.mp4"):
        spec = AudioSpec()
        write(Path(name), [np.zeros((32, 32, 3), np.uint8)] * PICTURES, tone(SECONDS), spec)
        assert read_clip(Path(name), spec).tokens == PICTURES
        assert min(_packet_bytes(Path(name))) > 0


def test_what_else_writes_media_writes_names_with_colons(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.fuzz.mutants import Recipe
    from benchmarks.fuzz.mutants import _write as write_seed
    from benchmarks.looped import write_loop
    from runtime.doctor.checks import write_second

    monkeypatch.chdir(tmp_path)
    shutil.copy(clip, "clip.mkv")
    seed = Recipe("seed.mp4", "mpeg4", "aac")
    frames = [np.zeros((180, 240, 3), np.uint8)] * PICTURES
    writers: list[Callable[[Path], object]] = [
        write_second,
        lambda path: write_loop(Path("clip.mkv"), path, seconds=SECONDS, width=64, height=48),
        lambda path: write_seed(path, seed, frames, tone(SECONDS)),
    ]
    for number, write in enumerate(writers):
        name = f"1:{number}.mp4"
        write(Path(name))
        assert pictures(FileSource(name)) >= PICTURES


# What a process has open


@pytest.mark.parametrize("kind", [FileSource, IsolatedFile])
@pytest.mark.parametrize("spelled", ["/proc/self/fd/{}", "/dev/fd/{}"])
def test_an_open_file_is_read_from_its_beginning(
    kind: type[FileSource | IsolatedFile], spelled: str, handle: int
) -> None:
    name = spelled.format(handle)
    if not Path(name).exists():
        pytest.skip(f"no {name} on this system")
    source = kind(name)
    assert source.info.name == name
    assert pictures(source) == PICTURES


@pytest.mark.parametrize("kind", [FileSource, IsolatedFile])
def test_an_open_file_without_a_name_is_one_clear_line(
    kind: type[FileSource | IsolatedFile], clip: Path, tmp_path: Path
) -> None:
    gone = Path(shutil.copy(clip, tmp_path / "gone.mkv"))
    with gone.open("rb") as file:
        gone.unlink()
        name = f"/proc/self/fd/{file.fileno()}"
        if not Path(name).exists():
            pytest.skip(f"no {name} on this system")
        with pytest.raises(UsageError, match="has no name; give the path"):
            kind(name)


@pytest.mark.parametrize("make", [os.mkfifo, None], ids=["fifo", "device"])
def test_a_pipe_and_a_device_are_one_clear_line_and_a_usage_error(
    make: Callable[[Path], None] | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(os.devnull)
    if make is not None:
        path = tmp_path / "pipe.mkv"
        make(path)
    assert main(["--source", str(path)]) == EXIT_USAGE
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1] == f"error: {path}: a pipe or a device, and no file; save it to a file first"
    assert len(said) == 1


def test_a_link_is_called_by_its_own_name(clip: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.mkv"
    link.symlink_to(clip)
    with open_source(str(link)) as source:
        assert source.info.name == str(link)
    broken = tmp_path / "broken.mkv"
    broken.symlink_to(tmp_path / "folder" / ".." / "words.mkv")
    (tmp_path / "words.mkv").write_text("words")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=f"^{broken}: not a media file"):
        open_source(str(broken))


# What macOS leaves


def test_apple_double_files_are_no_clips(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(clip, tmp_path / "in" / "talk.mkv")
    for name in ("._talk.mkv", "in/._talk.mkv", "in/._.mkv"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
    assert expand_sources([str(tmp_path)]) == [str(tmp_path / "in" / "talk.mkv")]
    assert [c.path for c in find_clips(tmp_path, MEDIA_SUFFIXES)] == ["in/talk.mkv"]
    (tmp_path / "in" / "talk.mkv").unlink()
    with pytest.raises(UsageError, match="holds no media files"):
        expand_sources([str(tmp_path)])


def test_the_trainer_and_the_exporter_skip_them_too(clip: Path, tmp_path: Path) -> None:
    from export.pair import calibration_clips
    from trainer.data.layouts import find_genuine

    for person in "ab":
        (tmp_path / person).mkdir()
        shutil.copy(clip, tmp_path / person / "talk.mkv")
        (tmp_path / person / "._talk.mkv").write_bytes(b"\x00\x05\x16\x07")
    talks = [tmp_path / "a" / "talk.mkv", tmp_path / "b" / "talk.mkv"]
    assert [found.path for found in find_genuine(tmp_path)] == talks
    assert calibration_clips([tmp_path]) == talks
