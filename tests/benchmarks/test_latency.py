# SPDX-License-Identifier: Apache-2.0
"""The latency benchmark: what is timed, what is written, what a person gets to see of it."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import runtime.flow.pictures
from benchmarks.environment import describe
from benchmarks.latency import __main__ as latency
from benchmarks.latency import capture as capture_latency
from benchmarks.latency import engine as engine_latency
from benchmarks.latency import page, table
from benchmarks.latency.capture import STAGES, NoVerdictError, WindowLog
from benchmarks.latency.power import Reading
from benchmarks.latency.schema import SCHEMA_FILE, SchemaError, check
from runtime.backends.base import Phases
from runtime.flow.summary import WindowTimes
from tests.runtime.clips import write_clip
from tests.runtime.doubles import MockBackend, MockTracker

REPOSITORY = Path(__file__).resolve().parents[2]
pytest.importorskip("jsonschema", reason="jsonschema is not installed (extra dev)")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mkv", seconds=1.0)


class MockMeter:
    """A mock of a power reader: 5 W while nothing is done, 12 W afterwards."""

    source = "nvml"

    def __init__(self) -> None:
        self._starts = 0

    def start(self) -> None:
        self._starts += 1
        self._start_s = time.monotonic()

    def stop(self) -> Reading:
        seconds, watts = time.monotonic() - self._start_s, 5.0 if self._starts == 1 else 12.0
        return Reading("nvml", "the GPU's board", seconds, 9, watts, watts, watts * seconds,
                       {"gpu": 61.0}, {"power cap": 0.25},
                       {"at_start": 500.0, "highest": 700.0})  # fmt: skip


@pytest.fixture(scope="module")
def result(clip: Path) -> dict[str, Any]:
    """A whole result, measured on mocks: no face, no network, no device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime.flow.pictures, "FaceTracker", lambda spec: MockTracker())
        patch.setattr(latency, "IDLE_S", 0.05)
        engine, _ = engine_latency.measure(
            MockBackend(), batches=[1, 3], warmup_ms=1, duration_s=0.2, iterations=5,
            percentiles=[50, 90, 99],
        )  # fmt: skip
        meters = latency.Meters([MockMeter()], {"rapl": "none here"})
        meters.start()
        capture, _ = capture_latency.measure(
            MockBackend(), clip, duration_s=3.0, percentiles=[50, 90, 99], load_s=0.1,
            spawned_s=time.time() - 1,
        )  # fmt: skip
        power, heat = meters.stop(capture["media_s"])
    return {
        "benchmark": "latency",
        "schema_version": 1,
        **describe(),
        "device": {
            "gpus": [{"name": "Mock GPU", "driver": "1.0"}], "jetson": None, "power_mode": None,
            "cpu_governor": "performance", "memory_mb": 1000.0,
        },
        "load_average_before": 0.5,
        "settings": {
            "source": "clip.mkv", "source_sha256": "0" * 64, "size": "160x120", "fps": 25,
            "duration_s": 3.0, "warmup_ms": 1.0, "iterations": 5, "batches": [1, 3],
            "percentiles": [50.0, 90.0, 99.0], "threads": None,
        },
        "model": {
            "model_id": "<mock>", "pair_id": "mock", "trained": True, "precision": "fp32",
            "provider": "mock", "files": {"fusion.onnx": "1" * 64},
        },
        "engine": engine,
        "capture": capture,
        "power": power,
        "heat": heat,
    }  # fmt: skip


# The engine


def test_the_graphs_are_timed_at_a_hop_and_a_window_and_at_several_of_them() -> None:
    backend = MockBackend()
    found = engine_latency.cases(backend, [1, 4])
    assert [case.name for case in found] == [
        "frame_encoder N=5", "frame_encoder N=20", "fusion B=1 T=50", "fusion B=4 T=50",
    ]  # fmt: skip
    for case in found:
        case.call()
    assert backend.encoded == [5, 20]
    assert [visual.shape[0] for visual, _ in backend.fused] == [1, 4]


def test_calls_of_the_warm_up_do_not_count_and_all_others_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_ms, calls = 0, 0

    def call() -> None:  # the first three are slow
        nonlocal now_ms, calls
        calls += 1
        now_ms += 30 if calls <= 3 else 2

    monkeypatch.setattr(engine_latency.time, "perf_counter", lambda: now_ms / 1000)
    times_ms = engine_latency.time_calls(call, warmup_ms=80, duration_s=0.05, iterations=1)
    assert calls == 3 + 25
    assert times_ms == pytest.approx([2.0] * 25)


