# SPDX-License-Identifier: Apache-2.0
"""Real engines on a real GPU: built here, against ONNX Runtime fp32, and over a real clip."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="needs ONNX Runtime (.[cpu])")
pytest.importorskip("onnx", reason="needs onnx (.[export])")

from export.choice import RTX_TARGETS
from runtime.backends import cuda
from runtime.backends.base import Backend, FusionOutput
from runtime.backends.manifest import ENGINE_FILES, TENSORRT, TENSORRT_RTX
from runtime.backends.onnx import OnnxBackend
from runtime.backends.tensorrt import TensorRTBackend
from runtime.errors import DependencyError, ModelError
from runtime.flow.driver import run
from runtime.flow.sink import Collector
from runtime.media.file import FileSource

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]
PROBABILITY_LIMIT = {"fp32": 1e-3, "fp16": 0.01}  # against ONNX Runtime fp32 on the CPU


@pytest.fixture(scope="module")
def flavour() -> str:
    """TensorRT where it is installed, else TensorRT-RTX where it can run."""
    if cuda.device_count() == 0:
        pytest.skip("no NVIDIA GPU here")
    try:
        with cuda.Device() as device:
            capability = device.compute_capability
    except DependencyError as err:
        pytest.skip(str(err))
    if importlib.util.find_spec("tensorrt") is not None:
        return TENSORRT
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("neither TensorRT nor TensorRT-RTX is installed")
    if capability not in RTX_TARGETS:
        pytest.skip(f"TensorRT-RTX does not support compute capability {capability}")
    return TENSORRT_RTX


@pytest.fixture(scope="module", params=["plugins", "no plugins"])
def plugins(request: pytest.FixtureRequest) -> Path | None:
    """The plugin library, or None to build without."""
    if request.param == "no plugins":
        return None
    library: Path = request.getfixturevalue("plugin_library_path")
    return library


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def built(
    flavour: str,
    plugins: Path | None,
    precision: str,
    real_pair: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Engines of the shipped model, built on this GPU."""
    from export.build_engine import main

    folder = tmp_path_factory.mktemp("engines") / "built"
    command = ["--onnx", str(real_pair), "--backend", flavour, "--output", str(folder), "--quiet"]
    command += ["--plugins", "off" if plugins is None else "on"]
    command += ["--fp16"] if precision == "fp16" else []
    with pytest.MonkeyPatch.context() as patch:
        if plugins is not None:
            patch.setenv("MSCT_PLUGIN_LIBRARY", str(plugins))
        assert main(command) == 0
    return folder


@pytest.fixture(scope="module")
def engine(built: Path, plugins: Path | None) -> Iterator[TensorRTBackend]:
    with TensorRTBackend(built, plugin_library=plugins) as backend:
        yield backend


@pytest.fixture(scope="module")
def reference(real_pair: Path) -> Iterator[OnnxBackend]:
    with OnnxBackend(real_pair) as backend:
        yield backend


