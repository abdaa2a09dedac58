# SPDX-License-Identifier: Apache-2.0
"""One TensorRT or TensorRT-RTX engine on a GPU: its memory, its contexts, its CUDA graphs.

Page-locked staging memory and one arena for activations, all made once and sized for the largest
shapes of the profile.  Each shape gets an execution context of its own and one CUDA graph of
upload, inference and download, because what a graph captured holds only as long as its context's
shapes stay (NVIDIA's advice: a context a graph, sharing the device memory).  The least recently
used of more than :data:`MAX_SHAPES` shapes is given up.

Release order: graphs, contexts, engines, runtime, memory, stream, device.  A frame that an
exception may leave holds no object of TensorRT's in a local name: the traceback would keep it
alive beyond that order.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import re
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends import cuda
from runtime.backends.base import (
    FRAME_ENCODER_INPUTS,
    FUSION_INPUTS,
    FUSION_OUTPUTS,
    OP_DOMAIN,
    OP_VERSION,
    Phases,
    encoder_outputs,
    face_shapes,
)
from runtime.backends.kernel_cache import KernelCache
from runtime.backends.manifest import MODULES, REBUILD, TENSORRT_RTX, TITLES, EngineFacts
from runtime.errors import DependencyError, ModelError
from runtime.optional import optional
from runtime.spec import PairSpec

MAX_SHAPES = 16  # contexts and graphs kept for each engine
PLUGINS = ("MultiScaleKeyConv", "DifferentialCrossAttention")
ON_CPU = "run the pair beside it in ONNX Runtime with --backend onnx"
_NO_DRIVER = re.compile(
    r"cudaError (?:35|100)\b|CUDA initialization failure|driver version is insuf"
)
_PLACE = re.compile(r"\bIn \S+ at [^\s()]+")  # where in TensorRT's own source


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine; ``dims`` names what is dynamic."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | str, ...]
    is_input: bool

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(sizes[d] if isinstance(d, str) else d for d in self.dims)

    def nbytes(self, sizes: Mapping[str, int]) -> int:
        return int(np.prod(self.shape(sizes))) * self.dtype.itemsize


def tensors(spec: PairSpec) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What the two engines must take and give, by the spec."""
    side, c, e = spec.face.crop_px, spec.model.channels, spec.model.align_dim
    float32, uint8 = np.dtype(np.float32), np.dtype(np.uint8)
    encoder = (
        Tensor(FRAME_ENCODER_INPUTS[0], uint8, ("N", side, side, 3), is_input=True),
        *(
            Tensor(name, float32, ("N", *shape[1:]), is_input=False)
            for name, shape in zip(encoder_outputs(spec), face_shapes(spec, 0), strict=False)
        ),
    )
    widths = dict(zip(FUSION_INPUTS, (c, spec.audio.token_dim), strict=True))
    given: dict[str, tuple[int | str, ...]] = {
        "logits_av": ("B", 2),
        "logits_a": ("B", 2),
        "logits_v": ("B", 2),
        "sync": ("B", "T"),
        "align_v": ("B", "T", e),
        "align_a": ("B", "T", e),
        "embedding": ("B", 2 * c),
    }
    fusion = (
        *(Tensor(name, float32, ("B", "T", widths[name]), True) for name in FUSION_INPUTS),
        *(Tensor(name, float32, given[name], False) for name in FUSION_OUTPUTS),
    )
    return encoder, fusion


class EngineRuntime(cuda.Held):
    """TensorRT's runtime with the plugins of one library; turns bytes into engines."""

    def __init__(self, trt: Any, folder: Path, facts: EngineFacts, library: Path | None) -> None:
        self.trt, self.facts, self.log = trt, facts, _log(trt)
        self._folder = folder
        self.log.messages.clear()
        self._raw = trt.Runtime(self.log)
        if self._raw is None:
            raise DependencyError(
                f"{TITLES[facts.flavour]} does not start ({self.log.reason()}); {ON_CPU}"
            )
        try:
            if library is not None:
                self._load_plugins(library)
        except BaseException:
            self.close()
            raise

    def deserialize(self, path: Path, blob: bytes) -> Any:
        """The engine in ``blob``, which was hashed before."""
        self.log.messages.clear()
        engine = self._raw.deserialize_cuda_engine(blob)
        if engine is not None:
            return engine
        reason, title = self.log.reason(), TITLES[self.facts.flavour]
        if _NO_DRIVER.search(reason):
            raise DependencyError(
                f"{title} cannot use the GPU ({reason}): there is no NVIDIA GPU, or its driver is "
                f"missing or too old for this {title}; {ON_CPU}"
            )
        raise ModelError(
            f"{title} {self.trt.__version__} cannot load {path} ({reason}); build it again: "
            f"{rebuild_command(self._folder, self.facts)}"
        )

    def _load_plugins(self, library: Path) -> None:
        """Into the registry of this runtime, which passes away with it.

        ``load_library`` gives nothing where a plugin of that name is already registered (by an
        exporter in the same process, say): then all of them have to be.
        """
        registry = self._raw.get_plugin_registry()
        self.log.messages.clear()
        if registry.load_library(str(library)) is not None:
            return
        reason = self.log.reason()
        if all(registry.get_creator(name, str(OP_VERSION), OP_DOMAIN) for name in PLUGINS):
            return
        raise DependencyError(
            f"{TITLES[self.facts.flavour]} cannot load the plugins in {library} ({reason}); "
            "build the library again with make native"
        )

    def _release(self) -> None:
        self._raw = None


