# SPDX-License-Identifier: Apache-2.0
"""MSCT: a frame encoder without time, and a fusion transformer without pixels.

    frames uint8 [N, H, W, 3] --FrameEncoder--> visual [N, C]
    visual [B, T, C], audio [B, T, 104] --Fusion--> logits, sync, align, embedding

Only the transformer sees time, so a stream encodes each frame once.  Dimensions: N frames,
B windows, T tokens of the 25 Hz grid, C channels, h heads, D = C / h, E align_dim, L inject_lags.

Sources: MSCT (arXiv 2604.07741); MRDF (Zou et al., ICASSP 2024) for the heads and the class
tokens; the align heads, their injection and the pre-norm placement are ours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.spec import FACE_POINTS
from trainer.config import ConfigError, ModelConfig
from trainer.model.attention import Block
from trainer.model.res2net import Res2Net

LAG_SCALE = 8.0  # peaks are some units: weights of ordinary size then make ordinary logits
SPREAD_FLOOR = 0.05  # of cosines, in quadrature: a window whose tokens are all alike says little
NORM_EPS = 1e-6  # below it a vector's length counts as zero, in every cosine here


class FusionOutput(NamedTuple):
    """What :class:`Fusion` gives for B windows of T tokens.  Index 1 of a pair of logits: fake."""

    logits_av: Tensor  # [B, 2]
    logits_a: Tensor  # [B, 2]
    logits_v: Tensor  # [B, 2]
    sync: Tensor  # [B, T] cosine of z_v,t and z_a,t after the last block
    align_v: Tensor  # [B, T, E] unit norm, from the picture alone
    align_a: Tensor  # [B, T, E] unit norm, from the sound alone
    embedding: Tensor  # [B, 2C] class tokens: visual, then audio


class TrainingOutput(NamedTuple):
    """:class:`FusionOutput`, field by field, and what only the losses need."""

    logits_av: Tensor  # [B, 2]
    logits_a: Tensor  # [B, 2]
    logits_v: Tensor  # [B, 2]
    sync: Tensor  # [B, T]
    align_v: Tensor  # [B, T, E]
    align_a: Tensor  # [B, T, E]
    embedding: Tensor  # [B, 2C]
    similarity: Tensor  # [B] d of Eq. 3: cosine of the time-means of z_v,1..T and z_a,1..T
    lag_peaks: Tensor  # [B, 2] of lag_peaks(); [B, 0] where the model takes no lag evidence


def unit(x: Tensor) -> Tensor:
    """x / max(|x|, NORM_EPS) over the last axis."""
    return F.normalize(x, dim=-1, eps=NORM_EPS)


def sinusoids(length: int, channels: int, like: Tensor) -> Tensor:
    """Fixed positions relative to the window, float32, shape = (length, channels)."""
    half = channels // 2
    index = torch.arange(half, dtype=torch.float32, device=like.device)
    rate = torch.exp(index * (-math.log(10_000.0) / half))
    time = torch.arange(length, device=like.device).to(torch.float32)
    angle = time[:, None] * rate  # [T, C/2]
    return torch.cat((angle.sin(), angle.cos()), dim=-1)  # [T, C]


def lag_band(similarity: Tensor, lags: int) -> Tensor:
    """Diagonals -L..L of each square matrix: band[b, t, L + l] = similarity[b, t, t + l].

    Entries beyond the matrix are 0.  shape = (B, T, T) -> (B, T, 2L + 1), for any T.
    """
    b, t, _ = similarity.shape
    width = t + 2 * lags
    padded = F.pad(similarity, (lags, lags)).reshape(b, t * width)  # [B, T * (T + 2L)]
    # Rows one element longer than before: each starts one column further right.
    skewed = F.pad(padded, (0, t)).reshape(b, t, width + 1)
    return skewed[..., : 2 * lags + 1]


def lag_peaks(similarity: Tensor, lags: int, within: int) -> Tensor:
    """The lag curve's highest points up to ``within`` tokens from 0, and from there to ``lags``.

    similarity (B, T, T), video by audio -> (B, 2).  A point of the curve is the mean over the
    tokens that have a partner at that lag; it counts in standard deviations of all similarities of
    the window over their mean, since how far these spread differs from face to face (z-norm, as in
    speaker verification: Auckenthaler et al., 2000).
    """
    band, t = lag_band(similarity, lags), similarity.shape[1]  # [B, T, 2L + 1]
    distance = torch.arange(-lags, lags + 1, device=band.device).abs()  # [2L + 1]
    partners = (t - distance).clamp(min=1).to(band.dtype)
    curve = band.sum(1) / partners  # [B, 2L + 1]
    first, last = lags - within, lags + within + 1
    inside = curve[:, first:last].amax(1)
    beyond = torch.cat((curve[:, :first], curve[:, last:]), dim=1).amax(1)
    mean = similarity.mean((1, 2))[:, None]  # [B, 1]
    variance = (similarity - mean[:, None]).square().mean((1, 2))[:, None]
    spread = (variance + SPREAD_FLOOR**2).sqrt()
    return (torch.stack((inside, beyond), dim=1) - mean) / spread


class FaceOutput(NamedTuple):
    """What a frame encoder with heads gives for N crops."""

    visual: Tensor  # [N, C]
    geometry: Tensor  # [N, G] what lips, chin and cheeks do, the head's pose taken out
    points: Tensor  # [N, P, 2] x, y in pixels of the crop; runtime.spec.FACE_POINTS
    presence: Tensor  # [N] probability that the crop shows a face


class FaceHeads(nn.Module):
    """Linear layers of the visual features.

    They start by saying nothing: points in the crop's middle, presence undecided.  Points count in
    eighths of the crop inside, so that one learning rate suits all three.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.crop_px = cfg.crop_px
        self.geometry = nn.Linear(cfg.channels, cfg.geometry_dim)
        self.points = nn.Linear(cfg.channels, 2 * len(FACE_POINTS))
        self.presence = nn.Linear(cfg.channels, 1)
        for head in (self.geometry, self.points, self.presence):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, visual: Tensor) -> FaceOutput:
        """``presence`` is a logit here: [N]."""
        points = self.crop_px * (0.5 + 0.125 * self.points(visual))
        return FaceOutput(
            visual,
            self.geometry(visual),
            points.unflatten(1, (len(FACE_POINTS), 2)),
            self.presence(visual).squeeze(1),
        )

    def start_at(self, geometry: Tensor, points: Tensor) -> None:
        """Say this of every crop before anything is learned: [G], and [P, 2] pixels."""
        with torch.no_grad():
            self.geometry.bias.copy_(geometry)
            self.points.bias.copy_(8 * (points.flatten() / self.crop_px - 0.5))


