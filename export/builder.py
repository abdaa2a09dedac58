# SPDX-License-Identifier: Apache-2.0
"""ONNX graphs -> engines, by TensorRT or TensorRT-RTX, in a process of its own.

Of its own, because a builder can take minutes in which Python sees no Ctrl-C, because its memory
goes back when it ends, and because it can die: killed for memory on a Jetson, or ended by its own
libraries.  Each of these becomes one line here.

Networks are strongly typed: the types in the graph are the types in the engine.  TF32 is off, so
that fp32 is fp32.  The two libraries differ in little: TensorRT times kernels on the GPU that is
here and keeps the timings in a cache; TensorRT-RTX builds ahead of time for named GPUs and
compiles when the engine is loaded.
"""

from __future__ import annotations

import ctypes
import importlib.util
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from export.choice import Target
from runtime import interrupt, leftovers
from runtime.backends.base import OP_DOMAIN, OP_VERSION
from runtime.backends.manifest import MODULES, TENSORRT, TENSORRT_RTX, TITLES, Profile
from runtime.errors import DependencyError, ModelError, UsageError, UserError
from runtime.files import cache_dir
from runtime.spec import PairSpec

MAX_WINDOW_TOKENS = 511  # our kernels take 512 positions, one of them the class token
DEFAULT_MAX_BATCH = 4  # the faces that a stream judges at a time (FaceSpec.max_faces)
WORKSPACE_BYTES = 1 << 30  # for TensorRT's kernels: these graphs need less, a Jetson has little
_PLACE = re.compile(r"\bIn \S+ at [^\s()]+")  # where in TensorRT's own source
POLL_S = 0.1  # how soon a signal is seen
Step = Callable[[str], None]


@dataclass(frozen=True)
class Graph:
    """One engine to build."""

    name: str  # frame_encoder, fusion
    onnx: Path  # what is parsed
    engine: Path  # what is written
    profile: Profile
    plugins: Mapping[str, int]  # custom op -> nodes that must become plugin layers


@dataclass(frozen=True)
class Request:
    """What the building process is told."""

    flavour: str
    graphs: tuple[Graph, ...]
    target: Target
    plugin_library: Path | None = None
    timing_cache: Path | None = None  # TensorRT's alone; None: one in the user's cache directory


@dataclass
class Built:
    """What it answers."""

    version: str = ""
    layers: dict[str, int] = field(default_factory=dict)  # graph -> PLUGIN_V3 layers
    seconds: dict[str, float] = field(default_factory=dict)  # graph -> time to parse and build
    timing_cache: str | None = None


def profiles(spec: PairSpec, *, window_tokens: int, max_batch: int) -> dict[str, Profile]:
    """Smallest, usual and largest shapes of both graphs, by graph and input.

    The frame encoder is tuned for the frames of one hop and takes a whole window at once (the
    first one of a stream); larger batches are cut by the backend.  The fusion is tuned for one
    window of ``window_tokens`` and takes every length that the kernels take.
    """
    side, hop = spec.face.crop_px, spec.stream.hop_tokens
    most = max(window_tokens, spec.stream.window_tokens, hop * max_batch)
    tokens = {"min": (1, 1), "opt": (1, window_tokens), "max": (max_batch, MAX_WINDOW_TOKENS)}
    widths = {"visual": spec.model.channels, "audio": spec.audio.token_dim}
    return {
        "frame_encoder": {
            "frames": {
                limit: [n, side, side, 3] for limit, n in (("min", 1), ("opt", hop), ("max", most))
            }
        },
        "fusion": {
            name: {limit: [*shape, width] for limit, shape in tokens.items()}
            for name, width in widths.items()
        },
    }


