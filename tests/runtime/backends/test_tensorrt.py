# SPDX-License-Identifier: Apache-2.0
"""The TensorRT backend: what it refuses, and in which order it works.

The device is :class:`~tests.runtime.fake_gpu.FakeDriver`, the library
:class:`~tests.runtime.fake_gpu.FakeTensorRT`; where the real TensorRT-RTX is installed, its
answers on a machine without a GPU are looked at too.  Real engines: tests/gpu/test_engine.py.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs onnx (.[export])")

import runtime.backends.engine as engine_module
from export.manifest import write_manifest
from runtime.backends import cuda, load_backend
from runtime.backends.base import Backend, PhasedBackend, Phases
from runtime.backends.engine import tensors
from runtime.backends.manifest import (
    ENGINE_FILES,
    EngineFacts,
    PluginFacts,
    read_manifest,
    this_platform,
)
from runtime.backends.onnx import OnnxBackend
from runtime.backends.tensorrt import TensorRTBackend
from runtime.errors import DependencyError, ModelError, UsageError, UserError
from runtime.spec import FRAME_ENCODER_FILE, FUSION_FILE
from tests.export import synthetic
from tests.runtime.fake_gpu import Code, FakeDriver, FakeTensorRT, write_library

SIDE, C, E = synthetic.SIDE, synthetic.C, synthetic.E
MOST_N, MOST_B, MOST_T = 8, 2, 60
FILES = (FRAME_ENCODER_FILE, FUSION_FILE, *ENGINE_FILES)
PROFILES = {
    "frame_encoder": {
        "frames": {
            "min": [1, SIDE, SIDE, 3],
            "opt": [5, SIDE, SIDE, 3],
            "max": [MOST_N, SIDE, SIDE, 3],
        }
    },
    "fusion": {
        "visual": {"min": [1, 2, C], "opt": [1, 50, C], "max": [MOST_B, MOST_T, C]},
        "audio": {"min": [1, 2, 104], "opt": [1, 50, 104], "max": [MOST_B, MOST_T, 104]},
    },
}
FACTS = EngineFacts(
    flavour="tensorrt",
    version="10.13.3.9",
    compute_capabilities=("8.6", "8.9"),
    platform=this_platform(),
    precision="fp32",
    int8_encoder=False,
    plugins=None,
    profiles=PROFILES,
)


def describe(folder: Path, facts: EngineFacts) -> None:
    write_manifest(
        folder, FILES, synthetic.SPEC, {"backend": facts.flavour, "engine": facts.to_dict()}
    )


def engines(folder: Path, facts: EngineFacts = FACTS, **changes: Any) -> Path:
    """An engine folder for :class:`FakeTensorRT`."""
    synthetic.write_pair(folder)
    for name, expected in zip(ENGINE_FILES, tensors(synthetic.SPEC), strict=True):
        profile = facts.profiles[Path(name).stem]
        (folder / name).write_bytes(FakeTensorRT.engine(expected, profile, **changes))
    describe(folder, facts)
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engines(tmp_path_factory.mktemp("engines"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of its own for a test that breaks it."""
    return Path(shutil.copytree(original, tmp_path / "engines"))


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    """After the test everything on the device was given back, whatever happened in it."""
    fake = FakeDriver()
    yield fake
    gc.collect()  # a caught exception keeps the frames of its traceback
    assert fake.live == {}
    for kind in ("runtime", "engine", "context"):
        made, gone = (fake.events.count(f"{what} {kind}") for what in ("new", "free"))
        assert made == gone, kind


