# SPDX-License-Identifier: Apache-2.0
"""A miniature pair written with ``onnx`` alone: the contract of the two graphs without torch.

Random weights, one attention block, crops of 32 px; FLOAT is type 1 in the
texts below.  The function bodies are short forms of the
two custom ops, generic in their type like the real ones.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper

from runtime.spec import (
    FACE_POINTS,
    FRAME_ENCODER_FILE,
    FUSION_FILE,
    METADATA_KEY,
    FaceSpec,
    ModelSpec,
    PairSpec,
)

SIDE, C, HEADS, E = 32, 32, 4, 8
D = C // HEADS

SPEC = PairSpec(
    model=ModelSpec(name="mini", channels=C, heads=HEADS, blocks=1, align_dim=E),
    face=FaceSpec(crop_px=SIDE),
    trained=True,
    pair_id="0123456789abcdef",
    model_id="mini-01234567",
)

FOLLOWING = dataclasses.replace(  # a frame encoder that follows the face
    SPEC,
    model=dataclasses.replace(SPEC.model, geometry_dim=6),
    face=FaceSpec(crop_px=SIDE, stage="encoder"),
)

BODIES = (
    """
<domain: "msct", opset_import: ["" : 18]>
MultiScaleKeyConv <prefix_tokens: int> (k, w0, w1, w2, w3, b0, b1, b2, b3) => (y)
{
  one = Constant <value = int64[1] {1}> ()
  half = Constant <value = float {0.5}> ()
  factor = CastLike (half, k)
  y = Mul (k, factor)
}
""",
    """
