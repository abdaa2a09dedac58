# SPDX-License-Identifier: Apache-2.0
"""Both custom ops against float64 loops: in torch, and as ONNX functions in ONNX Runtime."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from scipy.signal import correlate2d  # noqa: E402

from trainer.model import ops  # noqa: E402

LENGTHS = (1, 2, 51, 150)  # T
SHAPES = [(2, 4, t, 16) for t in LENGTHS] + [(1, 8, 51, 64), (3, 4, 7, 5), (1, 12, 13, 1)]
OPSET = 18


def key_conv_reference(keys, weights, biases, prefix):
    """Scalar definition: zero the prefix, correlate each pair of heads, put the prefix back."""
    b, h, t, _ = keys.shape
    group = h // 4
    rest = keys.astype(np.float64).copy()
    rest[:, :, :prefix] = 0.0
    out = np.empty_like(rest)
    for n in range(b):
        for head in range(h):
            g, o = divmod(head, group)
            plane = np.full(rest.shape[2:], float(biases[g][o]))
            for i in range(group):
                # Full correlation, then the middle: mode "same" follows the larger operand.
                kernel = weights[g][o, i].astype(np.float64)
                pad = kernel.shape[0] // 2
                plane += correlate2d(np.pad(rest[n, g * group + i], pad), kernel, mode="valid")
            out[n, head] = plane
    out[:, :, : min(prefix, t)] = keys[:, :, : min(prefix, t)]
    return out


def attention_reference(q_self, q_cross, keys, values, lam, scale):
    """One query at a time, in float64."""

    def softmax(x):
        e = np.exp(x - x.max())
        return e / e.sum()

    q_self, q_cross, keys, values = (x.astype(np.float64) for x in (q_self, q_cross, keys, values))
    out = np.empty_like(q_self)
    for n, head, t in np.ndindex(q_self.shape[:3]):
        own = softmax(scale * keys[n, head] @ q_self[n, head, t])
        cross = softmax(scale * keys[n, head] @ q_cross[n, head, t])
        out[n, head, t] = (own - float(lam[head]) * cross) @ values[n, head]
    return out


@dataclass
class KeyConvCase:
    keys: np.ndarray
    weights: list[np.ndarray]
    biases: list[np.ndarray]
    prefix: int = 1

    @classmethod
    def random(cls, shape, kernels=(1, 3, 5, 7), dtype=np.float32, prefix=1):
        rng = np.random.default_rng(hash(shape) % 2**32)
        g = shape[1] // 4
        return cls(
            rng.standard_normal(shape).astype(dtype),
            [(rng.standard_normal((g, g, k, k)) / k).astype(dtype) for k in kernels],
            [rng.standard_normal(g).astype(dtype) for _ in kernels],
            prefix,
        )

    def reference(self):
        return key_conv_reference(self.keys, self.weights, self.biases, self.prefix)

    def torch(self):
        tensors = [torch.from_numpy(x) for x in (self.keys, *self.weights, *self.biases)]
        return ops.multi_scale_key_conv(
            tensors[0], tensors[1:5], tensors[5:], prefix_tokens=self.prefix
        ).numpy()

    def onnx(self):
        inputs = {"K": self.keys}
        inputs |= {f"W{g}": w for g, w in enumerate(self.weights)}
        inputs |= {f"b{g}": b for g, b in enumerate(self.biases)}
        kernels = [w.shape[-1] for w in self.weights]
        return run_node(ops.KEY_CONV, inputs, kernel_sizes=kernels, prefix_tokens=self.prefix)


@dataclass
class AttentionCase:
    q_self: np.ndarray
    q_cross: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    lam: np.ndarray
    scale: float

    @classmethod
    def random(cls, shape, dtype=np.float32, size=1.0):
        rng = np.random.default_rng(hash(shape) % 2**32)
        tensors = [(size * rng.standard_normal(shape)).astype(dtype) for _ in range(4)]
        lam = rng.uniform(-0.5, 1.5, shape[1]).astype(np.float32)
        return cls(*tensors, lam, shape[-1] ** -0.5)

    @property
    def inputs(self):
        return (self.q_self, self.q_cross, self.keys, self.values, self.lam)

    def reference(self):
        return attention_reference(*self.inputs, self.scale)

    def torch(self):
        tensors = [torch.from_numpy(x) for x in self.inputs]
        return ops.differential_cross_attention(*tensors, scale=self.scale).numpy()

    def onnx(self):
        named = dict(zip(("Q_self", "Q_cross", "K", "V", "lam"), self.inputs, strict=True))
        return run_node(ops.CROSS_ATTENTION, named, scale=self.scale)


def session(model):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def run_node(op, inputs, **attributes):
    """A model of one custom node, its body beside it, run by ONNX Runtime."""
    helper = onnx.helper
    first = next(iter(inputs.values()))

    def info(name, array):
        shape = [f"{name}_{i}" for i in range(array.ndim)]
        return helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), shape
        )

    graph = helper.make_graph(
        [helper.make_node(op, list(inputs), ["Y"], domain=ops.DOMAIN, **attributes)],
        op,
        [info(name, array) for name, array in inputs.items()],
        [info("Y", first)],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(ops.DOMAIN, 1)],
        functions=ops.onnx_functions(OPSET),
        ir_version=9,
    )
    onnx.checker.check_model(model, full_check=True)
    return session(model).run(None, dict(inputs))[0]


CASES = {"key_conv": KeyConvCase, "attention": AttentionCase}


@pytest.mark.parametrize("how", ["torch", "onnx"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", CASES)
def test_float32_agrees_with_float64_loops(op, shape, how):
    case = CASES[op].random(shape)
    got = getattr(case, how)()
    assert got.shape == shape
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, case.reference(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
@pytest.mark.parametrize("op", CASES)
def test_float64_torch_agrees_to_float64_rounding(op, shape):
    case = CASES[op].random(shape, dtype=np.float64)
    np.testing.assert_allclose(case.torch(), case.reference(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("op", CASES)
def test_the_same_body_is_right_for_float16(op, length):
    case = CASES[op].random((2, 4, length, 16), dtype=np.float16)
    reference = case.reference()
    got = case.onnx()
    assert got.dtype == np.float16
    torch_error = np.abs(case.torch() - reference).max()
    assert np.abs(got - reference).max() <= max(2 * torch_error, 2e-3)


def test_float16_softmax_does_not_overflow():
    # exp(40) is infinite in half precision; scores of 40 themselves are not.
    case = AttentionCase.random((1, 4, 9, 16), dtype=np.float16, size=3.0)
    assert np.isfinite(case.onnx()).all()
    np.testing.assert_allclose(case.onnx(), case.reference(), atol=2e-2)


@pytest.mark.parametrize("how", ["torch", "onnx"])
class TestKeyConv:
    @pytest.mark.parametrize("prefix", [0, 1, 3, 7])
    def test_any_prefix_up_to_all_of_t(self, how, prefix):
        case = KeyConvCase.random((2, 4, 7, 8), prefix=prefix)
        got = getattr(case, how)()
        np.testing.assert_allclose(got, case.reference(), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(got[:, :, :prefix], case.keys[:, :, :prefix])

    @pytest.mark.parametrize("kernels", [(1, 1, 1, 1), (9, 5, 3, 1), (3, 3, 11, 3)])
    def test_any_odd_kernels_in_any_order(self, how, kernels):
        case = KeyConvCase.random((1, 8, 6, 4), kernels=kernels)
        np.testing.assert_allclose(getattr(case, how)(), case.reference(), rtol=1e-5, atol=1e-5)

    def test_the_class_token_is_not_seen_even_if_it_is_infinite(self, how):
        case = KeyConvCase.random((1, 4, 9, 8))
        clean = getattr(case, how)()
        case.keys[:, :, 0] = np.inf
        np.testing.assert_array_equal(getattr(case, how)()[:, :, 1:], clean[:, :, 1:])


@pytest.mark.parametrize("how", ["torch", "onnx"])
class TestDifferentialCrossAttention:
    def test_equal_queries_and_lambda_one_cancel(self, how):
        case = AttentionCase.random((2, 4, 11, 8))
        case.q_cross = case.q_self
        case.lam = np.ones(4, np.float32)
        np.testing.assert_allclose(getattr(case, how)(), 0.0, atol=1e-7)

    def test_a_constant_part_of_v_cancels_at_lambda_one(self, how):
        case = AttentionCase.random((2, 4, 11, 8))
        case.lam = np.ones(4, np.float32)
        before = getattr(case, how)()
        case.values = case.values + np.float32(3.0)
        np.testing.assert_allclose(getattr(case, how)(), before, atol=1e-5)

    def test_lambda_zero_is_plain_attention(self, how):
        case = AttentionCase.random((2, 4, 11, 8))
        case.lam = np.zeros(4, np.float32)
        q, k, v = (torch.from_numpy(x) for x in (case.q_self, case.keys, case.values))
        plain = torch.nn.functional.scaled_dot_product_attention(q, k, v).numpy()
        np.testing.assert_allclose(getattr(case, how)(), plain, atol=1e-6)

    def test_each_head_has_its_own_lambda(self, how):
        case = AttentionCase.random((1, 4, 5, 8))
        before = getattr(case, how)()
        case.lam = case.lam + np.float32([0, 1, 0, 0])
        changed = np.abs(getattr(case, how)() - before).max(axis=(0, 2, 3)) > 1e-3
        assert changed.tolist() == [False, True, False, False]


def test_strided_inputs_give_the_same():
    case = AttentionCase.random((2, 4, 13, 8))
    tensors = [torch.from_numpy(x) for x in case.inputs]
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors[:4]]
    assert not strided[0].is_contiguous()
    got = ops.differential_cross_attention(*strided, tensors[4], scale=case.scale)
    np.testing.assert_allclose(got.numpy(), case.torch(), atol=1e-6)


def test_gradients_agree_with_finite_differences():
    torch.manual_seed(0)
    q_self, q_cross, keys, values = (
        torch.randn(1, 4, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(4)
    )
    lam = torch.rand(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *x: ops.differential_cross_attention(*x, scale=0.7),
        (q_self, q_cross, keys, values, lam),
        fast_mode=True,
    )
    weights = [
        torch.randn(1, 1, k, k, dtype=torch.float64, requires_grad=True) for k in (1, 3, 3, 5)
    ]
    biases = [torch.randn(1, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(
        lambda k, *wb: ops.multi_scale_key_conv(k, wb[:4], wb[4:]),
        (keys, *weights, *biases),
        fast_mode=True,
    )


@pytest.mark.parametrize(
    ("heads", "kernels", "why"), [(6, (1, 3, 5, 7), "4 groups"), (4, (1, 2, 3, 5), "odd")]
)
def test_shapes_that_make_no_sense_are_refused(heads, kernels, why):
    group = max(1, heads // 4)
    weights = [torch.zeros(group, group, k, k) for k in kernels]
    with pytest.raises(ValueError, match=why):
        ops.multi_scale_key_conv(torch.zeros(1, heads, 3, 2), weights, [torch.zeros(group)] * 4)


def test_bodies_need_opset_18():
    with pytest.raises(ValueError, match="opset 18"):
        ops.onnx_functions(17)


class BothOps(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = torch.nn.ModuleList(
            torch.nn.Conv2d(1, 1, k, padding=k // 2) for k in (1, 3, 5, 7)
        )
        self.register_buffer("lam", torch.tensor([1.0, 0.5, 0.0, 2.0]))

    def forward(self, q, k):
        k = ops.multi_scale_key_conv(
            k, [c.weight for c in self.convs], [c.bias for c in self.convs]
        )
        return ops.differential_cross_attention(q, q.flip(-1), k, k, self.lam, scale=0.25)


@pytest.fixture(scope="module")
def exported():
    torch.manual_seed(0)
    model = BothOps().eval()
    t = torch.export.Dim("T")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns about its own internals
        program = torch.onnx.export(
            model,
            (torch.randn(2, 4, 9, 16), torch.randn(2, 4, 9, 16)),
            dynamo=True,
            verbose=False,
            opset_version=20,
            dynamic_shapes=({2: t}, {2: t}),
        )
    return model, program.model_proto


class TestExport:
    def test_each_op_becomes_one_node_with_its_attributes(self, exported):
        _, proto = exported
        nodes = {n.op_type: n for n in proto.graph.node if n.domain == ops.DOMAIN}
        assert set(nodes) == {ops.KEY_CONV, ops.CROSS_ATTENTION}
        attributes = {
            a.name: onnx.helper.get_attribute_value(a) for n in nodes.values() for a in n.attribute
        }
        assert attributes == {"kernel_sizes": [1, 3, 5, 7], "prefix_tokens": 1, "scale": 0.25}
        assert {o.domain: o.version for o in proto.opset_import} == {"": 20, ops.DOMAIN: 1}

    def test_with_the_bodies_it_runs_at_any_length(self, exported):
        model, proto = exported
        whole = onnx.ModelProto.FromString(proto.SerializeToString())
        whole.functions.extend(ops.onnx_functions(20))
        onnx.checker.check_model(whole, full_check=True)
        run = session(whole)
        for t in LENGTHS:
            q, k = torch.randn(2, 4, t, 16), torch.randn(2, 4, t, 16)
            feed = dict(
                zip((i.name for i in run.get_inputs()), (q.numpy(), k.numpy()), strict=True)
            )
            want = model(q, k).detach().numpy()
            np.testing.assert_allclose(run.run(None, feed)[0], want, atol=1e-5)
