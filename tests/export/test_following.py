# SPDX-License-Identifier: Apache-2.0
"""A frame encoder that follows the face: four outputs, the same in every form of the pair."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs onnx (.[export])")
pytest.importorskip("onnxruntime", reason="needs ONNX Runtime (.[cpu])")

from export import precision  # noqa: E402
from export.parity import ParityError, compare  # noqa: E402
from runtime.backends.base import FaceOutput, face_shapes  # noqa: E402
from runtime.backends.engine import tensors  # noqa: E402
from runtime.backends.onnx import OnnxBackend  # noqa: E402
from runtime.errors import ModelError  # noqa: E402
from runtime.spec import FRAME_ENCODER_FILE, FUSION_FILE, PairSpec, SpecError  # noqa: E402
from tests.export import synthetic  # noqa: E402

SIDE, SPEC = synthetic.SIDE, synthetic.FOLLOWING
NAMES = ("ours", "theirs")


def frames(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_pair(tmp_path_factory.mktemp("pair"), SPEC)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_all_four_come_of_one_call_and_the_features_are_those_of_encode(pair: Path, n: int) -> None:
    crops = frames(n)
    with OnnxBackend(pair) as backend:
        out = backend.follow(crops)
        assert tuple(a.shape for a in out) == face_shapes(SPEC, n)
        assert {a.dtype for a in out} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(out.visual, backend.encode(crops))
    assert ((out.presence >= 0) & (out.presence <= 1)).all()


def test_a_crop_does_not_see_the_others_of_its_batch(pair: Path) -> None:
    crops = frames(4)
    with OnnxBackend(pair) as backend:
        together = backend.follow(crops)
        alone = [backend.follow(crop[None]) for crop in crops]
    for name, array in together._asdict().items():
        np.testing.assert_allclose(array, [getattr(o, name)[0] for o in alone], atol=1e-4)


def test_an_encoder_of_features_alone_says_so(tmp_path: Path) -> None:
    with (
        OnnxBackend(synthetic.write_pair(tmp_path)) as backend,
        pytest.raises(ValueError, match="mini-01234567 gives features alone"),
    ):
        backend.follow(frames(1))


def test_other_frames_are_refused(pair: Path) -> None:
    with OnnxBackend(pair) as backend, pytest.raises(ValueError, match="frames must be uint8"):
        backend.follow(frames(1).astype(np.float32))


def test_engines_have_the_same_tensors_in_the_same_order() -> None:
    encoder, _ = tensors(SPEC)
    given = [(t.name, t.shape({"N": 3})) for t in encoder if not t.is_input]
    assert given == list(zip(FaceOutput._fields, face_shapes(SPEC, 3), strict=True))
    plain, _ = tensors(synthetic.SPEC)
    assert [t.name for t in plain] == ["frames", "visual"]


class TestWhatTheSpecSays:
    def test_must_be_what_the_graph_gives(self, tmp_path: Path) -> None:
        """A spec with points over a graph without, and the other way round."""
        for spec, graph in ((SPEC, synthetic.SPEC), (synthetic.SPEC, SPEC)):
            folder = synthetic.write_pair(tmp_path / graph.face.stage, graph)
            for name in (FRAME_ENCODER_FILE, FUSION_FILE):
                model = onnx.load(folder / name)
                precision.restamp(model, spec)
                (folder / name).write_bytes(model.SerializeToString())
            with pytest.raises(ModelError, match="must take frames and give visual"):
                OnnxBackend(folder)

    def test_an_encoder_that_follows_needs_points(self) -> None:
        with pytest.raises(SpecError, match="without points"):
            PairSpec(face=dataclasses.replace(SPEC.face, stage="encoder"))

    def test_there_are_two_stages(self) -> None:
        with pytest.raises(SpecError, match=r"one of dlib, encoder, not opencv"):
            dataclasses.replace(SPEC.face, stage="opencv")


class TestTheCheckOfAnotherForm:
    def test_states_the_error_of_points_and_geometry(self, pair: Path, tmp_path: Path) -> None:
        half = tmp_path / "half"
        half.mkdir()
        for name in (FRAME_ENCODER_FILE, FUSION_FILE):
            model = precision.to_fp16(onnx.load(pair / name))
            (half / name).write_bytes(model.SerializeToString())
        with OnnxBackend(half) as ours, OnnxBackend(pair) as theirs:
            assert ours.spec.precision == "fp16"
            found = compare(ours, theirs, SPEC, names=NAMES).max_difference
        assert {"features", "geometry", "points", "presence"} <= set(found)
        assert 0 < found["points"] < 0.1  # pixels
        assert 0 < found["geometry"] < 0.05
        assert 0 <= found["presence"] < 0.005

    def test_finds_points_of_another_shape(self, pair: Path) -> None:
        class Fewer(OnnxBackend):
            def follow(self, crops: np.ndarray) -> FaceOutput:
                out = super().follow(crops)
                return out._replace(points=out.points[:, :5])

        with (
            Fewer(pair) as ours,
            OnnxBackend(pair) as theirs,
            pytest.raises(ParityError, match="ours gives points of shape"),
        ):
            compare(ours, theirs, SPEC, names=NAMES)


@pytest.mark.thorough
def test_the_exported_graph_says_what_torch_says(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed (.[train])")
    from export import graphs
    from trainer.config import preset

    config = preset("msct-tiny", geometry_dim=6)
    model, spec = graphs.untrained(config)
    with torch.no_grad():
        for head in model.frame_encoder.heads.children():
            torch.nn.init.normal_(head.weight, std=0.1, generator=torch.manual_seed(1))
    assert spec.model.geometry_dim == 6
    done = graphs.export_pair(model, spec, tmp_path / "pair")
    assert {"geometry", "points", "presence"} <= set(done.parity.max_difference)
    crops = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    with torch.inference_mode(), OnnxBackend(tmp_path / "pair") as backend:
        expected = model.frame_encoder.follow(torch.from_numpy(crops))
        for name, array in backend.follow(crops)._asdict().items():
            assert array.std() > 0
            np.testing.assert_allclose(array, getattr(expected, name).numpy(), atol=1e-4)
