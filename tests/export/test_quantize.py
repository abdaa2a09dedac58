# SPDX-License-Identifier: Apache-2.0
"""INT8 of the frame encoder: where the Q/DQ pairs stand, and that a bad one is never written."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs onnx (.[export])")
ort = pytest.importorskip("onnxruntime", reason="needs ONNX Runtime (.[cpu])")

from export import build_engine, pair  # noqa: E402
from export.parity import Window  # noqa: E402
from export.precision import read_spec, to_fp16  # noqa: E402
from export.quantize import check_windows, restamped, split_clips, to_int8  # noqa: E402
from runtime.backends import cuda  # noqa: E402
from runtime.backends.manifest import engine_facts, read_manifest  # noqa: E402
from runtime.backends.onnx import OnnxBackend  # noqa: E402
from runtime.errors import ModelError, UsageError  # noqa: E402
from tests.export import synthetic  # noqa: E402

SIDE = 32
NETWORK = f"""
<ir_version: 10, opset_import: ["" : 18]>
frame_encoder (uint8[N, {SIDE}, {SIDE}, 3] frames) => (float[N, 32] visual)
{{
  x0 = Cast <to = 1> (frames)
  x1 = Transpose <perm = [0, 3, 1, 2]> (x0)
  x2 = Mul (x1, scale)
  x3 = Conv <strides = [2, 2]> (x2, stem_w, stem_b)
  x4 = Relu (x3)
  x5 = Conv <group = 32> (x4, depth_w)
  x6 = Conv (x5, dense_w, dense_b)
  x7 = Relu (x6)
  visual = ReduceMean <keepdims = 0> (x7, plane)
}}
"""


@pytest.fixture(scope="module")
def encoder() -> onnx.ModelProto:
    """A stem of 3 input channels, a depthwise and a dense convolution."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return (0.3 * rng.standard_normal(shape)).astype(np.float32)

    values = {
        "scale": np.float32(1 / 255),
        "stem_w": weights(32, 3, 2, 2),
        "stem_b": weights(32),
        "depth_w": weights(32, 1, 3, 3),
        "dense_w": weights(32, 32, 1, 1),
        "dense_b": weights(32),
        "plane": np.array([2, 3]),
    }
    return synthetic._model(NETWORK, synthetic.SPEC, values)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (24, SIDE, SIDE, 3), dtype=np.uint8)


def run(model: onnx.ModelProto, frames: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"frames": frames})[0]


def nodes(model: onnx.ModelProto, *kinds: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in kinds]


@pytest.mark.parametrize("for_engine", [True, False])
def test_the_answers_stay_close(encoder, frames, for_engine: bool) -> None:
    exact = run(encoder, frames)
    quantised = run(to_int8(encoder, [frames], for_engine=for_engine), frames)
    error = np.linalg.norm(quantised - exact) / np.linalg.norm(exact)
    assert 0 < error < 0.02


def test_only_the_dense_convolution_is_quantised(encoder, frames) -> None:
    made = to_int8(encoder, [frames], for_engine=True)
    made_by = {node.output[0]: node.op_type for node in made.graph.node}
    inputs = [[made_by.get(name) for name in node.input[:2]] for node in nodes(made, "Conv")]
    assert inputs == [["Mul", None], ["Relu", None], ["DequantizeLinear"] * 2]


def test_the_engines_form_is_symmetric_and_quantises_inputs_alone(encoder, frames) -> None:
    made = to_int8(encoder, [frames], for_engine=True)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in made.graph.initializer}
    zeros = [constants[n.input[2]] for n in nodes(made, "QuantizeLinear", "DequantizeLinear")]
    assert len(nodes(made, "QuantizeLinear")) == 1
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)


def test_weights_have_a_scale_for_each_output_channel(encoder, frames) -> None:
    made = to_int8(encoder, [frames], for_engine=True)
    sizes = {t.name: t.dims for t in made.graph.initializer}
    scales = sorted(list(sizes[n.input[1]]) for n in nodes(made, "DequantizeLinear"))
    assert scales == [[], [32]]


def test_onnx_runtimes_form_quantises_outputs_too(encoder, frames) -> None:
    made = to_int8(encoder, [frames], for_engine=False)
    assert len(nodes(made, "QuantizeLinear")) == 2


def test_the_spec_says_so(encoder, frames) -> None:
    spec = read_spec(to_int8(encoder, [frames], for_engine=True))
    assert spec.precision == "fp32+int8"
    assert spec.int8
    assert spec.pair_id == "0123456789abcdef-int8"
    assert spec == read_spec(restamped(synthetic.fusion()))
    assert not synthetic.SPEC.int8


def test_the_original_is_left_alone(encoder, frames) -> None:
    before = encoder.SerializeToString(deterministic=True)
    to_int8(encoder, [frames], for_engine=True)
    assert encoder.SerializeToString(deterministic=True) == before


def test_typed_fp16_the_scales_are_fp16_and_nothing_is_cast_before_the_convolution(
    encoder, frames
) -> None:
    made = to_int8(encoder, [frames], for_engine=True)
    half = to_fp16(made)
    types = {t.name: t.data_type for t in half.graph.initializer}
    scales = {types[n.input[1]] for n in nodes(half, "QuantizeLinear", "DequantizeLinear")}
    assert scales == {onnx.TensorProto.FLOAT16}
    made_by = {node.output[0]: node.op_type for node in half.graph.node}
    assert [made_by[name] for name in nodes(half, "Conv")[2].input[:2]] == ["DequantizeLinear"] * 2
    assert read_spec(half).precision == "fp16+int8"
    exact = run(made, frames)
    assert np.linalg.norm(run(half, frames) - exact) / np.linalg.norm(exact) < 0.02


