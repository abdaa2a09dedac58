# SPDX-License-Identifier: Apache-2.0
"""No output is an input or another output, whatever it is called: exit code 2, nothing written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from runtime import overwrites
from runtime.errors import EXIT_USAGE, UsageError
from runtime.overwrites import refuse_overwrites
from runtime.sinks.outputs import target_of
from runtime.stream.__main__ import main
from tests.runtime.clips import write_clip

ROOT = Path(__file__).resolve().parents[2]
LATENCY = ROOT / "benchmarks" / "results" / "latency-2core.json"
Spell = Callable[[Path], Path | str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("made") / "clip.mkv", seconds=0.2)


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with ``v.mkv`` in it."""
    shutil.copy(made, tmp_path / "v.mkv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def linked(path: Path) -> Path:
    link = path.with_name("link")
    link.symlink_to(path)
    return link


def hard_linked(path: Path) -> Path:
    link = path.with_name("hard")
    link.hardlink_to(path)
    return link


def through_a_folder(path: Path) -> Path:
    folder = path.with_name("folder")
    folder.symlink_to(path.parent, target_is_directory=True)
    return folder / path.name


SPELLED: dict[str, Spell] = {
    "itself": lambda path: path,
    "relative": lambda path: path.name,
    "dots": lambda path: f"{path.parent}/../{path.parent.name}/./{path.name}",
    "symbolic link": linked,
    "hard link": hard_linked,
    "linked folder": through_a_folder,
    "open file": lambda path: f"/proc/self/fd/{os.open(path, os.O_RDONLY)}",
}


# What is one file


@pytest.mark.parametrize("spelling", SPELLED)
def test_an_input_is_known_by_what_it_is(spelling: str, here: Path) -> None:
    spelled = SPELLED[spelling](here / "v.mkv")
    if not Path(spelled).exists():
        pytest.skip(f"no {spelled} on this system")
    with pytest.raises(UsageError, match=r"^--out .* would overwrite v.mkv, which is read"):
        refuse_overwrites([("--out", spelled)], [None, "rtsp://host/v.mkv", "v.mkv"])
    with pytest.raises(UsageError, match="would overwrite"):
        refuse_overwrites([("--out", "v.mkv")], [spelled])


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("spelling", [s for s in SPELLED if "link" not in s and "open" not in s])
def test_two_outputs_are_one_file(spelling: str, there: bool, here: Path) -> None:
    if there:
        (here / "x").write_text("older")
    with pytest.raises(UsageError, match=r"--one .* and --two .* are in each other's way"):
        refuse_overwrites([("--one", "x"), ("--two", SPELLED[spelling](here / "x"))], [])


def test_links_to_what_is_not_there_yet(here: Path) -> None:
    for target in (through_a_folder(here / "x"), linked(here / "x")):
        with pytest.raises(UsageError, match="each other's way"):
            refuse_overwrites([("--one", "x"), ("--two", target)], [])


@pytest.mark.parametrize("there", [False, True])
def test_an_output_below_a_file_that_is_another_output(there: bool, here: Path) -> None:
    if there:
        (here / "out").write_text("a file")
    targets = [("--report", "out/deep/x.html"), ("--jsonl", "out")]
    for given in (targets, targets[::-1]):
        with pytest.raises(UsageError, match="each other's way"):
            refuse_overwrites(given, [])


def test_what_is_apart_passes(here: Path) -> None:
    (here / "old.jsonl").write_text("of the last run")
    targets = [("--jsonl", "old.jsonl"), ("--report", "out/v.html"), ("--save-video", "out/v.mp4")]
    refuse_overwrites([*targets, None], ["v.mkv", None, "camera", "none.mkv", ".", "\0"])


def test_devices_take_any_number_of_writers(here: Path) -> None:
    os.mkfifo(here / "pipe")
    for device in (os.devnull, "pipe"):
        refuse_overwrites([("--one", device), ("--two", device)], ["v.mkv", device])


def test_capitals_count_as_the_file_system_counts_them(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = [("--one", "new/Caf\N{LATIN SMALL LETTER E WITH ACUTE}"), ("--two", "NEW/cafe\u0301")]
    monkeypatch.setattr(overwrites, "_takes_capitals_for_one", lambda folder: False)
    refuse_overwrites(targets, [])
    monkeypatch.setattr(overwrites, "_takes_capitals_for_one", lambda folder: True)
    with pytest.raises(UsageError, match="each other's way"):
        refuse_overwrites(targets, [])


def test_a_file_system_is_asked_whether_capitals_count(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = (here / "V.MKV").exists()
    assert overwrites._takes_capitals_for_one(here) is apart
    plain = overwrites._file
    monkeypatch.setattr(overwrites, "_file", lambda p: plain(str(p).replace("V.MKV", "v.mkv")))
    assert overwrites._takes_capitals_for_one(here)


def test_outputs_in_a_folder_get_names_that_differ_in_more_than_capitals(tmp_path: Path) -> None:
    taken: set[Path] = set()
    names = [target_of(tmp_path, ".mp4", s, taken).name for s in ("Talk.mkv", "talk.mpg", "TALK.x")]
    assert names == ["Talk.mp4", "talk-2.mp4", "TALK-3.mp4"]


def test_standard_output_twice_and_where_it_is_a_file(here: Path) -> None:
    with pytest.raises(UsageError, match="each other's way"):
        refuse_overwrites([("--one", "-"), ("--two", "-")], [])
    program = (
        "from runtime.overwrites import refuse_overwrites as refuse; "
        "refuse([('--jsonl', '-')], ['v.mkv'])"
    )
    with (here / "v.mkv").open("ab") as out:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=out, stderr=subprocess.PIPE, text=True,
            check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
    assert "--jsonl - would overwrite v.mkv" in done.stderr


# The commands


def refused(module: str, here: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of the refusal; every file is as it was, and none is new."""
    before = contents(here)
    command = import_module(module)
    if hasattr(command, "__path__"):  # a folder of its own
        command = import_module(f"{module}.__main__")
    assert command.main(list(arguments)) == EXIT_USAGE
    assert contents(here) == before
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    return said[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--source", "v.mkv", "--jsonl", "v.mkv"],
        ["--source", "v.mkv", "--jsonl", "./v.mkv"],
        ["--source", "v.mkv", "--jsonl", "hard"],
        ["--source", "v.mkv", "--save-video", "v.mkv"],
        ["--source", "list.streams", "--jsonl", "list.streams"],
        ["--source", "v.mkv", "--site", "site.json", "--jsonl", "site.json"],
        ["--source", "v.mkv", "--model", "model", "--jsonl", "model/fusion.onnx"],
        ["--source", "v.mkv", "--source", "b/a.mp4", "--source", "a.mkv", "--save-video", "b"],
    ],
)
def test_a_stream_overwrites_nothing_that_it_reads(
    arguments: list[str], here: Path, real_pair: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.fuzz.targets import example_site
    from runtime.backends.onnx import read_pair

    spec, _ = read_pair(real_pair)
    example_site(spec.model_id, spec.pair_id).write(here / "site.json")
    hard_linked(here / "v.mkv")
    (here / "b").mkdir()
    for name in ("a.mkv", "b/a.mp4"):
        shutil.copy("v.mkv", name)
    (here / "list.streams").write_text("v.mkv\n")
    shutil.copytree(real_pair, "model")
    assert "would overwrite" in refused("runtime.stream", here, capsys, *arguments)


@pytest.mark.parametrize(
    "outputs",
    [
        ["--jsonl", "x.html", "--report", "x.html"],
        ["--jsonl", "out/v.mp4", "--save-video", "out"],
        ["--jsonl", "out", "--report", "out/v.html"],
    ],
)
def test_a_stream_writes_each_output_to_a_file_of_its_own(
    outputs: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused("runtime.stream", here, capsys, "--source", "v.mkv", *outputs)
    assert "each other's way" in said


def test_a_stream_refuses_before_it_serves_or_loads_anything(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr("runtime.stream.__main__.load_model", fail)
    monkeypatch.setattr("runtime.sinks.outputs.MetricsSink", fail)
    monkeypatch.setattr("runtime.sinks.outputs.WebhookSink", fail)
    outputs = ["--jsonl", "v.mkv", "--metrics", "--webhook", "http://a"]
    assert main(["--source", "v.mkv", *outputs]) == EXIT_USAGE


def test_calibrate(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused("runtime.calibrate", here, capsys, "--source", ".", "--output", "v.mkv")
    assert "--output v.mkv would overwrite v.mkv" in said


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.parquet.parts/rows.jsonl"])
def test_scan(name: str, here: Path, real_pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).symlink_to(here / "v.mkv")
    arguments = [".", "--output", "t.parquet", "--model", str(real_pair)]
    assert f"{name} would overwrite" in refused("runtime.scan", here, capsys, *arguments)


def test_demo(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "demo").mkdir()
    Path("v.mkv").rename("demo/original.jsonl")
    arguments = ["--source", "demo/original.jsonl"]
    assert "would overwrite" in refused("runtime.demo", here, capsys, *arguments)


def test_forge(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("scipy", reason="needs the train extra")
    for person in "abc":
        (here / "people" / person).mkdir(parents=True)
        shutil.copy("v.mkv", f"people/{person}/v.mkv")
    for output in ("people", "people/forged"):
        arguments = ["--genuine", "people", "--output", output]
        assert "taken for genuine" in refused("trainer.forge", here, capsys, *arguments)
    (here / "out").mkdir()
    (here / "out" / "forge.json").symlink_to(here / "people" / "a" / "v.mkv")
    arguments = ["--genuine", "people", "--output", "out"]
    assert "would overwrite" in refused("trainer.forge", here, capsys, *arguments)


def test_prepare(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("scipy", reason="needs the train extra")
    (here / "in").mkdir()
    Path("v.mkv").rename("in/v.mkv")
    (here / "out").mkdir()
    (here / "out" / "index.json").hardlink_to("in/v.mkv")
    arguments = ["--data", "in", "--output", "out"]
    assert "would overwrite" in refused("trainer.prepare", here, capsys, *arguments)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("trainer.evaluate", ["--clips", ".", "--output", "v.mkv"]),
        ("trainer.evaluate", ["--clips", ".", "--output", "forge.json"]),
        ("trainer.evaluate", ["--data", ".", "--checkpoint", "metrics.json", "--output", "."]),
        ("trainer.probe", ["--data", ".", "--output", "index.json"]),
        ("trainer.probe", ["--data", ".", "--output", "arrays/v.npz"]),
        ("trainer.fit", ["--data", ".", "--init", "best.safetensors", "--output", "."]),
        ("trainer.ablate", ["--table", "1", "--data", ".", "--output", "link"]),
        ("benchmarks.stream", ["--source", "v.mkv", "--output", "v.mkv"]),
        ("benchmarks.latency", ["--source", "latency.json", "--output", "."]),
        ("benchmarks.latency", ["--source", "v.mkv", "--export-times", "v.mkv"]),
        ("benchmarks.peers", ["--source", "v.mkv", "--output", "v.mkv"]),
        ("benchmarks.drift", ["--source", "v.mkv", "--output", "v.mkv"]),
        ("benchmarks.fuzz", ["--clips", "v.mkv", "--output", "v.mkv"]),
        ("benchmarks.fuzz", ["--clips", "mutant-0-000001.mkv", "--keep", "."]),
        ("benchmarks.site", ["--clips", ".", "--clips-each", "1", "--output", "v.mkv"]),
        ("benchmarks.soak", ["--source", "v.mkv", "--picture", "v.mkv"]),
        ("benchmarks.faces", ["--photos", "photos", "--model", "v.mkv", "--output", "v.mkv"]),
        ("benchmarks.drift", ["--source", "l.streams", "--output", "l.streams"]),
        ("benchmarks.fuzz", ["--clips", "l.streams", "--count", "1", "--output", "l.streams"]),
        ("benchmarks.site", ["--clips", "l.streams", "--output", "l.streams"]),
        ("trainer.fit", ["--data", ".", "--encoder", "best.safetensors", "--output", "."]),
        ("benchmarks.roofline", ["--model", ".", "--output", "metrics.json"]),
        ("benchmarks.latency.page", ["drawn.html"]),
        ("export.face_detector", ["--wheel", "v.mkv", "--output", "v.mkv"]),
        ("export.respec", ["link", "--output", "."]),
        ("trainer.distil", ["--clips", "link", "--output", "."]),
        ("benchmarks.speakers", ["--clips", ".", "--output", "v.mkv"]),
    ],
)
def test_the_trainer_and_the_benchmarks(
    module: str, arguments: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if module.startswith("trainer"):
        pytest.importorskip("torch", reason="needs the train extra")
        pytest.importorskip("scipy", reason="needs the train extra")
    (here / "arrays").mkdir()
    shutil.copy("v.mkv", "mutant-0-000001.mkv")
    for name in ("metrics.json", "best.safetensors", "latency.json", "arrays/v.npz"):
        shutil.copy("v.mkv", name)
    (here / "forge.json").write_text(json.dumps({"clips": []}))
    (here / "index.json").write_text(json.dumps({"clips": []}))
    (here / "link").mkdir()
    (here / "link" / "table1.json").symlink_to(here / "index.json")
    (here / "link" / "clip.mkv").symlink_to(here / "report.json")
    shutil.copy("v.mkv", "report.json")
    (here / "fusion.onnx").touch()
    Path("photos").mkdir()
    shutil.copy("v.mkv", "photos/a.jpg")
    Path("l.streams").write_text("v.mkv\nlatency.json\n")
    (here / "link" / "fusion.onnx").hardlink_to("fusion.onnx")
    shutil.copy(LATENCY, "drawn.html")
    assert "would overwrite" in refused(module, here, capsys, *arguments)


def test_two_outputs_of_a_benchmark(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("both.json").touch()
    Path("both.svg").symlink_to("both.json")
    said = refused("benchmarks.roofline", here, capsys, "--output", "both.json", "--picture",
                   "both.svg")  # fmt: skip
    assert "each other's way" in said


def test_a_build_empties_nothing_but_a_build(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name)
    said = refused("benchmarks.ops.native_build", here, capsys, "--folder", ".")
    assert "would be emptied" in said
    said = refused("benchmarks.ops.native_build", here, capsys, "--folder", "b", "--output",
                   "b/cuda_build.json")  # fmt: skip
    assert "each other's way" in said


# A command that has no file to read and one to write, or none.
NOTHING_TO_OVERWRITE = {
    "benchmarks/ops/__main__.py": "--output alone",
    "benchmarks/fuzz/readers.py": "--output, and a folder of findings named by their content",
    "trainer/data/folds.py": "--write is one file of its own",
}


def test_every_command_that_writes_a_file_asks() -> None:
    """Those that name a file to write, found by their options."""
    option = re.compile(r"\"--(output|picture|jsonl|report|save-\w+|export-\w+|write|keep)\"")
    asks = re.compile(r"refuse_overwrites\(|Outputs\(|open_outputs\(")

    silent = {
        str(path.relative_to(ROOT))
        for package in ("runtime", "trainer", "export", "benchmarks")
        for path in sorted((ROOT / package).rglob("*.py"))
        if option.search(text := path.read_text(encoding="utf-8"))
        and "leave(main)" in text
        and not asks.search(text)
    }
    assert silent == NOTHING_TO_OVERWRITE.keys()


# Where what is read is not what the command line names, but listed one by one.
LISTED = {
    "benchmarks/latency/page.py": "its one JSON",
    "benchmarks/ops/native_build.py": "reads nothing that it is given",
    "export/build_engine.py": "a clip or a cache may be read and written",
    "export/respec.py": "the files of a folder",
    "runtime/demo/__main__.py": "the clip and the model",
    "trainer/forge.py": "the clips of a folder",
    "trainer/prepare.py": "the clips of a folder",
}


def test_every_command_compares_with_all_that_it_was_given() -> None:
    listed = {
        str(path.relative_to(ROOT))
        for package in ("runtime", "trainer", "export", "benchmarks")
        for path in sorted((ROOT / package).rglob("*.py"))
        if "leave(main)" in (text := path.read_text(encoding="utf-8"))
        and "refuse_overwrites(" in text
        and not re.search(r"options=vars\(|other_inputs\(", text)
    }
    assert listed == LISTED.keys()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--output", "pair"],
        ["--output", "linked"],
        ["--output", "file-by-file"],
        ["--output", "out", "--report", "pair/fusion.onnx"],
        ["--output", "out", "--report", "out/manifest.json"],
    ],
)
def test_an_export_over_the_pair_that_it_starts_from(
    arguments: list[str], here: Path, real_pair: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("onnx", "torch", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is needed to export")
    shutil.copytree(real_pair, "pair")
    Path("linked").symlink_to(here / "pair", target_is_directory=True)
    Path("file-by-file").mkdir()
    for file in Path("pair").iterdir():
        (Path("file-by-file") / file.name).hardlink_to(file)
    said = refused(
        "export.build_engine", here, capsys, "--onnx", "pair", "--backend", "onnx", *arguments
    )
    assert "would overwrite" in said or "each other's way" in said
