# SPDX-License-Identifier: Apache-2.0
"""Disturbances that say nothing about forgery: one draw a window, the same for all its frames.

Geometry (shift, scale, rotation, mirror), light and colour, blur by down- and up-scaling, JPEG
blocks, noise; for the sound a smooth equaliser curve and noise on the log-mel tokens.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from runtime.spec import AudioSpec

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


def augment_crops(crops: UInt8, rng: np.random.Generator) -> UInt8:
    """crops [T, H, W, 3] -> the same shape."""
    side = crops.shape[1]
    angle, scale = rng.normal(0, 4.0), np.exp(rng.normal(0, 0.05))
    matrix = cv2.getRotationMatrix2D((side / 2, side / 2), float(angle), float(scale))
    matrix[:, 2] += rng.normal(0, 0.025 * side, 2)
    mirror = rng.random() < 0.5
    gain = np.exp(rng.normal(0, 0.12)) * np.exp(rng.normal(0, 0.06, 3))
    offset = rng.normal(0, 8.0)
    grey = rng.random() < 0.05
    shrink = rng.uniform(1.2, 2.0) if rng.random() < 0.25 else None
    quality = int(rng.integers(40, 90)) if rng.random() < 0.25 else None
    noise = rng.uniform(1.0, 5.0) if rng.random() < 0.25 else None
    table = np.clip(np.arange(256)[:, None] * gain + offset, 0, 255).astype(np.uint8)  # [256, 3]
    out = np.empty_like(crops)
    for i, crop in enumerate(crops):
        x = cv2.warpAffine(
            crop, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        if shrink:
            small = round(side / shrink)
            x = cv2.resize(
                cv2.resize(x, (small, small), interpolation=cv2.INTER_AREA),
                (side, side),
                interpolation=cv2.INTER_LINEAR,
            )
        x = cv2.LUT(x, table[None])
        if quality is not None:
            x = cv2.imdecode(
                cv2.imencode(".jpg", x, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR
            )
        out[i] = x
    if grey:
        out[:] = out.mean(-1, keepdims=True).astype(np.uint8)
    if mirror:
        out = out[:, :, ::-1]
    if noise:
        out = np.clip(out + rng.normal(0, noise, out.shape), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(out)


def augment_audio(tokens: Float32, rng: np.random.Generator) -> Float32:
    """tokens [T, 104] -> the same shape, normalised again; all-zero tokens (silence) stay."""
    spec = AudioSpec()
    bins = np.linspace(0, np.pi, spec.mel_bins)
    curve = sum(rng.normal(0, 0.25) * np.cos(k * bins) for k in range(1, 5))  # [26]
    x = tokens.astype(np.float64) + np.tile(curve, spec.stack)
    x += rng.normal(0, rng.uniform(0, 0.2), x.shape)
    x -= x.mean(-1, keepdims=True)
    x /= np.sqrt(x.var(-1, keepdims=True) + spec.layer_norm_eps)
    x[np.abs(tokens).max(-1) == 0] = 0
    return x.astype(np.float32)