<domain: "msct", opset_import: ["" : 18]>
DifferentialCrossAttention <scale: float> (q, r, k, v, lam) => (y)
{
  s32 = Constant <value_float: float = @scale> ()
  s = CastLike (s32, q)
  kt = Transpose <perm = [0, 1, 3, 2]> (k)
  qs = Mul (q, s)
  rs = Mul (r, s)
  a = MatMul (qs, kt)
  b = MatMul (rs, kt)
  a32 = Cast <to = 1> (a)
  b32 = Cast <to = 1> (b)
  pa = Softmax <axis = -1> (a32)
  pb = Softmax <axis = -1> (b32)
  axes = Constant <value = int64[2] {1, 2}> ()
  l = Unsqueeze (lam, axes)
  lb = Mul (l, pb)
  d32 = Sub (pa, lb)
  d = CastLike (d32, v)
  y = MatMul (d, v)
}
""",
)

ENCODER = f"""
<ir_version: 10, opset_import: ["" : 18]>
frame_encoder (uint8[N, {SIDE}, {SIDE}, 3] frames) => (float[N, {C}] visual)
{{
  x0 = Cast <to = 1> (frames)
  x1 = Transpose <perm = [0, 3, 1, 2]> (x0)
  x2 = Mul (x1, scale)
  x3 = Conv <strides = [4, 4]> (x2, conv_w, conv_b)
  x4 = Relu (x3)
  x5 = ReduceMean <keepdims = 0> (x4, plane)
  x6 = Gemm (x5, gemm_w, gemm_b)
  visual = LayerNormalization (x6, ln_w, ln_b)
}}
"""

FACE_ENCODER = (
    ENCODER.replace(
        "visual)\n{",
        f"""visual, float[N, 6] geometry, float[N, {len(FACE_POINTS)}, 2] points, float[N] presence)
{{""",
    ).rstrip("}\n")
    + """
  geometry = Gemm (visual, geometry_w)
  p0 = MatMul (visual, points_w)
  p1 = Reshape <allowzero = 0> (p0, points_shape)
  points = Add (p1, middle)
  q0 = MatMul (visual, presence_w)
  q1 = Sigmoid (q0)
  presence = Squeeze (q1, one)
}
"""
)

FUSION = f"""
<ir_version: 10, opset_import: ["" : 18, "msct" : 1]>
fusion (float[B, T, {C}] visual, float[B, T, 104] audio)
  => (float[B, 2] logits_av, float[B, 2] logits_a, float[B, 2] logits_v, float[B, T] sync,
      float[B, T, {E}] align_v, float[B, T, {E}] align_a, float[B, {2 * C}] embedding)
{{
  shape = Shape (visual)
  tokens = Gather (shape, one_scalar)
  range = Range (zero_scalar, tokens, one_scalar)
  time = Cast <to = 1> (range)
  column = Unsqueeze (time, minus1)
  angle = Mul (column, rates)
  sine = Sin (angle)
  cosine = Cos (angle)
  positions = Concat <axis = -1> (sine, cosine)

  av0 = MatMul (visual, align_v_w)
  av1 = ReduceL2 <keepdims = 1> (av0, minus1)
  av2 = Max (av1, tiny)
  align_v = Div (av0, av2)
  aa0 = MatMul (audio, align_a_w)
  aa1 = ReduceL2 <keepdims = 1> (aa0, minus1)
  aa2 = Max (aa1, tiny)
  align_a = Div (aa0, aa2)

  v0 = Add (visual, positions)
  a0 = MatMul (audio, audio_w)
  a1 = Add (a0, positions)
  v1 = LayerNormalization (v0, ln_w, ln_b)
  a2 = LayerNormalization (a1, ln_w, ln_b)
  vh0 = Reshape <allowzero = 0> (v1, split)
  vh = Transpose <perm = [0, 2, 1, 3]> (vh0)
  ah0 = Reshape <allowzero = 0> (a2, split)
  ah = Transpose <perm = [0, 2, 1, 3]> (ah0)
  k = msct.MultiScaleKeyConv <kernel_sizes = [1, 3, 5, 7], prefix_tokens = 1>
      (vh, cw0, cw1, cw2, cw3, cb0, cb1, cb2, cb3)
  y = msct.DifferentialCrossAttention <scale = 0.35> (vh, ah, k, vh, lam)
  y1 = Transpose <perm = [0, 2, 1, 3]> (y)
  y2 = Reshape <allowzero = 0> (y1, merge)
  y3 = MatMul (y2, out_w)
  zv = Add (v0, y3)
  za = Add (a1, y2)

  nv0 = ReduceL2 <keepdims = 1> (zv, minus1)
  nv1 = Div (zv, nv0)
  na0 = ReduceL2 <keepdims = 1> (za, minus1)
  na1 = Div (za, na0)
  product = Mul (nv1, na1)
  sync = ReduceSum <keepdims = 0> (product, minus1)

  mv = ReduceMean <keepdims = 0> (zv, one)
  ma = ReduceMean <keepdims = 0> (za, one)
  logits_v = Gemm (mv, head_w)
  logits_a = Gemm (ma, head_w)
  embedding = Concat <axis = -1> (mv, ma)
  logits_av = Gemm (embedding, head_both_w)
}}
"""


def frame_encoder(spec: PairSpec = SPEC, seed: int = 0) -> ModelProto:
    """frames uint8 [N, 32, 32, 3] -> visual [N, 32], and what else the spec says."""
    rng = np.random.default_rng(seed)
    follows = bool(spec.model.geometry_dim)
    return _model(
        FACE_ENCODER if follows else ENCODER,
        spec,
        {
            **(_heads() if follows else {}),
            "scale": np.float32(1 / 255),
            "conv_w": _weights(rng, C, 3, 4, 4),
            "conv_b": _weights(rng, C),
            "plane": np.array([2, 3]),
            "gemm_w": _weights(rng, C, C),
            "gemm_b": _weights(rng, C),
            "ln_w": np.ones(C, np.float32),
            "ln_b": np.zeros(C, np.float32),
        },
    )


def _heads() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(9)
    return {
        "geometry_w": _weights(rng, C, 6),
        "points_w": _weights(rng, C, 2 * len(FACE_POINTS)),
        "points_shape": np.array([0, len(FACE_POINTS), 2]),
        "middle": np.float32(SIDE / 2),
        "presence_w": _weights(rng, C, 1),
        "one": np.array([1]),
    }


def fusion(spec: PairSpec = SPEC, seed: int = 0) -> ModelProto:
    """visual [B, T, 32], audio [B, T, 104] -> the seven outputs."""
    rng = np.random.default_rng(seed)
    group = HEADS // 4
    kernels = {f"cw{g}": _weights(rng, group, group, k, k) for g, k in enumerate((1, 3, 5, 7))}
    model = _model(
        FUSION,
        spec,
        {
            "one_scalar": np.int64(1),
            "zero_scalar": np.int64(0),
            "one": np.array([1]),
            "minus1": np.array([-1]),
            "rates": (10_000.0 ** -np.linspace(0, 1, C // 2)).astype(np.float32),
            "tiny": np.float32(1e-6),
            "split": np.array([0, 0, HEADS, D]),
            "merge": np.array([0, 0, C]),
            "align_v_w": _weights(rng, C, E),
            "align_a_w": _weights(rng, 104, E),
            "audio_w": _weights(rng, 104, C),
            "ln_w": np.ones(C, np.float32),
            "ln_b": np.zeros(C, np.float32),
            **kernels,
            **{f"cb{g}": _weights(rng, group) for g in range(4)},
            "lam": np.linspace(0.2, 1.0, HEADS, dtype=np.float32),
            "out_w": _weights(rng, C, C),
            "head_w": _weights(rng, C, 2),
            "head_both_w": _weights(rng, 2 * C, 2),
        },
    )
    model.functions.extend(onnx.parser.parse_function(text) for text in BODIES)
    return model


def write_pair(folder: Path, spec: PairSpec = SPEC) -> Path:
    """Both files in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FRAME_ENCODER_FILE).write_bytes(frame_encoder(spec).SerializeToString())
    (folder / FUSION_FILE).write_bytes(fusion(spec).SerializeToString())
    return folder


def other_pair(**changes: object) -> PairSpec:
    """The spec with some fields replaced."""
    return dataclasses.replace(SPEC, **changes)  # type: ignore[arg-type]


def _weights(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (0.3 * rng.standard_normal(shape)).astype(np.float32)


def _model(text: str, spec: PairSpec, values: dict[str, np.ndarray]) -> ModelProto:
    model = onnx.parser.parse_model(text)
    for name, value in values.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    return model
