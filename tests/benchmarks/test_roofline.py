# SPDX-License-Identifier: Apache-2.0
"""Counting graphs and predicting from data sheets: against counts by hand, and torch's counter."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="counting needs onnx (.[export])")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from benchmarks.roofline import __main__ as roofline  # noqa: E402
from benchmarks.roofline.graph_cost import Cost, Graph, count, fixed  # noqa: E402
from benchmarks.roofline.model import (  # noqa: E402
    DEVICES,
    Device,
    Kernel,
    kernels,
    once,
    predict,
    totals,
)
from runtime.errors import ModelError  # noqa: E402

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
DEVICE = Device("paper", memory_gb_s=1.0, fp16_tflops=0.004, cuda_cores=1000, clock_ghz=0.0005)


def model(
    nodes: list[Any],
    inputs: dict[str, list[int | str]],
    outputs: dict[str, list[int | str]],
    weights: dict[str, list[int]] | None = None,
    kind: int = FLOAT,
    functions: list[Any] | None = None,
) -> Any:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(n, kind, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, kind, s) for n, s in outputs.items()],
        [numpy_helper.from_array(np.ones(s, dtype), n) for n, s in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("msct", 1)]
    return helper.make_model(
        graph, opset_imports=opsets[: 2 if functions else 1], functions=functions or [],
        ir_version=10,
    )  # fmt: skip


def linear(kind: int = FLOAT) -> Any:
    """relu(x [B, 3, 4] @ w [4, 5] + b [5])."""
    node = helper.make_node
    return model(
        [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["a"]),
         node("Relu", ["a"], ["y"])],
        {"x": ["B", 3, 4]}, {"y": ["B", 3, 5]}, {"w": [4, 5], "b": [5]}, kind,
    )  # fmt: skip


def by_operator(graph: Graph) -> dict[str, Cost]:
    return {cost.operator: cost for cost in graph.costs}


@pytest.mark.parametrize(("kind", "size"), [(FLOAT, 4), (HALF, 2)])
def test_a_linear_layer_by_hand(kind: int, size: int) -> None:
    found = by_operator(count(linear(kind), {"B": 2}))
    product, add, relu = found["MatMul"], found["Add"], found["Relu"]
    assert product.product_flops == 2 * (2 * 3 * 5) * 4
    assert (product.other_flops, product.half) == (0, kind == HALF)
    assert product.weights == {"w": 20 * size}
    assert product.reads == {"x": 24 * size}
    assert product.writes == {"m": 30 * size}
    assert (add.product_flops, add.other_flops, add.weights) == (0, 30, {"b": 5 * size})
    assert (relu.other_flops, relu.reads, relu.writes) == (30, {"a": 30 * size}, {"y": 30 * size})


def test_a_linear_layer_is_one_kernel_when_fused_and_three_when_not() -> None:
    graph = count(linear(), {"B": 2})
    assert [k.operators for k in kernels(graph, fused=False)] == [("MatMul",), ("Add",), ("Relu",)]
    (one,) = kernels(graph, fused=True)
    assert one.operators == ("MatMul", "Add", "Relu")
    assert (one.weight_bytes, one.read_bytes, one.written_bytes) == (100, 96, 120)
    assert (one.tensor_flops, one.cuda_flops) == (0, 240 + 60)
    assert one.bytes == once(graph).bytes
    assert totals([one])["flop_per_byte"] == pytest.approx(300 / 316)


def test_convolutions_by_hand() -> None:
    node = helper.make_node
    graph = count(
        model(
            [node("Conv", ["x", "w", "b"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1]),
             node("Conv", ["c", "d"], ["y"], group=8)],
            {"x": ["N", 4, 8, 8]}, {"y": ["N", 8, 4, 4]},
            {"w": [8, 4, 3, 3], "b": [8], "d": [8, 1, 1, 1]}, HALF,
        ),
        {"N": 3},
    )  # fmt: skip
    full, depthwise = graph.costs
    assert full.product_flops == 2 * (3 * 8 * 4 * 4) * (4 * 3 * 3)  # its bias starts the sum
    assert depthwise.product_flops == 2 * (3 * 8 * 4 * 4)
    assert full.half
    assert not depthwise.half  # no matrix product: nothing for tensor cores


def test_other_arithmetic_by_hand() -> None:
    node = helper.make_node
    found = by_operator(
        count(
            model(
                [node("Gemm", ["x", "w", "b"], ["g"], transA=1), node("Softmax", ["g"], ["s"]),
                 node("LayerNormalization", ["s", "b"], ["l"]),
                 node("ReduceL2", ["l"], ["r"]), node("Exp", ["r"], ["y"])],
                {"x": [4, 6]}, {"y": [1, 1]}, {"w": [4, 7], "b": [7]},
            ),
            {},
        )
    )  # fmt: skip
    assert found["Gemm"].product_flops == 2 * 6 * 7 * 4
    assert found["Softmax"].other_flops == 5 * 42
    assert found["LayerNormalization"].other_flops == 8 * 42
    assert found["ReduceL2"].other_flops == 2 * 42
    assert found["Exp"].other_flops == 1


def test_views_move_nothing_and_a_part_reads_only_itself() -> None:
    node = helper.make_node
    shapes = [numpy_helper.from_array(np.array(v, np.int64), n)
              for n, v in {"flat": [6], "from": [1], "to": [3]}.items()]  # fmt: skip
    made = model(
        [node("Reshape", ["x", "flat"], ["f"]), node("Slice", ["f", "from", "to"], ["y"])],
        {"x": [2, 3]}, {"y": [2]},
    )  # fmt: skip
    made.graph.initializer.extend(shapes)
    (part,) = count(made, {}).costs
    assert (part.operator, part.reads, part.writes) == ("Slice", {"x": 8}, {"y": 8})


def test_what_is_constant_at_these_sizes_costs_nothing() -> None:
    """Positions as the fusion makes them: a range as long as the window."""
    node = helper.make_node
    made = model(
        [node("Shape", ["x"], ["length"], start=1, end=2), node("Squeeze", ["length"], ["n"]),
         node("Constant", [], ["zero"], value_int=0), node("Constant", [], ["one"], value_int=1),
         node("Range", ["zero", "n", "one"], ["time"]),
         node("CastLike", ["time", "x"], ["float"]), node("Sin", ["float"], ["angle"]),
         node("Add", ["x", "angle"], ["y"])],
        {"x": ["B", "T"]}, {"y": ["B", "T"]},
    )  # fmt: skip
    flat, _ = fixed(made, {"B": 1, "T": 4})
    assert [n.op_type for n in flat.graph.node] == ["Add"]
    (angles,) = flat.graph.initializer
    np.testing.assert_allclose(numpy_helper.to_array(angles), np.sin([0.0, 1, 2, 3]), atol=1e-6)
    assert made.graph.node[0].op_type == "Shape"  # the argument is left alone


def test_a_custom_op_is_counted_by_its_body_and_fused_to_one_kernel() -> None:
    trainer_ops = pytest.importorskip("trainer.model.ops", reason="needs torch (.[train])")
    b, h, t, d = 2, 4, 5, 8
    node, heads = helper.make_node, [b, h, t, d]
    made = model(
        [node("Relu", ["x"], ["q"]),
         node("DifferentialCrossAttention", ["q", "c", "k", "v", "lam"], ["a"], domain="msct",
              scale=0.5),
         node("Neg", ["a"], ["y"])],
        dict.fromkeys("xckv", heads), {"y": heads}, {"lam": [h]},
        functions=trainer_ops.onnx_functions()[1:],
    )  # fmt: skip
    graph = count(made, {})
    scores, mix = 2 * (b * h * t * t) * d, 2 * (b * h * t * d) * t
    assert sum(cost.product_flops for cost in graph.costs) == 2 * scores + mix
    before, op, after = kernels(graph, fused=True)
    assert (before.operators, after.operators) == (("Relu",), ("Neg",))
    tensor = b * h * t * d * 4  # and lam [h] with the scale, its constant
    assert (op.read_bytes, op.written_bytes, op.weight_bytes) == (4 * tensor, tensor, 4 * h + 4)


def test_a_kernel_never_waits_for_itself() -> None:
    """x feeds both the sum and its other side: the sum may join the far side only."""
    node = helper.make_node
    graph = count(
        model(
            [node("MatMul", ["x", "w"], ["m"]), node("Softmax", ["m"], ["s"]),
             node("Add", ["m", "s"], ["y"])],
            {"x": [3, 3]}, {"y": [3, 3]}, {"w": [3, 3]},
        ),
        {},
    )  # fmt: skip
    assert [k.operators for k in kernels(graph, fused=True)] == [("MatMul",), ("Softmax", "Add")]


def test_what_cannot_be_counted_is_an_error() -> None:
    unknown = model([helper.make_node("Det", ["x"], ["y"])], {"x": [2, 2]}, {"y": []})
    with pytest.raises(ModelError, match="operations of Det are not known"):
        count(unknown, {})
    with pytest.raises(ModelError, match="input x has a dimension without a size"):
        count(linear(), {"N": 2})


def test_a_kernel_takes_as_long_as_the_slowest_of_three() -> None:
    def kernel(tensor: int, cuda: int, moved: int) -> Kernel:
        return Kernel("k", ("MatMul",), tensor, cuda, moved, 0, 0)

    assert DEVICE.fp32_tflops == pytest.approx(0.001)
    by_memory, by_tensor, by_cuda = (
        kernel(0, 0, 3_000_000), kernel(8_000_000, 0, 1_000), kernel(0, 1_000_000, 1_000),
    )  # fmt: skip
    assert predict([by_memory], DEVICE)["predicted_ms"] == pytest.approx(3.0)
    assert predict([by_tensor], DEVICE)["predicted_ms"] == pytest.approx(2.0)
    assert predict([by_cuda], DEVICE)["predicted_ms"] == pytest.approx(1.0)
    both = predict([by_memory, by_tensor, by_cuda], DEVICE)
    assert both["predicted_ms"] == pytest.approx(6.0)
    assert (both["memory_bound_share"], both["bound"]) == (pytest.approx(0.5), "memory")
    assert predict([by_tensor], DEVICE)["bound"] == "compute"


def test_figures_that_no_data_sheet_has_say_how_they_were_derived() -> None:
    assert [device.name for device in DEVICES] == [
        "Orin Nano Super", "Orin NX 16GB", "AGX Orin 64GB", "Thor T5000",
    ]  # fmt: skip
    assert all("derived: 2 x" in device.to_dict()["fp32_note"] for device in DEVICES)
    assert DEVICES[2].fp32_tflops == pytest.approx(5.3, rel=0.01)  # NVIDIA's brief says 5.3
    nano, nx = DEVICES[:2]
    assert nx.fp16_tflops == pytest.approx(nano.fp16_tflops * nx.clock_ghz / nano.clock_ghz, 0.001)
    assert nx.fp16_note.startswith("derived")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_products_of_the_shipped_pair_are_those_that_torch_counts(
    real_pair: Path, precision: str
) -> None:
    """Matrix products and convolutions alone, to the last operation."""
    torch = pytest.importorskip("torch", reason="needs torch (.[train])")
    from torch.utils.flop_counter import FlopCounterMode

    from trainer.config import preset
    from trainer.model.msct import MSCT

    spec, forms = roofline.load(real_pair)
    network = MSCT(preset("msct-tiny")).eval()
    side, hop, tokens = spec.face.crop_px, spec.stream.hop_tokens, spec.stream.window_tokens
    calls = {
        "frame_encoder": (torch.zeros(hop, side, side, 3, dtype=torch.uint8),),
        "fusion": (
            torch.zeros(1, tokens, spec.model.channels),
            torch.zeros(1, tokens, spec.audio.token_dim),
        ),
    }
    for name, inputs in calls.items():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            getattr(network, name)(*inputs)
        counted = sum(cost.product_flops for cost in forms[precision][name].costs)
        assert counted == counter.get_total_flops()


def test_counts_of_the_shipped_pair_hang_together(real_pair: Path) -> None:
    result = roofline.analyse(real_pair)
    for readings in result["precisions"].values():
        alone, fused, floor = (readings[reading] for reading in roofline.READINGS)
        assert alone["flops"] == fused["flops"] == floor["flops"]
        assert alone["kernels"] > fused["kernels"]
        assert alone["bytes"] > fused["bytes"] > floor["bytes"]
        for device in alone["devices"]:
            times = [r["devices"][device]["predicted_ms"] for r in (alone, fused, floor)]
            assert times == sorted(times, reverse=True)
    fp32, fp16 = (result["precisions"][p]["once"] for p in ("fp32", "fp16"))
    stored = sum(file.stat().st_size for file in real_pair.glob("*.onnx"))
    assert 0.95 * stored < fp32["weight_bytes"] < stored  # nothing but weights is big in the files
    assert fp16["weight_bytes"] == pytest.approx(fp32["weight_bytes"] / 2, rel=0.02)
    assert fp32["tensor_core_flops"] == 0 < fp16["tensor_core_flops"]


@pytest.mark.thorough
def test_the_command_says_prediction_and_writes_json_and_picture(
    real_pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra train)")
    output, drawn = tmp_path / "new" / "roofline.json", tmp_path / "new" / "roofline.svg"
    arguments = ["--model", str(real_pair), "--output", str(output), "--picture", str(drawn)]
    assert roofline.main(arguments) == 0
    table = capsys.readouterr().out
    assert table.startswith("PREDICTION")
    assert "not in it: launching kernels" in table
    result = json.loads(output.read_text(encoding="utf-8"))
    assert result["prediction"] is True
    assert "machine" not in result  # nothing was measured on it
    picture = ET.fromstring(drawn.read_text(encoding="utf-8"))
    text = " ".join(picture.itertext())
    assert "A prediction" in text
    assert all(device.name in text for device in DEVICES)


def test_an_fp16_pair_is_counted_as_it_is(real_pair: Path, tmp_path: Path) -> None:
    from export.pair import write_pair

    write_pair(real_pair, tmp_path, half=True, clips=None, for_engine=False)
    assert list(roofline.load(tmp_path)[1]) == ["fp16"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--model", "nonsense"], 2, "no model named 'nonsense'"),
        (["--model", "{empty}"], 2, "no model in"),
        (["--model", "{broken}"], 1, "is damaged or no ONNX file"),
        (["--output", "roofline.txt"], 2, "its name must end in .json"),
        (["--picture", "roofline.png"], 2, "its name must end in .svg"),
    ],
)
def test_bad_input_is_one_line_and_a_code(
    arguments: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    for name in ("frame_encoder.onnx", "fusion.onnx"):
        (tmp_path / "broken" / name).write_bytes(b"no ONNX file")
    places = {"empty": tmp_path / "empty", "broken": tmp_path / "broken"}
    assert roofline.main([a.format(**places) for a in arguments]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
