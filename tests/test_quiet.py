# SPDX-License-Identifier: Apache-2.0
"""Nothing leaves the machine, and nothing is written but what was asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

from benchmarks.soak.rtsp import why_no_rtsp_server
from runtime.models import DEFAULT_PRESET, model_dir
from tests import watched
from tests.native import cmake
from tests.runtime.clips import write_clip

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("before", ["", "0"])
@pytest.mark.parametrize("package", ["runtime", "trainer", "export", "benchmarks"])
def test_whatever_is_imported_first_switches_the_reports_of_libraries_off(
    package: str, before: str
) -> None:
    """Also where the environment says otherwise; its children inherit it."""
    given = {"ORT_DISABLE_TELEMETRY": before, "RAY_USAGE_STATS_ENABLED": before and "1"}
    code = f"import os, {package}; print(*map(os.environ.get, {list(given)}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["1", "0"]


# What a command really does.  Its documented caches, below the home folder; the rest is output.
CACHES = (
    ".cache/msct/",  # the sample clip, TensorRT-RTX's kernels
    ".cache/gstreamer-1.0/",  # GStreamer's list of its plugins, where it is installed
    *(".cache/matplotlib/", ".config/matplotlib/"),  # its list of fonts; an empty folder
    ".ray/auth_token",
)
QUICK = {
    "runtime.doctor": ["--run"],
    "runtime.stream": ["--source", "CLIP", "--jsonl", "o.jsonl", "--report", "o.html",
                       "--save-video", "o.mp4", "--metrics", "127.0.0.1:0",
                       "--web", "127.0.0.1:0"],
    "runtime.demo": ["--source", "CLIP", "--output", "demo"],
    "runtime.calibrate": ["--source", "CLIP", "--output", "site.json"],
    "export.build_engine": ["--onnx", "MODEL", "--backend", "onnx", "--fp16", "--output", "e"],
    "benchmarks.roofline": ["--output", "roofline.json"],
    "benchmarks.compare": ["RESULT", "RESULT"],
}  # fmt: skip
LONG = {
    "runtime.scan": ["CLIPS", "--workers", "1", "--output", "o.parquet"],
    "benchmarks.stream": ["--source", "CLIP", "--loop-to", "3", "--size", "160x120",
                          "--output", "o.json"],
    "benchmarks.latency": ["--source", "CLIP", "--duration", "3", "--output", "latency"],
}  # fmt: skip
LONGER = {
    "trainer.fit": ["--data", "SET", "--preset", "msct-tiny", "--align-steps", "1", "--joint-steps",
                    "1", "--batch", "4", "--output", "run"],
    "trainer.forge": ["--genuine", "PEOPLE", "--output", "forged", "--workers", "1"],
    "trainer.prepare": ["--data", "PEOPLE", "--output", "prepared", "--workers", "1"],
    "trainer.evaluate": ["--data", "SET", "--both", "--output", "evaluation"],
    "trainer.probe": ["--data", "SET", "--output", "probe.json"],
    "trainer.ablate": ["--miniature", "--table", "2", "--arms", "ca+sa", "--seeds", "0", "--data",
                       "SET", "--output", "ablation"],
    "trainer.distil": ["--clips", "FILMS", "--teacher-env", "TEACHER", "--hold-out", "two",
                       "--steps", "2", "--batch", "16", "--output", "distilled"],
    "benchmarks.peers": ["--source", "FACE", "--duration", "2", "--no-compile", "--output",
                         "peers.json"],
    "benchmarks.site": ["--clips", "FACES", "--clips-each", "1"],  # reads, and finds it too little
    "benchmarks.speakers": ["--clips", "FACES", "--output", "speakers.json"],
    "benchmarks.latency.page": ["RESULT", "--output", "page"],
    "benchmarks.ops.native_build": ["--architectures", "87", "--folder", "build", "--output",
                                    "native.json"],
    "benchmarks.drift": ["--source", "CLIP", "--output", "drift.json"],
    "benchmarks.ops": ["--quick", "--device", "cpu", "--output", "ops.json"],
    "benchmarks.fuzz": ["--clips", "CLIPS", "--count", "3", "--output", "fuzz.json"],
    "benchmarks.fuzz.readers": ["--seconds", "1", "--output", "readers.json"],
    "benchmarks.soak": ["--source", "CLIP", "--minutes", "0.1", "--output", "soak.json"],
}  # fmt: skip
NEEDS = {
    "runtime.scan": ["ray", "pyarrow"],
    "runtime.stream": ["prometheus_client", "fastapi", "uvicorn", "websockets"],
    "export.build_engine": ["onnx"],
    "trainer.forge": ["torch", "scipy", "hibari"],
    "benchmarks.ops": ["torch"],
    "benchmarks.fuzz.readers": ["atheris"],
    "benchmarks.peers": ["torch", "onnx", "onnxscript"],
    "benchmarks.roofline": ["onnx"],
    "benchmarks.latency.page": ["matplotlib", "jinja2"],
}
RESULT = ROOT / "benchmarks" / "results" / "latency-2core.json"


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """What stands for a word in capitals; made once, when it is asked for."""
    root = tmp_path_factory.mktemp("given")

    def clips() -> Path:
        """Two without a face: what most commands do with one is not asked here."""
        (root / "clips").mkdir()
        for name in ("a.mp4", "b.mp4"):
            write_clip(root / "clips" / name, seconds=3)
        return root / "clips"

    def faces() -> Path:
        from tests.trainer.fakeavceleb import write_talking

        for person in range(3):
            write_talking(root / "faces" / f"{person}.mp4", person, person, seconds=3)
        return root / "faces"

    def people() -> Path:
        """The same, a folder a person."""
        for clip in sorted(Path(of("FACES")).iterdir()):
            folder = root / "people" / clip.stem
            folder.mkdir(parents=True)
            (folder / "clip.mp4").symlink_to(clip)
        return root / "people"

    def prepared() -> Path:
        from tests.trainer.prepared import write_noise_set

        splits = {"a": "train", "b": "train", "c": "val", "d": "test"}
        return write_noise_set(root / "set", splits=splits, clips=2, silence_tokens=3)

    def films() -> Path:
        from tests.trainer.face_double import write_film

        for number, name in enumerate(("one/ann/a", "one/bob/b", "two/cat/c", "two/dan/d")):
            openings = [0.15 + 0.02 * ((i + number) % 5) for i in range(20)]
            write_film(root / "films" / f"{name}.mp4", openings, width=50.0 + 4 * number)
        return root / "films"

    def teacher() -> Path:
        """Found, and so not fetched: the teacher's environment is the one thing that pip brings."""
        from tests.trainer.face_double import environment

        environment(root / "teacher")
        return root / "teacher"

    makers: dict[str, Callable[[], Path]] = {
        "CLIPS": clips,
        "CLIP": lambda: Path(of("CLIPS"), "a.mp4"),
        "FACES": faces,
        "FACE": lambda: Path(of("FACES"), "0.mp4"),
        "PEOPLE": people,
        "SET": prepared,
        "FILMS": films,
        "TEACHER": teacher,
        "MODEL": lambda: model_dir(DEFAULT_PRESET),
        "RESULT": lambda: RESULT,
    }

    @cache
    def of(word: str) -> str:
        return str(makers[word]()) if word in makers else word

    return of


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Short: Ray's sockets lie below it, and their names may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="w-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def leave_no_trace(
    module: str,
    arguments: Sequence[str],
    given: Callable[[str], str],
    folder: Path,
    temporary: Path,
) -> None:
    """Run it in a home of its own, where it calls nobody and leaves its outputs alone."""
    for name in NEEDS.get(module, ["torch", "scipy"] if module.startswith("trainer.") else ()):
        pytest.importorskip(name, reason=f"{module} needs {name}")
    home, out = folder / "home", folder / "out"
    home.mkdir()
    out.mkdir()
    command = [sys.executable, "-m", module, *map(given, arguments)]
    kept = ("PATH", "LANG", "LD_LIBRARY_PATH")  # nothing that switches reports off, CI neither
    environment = {k: os.environ[k] for k in kept if k in os.environ} | {
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "0",  # at worst
    }
    seen = watched.run(
        command, cwd=out, environment=environment, log=folder / "strace", timeout_s=540
    )
    assert "Traceback" not in seen.said, seen.said
    assert seen.code in (0, 1, 3), seen.said
    # else it did nothing that could be watched; calibrate reads all, and finds it too little
    if "--output" in arguments and module != "runtime.calibrate":
        assert (out / arguments[arguments.index("--output") + 1]).exists(), seen.said
    left = [str(p.relative_to(home)) for p in home.rglob("*") if p.is_file()]
    assert [name for name in left if not name.startswith(CACHES)] == []
    assert seen.calls == []
    own = (out, temporary, Path("/dev"), Path("/proc"))
    outside = {
        path
        for path in seen.written
        if not any(path.is_relative_to(place) for place in own)
        # what isolated Python (-I) compiles, deaf to the environment
        and "__pycache__" not in path.parts
        and not f"{path}/".startswith(tuple(f"{home}/{c.split('/')[0]}/" for c in CACHES))
    }
    assert outside == set()


