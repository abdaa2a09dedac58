# SPDX-License-Identifier: Apache-2.0
"""What a source is called, everywhere: without secrets, as plain text, told apart, in any file."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import runtime.flow.pictures
from runtime import command, naming
from runtime.address import public_text, remember, without_secrets
from runtime.calibrate import __main__ as calibrate
from runtime.errors import UsageError
from runtime.media.open import expand_sources, name_sources
from runtime.naming import MAX_NAME_BYTES, file_stem, plain, temporary_name, told_apart
from runtime.sinks import terminal
from runtime.sinks.outputs import target_of
from runtime.stream import __main__ as stream
from runtime.web.sink import WebSink
from tests.runtime.clips import write_clip
from tests.runtime.doubles import MockBackend, MockTracker
from tests.runtime.live_server import serve
from tests.runtime.sinks.report.test_report import Page

ROOT = Path(__file__).resolve().parents[2]
SECRET = "hunter2"
LONG = 80 * "漢"  # 240 bytes


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {"movflags": "+faststart"}  # so that a server without ranges can serve it
    return write_clip(tmp_path_factory.mktemp("clips") / "talk.mp4", seconds=2.2, options=options)


@pytest.fixture(autouse=True)
def _mocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "load_backend", lambda *_: MockBackend())
    monkeypatch.setattr(runtime.flow.pictures, "FaceTracker", lambda spec: MockTracker())
    monkeypatch.setattr(terminal, "LOG_COLUMNS", 400)  # no path is broken between two lines


def run(*arguments: Any) -> int:
    return stream.main(["--decoder", "inline", *(str(a) for a in arguments)])


def named(clip: Path, folder: Path, name: str) -> Path:
    """The clip under another name."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(clip.read_bytes())
    return folder / name


def sources_in(jsonl: Path) -> list[str]:
    """In order, each once."""
    lines = jsonl.read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys(json.loads(line)["source"] for line in lines))


@contextlib.contextmanager
def film(clip: Path) -> Iterator[str]:
    """A server of the clip, whatever is asked for; gives ``127.0.0.1:port``."""
    body = clip.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with serve(Handler) as port:
        yield f"127.0.0.1:{port}"


# No secret