class Engine(cuda.Held):
    """One engine with its staging memory and a plan for each shape in use."""

    def __init__(
        self,
        runtime: EngineRuntime,
        path: Path,
        blob: bytes,
        expected: tuple[Tensor, ...],
        device: cuda.Device,
    ) -> None:
        self.path, self.trt, self.log = path, runtime.trt, runtime.log
        self.tensors = expected
        self.device = device
        self.captured = False
        self.plans: OrderedDict[tuple[int, ...], _Plan] = OrderedDict()
        self.raw = runtime.deserialize(path, blob)
        try:
            self.least, self.usual, self.most = self._check(runtime.facts)
            # contexts without memory of their own take the arena; it must not be empty
            self.arena_bytes = max(256, int(self.raw.device_memory_size_v2))
            rtx = runtime.facts.flavour == TENSORRT_RTX
            self.kernels = KernelCache(blob, device) if rtx else None
        except BaseException:
            self.close()
            raise

    def prepare(
        self,
        arena: cuda.DeviceMemory,
        stream: cuda.Stream,
        memory: ExitStack,
        *,
        cuda_graphs: bool,
    ) -> None:
        """Make the staging memory, for ``memory`` to free, and run the usual shape once."""
        self.arena, self.stream, self.cuda_graphs = arena, stream, cuda_graphs
        self.staging = {
            t.name: memory.enter_context(cuda.Staging(self.device, t.nbytes(self.most)))
            for t in self.tensors
        }
        inputs = (t for t in self.tensors if t.is_input)
        self.run(self.usual, [np.zeros(t.shape(self.usual), t.dtype) for t in inputs])
        self.captured = all(plan.graph is not None for plan in self.plans.values())

    def run(
        self, sizes: Mapping[str, int], feeds: Sequence[NDArray[Any]]
    ) -> list[NDArray[np.float32]]:
        """Compute one batch; the outputs are the caller's own."""
        self._fill(sizes, feeds)
        self._plan(sizes).run()
        return [
            self.staging[t.name].host(t.shape(sizes), t.dtype).copy()
            for t in self.tensors
            if not t.is_input
        ]

    def phases(self, sizes: Mapping[str, int], feeds: Sequence[NDArray[Any]]) -> Phases:
        """Compute one batch for its times alone."""
        self._fill(sizes, feeds)
        return self._plan(sizes).phases()

    def _fill(self, sizes: Mapping[str, int], feeds: Sequence[NDArray[Any]]) -> None:
        inputs = [t for t in self.tensors if t.is_input]
        for tensor, array in zip(inputs, feeds, strict=True):
            self.staging[tensor.name].host(tensor.shape(sizes), tensor.dtype)[...] = array

    def _plan(self, sizes: Mapping[str, int]) -> _Plan:
        key = tuple(sizes.values())
        if key not in self.plans:
            while len(self.plans) >= MAX_SHAPES:
                self.plans.popitem(last=False)[1].close()
            self.plans[key] = _Plan(self, sizes)
        self.plans.move_to_end(key)
        return self.plans[key]

    def _check(self, facts: EngineFacts) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
        """Names, types and shapes must be the spec's, the profile the manifest's.

        Returns the profile as sizes of N, B, T: smallest, usual, largest.
        """
        names = [self.raw.get_tensor_name(i) for i in range(self.raw.num_io_tensors)]
        if sorted(names) != sorted(t.name for t in self.tensors):
            raise self._wrong(f"its inputs and outputs are {', '.join(names)}")
        profile = facts.profiles.get(self.path.stem, {})
        sizes: tuple[dict[str, int], dict[str, int], dict[str, int]] = ({}, {}, {})
        for t in self.tensors:
            self._check_tensor(t)
            if t.is_input:
                shapes = [list(shape) for shape in self.raw.get_tensor_profile_shape(t.name, 0)]
                if shapes != [profile.get(t.name, {}).get(k) for k in ("min", "opt", "max")]:
                    raise self._wrong(f"the profile of {t.name} is not the manifest's")
                for known, shape in zip(sizes, shapes, strict=True):
                    self._add_sizes(known, t, shape)
        if any(sizes[0].get(dim, 1) != 1 for dim in ("N", "B")):
            raise self._wrong("its profile does not start at a batch of 1")
        return sizes

    def _check_tensor(self, t: Tensor) -> None:
        trt, shape = self.trt, tuple(self.raw.get_tensor_shape(t.name))
        mode = trt.TensorIOMode.INPUT if t.is_input else trt.TensorIOMode.OUTPUT
        kind = {"uint8": trt.DataType.UINT8, "float32": trt.DataType.FLOAT}[t.dtype.name]
        if self.raw.get_tensor_mode(t.name) != mode:
            raise self._wrong(f"{t.name} is not an {'in' if t.is_input else 'out'}put")
        if self.raw.get_tensor_dtype(t.name) != kind:
            raise self._wrong(f"{t.name} is not {t.dtype.name}")
        if self.raw.get_tensor_format(t.name) != trt.TensorFormat.LINEAR:
            raise self._wrong(f"{t.name} is not in linear layout")
        if not _fits(shape, t.dims):
            raise self._wrong(f"{t.name} has the shape {list(shape)}")

    def _add_sizes(self, known: dict[str, int], t: Tensor, shape: Sequence[int]) -> None:
        if not _fits(tuple(shape), t.dims):
            raise self._wrong(f"{t.name} has the shape {list(shape)} in its profile")
        for dim, size in zip(t.dims, shape, strict=True):
            if isinstance(dim, str) and known.setdefault(dim, size) != size:
                raise self._wrong(f"two sizes of {dim} in its profile")

    def _wrong(self, what: str) -> ModelError:
        return ModelError(f"{self.path} is not an engine for this model ({what}); {REBUILD}")

    def _release(self) -> None:
        with ExitStack() as stack:
            stack.callback(setattr, self, "raw", None)
            for plan in self.plans.values():
                stack.callback(plan.close)
            if self.plans and self.kernels is not None:
                stack.callback(self.kernels.save)


