# SPDX-License-Identifier: Apache-2.0
"""The attention modules of MSCT: MSSA and DCA, their plain forms SA and CA, and the block.

Dimensions: B windows, T tokens (the class token first), C channels, h heads, D = C / h.

MSSA    K' = MultiScaleKeyConv(K);  softmax(Q K'^T / sqrt(D)) V
DCA     softmax(Q_self K^T / sqrt(D)) V - lam * softmax(Q_cross K^T / sqrt(D)) V
        Q_self, K, V from the own modality, Q_cross from the other one; lam = 1 in the paper
CA      softmax(Q_cross K^T / sqrt(D)) V                     (TalkNet's form)
Block   x += SA(LN(x));  x += CA(LN(x), LN(other));  x += FFN(LN(x))
        both modalities read the other's state from before the update

The three readings of DCA that the paper leaves open are ``dca_reading``; the learned lambda with
its per-head RMSNorm is the Differential Transformer's (Ye et al., ICLR 2025; microsoft/unilm).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.model import ops

PREFIX_TOKENS = 1  # the class token


def split_heads(x: Tensor, heads: int) -> Tensor:
    b, t, c = x.shape
    return x.view(b, t, heads, c // heads).transpose(1, 2)  # [B, h, T, D]


def merge_heads(x: Tensor) -> Tensor:
    b, h, t, d = x.shape
    return x.transpose(1, 2).reshape(b, t, h * d)  # [B, T, C]


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T) v, softmax in float32: all (B, h, T, D).

    Written out, not F.scaled_dot_product_attention: that one exports the transpose of k as
    Shape, Slice and Reshape nodes, which hide the pattern from TensorRT's fused attention.
    """
    scores = (q * scale) @ k.transpose(-1, -2)  # [B, h, T, T]
    wide = torch.promote_types(q.dtype, torch.float32)
    return torch.softmax(scores, dim=-1, dtype=wide).to(v.dtype) @ v


class SelfAttention(nn.Module):
    """SA, or MSSA where the configuration says so: (B, T, C) -> (B, T, C)."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.heads = cfg.heads
        self.scale = cfg.head_dim**-0.5
        self.qkv = nn.Linear(cfg.channels, 3 * cfg.channels)
        self.out = nn.Linear(cfg.channels, cfg.channels)
        self.key_convs: nn.ModuleList | None = None
        if cfg.self_attention == "mssa":
            group = cfg.heads // 4
            self.key_convs = nn.ModuleList(
                nn.Conv2d(group, group, k, padding=k // 2) for k in cfg.mssa_kernels
            )
            for conv in self.key_convs:  # MSSA starts as SA and learns to look around
                nn.init.dirac_(conv.weight)
                nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(p, self.heads) for p in self.qkv(x).chunk(3, dim=-1))
        if self.key_convs is not None:
            k = ops.multi_scale_key_conv(
                k,
                [conv.weight for conv in self.key_convs],
                [conv.bias for conv in self.key_convs],
                prefix_tokens=PREFIX_TOKENS,
            )
        return self.out(merge_heads(attention(q, k, v, self.scale)))


class CrossAttention(nn.Module):
    """CA, or DCA in any of its readings: (own [B, T, C], other [B, T, C]) -> (B, T, C)."""

    def __init__(self, cfg: ModelConfig, depth: int) -> None:
        super().__init__()
        self.heads = cfg.heads
        self.scale = cfg.head_dim**-0.5
        self.reading = cfg.dca_reading if cfg.cross_attention == "dca" else None
        self.q_cross = nn.Linear(cfg.channels, cfg.channels)
        own = 3 if self.reading else 2  # DCA: q_self, k, v; CA: k, v
        self.own = nn.Linear(cfg.channels, own * cfg.channels)
        self.out = nn.Linear(cfg.channels, cfg.channels)
        self.learned = cfg.lambda_kind == "learned"
        if self.learned:
            self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * depth)
            # [q1, k1, q2, k2]
            self.lambda_vectors = nn.Parameter(0.1 * torch.randn(4, cfg.head_dim))
            self.head_norm = nn.RMSNorm(cfg.head_dim, eps=1e-5)
        else:
            lam = torch.full((cfg.heads,), cfg.lambda_value)
            self.register_buffer("lambda_fixed", lam, persistent=False)

    def lam(self) -> Tensor:
        """The weight of the cross term, always float32, shape = (h,)."""
        if not self.learned:
            return self.lambda_fixed.float()
        q1, k1, q2, k2 = self.lambda_vectors.float().unbind(0)
        value = torch.exp((q1 * k1).sum()) - torch.exp((q2 * k2).sum()) + self.lambda_init
        return value.expand(self.heads)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        q_cross = split_heads(self.q_cross(other), self.heads)
        parts = self.own(own).chunk(3 if self.reading else 2, dim=-1)
        *q_self, k, v = (split_heads(p, self.heads) for p in parts)
        if self.reading is None:
            y = attention(q_cross, k, v, self.scale)
        elif self.reading == "softmax_then_subtract":
            y = ops.differential_cross_attention(
                q_self[0], q_cross, k, v, self.lam(), scale=self.scale
            )
            if self.learned:
                y = self.head_norm(y) * (1.0 - self.lambda_init)
        else:
            lam = self.lam().to(k.dtype)[:, None, None]
            q = q_self[0] - lam * q_cross  # (Q_self - lam Q_cross) K^T: the logits subtracted
            if self.reading == "subtract_then_softmax":
                y = attention(q, k, v, self.scale)
            else:
                y = (q * self.scale) @ k.transpose(-1, -2) @ v
        return self.out(merge_heads(y))


class FeedForward(nn.Sequential):
    """(B, T, C) -> (B, T, C)."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__(
            nn.Linear(cfg.channels, cfg.ffn_dim),
            nn.GELU(),
            nn.Dropout(cfg.dropout),
            nn.Linear(cfg.ffn_dim, cfg.channels),
        )


class StreamBlock(nn.Module):
    """One modality's half of a block."""

    def __init__(self, cfg: ModelConfig, depth: int) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(cfg.channels)
        self.self_attention = SelfAttention(cfg)
        self.own_norm = nn.LayerNorm(cfg.channels)
        self.other_norm = nn.LayerNorm(cfg.channels)
        self.cross_attention = CrossAttention(cfg, depth)
        self.ffn_norm = nn.LayerNorm(cfg.channels)
        self.ffn = FeedForward(cfg)
        self.dropout = nn.Dropout(cfg.dropout)

    def attend_self(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.self_attention(self.self_norm(x)))

    def attend_cross(self, x: Tensor, other: Tensor) -> Tensor:
        y = self.cross_attention(self.own_norm(x), self.other_norm(other))
        return x + self.dropout(y)

    def feed_forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


class Block(nn.Module):
    """One transformer block over both modalities: two (B, T, C) in, two out."""

    def __init__(self, cfg: ModelConfig, depth: int) -> None:
        super().__init__()
        self.visual = StreamBlock(cfg, depth)
        self.audio = StreamBlock(cfg, depth)

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        visual, audio = self.visual.attend_self(visual), self.audio.attend_self(audio)
        visual, audio = (
            self.visual.attend_cross(visual, audio),
            self.audio.attend_cross(audio, visual),
        )
        return self.visual.feed_forward(visual), self.audio.feed_forward(audio)
