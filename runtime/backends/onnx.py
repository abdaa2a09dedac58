# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime: the backend of every machine without TensorRT.

Files are read once; what was checked is what ONNX Runtime gets, never a path that could change or
lead elsewhere.  Order of the checks: single file (no external data), ours (spec in the metadata),
in its role (names of inputs and outputs), one pair (pair_id, then the whole spec), known operator
sets, shapes as the spec says, and last the provider that really came up.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import (
    FRAME_ENCODER_FILE,
    FRAME_ENCODER_INPUTS,
    FRAME_ENCODER_OUTPUTS,
    FUSION_FILE,
    FUSION_INPUTS,
    FUSION_OUTPUTS,
    OP_DOMAIN,
    OP_VERSION,
    FusionOutput,
    check_frames,
    check_tokens,
)
from runtime.backends.manifest import MANIFEST_FILE, check_bytes, read_manifest
from runtime.backends.onnx_file import OnnxFile, WireError, read_onnx
from runtime.closing import Closing
from runtime.errors import DependencyError, ModelError, UsageError
from runtime.spec import METADATA_KEY, PairSpec, SpecError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# A hop's few crops and one window are too little work to share: two threads gain nothing in a
# stream (benchmarks.stream --threads 2), and the other core decodes and finds faces.
DEFAULT_THREADS = 1
_ROLES = {
    FRAME_ENCODER_FILE: (FRAME_ENCODER_INPUTS, FRAME_ENCODER_OUTPUTS),
    FUSION_FILE: (FUSION_INPUTS, FUSION_OUTPUTS),
}
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
        self._encoder = _open(runtime, folder / FRAME_ENCODER_FILE, files[0], where, threads)
        self._fusion = _open(runtime, folder / FUSION_FILE, files[1], where, threads)
        self._closed = False
        side, model = self._spec.face.crop_px, self._spec.model
        _check_input(folder / FRAME_ENCODER_FILE, self._encoder, 0, "uint8", (side, side, 3))
        _check_input(folder / FUSION_FILE, self._fusion, 0, "float", (model.channels,))
        _check_input(folder / FUSION_FILE, self._fusion, 1, "float", (self._spec.audio.token_dim,))

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
        visual: NDArray[np.float32] = self._encoder.run(list(FRAME_ENCODER_OUTPUTS), feeds)[0]
        assert visual.shape == (len(frames), self._spec.model.channels), visual.shape
        return visual

    def fuse(self, visual: NDArray[np.float32], audio: NDArray[np.float32]) -> FusionOutput:
        """Features [B, T, C] and tokens [B, T, A] -> the seven outputs."""
        assert not self._closed, "the backend is closed"
        check_tokens(visual, audio, self._spec)
        feeds = dict(zip(FUSION_INPUTS, map(np.ascontiguousarray, (visual, audio)), strict=True))
        out = FusionOutput(*self._fusion.run(list(FUSION_OUTPUTS), feeds))
        assert out.sync.shape == visual.shape[:2], out.sync.shape
        return out

    def close(self) -> None:
        """Free both sessions."""
        if not self._closed:
            self._closed = True
            del self._encoder, self._fusion


def read_pair(folder: Path) -> tuple[PairSpec, tuple[bytes, bytes]]:
    """The spec and the bytes of ``frame_encoder.onnx`` and ``fusion.onnx``, checked as one pair.

    Needs no ONNX library.  Raises :class:`ModelError`, one line, for whatever is wrong.
    """
    contents, specs = [], []
    for name in (FRAME_ENCODER_FILE, FUSION_FILE):
        path = folder / name
        try:
            data = path.read_bytes()
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
    _check_role(path, found)
    _check_opsets(path, found)
    try:
        spec = PairSpec.from_json(found.metadata[METADATA_KEY])
    except SpecError as err:
        raise ModelError(f"{path}: {err}") from err
    if not spec.pair_id:
        raise ModelError(f"{path} has an empty pair_id; {_AGAIN}")
    return spec


def _check_role(path: Path, found: OnnxFile) -> None:
    names = (tuple(found.inputs), tuple(found.outputs))
    if names == _ROLES[path.name]:
        return
    for role, expected in _ROLES.items():
        if names == expected:
            raise ModelError(f"{path} is in truth a {role}: the two files are swapped")
    raise ModelError(
        f"{path} must take {', '.join(_ROLES[path.name][0])} and give "
        f"{', '.join(_ROLES[path.name][1])}, but takes {', '.join(found.inputs) or 'nothing'} "
        f"and gives {', '.join(found.outputs) or 'nothing'}; {_AGAIN}"
    )


def _check_opsets(path: Path, found: OnnxFile) -> None:
    foreign = sorted(set(found.opsets) - {"", OP_DOMAIN})
    if foreign:
        raise ModelError(f"{path} uses foreign operators ({', '.join(foreign)}); {_AGAIN}")
    version = found.opsets.get(OP_DOMAIN, OP_VERSION)
    if version != OP_VERSION:
        raise ModelError(
            f"{path} uses version {version} of the {OP_DOMAIN} operators, this runtime knows "
            f"{OP_VERSION}; {_AGAIN}"
        )


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
    try:
        onnxruntime: Any = importlib.import_module("onnxruntime")
    except ImportError as err:
        raise DependencyError(
            f"ONNX Runtime is not installed ({err}); install it with pip install '.[{extra}]'"
        ) from err
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


def _open(runtime: Any, path: Path, data: bytes, provider: Provider, threads: int | None) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors; they also arrive as exceptions
    options.intra_op_num_threads = threads or DEFAULT_THREADS
    options.inter_op_num_threads = 1
    # two sessions share the cores with decoding: waiting threads sleep instead of spinning
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = runtime.InferenceSession(
            data, sess_options=options, providers=[(provider.name, provider.options)]
        )
    except Exception as err:  # ONNX Runtime's exceptions share no base but Exception
        raise ModelError(
            f"ONNX Runtime {runtime.__version__} cannot open {path} ({_first_line(err)}); {_AGAIN}"
        ) from err
    active = session.get_providers()[0]
    if active != provider.name:
        raise DependencyError(
            f"{provider.name} was asked for but ONNX Runtime came up with {active}: the driver, "
            "the GPU, or the CUDA and cuDNN libraries of this ONNX Runtime are missing; check "
            "nvidia-smi, pip install 'onnxruntime-gpu[cuda,cudnn]', or use --provider cpu"
        )
    session.disable_fallback()
    return session


def _check_input(path: Path, session: Any, index: int, kind: str, tail: tuple[int, ...]) -> None:
    """Trailing dimensions must be fixed as the spec says; the leading ones are dynamic."""
    found = session.get_inputs()[index]
    if found.type != f"tensor({kind})" or tuple(found.shape[-len(tail) :]) != tail:
        raise ModelError(
            f"{path}: input {found.name} is {found.type} {found.shape}, its spec says {kind} "
            f"[..., {', '.join(map(str, tail))}]; {_AGAIN}"
        )


def _first_line(err: BaseException) -> str:
    lines = str(err).strip().splitlines()
    return lines[0] if lines else type(err).__name__