@pytest.mark.parametrize("warmup_ms", [0.0, 1.0])
def test_a_slow_graph_is_called_as_often_as_asked_whatever_the_duration(warmup_ms: float) -> None:
    times_ms = engine_latency.time_calls(
        lambda: time.sleep(0.002), warmup_ms=warmup_ms, duration_s=0.001, iterations=7
    )
    assert len(times_ms) == 7


def test_what_a_backend_cannot_tell_apart_is_null_with_the_reason() -> None:
    backend = MockBackend()
    backend.provider = "CPUExecutionProvider"
    assert "on the CPU" in str(engine_latency.why_no_transfers(backend))
    backend.provider = "CUDAExecutionProvider"
    assert "CUDAExecutionProvider makes" in str(engine_latency.why_no_transfers(backend))


def test_upload_compute_and_download_are_told_apart_where_the_backend_can(
    result: dict[str, Any],
) -> None:
    class MockDevice(MockBackend):
        """A mock of a backend on a GPU."""

        def encode_phases(self, frames: Any) -> Phases:
            return Phases(0.01 * len(frames), 0.5, 0.002)

        def fuse_phases(self, visual: Any, audio: Any) -> Phases:
            return Phases(0.03, 0.4 * len(visual), 0.004)

    engine, _ = engine_latency.measure(
        MockDevice(), batches=[1, 2], warmup_ms=0, duration_s=0.01, iterations=1, percentiles=[50]
    )
    assert engine["transfers_reason"] is None
    medians = [
        [part["percentiles"]["p50"]["ms"] for part in case["transfers"].values()]
        for case in engine["cases"]
    ]
    expected = [[0.05, 0.5, 0.002], [0.1, 0.5, 0.002], [0.03, 0.4, 0.004], [0.03, 0.8, 0.004]]
    np.testing.assert_allclose(medians, expected)
    phased = {**result, "engine": engine}
    assert check(phased) == ""
    told = table.transfers(phased)
    assert "fusion B=2 T=50: upload 0.030, compute 0.800, download 0.004" in told


# Capture to verdict


def test_the_stages_of_a_window_add_up_to_its_latency() -> None:
    log = WindowLog(out=None)
    log.judged(WindowTimes(2.0, 100.0, 0.030, 0.021, 0.020, dict.fromkeys(
        ("decode", "face", "audio", "encode", "fuse", "decide"), 0.002)))  # fmt: skip
    log.published_s[2.0] = 100.004
    stages = log.stages_ms()
    assert stages["block"] == [pytest.approx(21)]
    assert stages["queue"] == [pytest.approx(9)]
    assert stages["faces"] == [pytest.approx(2)]
    assert stages["other"] == [pytest.approx(8)]  # 20 ms of work, 12 in stages
    assert stages["publish"] == [pytest.approx(4)]
    assert stages["total"] == [pytest.approx(54)]
    assert stages["total"][0] == pytest.approx(sum(stages[name][0] for name in STAGES))


def test_windows_that_nothing_completed_have_no_latency() -> None:
    log = WindowLog(out=None)
    log.judged(WindowTimes(2.0, 100.0, None, 0.0, 0.01, {}))
    log.published_s[2.0] = 100.1
    assert log.stages_ms()["total"] == []


def test_a_live_run_is_split_by_stage(result: dict[str, Any]) -> None:
    capture = result["capture"]
    latencies = capture["beyond_evidence"]
    assert capture["windows"] == latencies["samples"] >= 4
    means = sum(stage["mean_ms"] for stage in capture["stages"].values())
    assert means == pytest.approx(latencies["mean_ms"])
    assert list(capture["stages"]) == list(STAGES)
    assert capture["stages"]["fusion"]["mean_ms"] > 0
    assert capture["evidence_wait"] == {
        "window_s": 2.0, "hop_s": 0.2, "sound_look_ahead_ms": 15.0,
    }  # fmt: skip
    assert capture["first_verdict"]["from_capture_s"] > 2.0  # a window must be full first
    assert (
        capture["first_verdict"]["from_process_start_s"]
        > capture["first_verdict"]["from_capture_s"]
    )
    assert capture["lag_slope_ms_per_min"] is None  # three seconds say nothing of minutes


def test_a_run_too_short_for_a_verdict_says_how_long_a_window_is(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.flow.pictures, "FaceTracker", lambda spec: MockTracker())
    with pytest.raises(NoVerdictError, match="a window takes 2 s: give a longer --duration"):
        capture_latency.measure(
            MockBackend(), clip, duration_s=1.0, percentiles=[50], load_s=0, spawned_s=0
        )


