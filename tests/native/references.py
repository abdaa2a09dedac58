# SPDX-License-Identifier: Apache-2.0
"""Both ops in float64 NumPy, written from the design and not from the code, and inputs for them."""

from __future__ import annotations

import numpy as np

KERNEL_SIZES = (1, 3, 5, 7)


def reference_key_conv(key, weights, biases, kernel_sizes, prefix):
    """Loops over taps: out[o] = bias[o] + sum over heads i and offsets of shifted planes."""
    batch, heads, tokens, dim = key.shape
    group = heads // 4
    seen = key.astype(np.float64)
    seen[:, :, :prefix] = 0
    out = np.empty(key.shape)  # [B, h, T, D]
    for g, k in enumerate(kernel_sizes):
        half = k // 2
        heads_in = seen[:, g * group : (g + 1) * group]  # [B, G, T, D]
        padded = np.pad(heads_in, [(0, 0), (0, 0), (half, half), (half, half)])
        weight = weights[g].astype(np.float64)  # [G, G, k, k]
        total = np.zeros((batch, group, tokens, dim)) + biases[g].astype(np.float64)[:, None, None]
        for i in range(k):
            for j in range(k):
                shifted = padded[:, :, i : i + tokens, j : j + dim]
                total += np.einsum("oc,bctd->botd", weight[:, :, i, j], shifted)
        out[:, g * group : (g + 1) * group] = total
    out[:, :, :prefix] = key[:, :, :prefix]
    return out


def reference_attention(query, key, value, scale):
    """softmax(scale query keyT) value."""
    scores = scale * np.einsum("bhtd,bhsd->bhts", query, key)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("bhts,bhsd->bhtd", scores / scores.sum(axis=-1, keepdims=True), value)


def reference_difference(q_self, q_cross, key, value, lam, scale):
    """The op, and the size of its first term: at T = 1 and lam near 1 the difference vanishes."""
    q_self, q_cross, key, value, lam = (
        np.asarray(x, np.float64) for x in (q_self, q_cross, key, value, lam)
    )
    own = reference_attention(q_self, key, value, scale)
    cross = reference_attention(q_cross, key, value, scale)
    return own - lam[:, None, None] * cross, np.abs(own).max()


def key_conv_inputs(shape, dtype, sizes=KERNEL_SIZES, seed=0):
    rng = np.random.default_rng(seed)
    group = shape[1] // 4
    key = rng.standard_normal(shape).astype(dtype)
    weights = [(rng.standard_normal((group, group, k, k)) / k).astype(dtype) for k in sizes]
    biases = [rng.standard_normal(group).astype(dtype) for _ in sizes]
    return key, weights, biases


def attention_inputs(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    q_self, q_cross, key, value = rng.standard_normal((4, *shape)).astype(dtype)
    lam = rng.uniform(0.2, 1.5, shape[1]).astype(np.float32)
    return q_self, q_cross, key, value, lam


def error(result, expected):
    """Largest difference, as a share of the largest expected value."""
    return np.abs(result - expected).max() / np.abs(expected).max()
