# SPDX-License-Identifier: Apache-2.0
"""The soak: what it counts, and half a minute of it against a server that is restarted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.soak import __main__ as soak
from benchmarks.soak.__main__ import Sample, drops_by_cause, read_verdicts, sample, summarise
from benchmarks.soak.rtsp import why_no_rtsp_server
from runtime.demo.sample import sample_clip
from runtime.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="memory is read from /proc"
)


def samples(mb_per_h: float, seconds: int = 3600) -> list[Sample]:
    return [Sample(float(t), 200 + mb_per_h * t / 3600, 8, 9) for t in range(0, seconds, 5)]


def test_this_process() -> None:
    one = sample(os.getpid(), 1.0)
    assert one.memory_mb > 10
    assert one.threads >= 1
    assert one.files >= 3


def test_a_leak_a_drop_or_a_late_verdict_fails() -> None:
    ends, fine = np.arange(0, 3600, 0.2), np.full(18_000, 50.0)
    late = np.where(np.arange(18_000) % 50 == 0, 400.0, 50.0)
    assert summarise(samples(0.5), ends, fine, {}, 600)["holds"]
    leak = summarise(samples(2.0), ends, fine, {}, 600)
    assert leak["memory_mb"]["slope_per_h"] == pytest.approx(2.0)
    assert not leak["holds"]
    assert not summarise(samples(0.5), ends, fine, {"behind": 1}, 600)["holds"]
    assert not summarise(samples(0.5), ends, late, {}, 600)["holds"]


def test_the_warm_up_is_left_out() -> None:
    ends = np.arange(0, 3600, 0.2)
    latency = np.where(ends < 600, 900.0, 40.0 + ends / 60)  # grows by 1 ms a minute
    rising = [s._replace(memory_mb=100 if s.t_s < 600 else 300) for s in samples(0)]
    result = summarise(rising, ends, latency, {}, 600)
    assert result["memory_mb"]["slope_per_h"] == pytest.approx(0, abs=1e-6)
    assert result["latency_ms"]["max"] < 101
    assert result["latency_ms"]["slope_per_min"] == pytest.approx(1.0)


def test_nothing_to_say_is_not_a_pass() -> None:
    result = summarise([], np.zeros(0), np.zeros(0), {}, 600)
    assert not result["holds"]
    assert result["latency_ms"]["p99"] is None


def test_drops_from_the_metrics() -> None:
    text = (
        "# TYPE msct_drops_total counter\n"
        'msct_drops_total{cause="late",source="rtsp://a/b?c={d}"} 0.0\n'
        'msct_drops_total{cause="behind",source="rtsp://a/b"} 3.0\n'
        'msct_drops_created{cause="behind",source="rtsp://a/b"} 1.7e9\n'
    )
    assert drops_by_cause(text) == {"behind": 3}


def test_verdicts_by_label_or_reason(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    rows = [(2.0, 40.0, "real", None), (2.2, 50.0, "abstain", "no_face"), (2.4, 60.0, "real", None)]
    path.write_text(
        "".join(
            json.dumps({"t_end_s": t, "latency_ms": ms, "label": label, "reason": reason}) + "\n"
            for t, ms, label, reason in rows
        )
    )
    ends, latencies, labels = read_verdicts(path)
    assert ends.tolist() == [2.0, 2.2, 2.4]
    assert latencies.tolist() == [40, 50, 60]
    assert labels == {"real": 2, "no_face": 1}


def test_somebody_elses_camera_is_not_restarted(capsys: pytest.CaptureFixture[str]) -> None:
    code = soak.main(["--source", "rtsp://127.0.0.1:9/a", "--restart-at", "1", "--minutes", "2"])
    assert code == EXIT_USAGE
    assert "--restart-at" in capsys.readouterr().err


@pytest.mark.thorough
@pytest.mark.timeout(180)
def test_half_a_minute_with_a_restart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if reason := why_no_rtsp_server():
        pytest.skip(reason)
    pytest.importorskip("prometheus_client", reason="extra metrics is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    out, picture = tmp_path / "soak.json", tmp_path / "soak.png"
    code = soak.main(
        ["--source", str(sample_clip()), "--minutes", "0.5", "--restart-at", "0.1",
         "--output", str(out), "--picture", str(picture)]
    )  # fmt: skip
    assert code == EXIT_OK, capsys.readouterr().err
    result = json.loads(out.read_text())
    assert result["verdicts"] > 0  # how many says nothing beside other tests on two cores
    assert result["samples"][-1][1] > 50
    assert 0 < result["restart"]["recovery_s"] < 24  # it came back, before the end
    assert "server restarted" in capsys.readouterr().out
    assert picture.stat().st_size > 10_000


@pytest.mark.timeout(120)
def test_terminated_it_leaves_no_stream_behind(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil", reason="psutil is not installed (extra dev)")
    pytest.importorskip("prometheus_client", reason="extra metrics is not installed")
    if reason := why_no_rtsp_server():
        pytest.skip(reason)
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.soak", "--as-is", "--source", str(sample_clip())],
        cwd=Path(__file__).resolve().parents[2], stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        family: list[Any] = []
        deadline = time.monotonic() + 60
        while len(family) < 2 and time.monotonic() < deadline:  # the server and the stream
            time.sleep(0.1)
            family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) == 2
        process.terminate()
        assert process.wait(30) == EXIT_INTERRUPTED
        _, alive = psutil.wait_procs(family, timeout=30)
        assert alive == []
    finally:
        process.kill()
        process.wait()