def test_energy_is_per_second_of_stream_and_what_is_drawn_anyway_stands_beside_it(
    result: dict[str, Any],
) -> None:
    (reading,) = result["power"]["readings"]
    assert (reading["mean_w"], reading["idle_w"]) == (12.0, 5.0)
    media_s = result["capture"]["media_s"]
    assert reading["joules_per_stream_s"] == pytest.approx(12 * reading["seconds"] / media_s)
    assert result["power"]["missing"] == {"rapl": "none here"}


def test_a_meter_that_gives_nothing_is_named() -> None:
    class Mute(MockMeter):
        def stop(self) -> Any:
            return None

    meters = latency.Meters([Mute()], {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "IDLE_S", 0.0)
        meters.start()
        power, _ = meters.stop(1.0)
    assert power == {"readings": [], "missing": {"nvml": "it gave no usable sample"}}


# What is written


def test_a_result_fits_the_schema_and_survives_json(result: dict[str, Any]) -> None:
    assert check(json.loads(json.dumps(result, allow_nan=False))) == ""


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("capture", "beyond_evidence", "max_ms"), "fast"),
        (("capture", "beyond_evidence", "samples"), 0),
        (("model", "files"), {"fusion.onnx": "no hash"}),
        (("engine", "cases"), []),
        (("power", "surprise"), 1),
        (("schema_version",), 2),
    ],
)
def test_a_result_of_another_form_is_refused(
    result: dict[str, Any], where: Sequence[str], value: Any
) -> None:
    broken = copy.deepcopy(result)
    inner: Any = broken
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    with pytest.raises(SchemaError, match=re.escape(SCHEMA_FILE.name)):
        check(broken)


@pytest.mark.parametrize("part", ["machine", "device", "settings", "model", "capture", "heat"])
def test_a_result_with_a_part_missing_is_refused(result: dict[str, Any], part: str) -> None:
    broken = {name: value for name, value in result.items() if name != part}
    with pytest.raises(SchemaError, match=part):
        check(broken)


def test_the_schema_itself_is_a_schema() -> None:
    import jsonschema

    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)


def test_without_jsonschema_it_is_said_that_nobody_checked(
    result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    assert "jsonschema is not installed" in check(result)


def test_the_committed_result_fits_the_schema_and_names_its_machine() -> None:
    committed = REPOSITORY / "benchmarks" / "results" / "latency-2core.json"
    found = json.loads(committed.read_text(encoding="utf-8"))
    assert check(found) == ""
    assert found["machine"]["cores"] == 2
    assert found["machine"]["processor"]


# What people see


def test_the_table_says_how_many_windows_the_p99_rests_on(result: dict[str, Any]) -> None:
    told = table.table(result)
    above = result["capture"]["beyond_evidence"]["percentiles"]["p99"]["samples_above"]
    count = result["capture"]["windows"]
    assert f"{above} of {count} windows lie above it" in told
    assert "the 50 ms to reach" in told  # the mock is no CPU
    assert "12.0 W on average of the GPU's board, 5.0 W before it" in told
    assert "power cap 25% of the time" in told
    for stage in STAGES:
        assert re.search(rf"^{stage} ", told, re.MULTILINE)


def test_a_device_without_meters_is_said_to_have_none(result: dict[str, Any]) -> None:
    bare = copy.deepcopy(result)
    bare["power"] = {"readings": [], "missing": {"rapl": "only root may read it"}}
    bare["heat"] = {"before_c": {}, "after_c": {}, "cpu_throttle_events": None}
    told = table.table(bare)
    assert "power: not measured (rapl: only root may read it)" in told
    assert "no sensor can be read" in told
    assert check(bare) == ""


@pytest.mark.parametrize(("p99", "verb"), [(149.9, "within"), (150.1, "above")])
def test_a_processor_has_150_ms(result: dict[str, Any], p99: float, verb: str) -> None:
    other = copy.deepcopy(result)
    other["model"]["provider"] = "CPUExecutionProvider"
    other["capture"]["beyond_evidence"]["percentiles"]["p99"]["ms"] = p99
    assert f"{verb} the 150 ms to reach" in table.judgement(other)


@pytest.fixture(scope="module")
def drawn(result: dict[str, Any]) -> dict[str, str]:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra train)")
    from benchmarks.latency.pictures import draw

    return draw(result)


