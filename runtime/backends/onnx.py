# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime: the backend of every machine without TensorRT.

Files are read once; what was checked is what ONNX Runtime gets, never a path that could change or
lead elsewhere.  Order of the checks: single file (no external data), ours (spec in the metadata),
in its role (names of inputs and outputs), one pair (pair_id, then the whole spec), known operator
sets, nothing without an end (:mod:`runtime.backends.onnx_file`), a first run, shapes as the spec
says, and last the provider that really came up.

What such checks cannot see, operators of small files that make enormous tensors or work for days,
is stopped by limits: :data:`MAX_ARENA_BYTES` of memory for all sessions of the process, and
:data:`TRY_S` for a first run of each graph as it is.  ONNX Runtime computes what is constant while
it opens a graph, where nothing can stop it; after that run it is known to take no longer.  Pairs
that are shipped with the code have no such run: it costs a tenth of a second.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import (
    FRAME_ENCODER_INPUTS,
    FUSION_INPUTS,
    FUSION_OUTPUTS,
    OP_DOMAIN,
    OP_VERSION,
    FaceOutput,
    FusionOutput,
    check_follows,
    check_frames,
    check_tokens,
    encoder_outputs,
    face_shapes,
)
from runtime.backends.manifest import (
    MANIFEST_FILE,
    MAX_MODEL_BYTES,
    check_bytes,
    read_manifest,
)
from runtime.backends.onnx_file import OnnxFile, WireError, read_onnx
from runtime.closing import Closing
from runtime.errors import DependencyError, ModelError, UsageError
from runtime.files import read_bounded
from runtime.models import is_shipped
from runtime.optional import optional
from runtime.spec import FRAME_ENCODER_FILE, FUSION_FILE, METADATA_KEY, PairSpec, SpecError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# A hop's few crops and one window are too little work to share: two threads gain nothing in a
# stream (benchmarks.stream --threads 2), and the other core decodes and finds faces.
DEFAULT_THREADS = 1
MAX_ARENA_BYTES = 4 << 30  # on the CPU: weights, and what is computed
TRY_S = 60.0  # of one crop, and of one window; ends with the operator that is at work
_INPUTS = {FRAME_ENCODER_FILE: FRAME_ENCODER_INPUTS, FUSION_FILE: FUSION_INPUTS}
_AGAIN = "make the pair again with python -m export.build_engine"


