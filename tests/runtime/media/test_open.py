# SPDX-License-Identifier: Apache-2.0
"""From what a person writes to sources, and what of it may be shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.address import ACCESS, check_address, public_name, with_plain_scheme
from runtime.errors import EXIT_USAGE, UsageError
from runtime.media.csi import csi_sensor
from runtime.media.open import (
    MAX_LIST_BYTES,
    Sound,
    expand_sources,
    is_live,
    open_source,
    parse_sound,
)
from runtime.stream.__main__ import main

SECRETS = {
    "rtsp://admin:hunter2@cam:554/live": "rtsp://cam:554/live",
    "RTSP://admin:hunter2@cam/live": "rtsp://cam/live",
    "rtsp://cam/live?token=hunter2#hunter2": "rtsp://cam/live",
    "rtsp://admin:hun/hunter2@cam/live": "rtsp://…",
    "rtsp://admin:hun#hunter2@cam/live": "rtsp://…",
    "rtsp://admin:hun?hunter2@cam/live": "rtsp://…",
    "rtsp://admin:12#hunter2@cam/live": "rtsp://…",  # port 12 and a fragment, says the grammar
    "rtsp://admin:12?hunter2@cam/live": "rtsp://…",
    "rtsp://admin:12/hunter2@cam/live": "rtsp://…",
    "rtsp://admin:p@w/hunter2@cam/live": "rtsp://…",
    "http://admin:hunter2@h/@user/x.mp4": "http://h/@user/x.mp4",
    "http://h/@user/x.mp4": "http://h/@user/x.mp4",
    "http://h:80/@user/x.mp4?t=hunter2@": "http://h:80/@user/x.mp4",
    "http://h/a@b.mp4": "http://h/a@b.mp4",
    "http://h/live;access_token=hunter2/a.m3u8": "http://h/live;access_token=…/a.m3u8",
    "rtsp://admin:p@hunter2@cam/live": "rtsp://cam/live",
    "rtsp://cam/user=admin&password=hunter2&channel=1": "rtsp://cam/user=…&password=…&channel=1",
    "rtsp://cam/user=admin&psw=hunter2&x.mp4": "rtsp://cam/user=…&psw=…&x.mp4",
    "https://cam/exp=1~hmac=hunter2/a.m3u8": "https://cam/exp=1~hmac=…/a.m3u8",
    "https://cam/token=hunter2/live.m3u8": "https://cam/token=…/live.m3u8",
    "http://[::1]:80/x": "http://[::1]:80/x",
    "clips/a?b.mp4": "clips/a?b.mp4",
}


@pytest.mark.parametrize("url", SECRETS)
def test_a_shown_name_holds_no_secret(url: str) -> None:
    assert public_name(url) == SECRETS[url]
    assert "hunter2" not in public_name(url)


def test_no_kind_of_address_may_open_local_files_or_run_other_protocols() -> None:
    assert set(ACCESS) == {"rtsp", "rtsps", "http", "https"}
    for access in ACCESS.values():
        allowed = set(access.protocols.split(","))
        assert not allowed & {"file", "concat", "subfile", "pipe", "data", "unix", "ftp", "gopher"}
    assert "http" not in ACCESS["https"].protocols.split(",")
    assert not {"tls", "http"} & set(ACCESS["rtsp"].protocols.split(","))
    assert all("concat" not in access.formats for access in ACCESS.values())


@pytest.mark.parametrize(
    "url", ["ftp://u:hunter2@x/y", "rtsp://", "http://h:port/x", "rtsp://u:hunter2@"]
)
def test_a_wrong_address_is_a_usage_error_without_its_secret(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_address(url)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("source", "sensor"), [("csi://0", 0), ("csi://1", 1), ("0", None)])
def test_names_of_csi_cameras(source: str, sensor: int | None) -> None:
    assert csi_sensor(source) == sensor


def test_a_csi_camera_without_a_number_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="csi://0"):
        expand_sources(["csi://front"])


def test_a_scheme_in_capitals_is_the_same_scheme(tmp_path: Path) -> None:
    given = ["RTSP://Cam/Live", "Https://Host/a.m3u8", "CSI://1"]
    assert expand_sources(given) == given
    assert all(is_live(source) for source in given)
    assert csi_sensor("CSI://1") == 1
    assert with_plain_scheme("RTSP://Cam/Live") == "rtsp://Cam/Live"


def test_which_sources_are_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = ["camera", "0", "/dev/video1", "csi://0", "rtsp://cam/x", "http://cam/x.m3u8"]
    assert all(is_live(source) for source in live)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0").touch()
    assert not is_live("0")  # a file of that name
    assert not is_live("talk.mp4")


# Lists


def test_a_list_of_sources(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name in ("clips/a.mp4", "clips/b.mkv", "talk.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "all.streams").write_text(
        "# the door\nrtsp://admin:pw@cam/live  \n\n  camera\nclips\ntalk.mp4\nclips/*.mp4\n"
    )
    assert expand_sources([str(tmp_path / "all.streams")]) == [
        "rtsp://admin:pw@cam/live",
        "camera",
        str(tmp_path / "clips" / "a.mp4"),
        str(tmp_path / "clips" / "b.mkv"),
        str(tmp_path / "talk.mp4"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no sources"),
        ("# nothing\n", "holds no sources"),
        ("camera\nmissing.mp4\n", "line 2: .*no such file"),
        ("other.streams\n", "line 1: a list inside a list"),
        ("ftp://user:hunter2@x/y\n", "line 1: ftp:// sources are not supported"),
    ],
)
def test_a_wrong_list_says_where(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "all.streams"
    path.write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        expand_sources([str(path)])
    assert "hunter2" not in str(caught.value)


def test_a_list_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "all.streams"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not a list"):
        expand_sources([str(path)])


@pytest.mark.timeout(20)  # of a pipe: where it is opened to be read, nothing ever comes
@pytest.mark.parametrize("suffix", [".streams", ".STREAMS"])
@pytest.mark.parametrize("inside", ["", "list.streams"])
def test_a_list_that_is_no_regular_file_is_one_clear_line(
    suffix: str, inside: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipe, by its own name or by a link's."""
    os.mkfifo(tmp_path / f"pipe{suffix}")
    path = tmp_path / (inside or f"pipe{suffix}")
    if inside:
        path.symlink_to(tmp_path / f"pipe{suffix}")
    assert main(["--source", str(path)]) == EXIT_USAGE
    said = capsys.readouterr().err.strip()
    assert said == f"error: {path}: not a list of sources that can be read (no regular file)"