def test_a_graph_without_dense_convolutions(frames) -> None:
    with pytest.raises(ModelError, match="no convolution to quantise"):
        to_int8(synthetic.frame_encoder(), [frames], for_engine=True)


def test_a_quarter_of_the_clips_is_kept_apart() -> None:
    clips = [Path(str(i)) for i in range(9)]
    used, held_out = split_clips(clips)
    assert held_out == [clips[3], clips[7]]
    assert set(used) | set(held_out) == set(clips)
    assert split_clips(clips[:2]) == ([clips[0]], [clips[1]])


def test_windows_are_checked_with_their_own_sound_anothers_and_none() -> None:
    windows = [Window(np.full(2, i, np.uint8), np.full(2, i, np.float32)) for i in (1, 2)]
    found = [(int(w.frames[0]), int(w.audio[0])) for w in check_windows(windows)]
    assert found == [(1, 1), (2, 2), (1, 2), (2, 1), (1, 0), (2, 0)]


class TestCommandLine:
    """Clips that are made up: reading real ones is for test_parity.py and the slow test below."""

    @pytest.fixture
    def original(self, encoder, tmp_path: Path) -> Path:
        folder = synthetic.write_pair(tmp_path / "in")
        (folder / "frame_encoder.onnx").write_bytes(encoder.SerializeToString())
        return folder

    @pytest.fixture
    def clips(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "clips"
        folder.mkdir()
        for i in range(4):
            (folder / f"{i}.mp4").write_text(str(i))
        (folder / "notes.txt").write_text("no clip")

        def windows(
            clip: Path, spec: object, limit: int = 4, follow: object = None
        ) -> list[Window]:
            rng = np.random.default_rng(int(clip.stem))
            shape = (8, SIDE, SIDE, 3)
            return [
                Window(
                    rng.integers(0, 256, shape, dtype=np.uint8),
                    rng.standard_normal((8, 104), dtype=np.float32),
                )
            ]

        monkeypatch.setattr(pair, "real_windows", windows)
        return folder

    def run(self, *args: object) -> int:
        return build_engine.main([*map(str, args), "--backend", "onnx"])

    def test_what_was_used_for_what_is_in_the_report(
        self, original: Path, clips: Path, tmp_path: Path
    ) -> None:
        args = ("--onnx", original, "--int8", "--calibration", clips, "--output", tmp_path / "out")
        assert self.run(*args, "--report", tmp_path / "r.json") == 0
        report = json.loads((tmp_path / "r.json").read_text())
        assert report["precision"] == "fp32+int8"
        assert [Path(clip).stem for clip in report["calibration"]["clips"]] == ["0", "1", "2"]
        assert [Path(clip).stem for clip in report["calibration"]["held_out_clips"]] == ["3"]
        assert report["calibration"]["frames"] == 24
        (check,) = report["parity"]["checks"]
        assert check["probes"] == check["real_windows"] == 3
        with OnnxBackend(tmp_path / "out", threads=1) as backend:
            assert backend.spec.int8

    def test_a_model_beyond_the_limit_is_not_written(
        self,
        original: Path,
        clips: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(pair, "PROBABILITY_LIMIT_INT8", 1e-9)
        args = ("--onnx", original, "--int8", "--calibration", clips, "--output", tmp_path / "out")
        assert self.run(*args) == 1
        said = capsys.readouterr().err
        assert "differs from source fp32 pair by" in said
        assert "more than 1e-09: nothing was written; give more --calibration clips" in said
        assert not (tmp_path / "out").exists()

    @pytest.mark.tensorrt
    @pytest.mark.parametrize("half", [["--fp16"], []])
    def test_tensorrt_rtx_builds_it(
        self,
        original: Path,
        clips: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        half: list[str],
    ) -> None:
        if importlib.util.find_spec("tensorrt_rtx") is None:
            pytest.skip("building engines needs TensorRT-RTX (.[tensorrt-rtx])")
        monkeypatch.setattr(cuda, "device_count", lambda: 0)
        args = ["--onnx", original, *half, "--int8", "--calibration", clips, "--plugins", "off"]
        args += ["--backend", "tensorrt-rtx", "--target-sm", "8.6", "--output", tmp_path / "out"]
        assert build_engine.main([*map(str, args)]) == 0
        facts = engine_facts(read_manifest(tmp_path / "out"))
        assert facts is not None
        assert facts.int8_encoder
        assert facts.precision == ("fp16" if half else "fp32")

    def test_it_starts_from_fp32(
        self,
        original: Path,
        clips: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert self.run("--onnx", original, "--fp16", "--output", tmp_path / "half") == 0
        args = ("--onnx", tmp_path / "half", "--int8", "--calibration", clips)
        assert self.run(*args) == 2
        assert "--int8 starts from an fp32 pair, this one is fp16" in capsys.readouterr().err

    def test_one_clip_is_too_few(self, clips: Path) -> None:
        source = pair.Source(clips, "a pair", synthetic.SPEC)
        with pytest.raises(UsageError, match="gives 1 clips; at least two are needed"):
            pair.calibration([clips / "0.mp4"], source, lambda what: None)


@pytest.mark.thorough
def test_the_shipped_model_on_real_clips(
    real_pair: Path, grid_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = sorted((grid_dir / "speakers").glob("*.mpg"))[:4]
    args = ["--onnx", real_pair, "--int8", "--fp16", "--backend", "onnx", "--calibration", *clips]
    report = tmp_path / "r.json"
    code = build_engine.main([*map(str, args), "--output", str(tmp_path / "out"),
                              "--report", str(report)])  # fmt: skip
    assert code == 0, capsys.readouterr().err
    found = json.loads(report.read_text())
    assert found["precision"] == "fp16+int8"
    assert 0 < found["parity"]["max_probability_difference"] <= 0.05