class OnnxBackend(Closing):
    """A pair in two ONNX Runtime sessions.

    ``provider`` is ``cpu``, ``cuda`` (the first GPU) or ``cuda:N``; ``threads`` is the number of
    threads of one run on the CPU (None: :data:`DEFAULT_THREADS`).  Raises :class:`ModelError` for
    files that are missing, damaged, swapped, of two pairs or with external data,
    :class:`DependencyError` if ONNX Runtime or the provider is not installed, :class:`UsageError`
    for an unknown provider.

    On CUDA the arrays go through ONNX Runtime's own copies: crops come from the CPU and features
    go back to the stream's ring there, so binding the graphs' inputs and outputs to the device
    would copy just as much.
    """

    def __init__(self, folder: Path, *, provider: str = "cpu", threads: int | None = None) -> None:
        where = parse_provider(provider)
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, not {threads}")
        self._spec, files = read_pair(folder)
        runtime = _import_onnxruntime(where)
        self._paths = folder / FRAME_ENCODER_FILE, folder / FUSION_FILE
        strange = () if is_shipped(folder) else self._paths
        for path, data in zip(strange, files, strict=False):
            names, outputs = _role(path.name, self._spec)
            _try_out(runtime, path, data, _examples(self._spec, names), outputs)
        self._encoder = _open(runtime, self._paths[0], files[0], where, threads)
        self._fusion = _open(runtime, self._paths[1], files[1], where, threads)
        self._closed = False

    @property
    def spec(self) -> PairSpec:
        return self._spec

    @property
    def provider(self) -> str:
        """The execution provider that ONNX Runtime really uses, e.g. ``CPUExecutionProvider``."""
        assert not self._closed, "the backend is closed"
        return str(self._encoder.get_providers()[0])

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 RGB crops [N, H, W, 3] -> visual features [N, C]."""
        assert not self._closed, "the backend is closed"
        check_frames(frames, self._spec)
        if len(frames) == 0:
            return np.zeros((0, self._spec.model.channels), np.float32)
        feeds = {FRAME_ENCODER_INPUTS[0]: np.ascontiguousarray(frames)}
        visual: NDArray[np.float32] = self._run(0, FaceOutput._fields[:1], feeds)[0]
        self._check_shape(0, visual, (len(frames), self._spec.model.channels))
        return visual

    def follow(self, frames: NDArray[np.uint8]) -> FaceOutput:
        """uint8 RGB crops [N, H, W, 3] -> the four outputs."""
        assert not self._closed, "the backend is closed"
        check_frames(frames, self._spec)
        check_follows(self._spec)
        shapes = face_shapes(self._spec, len(frames))
        if len(frames) == 0:
            return FaceOutput(*(np.zeros(shape, np.float32) for shape in shapes))
        feeds = {FRAME_ENCODER_INPUTS[0]: np.ascontiguousarray(frames)}
        out = FaceOutput(*self._run(0, FaceOutput._fields, feeds))
        for found, shape in zip(out, shapes, strict=True):
            self._check_shape(0, found, shape)
        return out

    def fuse(self, visual: NDArray[np.float32], audio: NDArray[np.float32]) -> FusionOutput:
        """Features [B, T, C] and tokens [B, T, A] -> the seven outputs."""
        assert not self._closed, "the backend is closed"
        check_tokens(visual, audio, self._spec)
        feeds = dict(zip(FUSION_INPUTS, map(np.ascontiguousarray, (visual, audio)), strict=True))
        out = FusionOutput(*self._run(1, FUSION_OUTPUTS, feeds))
        self._check_shape(1, out.sync, visual.shape[:2])
        return out

    def close(self) -> None:
        """Free both sessions."""
        if not self._closed:
            self._closed = True
            del self._encoder, self._fusion

    def _run(
        self,
        which: int,
        outputs: Sequence[str],
        feeds: Mapping[str, NDArray[Any]],
    ) -> Sequence[Any]:
        """The encoder's (0) or the fusion's (1) answer; raises :class:`ModelError`."""
        session = (self._encoder, self._fusion)[which]
        try:
            answer: Sequence[Any] = session.run(list(outputs), feeds)
        except Exception as err:  # ONNX Runtime's exceptions share no base but Exception
            raise _cannot_run(self._paths[which], err) from err
        return answer

    def _check_shape(self, which: int, found: NDArray[Any], shape: tuple[int, ...]) -> None:
        if found.shape != shape:
            raise ModelError(
                f"{self._paths[which]} answers in the shape {list(found.shape)} where "
                f"{list(shape)} is expected; {_AGAIN}"
            )


def read_pair(folder: Path) -> tuple[PairSpec, tuple[bytes, bytes]]:
    """The spec and the bytes of ``frame_encoder.onnx`` and ``fusion.onnx``, checked as one pair.

    Needs no ONNX library.  Raises :class:`ModelError`, one line, for whatever is wrong.
    """
    contents, specs = [], []
    for name in (FRAME_ENCODER_FILE, FUSION_FILE):
        path = folder / name
        try:
            data = read_bounded(path, MAX_MODEL_BYTES)
        except OSError as err:
            raise ModelError(f"cannot read {path} ({err.strerror}); {_AGAIN}") from err
        specs.append(_check_file(path, data))
        contents.append(data)
    first, second = specs
    if first.pair_id != second.pair_id:
        raise ModelError(
            f"{folder}: the two ONNX files belong to different pairs ({first.pair_id} and "
            f"{second.pair_id}); take both files of one export"
        )
    if first != second:
        raise ModelError(f"{folder}: the two ONNX files carry different specs; {_AGAIN}")
    _check_manifest(folder, contents)
    return first, (contents[0], contents[1])


def _check_file(path: Path, data: bytes) -> PairSpec:
    try:
        found = read_onnx(data)
    except WireError as err:
        raise ModelError(f"{path} is damaged or no ONNX file ({err}); {_AGAIN}") from err
    if found.has_external_data:
        raise ModelError(
            f"{path} keeps tensors in other files, which is not allowed (they could name any "
            f"file); {_AGAIN}, which writes single files"
        )
    if METADATA_KEY not in found.metadata:
        raise ModelError(
            f"{path} carries no {METADATA_KEY} in its metadata, so it is no model of this "
            f"project; {_AGAIN}"
        )
    _check_opsets(path, found)
    _check_form(path, found)
    try:
        spec = PairSpec.from_json(found.metadata[METADATA_KEY])
    except SpecError as err:
        raise ModelError(f"{path}: {err}") from err
    _check_role(path, found, spec)
    if not spec.pair_id:
        raise ModelError(f"{path} has an empty pair_id; {_AGAIN}")
    return spec


def _role(name: str, spec: PairSpec) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the file of that name takes and gives."""
    outputs = encoder_outputs(spec) if name == FRAME_ENCODER_FILE else FUSION_OUTPUTS
    return _INPUTS[name], outputs


