# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for an NVIDIA GPU on machines without one: the driver, and TensorRT's few classes.

:class:`FakeDriver` stands for the module ``cuda.bindings.driver`` on one GPU.  Device memory is
host memory, a stream runs at once what it is given, and a captured graph is the list of what was
given meanwhile.  It refuses what CUDA refuses: a handle that was destroyed, waiting while
capturing, copies outside an allocation.  :class:`FakeTensorRT` stands for the modules ``tensorrt``
and ``tensorrt_rtx``: its engine computes a function of its inputs that a test can predict.  Both
write into one list of events, so that a test can read the order.  What they cannot show is
whether the real libraries agree: tests/gpu/test_engine.py is for that.
"""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from runtime.backends.base import FUSION_OUTPUTS
from runtime.backends.engine import Tensor

Dims = tuple[int, ...]


class Code(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class FakeDriver:
    """One GPU of compute capability 8.6; ``integrated`` makes it share the CPU's memory."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
        CU_DEVICE_ATTRIBUTE_INTEGRATED="integrated",
        CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY="map",
    )
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self, *, integrated: bool = False, capability: tuple[int, int] = (8, 6)) -> None:
        self.events: list[str] = []
        self.fail: dict[str, Code] = {}  # function -> the code of its next calls
        self.live: dict[int, str] = {}  # handle -> what it is
        self._attributes = {
            "major": capability[0],
            "minor": capability[1],
            "integrated": int(integrated),
            "map": 1,
        }
        self._memory: dict[int, Any] = {}  # address -> ctypes array
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._recording: list[Callable[[], None]] | None = None
        self._broken_capture = False
        self._next = 1000
        self.retained = 0

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not name.startswith("cu"):
            return value

        def call(*arguments: Any) -> Any:
            if name in self.fail:
                return (self.fail[name],)
            return value(*arguments)

        return call

    def enqueue(self, what: str, work: Callable[[], None]) -> None:
        """What a kernel launch or a copy does: run, or be recorded."""
        if self._recording is not None:
            self._recording.append(work)
            self.events.append(f"record {what}")
        else:
            self.events.append(what)
            work()

    @property
    def capturing(self) -> bool:
        return self._recording is not None

    def _new(self, kind: str) -> int:
        self._next += 1
        self.live[self._next] = kind
        self.events.append(f"new {kind}")
        return self._next

    def _free(self, handle: int, kind: str) -> tuple[Code]:
        self._graphs.pop(handle, None)
        if self.live.pop(int(handle), None) != kind:
            return (Code.CUDA_ERROR_INVALID_HANDLE,)
        self.events.append(f"free {kind}")
        return (Code.CUDA_SUCCESS,)

    # Device and context

    def cuInit(self, flags: int) -> tuple[Code]:
        return (Code.CUDA_SUCCESS,)

    def cuDeviceGet(self, index: int) -> tuple[Code, int]:
        return (Code.CUDA_SUCCESS, index)

    def cuDeviceGetName(self, size: int, device: int) -> tuple[Code, bytes]:
        return (Code.CUDA_SUCCESS, b"Fake GPU".ljust(size, b"\0"))

    def cuDeviceGetAttribute(self, attribute: str, device: int) -> tuple[Code, int]:
        return (Code.CUDA_SUCCESS, self._attributes[attribute])

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Code, int]:
        return (Code.CUDA_SUCCESS, self._new("primary context"))

    def cuDevicePrimaryCtxRelease(self, device: int) -> tuple[Code]:
        context = next(h for h, kind in self.live.items() if kind == "primary context")
        return self._free(context, "primary context")

    def cuCtxSetCurrent(self, context: int) -> tuple[Code]:
        known = self.live.get(context) == "primary context"
        return (Code.CUDA_SUCCESS if known else Code.CUDA_ERROR_INVALID_HANDLE,)

    def cuMemGetInfo(self) -> tuple[Code, int, int]:
        return (Code.CUDA_SUCCESS, 1 << 30, 1 << 31)

    # Memory

    def _allocate(self, kind: str, nbytes: int) -> tuple[Code, int]:
        block = (ctypes.c_uint8 * nbytes)(*([0xA5] * min(nbytes, 64)))  # not zero, as on a GPU
        address = ctypes.addressof(block)
        self._memory[address] = block
        self.live[address] = kind
        self.events.append(f"new {kind}")
        return (Code.CUDA_SUCCESS, address)

    def cuMemAlloc(self, nbytes: int) -> tuple[Code, int]:
        return self._allocate("device memory", nbytes)

    def cuMemHostAlloc(self, nbytes: int, flags: int) -> tuple[Code, int]:
        return self._allocate("mapped memory" if flags & 2 else "pinned memory", nbytes)

    def cuMemHostGetDevicePointer(self, address: int, flags: int) -> tuple[Code, int]:
        known = self.live.get(address) == "mapped memory"
        return (Code.CUDA_SUCCESS if known else Code.CUDA_ERROR_INVALID_VALUE, address)

    def cuMemFree(self, address: int) -> tuple[Code]:
        return self._free_memory(address, ("device memory",))

    def cuMemFreeHost(self, address: int) -> tuple[Code]:
        return self._free_memory(address, ("pinned memory", "mapped memory"))

    def _free_memory(self, address: int, kinds: tuple[str, ...]) -> tuple[Code]:
        kind = self.live.get(address, "")
        if kind not in kinds:
            return (Code.CUDA_ERROR_INVALID_VALUE,)
        del self._memory[address]
        return self._free(address, kind)

    def _copy(self, what: str, target: int, source: int, nbytes: int, stream: int) -> tuple[Code]:
        for address in (target, source):
            if address not in self._memory or len(self._memory[address]) < nbytes:
                return (Code.CUDA_ERROR_INVALID_VALUE,)
        if self.live.get(stream) != "stream":
            return (Code.CUDA_ERROR_INVALID_HANDLE,)
        self.enqueue(what, lambda: ctypes.memmove(target, source, nbytes) and None)
        return (Code.CUDA_SUCCESS,)

    def cuMemcpyHtoDAsync(self, to: int, source: int, nbytes: int, stream: int) -> tuple[Code]:
        return self._copy("upload", to, source, nbytes, stream)

    def cuMemcpyDtoHAsync(self, to: int, source: int, nbytes: int, stream: int) -> tuple[Code]:
        return self._copy("download", to, source, nbytes, stream)

    # Streams, events, graphs

    def cuStreamCreate(self, flags: int) -> tuple[Code, int]:
        return (Code.CUDA_SUCCESS, self._new("stream"))

    def cuStreamDestroy(self, stream: int) -> tuple[Code]:
        return self._free(stream, "stream")

    def cuStreamSynchronize(self, stream: int) -> tuple[Code]:
        if self.live.get(stream) != "stream":
            return (Code.CUDA_ERROR_INVALID_HANDLE,)
        if self.capturing:
            self._broken_capture = True
            return (Code.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        self.events.append("wait")
        return (Code.CUDA_SUCCESS,)

    def cuStreamBeginCapture(self, stream: int, mode: int) -> tuple[Code]:
        assert self._recording is None
        self._recording, self._broken_capture = [], False
        return (Code.CUDA_SUCCESS,)

    def cuStreamEndCapture(self, stream: int) -> tuple[Code, int]:
        assert self._recording is not None
        work, self._recording = self._recording, None
        if self._broken_capture:
            return (Code.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, 0)
        graph = self._new("recording")
        self._graphs[graph] = work
        return (Code.CUDA_SUCCESS, graph)

    def cuGraphInstantiate(self, graph: int, flags: int) -> tuple[Code, int]:
        executable = self._new("graph")
        self._graphs[executable] = list(self._graphs[graph])
        return (Code.CUDA_SUCCESS, executable)

    def cuGraphDestroy(self, graph: int) -> tuple[Code]:
        return self._free(graph, "recording")

    def cuGraphExecDestroy(self, graph: int) -> tuple[Code]:
        return self._free(graph, "graph")

    def cuGraphLaunch(self, graph: int, stream: int) -> tuple[Code]:
        if self.live.get(graph) != "graph" or self.live.get(stream) != "stream":
            return (Code.CUDA_ERROR_INVALID_HANDLE,)
        self.events.append("launch")
        for work in self._graphs[graph]:
            work()
        return (Code.CUDA_SUCCESS,)

    def cuEventCreate(self, flags: int) -> tuple[Code, int]:
        return (Code.CUDA_SUCCESS, self._new("event"))

    def cuEventRecord(self, event: int, stream: int) -> tuple[Code]:
        self.enqueue("record event", lambda: None)
        return (Code.CUDA_SUCCESS,)

    def cuEventSynchronize(self, event: int) -> tuple[Code]:
        return (Code.CUDA_SUCCESS,)

    def cuEventElapsedTime(self, start: int, end: int) -> tuple[Code, float]:
        return (Code.CUDA_SUCCESS, 1.5)

    def cuEventDestroy(self, event: int) -> tuple[Code]:
        return self._free(event, "event")


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class _Logger:
    """``ILogger``: to be derived from."""

    Severity = Severity

    def __init__(self) -> None:
        pass


class _DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    UINT8 = 2


class _Mode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class _Format(enum.Enum):
    LINEAR = 0
    HWC = 1


class _Strategy(enum.Enum):
    STATIC = 0
    USER_MANAGED = 2


class _Specialization(enum.Enum):
    LAZY = 0
    EAGER = 1


class FakeTensorRT:
    """Version 10.13 of a library whose engines are the JSON that :meth:`engine` writes."""

    ILogger = _Logger
    DataType = _DataType
    TensorIOMode = _Mode
    TensorFormat = _Format
    ExecutionContextAllocationStrategy = _Strategy
    DynamicShapesKernelSpecializationStrategy = _Specialization

    def __init__(
        self, driver: FakeDriver, version: str = "10.13.3.9", *, rtx: bool = False
    ) -> None:
        self.__version__ = version
        self.driver, self.events, self.rtx = driver, driver.events, rtx
        self.capturable = True
        self.synchronizes = False  # a plugin that waits in its enqueue
        self.says: str | None = None  # the next failing call's error message
        self.refuses: str | None = None  # the method of a context that answers False
        self.libraries: list[str] = []
        self.loads_libraries = True
        self.creators: set[str] = set()  # registered before
        self.kernel_caches: list[bytes] = []  # contents given to deserialize
        self.contexts = 0

    def Runtime(self, log: Any) -> _Runtime:
        self.log = log
        return _Runtime(self)

    def complain(self, message: str) -> None:
        self.log.log(Severity.WARNING, "a warning is no reason")
        self.log.log(Severity.ERROR, message)
        self.log.log(Severity.ERROR, "and what followed from it")

    @staticmethod
    def engine(
        tensors: tuple[Tensor, ...], profile: Mapping[str, Mapping[str, list[int]]], **changes: Any
    ) -> bytes:
        """Bytes of an engine with these inputs and outputs."""
        described = [
            {
                "name": t.name,
                "dtype": "UINT8" if t.dtype == np.uint8 else "FLOAT",
                "mode": "INPUT" if t.is_input else "OUTPUT",
                "dims": list(t.dims),
            }
            for t in tensors
        ]
        return json.dumps({"tensors": described, "profile": profile, **changes}).encode()


class _Tracked:
    """Writes when it goes, as the real object frees its memory then."""

    def __init__(self, trt: FakeTensorRT, kind: str) -> None:
        self._trt, self._kind = trt, kind
        trt.events.append(f"new {kind}")

    def __del__(self) -> None:
        self._trt.events.append(f"free {self._kind}")


class _Runtime(_Tracked):
    def __init__(self, trt: FakeTensorRT) -> None:
        super().__init__(trt, "runtime")

    def get_plugin_registry(self) -> Any:
        trt = self._trt

        def load_library(path: str) -> Any:
            if not trt.loads_libraries:
                trt.complain("Cannot register the library. In loadLibrary at registry.cpp:12")
                return None
            trt.libraries.append(path)
            return object()

        def get_creator(name: str, version: str, namespace: str) -> Any:
            assert (version, namespace) == ("1", "msct")
            return name if name in trt.creators else None

        return SimpleNamespace(load_library=load_library, get_creator=get_creator)

    def deserialize_cuda_engine(self, blob: bytes) -> _FakeEngine | None:
        if self._trt.says is not None:
            self._trt.complain(self._trt.says)
            return None
        return _FakeEngine(self._trt, json.loads(blob))


class _FakeEngine(_Tracked):
    def __init__(self, trt: FakeTensorRT, description: dict[str, Any]) -> None:
        super().__init__(trt, "engine")
        self.described = {t["name"]: t for t in description["tensors"]}
        self._profile = description["profile"]
        self.format = _Format[description.get("format", "LINEAR")]
        self.device_memory_size_v2 = description.get("arena", 1024)

    @property
    def num_io_tensors(self) -> int:
        return len(self.described)

    def get_tensor_name(self, index: int) -> str:
        return list(self.described)[index]

    def get_tensor_mode(self, name: str) -> _Mode:
        return _Mode[self.described[name]["mode"]]

    def get_tensor_dtype(self, name: str) -> _DataType:
        return _DataType[self.described[name]["dtype"]]

    def get_tensor_format(self, name: str) -> _Format:
        return self.format

    def get_tensor_shape(self, name: str) -> Dims:
        return tuple(-1 if isinstance(d, str) else d for d in self.described[name]["dims"])

    def get_tensor_profile_shape(self, name: str, index: int) -> list[list[int]]:
        assert index == 0
        return [self._profile[name][limit] for limit in ("min", "opt", "max")]

    def create_runtime_config(self) -> _Config:
        return _Config(self._trt)

    def create_execution_context(self, how: Any) -> _Context:
        if self._trt.rtx:
            assert isinstance(how, _Config)
            assert how.dynamic_shapes_kernel_specialization_strategy is _Specialization.EAGER
            how = how.strategy
        assert how is _Strategy.USER_MANAGED
        return _Context(self._trt, self)


class _Config:
    """``IRuntimeConfig`` of TensorRT-RTX."""

    def __init__(self, trt: FakeTensorRT) -> None:
        assert trt.rtx, "TensorRT has no such thing before 11"
        self._trt = trt
        self.strategy = _Strategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy = _Specialization.LAZY

    def set_execution_context_allocation_strategy(self, strategy: _Strategy) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> Any:
        trt = self._trt

        def deserialize(content: bytes) -> bool:
            trt.kernel_caches.append(content)
            return content.startswith(b"kernels")

        def serialize() -> bytes:
            return b"kernels of %d contexts" % trt.contexts

        return SimpleNamespace(deserialize=deserialize, serialize=serialize)

    def set_runtime_cache(self, cache: Any) -> bool:
        return True


class _Context(_Tracked):
    """Computes: a row's mean of the inputs' bytes or numbers, repeated in every output."""

    def __init__(self, trt: FakeTensorRT, engine: _FakeEngine) -> None:
        super().__init__(trt, "context")
        trt.contexts += 1
        self._engine = engine
        self._shapes: dict[str, Dims] = {}
        self._addresses: dict[str, int] = {}
        self._memory = 0
        if trt.rtx:
            self.is_stream_capturable = lambda stream: trt.capturable

    def _does(self, name: str) -> bool:
        if self._trt.refuses == name:
            self._trt.complain("it will not")
            return False
        return True

    def set_device_memory(self, address: int, nbytes: int) -> None:
        assert self._trt.driver.live[address] == "device memory"
        assert nbytes >= self._engine.device_memory_size_v2
        self._memory = address

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert index == 0
        return self._does("profile")

    def set_input_shape(self, name: str, shape: Dims) -> bool:
        low, _, high = self._engine.get_tensor_profile_shape(name, 0)
        assert all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)), shape
        self._shapes[name] = tuple(shape)
        return self._does("shape")

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return self._does("address")

    def infer_shapes(self) -> list[str]:
        inputs = [n for n, t in self._engine.described.items() if t["mode"] == "INPUT"]
        return [n for n in inputs if n not in self._shapes]

    def get_tensor_shape(self, name: str) -> Dims:
        sizes: dict[str, int] = {}
        for known, shape in self._shapes.items():
            dims = self._engine.described[known]["dims"]
            sizes.update({d: s for d, s in zip(dims, shape, strict=True) if isinstance(d, str)})
        dims = self._engine.described[name]["dims"]
        return tuple(sizes[d] if isinstance(d, str) else d for d in dims)

    def execute_async_v3(self, stream: int) -> bool:
        trt = self._trt
        assert self._memory, "no device memory was set"
        assert set(self._addresses) == set(self._engine.described)
        if not self._does("execute"):
            return False
        if trt.synchronizes:
            trt.driver.cuStreamSynchronize(stream)
        # frozen as a capture freezes them
        shapes = {n: self.get_tensor_shape(n) for n in self._engine.described}
        addresses = dict(self._addresses)
        trt.driver.enqueue("infer", lambda: self._compute(shapes, addresses))
        return True

    def _compute(self, shapes: dict[str, Dims], addresses: dict[str, int]) -> None:
        rows: Any = 0.0
        for name, t in self._engine.described.items():
            dtype = np.dtype(np.uint8 if t["dtype"] == "UINT8" else np.float32)
            array = _at(addresses[name], shapes[name], dtype)
            if t["mode"] == "INPUT":
                rows = rows + array.reshape(len(array), -1).mean(-1, dtype=np.float64)
            else:
                scale = 1 + (FUSION_OUTPUTS.index(name) if name in FUSION_OUTPUTS else 0)
                array[...] = (scale * rows).reshape(-1, *[1] * (array.ndim - 1))


def _at(address: int, shape: Dims, dtype: np.dtype[Any]) -> Any:
    nbytes = int(np.prod(shape)) * dtype.itemsize
    block = (ctypes.c_uint8 * nbytes).from_address(address)
    return np.ctypeslib.as_array(block).view(dtype).reshape(shape)


def write_library(path: Path) -> Path:
    path.write_bytes(b"a plugin library")
    return path