@pytest.fixture
def trt(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    fake = FakeTensorRT(driver)
    install(monkeypatch, driver, fake)
    return fake


@pytest.fixture
def rtx(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTensorRT:
    fake = FakeTensorRT(driver, "1.7.1.116", rtx=True)
    install(monkeypatch, driver, fake)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return fake


RTX_FACTS = dataclasses.replace(FACTS, flavour="tensorrt-rtx", version="1.7.1.116")


def install(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver, trt: FakeTensorRT) -> None:
    monkeypatch.setattr(cuda, "device_count", lambda: 1)
    monkeypatch.setattr(cuda, "_bindings", lambda: driver)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx" if trt.rtx else "tensorrt", trt)  # type: ignore[arg-type]


def frames(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)


def windows(b: int, t: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((b, t, C), dtype=np.float32),
        rng.standard_normal((b, t, 104), dtype=np.float32),
    )


def means(array: np.ndarray) -> np.ndarray:
    """What the fake engine computes of an input."""
    return array.reshape(len(array), -1).mean(-1, dtype=np.float64)


def refused(work: Callable[[], Any], error: type[UserError]) -> str:
    with pytest.raises(error) as caught:
        work()
    assert type(caught.value) is error
    text = str(caught.value)
    assert "\n" not in text
    return text


class TestComputing:
    def test_it_is_a_backend_and_says_what_computes(
        self, original: Path, trt: FakeTensorRT
    ) -> None:
        with TensorRTBackend(original) as backend:
            assert isinstance(backend, Backend)
            assert backend.provider == "TensorRT 10.13.3 (Fake GPU)"
            assert backend.spec == synthetic.SPEC

    @pytest.mark.parametrize("integrated", [False, True], ids=["copied", "shared memory"])
    @pytest.mark.parametrize("cuda_graphs", [True, False])
    def test_outputs_belong_to_their_inputs(
        self, original: Path, monkeypatch: pytest.MonkeyPatch, cuda_graphs: bool, integrated: bool
    ) -> None:
        driver = FakeDriver(integrated=integrated)
        install(monkeypatch, driver, FakeTensorRT(driver))
        with TensorRTBackend(original, cuda_graphs=cuda_graphs) as backend:
            for n in (1, 5, 5, 3, 5, 8):
                batch = frames(n, seed=n)
                visual = backend.encode(batch)
                assert visual.shape == (n, C)
                assert visual.dtype == np.float32
                np.testing.assert_allclose(visual, means(batch)[:, None] + np.zeros(C), rtol=1e-6)
            for b, t in ((1, 50), (2, 50), (1, 60), (1, 50)):
                v, a = windows(b, t, seed=t)
                out = backend.fuse(v, a)
                expected = means(v) + means(a)
                for i, (name, array) in enumerate(out._asdict().items(), 1):
                    wanted = np.broadcast_to(
                        (i * expected).reshape(-1, *[1] * (array.ndim - 1)), array.shape
                    )
                    np.testing.assert_allclose(array, wanted, rtol=1e-5, err_msg=name)
                assert out.align_v.shape == (b, t, E)
                assert out.embedding.shape == (b, 2 * C)
        assert driver.live == {}

    def test_earlier_results_stay_as_they_were(self, original: Path, trt: FakeTensorRT) -> None:
        with TensorRTBackend(original) as backend:
            first = backend.encode(frames(5, seed=1))
            kept = first.copy()
            backend.encode(frames(5, seed=2))
            np.testing.assert_array_equal(first, kept)

    def test_no_frames_give_no_features(self, original: Path, trt: FakeTensorRT) -> None:
        with TensorRTBackend(original) as backend:
            before = len(trt.events)
            assert backend.encode(frames(0)).shape == (0, C)
            assert len(trt.events) == before

    def test_more_frames_than_the_profile_takes_are_split(
        self, original: Path, trt: FakeTensorRT
    ) -> None:
        batch = frames(2 * MOST_N + 3)
        with TensorRTBackend(original) as backend:
            before = len(trt.events)
            visual = backend.encode(batch)
            assert trt.events[before:].count("wait") == 3
        np.testing.assert_allclose(visual[:, 0], means(batch), rtol=1e-6)

    def test_more_windows_than_the_profile_takes_are_split(
        self, original: Path, trt: FakeTensorRT
    ) -> None:
        v, a = windows(2 * MOST_B + 1, 50)
        with TensorRTBackend(original) as backend:
            out = backend.fuse(v, a)
        assert out.align_a.shape == (5, 50, E)
        np.testing.assert_allclose(out.logits_av[:, 0], means(v) + means(a), rtol=1e-5)

    @pytest.mark.parametrize("t", [1, MOST_T + 1])
    def test_a_window_outside_the_profile_names_the_option(
        self, original: Path, trt: FakeTensorRT, t: int
    ) -> None:
        with TensorRTBackend(original) as backend:
            text = refused(lambda: backend.fuse(*windows(1, t)), UsageError)
        assert f"a window of {t} tokens" in text
        assert "built for 2 to 60 (0.08 to 2.4 s)" in text
        assert "--window" in text

    def test_wrong_arrays(self, original: Path, trt: FakeTensorRT) -> None:
        with TensorRTBackend(original) as backend:
            with pytest.raises(ValueError, match="frames must be uint8"):
                backend.encode(frames(1).astype(np.float32))
            with pytest.raises(ValueError, match="same B and T"):
                backend.fuse(windows(1, 5)[0], windows(1, 6)[1])

    def test_after_close_nothing_is_left(self, original: Path, trt: FakeTensorRT) -> None:
        backend = TensorRTBackend(original)
        backend.close()
        backend.close()
        with pytest.raises(AssertionError, match="closed"):
            backend.encode(frames(1))


class TestOrderOfWork:
    def test_a_shape_runs_once_then_is_captured_then_replayed(
        self, original: Path, trt: FakeTensorRT
    ) -> None:
        with TensorRTBackend(original) as backend:
            seen = []
            for _ in range(3):
                before = len(trt.events)
                backend.encode(frames(3))
                seen.append(trt.events[before:])
        first, second, third = seen
        assert first == [
            "new context",
            "upload",
            "infer",
            "download",
            "wait",
            "record upload",
            "record infer",
            "record download",
            "new recording",
            "new graph",
            "free recording",
        ]
        assert second == third == ["launch", "wait"]

    def test_the_usual_shapes_are_ready_before_the_first_frame(
        self, original: Path, trt: FakeTensorRT
    ) -> None:
        with TensorRTBackend(original) as backend:
            before = len(trt.events)
            backend.encode(frames(5))
            backend.fuse(*windows(1, 50))
            assert trt.events[before:] == ["launch", "wait", "launch", "wait"]

    def test_without_graphs_every_kernel_is_queued(self, original: Path, trt: FakeTensorRT) -> None:
        with TensorRTBackend(original, cuda_graphs=False) as backend:
            assert backend.provider.endswith(", without CUDA graphs")
            before = len(trt.events)
            backend.encode(frames(5))
            assert trt.events[before:] == ["upload", "infer", "download", "wait"]
        assert "new graph" not in trt.events

    def test_upload_compute_and_download_are_timed_between_events(
        self, original: Path, trt: FakeTensorRT
    ) -> None:
        with TensorRTBackend(original) as backend:
            assert isinstance(backend, PhasedBackend)
            backend.encode_phases(frames(5))  # captures inference alone
            before = len(trt.events)
            assert backend.encode_phases(frames(5)) == Phases(1.5, 1.5, 1.5)  # the mock's clock
            events = [e for e in trt.events[before:] if not e.endswith(" event") or "rec" in e]
            assert events == [
                "record event", "upload", "record event", "launch", "record event", "download",
                "record event", "wait",
            ]  # fmt: skip
            before = len(trt.events)
            np.testing.assert_array_equal(backend.encode(frames(5)), backend.encode(frames(5)))
            assert trt.events[before:] == ["launch", "wait"] * 2  # runs are as they were
            assert backend.fuse_phases(*windows(1, 50)) == Phases(1.5, 1.5, 1.5)

    def test_parts_of_a_call_beyond_the_largest_batch_are_added(
        self, original: Path, trt: FakeTensorRT
    ) -> None:
        with TensorRTBackend(original) as backend:
            most = backend._encoder.most["N"]
            assert backend.encode_phases(frames(2 * most + 1)) == Phases(4.5, 4.5, 4.5)

    def test_without_graphs_inference_is_timed_kernel_by_kernel(
        self, original: Path, trt: FakeTensorRT
    ) -> None:
        with TensorRTBackend(original, cuda_graphs=False) as backend:
            before = len(trt.events)
            backend.fuse_phases(*windows(1, 50))
            assert "infer" in trt.events[before:]
        assert "new graph" not in trt.events

    def test_few_shapes_are_kept_the_least_used_goes(
        self, original: Path, trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine_module, "MAX_SHAPES", 2)
        with TensorRTBackend(original) as backend:  # 5 is there
            backend.encode(frames(1))
            backend.encode(frames(5))
            before = len(trt.events)
            backend.encode(frames(2))  # in the place of 1
            assert trt.events[before : before + 3] == ["free graph", "free context", "new context"]
            before = len(trt.events)
            backend.encode(frames(5))
            assert trt.events[before:] == ["launch", "wait"]
            backend.encode(frames(1))
            assert trt.events.count("new context") - trt.events.count("free context") == 3

    def test_everything_is_released_in_order(self, original: Path, trt: FakeTensorRT) -> None:
        backend = TensorRTBackend(original)
        backend.encode(frames(2))
        before = len(trt.events)
        backend.close()
        freed = [event.removeprefix("free ") for event in trt.events[before:]]
        one_shape = ["graph", "context"]
        memory = ["device memory", "pinned memory"]
        assert freed == [
            *one_shape,
            "engine",  # fusion
            *one_shape,
            *one_shape,
            "engine",  # frame encoder
            "runtime",
            *memory * 11,  # each input and output
            "device memory",  # the arena
            "stream",
            "primary context",
        ]

    def test_one_arena_serves_both_engines(
        self, tmp_path: Path, trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes = []
        real = cuda.DeviceMemory.__init__

        def spy(self: cuda.DeviceMemory, device: cuda.Device, nbytes: int) -> None:
            sizes.append(nbytes)
            real(self, device, nbytes)

        monkeypatch.setattr(cuda.DeviceMemory, "__init__", spy)
        TensorRTBackend(engines(tmp_path, arena=4096)).close()
        assert sizes[0] == 4096
        assert sizes[1] == MOST_N * SIDE * SIDE * 3  # then the staging, for the largest shapes

    def test_an_engine_that_needs_no_memory(self, tmp_path: Path, trt: FakeTensorRT) -> None:
        with TensorRTBackend(engines(tmp_path, arena=0)) as backend:
            assert backend.encode(frames(1)).shape == (1, C)


class TestTroubleInTheMiddle:
    """Each ends in the fixture ``driver``, which looks for what was left."""

    @pytest.mark.parametrize("method", ["profile", "shape", "address", "execute"])
    def test_tensorrt_refuses_a_step(self, original: Path, trt: FakeTensorRT, method: str) -> None:
        trt.refuses = method
        text = refused(lambda: TensorRTBackend(original), cuda.CudaError)
        assert "frame_encoder.engine: TensorRT could not" in text
        assert "(it will not)" in text
        assert "--backend onnx" in text

    @pytest.mark.parametrize("trouble", ["shape", "execute", "another engine"])
    def test_tensorrts_objects_go_before_the_device_while_the_error_is_held(
        self, folder: Path, trt: FakeTensorRT, trouble: str
    ) -> None:
        """A traceback keeps the local names of its frames alive."""
        trt.refuses = trouble
        if trouble == "another engine":
            path = folder / ENGINE_FILES[1]
            path.write_text(path.read_text().replace('"FLOAT"', '"HALF"'))
            describe(folder, FACTS)
        with pytest.raises(UserError) as caught:
            TensorRTBackend(folder)
        events = trt.events
        for kind in ("runtime", "engine", "context"):
            assert events.count(f"free {kind}") == events.count(f"new {kind}"), kind
        assert events[-1] == "free primary context"
        assert caught.value is not None

    def test_a_later_shape_is_refused_and_the_others_go_on(
        self, original: Path, trt: FakeTensorRT
    ) -> None:
        with TensorRTBackend(original) as backend:
            trt.refuses = "shape"
            refused(lambda: backend.encode(frames(2)), cuda.CudaError)
            trt.refuses = None
            np.testing.assert_allclose(backend.encode(frames(2))[:, 0], means(frames(2)), rtol=1e-6)

    def test_a_plugin_that_waits_cannot_be_captured(
        self, original: Path, trt: FakeTensorRT
    ) -> None:
        trt.synchronizes = True
        text = refused(lambda: TensorRTBackend(original), cuda.CudaError)
        assert "CAPTURE_INVALIDATED" in text

    @pytest.mark.parametrize(
        "function",
        [
            "cuStreamCreate",
            "cuMemAlloc",
            "cuMemHostAlloc",
            "cuGraphInstantiate",
            "cuMemcpyHtoDAsync",
        ],
    )
    def test_cuda_fails(self, original: Path, trt: FakeTensorRT, function: str) -> None:
        trt.driver.fail[function] = Code.CUDA_ERROR_OUT_OF_MEMORY
        text = refused(lambda: TensorRTBackend(original), cuda.OutOfMemoryError)
        assert function in text

    def test_the_gpu_falls_over_while_it_runs(self, original: Path, trt: FakeTensorRT) -> None:
        def run() -> None:
            with TensorRTBackend(original) as backend:
                trt.driver.fail["cuStreamSynchronize"] = Code.CUDA_ERROR_ILLEGAL_ADDRESS
                backend.encode(frames(5))

        assert "ILLEGAL_ADDRESS" in refused(run, cuda.CudaError)


class TestRefusedFiles:
    def refused(self, folder: Path, error: type[UserError] = ModelError) -> str:
        return refused(lambda: TensorRTBackend(folder), error)

    @pytest.mark.parametrize("name", FILES)
    def test_one_changed_bit_before_anything_is_deserialised(
        self, folder: Path, trt: FakeTensorRT, name: str
    ) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        text = self.refused(folder)
        assert f"{folder / name} is " in text
        assert trt.events == []

    def test_no_manifest(self, folder: Path, trt: FakeTensorRT) -> None:
        (folder / "manifest.json").unlink()
        assert "cannot read" in self.refused(folder)

    def test_no_engines(self, tmp_path: Path, trt: FakeTensorRT) -> None:
        synthetic.write_pair(tmp_path)
        write_manifest(tmp_path, FILES[:2], synthetic.SPEC, {"backend": "onnx"})
        text = self.refused(tmp_path)
        assert "holds no engines" in text
        assert f"python -m export.build_engine --onnx {tmp_path} --backend tensorrt" in text

    def test_a_missing_engine(self, folder: Path, trt: FakeTensorRT) -> None:
        (folder / ENGINE_FILES[1]).unlink()
        assert f"cannot read {folder / ENGINE_FILES[1]}" in self.refused(folder)

    @pytest.mark.parametrize(
        ("change", "parts"),
        [
            ({"version": "10.3.0.26"}, ["built by TensorRT 10.3.0.26, here is 10.13.3.9"]),
            ({"platform": "linux-alpha"}, ["built on linux-alpha, here is"]),
            ({"compute_capabilities": ("8.7",)}, ["compute capability 8.7, Fake GPU has 8.6"]),
            (
                {"version": "10.3", "plugins": PluginFacts("x.so", "0" * 64, {"fusion": 2})},
                ["--backend tensorrt --output"],
            ),
            ({"version": "10.3", "plugins": None}, ["--backend tensorrt --plugins off --output"]),
        ],
    )
    def test_engines_for_another_machine(
        self, folder: Path, trt: FakeTensorRT, change: dict[str, Any], parts: list[str]
    ) -> None:
        describe(folder, dataclasses.replace(FACTS, **change))
        text = self.refused(folder)
        for part in (*parts, f"python -m export.build_engine --onnx {folder} --backend tensorrt"):
            assert part in text
        assert "new runtime" not in trt.events

    def test_another_spec_in_the_manifest(self, folder: Path, trt: FakeTensorRT) -> None:
        manifest = read_manifest(folder)
        manifest["spec"]["calibration"]["threshold"] = 0.25
        (folder / "manifest.json").write_text(json.dumps(manifest))
        assert "carries another spec than the ONNX files" in self.refused(folder)
        del manifest["spec"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
        assert "is damaged" in self.refused(folder)

    def test_what_tensorrt_says_when_it_will_not_load(
        self, folder: Path, trt: FakeTensorRT
    ) -> None:
        trt.says = "Serialization assertion failed.\n In throwUnless at /_src/runtime.cpp:48"
        text = self.refused(folder)
        assert "cannot load" in text
        assert "(Serialization assertion failed); build it again: python -m" in text

    @pytest.mark.parametrize(
        "says",
        [
            "Cuda Runtime (In ScopedCudaStream at /_src/cudaResources.cpp:25 (cudaError 35: CUDA "
            "driver version is insufficient for CUDA runtime version))",
            "CUDA initialization failure with error: 35",
        ],
    )
    def test_a_library_that_finds_no_driver(
        self, folder: Path, trt: FakeTensorRT, says: str
    ) -> None:
        trt.says = says
        text = self.refused(folder, DependencyError)
        assert "there is no NVIDIA GPU, or its driver is missing or too old" in text
        assert "35" in text
        assert "--backend onnx" in text

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda e: e["tensors"].pop(), "its inputs and outputs are"),
            (lambda e: e["tensors"][0].update(dtype="FLOAT"), "frames is not uint8"),
            (lambda e: e["tensors"][0].update(mode="OUTPUT"), "frames is not an input"),
            (lambda e: e["tensors"][1].update(dims=["N", C + 1]), "visual has the shape [-1, 33]"),
            (lambda e: e.update(format="HWC"), "frames is not in linear layout"),
            (
                lambda e: e["profile"]["frames"].update(max=[9, SIDE, SIDE, 3]),
                "the profile of frames is not the manifest's",
            ),
        ],
    )
    def test_another_engine(
        self, folder: Path, trt: FakeTensorRT, edit: Callable[[Any], Any], message: str
    ) -> None:
        path = folder / ENGINE_FILES[0]
        described = json.loads(path.read_text())
        edit(described)
        path.write_text(json.dumps(described))
        describe(folder, FACTS)
        text = self.refused(folder)
        assert f"{path} is not an engine for this model" in text
        assert message in text

    def test_a_profile_that_takes_no_single_frame(self, tmp_path: Path, trt: FakeTensorRT) -> None:
        profiles = json.loads(json.dumps(PROFILES))
        profiles["frame_encoder"]["frames"]["min"][0] = 2
        facts = dataclasses.replace(FACTS, profiles=profiles)
        assert "does not start at a batch of 1" in self.refused(engines(tmp_path, facts))

    def test_a_profile_of_two_lengths(self, tmp_path: Path, trt: FakeTensorRT) -> None:
        profiles = json.loads(json.dumps(PROFILES))
        profiles["fusion"]["audio"]["max"][1] = 50
        facts = dataclasses.replace(FACTS, profiles=profiles)
        assert "two sizes of T" in self.refused(engines(tmp_path, facts))


class TestPlugins:
    @pytest.fixture
    def library(self, tmp_path: Path) -> Path:
        return write_library(tmp_path / "libmsct_plugins.so")

    @pytest.fixture
    def with_plugins(self, folder: Path, library: Path) -> Path:
        digest = hashlib.sha256(library.read_bytes()).hexdigest()
        plugins = PluginFacts(library.name, digest, {"frame_encoder": 0, "fusion": 2})
        describe(folder, dataclasses.replace(FACTS, plugins=plugins))
        return folder

    def test_the_library_is_loaded_before_the_engines(
        self, with_plugins: Path, library: Path, trt: FakeTensorRT
    ) -> None:
        with TensorRTBackend(with_plugins, plugin_library=library):
            assert trt.libraries == [str(library)]

    def test_the_library_that_the_variable_names(
        self,
        with_plugins: Path,
        library: Path,
        trt: FakeTensorRT,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("MSCT_PLUGIN_LIBRARY", str(library))
        with TensorRTBackend(with_plugins):
            assert trt.libraries == [str(library)]

    def test_another_library_is_never_loaded(
        self, with_plugins: Path, library: Path, trt: FakeTensorRT
    ) -> None:
        library.write_bytes(b"another plugin library")
        text = refused(lambda: TensorRTBackend(with_plugins, plugin_library=library), ModelError)
        assert f"{library} is not the libmsct_plugins.so" in text
        assert "--plugin-library FILE" in text
        assert trt.libraries == []

    def test_an_explicit_library_that_does_not_exist(
        self, with_plugins: Path, trt: FakeTensorRT, tmp_path: Path
    ) -> None:
        missing = tmp_path / "missing.so"
        assert str(missing) in refused(
            lambda: TensorRTBackend(with_plugins, plugin_library=missing), UsageError
        )

    def test_a_library_for_engines_without_plugins(
        self, folder: Path, library: Path, trt: FakeTensorRT
    ) -> None:
        text = refused(lambda: TensorRTBackend(folder, plugin_library=library), UsageError)
        assert "use no plugins" in text

    def test_already_registered_by_somebody_else_in_the_process(
        self, with_plugins: Path, library: Path, trt: FakeTensorRT
    ) -> None:
        trt.loads_libraries = False
        trt.creators = {"MultiScaleKeyConv", "DifferentialCrossAttention"}
        TensorRTBackend(with_plugins, plugin_library=library).close()

    def test_a_library_that_does_not_load(
        self, with_plugins: Path, library: Path, trt: FakeTensorRT
    ) -> None:
        trt.loads_libraries = False
        trt.creators = {"MultiScaleKeyConv"}  # half of them is no help
        text = refused(
            lambda: TensorRTBackend(with_plugins, plugin_library=library), DependencyError
        )
        assert "(Cannot register the library)" in text
        assert "make native" in text


class TestTensorRTRTX:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return engines(tmp_path / "rtx", RTX_FACTS)

    def test_kernels_are_kept_between_runs(
        self, folder: Path, rtx: FakeTensorRT, tmp_path: Path
    ) -> None:
        with TensorRTBackend(folder) as backend:
            assert backend.provider == "TensorRT-RTX 1.7.1 (Fake GPU)"
        cache = tmp_path / "cache" / "msct" / "tensorrt-rtx"
        stored = sorted(cache.iterdir())
        digests = [hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in ENGINE_FILES]
        assert [p.name for p in stored] == sorted(f"{d[:32]}-8.6.kernels" for d in digests)
        assert cache.stat().st_mode & 0o777 == 0o700
        contents = {p.read_bytes() for p in stored}
        with TensorRTBackend(folder) as backend:
            backend.encode(frames(2))
        assert set(rtx.kernel_caches) == contents
        assert {p.read_bytes() for p in cache.iterdir()} != contents  # grown, and written again

    def test_a_damaged_cache_is_replaced(
        self, folder: Path, rtx: FakeTensorRT, tmp_path: Path
    ) -> None:
        TensorRTBackend(folder).close()
        cache = tmp_path / "cache" / "msct" / "tensorrt-rtx"
        for path in cache.iterdir():
            path.write_bytes(b"x")
        TensorRTBackend(folder).close()
        assert all(p.read_bytes().startswith(b"kernels") for p in cache.iterdir())

    def test_a_cache_that_cannot_be_written_stops_nothing(
        self, folder: Path, rtx: FakeTensorRT, tmp_path: Path
    ) -> None:
        (tmp_path / "cache").write_text("a file where the folder should be")
        with TensorRTBackend(folder) as backend:
            assert backend.encode(frames(1)).shape == (1, C)

    def test_an_engine_that_cannot_be_captured_says_so(
        self, folder: Path, rtx: FakeTensorRT
    ) -> None:
        rtx.capturable = False
        with TensorRTBackend(folder) as backend:
            assert backend.provider.endswith("(Fake GPU), without CUDA graphs")
            np.testing.assert_allclose(backend.encode(frames(5))[:, 0], means(frames(5)), rtol=1e-6)
        assert "new graph" not in rtx.events


class TestWithoutALibraryOrAGpu:
    @pytest.mark.parametrize(
        ("facts", "name", "parts"),
        [
            (FACTS, "tensorrt", ["for engines of TensorRT:", "'.[tensorrt]' (on a Jetson:"]),
            (RTX_FACTS, "tensorrt_rtx", ["for engines of TensorRT-RTX:", "'.[tensorrt-rtx]',"]),
        ],
    )
    def test_the_missing_library_is_named_with_its_extra(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        facts: EngineFacts,
        name: str,
        parts: list[str],
    ) -> None:
        monkeypatch.setitem(sys.modules, name, None)
        text = refused(lambda: load_backend(engines(tmp_path, facts)), DependencyError)
        for part in (*parts, "--backend onnx"):
            assert part in text

    def test_no_gpu(
        self, original: Path, trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cuda, "device_count", lambda: 0)
        text = refused(lambda: TensorRTBackend(original), cuda.NoDeviceError)
        assert "no NVIDIA GPU or no driver here" in text
        assert "--backend onnx" in text
        assert trt.events == []

    @pytest.mark.tensorrt
    def test_the_real_tensorrt_rtx_without_a_gpu(
        self, tmp_path: Path, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its own error 35, as one line: the driver here is a fake that it does not see."""
        real = pytest.importorskip("tensorrt_rtx", reason="for engines of TensorRT-RTX:")
        if cuda.device_count() > 0:
            pytest.skip("there is a GPU here")
        install(monkeypatch, driver, FakeTensorRT(driver))
        log = engine_module._log(real)
        builder = real.Builder(log)
        network = builder.create_network(0)
        given = network.add_input("x", real.float32, (1, 4))
        output = network.add_activation(given, real.ActivationType.RELU).get_output(0)
        network.mark_output(output)
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(real.ComputeCapability.SM86, 0)
        blob = bytes(builder.build_serialized_network(network, config))

        facts = dataclasses.replace(RTX_FACTS, version=real.__version__)
        engines(tmp_path, facts)
        for name in ENGINE_FILES:
            (tmp_path / name).write_bytes(blob)
        describe(tmp_path, facts)
        text = refused(lambda: TensorRTBackend(tmp_path), DependencyError)
        assert "cudaError 35: CUDA driver version is insufficient" in text
        assert "there is no NVIDIA GPU, or its driver is missing" in text

    @pytest.mark.tensorrt
    def test_the_real_tensorrt_rtx_and_no_engine(
        self, tmp_path: Path, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = pytest.importorskip("tensorrt_rtx", reason="for engines of TensorRT-RTX:")
        install(monkeypatch, driver, FakeTensorRT(driver))
        engines(tmp_path, dataclasses.replace(RTX_FACTS, version=real.__version__))
        text = refused(lambda: TensorRTBackend(tmp_path), ModelError)
        assert "incompatible serialization version" in text
        assert "/_src" not in text


class TestChoosing:
    def test_auto_takes_the_engines(self, original: Path, trt: FakeTensorRT) -> None:
        with load_backend(original) as backend:
            assert isinstance(backend, TensorRTBackend)

    def test_auto_takes_onnx_runtime_where_there_are_none(self, tmp_path: Path) -> None:
        pytest.importorskip("onnxruntime", reason="needs ONNX Runtime (.[cpu])")
        synthetic.write_pair(tmp_path)
        with load_backend(tmp_path) as backend:
            assert isinstance(backend, OnnxBackend)
        write_manifest(tmp_path, FILES[:2], synthetic.SPEC, {"backend": "onnx"})
        with load_backend(tmp_path, threads=1) as backend:
            assert isinstance(backend, OnnxBackend)

    def test_onnx_runtime_takes_the_pair_beside_the_engines(self, original: Path) -> None:
        pytest.importorskip("onnxruntime", reason="needs ONNX Runtime (.[cpu])")
        with load_backend(original, "onnx", "cpu", 1) as backend:
            assert backend.provider == "CPUExecutionProvider"

    def test_engines_without_a_manifest_are_never_passed_over(self, folder: Path) -> None:
        (folder / "manifest.json").unlink()
        assert "cannot read" in refused(lambda: load_backend(folder), ModelError)

    def test_engines_that_cannot_run_are_no_reason_for_another_backend(
        self, original: Path, trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cuda, "device_count", lambda: 0)
        refused(lambda: load_backend(original), cuda.NoDeviceError)

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"provider": "cpu"}, "--provider cpu"),
            ({"provider": "cuda"}, "--provider cuda"),
            ({"threads": 2}, "--threads 2"),
        ],
    )
    def test_options_of_onnx_runtime_contradict_engines(
        self, original: Path, options: dict[str, Any], named: str
    ) -> None:
        text = refused(lambda: load_backend(original, **options), UsageError)
        assert f"{named} is for ONNX Runtime" in text

    def test_a_plugin_library_contradicts_onnx_runtime(self, original: Path) -> None:
        text = refused(
            lambda: load_backend(original, "onnx", plugin_library=Path("x.so")), UsageError
        )
        assert "--plugin-library x.so is for engines" in text

    def test_an_unknown_backend(self, original: Path) -> None:
        text = refused(lambda: load_backend(original, "tpu"), UsageError)
        assert "known: auto, onnx, tensorrt" in text