def _check_role(path: Path, found: OnnxFile, spec: PairSpec) -> None:
    names = (tuple(found.inputs), tuple(found.outputs))
    inputs, outputs = _role(path.name, spec)
    if names == (inputs, outputs):
        return
    for other in _INPUTS:
        if names == _role(other, spec):
            raise ModelError(f"{path} is in truth a {other}: the two files are swapped")
    raise ModelError(
        f"{path} must take {', '.join(inputs)} and give {', '.join(outputs)}, but takes "
        f"{', '.join(found.inputs) or 'nothing'} and gives "
        f"{', '.join(found.outputs) or 'nothing'}; {_AGAIN}"
    )


def _check_opsets(path: Path, found: OnnxFile) -> None:
    named = {*found.opsets, *found.node_domains, *found.function_domains}
    foreign = sorted(named - {"", "ai.onnx", OP_DOMAIN})
    if foreign:
        raise ModelError(f"{path} uses foreign operators ({', '.join(foreign)}); {_AGAIN}")
    version = found.opsets.get(OP_DOMAIN, OP_VERSION)
    if version != OP_VERSION:
        raise ModelError(
            f"{path} uses version {version} of the {OP_DOMAIN} operators, this runtime knows "
            f"{OP_VERSION}; {_AGAIN}"
        )


def _check_form(path: Path, found: OnnxFile) -> None:
    """What no graph of this project has, and what may have no end."""
    wrong = ""
    if found.control_flow:
        wrong = f"has loops or branches ({', '.join(sorted(found.control_flow))})"
    elif found.functions_call or "" in found.function_domains:
        wrong = "has functions that call functions or replace operators"
    elif found.has_sparse:
        wrong = "has sparse tensors"
    elif found.has_false_sizes:
        wrong = "has tensors of more values than the file could hold"
    if wrong:
        raise ModelError(f"{path} {wrong}, which no model of this project does; {_AGAIN}")


def _check_manifest(folder: Path, contents: list[bytes]) -> None:
    """If the exporter's manifest lies beside the pair, the files must be those it was made for."""
    if not (folder / MANIFEST_FILE).is_file():
        return
    manifest = read_manifest(folder)
    for name, data in zip((FRAME_ENCODER_FILE, FUSION_FILE), contents, strict=True):
        check_bytes(folder / name, data, manifest)


@dataclass(frozen=True)
class Provider:
    """An execution provider of ONNX Runtime and its options."""

    name: str  # CPUExecutionProvider
    options: dict[str, str]
    extra: str  # of this project, that installs it


def parse_provider(text: str) -> Provider:
    """``cpu``, ``cuda`` or ``cuda:N``; raises :class:`UsageError` for another text."""
    kind, colon, index = text.partition(":")
    if kind not in PROVIDERS or (colon and (kind != "cuda" or not index.isdecimal())):
        raise UsageError(f"unknown provider {text!r}; known: {', '.join(PROVIDERS)}, cuda:N")
    if kind == "cpu":
        return Provider(PROVIDERS[kind], {}, "cpu")
    options = {
        "device_id": index or "0",
        # N, B and T change: the default would time every algorithm anew for each shape
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",  # fp32 means fp32: TF32 keeps 10 bits of the mantissa
    }
    return Provider(PROVIDERS[kind], options, "gpu")


def _import_onnxruntime(provider: Provider) -> Any:
    extra = provider.extra
    with optional("to run a model", extra=extra):
        onnxruntime: Any = importlib.import_module("onnxruntime")
    if provider.name not in onnxruntime.get_available_providers():
        raise DependencyError(
            f"this ONNX Runtime has no {provider.name}; pip uninstall onnxruntime, then "
            f"pip install '.[{extra}]', or use --provider cpu"
        )
    if provider.name == PROVIDERS["cuda"]:
        _load_cuda_libraries(onnxruntime)
    return onnxruntime


