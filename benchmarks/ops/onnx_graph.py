# SPDX-License-Identifier: Apache-2.0
"""One op as an ONNX model: its function body, or the form that TensorRT fuses without a plugin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.ops.cases import ATTENTION, KERNEL_SIZES, KEY_CONV, Case

if TYPE_CHECKING:
    import onnx
    import torch

OPSET = 18
IR_VERSION = 10
INPUTS = {
    ATTENTION: ("Q_self", "Q_cross", "K", "V", "lam"),
    KEY_CONV: ("K", *(f"W{g}" for g in range(4)), *(f"b{g}" for g in range(4))),
}
OUTPUT = "Y"
FED = {ATTENTION: 4, KEY_CONV: 1}  # inputs from the first on; the others are the model's weights


def fed(case: Case, tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs that change from call to call, by name."""
    count = FED[case.op]
    return dict(zip(INPUTS[case.op][:count], tensors[:count], strict=True))


def one_node(case: Case, tensors: Sequence[torch.Tensor]) -> onnx.ModelProto:
    """The op as one node, with its function body of standard operators."""
    import onnx

    from trainer.model import ops

    attributes: dict[str, Any] = {"scale": case.scale}
    if case.op == KEY_CONV:
        attributes = {"kernel_sizes": KERNEL_SIZES, "prefix_tokens": 1}
    node = onnx.helper.make_node(
        case.op, INPUTS[case.op], [OUTPUT], domain=ops.DOMAIN, **attributes
    )
    return _model(case, tensors, [node], functions=True)


def linear(case: Case, tensors: Sequence[torch.Tensor]) -> onnx.ModelProto:
    """The attention as two plain attentions and a subtraction, which TensorRT fuses each."""
    import onnx

    node = onnx.helper.make_node
    nodes = [node("Transpose", ["K"], ["K_t"], perm=[0, 1, 3, 2])]
    for name in ("self", "cross"):
        nodes += [
            node("Mul", [f"Q_{name}", "scale"], [f"scaled_{name}"]),
            node("MatMul", [f"scaled_{name}", "K_t"], [f"scores_{name}"]),
            node("Softmax", [f"scores_{name}"], [f"weights_{name}"], axis=-1),
            node("MatMul", [f"weights_{name}", "V"], [f"out_{name}"]),
        ]
    nodes += [
        node("Mul", ["out_cross", "lam_h"], ["weighted"]),
        node("Sub", ["out_self", "weighted"], [OUTPUT]),
    ]
    like, lam = tensors[0], tensors[4]
    model = _model(case, tensors, nodes, functions=False)
    del model.graph.initializer[:]
    model.graph.initializer.extend(
        [
            _constant("scale", like.new_full((1,), case.scale)),
            _constant("lam_h", lam.to(like.dtype)[:, None, None]),  # [h, 1, 1]
        ]
    )
    return model


def _model(
    case: Case, tensors: Sequence[torch.Tensor], nodes: list[onnx.NodeProto], *, functions: bool
) -> onnx.ModelProto:
    import onnx

    from trainer.model import ops

    inputs = fed(case, tensors)
    weights = list(zip(INPUTS[case.op], tensors, strict=True))[len(inputs) :]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        case.op,
        [value(name, _type(tensor), tuple(tensor.shape)) for name, tensor in inputs.items()],
        [value(OUTPUT, _type(tensors[0]), case.shape)],
        [_constant(name, tensor) for name, tensor in weights],
    )
    domains = [onnx.helper.make_opsetid("", OPSET)]
    bodies = []
    if functions:
        domains.append(onnx.helper.make_opsetid(ops.DOMAIN, ops.VERSION))
        bodies = [f for f in ops.onnx_functions(OPSET) if f.name == case.op]
    return onnx.helper.make_model(
        graph, opset_imports=domains, functions=bodies, ir_version=IR_VERSION
    )


def _constant(name: str, tensor: torch.Tensor) -> onnx.TensorProto:
    import onnx
    import torch

    raw = tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return onnx.helper.make_tensor(name, _type(tensor), tuple(tensor.shape), raw, raw=True)


def _type(tensor: torch.Tensor) -> int:
    import onnx

    names = {"float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16"}
    return int(onnx.TensorProto.DataType.Value(names[str(tensor.dtype).rpartition(".")[2]]))


def in_onnxruntime(case: Case, tensors: Sequence[torch.Tensor], threads: int) -> Callable[[], Any]:
    """The function body in ONNX Runtime on the CPU, from and into memory that stays where it is."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        one_node(case, tensors).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    out = np.full(case.shape, np.nan, np.float32)
    binding = session.io_binding()
    arrays = {name: tensor.numpy() for name, tensor in fed(case, tensors).items()}
    for name, array in arrays.items():
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    binding.bind_output(OUTPUT, "cpu", 0, out.dtype, out.shape, out.ctypes.data)

    def run() -> Any:
        session.run_with_iobinding(binding)
        return out

    return run