@pytest.mark.thorough
class TestThePage:
    """Made from the JSON alone, on a machine that has matplotlib and jinja2."""

    def test_every_distribution_is_a_whole_svg_with_a_name(
        self, result: dict[str, Any], drawn: dict[str, str]
    ) -> None:
        assert list(drawn)[:2] == ["waterfall", "capture"]
        assert len(drawn) == 2 + len(result["engine"]["cases"])
        for picture in drawn.values():
            root = ElementTree.fromstring(picture)
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert root.get("aria-label")
        assert all(stage in drawn["waterfall"] for stage in STAGES)

    def test_it_needs_nothing_else_and_escapes_what_it_is_told(
        self, result: dict[str, Any], drawn: dict[str, str]
    ) -> None:
        text = page.page(result, list(drawn.values()))
        assert "&lt;mock&gt;" in text
        assert "<mock>" not in text
        assert not re.search(r"\bsrc=|@import|<script", text)
        links = re.findall(r"(?:href=\"|url\()([^\")]*)", text)
        assert all(link.startswith("#") for link in links)  # within the picture alone
        assert "prefers-color-scheme:dark" in text
        assert 'name="viewport"' in text
        for row in table.latency_rows(result):
            assert all(cell.replace("&", "&amp;") in text for cell in row)

    def test_the_command_writes_it_beside_the_json(
        self, result: dict[str, Any], tmp_path: Path
    ) -> None:
        pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra train)")
        file = tmp_path / "orin.json"
        file.write_text(json.dumps(result), encoding="utf-8")
        assert page.main([str(file)]) == 0
        names = {path.name for path in tmp_path.iterdir()}
        assert {"orin.json", "orin.html", "orin-waterfall.svg", "orin-capture.svg"} <= names

    @pytest.mark.parametrize("text", ["", "{}", "[1]"])
    def test_what_is_no_result_is_one_line(
        self, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "r.json").write_text(text, encoding="utf-8")
        assert page.main([str(tmp_path / "r.json")]) in (1, 2)
        assert len(capsys.readouterr().err.splitlines()) == 1
        assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


# The command


@pytest.mark.parametrize(
    "arguments",
    [
        "--batch 0", "--batch 1,x", "--batch 33", "--percentile 100", "--percentile 0",
        "--percentile p99", "--warmup -1", "--warmup nan", "--duration 0", "--iterations 0",
        "--threads 0", "--provider tpu", "--size 3x3", "--backend tensorflow",
    ],
)  # fmt: skip
def test_a_wrong_option_is_usage(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        latency.main(arguments.split())
    assert end.value.code == 2
    assert arguments.split()[0] in capsys.readouterr().err.splitlines()[-1]


def test_the_flags_are_frozen() -> None:
    options = latency.parser().parse_args([])
    assert (options.warmup, options.duration, options.iterations) == (200.0, 10.0, 10)
    assert (options.percentile, options.batch, options.size) == (
        [50, 90, 95, 99],
        [1, 4],
        (640, 480),
    )
    assert options.output == Path("bench/latency")
    asked = latency.parser().parse_args(["--batch", "8,1,8", "--percentile", "99.9,50"])
    assert (asked.batch, asked.percentile) == ([1, 8], [50.0, 99.9])


def test_a_clip_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert latency.main(["--source", str(tmp_path / "none.mp4")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "none.mp4" in said[0]


@pytest.mark.thorough
def test_a_whole_run_where_neither_torch_nor_matplotlib_nor_jsonschema_is(
    clip: Path, real_pair: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import sys\nfor name in ('torch', 'matplotlib', 'jsonschema'):\n"
        "    sys.modules[name] = None\n"
    )
    command = [
        sys.executable, "-m", "benchmarks.latency", "--source", str(clip), "--model",
        str(real_pair), "--duration", "3", "--size", "160x120", "--batch", "1",
        "--export-times", str(tmp_path / "times.json"), "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{REPOSITORY}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "jsonschema is not installed" in done.stderr
    assert "capture to verdict p99" in done.stdout
    found = json.loads((tmp_path / "out" / "latency.json").read_text(encoding="utf-8"))
    assert check(found) == ""
    assert found["model"]["provider"] == "CPUExecutionProvider"
    assert {"frame_encoder.onnx", "fusion.onnx"} <= set(found["model"]["files"])
    times = json.loads((tmp_path / "times.json").read_text(encoding="utf-8"))
    for case in found["engine"]["cases"]:
        samples = times["engine"][case["name"]]
        assert (len(samples), max(samples)) == (
            case["latency"]["samples"], case["latency"]["max_ms"],
        )  # fmt: skip
    assert len(times["capture"]["total"]) == found["capture"]["windows"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["latency.json"]


@pytest.mark.thorough
def test_a_part_that_fails_has_said_why_and_nothing_is_written(
    clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = latency.main(
        ["--source", str(clip), "--model", str(tmp_path), "--duration", "1", "--size", "160x120",
         "--output", str(tmp_path / "out")]
    )  # fmt: skip
    assert code == 2
    assert "no model in" in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
