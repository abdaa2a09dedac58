# SPDX-License-Identifier: Apache-2.0
"""CUDA from Python: without a GPU on a fake driver, with one on the real driver."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime.backends import cuda
from runtime.errors import DependencyError
from tests.runtime.fake_gpu import Code, FakeDriver

BYTES = np.dtype(np.uint8)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    use(monkeypatch, fake)
    return fake


def use(monkeypatch: pytest.MonkeyPatch, fake: FakeDriver) -> None:
    monkeypatch.setattr(cuda, "device_count", lambda: 1)
    monkeypatch.setattr(cuda, "_bindings", lambda: fake)


class TestDevice:
    def test_it_knows_its_name_and_capability(self, driver: FakeDriver) -> None:
        with cuda.Device() as device:
            assert device.name == "Fake GPU"
            assert device.compute_capability == "8.6"
            assert not device.zero_copy
            assert device.free_bytes() == 1 << 30
        assert driver.live == {}

    def test_closing_twice_is_fine(self, driver: FakeDriver) -> None:
        device = cuda.Device()
        device.close()
        device.close()
        assert driver.events == ["new primary context", "free primary context"]

    def test_a_context_that_cannot_be_made_current_is_given_back(self, driver: FakeDriver) -> None:
        driver.fail["cuCtxSetCurrent"] = Code.CUDA_ERROR_INVALID_VALUE
        with pytest.raises(cuda.CudaError, match="cuCtxSetCurrent failed"):
            cuda.Device()
        assert driver.live == {}

    def test_another_index(self, driver: FakeDriver) -> None:
        with pytest.raises(cuda.NoDeviceError, match=r"no NVIDIA GPU 3 here \(1 found"):
            cuda.Device(3)


class TestWithoutCuda:
    def test_without_a_driver_there_are_no_devices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> None:
            raise OSError(f"{name}: cannot open shared object file")

        monkeypatch.setattr(cuda.ctypes, "CDLL", missing)
        assert cuda.device_count() == 0
        with pytest.raises(cuda.NoDeviceError, match=r"no NVIDIA GPU or no driver.*nvidia-smi"):
            cuda.Device()

    def test_a_driver_without_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        no_device = SimpleNamespace(cuInit=lambda flags: 100)
        monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: no_device)
        assert cuda.device_count() == 0

    def test_missing_bindings_name_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("cuda", "cuda.bindings", "cuda.bindings.driver", "cuda.cuda"):
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setattr(cuda, "device_count", lambda: 1)
        with pytest.raises(DependencyError, match=r"pip install '\.\[cuda\]'"):
            cuda.Device()

    @pytest.mark.parametrize("layout", ["cuda.bindings.driver", "cuda.cuda"])
    def test_both_layouts_of_the_bindings(
        self, monkeypatch: pytest.MonkeyPatch, layout: str
    ) -> None:
        """``cuda.cuda`` is what cuda-python called the driver before 12.6.1."""
        for name in ("cuda.bindings", "cuda.bindings.driver", "cuda.cuda"):
            monkeypatch.setitem(sys.modules, name, None)
        for name in ("cuda", "cuda.bindings", layout):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        assert cuda._bindings() is sys.modules[layout]

    def test_a_function_that_the_driver_lacks(self, driver: FakeDriver) -> None:
        """The bindings of CUDA 13 on a driver of CUDA 12 raise RuntimeError on the call."""

        def missing(flags: int) -> Any:
            raise RuntimeError('Function "cuEventCreate" not found')

        with cuda.Device() as device:
            driver.cuEventCreate = missing  # type: ignore[method-assign]
            with pytest.raises(cuda.CudaError, match=r'pip install "cuda-bindings<13"'):
                cuda.Event(device)


class TestMemory:
    def test_what_goes_up_comes_down(self, driver: FakeDriver) -> None:
        with (
            cuda.Device() as device,
            cuda.Stream(device) as stream,
            cuda.Staging(device, 64) as staging,
        ):
            staging.host((4, 4), np.dtype(np.float32))[...] = 3
            staging.upload(stream, 64)
            staging.host((64,), BYTES)[...] = 0
            staging.download(stream, 64)
            assert (staging.host((16,), np.dtype(np.float32)) == 3).all()
        assert driver.live == {}
        assert driver.events == [
            "new primary context",
            "new stream",
            "new pinned memory",
            "new device memory",
            "upload",
            "download",
            "free device memory",
            "free pinned memory",
            "free stream",
            "free primary context",
        ]

    def test_a_shared_memory_is_never_copied(self, monkeypatch: pytest.MonkeyPatch) -> None:
        driver = FakeDriver(integrated=True)
        use(monkeypatch, driver)
        with (
            cuda.Device() as device,
            cuda.Stream(device) as stream,
            cuda.Staging(device, 64) as staging,
        ):
            assert device.zero_copy
            staging.upload(stream, 64)
            staging.download(stream, 64)
            assert staging.host((64,), BYTES).ctypes.data == staging.address
        assert driver.live == {}
        assert not {"upload", "download", "new device memory"} & set(driver.events)

    def test_a_full_gpu_says_what_to_do_and_leaves_nothing(self, driver: FakeDriver) -> None:
        with cuda.Device() as device:
            driver.fail["cuMemAlloc"] = Code.CUDA_ERROR_OUT_OF_MEMORY
            with pytest.raises(cuda.OutOfMemoryError, match="smaller --max-batch"):
                cuda.Staging(device, 64)
        assert driver.live == {}

    def test_more_than_there_is(self, driver: FakeDriver) -> None:
        with cuda.Device() as device, cuda.Staging(device, 8) as staging:
            with pytest.raises(AssertionError):
                staging.host((3,), np.dtype(np.float32))
            staging.close()
            with pytest.raises(AssertionError, match="released"):
                staging.host((1,), BYTES)


class TestGraphs:
    def test_a_capture_runs_nothing_and_every_launch_all_of_it(self, driver: FakeDriver) -> None:
        ran: list[str] = []

        def work() -> None:
            driver.enqueue("kernel", lambda: ran.append("kernel"))

        with cuda.Device() as device, cuda.Stream(device) as stream:
            with stream.capture(work) as graph:
                assert ran == []
                graph.launch(stream)
                graph.launch(stream)
            assert ran == ["kernel", "kernel"]
            with pytest.raises(AssertionError, match="released"):
                graph.launch(stream)
        assert driver.live == {}

    def test_an_error_in_between_ends_the_capture(self, driver: FakeDriver) -> None:
        def work() -> None:
            raise KeyError("of the work itself")

        with cuda.Device() as device, cuda.Stream(device) as stream:
            with pytest.raises(KeyError):
                stream.capture(work)
            assert not driver.capturing
            stream.synchronize()
        assert driver.live == {}

    def test_waiting_cannot_be_captured(self, driver: FakeDriver) -> None:
        with cuda.Device() as device, cuda.Stream(device) as stream:
            with pytest.raises(cuda.CudaError, match="STREAM_CAPTURE_UNSUPPORTED"):
                stream.capture(stream.synchronize)
            assert not driver.capturing
        assert driver.live == {}

    def test_a_graph_that_cannot_be_instantiated(self, driver: FakeDriver) -> None:
        driver.fail["cuGraphInstantiate"] = Code.CUDA_ERROR_OUT_OF_MEMORY
        with (
            cuda.Device() as device,
            cuda.Stream(device) as stream,
            pytest.raises(cuda.OutOfMemoryError),
        ):
            stream.capture(lambda: None)
        assert driver.live == {}


class TestErrors:
    def test_after_a_failure_releasing_does_not_hide_it(self, driver: FakeDriver) -> None:
        def lose_the_gpu() -> None:
            with cuda.Device() as device, cuda.Stream(device) as stream:
                for name in ("cuStreamSynchronize", "cuStreamDestroy", "cuDevicePrimaryCtxRelease"):
                    driver.fail[name] = Code.CUDA_ERROR_ILLEGAL_ADDRESS
                stream.synchronize()

        with pytest.raises(cuda.CudaError, match="cuStreamSynchronize failed"):
            lose_the_gpu()

    def test_a_release_that_fails_alone_is_told(self, driver: FakeDriver) -> None:
        with cuda.Device() as device:
            stream = cuda.Stream(device)
            driver.fail["cuStreamDestroy"] = Code.CUDA_ERROR_INVALID_HANDLE
            with pytest.raises(cuda.CudaError, match="cuStreamDestroy failed"):
                stream.close()

    def test_events_measure(self, driver: FakeDriver) -> None:
        with (
            cuda.Device() as device,
            cuda.Stream(device) as stream,
            cuda.Event(device) as start,
            cuda.Event(device) as end,
        ):
            start.record(stream)
            end.record(stream)
            assert end.milliseconds_since(start) == 1.5
        assert driver.live == {}


@pytest.mark.gpu
class TestOnAGpu:
    @pytest.fixture(autouse=True)
    def _gpu(self) -> None:
        if cuda.device_count() == 0:
            pytest.skip("no NVIDIA GPU here")
        try:
            cuda._bindings()
        except DependencyError as err:
            pytest.skip(str(err))

    def test_the_device(self) -> None:
        with cuda.Device() as device:
            major, minor = device.compute_capability.split(".")
            assert int(major) >= 7
            assert int(minor) >= 0
            assert device.name
            assert device.free_bytes() > 0

    def test_a_captured_copy_reads_what_is_there_when_it_is_launched(self) -> None:
        nbytes = 1 << 20
        with (
            cuda.Device() as device,
            cuda.Stream(device) as stream,
            cuda.Staging(device, nbytes) as staging,
        ):

            def there_and_back() -> None:
                staging.upload(stream, nbytes)
                staging.download(stream, nbytes)

            host = staging.host((nbytes,), BYTES)
            with stream.capture(there_and_back) as graph:
                for value in (1, 2):
                    host[...] = value
                    graph.launch(stream)
                    stream.synchronize()
                    assert (host == value).all()

    def test_memory_comes_back(self) -> None:
        nbytes = 256 << 20
        with cuda.Device() as device:
            before = device.free_bytes()
            with cuda.DeviceMemory(device, nbytes):
                assert device.free_bytes() <= before - nbytes
            assert device.free_bytes() > before - nbytes

    def test_events_measure_a_copy(self) -> None:
        nbytes = 64 << 20
        with (
            cuda.Device() as device,
            cuda.Stream(device) as stream,
            cuda.Staging(device, nbytes) as staging,
            cuda.Event(device) as start,
            cuda.Event(device) as end,
        ):
            start.record(stream)
            staging.upload(stream, nbytes)
            end.record(stream)
            elapsed = end.milliseconds_since(start)
            assert 0 <= elapsed < 1000
            assert elapsed > 0 or device.zero_copy
