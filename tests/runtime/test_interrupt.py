# SPDX-License-Identifier: Apache-2.0
"""Real signals to real processes, each sent when something is seen to have happened."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest

from tests.runtime.clips import write_clip
from tests.runtime.live_server import Response, http_server
from tests.waiting import pause, wait_for

REPOSITORY = Path(__file__).resolve().parents[2]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
NAMES = [number.name for number in SIGNALS]
PATIENCE_S = 120.0  # of a test, on a machine with other work
COMMANDS = sorted(
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__main__")
    for package in ("runtime", "trainer", "export", "benchmarks")
    for path in (REPOSITORY / package).rglob("*.py")
    if re.search(r'^if __name__ == "__main__":\n    leave\(', path.read_text(), re.MULTILINE)
)


def python(program: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """The program in a process and a group of its own; it says "ready" on standard output."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True, **options,
    )  # fmt: skip


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "ready\n", line + process.communicate(timeout=PATIENCE_S)[1]


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and standard error."""
    try:
        _, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    return process.returncode, err


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


# The module alone

LOOP = """
    import subprocess, sys, time
    from pathlib import Path
    from runtime import interrupt
    interrupt.install()
    from runtime import leftovers

    def main():
        target = Path(sys.argv[1])
        with leftovers.folder("work-", target.parent) as folder:
            (folder / "inside").touch()
            child = subprocess.Popen(["sleep", "300"], start_new_session=True)
            temporary = leftovers.new_file(target)
            try:
                print("ready", flush=True)
                print(child.pid, flush=True)
                while True:
                    if "deaf" not in sys.argv:
                        interrupt.check()
                    time.sleep(0.01)
            finally:
                child.kill()
                temporary.unlink()

    interrupt.leave(main)
"""


@pytest.mark.parametrize("number", SIGNALS, ids=NAMES)
def test_the_first_signal_is_seen_at_the_next_look(number: signal.Signals, tmp_path: Path) -> None:
    process = python(LOOP, tmp_path / "out")
    ready(process)
    process.send_signal(number)
    assert end_of(process) == (130, "interrupted\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="who descends from whom is read from /proc")
def test_two_in_quick_succession_end_at_once_and_leave_nothing(tmp_path: Path) -> None:
    """Many times, at whatever moment it is: never a traceback, an abort, a file or a child."""
    for turn in range(12):
        process = python(LOOP, tmp_path / "out", *(["deaf"] if turn % 2 else []))
        ready(process)
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(SIGNALS[turn % 3])
        process.send_signal(SIGNALS[(turn + 1) % 3])
        assert end_of(process) == (130, "interrupted\n")
        assert list(tmp_path.iterdir()) == []
        assert gone(child)


@pytest.mark.skipif(sys.platform != "linux", reason="the lock is made of zeros, as glibc does")
def test_the_second_does_not_wait_for_the_main_thread() -> None:
    """It may be in somebody's C for long_clips, where Python's own handlers do not run."""
    program = """
        import ctypes
        from runtime import interrupt
        interrupt.install()
        print("ready", flush=True)
        mutex = ctypes.create_string_buffer(64)  # a second lock waits for ever, whatever comes
        interrupt.leave(lambda: [ctypes.CDLL(None).pthread_mutex_lock(mutex) for _ in "ab"])
    """
    process = python(program)
    ready(process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert end_of(process)[0] == 130


def test_a_hangup_that_was_ignored_at_the_start_stays_ignored(tmp_path: Path) -> None:
    nohup = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    run = "os.execv(sys.executable, [sys.executable, '-c', *sys.argv[1:]])"
    process = python(nohup + run, textwrap.dedent(LOOP), tmp_path / "out")
    ready(process)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert end_of(process) == (130, "interrupted\n")  # of one signal: not at once, but by the loop
    assert list(tmp_path.iterdir()) == []


def test_the_two_hangups_of_a_terminal_are_one(tmp_path: Path) -> None:
    program = """
        import sys, time
        from runtime import interrupt
        interrupt.install()

        def main():
            print("ready", flush=True)
            while not interrupt.requested():
                time.sleep(0.01)
            interrupt.answer()
            print("asked", flush=True)
            sys.stdin.readline()
            interrupt.check()
            return 3

        interrupt.leave(main)
    """
    process = python(program)
    ready(process)
    process.send_signal(signal.SIGHUP)
    assert process.stdout is not None
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate("go on\n", timeout=PATIENCE_S)
    assert (process.returncode, out, err) == (3, "", "")


@pytest.mark.parametrize(
    "wait",
    [
        "waits.sleep(300)",
        "waits.run_program(['sleep', '300'])",
        "waits.call(lambda: time.sleep(300))",
        "list(waits.polled(iter(lambda: time.sleep(300), 1)))",
    ],
)
def test_waits_break_off(wait: str) -> None:
    program = f"""
        import time
        from runtime import interrupt
        interrupt.install()
        from runtime import waits
        print("ready", flush=True)
        interrupt.leave(lambda: {wait})
    """
    process = python(program)
    ready(process)
    process.send_signal(signal.SIGTERM)
    assert end_of(process) == (130, "interrupted\n")


def test_a_program_that_would_begin_while_all_are_being_ended_does_not(tmp_path: Path) -> None:
    """A signal ends the children and then the process; the main thread goes on until then."""
    begun = tmp_path / "begun"
    program = f"""
        import sys, threading, time
        from runtime import interrupt, leftovers, waits
        interrupt.install()
        ended, end_children = threading.Event(), leftovers.end_children

        def slowly(of=None):
            end_children(of)
            ended.set()
            time.sleep(0.5)

        leftovers.end_children = slowly
        print("ready", flush=True)
        ended.wait(60)
        waits.run_program([sys.executable, "-c", "open({str(begun)!r}, 'w')"])
    """
    process = python(program)
    ready(process)
    process.send_signal(signal.SIGTERM)
    assert end_of(process) == (130, "interrupted\n")
    pause(0.3)  # what began would be seen by now
    assert not begun.exists()


def test_without_handlers_nothing_changes() -> None:
    from runtime import interrupt, waits

    before = signal.getsignal(signal.SIGINT)
    assert not interrupt.handled()
    interrupt.check()
    assert waits.call(lambda: 3) == 3
    assert list(waits.polled(iter([1, 2]))) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        list(waits.polled(1 // n for n in (1, 0)))
    assert waits.run_program([sys.executable, "-c", "print(4)"], capture_output=True).stdout
    assert signal.getsignal(signal.SIGINT) is before


# While modules are imported

IMPORTING = """
    import os, runpy, sys, time
    module, wanted = sys.argv[1], os.environ["SLOW_IMPORT"]
    own = {module, f"{module}.__main__", module.rpartition(".")[0]}
    own |= {"runtime.interrupt", "runtime.errors"}

    class Slow:
        def find_spec(self, name, path=None, target=None):
            first = "." in name or name in ("numpy", "rich", "torch")
            first = first and name not in own and name.split(".")[0] not in sys.stdlib_module_names
            if name == wanted or (not wanted and first):
                sys.meta_path.remove(self)
                os.write(1, b"ready\\n")
                if wanted:
                    sys.stdin.readline()  # the import goes on when it is told to
                else:
                    time.sleep(300)

    sys.meta_path.insert(0, Slow())
    sys.argv = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def importing(wanted: str, *arguments: object) -> subprocess.Popen[str]:
    """A command that is in the middle of the import of ``wanted``, or of its first one of all."""
    process = python(IMPORTING, *arguments, env={**os.environ, "SLOW_IMPORT": wanted})
    ready(process)
    return process