@pytest.mark.thorough
@pytest.mark.timeout(300)
@pytest.mark.parametrize("module", QUICK)
def test_a_command_calls_nobody_and_leaves_nothing_else(
    module: str, given: Callable[[str], str], tmp_path: Path, temporary: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="needs ONNX Runtime (.[cpu])")
    leave_no_trace(module, QUICK[module], given, tmp_path, temporary)


@pytest.mark.thorough
@pytest.mark.timeout(300)
@pytest.mark.parametrize("module", LONG)
def test_a_longer_command_calls_nobody_and_leaves_nothing_else(
    module: str, given: Callable[[str], str], tmp_path: Path, temporary: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="needs ONNX Runtime (.[cpu])")
    leave_no_trace(module, LONG[module], given, tmp_path, temporary)


@pytest.mark.thorough
@pytest.mark.timeout(600)
@pytest.mark.parametrize("module", LONGER)
def test_the_longest_commands_call_nobody_and_leave_nothing_else(
    module: str, given: Callable[[str], str], tmp_path: Path, temporary: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="needs ONNX Runtime (.[cpu])")
    why = {"benchmarks.ops.native_build": cmake.why_not, "benchmarks.soak": why_no_rtsp_server}
    if module in why and (reason := why[module]()):
        pytest.skip(reason)
    leave_no_trace(module, LONGER[module], given, tmp_path, temporary)


@pytest.mark.skipif(watched.strace() is None, reason="strace is not installed, or may not trace")
def test_the_watch_sees_calls_look_ups_and_files(tmp_path: Path) -> None:
    """Addresses of RFC 5737, where nobody is."""
    program = """
import pathlib, socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    for where in (("192.0.2.1", 9), ("127.0.0.1", 9), ("192.0.2.2", 53)):
        s.connect(where)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    try:
        s.sendto(b"x", ("192.0.2.3", 9))
    except OSError:
        pass
pathlib.Path("made").write_text("x")
pathlib.Path("made").rename("renamed")
pathlib.Path("folder").mkdir()
open("/dev/null")
"""
    command = [sys.executable, "-c", program]
    seen = watched.run(command, cwd=tmp_path, environment=os.environ, log=tmp_path / "log")
    assert seen.calls == [
        "connect 192.0.2.1 port 9",
        "connect 192.0.2.2: a name is looked up",
        "sendto 192.0.2.3 port 9",
    ]
    assert {tmp_path / name for name in ("made", "renamed", "folder")} <= seen.written
    assert Path("/dev/null") not in seen.written
