# SPDX-License-Identifier: Apache-2.0
"""Scores of every window of prepared clips, for validation and calibration; and the network in the
shape in which :mod:`trainer.scoring.clips` scores whole clips.

Frames are encoded once a clip, windows fused from the cached features, as the runtime does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from runtime import interrupt
from runtime.backends.base import FUSION_OUTPUTS, FaceOutput, FusionOutput
from runtime.judging.offset import clarity, lag_curve, lag_peak
from runtime.spec import StreamSpec
from trainer.data.prepared import PreparedClip
from trainer.model.msct import MSCT
from trainer.scoring import metrics

Array = npt.NDArray[Any]


@dataclass
class WindowScores:
    """One entry a window; ``difference_*`` are logits fake minus real."""

    clip: Array  # [n] index into the clips
    difference_av: Array  # [n]
    difference_v: Array  # [n]
    difference_a: Array  # [n]
    lag_error_tokens: Array  # [n] measured offset minus the clip's own transport, where known
    lag_confidence: Array  # [n]
    clarity: Array  # [n]
    lag_peaks: Array  # [n, 2] of trainer.model.msct.lag_peaks; [n, 0] for a model without
    fake: Array  # [n] 0 or 1
    fake_video: Array
    synthetic_voice: Array
    category: Array  # [n] str
    method: Array  # [n] str
    identity: Array  # [n] str

    def where(self, mask: Array) -> WindowScores:
        return WindowScores(**{k: v[mask] for k, v in vars(self).items()})


@torch.inference_mode()
def score_windows(
    model: MSCT, clips: list[PreparedClip], stream: StreamSpec, hop_tokens: int | None = None
) -> WindowScores:
    """The model is left in eval mode.  Clips shorter than a window give none."""
    model.eval()
    device = next(model.parameters()).device
    hop = hop_tokens or stream.hop_tokens
    rows: list[tuple[Any, ...]] = []
    for number, clip in enumerate(clips):
        interrupt.check()
        starts = range(0, len(clip.crops) - stream.window_tokens + 1, hop)
        if not len(starts):
            continue
        visual = model.frame_encoder(torch.from_numpy(clip.crops).to(device))  # [T, C]
        audio = torch.from_numpy(clip.tokens).to(device)
        pick = np.add.outer(np.array(starts), np.arange(stream.window_tokens))  # [B, T]
        out = model.fusion.for_training(visual[pick], audio[pick])
        v, a = out.align_v.cpu().numpy(), out.align_a.cpu().numpy()
        for i in range(len(starts)):
            peak = lag_peak(lag_curve(v[i], a[i], stream.max_lag_tokens))
            rows.append(
                (
                    number,
                    _difference(out.logits_av[i]),
                    _difference(out.logits_v[i]),
                    _difference(out.logits_a[i]),
                    peak.lag_tokens - clip.transport_tokens,
                    peak.confidence,
                    clarity(v[i], a[i]),
                    out.lag_peaks[i].cpu().numpy(),
                    int(clip.fake_video or clip.fake_audio),
                    int(clip.fake_video),
                    int(clip.synthetic_voice),
                    clip.category,
                    clip.method,
                    clip.identity,
                )
            )
    if not rows:
        raise ValueError(f"no clip is as long as a window of {stream.window_tokens} tokens")
    return WindowScores(*(np.array(column) for column in zip(*rows, strict=True)))


def _difference(logits: torch.Tensor) -> float:
    return float(logits[1] - logits[0])


def summarise(scores: WindowScores, probability: Array, threshold: float) -> dict[str, Any]:
    """Metrics of one split, per window, and what they rest on; None where a class is missing."""
    fake, near = scores.fake, np.abs(scores.lag_error_tokens) <= 1
    result: dict[str, Any] = {
        "windows": len(fake),
        "identities": len(set(scores.identity.tolist())),
        **metrics.summary(fake, probability, threshold),
        "video_head_auc": metrics.auc(scores.fake_video, scores.difference_v),
        "audio_head_auc": metrics.auc(scores.synthetic_voice, scores.difference_a),
        "flagged": {},
    }
    for key in ("category", "method"):
        names = getattr(scores, key)
        for name in sorted(set(names.tolist())):
            mask = names == name
            result["flagged"][name] = {
                "windows": int(mask.sum()),
                "identities": len(set(scores.identity[mask].tolist())),
                "share_flagged": round(float((probability[mask] >= threshold).mean()), 4),
                "lag_within_1": round(float(near[mask].mean()), 4),
                "lag_confidence": round(float(np.median(scores.lag_confidence[mask])), 4),
            }
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in result.items()}


class TorchPair:
    """A network as :class:`trainer.scoring.clips.Pair`; it is put into eval mode."""

    def __init__(self, model: MSCT) -> None:
        self.model = model.eval()
        self._device = next(model.parameters()).device

    @torch.inference_mode()
    def encode(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return _numpy(self.model.frame_encoder(torch.from_numpy(frames).to(self._device)))

    @torch.inference_mode()
    def follow(self, frames: npt.NDArray[np.uint8]) -> FaceOutput:
        out = self.model.frame_encoder.follow(torch.from_numpy(frames).to(self._device))
        return FaceOutput(*map(_numpy, out))

    @torch.inference_mode()
    def fuse(self, visual: npt.NDArray[np.float32], audio: npt.NDArray[np.float32]) -> FusionOutput:
        pair = (torch.from_numpy(array).to(self._device) for array in (visual, audio))
        out = self.model.fusion(*pair)
        return FusionOutput(*(_numpy(getattr(out, name)) for name in FUSION_OUTPUTS))


def _numpy(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    return np.asarray(tensor.float().cpu().numpy())
