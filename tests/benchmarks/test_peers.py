# SPDX-License-Identifier: Apache-2.0
"""Four ways to one verdict: the same result, measured in turns, on a small form of the network."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the comparison needs torch (.[train])")
pytest.importorskip("onnx", reason="the comparison needs onnx (.[export])")
pytest.importorskip("onnxscript", reason="the comparison needs onnxscript (.[export])")
pytest.importorskip("onnxruntime", reason="needs ONNX Runtime (.[cpu])")

import export.parity  # noqa: E402
from benchmarks import peers  # noqa: E402
from export import graphs  # noqa: E402
from export.parity import Window, real_windows  # noqa: E402
from runtime.errors import UsageError  # noqa: E402
from runtime.spec import PairSpec  # noqa: E402
from tests.runtime.doubles import MockBackend  # noqa: E402
from trainer.config import preset  # noqa: E402
from trainer.model.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402


def windows_in_a_row(count: int, side: int) -> list[Window]:
    """Noise of 50 tokens each, every 5."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (50 + 5 * count, side, side, 3), dtype=np.uint8)
    audio = rng.standard_normal((len(frames), 104)).astype(np.float32)
    return [Window(frames[i : i + 50], audio[i : i + 50]) for i in range(0, 5 * count, 5)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of a small network with random weights, and the ONNX pair made of it."""
    config = preset(
        "msct-tiny", crop_px=32, channels=32, blocks=1, align_dim=8,
        backbone={"stem_channels": 8, "widths": [4, 4, 4, 4], "outputs": [8, 8, 16, 16],
                  "cbam_reduction": 4},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny")
    model, spec = graphs.untrained(config, seed=1)
    save_checkpoint(folder / "checkpoint.safetensors", model, config, spec)
    graphs.export_pair(model, spec, folder / "pair")
    return folder / "checkpoint.safetensors", folder / "pair"


@pytest.fixture
def _noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise stands in for the windows of a clip."""

    def windows(path: Path, spec: PairSpec, limit: int, step: int, follow: object) -> list[Window]:
        assert step == spec.stream.hop_tokens
        return windows_in_a_row(4, spec.face.crop_px)

    monkeypatch.setattr(export.parity, "real_windows", windows)


def test_each_round_takes_one_window_through_every_way_in_another_order() -> None:
    calls: list[tuple[str, int]] = []

    def way(name: str) -> peers.Way:
        def score(window: int) -> float:
            calls.append((name, window))
            return {"a": 0.5, "b": 0.5, "c": 0.75}[name]

        return score

    ways = {name: way(name) for name in "abc"}
    times_ms, differences = peers.in_turns(ways, 2, duration_s=0)
    rounds = peers.WARM_UP_ROUNDS + peers.MIN_ROUNDS
    assert len(calls) == 3 * rounds
    assert {len(times) for times in times_ms.values()} == {peers.MIN_ROUNDS}
    per_round = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert {name for name, _ in calls[:3]} == set("abc")
    assert {first for (first, _), *_ in per_round} == set("abc")  # each goes first at times
    assert all(len({window for _, window in one}) == 1 for one in per_round)
    assert {window for _, window in calls} == {0, 1}
    assert differences == {"a": 0.0, "b": 0.0, "c": 0.25}


def test_rounds_go_on_for_the_duration() -> None:
    times_ms, _ = peers.in_turns({"a": lambda i: time.sleep(0.001) or 0.0}, 1, duration_s=0.2)
    assert sum(times_ms["a"]) >= 150


def test_windows_that_do_not_follow_each_other_are_no_stream() -> None:
    first, second = windows_in_a_row(1, 32)[0], windows_in_a_row(9, 32)[8]
    with pytest.raises(UsageError, match="give a longer one"):
        peers.Ways(None, MockBackend(), [first, second], 5)  # type: ignore[arg-type]


def test_where_torch_cannot_compile_its_row_is_missing_and_the_reason_told() -> None:
    class NoCompiler:
        def compiled(self) -> Any:
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmore of it")

    way, seconds, reason = peers.compile_way(NoCompiler())  # type: ignore[arg-type]
    assert (way, seconds) == (None, 0.0)
    assert reason == (
        "torch.compile does not work here: InvalidCxxCompiler: No working C++ compiler found"
    )


@pytest.mark.parametrize(("difference", "wrong"), [(9e-5, []), (1.1e-4, ["ONNX whole"])])
def test_ways_that_disagree_are_named_but_a_compiler_may_reorder(
    difference: float, wrong: list[str]
) -> None:
    ways = [
        {"way": "torch.compile", "max_p_fake_difference": 1.0},
        {"way": "ONNX whole", "max_p_fake_difference": difference},
    ]
    assert peers.disagreeing({"ways": ways}) == wrong


@pytest.mark.thorough
@pytest.mark.usefixtures("_noise")
def test_a_whole_comparison_of_a_checkpoint_and_its_pair(
    tiny: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, pair = tiny
    threads = torch.get_num_threads()
    code = peers.main(
        ["--checkpoint", str(checkpoint), "--model", str(pair), "--source", "clip.mp4",
         "--duration", "1", "--no-compile", "--output", str(tmp_path / "peers.json")]
    )  # fmt: skip
    assert code == 0
    assert torch.get_num_threads() == threads
    table = capsys.readouterr().out
    assert "torch.compile was left out" in table
    result = json.loads((tmp_path / "peers.json").read_text(encoding="utf-8"))
    ways = {way["way"]: way for way in result["ways"]}
    assert list(ways) == ["torch eager", "ONNX whole", "ONNX cached"]
    assert (result["windows"], result["rounds"]) == (3, ways["ONNX whole"]["latency"]["samples"])
    assert all(way["max_p_fake_difference"] <= 1e-4 for way in ways.values())
    assert ways["ONNX cached"]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    whole = ways["ONNX whole"]["ratio"]
    assert whole["low"] <= whole["median"] <= whole["high"]  # a second on a busy machine is noisy
    assert whole["median"] > 1  # it encodes ten times as much
    assert result["machine"]["processor"]


@pytest.mark.thorough
@pytest.mark.usefixtures("_noise")
def test_a_pair_of_other_weights_is_refused(
    tiny: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, spec = graphs.untrained(load_checkpoint(tiny[0])[1], seed=2)
    save_checkpoint(tmp_path / "other.safetensors", model, model.cfg, spec)
    words = ["--checkpoint", str(tmp_path / "other.safetensors"), "--model", str(tiny[1])]
    code = peers.main([*words, "--source", "clip.mp4"])
    said = capsys.readouterr().err.splitlines()
    assert code == 2
    assert "was not made of these weights" in said[-1]


@pytest.mark.thorough
@pytest.mark.usefixtures("_noise")
def test_a_pair_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped weights, as they are in the graphs, put back into the network."""
    words = ["--source", "clip.mp4", "--duration", "1", "--no-compile"]
    assert peers.main([*words, "--output", str(tmp_path / "peers.json")]) == 0
    result = json.loads((tmp_path / "peers.json").read_text(encoding="utf-8"))
    assert result["model"]["trained"]
    assert "(trained)" in capsys.readouterr().out
    assert all(way["max_p_fake_difference"] <= 1e-4 for way in result["ways"])


def test_a_checkpoint_knows_its_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert peers.main(["--preset", "msct", "--checkpoint", "x.safetensors"]) == 2
    assert "--preset is for random weights" in capsys.readouterr().err


@pytest.mark.thorough
def test_windows_of_a_clip_overlap_by_all_but_a_hop(grid_clip: Path) -> None:
    found = real_windows(grid_clip, PairSpec(), limit=3, step=5)
    assert len(found) == 3
    for before, after in itertools.pairwise(found):
        np.testing.assert_array_equal(before.frames[5:], after.frames[:-5])
        np.testing.assert_array_equal(before.audio[5:], after.audio[:-5])
