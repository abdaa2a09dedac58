# SPDX-License-Identifier: Apache-2.0
"""TensorRT-RTX's compiled kernels, kept between runs: one file an engine and kind of GPU.

TensorRT-RTX compiles its kernels when a shape is first seen.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import Any

from runtime import leftovers
from runtime.backends import cuda
from runtime.backends.manifest import MAX_MODEL_BYTES
from runtime.files import cache_dir, read_bounded


class KernelCache:
    """TensorRT-RTX's compiled kernels of one engine on one kind of GPU, kept between runs.

    TensorRT-RTX checks that they fit its version, the GPU and the driver, and else compiles anew.
    The folder is the user's own: kernels are code.
    """

    def __init__(self, blob: bytes, device: cuda.Device) -> None:
        name = f"{hashlib.sha256(blob).hexdigest()[:32]}-{device.compute_capability}.kernels"
        self.path = cache_dir() / "tensorrt-rtx" / name
        self._cache: Any = None
        self._stored = b""

    def attach(self, config: Any) -> None:
        """Let the context made with ``config`` use and fill the cache."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            with suppress(OSError):  # none yet
                stored = read_bounded(self.path, MAX_MODEL_BYTES)
                if self._cache.deserialize(stored):
                    self._stored = stored
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write what was compiled since; a folder that cannot be written costs time, no more."""
        if self._cache is None:
            return
        serialized = self._cache.serialize()
        if serialized is None or (content := bytes(serialized)) == self._stored:
            return
        with suppress(OSError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with leftovers.part_of(self.path) as part:
                part.write_bytes(content)
