# SPDX-License-Identifier: Apache-2.0
"""The two custom ops, each declared once: plain torch, ONNX node, ONNX function body.

In eager torch and in training an op is the few lines of plain torch below.  While
``torch.onnx.export`` traces, it becomes one node of the ONNX domain ``msct`` (version 1);
:func:`onnx_functions` gives the bodies, of standard operators only, to put into the model's
``functions``, so that any ONNX runtime runs the file.  With the plugin library loaded, TensorRT
runs one kernel a node instead.

    MultiScaleKeyConv(K, W0..W3, b0..b3; kernel_sizes, prefix_tokens) -> K' [B, h, T, D]
    DifferentialCrossAttention(Q_self, Q_cross, K, V, lam; scale)     -> Y [B, h, T, D]

Dimensions: B windows, h heads, T tokens (the class token first), D channels a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    import onnx

DOMAIN = "msct"
VERSION = 1
GROUPS = 4  # of heads, one kernel size each
KEY_CONV = "MultiScaleKeyConv"
CROSS_ATTENTION = "DifferentialCrossAttention"


def multi_scale_key_conv(
    keys: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *, prefix_tokens: int = 1
) -> Tensor:
    """Convolve four groups of heads over the (T, D) plane, each with its own kernel size.

    The first ``prefix_tokens`` positions pass through untouched and are not seen by the
    convolution: they are zeroed, all T are convolved, and they are put back.

    Parameters
    ----------
    keys : shape = (B, h, T, D), h divisible by 4
    weights : four of shape = (h/4, h/4, k, k), k odd
    biases : four of shape = (h/4,)

    Returns
    -------
    shape = (B, h, T, D)
    """
    if len(weights) != GROUPS or len(biases) != GROUPS or keys.shape[1] % GROUPS:
        raise ValueError(f"{KEY_CONV}: needs heads, weights and biases in {GROUPS} groups")
    kernels = [int(w.shape[-1]) for w in weights]
    if any(k % 2 == 0 for k in kernels):
        raise ValueError(f"{KEY_CONV}: kernel sizes must be odd, not {kernels}")
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{KEY_CONV}",
            (keys, *weights, *biases),
            {"kernel_sizes": kernels, "prefix_tokens": prefix_tokens},
            dtype=keys.dtype,
            shape=keys.shape,
            version=VERSION,
        )
    rest = F.pad(keys[:, :, prefix_tokens:], (0, 0, prefix_tokens, 0))  # prefix zeroed
    groups = [
        F.conv2d(part, w, b, padding=w.shape[-1] // 2)
        for part, w, b in zip(rest.chunk(GROUPS, dim=1), weights, biases, strict=True)
    ]
    mixed = torch.cat(groups, dim=1)  # [B, h, T, D]
    return torch.cat((keys[:, :, :prefix_tokens], mixed[:, :, prefix_tokens:]), dim=2)


def differential_cross_attention(
    q_self: Tensor, q_cross: Tensor, keys: Tensor, values: Tensor, lam: Tensor, *, scale: float
) -> Tensor:
    """softmax(scale q_self K^T) V - lam softmax(scale q_cross K^T) V.

    The scale is applied before the first product and the softmax is done in float32 (float64
    for float64), so that half precision neither overflows nor drifts.

    Parameters
    ----------
    q_self, q_cross, keys, values : shape = (B, h, T, D)
    lam : float32, shape = (h,); ones in the paper

    Returns
    -------
    shape = (B, h, T, D), the type of ``q_self``
    """
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{CROSS_ATTENTION}",
            (q_self, q_cross, keys, values, lam),
            {"scale": float(scale)},
            dtype=q_self.dtype,
            shape=q_self.shape,
            version=VERSION,
        )
    wide = torch.promote_types(q_self.dtype, torch.float32)
    t = q_self.shape[2]
    queries = torch.cat((q_self, q_cross), dim=2) * scale  # [B, h, 2T, D]
    weights = torch.softmax(queries @ keys.transpose(-1, -2), dim=-1, dtype=wide)  # [B, h, 2T, T]
    own, cross = weights.split(t, dim=2)
    difference = own - lam.to(wide)[:, None, None] * cross  # [B, h, T, T]
    return difference.to(values.dtype) @ values


def onnx_functions(opset: int = 18) -> list[onnx.FunctionProto]:
    """The bodies of both ops, to be appended to a model's ``functions``.

    Parameters
    ----------
    opset : version of the standard operators, 18 or later: the importing model's, so that a
        runtime can inline the bodies

    The bodies are right for float32 and float16 inputs alike: constants follow the input's type
    (CastLike) and the softmax runs in float32.  They hold for any B, T and D; h divides by 4.
    """
    if opset < 18:  # Split by num_outputs, Reduce axes as inputs
        raise ValueError(f"the function bodies need opset 18 or later, not {opset}")
    return [_key_conv_function(opset), _cross_attention_function(opset)]


def _key_conv_function(opset: int) -> onnx.FunctionProto:
    from onnx import helper

    node = helper.make_node
    groups = [str(g) for g in range(GROUPS)]
    prefix = node("Constant", [], ["prefix"])
    prefix.attribute.append(_attribute_reference("value_int", "prefix_tokens", "INT"))
    nodes = [
        prefix,
        _constant("zero", value_int=0),
        _constant("one", value_int=1),
        _constant("last_axis", value_ints=[-1]),
        _constant("nothing", value_float=0.0),
        # mask [T, 1]: true on the prefix
        node("Shape", ["K"], ["length_1"], start=2, end=3),
        node("Squeeze", ["length_1"], ["length"]),
        node("Range", ["zero", "length", "one"], ["time"]),
        node("Less", ["time", "prefix"], ["early"]),
        node("Unsqueeze", ["early", "last_axis"], ["mask"]),
        # zero the prefix, convolve all T, put the prefix back
        node("CastLike", ["nothing", "K"], ["blank"]),
        node("Where", ["mask", "blank", "K"], ["rest"]),
        node("Split", ["rest"], [f"part{g}" for g in groups], axis=1, num_outputs=GROUPS),
        *(
            node("Conv", [f"part{g}", f"W{g}", f"b{g}"], [f"mixed{g}"], auto_pad="SAME_UPPER")
            for g in groups
        ),
        node("Concat", [f"mixed{g}" for g in groups], ["mixed"], axis=1),
        node("Where", ["mask", "K", "mixed"], ["Y"]),
    ]
    inputs = ["K", *(f"W{g}" for g in groups), *(f"b{g}" for g in groups)]
    return helper.make_function(
        DOMAIN,
        KEY_CONV,
        inputs,
        ["Y"],
        nodes,
        [helper.make_opsetid("", opset)],
        attributes=["kernel_sizes", "prefix_tokens"],
    )


def _cross_attention_function(opset: int) -> onnx.FunctionProto:
    from onnx import TensorProto, helper

    node = helper.make_node
    scale = node("Constant", [], ["scale_1"])
    scale.attribute.append(_attribute_reference("value_float", "scale", "FLOAT"))
    nodes = [
        scale,
        _constant("head_axes", value_ints=[1, 2]),
        node("CastLike", ["scale_1", "Q_self"], ["factor"]),
        node("Transpose", ["K"], ["K_t"], perm=[0, 1, 3, 2]),
    ]
    for name in ("self", "cross"):
        nodes += [
            node("Mul", [f"Q_{name}", "factor"], [f"scaled_{name}"]),
            node("MatMul", [f"scaled_{name}", "K_t"], [f"scores_{name}"]),  # [B, h, T, T]
            node("Cast", [f"scores_{name}"], [f"wide_{name}"], to=TensorProto.FLOAT),
            node("Softmax", [f"wide_{name}"], [f"weights_{name}"], axis=-1),
        ]
    nodes += [
        node("Unsqueeze", ["lam", "head_axes"], ["lam_h"]),  # [h, 1, 1]
        node("Mul", ["lam_h", "weights_cross"], ["weighted_cross"]),
        node("Sub", ["weights_self", "weighted_cross"], ["difference"]),
        node("CastLike", ["difference", "V"], ["narrow"]),
        node("MatMul", ["narrow", "V"], ["Y"]),
    ]
    return helper.make_function(
        DOMAIN,
        CROSS_ATTENTION,
        ["Q_self", "Q_cross", "K", "V", "lam"],
        ["Y"],
        nodes,
        [helper.make_opsetid("", opset)],
        attributes=["scale"],
    )


def _constant(name: str, **value: object) -> onnx.NodeProto:
    from onnx import helper

    return helper.make_node("Constant", [], [name], **value)


def _attribute_reference(name: str, attribute: str, kind: str) -> onnx.AttributeProto:
    """Attribute ``name`` of a node takes the value of the function's attribute."""
    from onnx import AttributeProto

    return AttributeProto(
        name=name, ref_attr_name=attribute, type=AttributeProto.AttributeType.Value(kind)
    )
