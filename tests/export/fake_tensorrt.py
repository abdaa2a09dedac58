# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the module ``tensorrt`` on a machine with a GPU, as far as the builder uses it.

It parses nothing: a network has the layers that the test gives it.  What it cannot show is whether
the real library agrees; test_engines.py builds with TensorRT-RTX where that is installed.
"""

from __future__ import annotations

import enum
from types import SimpleNamespace
from typing import Any


class FakeTensorRT:
    """``layers`` kinds of the parsed network; ``serialized`` what the builder gives back."""

    __version__ = "10.13.0.35"

    class LayerType(enum.Enum):
        CONVOLUTION = 0
        PLUGIN_V3 = 1

    class NetworkDefinitionCreationFlag(enum.IntEnum):
        EXPLICIT_BATCH = 0
        STRONGLY_TYPED = 1

    class BuilderFlag(enum.Enum):
        TF32 = 0

    class MemoryPoolType(enum.Enum):
        WORKSPACE = 0

    class ILogger:
        Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO")

    class IProgressMonitor:
        pass

    def __init__(self, *, plugin_layers: int = 0, serialized: bytes | None = b"engine") -> None:
        self.plugin_layers = plugin_layers
        self.serialized = serialized
        self.parse_error: str | None = None
        self.said: list[str] = []  # errors that the builder logs
        self.network_flags: list[int] = []
        self.cleared: list[Any] = []
        self.workspace: int | None = None
        self.shapes: dict[str, tuple[Any, ...]] = {}
        self.timings = b""  # what the timing cache holds at the start of a build

    def Builder(self, log: Any) -> Any:
        return _Builder(self, log)

    def OnnxParser(self, network: Any, log: Any) -> Any:
        error = SimpleNamespace(
            node_name=lambda: "n1", node_operator=lambda: "Foo", desc=lambda: self.parse_error
        )
        return SimpleNamespace(
            parse=lambda data: self.parse_error is None,
            num_errors=int(self.parse_error is not None),
            get_error=lambda i: error,
        )


class _Builder:
    def __init__(self, trt: FakeTensorRT, log: Any) -> None:
        self.trt, self.log = trt, log

    def create_network(self, flags: int) -> Any:
        self.trt.network_flags.append(flags)
        kinds = [self.trt.LayerType.CONVOLUTION]
        kinds += [self.trt.LayerType.PLUGIN_V3] * self.trt.plugin_layers
        return SimpleNamespace(
            num_layers=len(kinds), get_layer=lambda i: SimpleNamespace(type=kinds[i])
        )

    def create_builder_config(self) -> Any:
        return _Config(self.trt)

    def create_optimization_profile(self) -> Any:
        def set_shape(name: str, *shapes: Any) -> None:
            self.trt.shapes[name] = shapes

        return SimpleNamespace(set_shape=set_shape)

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        config.progress_monitor.phase_start("Building", None, 2)
        config.progress_monitor.phase_start("Timing", "Building", 9)
        config.progress_monitor.step_complete("Timing", 0)
        config.progress_monitor.step_complete("Building", 0)
        config.progress_monitor.phase_finish("Building")
        for message in self.trt.said:
            self.log.log(self.trt.ILogger.Severity.ERROR, message)
        config.cache.content += b"+timed"
        return self.trt.serialized


class _Config:
    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt
        self.cache = SimpleNamespace(content=b"")

    def clear_flag(self, flag: Any) -> None:
        self.trt.cleared.append(flag)

    def set_memory_pool_limit(self, pool: Any, limit: int) -> None:
        self.trt.workspace = limit

    def add_optimization_profile(self, profile: Any) -> int:
        return 0

    def create_timing_cache(self, stored: bytes) -> Any:
        self.trt.timings = stored
        return SimpleNamespace(content=stored)

    def set_timing_cache(self, cache: Any, *, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return not cache.content.startswith(b"other")  # of another GPU

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.cache.content)
