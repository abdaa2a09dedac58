# SPDX-License-Identifier: Apache-2.0
"""The ways of computing an op that are compared, over the same random inputs.

On a GPU: our kernel (``ours``), torch's fused attentions by backend (``sdpa-*``), plain torch
(``eager``), torch.compile (``compiled``), TensorRT in its own layers (``tensorrt``) and through our
plugin (``tensorrt-plugin``).  On the CPU: ``eager``, ``sdpa``, ``compiled``, the function body in
ONNX Runtime (``onnxruntime``) and our C++ reference (``reference``), whose sums are in double and
which is not meant to be fast.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.ops import engine as op_engine
from benchmarks.ops import onnx_graph as op_onnx
from benchmarks.ops.cases import ATTENTION, CUDA, KERNEL_SIZES, Case
from runtime.backends import native

if TYPE_CHECKING:
    import torch

OURS, EAGER = "ours", "eager"
CPU_THREADS = 1  # the same for all
Function = Callable[[], Any]
Maker = Callable[[], Function]  # an error of it is the reason why there is no such variant


@dataclass(frozen=True)
class Built:
    """A case made ready; the makers keep the inputs alive that functions have the addresses of."""

    makers: dict[str, Maker]
    error: Callable[[Any], float]  # of a result against float64, as a share of the largest value


def build(case: Case, device: str, *, compiled: bool = False, tensorrt: bool = False) -> Built:
    """The variants of a case over fresh random inputs."""
    import torch

    tensors = inputs(case, device)
    exact = _plain(case, [tensor.double() for tensor in tensors])
    size = float(exact.abs().max())

    def error(result: Any) -> float:
        found = torch.as_tensor(result, device=exact.device).double()
        return float((found - exact).abs().max()) / size

    return Built((_on_gpu if device == CUDA else _on_cpu)(case, tensors, compiled, tensorrt), error)


def inputs(case: Case, device: str) -> list[torch.Tensor]:
    """In the order of the op: Q_self, Q_cross, K, V, lam, or K, W0 to W3, b0 to b3."""
    import torch

    generator = torch.Generator(device).manual_seed(hash(case.shape) % 2**31)
    dtype = getattr(torch, case.dtype)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    if case.op == ATTENTION:
        lam = torch.rand(case.heads, generator=generator, device=device) + 0.5
        return [*(normal(*case.shape) for _ in range(4)), lam]
    group = case.heads // 4
    weights = [normal(group, group, k, k) / k for k in KERNEL_SIZES]
    return [normal(*case.shape), *weights, *(normal(group) for _ in KERNEL_SIZES)]


def _on_gpu(
    case: Case, tensors: list[torch.Tensor], compiled: bool, tensorrt: bool
) -> dict[str, Maker]:
    makers: dict[str, Maker] = {OURS: functools.partial(_ours, case, tensors)}
    if case.op == ATTENTION:
        for name in ("flash", "efficient", "cudnn"):
            makers[f"sdpa-{name}"] = functools.partial(_two_attentions, case, tensors, name)
    makers |= _torch(case, tensors, compiled)
    if tensorrt:
        for name, plugin in (("tensorrt", False), ("tensorrt-plugin", True)):
            makers[name] = functools.partial(op_engine.in_tensorrt, case, tensors, plugin=plugin)
    return makers


def _on_cpu(
    case: Case, tensors: list[torch.Tensor], compiled: bool, _tensorrt: bool
) -> dict[str, Maker]:
    makers = _torch(case, tensors, compiled)
    if case.op == ATTENTION:
        makers["sdpa"] = functools.partial(_two_attentions, case, tensors, None)
    makers["onnxruntime"] = functools.partial(op_onnx.in_onnxruntime, case, tensors, CPU_THREADS)
    makers["reference"] = functools.partial(_reference, case, tensors)
    return makers


def _torch(case: Case, tensors: list[torch.Tensor], compiled: bool) -> dict[str, Maker]:
    def eager() -> torch.Tensor:
        return _plain(case, tensors)

    def compile_it() -> Function:
        import torch

        torch._dynamo.reset()
        function: Function = torch.compile(eager, fullgraph=True, dynamic=False)
        return function

    return {EAGER: lambda: eager, **({"compiled": compile_it} if compiled else {})}


def _plain(case: Case, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The op as in training."""
    from trainer.model import ops

    if case.op == ATTENTION:
        q_self, q_cross, keys, values, lam = tensors
        return ops.differential_cross_attention(
            q_self, q_cross, keys, values, lam, scale=case.scale
        )
    return ops.multi_scale_key_conv(tensors[0], tensors[1:5], tensors[5:])


def _ours(case: Case, tensors: Sequence[torch.Tensor]) -> Function:
    """Our CUDA kernel."""
    import torch

    out = torch.full_like(tensors[0], torch.nan)
    out_in, described = native.DeviceTensor.of(out), [native.DeviceTensor.of(t) for t in tensors]

    def attention() -> torch.Tensor:
        q_self, q_cross, key, value, lam = described
        native.differential_cross_attention_cuda(
            q_self, q_cross, key, value, lam, out_in, case.scale, stream=_stream()
        )
        return out

    def key_conv() -> torch.Tensor:
        native.multi_scale_key_conv_cuda(
            described[0], described[1:5], described[5:], out_in, KERNEL_SIZES, 1, stream=_stream()
        )
        return out

    return attention if case.op == ATTENTION else key_conv


def _reference(case: Case, tensors: Sequence[torch.Tensor]) -> Function:
    """Our C++ reference on the CPU."""
    arrays: list[Any] = [tensor.numpy() for tensor in tensors]
    if case.op == ATTENTION:
        q_self, q_cross, key, value, lam = arrays
        return lambda: native.differential_cross_attention(
            q_self, q_cross, key, value, lam, case.scale
        )
    return lambda: native.multi_scale_key_conv(arrays[0], arrays[1:5], arrays[5:], KERNEL_SIZES, 1)


def _two_attentions(case: Case, tensors: Sequence[torch.Tensor], backend: str | None) -> Function:
    """Two fused attentions and a subtraction, by one of torch's backends or by its own choice."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    q_self, q_cross, key, value, lam = tensors
    minus_lam = -lam.to(q_self.dtype)[:, None, None]  # [h, 1, 1]

    def run() -> torch.Tensor:
        own = scaled_dot_product_attention(q_self, key, value, scale=case.scale)
        cross = scaled_dot_product_attention(q_cross, key, value, scale=case.scale)
        return torch.addcmul(own, minus_lam, cross)

    if backend is None:
        return run
    chosen = getattr(SDPBackend, f"{backend.upper()}_ATTENTION")

    def run_by_backend() -> torch.Tensor:
        with sdpa_kernel(chosen), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # why a backend does not take the case
            return run()

    return run_by_backend


def _stream() -> int:
    import torch

    return int(torch.cuda.current_stream().cuda_stream)