def test_every_command_is_among_them() -> None:
    ends = {
        path
        for package in ("runtime", "trainer", "export", "benchmarks")
        for path in (REPOSITORY / package).rglob("*.py")
        if '\nif __name__ == "__main__":\n    sys.exit(main())' in path.read_text()
    }
    assert ends == set()
    some = {"runtime.stream", "trainer.fit", "export.build_engine", "benchmarks.soak"}
    assert some <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_while_a_command_is_being_imported_is_one_line_and_130(command: str) -> None:
    number = SIGNALS[COMMANDS.index(command) % len(SIGNALS)]
    process = importing("", command)
    process.send_signal(number)
    assert end_of(process) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("module", "number"), [("onnxruntime", signal.SIGTERM), ("av", signal.SIGHUP)]
)
def test_a_signal_in_a_late_import_breaks_off_after_it(
    module: str, number: signal.Signals, tmp_path: Path
) -> None:
    source = write_clip(tmp_path / "clip.mp4")
    process = importing(module, "runtime.stream", "--source", source, "--decoder", "inline",
                        "--jsonl", tmp_path / "out.jsonl")  # fmt: skip
    process.send_signal(number)
    assert process.stdin is not None
    process.stdin.write("go on\n")
    assert end_of(process) == (130, "interrupted\n")
    assert list(tmp_path.iterdir()) == [source]


# Commands at work

STREAM = """
    import sys
    from runtime import interrupt
    interrupt.install()
    import runtime.flow.pictures
    from runtime import command
    from runtime.stream import __main__ as stream
    from tests.runtime.doubles import MockBackend, MockTracker
    command.load_backend = lambda *_: MockBackend()
    runtime.flow.pictures.FaceTracker = lambda spec: MockTracker()
    interrupt.leave(stream.main)
"""


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("long") / "clip.mp4", seconds=25)