def windows(backend: Backend, b: int, t: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of noise and tokens like normalised audio."""
    rng = np.random.default_rng(seed)
    side = backend.spec.face.crop_px
    frames = rng.integers(0, 256, (b * t, side, side, 3), dtype=np.uint8)
    visual = backend.encode(frames).reshape(b, t, -1)
    return visual, rng.standard_normal((b, t, 104), dtype=np.float32)


def probabilities(out: FusionOutput) -> np.ndarray:
    """[3, B] of "fake"."""
    logits = np.stack([out.logits_av, out.logits_a, out.logits_v]).astype(np.float64)
    return 1 / (1 + np.exp(logits[..., 0] - logits[..., 1]))


class TestAccuracy:
    @pytest.mark.parametrize("n", [1, 5, 200])
    def test_features(
        self, engine: TensorRTBackend, reference: OnnxBackend, precision: str, n: int
    ) -> None:
        side = engine.spec.face.crop_px
        frames = np.random.default_rng(n).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
        expected = reference.encode(frames)
        limit = {"fp32": 1e-3, "fp16": 3e-2}[precision] * np.abs(expected).max()
        np.testing.assert_allclose(engine.encode(frames), expected, rtol=0, atol=limit)

    @pytest.mark.parametrize(("b", "t"), [(1, 50), (1, 26), (9, 50)])
    def test_probabilities(
        self, engine: TensorRTBackend, reference: OnnxBackend, precision: str, b: int, t: int
    ) -> None:
        visual, audio = windows(reference, b, t, seed=t)
        theirs = reference.fuse(visual, audio)
        ours = engine.fuse(visual, audio)
        difference = np.abs(probabilities(ours) - probabilities(theirs)).max()
        assert difference <= PROBABILITY_LIMIT[precision]
        np.testing.assert_allclose(np.linalg.norm(ours.align_v, axis=-1), 1, atol=1e-2)


class TestGraphs:
    def test_a_replay_equals_the_first_run_and_the_run_without_graphs(
        self, built: Path, engine: TensorRTBackend, reference: OnnxBackend, plugins: Path | None
    ) -> None:
        batches = [windows(reference, 1, 37, seed) for seed in range(3)]  # a shape not seen yet
        first = [engine.fuse(*batch) for batch in batches]
        again = [engine.fuse(*batch) for batch in batches]
        with TensorRTBackend(built, plugin_library=plugins, cuda_graphs=False) as plain:
            assert plain.provider.endswith("without CUDA graphs")
            direct = [plain.fuse(*batch) for batch in batches]
        for a, b, c in zip(first, again, direct, strict=True):
            for x, y, z in zip(a, b, c, strict=True):
                np.testing.assert_array_equal(x, y)
                np.testing.assert_array_equal(x, z)
        assert not np.array_equal(first[0].logits_av, first[1].logits_av)

    def test_shapes_in_turn_do_not_disturb_each_other(
        self, engine: TensorRTBackend, reference: OnnxBackend
    ) -> None:
        shapes = [(1, t) for t in range(20, 45)]  # more than are kept
        batches = [windows(reference, *shape, seed=7) for shape in shapes]
        first = [engine.fuse(*batch).logits_av for batch in batches]
        for batch, before in reversed(list(zip(batches, first, strict=True))):
            np.testing.assert_array_equal(engine.fuse(*batch).logits_av, before)


class TestStream:
    def test_a_real_clip_gets_the_same_labels(
        self, engine: TensorRTBackend, reference: OnnxBackend, grid_clip: Path
    ) -> None:
        labels, scores = [], []
        for backend in (engine, reference):
            sink = Collector()
            with FileSource(grid_clip) as source:
                run(source, backend, sinks=[sink])
            labels.append([(v.t_end_s, v.face_id, v.label) for v in sink.verdicts])
            scores.append([v.p_fake for v in sink.verdicts])
        assert labels[0]
        assert labels[0] == labels[1]
        pairs = [(a, b) for a, b in zip(*scores, strict=True) if a is not None and b is not None]
        assert max((abs(a - b) for a, b in pairs), default=0.0) <= 0.02


class TestRefused:
    def test_a_tampered_engine(self, built: Path, plugins: Path | None, tmp_path: Path) -> None:
        import shutil

        folder = Path(shutil.copytree(built, tmp_path / "tampered"))
        data = bytearray((folder / ENGINE_FILES[1]).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / ENGINE_FILES[1]).write_bytes(data)
        with pytest.raises(ModelError, match="SHA-256 differs"):
            TensorRTBackend(folder, plugin_library=plugins)


class TestMemory:
    def test_opening_and_closing_leaves_nothing(self, built: Path, plugins: Path | None) -> None:
        with cuda.Device() as device:
            TensorRTBackend(built, plugin_library=plugins).close()  # what libraries keep for good
            before = device.free_bytes()
            for _ in range(3):
                TensorRTBackend(built, plugin_library=plugins).close()
            assert device.free_bytes() >= before - (8 << 20)
