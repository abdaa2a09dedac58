# SPDX-License-Identifier: Apache-2.0
"""Imports of what not every machine has: a missing one is one clear line that says what to install.

    with optional("to read media files"):
        import av

:data:`PACKAGES` says which package brings a module and which extra asks for it; a test holds it to
pyproject.toml.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from runtime.errors import DependencyError

PACKAGES = {  # module: package, extra of pyproject.toml
    "aiortc": ("aiortc", "web"),
    "atheris": ("atheris", "fuzz"),
    "av": ("av", "cpu"),
    "cuda": ("cuda-bindings", "cuda"),
    "cv2": ("opencv-python-headless", "cpu"),
    "dlib": ("dlib-bin", "cpu"),
    "fastapi": ("fastapi", "web"),
    "hibari": ("hibari-tts", "train"),
    "jinja2": ("jinja2", "cpu"),
    "kaldi_native_fbank": ("kaldi-native-fbank", "cpu"),
    "matplotlib": ("matplotlib", "train"),
    "ml_dtypes": ("ml_dtypes", "export"),
    "onnx": ("onnx", "export"),
    "onnxruntime": ("onnxruntime", "cpu"),
    "onnxscript": ("onnxscript", "export"),
    "prometheus_client": ("prometheus_client", "metrics"),
    "pyarrow": ("pyarrow", "scan"),
    "pyworld": ("pyworld-prebuilt", "train"),
    "ray": ("ray", "scan"),
    "rich": ("rich", "cpu"),
    "safetensors": ("safetensors", "train"),
    "sklearn": ("scikit-learn", "train"),
    "sounddevice": ("sounddevice", "mic"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx"),
    "torch": ("torch", "train"),
    "uvicorn": ("uvicorn", "web"),
    "websockets": ("websockets", "web"),
}


@contextmanager
def optional(
    purpose: str, *, extra: str | None = None, remedy: str | None = None
) -> Iterator[None]:
    """Around imports; an ImportError becomes a :class:`DependencyError` with the remedy.

    purpose : what it is for, as "to read media files" or "for --metrics"
    extra : instead of the one in :data:`PACKAGES`; several are separated by commas
    remedy : instead of installing an extra
    """
    try:
        yield
    except ImportError as err:
        raise _missing(err, purpose, extra, remedy) from err


def first_of(modules: Sequence[str], purpose: str, *, remedy: str | None = None) -> Any:
    """The first of several modules that loads; raises as :func:`optional` does for the first."""
    errors = []
    for name in modules:
        try:
            return importlib.import_module(name)
        except ImportError as err:
            errors.append(err)
    raise _missing(errors[0], purpose, None, remedy) from errors[0]


def _missing(
    err: ImportError, purpose: str, extra: str | None, remedy: str | None
) -> DependencyError:
    module = err.name or str(err)
    package, usual = PACKAGES.get(module.split(".")[0], (module, "cpu"))
    there = "" if isinstance(err, ModuleNotFoundError) else f" and does not load ({err})"
    remedy = remedy or f"pip install '.[{extra or usual}]'"
    return DependencyError(f"{package} is needed {purpose}{there}: {remedy}")


def installed(module: str) -> bool:
    """Is there such a module?  It is not imported."""
    return importlib.util.find_spec(module) is not None