@pytest.fixture
def endless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that gives six seconds and then holds the line."""
    body = write_clip(tmp_path_factory.mktemp("live") / "clip.ts", seconds=6).read_bytes()
    with http_server([Response(body, hang=True)] * 50) as url:
        yield url


def outputs(folder: Path, pattern: str) -> list[Path]:
    return [path for path in folder.glob(pattern) if path.stat().st_size]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="children are read from /proc")
@pytest.mark.parametrize("number", SIGNALS, ids=NAMES)
def test_a_file_is_broken_off_and_leaves_nothing(
    number: signal.Signals, long_clip: Path, tmp_path: Path
) -> None:
    """To the whole group, as a terminal does: its decoder does not die of it first."""
    process = python(STREAM, "--source", long_clip, "--save-video", tmp_path, "--report", tmp_path,
                     "--jsonl", tmp_path / "out.jsonl", "--quiet")  # fmt: skip
    wait_for(lambda: outputs(tmp_path, ".clip.mp4.*.tmp"), "the video growing")
    decoders = children(process.pid)
    assert len(decoders) == 1
    os.killpg(process.pid, number)
    assert end_of(process) == (130, "interrupted\n")
    assert list(tmp_path.iterdir()) == []
    assert all(map(gone, decoders))


def test_two_while_a_live_source_is_saved_leave_its_lines_alone(
    endless: str, tmp_path: Path
) -> None:
    process = python(STREAM, "--source", endless, "--save-video", tmp_path, "--report", tmp_path,
                     "--jsonl", tmp_path / "out.jsonl", "--quiet")  # fmt: skip
    wait_for(lambda: outputs(tmp_path, "out.jsonl"), "a verdict")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    code, err = end_of(process)
    assert code == 130
    assert [line for line in err.splitlines() if not line.startswith("note: ")] == ["interrupted"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_terminal_that_is_closed_keeps_the_video(endless: str, tmp_path: Path) -> None:
    """It says SIGHUP, and whatever is printed from then on is an error."""
    own = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"  # its controlling terminal
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", own + textwrap.dedent(STREAM), "--source", endless, "--save-video",
         str(tmp_path), "--jsonl", str(tmp_path / "out.jsonl"), "--quiet"],
        cwd=REPOSITORY, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    try:
        wait_for(lambda: len(outputs(tmp_path, "*.tmp") + outputs(tmp_path, "out.jsonl")) == 2,
                 "verdicts and a video growing")  # fmt: skip
        os.close(master)
        assert process.wait(PATIENCE_S) in (0, 3)
    finally:
        process.kill()
        process.wait()
    (video,) = tmp_path.glob("*.mp4")
    assert sorted(tmp_path.iterdir()) == sorted([video, tmp_path / "out.jsonl"])
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) > 25


def test_one_while_an_output_gets_its_name_leaves_it_whole(tmp_path: Path) -> None:
    program = """
        import sys, time
        from pathlib import Path
        from runtime import interrupt
        interrupt.install()
        from runtime.files import PendingFile

        def slow(part, target, replace=Path.replace):
            print("ready", flush=True)
            while not interrupt.requested():
                time.sleep(0.01)
            return replace(part, target)

        def main():
            file = PendingFile(Path(sys.argv[1]))
            file.path.write_text("whole")
            Path.replace = slow
            file.commit()
            interrupt.check()

        interrupt.leave(main)
    """
    process = python(program, tmp_path / "out")
    ready(process)
    process.send_signal(signal.SIGTERM)
    assert end_of(process) == (130, "interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "whole"


@pytest.fixture
def scratch() -> Iterator[Path]:
    """For temporary files; its name is short, for Ray's sockets are in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.thorough
@pytest.mark.parametrize("twice", [False, True])
def test_a_scan_keeps_its_rows_and_takes_ray_along(
    twice: bool, real_pair: Path, tmp_path: Path, scratch: Path
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra scan)")
    psutil = pytest.importorskip("psutil", reason="psutil is not installed (extra dev)")
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(4):
        write_clip(clips / f"{number}.mp4", seconds=10)
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime.scan", str(clips), "--output", str(tmp_path / "o.parquet"),
         "--workers", "1", "--model", str(real_pair)],
        cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "TMPDIR": str(scratch)},
    )  # fmt: skip
    up = "msct-ray-*/session_*/sockets/raylet"
    wait_for(lambda: process.poll() is not None or list(scratch.glob(up)), "Ray")
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    if twice:
        process.send_signal(signal.SIGTERM)
    code, err = end_of(process)
    assert code == 130
    if not twice:
        kept = r"\d of 4 clips are kept in .*; the same command goes on from there\ninterrupted\n"
        assert re.fullmatch(kept, err)
    assert list(scratch.iterdir()) == []
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []
