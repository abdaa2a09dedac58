# SPDX-License-Identifier: Apache-2.0
"""The one module that touches CUDA: memory, a stream, events and graphs of one GPU.

It speaks the driver API through NVIDIA's ``cuda-bindings`` (docs/adr/0005-cuda-access.md): the
driver that is installed decides, and no CUDA runtime library has to match it.  The context is the
device's primary one, which TensorRT uses as well.  Importing this module needs neither CUDA nor
the bindings; they are loaded by the first :class:`Device`.

Everything is released by ``close()``, in the reverse order of its making, and never by the
garbage collector.  Closing twice is fine.  Addresses are plain integers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.closing import Closing
from runtime.errors import DependencyError, UserError
from runtime.optional import first_of

_MODULES = ("cuda.bindings.driver", "cuda.cuda")  # since 12.6.1; before
_OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"
_ASK_BINDINGS = (
    "pip install '.[cuda]' (with \"cuda-bindings<13\" on JetPack 6 and other CUDA 12 drivers)"
)
_ASK_DRIVER = (
    "check the driver with nvidia-smi (in a container: start it with the GPUs, e.g. --gpus all), "
    "or run the model on the CPU with --backend onnx"
)


class CudaError(UserError):
    """A CUDA call failed."""


class OutOfMemoryError(CudaError):
    """The GPU has too little free memory."""


class NoDeviceError(DependencyError):
    """There is no NVIDIA GPU here, or no driver for it."""


def device_count() -> int:
    """How many GPUs the driver shows; 0 without a driver.

    Asks the driver itself, so that the answer does not depend on the bindings being installed.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


class Held(Closing):
    """Something to be released once; subclasses say how."""

    _closed = False

    def close(self) -> None:
        """Release it."""
        if not self._closed:
            self._closed = True
            self._release()

    def _release(self) -> None:
        raise NotImplementedError


class Device(Held):
    """One GPU and its primary context, current in the thread that made it.

    Another thread calls :meth:`make_current` first.  Raises :class:`NoDeviceError` without a GPU,
    :class:`~runtime.errors.DependencyError` without the bindings.
    """

    def __init__(self, index: int = 0) -> None:
        found = device_count()
        if index >= found:
            raise NoDeviceError(
                f"no NVIDIA GPU {index} here ({found} found by the driver); {_ASK_DRIVER}"
                if found
                else f"no NVIDIA GPU or no driver here; {_ASK_DRIVER}"
            )
        self._driver = _bindings()
        self._failed = False
        self.call("cuInit", 0)
        self._device = self.call("cuDeviceGet", index)
        name: bytes = self.call("cuDeviceGetName", 256, self._device)
        self.name = name.split(b"\0")[0].decode()  # e.g. NVIDIA H100 80GB HBM3
        major, minor = (self._attribute(f"COMPUTE_CAPABILITY_{n}") for n in ("MAJOR", "MINOR"))
        self.compute_capability = f"{major}.{minor}"  # e.g. 8.7
        # Jetson: the CPU and the GPU share their memory, so nothing need be copied
        self.zero_copy = bool(
            self._attribute("INTEGRATED") and self._attribute("CAN_MAP_HOST_MEMORY")
        )
        self._context = self.call("cuDevicePrimaryCtxRetain", self._device)
        try:
            self.make_current()
        except BaseException:
            self.close()
            raise

    def make_current(self) -> None:
        """Let the calling thread use this device."""
        self.call("cuCtxSetCurrent", self._context)

    def free_bytes(self) -> int:
        """Memory that nobody has taken."""
        free, _ = self.call("cuMemGetInfo")
        return int(free)

    def call(self, name: str, *arguments: Any) -> Any:
        """One function of the driver; its result without the error code (None, one or a tuple).

        Raises :class:`CudaError`.
        """
        try:
            code, *values = getattr(self._driver, name)(*arguments)
        except (AttributeError, RuntimeError) as err:  # the driver is older than the bindings
            self._failed = True
            raise CudaError(
                f"this NVIDIA driver has no {name} as cuda-bindings calls it ({_line(err)}); "
                'update the driver, or pip install "cuda-bindings<13" on a CUDA 12 driver'
            ) from err
        if int(code) != 0:
            self._failed = True
            raise self._error(name, code)
        return None if not values else values[0] if len(values) == 1 else tuple(values)

    def release(self, name: str, *arguments: Any) -> None:
        """Like :meth:`call`, for what frees something.

        After a failure (most of CUDA's are final for the process) a second one says nothing new,
        and would hide the first: it is not raised.
        """
        failed = self._failed
        try:
            self.call(name, *arguments)
        except CudaError:
            if not failed:
                raise

    def enum(self, kind: str, name: str) -> Any:
        """A member of one of the driver's enumerations."""
        return getattr(getattr(self._driver, kind), name)

    def _attribute(self, name: str) -> int:
        attribute = self.enum("CUdevice_attribute", f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self.call("cuDeviceGetAttribute", attribute, self._device))

    def _error(self, name: str, code: Any) -> CudaError:
        label = getattr(code, "name", str(code))
        if label == _OUT_OF_MEMORY:
            return OutOfMemoryError(
                f"the GPU has too little free memory ({name}: {label}); stop what else uses it "
                "(nvidia-smi), or build the engine with a smaller --max-batch or --window"
            )
        return CudaError(
            f"CUDA call {name} failed ({label}); start again, and if it comes back look at the "
            "driver's messages (dmesg | grep -i -e nvrm -e xid) or use --backend onnx"
        )

    def _release(self) -> None:
        self.release("cuDevicePrimaryCtxRelease", self._device)


class DeviceMemory(Held):
    """Bytes on the GPU, aligned to 256."""

    def __init__(self, device: Device, nbytes: int) -> None:
        assert nbytes > 0, nbytes
        self.nbytes = nbytes
        self._device = device
        self._pointer = device.call("cuMemAlloc", nbytes)
        self.address = int(self._pointer)

    def _release(self) -> None:
        self._device.release("cuMemFree", self._pointer)


class Staging(Held):
    """Host memory and the GPU's view of it: ``host`` to fill and to read, ``address`` to compute.

    The host's part is page-locked, so that copies run beside other work and can be captured in a
    graph.  On a device that shares its memory with the CPU both are the same bytes, and
    :meth:`upload` and :meth:`download` have nothing to do.
    """

    def __init__(self, device: Device, nbytes: int) -> None:
        assert nbytes > 0, nbytes
        self.nbytes = nbytes
        self._device = device
        portable, mapped = 1, 2  # CU_MEMHOSTALLOC_PORTABLE, CU_MEMHOSTALLOC_DEVICEMAP
        flags = portable | mapped if device.zero_copy else portable
        self._pinned = int(device.call("cuMemHostAlloc", nbytes, flags))
        self._memory: DeviceMemory | None = None
        try:
            if device.zero_copy:
                self.address = int(device.call("cuMemHostGetDevicePointer", self._pinned, 0))
            else:
                self._memory = DeviceMemory(device, nbytes)
                self.address = self._memory.address
        except BaseException:
            self.close()
            raise
        view = (ctypes.c_uint8 * nbytes).from_address(self._pinned)
        self._host: NDArray[np.uint8] | None = np.ctypeslib.as_array(view)

    def host(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The first bytes as an array; good until :meth:`close`."""
        assert self._host is not None, "the memory is released"
        nbytes = int(np.prod(shape)) * dtype.itemsize
        assert nbytes <= self.nbytes, (shape, dtype, self.nbytes)
        return self._host[:nbytes].view(dtype).reshape(shape)

    def upload(self, stream: Stream, nbytes: int) -> None:
        """Queue the copy of the first bytes to the GPU."""
        if self._memory is not None:
            self._device.call("cuMemcpyHtoDAsync", self.address, self._pinned, nbytes, stream.raw)

    def download(self, stream: Stream, nbytes: int) -> None:
        """Queue the copy of the first bytes to the host."""
        if self._memory is not None:
            self._device.call("cuMemcpyDtoHAsync", self._pinned, self.address, nbytes, stream.raw)

    def _release(self) -> None:
        self._host = None
        try:
            if self._memory is not None:
                self._memory.close()
        finally:
            self._device.release("cuMemFreeHost", self._pinned)


class Stream(Held):
    """A queue of work that does not wait for the default stream."""

    def __init__(self, device: Device) -> None:
        self._device = device
        flag = device.enum("CUstream_flags", "CU_STREAM_NON_BLOCKING")
        self.raw = device.call("cuStreamCreate", int(flag))
        self.handle = int(self.raw)  # what TensorRT takes

    def synchronize(self) -> None:
        """Wait until everything queued is done; an error of any of it is raised here."""
        self._device.call("cuStreamSynchronize", self.raw)

    def capture(self, work: Callable[[], None]) -> Graph:
        """What ``work`` queues on this stream, as a graph; nothing of it runs now.

        Only this thread's calls are part of the capture.  The graph keeps the shapes and addresses
        of now.
        """
        device = self._device
        mode = device.enum("CUstreamCaptureMode", "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL")
        device.call("cuStreamBeginCapture", self.raw, mode)
        try:
            work()
        except BaseException:
            self._abandon_capture()
            raise
        recorded = device.call("cuStreamEndCapture", self.raw)
        try:
            return Graph(device, device.call("cuGraphInstantiate", recorded, 0))
        finally:
            device.release("cuGraphDestroy", recorded)

    def _abandon_capture(self) -> None:
        """Leave the capture mode; what was recorded is of no use, nor is a second error."""
        try:
            recorded = self._device.call("cuStreamEndCapture", self.raw)
        except CudaError:
            return  # a broken capture has no graph to destroy
        if int(recorded) != 0:
            self._device.release("cuGraphDestroy", recorded)

    def _release(self) -> None:
        self._device.release("cuStreamDestroy", self.raw)


class Graph(Held):
    """Captured work that is replayed by one call."""

    def __init__(self, device: Device, executable: Any) -> None:
        self._device = device
        self._executable = executable

    def launch(self, stream: Stream) -> None:
        """Queue the whole graph."""
        assert not self._closed, "the graph is released"
        self._device.call("cuGraphLaunch", self._executable, stream.raw)

    def _release(self) -> None:
        self._device.release("cuGraphExecDestroy", self._executable)


class Event(Held):
    """A point in a stream, for timing on the GPU's own clock."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._raw = device.call("cuEventCreate", 0)

    def record(self, stream: Stream) -> None:
        """Mark the point after everything queued so far."""
        self._device.call("cuEventRecord", self._raw, stream.raw)

    def milliseconds_since(self, earlier: Event) -> float:
        """GPU time between two recorded events; waits for this one."""
        self._device.call("cuEventSynchronize", self._raw)
        return float(self._device.call("cuEventElapsedTime", earlier._raw, self._raw))

    def _release(self) -> None:
        self._device.release("cuEventDestroy", self._raw)


def _bindings() -> Any:
    """The driver API of whichever version of the bindings is installed."""
    return first_of(_MODULES, "to use the GPU", remedy=_ASK_BINDINGS)


def _line(err: BaseException) -> str:
    return " ".join(str(err).split()) or type(err).__name__