def _load_cuda_libraries(runtime: Any) -> None:
    """CUDA and cuDNN as pip installs them, where ONNX Runtime does not look by itself.

    What is missing it says on several lines; :func:`_open` says it in one.
    """
    runtime.set_default_logger_severity(4)  # fatal
    preload = getattr(runtime, "preload_dlls", None)  # since 1.21
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):
            preload(directory="")


def _examples(spec: PairSpec, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """One crop, or one window, for the inputs of these names."""
    side, tokens = spec.face.crop_px, spec.stream.window_tokens
    every: dict[str, NDArray[Any]] = {
        FRAME_ENCODER_INPUTS[0]: np.zeros((1, side, side, 3), np.uint8),
        FUSION_INPUTS[0]: np.zeros((1, tokens, spec.model.channels), np.float32),
        FUSION_INPUTS[1]: np.zeros((1, tokens, spec.audio.token_dim), np.float32),
    }
    return {name: every[name] for name in names}


def _try_out(
    runtime: Any,
    path: Path,
    data: bytes,
    feeds: Mapping[str, NDArray[Any]],
    outputs: Sequence[str],
) -> None:
    """One run on the CPU, nothing computed before; raises :class:`ModelError` after TRY_S."""
    options = session_options(runtime, None)
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    run = runtime.RunOptions()
    timer = threading.Timer(TRY_S, lambda: setattr(run, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        session = _session(runtime, path, data, options, Provider(PROVIDERS["cpu"], {}, "cpu"))
        for index, example in enumerate(feeds.values()):
            _check_input(path, session, index, example)
        session.run(list(outputs), feeds, run)
    except ModelError:
        raise
    except Exception as err:  # ONNX Runtime's exceptions share no base but Exception
        raise _cannot_run(path, err) from err
    finally:
        timer.cancel()


def _cannot_run(path: Path, err: Exception) -> ModelError:
    return ModelError(f"ONNX Runtime cannot run {path} ({first_line(err)}); {_AGAIN}")


@functools.cache
def _limit_memory(runtime: Any) -> None:
    """One arena for the process, which ends at :data:`MAX_ARENA_BYTES`."""
    memory = runtime.OrtMemoryInfo(
        "Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT
    )
    limits = runtime.OrtArenaCfg({"max_mem": MAX_ARENA_BYTES})
    runtime.create_and_register_allocator(memory, limits)


def session_options(runtime: Any, threads: int | None) -> Any:
    """Of every session of this project: quiet, within the process's memory, few threads."""
    _limit_memory(runtime)
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # fatal; errors arrive as exceptions
    options.intra_op_num_threads = threads or DEFAULT_THREADS
    options.inter_op_num_threads = 1
    # two sessions share the cores with decoding: waiting threads sleep instead of spinning
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


def _session(runtime: Any, path: Path, data: bytes, options: Any, provider: Provider) -> Any:
    try:
        return runtime.InferenceSession(
            data, sess_options=options, providers=[(provider.name, provider.options)]
        )
    except Exception as err:  # ONNX Runtime's exceptions share no base but Exception
        raise ModelError(
            f"ONNX Runtime {runtime.__version__} cannot open {path} ({first_line(err)}); {_AGAIN}"
        ) from err


def _open(runtime: Any, path: Path, data: bytes, provider: Provider, threads: int | None) -> Any:
    session = _session(runtime, path, data, session_options(runtime, threads), provider)
    active = session.get_providers()[0]
    if active != provider.name:
        raise DependencyError(
            f"{provider.name} was asked for but ONNX Runtime came up with {active}: the driver, "
            "the GPU, or the CUDA and cuDNN libraries of this ONNX Runtime are missing; check "
            "nvidia-smi, pip install 'onnxruntime-gpu[cuda,cudnn]', or use --provider cpu"
        )
    session.disable_fallback()
    return session


def _check_input(path: Path, session: Any, index: int, example: NDArray[Any]) -> None:
    """Trailing dimensions must be fixed as the spec says; the leading ones are dynamic."""
    found = session.get_inputs()[index]
    kind, tail = ("uint8", example.shape[1:]) if example.ndim == 4 else ("float", example.shape[2:])
    if found.type != f"tensor({kind})" or tuple(found.shape[-len(tail) :]) != tail:
        raise ModelError(
            f"{path}: input {found.name} is {found.type} {found.shape}, its spec says {kind} "
            f"[..., {', '.join(map(str, tail))}]; {_AGAIN}"
        )


def first_line(err: BaseException) -> str:
    lines = str(err).strip().splitlines()
    return lines[0] if lines else type(err).__name__
