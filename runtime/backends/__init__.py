# SPDX-License-Identifier: Apache-2.0
"""Where the two graphs run.  :mod:`base` is the protocol; every other module is one backend."""

from __future__ import annotations

from pathlib import Path

from runtime.backends.base import Backend, FusionOutput

__all__ = ["BACKENDS", "Backend", "FusionOutput", "load_backend"]

BACKENDS = ("auto", "onnx", "tensorrt")


def load_backend(
    folder_or_preset: str | Path | None = None,
    backend: str = "auto",
    provider: str | None = None,
    threads: int | None = None,
    plugin_library: Path | None = None,
) -> Backend:
    """The model of a shipped preset's name (None: the default) or of a folder, ready to run.

    ``auto`` takes the engines where the folder has some, else ONNX Runtime; ``tensorrt`` stands
    for both TensorRT and TensorRT-RTX, whichever built them.  ``provider`` (None: ``cpu``) and
    ``threads`` (None: 1) are ONNX Runtime's, ``plugin_library`` is TensorRT's: given to the other
    one, they are a :class:`~runtime.errors.UsageError`.  What cannot run is an error; nothing
    falls back to another backend.
    """
    from runtime.backends.manifest import MANIFEST_FILE, engine_facts, has_engines, read_manifest
    from runtime.errors import UsageError
    from runtime.models import DEFAULT_PRESET, model_dir

    if backend not in BACKENDS:
        raise UsageError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    folder = model_dir(DEFAULT_PRESET if folder_or_preset is None else folder_or_preset)
    if backend == "auto":
        described = (folder / MANIFEST_FILE).is_file() or has_engines(folder)
        found = engine_facts(read_manifest(folder)) if described else None
        backend = "onnx" if found is None else "tensorrt"
    if backend == "onnx":
        from runtime.backends.onnx import OnnxBackend

        if plugin_library is not None:
            raise UsageError(
                f"--plugin-library {plugin_library} is for engines, and {folder} runs in ONNX "
                "Runtime; leave it out"
            )
        return OnnxBackend(folder, provider=provider or "cpu", threads=threads)
    for option, value in (("--provider", provider), ("--threads", threads)):
        if value is not None:
            raise UsageError(
                f"{option} {value} is for ONNX Runtime, and the engines in {folder} run in "
                "TensorRT; leave it out, or give --backend onnx"
            )
    from runtime.backends.tensorrt import TensorRTBackend

    return TensorRTBackend(folder, plugin_library=plugin_library)
