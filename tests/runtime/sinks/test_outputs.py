# SPDX-License-Identifier: Apache-2.0
"""The outputs of the command line: asked for, written whole, and told when they fail."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import runtime.flow.pictures
from runtime import command
from runtime.errors import MediaError
from runtime.files import OutputError, PendingFile
from runtime.media import AudioChunk, ClockReport, VideoChunk
from runtime.sinks import outputs as module
from runtime.sinks.outputs import target_of
from runtime.sinks.report.sink import ReportSink
from runtime.sinks.video import VideoSink
from runtime.stream import __main__ as stream
from tests.runtime.clips import write_clip
from tests.runtime.doubles import MockBackend, MockTracker
from tests.runtime.flow.test_run import Live
from tests.runtime.sinks.report.test_report import Page
from tests.runtime.sinks.test_webhook import Receiver

av = pytest.importorskip("av", reason="PyAV is not installed")
for _name in ("cv2", "kaldi_native_fbank"):
    pytest.importorskip(_name, reason=f"{_name} is not installed")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "talk.mp4")


@pytest.fixture(autouse=True)
def _mocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "load_backend", lambda *_: MockBackend())
    monkeypatch.setattr(runtime.flow.pictures, "FaceTracker", lambda spec: MockTracker())


def run(*arguments: Any) -> int:
    return stream.main([str(a) for a in arguments])


def names(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir())


@pytest.mark.thorough
def test_a_video_and_a_report_in_a_folder_are_named_after_the_source(
    clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run("--source", clip, "--save-video", out, "--report", out, "--quiet") == 0
    assert names(out) == ["talk.html", "talk.mp4"]
    assert "talk.mp4" in Page((out / "talk.html").read_text(encoding="utf-8")).text


def test_several_sources_of_one_name_do_not_overwrite_each_other(
    clip: Path, tmp_path: Path
) -> None:
    other = tmp_path / "b" / "talk.mp4"
    other.parent.mkdir()
    other.write_bytes(clip.read_bytes())
    out = tmp_path / "out"
    assert run("--source", clip, "--source", other, "--report", out, "--quiet") == 0
    assert names(out) == ["talk-2.html", "talk.html"]


def test_several_sources_and_one_file_is_a_usage_error(clip: Path, tmp_path: Path) -> None:
    other = write_clip(tmp_path / "other.mp4", seconds=0.2)
    assert run("--source", clip, "--source", other, "--report", tmp_path / "r.html") == 2
    assert names(tmp_path) == ["other.mp4"]


def test_the_source_itself_is_never_replaced(clip: Path, tmp_path: Path) -> None:
    source = tmp_path / "talk.mp4"
    source.write_bytes(clip.read_bytes())
    assert run("--source", source, "--save-video", source) == 2
    assert run("--source", source, "--save-video", tmp_path) == 2
    assert source.read_bytes() == clip.read_bytes()
    assert names(tmp_path) == ["talk.mp4"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("camera", "camera.mp4"),
        ("/dev/video0", "video0.mp4"),
        ("rtsp://host/a b?c", "a_b.mp4"),
        ("rtsp://u:hunter2@10.0.0.5/?token=hunter2", "10.0.0.5.mp4"),
        ("..", "source.mp4"),
        ("clips/" + 80 * "\u6f22" + ".mp4", 80 * "\u6f22" + ".mp4"),  # 240 bytes
    ],
)
def test_any_source_gives_a_name_that_a_file_can_have(
    tmp_path: Path, source: str, name: str
) -> None:
    assert target_of(tmp_path, ".mp4", source, set()) == tmp_path / name


def test_an_output_that_fails_does_not_stop_the_others_and_the_code_is_1(
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def full(self: VideoSink, *_: Any) -> None:
        raise OutputError("cannot write talk.mp4: no space left on device")

    monkeypatch.setattr(VideoSink, "picture", full)
    arguments = ["--source", clip, "--save-video", tmp_path / "talk.mp4"]
    assert run(*arguments, "--report", tmp_path, "--jsonl", tmp_path / "talk.jsonl") == 1
    out, err = capfd.readouterr()
    line = "--save-video: cannot write talk.mp4: no space left on device: switched off"
    assert err.splitlines() == [f"warning: {line}"]
    assert line in out  # in the summary, too
    assert "6 windows" in out
    assert names(tmp_path) == ["talk.html", "talk.jsonl"]
    assert len((tmp_path / "talk.jsonl").read_text().splitlines()) == 6
    assert line in Page((tmp_path / "talk.html").read_text(encoding="utf-8")).text


def test_a_report_that_cannot_be_written_at_the_end_is_told(
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def full(self: ReportSink, *_: Any, **__: Any) -> None:
        raise OutputError("cannot write r.html: no space left on device")

    monkeypatch.setattr(ReportSink, "finish", full)
    assert run("--source", clip, "--report", tmp_path / "r.html", "--quiet") == 1
    assert "--report: cannot write r.html: no space left on device" in capfd.readouterr().out
    assert names(tmp_path) == []


def test_a_target_that_cannot_be_written_is_one_line_before_anything_is_judged(
    clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    assert run("--source", clip, "--report", tmp_path / "file" / "r.html") == 1
    out, err = capfd.readouterr()
    assert err.startswith("error: cannot write")
    assert "windows:" not in out


class Camera(Live):
    """Ends with Ctrl-C after so many pictures, which wait until they are taken."""

    paced = False
    patience_s = 10.0
    drops: dict[str, int] = {}  # noqa: RUF012
    clock = ClockReport()

    def __enter__(self) -> Camera:
        return self


def test_ctrl_c_ends_a_live_source_with_whole_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "open_input", lambda *_: Camera(60))
    assert (
        run("--source", "camera", "--save-video", tmp_path, "--report", tmp_path,
            "--jsonl", tmp_path / "v.jsonl", "--quiet") == 0
    )  # fmt: skip
    assert names(tmp_path) == ["camera.html", "camera.mp4", "v.jsonl"]
    with av.open(str(tmp_path / "camera.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 60
    lines = (tmp_path / "v.jsonl").read_text().splitlines()
    assert [json.loads(line)["t_end_s"] for line in lines] == [2.0, 2.2, 2.4]


def test_ctrl_c_in_a_file_leaves_older_outputs_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Camera, "live", False)
    monkeypatch.setattr(stream, "open_input", lambda *_: Camera(60))
    (tmp_path / "camera.html").write_text("older")
    code = run("--source", "camera", "--save-video", tmp_path, "--report", tmp_path, "--quiet")
    assert code == 130
    assert names(tmp_path) == ["camera.html"]
    assert (tmp_path / "camera.html").read_text() == "older"


def test_a_source_that_breaks_off_leaves_no_half_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Camera):
        live = False

        def __iter__(self) -> Iterator[VideoChunk | AudioChunk]:
            try:
                yield from super().__iter__()
            except KeyboardInterrupt:
                raise MediaError("it broke") from None

    monkeypatch.setattr(stream, "open_input", lambda *_: Broken(10))
    code = run("--source", "camera", "--save-video", tmp_path, "--report", tmp_path)
    assert code == 1
    assert names(tmp_path) == []


def test_metrics_are_served_while_it_runs_and_say_where(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("prometheus_client", reason="not installed (extra metrics)")
    pages: list[str] = []
    finish = module.SourceOutputs.finish

    def look(self: module.SourceOutputs, *arguments: Any) -> None:
        url = capfd.readouterr().err.split("metrics: ")[1].split()[0]
        with urllib.request.urlopen(url, timeout=10) as answer:
            pages.append(answer.read().decode())
        finish(self, *arguments)

    monkeypatch.setattr(module.SourceOutputs, "finish", look)
    assert run("--source", clip, "--metrics", "127.0.0.1:0", "--quiet") == 0
    assert "msct_verdicts_total" in pages[0]
    assert "msct_coverage_ratio" in pages[0]


def test_metrics_beyond_this_machine_are_announced(
    clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("prometheus_client", reason="not installed (extra metrics)")
    run("--source", clip, "--metrics", "127.0.0.1:0", "--quiet")
    assert "notice" not in capfd.readouterr().err
    assert stream.parser().parse_args(["--source", "x", "--metrics"]).metrics == "127.0.0.1:9108"
    run("--source", clip, "--metrics", "0.0.0.0:0", "--quiet")
    assert "notice: whoever reaches 0.0.0.0 can read the metrics" in capfd.readouterr().err


def test_a_webhook_that_was_not_delivered_is_told_and_the_code_is_1(
    clip: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MSCT_WEBHOOK_TOKEN", raising=False)
    receiver = Receiver()
    try:
        assert run("--source", clip, "--webhook", receiver.url, "--quiet") == 0
        assert len(receiver.changes) == 1
        receiver.answers = [404]
        assert run("--source", clip, "--webhook", receiver.url, "--quiet") == 1
    finally:
        receiver.close()
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "lost: 1 change (not delivered); last error: HTTP 404" in err
    assert "secret-path" not in err


def test_options_that_need_each_other(clip: Path) -> None:
    assert run("--source", clip, "--webhook-abstain") == 2
    assert run("--source", clip, "--webhook", "gopher://x") == 2
    assert run("--source", clip, "--metrics", "non:sense") == 2


def test_a_pending_file_has_the_usual_permissions_and_follows_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.html"
    link.symlink_to(tmp_path / "real" / "out.html")
    file = PendingFile(link)
    file.path.write_text("x")
    file.commit()
    assert link.is_symlink()
    assert names(tmp_path / "real") == ["out.html"]
    assert (tmp_path / "real" / "out.html").stat().st_mode & 0o044 == 0o044
