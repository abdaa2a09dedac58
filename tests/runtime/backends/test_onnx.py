# SPDX-License-Identifier: Apache-2.0
"""The ONNX Runtime backend: what it computes, what it refuses, and in which words."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="writing a pair for the test needs onnx (.[export])")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs ONNX Runtime (.[cpu])")

from export.manifest import write_manifest  # noqa: E402
from runtime.backends import load_backend  # noqa: E402
from runtime.backends import onnx as module  # noqa: E402
from runtime.backends.base import Backend  # noqa: E402
from runtime.backends.onnx import OnnxBackend, read_pair  # noqa: E402
from runtime.errors import DependencyError, ModelError, UsageError, UserError  # noqa: E402
from runtime.models import DEFAULT_PRESET, model_dir, shipped_presets  # noqa: E402
from runtime.spec import FRAME_ENCODER_FILE, FUSION_FILE, METADATA_KEY  # noqa: E402
from tests.export import synthetic  # noqa: E402

PAIR = (FRAME_ENCODER_FILE, FUSION_FILE)
SIDE, C, E = synthetic.SIDE, synthetic.C, synthetic.E


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def pair(original: Path, tmp_path: Path) -> Path:
    """A copy of its own for a test that breaks it."""
    return Path(shutil.copytree(original, tmp_path / "pair"))


def refused(folder: Path, error: type[UserError] = ModelError) -> str:
    with pytest.raises(error) as caught:
        OnnxBackend(folder)
    text = str(caught.value)
    assert "\n" not in text
    return text


def edit(path: Path, change: object) -> None:
    """Load, change and write back a model."""
    model = onnx.load_from_string(path.read_bytes())
    change(model)  # type: ignore[operator]
    path.write_bytes(model.SerializeToString())


class TestComputing:
    def test_it_is_a_backend_and_says_what_computes(self, original: Path) -> None:
        with OnnxBackend(original, threads=1) as backend:
            assert isinstance(backend, Backend)
            assert backend.provider == "CPUExecutionProvider"
            assert backend.spec == synthetic.SPEC

    @pytest.mark.parametrize("n", [1, 2, 7])
    def test_frames_become_features(self, original: Path, n: int) -> None:
        frames = np.random.default_rng(n).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)
        with OnnxBackend(original, threads=1) as backend:
            visual = backend.encode(frames)
            one_by_one = [backend.encode(frame[None])[0] for frame in frames]
        assert visual.shape == (n, C)
        assert visual.dtype == np.float32
        np.testing.assert_allclose(visual, one_by_one, atol=1e-5)

    def test_no_frames_give_no_features(self, original: Path) -> None:
        with OnnxBackend(original, threads=1) as backend:
            assert backend.encode(np.zeros((0, SIDE, SIDE, 3), np.uint8)).shape == (0, C)

    def test_frames_need_not_be_contiguous(self, original: Path) -> None:
        frames = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
        mirrored = frames[:, :, ::-1]
        with OnnxBackend(original, threads=1) as backend:
            np.testing.assert_array_equal(backend.encode(mirrored), backend.encode(mirrored.copy()))

    @pytest.mark.parametrize(("b", "t"), [(1, 1), (2, 3), (1, 51), (1, 150)])
    def test_windows_become_seven_outputs(self, original: Path, b: int, t: int) -> None:
        rng = np.random.default_rng(t)
        visual = rng.standard_normal((b, t, C), dtype=np.float32)
        audio = rng.standard_normal((b, t, 104), dtype=np.float32)
        with OnnxBackend(original, threads=1) as backend:
            out = backend.fuse(visual, audio)
        shapes = {name: array.shape for name, array in out._asdict().items()}
        assert shapes == {
            "logits_av": (b, 2),
            "logits_a": (b, 2),
            "logits_v": (b, 2),
            "sync": (b, t),
            "align_v": (b, t, E),
            "align_a": (b, t, E),
            "embedding": (b, 2 * C),
        }
        assert all(array.dtype == np.float32 for array in out)
        np.testing.assert_allclose(np.linalg.norm(out.align_v, axis=-1), 1, atol=1e-5)

    def test_after_close_nothing_is_left(self, original: Path) -> None:
        backend = OnnxBackend(original, threads=1)
        backend.close()
        backend.close()
        with pytest.raises(AssertionError, match="closed"):
            backend.encode(np.zeros((1, SIDE, SIDE, 3), np.uint8))


class TestWrongInput:
    @pytest.mark.parametrize(
        "frames",
        [
            np.zeros((1, SIDE, SIDE, 3), np.float32),
            np.zeros((SIDE, SIDE, 3), np.uint8),
            np.zeros((1, 3, SIDE, SIDE), np.uint8),
            np.zeros((1, 64, 64, 3), np.uint8),
        ],
        ids=["float", "no batch", "channels first", "another size"],
    )
    def test_frames(self, original: Path, frames: np.ndarray) -> None:
        with OnnxBackend(original, threads=1) as backend:
            message = rf"frames must be uint8 \[N, {SIDE}, {SIDE}, 3\], not {frames.dtype}"
            with pytest.raises(ValueError, match=message):
                backend.encode(frames)

    @pytest.mark.parametrize(
        ("visual", "audio", "message"),
        [
            ((1, 5, C + 1), (1, 5, 104), rf"visual must be float32 \[B, T, {C}\]"),
            ((1, 5, C), (1, 5, 26), r"audio must be float32 \[B, T, 104\]"),
            ((1, 5, C), (1, 4, 104), "same B and T"),
            ((1, 0, C), (1, 0, 104), "at least 1"),
        ],
    )
    def test_windows(
        self, original: Path, visual: tuple[int, ...], audio: tuple[int, ...], message: str
    ) -> None:
        with (
            OnnxBackend(original, threads=1) as backend,
            pytest.raises(ValueError, match=message),
        ):
            backend.fuse(np.zeros(visual, np.float32), np.zeros(audio, np.float32))

    def test_double_precision(self, original: Path) -> None:
        with (
            OnnxBackend(original, threads=1) as backend,
            pytest.raises(ValueError, match="not float64"),
        ):
            backend.fuse(np.zeros((1, 5, C)), np.zeros((1, 5, 104), np.float32))  # type: ignore[arg-type]


class TestRefusedFiles:
    @pytest.mark.parametrize("name", PAIR)
    def test_missing(self, pair: Path, name: str) -> None:
        (pair / name).unlink()
        assert f"cannot read {pair / name}" in refused(pair)

    @pytest.mark.parametrize("name", PAIR)
    @pytest.mark.parametrize("keep", [0, 1, 100, -1])
    def test_cut_short(self, pair: Path, name: str, keep: int) -> None:
        (pair / name).write_bytes((pair / name).read_bytes()[:keep])
        assert f"{pair / name} is damaged or no ONNX file" in refused(pair)

    def test_a_text_file(self, pair: Path) -> None:
        (pair / FUSION_FILE).write_text("no model at all\n" * 100)
        assert "is damaged or no ONNX file" in refused(pair)

    def test_a_valid_file_whose_graph_makes_no_sense(self, pair: Path) -> None:
        def rename(model: onnx.ModelProto) -> None:
            model.graph.node[2].op_type = "Muul"

        edit(pair / FRAME_ENCODER_FILE, rename)
        assert f"cannot open {pair / FRAME_ENCODER_FILE}" in refused(pair)

    def test_swapped(self, pair: Path) -> None:
        first, second = ((pair / name).read_bytes() for name in PAIR)
        (pair / FRAME_ENCODER_FILE).write_bytes(second)
        (pair / FUSION_FILE).write_bytes(first)
        assert "is in truth a fusion.onnx: the two files are swapped" in refused(pair)

    def test_other_inputs(self, pair: Path) -> None:
        def rename(model: onnx.ModelProto) -> None:
            model.graph.input[0].name = model.graph.node[0].input[0] = "pixels"

        edit(pair / FRAME_ENCODER_FILE, rename)
        assert "must take frames and give visual, but takes pixels" in refused(pair)

    def test_of_two_pairs(self, pair: Path) -> None:
        other = synthetic.fusion(synthetic.other_pair(pair_id="fedcba9876543210"))
        (pair / FUSION_FILE).write_bytes(other.SerializeToString())
        text = refused(pair)
        assert "belong to different pairs (0123456789abcdef and fedcba9876543210)" in text

    def test_of_one_pair_with_two_specs(self, pair: Path) -> None:
        other = synthetic.fusion(synthetic.other_pair(trained=False))
        (pair / FUSION_FILE).write_bytes(other.SerializeToString())
        assert "carry different specs" in refused(pair)

    def test_without_a_pair_id(self, pair: Path) -> None:
        synthetic.write_pair(pair, synthetic.other_pair(pair_id=""))
        assert "empty pair_id" in refused(pair)

    def test_without_a_spec(self, pair: Path) -> None:
        edit(pair / FUSION_FILE, lambda model: model.ClearField("metadata_props"))
        assert f"carries no {METADATA_KEY} in its metadata" in refused(pair)

    def test_with_a_spec_of_another_version(self, pair: Path) -> None:
        def age(model: onnx.ModelProto) -> None:
            model.metadata_props[0].value = json.dumps({"version": 99})

        edit(pair / FUSION_FILE, age)
        assert "has version 99" in refused(pair)

    def test_with_a_spec_of_other_shapes(self, pair: Path) -> None:
        shapes = synthetic.ModelSpec(name="mini", channels=C, heads=4, blocks=1, align_dim=E)
        face = synthetic.FaceSpec(crop_px=64)
        synthetic.write_pair(pair, synthetic.other_pair(model=shapes, face=face))
        assert "its spec says uint8 [..., 64, 64, 3]" in refused(pair)

    def test_with_external_data_before_anything_is_opened(
        self, pair: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def outside(model: onnx.ModelProto) -> None:
            tensor = model.graph.initializer[1]
            onnx.external_data_helper.set_external_data(tensor, location="../../secret.bin")
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL

        def never(*args: object, **kwargs: object) -> None:
            raise AssertionError("ONNX Runtime was asked to open the file")

        edit(pair / FRAME_ENCODER_FILE, outside)
        monkeypatch.setattr(onnxruntime, "InferenceSession", never)
        assert "keeps tensors in other files, which is not allowed" in refused(pair)

    def test_with_foreign_operators(self, pair: Path) -> None:
        def add(model: onnx.ModelProto) -> None:
            model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))

        edit(pair / FUSION_FILE, add)
        assert "uses foreign operators (com.example)" in refused(pair)

    def test_with_a_later_version_of_our_operators(self, pair: Path) -> None:
        def later(model: onnx.ModelProto) -> None:
            next(o for o in model.opset_import if o.domain == "msct").version = 2

        edit(pair / FUSION_FILE, later)
        assert "uses version 2 of the msct operators, this runtime knows 1" in refused(pair)


class TestManifest:
    @pytest.fixture
    def described(self, pair: Path) -> Path:
        write_manifest(pair, PAIR, synthetic.SPEC, {"backend": "onnx"})
        return pair

    def test_a_pair_goes_with_its_manifest(self, described: Path) -> None:
        spec, _ = read_pair(described)
        assert spec == synthetic.SPEC

    def test_one_changed_weight_is_noticed(self, described: Path) -> None:
        path = described / FRAME_ENCODER_FILE
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        assert "SHA-256 differs" in refused(described)

    def test_a_damaged_manifest_is_no_manifest(self, described: Path) -> None:
        (described / "manifest.json").write_text("{")
        assert "manifest.json is damaged" in refused(described)


class TestProviders:
    @pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", "cpu:0", ""])
    def test_unknown(self, original: Path, name: str) -> None:
        with pytest.raises(
            UsageError, match=f"unknown provider '{name}'; known: cpu, cuda, cuda:N"
        ):
            OnnxBackend(original, provider=name)

    @pytest.mark.parametrize(("name", "device"), [("cuda", "0"), ("cuda:2", "2")])
    def test_a_gpu_is_chosen_and_fp32_stays_fp32(
        self, original: Path, monkeypatch: pytest.MonkeyPatch, name: str, device: str
    ) -> None:
        asked = []

        def spy(data: bytes, sess_options: object, providers: list[tuple[str, dict]]) -> object:
            asked.extend(providers)
            raise RuntimeError("far enough")

        both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
        monkeypatch.setattr("runtime.backends.onnx._try_out", lambda *_: None)
        monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
        with pytest.raises(ModelError, match="far enough"):
            OnnxBackend(original, provider=name)
        ((provider, options),) = asked
        assert provider == "CUDAExecutionProvider"
        assert options["device_id"] == device
        assert options["use_tf32"] == "0"

    def test_no_threads(self, original: Path) -> None:
        with pytest.raises(UsageError, match="threads must be at least 1"):
            OnnxBackend(original, threads=0)

    def test_threads_reach_onnx_runtime(
        self, original: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []
        real = onnxruntime.InferenceSession

        def spy(data: bytes, sess_options: object, **rest: object) -> object:
            asked.append(sess_options.intra_op_num_threads)  # type: ignore[attr-defined]
            return real(data, sess_options=sess_options, **rest)

        monkeypatch.setattr("runtime.backends.onnx._try_out", lambda *_: None)
        monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
        OnnxBackend(original, threads=1).close()
        assert asked == [1, 1]

    def test_cuda_that_is_not_installed_names_the_extra(
        self, original: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        only_cpu = ["CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: only_cpu)
        with pytest.raises(DependencyError, match=r"has no CUDAExecutionProvider.*\.\[gpu\]"):
            OnnxBackend(original, provider="cuda")

    def test_cuda_that_does_not_come_up_is_no_silent_cpu(
        self, original: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = onnxruntime.InferenceSession

        def falls_back(data: bytes, sess_options: object, providers: object) -> object:
            return real(data, sess_options=sess_options, providers=["CPUExecutionProvider"])

        both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
        monkeypatch.setattr("runtime.backends.onnx._try_out", lambda *_: None)
        monkeypatch.setattr(onnxruntime, "InferenceSession", falls_back)
        with pytest.raises(DependencyError, match="came up with CPUExecutionProvider"):
            OnnxBackend(original, provider="cuda")

    def test_a_missing_onnx_runtime_names_the_extra(
        self, original: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(DependencyError, match=r"pip install '\.\[cpu\]'"):
            OnnxBackend(original)


class TestFindingModels:
    def test_a_folder_is_itself(self, original: Path) -> None:
        assert model_dir(original) == original
        with load_backend(str(original), threads=1) as backend:
            assert backend.spec.model_id == "mini-01234567"

    def test_shipped_presets_are_found_by_name(self) -> None:
        for name in shipped_presets():
            spec, _ = read_pair(model_dir(name))
            assert spec.model.name == name
            assert spec.trained

    def test_an_unknown_name(self) -> None:
        with pytest.raises(UsageError, match=r"no model named 'nonsense'.*shipped presets: "):
            model_dir("nonsense")

    def test_a_preset_that_ships_no_weights(self) -> None:
        with pytest.raises(UsageError, match="preset msct ships no weights"):
            model_dir("msct")

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"it needs frame_encoder\.onnx and fusion\.onnx"):
            model_dir(tmp_path)

    def test_one_of_the_files(self, original: Path) -> None:
        with pytest.raises(UsageError, match="is a file; give the folder"):
            model_dir(original / FUSION_FILE)


def test_only_a_pair_that_was_not_shipped_is_tried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenth of a second of every start."""
    if DEFAULT_PRESET not in shipped_presets():
        pytest.skip("this checkout ships no weights")
    shutil.copytree(model_dir(DEFAULT_PRESET), tmp_path / "copy")
    (tmp_path / "link").symlink_to(model_dir(DEFAULT_PRESET), target_is_directory=True)
    tried: list[Path] = []
    monkeypatch.setattr(module, "_try_out", lambda _, path, *rest: tried.append(path))
    for folder in (model_dir(DEFAULT_PRESET), tmp_path / "link"):
        OnnxBackend(folder).close()
    assert tried == []
    OnnxBackend(tmp_path / "copy").close()
    assert [path.name for path in tried] == ["frame_encoder.onnx", "fusion.onnx"]