def test_no_output_of_a_run_holds_user_password_or_query(
    clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with film(clip) as host:
        shown = f"http://{host}/talk.mp4"
        code = run(
            *("--source", f"http://admin:{SECRET}@{host}/talk.mp4?token={SECRET}#{SECRET}"),
            *("--source", f"rtsp://admin:{SECRET}@127.0.0.1:1/live?token={SECRET}"),
            *("--save-video", out, "--report", out, "--jsonl", out.with_suffix(".jsonl")),
        )
    said = "".join(capfd.readouterr())
    assert code == 1  # nobody is at port 1
    assert f"{shown} " in said
    row = next(line for line in said.splitlines() if "not read" in line)
    assert row.split() == ["rtsp://127.0.0.1:1/live", "not", "read"]
    assert sources_in(out.with_suffix(".jsonl")) == [shown]
    assert sorted(f.name for f in out.iterdir()) == ["talk.html", "talk.mp4"]
    report = (out / "talk.html").read_text(encoding="utf-8")
    assert shown in Page(report).text
    for text in (said, report, out.with_suffix(".jsonl").read_text()):
        assert SECRET not in text
        assert "admin" not in text
        assert "token" not in text or text is report  # the model's "tokens"


WRONG = [
    f"rtsp://admin:{SECRET}#{SECRET}@cam/live",
    f"rtsp://admin:{SECRET}?{SECRET}@cam/live",
    f"rtsp://admin:{SECRET}/{SECRET}@cam/live",
    f"rtsp://admin:12#{SECRET}@cam/live",
    f"rtsp://admin:12?{SECRET}@cam/live",
    f"rtsp://cam:{SECRET}/live",
    f"rtsp://admin:{SECRET}@",
    f"ftp://admin:{SECRET}@cam/live",
    f"csi://admin:{SECRET}@0",
    f"rtsp:/admin:{SECRET}@cam/live",  # and with typing errors
    f"rtsp:admin:{SECRET}@cam/live",
    f"admin:{SECRET}@cam/live",
    f"cam/live?token={SECRET}",
    f'"rtsp://admin:{SECRET}@cam/live"',
]


@pytest.mark.parametrize("source", WRONG)
def test_an_address_that_is_none_is_told_with_its_scheme_only(
    source: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "cameras.streams"
    listed.write_text(f"camera\n{source}\n")
    for given_as in (source, listed):
        assert run("--source", given_as) == 2
        err = capfd.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert SECRET not in err
        assert "admin" not in err
        if "rtsp:/" in source:
            assert "rtsp://" in err


def test_options_that_are_none_are_repeated_without_secrets(
    capfd: pytest.CaptureFixture[str],
) -> None:
    for main in (stream.main, calibrate.main):
        with pytest.raises(SystemExit):
            main(["--source", "camera", f"rtsp://admin:{SECRET}@cam/live?token={SECRET}"])
        err = capfd.readouterr().err
        assert "unrecognized arguments: rtsp://cam/live\n" in err
        assert SECRET not in err


COMMANDS = sorted(
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__main__")
    for package in ("runtime", "trainer", "export", "benchmarks")
    for path in (ROOT / package).rglob("*.py")
    if re.search(r"^def main\(argv[\s\S]*^    leave\(main\)", path.read_text("utf-8"), re.M)
)


@pytest.mark.parametrize("module", COMMANDS)
def test_no_command_repeats_a_secret_that_it_was_given(
    module: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it takes the address for; a space, at which an address in a text would end, is in
    the password and in the query."""
    for needed in {"trainer": ("torch", "scipy"), "export": ("torch", "onnx")}.get(
        module.split(".")[0], ()
    ):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    monkeypatch.chdir(tmp_path)
    address = f"rtsp://admin:my {SECRET}@127.0.0.1:1/live?token=my {SECRET}"
    found = import_module(module)
    main = getattr(found, "main", None) or import_module(f"{module}.__main__").main
    options = set(re.findall(r"\n  (--[\w-]+)", help_of(main, capfd)))
    takers = sorted(options - {"--help"})
    tries = [[address], *([o, address] for o in takers), *([f"{o}={address}"] for o in takers)]
    for arguments in tries:
        others = [x for o in ("--source", "--output") if o in options and o not in arguments
                  for x in (o, str(tmp_path / "none"))]  # fmt: skip
        with contextlib.suppress(SystemExit):
            main([*arguments, *others, "--no-such-option"])
        out, err = capfd.readouterr()
        assert SECRET not in out + err, arguments
        assert "Traceback" not in err


def help_of(main: Callable[[list[str]], int], capfd: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        main(["--help"])
    return capfd.readouterr().out


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("runtime.scan", ["ADDRESS", "--output", "s.parquet"]),
        ("runtime.scan", ["ADDRESS/below", "--output", "s.parquet"]),
        ("runtime.demo", ["--source", "ADDRESS", "--output", "demo"]),
        ("runtime.stream", ["--source", "clip.mp4", "--jsonl", "ADDRESS"]),
        ("runtime.stream", ["--source", "clip.mp4", "--window", "ADDRESS"]),
        ("runtime.stream", ["--source", "clip.mp4", "--metrics", f"admin:my {SECRET}@[::1]:x"]),
        ("runtime.stream", ["--source", f"127.0.0.1/live?my {SECRET}"]),
        ("runtime.stream", ["--source", "cameras.streams"]),
        ("trainer.forge", ["--genuine", "ADDRESS", "--output", "out"]),
        ("trainer.prepare", ["--data", "ADDRESS", "--output", "out"]),
        ("trainer.fit", ["--data", "ADDRESS", "--output", "out"]),
        ("trainer.evaluate", ["--data", "ADDRESS", "--output", "out"]),
        ("trainer.distil", ["--clips", "ADDRESS", "--output", "out"]),
        ("benchmarks.site", ["--clips", "ADDRESS"]),
        ("benchmarks.stream", ["--source", "ADDRESS"]),
        ("benchmarks.latency", ["--source", "ADDRESS", "--output", "out"]),
        ("benchmarks.peers", ["--source", "ADDRESS"]),
        ("benchmarks.fuzz", ["--clips", "ADDRESS"]),
        ("benchmarks.speakers", ["--clips", "ADDRESS"]),
    ],
)
def test_a_secret_with_a_space_is_hidden_by_whatever_repeats_it(
    module: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if module.startswith("trainer"):
        pytest.importorskip("torch", reason="torch is not installed (extra train)")
        pytest.importorskip("scipy", reason="needs the train extra")
    monkeypatch.chdir(tmp_path)
    address = f"rtsp://admin:my {SECRET}@127.0.0.1:1/live?token=my {SECRET}"
    (tmp_path / "cameras.streams").write_text(f"{address}\nx{address}\n", encoding="utf-8")
    found = import_module(module)
    main = getattr(found, "main", None) or import_module(f"{module}.__main__").main
    with contextlib.suppress(SystemExit):
        assert main([a.replace("ADDRESS", address) for a in arguments]) in (1, 2)
    out, err = capfd.readouterr()
    assert err
    assert SECRET not in out + err
    assert "Traceback" not in err


def test_an_error_of_ours_says_all_but_secrets(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(source: str, *_: object) -> None:
        raise RuntimeError(f"[Errno 5] I/O error: '{source}' \x1b[2J")

    monkeypatch.setattr(stream, "open_input", fail)
    assert run("--source", f"rtsp://admin:{SECRET}@cam/live?token={SECRET}") == 1
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert "RuntimeError: [Errno 5] I/O error: 'rtsp://cam/live' ?[2J\n" in err
    assert SECRET not in err


def test_the_progress_of_a_calibration_shows_no_secret(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    with film(clip) as host:
        source = f"http://admin:{SECRET}@{host}/talk.mp4?token={SECRET}"
        arguments = ["--source", source, "--output", str(tmp_path / "site.json")]
        assert calibrate.main(arguments) == 1  # three seconds are too few
        err = capfd.readouterr().err
        assert f"reading http://{host}/talk.mp4" in err
        assert SECRET not in err
        assert calibrate.main([*arguments, "--name", "[b]door[/x]"]) == 1
    assert "reading [b]door[/x]" in capfd.readouterr().err


def test_a_text_is_shown_without_the_secrets_of_its_addresses() -> None:
    assert without_secrets("at 'rtsp://u:p@cam/x?y', or https://a/b.") == (
        "at 'rtsp://cam/x', or https://a/b."
    )
    for text in ("give rtsp://, rtsps:// or csi://", "C:/clips/a.mp4", "http://[::1]:80/x"):
        assert without_secrets(text) == text
    assert without_secrets("rtsp:/u:p@cam/x: no such file") == "rtsp://…: no such file"


def test_what_was_given_hides_its_own_secrets_and_nothing_else() -> None:
    for source in ("http://cam/@user/x.mp4?t=1", "rtsp://a@cam/live", "rtsp://admin:1/2@cam/live"):
        remember(source)
    for text in ("http://cam/@user/x.mp4", "rtsp://campus/live, rtsp://cam2/live", "cam", "data@x"):
        assert without_secrets(text) == text
    assert without_secrets("x?t=1: no such file") == "x?…: no such file"
    assert "1/2" not in without_secrets("rtsp:/admin:1/2@cam/live: no such file")
    assert "admin:1" not in without_secrets("no folder rtsp:/admin:1")


def test_a_file_that_is_there_is_a_path_whatever_it_is_called(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["10:30 a@b.mp4", "watch?v=1", "watch?v=2"]
    for name in names:
        named(clip, tmp_path, name)
    assert run(*(x for name in names for x in ("--source", name)), "--jsonl", "out.jsonl") == 0
    out = capfd.readouterr().out
    for name in names:
        assert name in out
    assert sources_in(Path("out.jsonl")) == names


def test_a_source_that_is_not_there_is_told_as_it_was_given() -> None:
    assert public_text(f" rtsp://admin:{SECRET}@cam/live") == "rtsp://…"
    for text in (f"http:127.0.0.1:80/x?{SECRET}", f"cam.local/x?{SECRET}", f"cam:80/x?{SECRET}"):
        assert public_text(text) == text.replace(SECRET, "…")
    for text in (
        "talk.mp4",
        "clips/a?b.mp4",
        "../a?b.mp4",
        "clips/*.mp4",
        "a@b.mp4",
        "C:/talk.mp4",
    ):
        assert public_text(text) == text


# Plain text

MARKUP = ["x[/b].mp4", "[red]x.mp4", ":cat:.mp4", "a\\[b].mp4", "{x} %s.mp4", "  two  spaces.mp4"]


def test_names_that_look_like_markup_are_shown_as_they_are(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("clips")  # short: a table folds what is long
    for name in MARKUP:
        named(clip, folder, name)
    named(clip, folder, "broken[/b].mp4").write_bytes(b"no film")
    assert run("--source", folder, "--jsonl", tmp_path / "v.jsonl") == 1
    said = "".join(line.strip() for line in capfd.readouterr().out.splitlines())
    for name in [*MARKUP, "broken[/b].mp4"]:
        assert said.count(name) >= 1 + (name in MARKUP)  # header and table
    assert sources_in(tmp_path / "v.jsonl") == sorted(str(folder / name) for name in MARKUP)


@pytest.mark.parametrize("parallel", [False, True])
def test_control_characters_in_names_reach_no_output(
    parallel: bool, clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clips"
    names = ["a\x1b]0;owned\x07.mp4", "b\nerror: forged.mp4", "c\u202e4pm.mp4", "d\r\x9b2J.mp4"]
    for name in names:
        named(clip, folder, name)
    (folder / "e\x1b[2J.mp4").write_bytes(b"no film")
    out, jsonl = tmp_path / "out", tmp_path / "v.jsonl"
    more = ["--parallel"] if parallel else ["--report", out]
    assert run("--source", folder, "--jsonl", jsonl, *more) == 1
    printed = "".join(capfd.readouterr())
    assert not [c for c in printed if not c.isprintable() and c != "\n"]
    assert not [line for line in printed.splitlines() if line.startswith("error: forged")]
    shown = ["a?]0;owned?.mp4", "b?error: forged.mp4", "c?4pm.mp4", "d??2J.mp4"]
    assert sorted(sources_in(jsonl)) == [str(folder / name) for name in shown]
    if parallel:
        return
    files = sorted(f.name for f in out.iterdir())
    assert files == ["a_0_owned.html", "b_error_forged.html", "c_4pm.html", "d_2J.html"]
    for name, report in zip(shown, files, strict=True):
        page = (out / report).read_text(encoding="utf-8")
        assert name in Page(page).text
        assert "SHA-256" in page  # still of the file
        assert not [c for c in page if not c.isprintable() and c != "\n"]


@given(st.text())
def test_any_text_is_printed_as_it_is_or_without_control_characters(text: str) -> None:
    shown = naming.plain_line(text)
    assert all(c.isprintable() or c in naming.JOINERS for c in shown)
    assert naming.plain_line(shown) == shown
    if text.isprintable() and ":/" not in text:
        assert shown == text
    out = io.StringIO()
    terminal.print_line(Console(file=out, width=20, highlight=False), text)
    assert out.getvalue() == shown + "\n"


def test_what_words_and_names_of_files_need_stays() -> None:
    assert plain("می‌خواهم") == "می‌خواهم"  # a zero-width non-joiner
    assert naming.name_of_file("at 10.30.00\u202fAM.mp4") == "at 10.30.00 AM.mp4"
    assert naming.name_of_file(b"a\xff.mp4".decode("utf-8", "surrogateescape")) == "a?.mp4"


@pytest.mark.parametrize("broken", ["print_summary", "print_table"])
@pytest.mark.parametrize("count", [1, 2])
def test_results_are_there_before_anything_is_printed_about_them(
    broken: str, count: int, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_as = [
        arg for i in range(count) for arg in ("--source", named(clip, tmp_path, f"{i}.mp4"))
    ]
    jsonl, out = tmp_path / "v.jsonl", tmp_path / "out"
    calls = []

    def fail(*arguments: Any) -> None:
        calls.append(arguments)
        if broken == "print_table" or len(calls) == count:  # the last source's
            assert len(sources_in(jsonl)) == count
            assert len(list(out.glob("*.html"))) == count
            raise RuntimeError("no way to print this")

    monkeypatch.setattr(terminal, broken, fail)
    expected = 1 if count == 2 or broken == "print_summary" else 0
    assert run(*given_as, "--jsonl", jsonl, "--report", out) == expected
    assert len(sources_in(jsonl)) == count


# Names of files


def test_names_of_outputs_fit_in_bytes_and_stay_different(clip: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "clips", tmp_path / "out"
    names = [f"{LONG}a.mp4", f"{250 * 'x'}y.mp4", f"{250 * 'x'}z.mp4"]
    for name in names:
        named(clip, folder, name)
    assert run("--source", folder, "--report", out, "--quiet") == 0
    found = sorted(f.name for f in out.iterdir())
    assert len(found) == len(names)
    assert all(len(name.encode()) <= MAX_NAME_BYTES for name in found)
    assert f"{LONG}a.html" in found  # 245 bytes: as it is, though no temporary name has room


def test_long_names_of_two_runs_stay_different(tmp_path: Path) -> None:
    a, b = (target_of(tmp_path, ".mp4", f"{300 * 'x'}{end}.mp4", set()) for end in "ab")
    assert a != b
    assert a == target_of(tmp_path, ".mp4", f"{300 * 'x'}a.mp4", set())


def test_names_that_differ_in_case_alone_get_a_number(tmp_path: Path) -> None:
    taken: set[Path] = set()
    files = [target_of(tmp_path, ".mp4", source, taken).name for source in ("Talk.mp4", "talk.mpg")]
    assert files == ["Talk.mp4", "talk-2.mp4"]


@given(st.text())
def test_any_name_gives_a_name_that_a_file_can_have(name: str) -> None:
    stem = file_stem(name, ".html")
    assert stem
    assert not {"/", "\0"} & set(stem)
    assert not stem.startswith(".")
    assert len(f"{stem}-99999.html".encode()) <= MAX_NAME_BYTES
    assert len(temporary_name(Path(stem), "12345.part").encode()) <= MAX_NAME_BYTES


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("option", ["--report", "--save-video"])
def test_a_source_whose_output_is_in_the_way_of_fails_alone(
    option: str, parallel: bool, clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    suffix = ".html" if option == "--report" else ".mp4"
    folder, out, jsonl = tmp_path / "clips", tmp_path / "out", tmp_path / "v.jsonl"
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        named(clip, folder, name)
    (out / f"b{suffix}").mkdir(parents=True)
    more = ["--parallel"] if parallel else []
    assert run("--source", folder, option, out, "--jsonl", jsonl, *more) == 1
    said, err = capfd.readouterr()
    assert err == f"error: cannot write {out / f'b{suffix}'}: not a regular file\n"
    both = [str(folder / "a.mp4"), str(folder / "c.mp4")]
    assert (sorted(sources_in(jsonl)) if parallel else sources_in(jsonl)) == both
    assert sorted(f.name for f in out.iterdir()) == [f"{n}{suffix}" for n in "abc"]
    row = next(line for line in said.splitlines() if "not read" in line)
    assert row.split()[0] == str(folder / "b.mp4")


def test_a_record_that_cannot_be_written_ends_the_run(clip: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "clips", tmp_path / "out"
    for name in ("a.mp4", "b.mp4"):
        named(clip, folder, name)
    assert run("--source", folder, "--jsonl", "/dev/full", "--report", out) == 1
    assert list(out.glob("*")) == []


@pytest.mark.parametrize("option", ["--report", "--save-video", "--jsonl"])
def test_a_target_longer_than_a_name_may_be_is_one_line(
    option: str, clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    suffix = {"--report": ".html", "--save-video": ".mp4", "--jsonl": ".jsonl"}[option]
    assert run("--source", clip, option, tmp_path / (300 * "x" + suffix)) == 1
    err = capfd.readouterr().err
    assert err.startswith("error: cannot write")
    assert err.endswith("file name too long\n")
    longest = (MAX_NAME_BYTES - len(suffix)) * "x" + suffix
    assert run("--source", clip, option, tmp_path / longest, "--quiet") == 0
    assert [f.name for f in tmp_path.iterdir()] == [longest]


# Told apart


def test_names_that_would_be_equal_get_a_number_in_order() -> None:
    assert told_apart(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]
    assert told_apart(["a", "a", "a (2)"]) == ["a", "a (3)", "a (2)"]
    assert told_apart([]) == []


@given(st.lists(st.sampled_from(["a", "a (2)", "a (3)", "b"])))
def test_no_two_names_are_equal(names: list[str]) -> None:
    shown = told_apart(names)
    assert len(set(shown)) == len(names)
    assert [name for name in shown if name in names] == list(dict.fromkeys(names))


def test_two_cameras_of_one_recorder() -> None:
    channels = [f"rtsp://u:{SECRET}@nvr/live?channel={n}" for n in (1, 2)]
    door = "rtsp://u:p@nvr/door?channel=3"
    assert name_sources([channels[0], door, channels[1]]) == {
        channels[0]: "rtsp://nvr/live",
        door: "rtsp://nvr/door",
        channels[1]: "rtsp://nvr/live (2)",
    }
    assert expand_sources(channels) == channels


def test_equal_addresses_are_told_apart_in_every_output(
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    client = pytest.importorskip("prometheus_client", reason="not installed (extra metrics)")
    out, jsonl = tmp_path / "out", tmp_path / "v.jsonl"
    pages, metrics = [], []
    init = WebSink.__init__
    monkeypatch.setattr(WebSink, "__init__", lambda s, **k: (pages.append(s), init(s, **k))[1])
    registry = client.CollectorRegistry
    monkeypatch.setattr(
        client, "CollectorRegistry", lambda: metrics.append(registry()) or metrics[0]
    )
    pytest.importorskip("uvicorn", reason="not installed (extra web)")
    with film(clip) as host:
        code = run(
            *("--source", f"http://{host}/talk.mp4?channel=1"),
            *("--source", f"http://{host}/talk.mp4?channel=2"),
            *("--jsonl", jsonl, "--report", out, "--metrics", "127.0.0.1:0"),
            *("--web", "127.0.0.1:0"),
        )
    assert code == 0
    both = [f"http://{host}/talk.mp4", f"http://{host}/talk.mp4 (2)"]
    assert sorted(sources_in(jsonl)) == both
    assert sorted(f.name for f in out.iterdir()) == ["talk-2.html", "talk.html"]
    state = pages[0].state()["sources"]
    assert sorted(state) == both
    assert all(s["live"] is False and s["windows"] == 2 for s in state.values())
    page = client.generate_latest(metrics[0]).decode()
    for name in both:
        assert f'msct_coverage_ratio{{source="{name}"}}' in page
    said = capfd.readouterr().out
    for name in both:
        rows = [line for line in said.splitlines() if line.strip().startswith(f"{name} ")]
        assert len(rows) >= 2  # its header and its row of the table


def test_an_outage_is_told_by_the_name_of_the_source(capfd: pytest.CaptureFixture[str]) -> None:
    source = f"rtsp://u:{SECRET}@127.0.0.1:1/live?channel="
    assert run("--source", f"{source}1", "--source", f"{source}2", "--quiet") == 1
    err = capfd.readouterr().err.splitlines()
    assert [line.split(" cannot")[0] for line in err] == [
        "error: rtsp://127.0.0.1:1/live:",
        "error: rtsp://127.0.0.1:1/live (2):",
    ]


# Given names


def test_the_name_that_somebody_gave(clip: Path, tmp_path: Path) -> None:
    out, jsonl = tmp_path / "out", tmp_path / "v.jsonl"
    other = named(clip, tmp_path, "b.mp4")
    assert run(
        *("--source", clip, "--name", "Front door", "--name", "Hall 1.5", "--source", other),
        *("--jsonl", jsonl, "--report", out, "--quiet"),
    ) == 0  # fmt: skip
    assert sources_in(jsonl) == ["Front door", "Hall 1.5"]
    assert sorted(f.name for f in out.iterdir()) == ["Front_door.html", "Hall_1.5.html"]
    page = Page((out / "Front_door.html").read_text(encoding="utf-8")).text
    assert "Front door" in page
    assert "SHA-256" in page  # the file's, though it is called otherwise


def test_names_in_a_list(tmp_path: Path) -> None:
    for name in ("talk.mp4", "a = b.mp4"):
        (tmp_path / name).touch()
    path = tmp_path / "cameras.streams"
    path.write_text(
        "front door = rtsp://u:p@nvr/live?channel=1\nhall = talk.mp4\na = b.mp4\n"
        "rtsp://nvr/live?channel=2 = 3\nhall=camera.mp4 = camera\n"
    )
    with pytest.raises(UsageError, match="line 5"):  # a name has no "="
        name_sources([str(path)])
    path.write_text(path.read_text().replace("hall=camera.mp4 = camera\n", "hall = camera\n"))
    assert name_sources([str(path)]) == {
        "rtsp://u:p@nvr/live?channel=1": "front door",
        str(tmp_path / "talk.mp4"): "hall",
        str(tmp_path / "a = b.mp4"): str(tmp_path / "a = b.mp4"),
        "rtsp://nvr/live?channel=2 = 3": "rtsp://nvr/live",
        "camera": "hall (2)",
    }


@pytest.mark.parametrize(
    ("sources", "names", "words"),
    [
        (["camera", "1"], ["door"], "--name: 1 for 2 sources"),
        (["camera"], ["a", "b"], "--name: 2 for 1 sources"),
        (["camera"], ["\n"], "name is empty"),
        (["clips"], ["door"], "it is 2 sources, which cannot all be called door"),
    ],
)
def test_names_that_do_not_go_with_the_sources(
    sources: list[str],
    names: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("clips").mkdir()
    for name in ("a.mp4", "b.mp4"):
        Path("clips", name).touch()
    with pytest.raises(UsageError, match=words):
        name_sources(sources, names)


def test_a_given_name_is_plain_text_without_secrets() -> None:
    name = f"door\x1b[2J at rtsp://u:{SECRET}@cam/x?{SECRET}"
    assert name_sources(["camera"], [name]) == {"camera": "door?[2J at rtsp://cam/x"}