class _Plan(cuda.Held):
    """One shape of one engine: a context with its shapes and addresses set, and its graph."""

    def __init__(self, engine: Engine, sizes: Mapping[str, int]) -> None:
        self.graph: cuda.Graph | None = None
        self._compute_graph: cuda.Graph | None = None  # of inference alone, for phases
        self._engine = engine
        self._sizes = dict(sizes)
        self._ran = False
        self._context = self._create()
        try:
            self._bind()
        except BaseException:
            self.close()
            raise

    def run(self) -> None:
        """Upload, compute, download, wait; the first time kernel by kernel, then as one graph."""
        stream = self._engine.stream
        if self.graph is not None:
            self.graph.launch(stream)
        else:
            self._queue()
        stream.synchronize()
        if not self._ran:
            self._ran = True
            if self._engine.cuda_graphs and self._capturable():
                self.graph = stream.capture(self._queue)

    def phases(self) -> Phases:
        """One run in three parts with events between; inference as a graph where runs are one."""
        if not self._ran:
            self.run()
        stream, device = self._engine.stream, self._engine.device
        if self.graph is not None and self._compute_graph is None:
            self._compute_graph = stream.capture(self._compute)
        with ExitStack() as stack:
            marks = [stack.enter_context(cuda.Event(device)) for _ in range(4)]
            marks[0].record(stream)
            self._upload()
            marks[1].record(stream)
            if self._compute_graph is not None:
                self._compute_graph.launch(stream)
            else:
                self._compute()
            marks[2].record(stream)
            self._download()
            marks[3].record(stream)
            stream.synchronize()
            return Phases(*(b.milliseconds_since(a) for a, b in itertools.pairwise(marks)))

    def _create(self) -> Any:
        engine, trt = self._engine, self._engine.trt
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        engine.log.messages.clear()
        if engine.kernels is None:
            context = engine.raw.create_execution_context(strategy)
        else:
            config = engine.raw.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            # shape-specialised kernels at once: a graph would keep the slow ones of the first call
            strategies = trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            engine.kernels.attach(config)
            context = engine.raw.create_execution_context(config)
        if context is None:
            raise self._failed("create an execution context")
        return context

    def _bind(self) -> None:
        engine = self._engine
        self._context.set_device_memory(engine.arena.address, engine.arena.nbytes)
        if not self._context.set_optimization_profile_async(0, engine.stream.handle):
            raise self._failed("select the optimisation profile")
        for t in engine.tensors:
            if t.is_input and not self._context.set_input_shape(t.name, t.shape(self._sizes)):
                raise self._failed(f"take {t.name} {list(t.shape(self._sizes))}")
            if not self._context.set_tensor_address(t.name, engine.staging[t.name].address):
                raise self._failed(f"take an address for {t.name}")
        missing = self._context.infer_shapes()
        if missing:
            raise self._failed(f"infer the shapes of {', '.join(missing)}")
        for t in engine.tensors:
            found = tuple(self._context.get_tensor_shape(t.name))
            if found != t.shape(self._sizes):
                raise ModelError(
                    f"{engine.path} gives {t.name} {list(found)}, its spec says "
                    f"{list(t.shape(self._sizes))}; {REBUILD}"
                )

    def _queue(self) -> None:
        """Everything of one run on the stream; captured as it is."""
        self._upload()
        self._compute()
        self._download()

    def _upload(self) -> None:
        engine = self._engine
        for t in engine.tensors:
            if t.is_input:
                engine.staging[t.name].upload(engine.stream, t.nbytes(self._sizes))

    def _compute(self) -> None:
        self._engine.log.messages.clear()
        if not self._context.execute_async_v3(self._engine.stream.handle):
            raise self._failed("run")

    def _download(self) -> None:
        engine = self._engine
        for t in engine.tensors:
            if not t.is_input:
                engine.staging[t.name].download(engine.stream, t.nbytes(self._sizes))

    def _capturable(self) -> bool:
        """TensorRT-RTX may have to allocate or compile in a run, and says so."""
        asks = getattr(self._context, "is_stream_capturable", None)
        return asks is None or bool(asks(self._engine.stream.handle))

    def _failed(self, what: str) -> cuda.CudaError:
        return cuda.CudaError(
            f"{self._engine.path}: TensorRT could not {what} ({self._engine.log.reason()}); start "
            f"again, and if it comes back {ON_CPU}"
        )

    def _release(self) -> None:
        with ExitStack() as stack:
            stack.callback(setattr, self, "_context", None)
            for graph in (self.graph, self._compute_graph):
                if graph is not None:
                    stack.callback(graph.close)


