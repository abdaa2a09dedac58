# SPDX-License-Identifier: Apache-2.0
"""One op as an engine of TensorRT or TensorRT-RTX, over torch's tensors on a GPU.

Built as the pair's engines are (``export.builder``: strongly typed, no TF32), but for one shape:
the most that the library can make of the op.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.ops import onnx_graph as op_onnx
from benchmarks.ops.cases import ATTENTION, Case
from runtime import leftovers
from runtime.backends import native
from runtime.backends.manifest import FLAVOURS, MODULES
from runtime.errors import DependencyError, UserError

if TYPE_CHECKING:
    import torch

    from export.choice import Target


def in_tensorrt(
    case: Case, tensors: Sequence[torch.Tensor], *, plugin: bool
) -> Callable[[], torch.Tensor]:
    """The op in an engine: through our plugin, or in standard layers alone."""
    import torch

    from export.choice import Target, installed

    flavour = next(filter(installed, FLAVOURS), None)
    if flavour is None:
        raise DependencyError("no TensorRT is installed: pip install '.[tensorrt]'")
    major, minor = torch.cuda.get_device_capability()
    target = Target((f"{major}.{minor}",), here=True)
    library = native.plugin_library() if plugin else None
    blob = build_engine(case, tensors, flavour, target, library)
    out = torch.full_like(tensors[0], torch.nan)
    addresses = {**op_onnx.fed(case, tensors), op_onnx.OUTPUT: out}
    return _Engine(importlib.import_module(MODULES[flavour]), blob, addresses, library)


def build_engine(
    case: Case,
    tensors: Sequence[torch.Tensor],
    flavour: str,
    target: Target,
    library: Path | None,
) -> bytes:
    """The serialized engine; ``library``: of the plugins, None for an engine without."""
    from export import builder
    from export.plugin_graph import with_plugins

    if library is not None:
        model = with_plugins(op_onnx.one_node(case, tensors))
    elif case.op == ATTENTION:
        model = op_onnx.linear(case, tensors)
    else:
        model = op_onnx.one_node(case, tensors)  # the parser takes the body in its place
    profile = {
        name: {limit: list(tensor.shape) for limit in ("min", "opt", "max")}
        for name, tensor in op_onnx.fed(case, tensors).items()
    }
    with leftovers.folder("msct-op-") as folder:
        source, engine = Path(folder, "op.onnx"), Path(folder, "op.engine")
        source.write_bytes(model.SerializeToString())
        plugins = {} if library is None else {case.op: 1}
        graph = builder.Graph("op", source, engine, profile, plugins)
        builder.build(builder.Request(flavour, (graph,), target, library), lambda step: None)
        return engine.read_bytes()


class _Engine:
    """Runs on torch's current stream; it must have run once before it is captured."""

    def __init__(
        self, trt: Any, blob: bytes, addresses: Mapping[str, torch.Tensor], library: Path | None
    ) -> None:
        self._runtime = trt.Runtime(_logger(trt))
        if library is not None:
            self._runtime.get_plugin_registry().load_library(str(library))
        self._engine = self._runtime.deserialize_cuda_engine(blob)
        if self._engine is None:
            raise UserError("TensorRT does not load the engine that it built")
        self._context = self._engine.create_execution_context()
        self._tensors = dict(addresses)  # their memory has to stay
        for name, tensor in self._tensors.items():
            if not self._context.set_tensor_address(name, tensor.data_ptr()):
                raise UserError(f"TensorRT takes no address for {name}")

    def __call__(self) -> torch.Tensor:
        import torch

        stream = torch.cuda.current_stream().cuda_stream
        if not self._context.execute_async_v3(stream):
            raise UserError("TensorRT does not run the engine that it built")
        return self._tensors[op_onnx.OUTPUT]


@functools.cache
def _logger(trt: Any) -> Any:
    """One for the process: TensorRT keeps the first that it gets."""
    return trt.Logger(trt.Logger.ERROR)