def build(request: Request, step: Step) -> Built:
    """Build all engines of the request and write their files.

    Raises
    ------
    ModelError
        With TensorRT's own first error, where it refuses a graph or gives up.
    DependencyError, UsageError
        For a plugin library or timing cache that does not fit.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    with leftovers.folder("msct-build-") as scratch:
        (scratch / "stderr").touch()
        # not fork: a copy of this process would share its threads' locks and, worse, CUDA
        process = context.Process(target=_child, args=(theirs, request, scratch), daemon=True)
        resource_tracker.ensure_running()  # it opens this thread to signals when it is started
        with interrupt.shielded():
            process.start()
        theirs.close()
        try:
            while True:
                while not ours.poll(POLL_S):
                    interrupt.check()
                kind, value = ours.recv()
                if kind == "step":
                    step(value)
                elif kind == "built":
                    assert isinstance(value, Built)
                    return value
                elif kind == "refused":
                    raise value
                else:
                    raise RuntimeError(f"in the building process:\n{value}")
        except EOFError:
            process.join()
            raise _died(request.flavour, process.exitcode, scratch) from None
        finally:
            process.kill()
            process.join()
            ours.close()


def _died(flavour: str, code: int | None, scratch: Path) -> ModelError:
    said = (scratch / "stderr").read_text(errors="replace").strip().splitlines()
    last = f", its last words: {said[-1]}" if said else ""
    if code is not None and -code == signal.SIGKILL:
        why = "was killed, most likely for memory: close other programs or add swap, then try again"
    else:
        why = f"ended with code {code}{last}"
    return ModelError(f"the process that builds with {TITLES[flavour]} {why}; nothing was written")


# ------------------------------------------------------------------- in the building process


def _child(pipe: Connection, request: Request, scratch: Path) -> None:
    interrupt.install_in_worker()
    with (scratch / "stderr").open("w") as file:
        os.dup2(file.fileno(), 2)  # what the libraries print; the parent quotes it if they die
    lock = threading.Lock()  # builders report from several threads

    def send(kind: str, value: Any) -> None:
        with lock:
            pipe.send((kind, value))

    try:
        if request.flavour == TENSORRT_RTX:
            name_rtx_library(scratch)
        trt = importlib.import_module(MODULES[request.flavour])
        send("built", build_here(trt, request, lambda what: send("step", what)))
    except UserError as err:
        send("refused", err)
    except BaseException:
        send("bug", traceback.format_exc())
    pipe.close()


def name_rtx_library(scratch: Path) -> None:
    """Let TensorRT-RTX's parser find its own library; before ``tensorrt_rtx`` is imported.

    The wheel has ``libtensorrt_rtx.so.1`` alone, and the parser opens ``libtensorrt_rtx.so`` when
    it meets a plugin, and ends the process if there is none.  It looks in the folder that it was
    loaded from: so it is loaded from a folder of links with that name among them.
    """
    found = importlib.util.find_spec("tensorrt_rtx_libs")
    if found is None or not found.submodule_search_locations:
        return  # installed by the system: the name is there
    libraries = sorted(Path(found.submodule_search_locations[0]).glob("lib*.so.*"))
    assert "tensorrt_rtx" not in sys.modules, "too late: TensorRT-RTX is loaded"
    for library in libraries:
        (scratch / library.name).symlink_to(library)
        short = scratch / f"{library.name.partition('.so')[0]}.so"
        if not short.exists():
            short.symlink_to(library)
    # the parser depends on no other library by name: any order will do
    for library in libraries:
        ctypes.CDLL(str(scratch / library.name))


def build_here(trt: Any, request: Request, step: Step) -> Built:
    """Build with the module ``trt`` in this process."""
    log = _logger(trt)
    title = f"{TITLES[request.flavour]} {trt.__version__}"
    built = Built(version=str(trt.__version__))
    if request.plugin_library is not None:
        _load_plugins(trt, log, title, request)
    for graph in request.graphs:
        started = time.perf_counter()
        step(f"build {graph.engine.name}")
        serialized = _Building(trt, log, title, request, graph, step).run(built)
        with graph.engine.open("wb") as file:
            file.write(serialized)
        built.seconds[graph.name] = round(time.perf_counter() - started, 3)
    return built


def _load_plugins(trt: Any, log: Any, title: str, request: Request) -> None:
    registry = trt.get_plugin_registry()
    # None where a plugin of that name is already registered; whether all are there counts
    loaded = registry.load_library(str(request.plugin_library))
    for op in sorted({op for graph in request.graphs for op in graph.plugins}):
        if registry.get_creator(op, str(OP_VERSION), OP_DOMAIN) is None:
            why = "" if loaded is not None else f" ({log.reason()})"
            raise DependencyError(
                f"{title} finds no plugin {op} in {request.plugin_library}{why}; build the library "
                "again with `make native`, or give --plugins off"
            )


class _Building:
    """One engine, from the file to the serialized bytes."""

    def __init__(
        self, trt: Any, log: Any, title: str, request: Request, graph: Graph, step: Step
    ) -> None:
        self.trt, self.log, self.title, self.step = trt, log, title, step
        self.request, self.graph = request, graph

    def run(self, built: Built) -> Any:
        trt = self.trt
        self.log.messages.clear()
        try:
            builder = trt.Builder(self.log)
        except TypeError as err:  # how the bindings say that there is none
            raise self._refused("does not start") from err
        network = builder.create_network(_strongly_typed(trt))
        parser = trt.OnnxParser(network, self.log)  # owns the weights until the engine is built
        if not parser.parse(self.graph.onnx.read_bytes()):
            raise self._refused(f"cannot read {self.graph.onnx.name}", _parser_error(parser))
        built.layers[self.graph.name] = self._count_plugins(network)
        config = builder.create_builder_config()
        self._configure(builder, config)
        cache = self._timing_cache(config, built) if self.request.flavour == TENSORRT else None
        if hasattr(trt, "IProgressMonitor"):
            config.progress_monitor = _monitor(trt, self.graph.engine.name, self.step)
        serialized = builder.build_serialized_network(network, config)
        if serialized is None:
            raise self._refused(f"cannot build {self.graph.engine.name}")
        if cache is not None:
            _write(Path(str(built.timing_cache)), config.get_timing_cache().serialize())
        return serialized

    def _count_plugins(self, network: Any) -> int:
        """PLUGIN_V3 layers of the parsed network: as many as there are custom op nodes."""
        kind, expected = self.trt.LayerType.PLUGIN_V3, sum(self.graph.plugins.values())
        found = sum(network.get_layer(i).type == kind for i in range(network.num_layers))
        if found != expected:
            raise ModelError(
                f"{self.title} made {found} plugin layers of {self.graph.onnx.name}, and it has "
                f"{expected} nodes for plugins: nothing was written; report this with the version"
            )
        return found

    def _configure(self, builder: Any, config: Any) -> None:
        trt, target = self.trt, self.request.target
        config.clear_flag(trt.BuilderFlag.TF32)
        profile = builder.create_optimization_profile()
        for name, shapes in self.graph.profile.items():
            profile.set_shape(name, shapes["min"], shapes["opt"], shapes["max"])
        if config.add_optimization_profile(profile) < 0:
            raise self._refused(f"takes no such shapes for {self.graph.name}")
        if self.request.flavour == TENSORRT:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
            return
        # no allocation while it runs, so that every engine can be captured in a CUDA graph
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        names = ["CURRENT"]
        if not target.here:
            names = [f"SM{name.replace('.', '')}" for name in target.compute_capabilities]
        config.num_compute_capabilities = len(names)
        for i, (name, capability) in enumerate(
            zip(names, target.compute_capabilities, strict=True)
        ):
            kind = getattr(trt.ComputeCapability, name, None)
            if kind is None or not config.set_compute_capability(kind, i):
                raise UsageError(
                    f"{self.title} cannot build for compute capability {capability}; name others "
                    "with --target-sm"
                )

    def _timing_cache(self, config: Any, built: Built) -> Any:
        path = self.request.timing_cache or self._default_timing_cache()
        stored = b""
        if path.exists():
            try:
                stored = path.read_bytes()
            except OSError as err:
                raise UserError(f"cannot read timing cache {path} ({err.strerror})") from err
        cache = config.create_timing_cache(stored)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            raise ModelError(
                f"timing cache {path} is damaged, or of another TensorRT or GPU; delete it, or "
                "give another with --timing-cache FILE"
            )
        built.timing_cache = str(path)
        return cache

    def _default_timing_cache(self) -> Path:
        (capability,) = self.request.target.compute_capabilities
        return cache_dir() / "tensorrt" / f"{self.trt.__version__}-sm{capability}.timing"

    def _refused(self, what: str, why: str | None = None) -> ModelError:
        return ModelError(f"{self.title} {what}: {why or self.log.reason()}; nothing was written")


def _strongly_typed(trt: Any) -> int:
    """The flag of TensorRT 10; from 11 on there is nothing else, and one day no flag."""
    kind = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if kind is None else 1 << int(kind)


def _parser_error(parser: Any) -> str | None:
    if parser.num_errors == 0:
        return None
    error = parser.get_error(0)
    node = f"node {error.node_name()} ({error.node_operator()}): " if error.node_name() else ""
    return node + _line(error.desc())


def _line(message: str) -> str:
    return " ".join(_PLACE.sub(" ", message).split()).rstrip(" .")


def _write(path: Path, content: Any) -> None:
    """Whole or not at all: another build may read it."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with leftovers.part_of(path) as part:
            part.write_bytes(content)
    except OSError as err:
        raise UserError(
            f"cannot write timing cache {path} ({err.strerror}); give another with --timing-cache"
        ) from err


def _logger(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []  # errors alone, oldest first

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.messages.append(message)

        def reason(self) -> str:
            """The first error, which the others follow from, in one line."""
            return _line(self.messages[0]) if self.messages else "it gave no reason"

    return Log()


def _monitor(trt: Any, engine: str, step: Step) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}  # of the outermost phases

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.steps[phase] = steps

        def step_complete(self, phase: str, done: int) -> bool:
            if phase in self.steps:
                step(f"build {engine}: {phase}, {done + 1} of {self.steps[phase]}")
            return True  # go on

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor()