def import_tensorrt(flavour: str) -> Any:
    """The library of ``flavour``; raises :class:`DependencyError` that names the extra."""
    jetson = " (on a Jetson: apt install python3-libnvinfer)" if flavour == "tensorrt" else ""
    with optional(
        f"for engines of {TITLES[flavour]}",
        remedy=f"pip install '.[{flavour}]'{jetson}, or {ON_CPU}",
    ):
        return importlib.import_module(MODULES[flavour])


def rebuild_command(folder: Path, facts: EngineFacts) -> str:
    """Builds the folder's engines again, for the machine that it runs on."""
    plugins = "" if facts.plugins is not None else " --plugins off"
    return (
        f"python -m export.build_engine --onnx {folder} --backend {facts.flavour}{plugins} "
        f"--output {folder}-rebuilt"
    )


def _fits(found: tuple[int, ...], dims: tuple[int | str, ...]) -> bool:
    """-1 stands for a dimension that only a context knows."""
    return len(found) == len(dims) and all(
        f == -1 or isinstance(d, str) or f == d for f, d in zip(found, dims, strict=True)
    )


@functools.cache
def _log(trt: Any) -> Any:
    """The logger of one library, alive as long as the process: TensorRT keeps the first it gets."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: deque[str] = deque(maxlen=32)  # errors alone, oldest first

        def log(self, severity: Any, message: str) -> None:
            kinds = trt.ILogger.Severity
            if severity in (kinds.INTERNAL_ERROR, kinds.ERROR):
                self.messages.append(message)

        def reason(self) -> str:
            """The first error since the messages were cleared, in one line."""
            if not self.messages:
                return "it gave no reason"
            return " ".join(_PLACE.sub(" ", self.messages[0]).split()).rstrip(" .")

    return Log()