class FrameEncoder(nn.Module):
    """One face crop at a time: uint8 RGB [N, H, W, 3] -> float [N, C].

    With ``geometry_dim`` it reads and follows the face besides: :meth:`follow`.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.crop_px = cfg.crop_px
        self.flatten = cfg.backbone.pooling == "flatten"
        self.backbone = Res2Net(cfg.backbone)
        side = cfg.crop_px // cfg.backbone.stride if self.flatten else 1
        self.project = nn.Linear(cfg.backbone.outputs[-1] * side * side, cfg.channels)
        self.norm = nn.LayerNorm(cfg.channels)
        self.heads = FaceHeads(cfg) if cfg.geometry_dim else None

    def forward(self, frames: Tensor) -> Tensor:
        x = frames.to(self.project.weight.dtype)  # the first node: Cast precedes Transpose
        x = x.permute(0, 3, 1, 2) * (1.0 / 127.5) - 1.0  # [N, 3, H, W] in [-1, 1], channels last
        x = self.backbone(x)  # [N, outputs, H/stride, W/stride]
        x = x.flatten(1) if self.flatten else x.mean((2, 3))
        return self.norm(self.project(x))  # [N, C]

    def follow(self, frames: Tensor) -> FaceOutput:
        """All that a crop says.  Raises ConfigError for an encoder without heads."""
        out = self.follow_logits(frames)
        return out._replace(presence=out.presence.sigmoid())

    def follow_logits(self, frames: Tensor) -> FaceOutput:
        """As :meth:`follow`, ``presence`` being the logit that training wants."""
        if self.heads is None:
            raise ConfigError("this frame encoder has no heads: geometry_dim is 0")
        out: FaceOutput = self.heads(self(frames))
        return out


class AlignHead(nn.Module):
    """Tokens of one modality -> unit vectors of the shared space: (B, T, inputs) -> (B, T, E).

    Temporal convolutions see +-2 tokens a layer; padded with zeros at the window's ends.
    """

    def __init__(self, inputs: int, cfg: ModelConfig) -> None:
        super().__init__()
        c, k = cfg.channels, cfg.align_kernel
        self.convs = nn.ModuleList(
            nn.Conv1d(inputs if i == 0 else c, c, k, padding=k // 2)
            for i in range(cfg.align_layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(c) for _ in range(cfg.align_layers))
        self.project = nn.Linear(c, cfg.align_dim)

    def forward(self, x: Tensor) -> Tensor:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = F.gelu(norm(conv(x.transpose(1, 2)).transpose(1, 2)))  # [B, T, C]
            x = y if i == 0 else x + y
        return unit(self.project(x))


class Fusion(nn.Module):
    """visual [B, T, C] and audio [B, T, 104] of one 25 Hz window -> :class:`FusionOutput`.

    A missing modality is all zeros; training with modality dropout makes that meaningful.

    ``inject_alignment`` (ours, not the paper's) adds to every token of both streams, before the
    blocks, one shared projection of its align vector, so that a query from the other modality
    finds the token that it belongs to; ``inject_lags`` = L adds the similarity of this video
    token to the audio tokens t-L..t+L (for the audio stream: of this audio token to the video
    tokens), so that a shift is visible to every token.

    ``lag_evidence`` adds to the multimodal logits a linear function of :func:`lag_peaks`: two
    numbers that mean the same for every face and voice, beside class tokens that learn whoever
    trained them.  No gradient goes back through it: the contrast alone shapes the alignment.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        c = cfg.channels
        self.lags = cfg.inject_lags
        self.audio_project = nn.Linear(cfg.audio_dim, c)
        self.align_visual = AlignHead(c, cfg)
        self.align_audio = AlignHead(cfg.audio_dim, cfg)
        self.inject = nn.Linear(cfg.align_dim, c) if cfg.inject_alignment else None
        self.inject_band = nn.Linear(2 * self.lags + 1, c) if self.lags else None
        self.class_visual = nn.Parameter(0.02 * torch.randn(1, 1, c))
        self.class_audio = nn.Parameter(0.02 * torch.randn(1, 1, c))
        self.dropout = nn.Dropout(cfg.dropout)
        self.blocks = nn.ModuleList(Block(cfg, depth) for depth in range(cfg.blocks))
        self.norm_visual = nn.LayerNorm(c)
        self.norm_audio = nn.LayerNorm(c)
        self.head_visual = nn.Linear(c, 2)
        self.head_audio = nn.Linear(c, 2)
        self.head_both = nn.Linear(2 * c, 2)
        self.transport = cfg.lag_evidence
        self.head_lags = nn.Linear(2, 2) if cfg.lag_evidence else None
        self._initialise(cfg.blocks)

    def _initialise(self, blocks: int) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        heads = (self.head_visual, self.head_audio, self.head_both, self.head_lags)
        for head in (h for h in heads if h is not None):
            nn.init.normal_(head.weight, std=0.02)  # starts undecided
        for name, parameter in self.blocks.named_parameters():
            # Three residual branches a block: keep the stream's variance whatever the depth.
            if name.endswith(("out.weight", "ffn.3.weight")):
                with torch.no_grad():
                    parameter.mul_((3 * blocks) ** -0.5)

    def forward(self, visual: Tensor, audio: Tensor) -> FusionOutput:
        return FusionOutput(*self.for_training(visual, audio)[: len(FusionOutput._fields)])

    def for_training(self, visual: Tensor, audio: Tensor) -> TrainingOutput:
        """As :meth:`forward`, with what the losses need besides."""
        b, t, c = visual.shape
        align_v, align_a = self.align_visual(visual), self.align_audio(audio)  # [B, T, E]
        positions = sinusoids(t, c, visual).to(visual.dtype)  # [T, C]
        x_v = visual + positions
        x_a = self.audio_project(audio) + positions
        if self.inject is not None:
            x_v, x_a = x_v + self.inject(align_v), x_a + self.inject(align_a)
        peaks = visual.new_zeros(b, 0)
        if self.inject_band is not None:
            similarity = align_v @ align_a.transpose(1, 2)  # [B, T of video, T of audio]
            if self.transport:
                peaks = lag_peaks(similarity.detach(), self.lags, self.transport)
            x_v = x_v + self.inject_band(lag_band(similarity, self.lags))
            x_a = x_a + self.inject_band(lag_band(similarity.transpose(1, 2), self.lags))
        z_v = self.dropout(torch.cat((self.class_visual.expand(b, -1, -1), x_v), dim=1))
        z_a = self.dropout(torch.cat((self.class_audio.expand(b, -1, -1), x_a), dim=1))
        for block in self.blocks:
            z_v, z_a = block(z_v, z_a)  # [B, 1 + T, C]
        z_v, z_a = self.norm_visual(z_v), self.norm_audio(z_a)

        pooled_v, pooled_a = z_v[:, 1:].mean(1), z_a[:, 1:].mean(1)  # [B, C]
        embedding = torch.cat((z_v[:, 0], z_a[:, 0]), dim=-1)  # [B, 2C]
        logits_av = self.head_both(embedding)
        if self.head_lags is not None:
            logits_av = logits_av + self.head_lags(LAG_SCALE * peaks)
        return TrainingOutput(
            logits_av=logits_av,
            logits_a=self.head_audio(pooled_a),
            logits_v=self.head_visual(pooled_v),
            sync=(unit(z_v[:, 1:]) * unit(z_a[:, 1:])).sum(-1),
            align_v=align_v,
            align_a=align_a,
            embedding=embedding,
            similarity=(unit(pooled_v) * unit(pooled_a)).sum(-1),
            lag_peaks=peaks,
        )


class MSCT(nn.Module):
    """Both graphs in one, for training."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.frame_encoder = FrameEncoder(cfg)
        self.fusion = Fusion(cfg)
        self.to(memory_format=torch.channels_last)  # frames arrive so: [N, H, W, 3] on disk

    def forward(self, frames: Tensor, audio: Tensor) -> TrainingOutput:
        """frames uint8 [B, T, H, W, 3], audio float [B, T, 104]."""
        b, t = frames.shape[:2]
        visual = self.frame_encoder(frames.flatten(0, 1)).view(b, t, -1)  # [B, T, C]
        return self.fusion.for_training(visual, audio)
