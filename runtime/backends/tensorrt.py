# SPDX-License-Identifier: Apache-2.0
"""TensorRT and TensorRT-RTX: the pair as two engines on one NVIDIA GPU.

An engine is code.  Before one byte of it is deserialised the manifest must fit this machine
(library, version, platform, GPU) and every file must have the manifest's SHA-256: the pair that
the engines were built from (it carries the spec), the engines, the plugin library.  How an engine
is run is said in :mod:`runtime.backends.engine`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends import cuda, native
from runtime.backends.base import (
    FaceOutput,
    FusionOutput,
    Phases,
    check_follows,
    check_frames,
    check_tokens,
    face_shapes,
)
from runtime.backends.engine import (
    ON_CPU,
    Engine,
    EngineRuntime,
    import_tensorrt,
    rebuild_command,
    tensors,
)
from runtime.backends.manifest import (
    ENGINE_FILES,
    MANIFEST_FILE,
    MAX_MODEL_BYTES,
    REBUILD,
    TITLES,
    EngineFacts,
    checked_bytes,
    engine_facts,
    read_manifest,
    this_platform,
)
from runtime.backends.onnx import read_pair
from runtime.closing import Closing
from runtime.errors import ModelError, UsageError
from runtime.files import read_bounded
from runtime.spec import PairSpec, SpecError


class TensorRTBackend(Closing):
    """The engines of a folder.

    ``plugin_library`` is looked for by :func:`runtime.backends.native.plugin_library` where it is
    not given; ``cuda_graphs=False`` queues every kernel anew (to measure, to find an error).
    Raises :class:`DependencyError` for what is missing here, :class:`ModelError` for files that are
    missing, damaged or made for another machine.  One thread at a time.
    """

    def __init__(
        self, folder: Path, *, plugin_library: Path | None = None, cuda_graphs: bool = True
    ) -> None:
        manifest = read_manifest(folder)
        facts = engine_facts(manifest)
        if facts is None:
            raise ModelError(
                f"{folder} holds no engines ({MANIFEST_FILE} lists none); build them with python "
                f"-m export.build_engine --onnx {folder} --backend tensorrt, or {ON_CPU}"
            )
        trt = import_tensorrt(facts.flavour)
        _check_software(folder, facts, str(trt.__version__))
        self._spec = _checked_spec(folder, manifest)
        blobs = [checked_bytes(folder, name, manifest) for name in ENGINE_FILES]
        with ExitStack() as stack:
            device = stack.enter_context(cuda.Device())
            _check_device(folder, facts, device)
            library = _plugin_library(folder, facts, plugin_library)
            stream = stack.enter_context(cuda.Stream(device))
            memory = stack.enter_context(ExitStack())  # freed after all that is made from here on
            runtime = stack.enter_context(EngineRuntime(trt, folder, facts, library))
            engines = [
                stack.enter_context(Engine(runtime, folder / name, blob, expected, device))
                for name, blob, expected in zip(
                    ENGINE_FILES, blobs, tensors(self._spec), strict=True
                )
            ]
            arena_bytes = max(engine.arena_bytes for engine in engines)
            arena = memory.enter_context(cuda.DeviceMemory(device, arena_bytes))
            for engine in engines:
                engine.prepare(arena, stream, memory, cuda_graphs=cuda_graphs)
            self._device, (self._encoder, self._fusion) = device, engines
            self._release = stack.pop_all()
        self._closed = False
        captured = all(engine.captured for engine in engines)
        version = ".".join(str(trt.__version__).split(".")[:3])
        self._provider = f"{TITLES[facts.flavour]} {version} ({device.name})" + (
            "" if captured else ", without CUDA graphs"
        )

    @property
    def spec(self) -> PairSpec:
        return self._spec

    @property
    def provider(self) -> str:
        """Library, version and GPU, e.g. ``TensorRT 10.3.0 (Orin)``."""
        return self._provider

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 RGB crops [N, H, W, 3] -> visual features [N, C]; any N."""
        assert not self._closed, "the backend is closed"
        check_frames(frames, self._spec)
        if len(frames) == 0:
            return np.zeros((0, self._spec.model.channels), np.float32)
        self._device.make_current()
        most = self._encoder.most["N"]
        parts = [self._encoder.run({"N": len(part)}, [part])[0] for part in _slices(frames, most)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def follow(self, frames: NDArray[np.uint8]) -> FaceOutput:
        """uint8 RGB crops [N, H, W, 3] -> the four outputs; any N."""
        assert not self._closed, "the backend is closed"
        check_frames(frames, self._spec)
        check_follows(self._spec)
        if len(frames) == 0:
            return FaceOutput(*(np.zeros(s, np.float32) for s in face_shapes(self._spec, 0)))
        self._device.make_current()
        most = self._encoder.most["N"]
        parts = [self._encoder.run({"N": len(part)}, [part]) for part in _slices(frames, most)]
        return FaceOutput(*(np.concatenate(same) for same in zip(*parts, strict=True)))

    def fuse(self, visual: NDArray[np.float32], audio: NDArray[np.float32]) -> FusionOutput:
        """Features [B, T, C] and tokens [B, T, A] -> the seven outputs; any B, T of the profile."""
        assert not self._closed, "the backend is closed"
        check_tokens(visual, audio, self._spec)
        self._check_window(visual.shape[1])
        self._device.make_current()
        most = self._fusion.most["B"]
        parts = [
            self._fusion.run({"B": len(v), "T": v.shape[1]}, [v, a])
            for v, a in zip(_slices(visual, most), _slices(audio, most), strict=True)
        ]
        if len(parts) == 1:
            return FusionOutput(*parts[0])
        return FusionOutput(*(np.concatenate(same) for same in zip(*parts, strict=True)))

    def encode_phases(self, frames: NDArray[np.uint8]) -> Phases:
        """Upload, compute and download of :meth:`encode`, for at least one frame."""
        assert not self._closed, "the backend is closed"
        check_frames(frames, self._spec)
        self._device.make_current()
        most = self._encoder.most["N"]
        return _total(
            self._encoder.phases({"N": len(part)}, [part]) for part in _slices(frames, most)
        )

    def fuse_phases(self, visual: NDArray[np.float32], audio: NDArray[np.float32]) -> Phases:
        """Upload, compute and download of :meth:`fuse`."""
        assert not self._closed, "the backend is closed"
        check_tokens(visual, audio, self._spec)
        self._check_window(visual.shape[1])
        self._device.make_current()
        most = self._fusion.most["B"]
        return _total(
            self._fusion.phases({"B": len(v), "T": v.shape[1]}, [v, a])
            for v, a in zip(_slices(visual, most), _slices(audio, most), strict=True)
        )

    def close(self) -> None:
        """Free everything on the GPU."""
        if not self._closed:
            self._closed = True
            with self._release:
                self._device.make_current()

    def _check_window(self, tokens: int) -> None:
        least, most = self._fusion.least["T"], self._fusion.most["T"]
        if not least <= tokens <= most:
            hz = self._spec.audio.token_hz
            raise UsageError(
                f"a window of {tokens} tokens ({tokens / hz:g} s) does not fit the engine, which "
                f"was built for {least} to {most} ({least / hz:g} to {most / hz:g} s); give such a "
                "--window, or build the engine with another one (export.build_engine --window)"
            )


def _check_software(folder: Path, facts: EngineFacts, version: str) -> None:
    """An engine runs in the very version that built it, on the kind of machine."""
    title = TITLES[facts.flavour]
    for what, built, here in (
        ("on", facts.platform, this_platform()),
        (f"by {title}", facts.version, version),
    ):
        if built != here:
            raise ModelError(
                f"the engines in {folder} were built {what} {built}, here is {here}; build them "
                f"here: {rebuild_command(folder, facts)}"
            )


def _check_device(folder: Path, facts: EngineFacts, device: cuda.Device) -> None:
    if device.compute_capability not in facts.compute_capabilities:
        raise ModelError(
            f"the engines in {folder} were built for compute capability "
            f"{', '.join(facts.compute_capabilities)}, {device.name} has "
            f"{device.compute_capability}; build them here: {rebuild_command(folder, facts)}"
        )


def _checked_spec(folder: Path, manifest: Mapping[str, Any]) -> PairSpec:
    """The spec in the pair's metadata, which must be the manifest's copy."""
    spec, _ = read_pair(folder)  # compares the pair with the manifest's hashes
    try:
        copy = PairSpec.from_json(json.dumps(manifest.get("spec")))
    except SpecError as err:
        raise ModelError(f"{folder / MANIFEST_FILE} is damaged ({err}); {REBUILD}") from err
    if copy != spec:
        raise ModelError(
            f"{folder / MANIFEST_FILE} carries another spec than the ONNX files; {REBUILD}"
        )
    return spec


def _plugin_library(folder: Path, facts: EngineFacts, explicit: Path | None) -> Path | None:
    """The library that the engines were built with, byte for byte; None if they need none."""
    if facts.plugins is None:
        if explicit is not None:
            raise UsageError(
                f"the engines in {folder} use no plugins; leave out --plugin-library {explicit}"
            )
        return None
    library = native.plugin_library(explicit)
    try:
        content = read_bounded(library, MAX_MODEL_BYTES)
    except OSError as err:
        raise ModelError(f"cannot read {library} ({err.strerror}); give another one") from err
    if hashlib.sha256(content).hexdigest() != facts.plugins.sha256:
        raise ModelError(
            f"{library} is not the {facts.plugins.library} that the engines in {folder} were built "
            "with (SHA-256 differs); give that one with --plugin-library FILE, or build the "
            f"engines again: {rebuild_command(folder, facts)}"
        )
    return library.resolve()


def _total(parts: Iterable[Phases]) -> Phases:
    """Of the slices of one call."""
    return Phases(*(sum(same) for same in zip(*parts, strict=True)))


def _slices(array: NDArray[Any], most: int) -> list[NDArray[Any]]:
    return [array[at : at + most] for at in range(0, len(array), most)]
