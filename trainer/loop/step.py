# SPDX-License-Identifier: Apache-2.0
"""One part of a batch through the network and the losses of its stage.

``align``: temporal contrast alone, through the frame encoder and the align heads.  ``joint``: the
paper's four losses, and the contrast as a fifth term where it has a weight.  The network runs in
the run's precision, the losses in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.data.prepared import Batch
from trainer.loop.losses import Totals, has_positives, msct_loss, temporal_contrast
from trainer.model.msct import MSCT
from trainer.recipes import FitConfig


class Windows(NamedTuple):
    """B windows of T tokens on the device."""

    crops: Tensor  # uint8 [B, T, H, W, 3]
    audio: Tensor  # float32 [B, T, 104]
    fake: Tensor  # int64 [B]
    fake_video: Tensor  # int64 [B]
    fake_audio: Tensor  # int64 [B], of the recipe's audio_label
    matched: Tensor  # bool [B]
    lag_tokens: Tensor  # int64 [B]
    has_video: Tensor  # bool [B]
    has_audio: Tensor  # bool [B]
    jitter: Tensor  # float32 [B, 1, C] or, where there is none, [B, 1, 1] of zeros

    @classmethod
    def of(cls, batch: Batch, jitter: Tensor, audio_label: str, device: torch.device) -> Windows:
        arrays = (
            batch.crops,
            batch.audio,
            batch.fake,
            batch.fake_video,
            getattr(batch, audio_label),
            batch.matched,
            batch.lag_tokens,
            batch.has_video,
            batch.has_audio,
        )
        tensors = [*(torch.from_numpy(x) for x in arrays), jitter]
        if device.type == "cuda":
            tensors = [x.pin_memory().to(device, non_blocking=True) for x in tensors]
        return cls(*tensors)

    def pieces(self, count: int) -> list[Windows]:
        return [Windows(*x) for x in zip(*(v.chunk(count) for v in self), strict=True)]

    def totals(self) -> Tensor:
        """Sums of the sample weights of the four terms of :class:`Totals`: [4]."""
        both = self.has_video & self.has_audio
        counted = self.contrast_weight() & has_positives(self.lag_tokens, self.audio.shape[1])
        return torch.stack([x.sum() for x in (both, self.has_audio, self.has_video, counted)])

    def contrast_weight(self) -> Tensor:
        return self.matched & self.has_video & self.has_audio  # [B]


class TrainingStep(nn.Module):
    """Windows -> the terms of the loss, ``loss`` being what is minimised."""

    def __init__(self, model: MSCT, config: FitConfig, autocast: torch.autocast) -> None:
        super().__init__()
        self.model, self.config, self.autocast = model, config, autocast

    def forward(self, windows: Windows, totals: Totals, aligning: bool) -> dict[str, Tensor]:
        return self._align(windows, totals) if aligning else self._joint(windows, totals)

    def _align(self, windows: Windows, totals: Totals) -> dict[str, Tensor]:
        fusion = self.model.fusion
        with self.autocast:
            align_v = fusion.align_visual(self._visual(windows))
            align_a = fusion.align_audio(windows.audio)
        loss = temporal_contrast(
            align_v.float(),
            align_a.float(),
            offsets=windows.lag_tokens,
            weight=windows.contrast_weight(),
            total=totals.contrast,
        )
        return {"loss": loss, "contrast": loss.detach()}

    def _joint(self, windows: Windows, totals: Totals) -> dict[str, Tensor]:
        has_v, has_a = windows.has_video, windows.has_audio
        with self.autocast:
            # Few training speakers: one constant a window hides who it is, not how the face moves.
            visual = self._visual(windows) + windows.jitter
            visual = visual * has_v[:, None, None]  # a missing modality is all zeros
            out = self.model.fusion.for_training(visual, windows.audio * has_a[:, None, None])
        out = type(out)(*(x.float() for x in out))
        terms = msct_loss(
            out,
            fake_av=windows.fake,
            fake_a=windows.fake_audio,
            fake_v=windows.fake_video,
            weight_av=has_v & has_a,
            weight_a=has_a,
            weight_v=has_v,
            totals=totals,
        )
        named = {k: v.detach() for k, v in terms._asdict().items() if k != "total"}
        if not self.config.contrast_weight:
            return {"loss": terms.total, **named}
        contrast = temporal_contrast(
            out.align_v,
            out.align_a,
            offsets=windows.lag_tokens,
            weight=windows.contrast_weight(),
            total=totals.contrast,
        )
        total = terms.total + self.config.contrast_weight * contrast
        return {"loss": total, **named, "contrast": contrast.detach()}

    def _visual(self, windows: Windows) -> Tensor:
        b, t = windows.crops.shape[:2]
        return self.model.frame_encoder(windows.crops.flatten(0, 1)).view(b, t, -1)  # [B, T, C]