def test_a_list_is_small_and_a_folder_is_none(tmp_path: Path) -> None:
    (tmp_path / "large.streams").write_bytes(b"#" * (MAX_LIST_BYTES + 1))
    with pytest.raises(UsageError, match="larger than 1 MiB"):
        expand_sources([str(tmp_path / "large.streams")])
    (tmp_path / "folder.streams").mkdir()
    (tmp_path / "folder.streams" / "a.mkv").touch()
    found = expand_sources([str(tmp_path / "folder.streams")])
    assert found == [str(tmp_path / "folder.streams" / "a.mkv")]


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "all.streams"
    path.write_text("rtsp://cam/a\n# b\n", encoding="utf-8-sig")
    assert expand_sources([str(path)]) == ["rtsp://cam/a"]


# Sound


def test_where_sound_comes_from() -> None:
    assert parse_sound("same") == Sound("same")
    assert parse_sound("none") == Sound("none")
    assert parse_sound("mic") == Sound("mic", None)
    assert parse_sound("mic:3") == Sound("mic", "3")
    assert parse_sound("mic:USB Audio: front") == Sound("mic", "USB Audio: front")
    for wrong in ("mic:", "mike", "", "same:1"):
        with pytest.raises(UsageError, match="--audio"):
            parse_sound(wrong)


def test_a_microphone_does_not_go_with_a_file() -> None:
    with pytest.raises(UsageError, match="not with a file"):
        open_source("talk.mp4", sound=Sound("mic"))
