# SPDX-License-Identifier: Apache-2.0
"""Scores of prepared clips: of every window for validation and calibration, of whole clips for
evaluation, as the paper scores them.

Frames are encoded once a clip, windows fused from the cached features, as the runtime does.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from runtime.alignment import clarity, lag_curve, lag_peak
from runtime.errors import UsageError
from runtime.spec import FAKE, Calibration, StreamSpec
from trainer import metrics
from trainer.data.prepared import PreparedClip
from trainer.model.msct import MSCT

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


# --- clips ----------------------------------------------------------------------------------

_COLUMNS = {
    "file": str,
    "identity": str,
    "category": str,
    "method": str,
    "fake": int,
    "fake_video": int,
    "fake_audio": int,
    "synthetic_voice": int,
    "p_fake": float,
    "p_fake_video": float,
    "p_fake_audio": float,
    "windows": int,
    "judged": int,
}
_GROUP = "group:"  # before the name of a group, in the header of the CSV


@dataclass
class ClipScores:
    """One entry a clip: the table that every model gives, and that every figure is made from."""

    file: Array  # [n] str
    identity: Array  # [n] str
    category: Array  # [n] str
    method: Array  # [n] str
    fake: Array  # [n] 0 or 1: anything forged
    fake_video: Array  # [n] 0 or 1
    fake_audio: Array  # [n] 0 or 1: FakeAVCeleb's label, the sound is not the clip's own
    synthetic_voice: Array  # [n] 0 or 1: the voice is made by a machine
    p_fake: Array  # [n]
    p_fake_video: Array  # [n] NaN where the model has no such score
    p_fake_audio: Array  # [n]
    windows: Array  # [n] that the score is the mean of
    judged: Array  # [n] of them that lie in the model's domain; the score takes all of them
    groups: dict[str, Array]  # name -> [n] str, "" where unknown
    embedding: Array | None = None  # [n, E]

    def __len__(self) -> int:
        return len(self.file)

    def where(self, mask: Array) -> ClipScores:
        values = {name: getattr(self, name)[mask] for name in _COLUMNS}
        embedding = None if self.embedding is None else self.embedding[mask]
        groups = {name: v[mask] for name, v in self.groups.items()}
        return ClipScores(**values, groups=groups, embedding=embedding)

    @classmethod
    def of(cls, clips: Sequence[PreparedClip], rows: Sequence[ClipRow]) -> ClipScores:
        """Labels from the clips, scores from the rows, one of each a clip."""
        labels = {
            "file": [c.file for c in clips],
            "identity": [c.identity for c in clips],
            "category": [c.category for c in clips],
            "method": [c.method for c in clips],
            "fake": [int(c.fake_video or c.fake_audio) for c in clips],
            "fake_video": [int(c.fake_video) for c in clips],
            "fake_audio": [int(c.fake_audio) for c in clips],
            "synthetic_voice": [int(c.synthetic_voice) for c in clips],
        }
        known = sorted({name for c in clips for name in c.groups})
        embedding = [r.embedding for r in rows if r.embedding is not None]
        return cls(
            **{k: np.array(v) for k, v in labels.items()},
            **{
                k: np.array([getattr(r, k) for r in rows])
                for k in ("p_fake", "p_fake_video", "p_fake_audio", "windows", "judged")
            },
            groups={g: np.array([str(c.groups.get(g, "")) for c in clips]) for g in known},
            embedding=np.stack(embedding) if embedding else None,
        )

    def write(self, path: Path) -> None:
        """CSV, and the embeddings beside it as .npz; the CSV comes last and whole or not at all."""
        if self.embedding is not None:
            embedding = self.embedding
            _replace(
                path.with_suffix(".npz"),
                lambda part: np.savez(part, clip=self.file, embedding=embedding),
            )
        _replace(path, self._write_csv)

    def _write_csv(self, part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*_COLUMNS, *(_GROUP + g for g in self.groups)])
            for i in range(len(self)):
                row = [getattr(self, name)[i] for name in _COLUMNS]
                groups = [v[i] for v in self.groups.values()]
                writer.writerow(
                    [repr(float(v)) if isinstance(v, float) else v for v in row] + groups
                )

    @classmethod
    def read(cls, path: Path) -> ClipScores:
        """Raises :class:`UsageError` for a file that is no such table."""
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            values = {
                name: np.array([kind(row[name]) for row in rows]) for name, kind in _COLUMNS.items()
            }
            names = [k for k in rows[0] if k.startswith(_GROUP)]
            groups = {k.removeprefix(_GROUP): np.array([r[k] for r in rows]) for k in names}
            embedding = None
            if path.with_suffix(".npz").is_file():
                with np.load(path.with_suffix(".npz")) as arrays:
                    if arrays["clip"].tolist() == values["file"].tolist():
                        embedding = arrays["embedding"]
        except (OSError, ValueError, KeyError, IndexError) as err:
            raise UsageError(f"{path} is no table of clip scores ({err}); score again") from err
        return cls(**values, groups=groups, embedding=embedding)


@dataclass
class ClipRow:
    """What a model says of one clip."""

    p_fake: float
    p_fake_video: float
    p_fake_audio: float
    windows: int
    judged: int
    embedding: Array | None  # [E]


def window_starts(length: int, window: int) -> list[int]:
    """Windows at half their length, the last one flush with the end: no token is left out."""
    last = max(0, length - window)
    return sorted({*range(0, last, max(1, window // 2)), last})


@torch.inference_mode()
def score_clips(
    model: MSCT,
    clips: Sequence[PreparedClip],
    stream: StreamSpec,
    calibration: Calibration | None = None,
) -> ClipScores:
    """One score a clip: the sigmoid of the mean, over its windows, of the calibrated difference of
    logits.  Without ``calibration`` the difference is the network's own, so that 0.5 is the
    paper's argmax.

    Windows are :func:`window_starts`'; a clip shorter than a window is one shorter window.
    ``judged`` counts the windows whose clarity lies in the domain of the calibration; they are
    counted, not left out, since the paper's protocol scores every clip.
    """
    model.eval()
    calibration = calibration or Calibration()
    device = next(model.parameters()).device
    rows = []
    for clip in clips:
        crops, tokens = clip.crops, clip.tokens
        window = min(stream.window_tokens, len(crops))
        visual = torch.cat(
            [  # in parts: the memory of a long clip is that of a window
                model.frame_encoder(torch.from_numpy(crops[i : i + 64]).to(device))
                for i in range(0, len(crops), 64)
            ]
        )  # [T, C]
        starts = window_starts(len(crops), window)
        pick = np.add.outer(np.array(starts), np.arange(window))  # [B, T of the window]
        out = model.fusion(visual[pick], torch.from_numpy(tokens).to(device)[pick])
        v, a = out.align_v.cpu().numpy(), out.align_a.cpu().numpy()
        inside = [clarity(v[i], a[i]) >= calibration.min_clarity for i in range(len(starts))]
        p_fake, p_video, p_audio = (
            _mean_probability(logits, temperature, bias)
            for logits, temperature, bias in (
                (out.logits_av, calibration.temperature_av, calibration.bias_av),
                (out.logits_v, calibration.temperature_v, calibration.bias_v),
                (out.logits_a, calibration.temperature_a, calibration.bias_a),
            )
        )
        embedding = out.embedding.float().mean(0).cpu().numpy()
        rows.append(ClipRow(p_fake, p_video, p_audio, len(starts), sum(inside), embedding))
    return ClipScores.of(clips, rows)


def _mean_probability(logits: torch.Tensor, temperature: float, bias: float) -> float:
    difference = (logits[:, FAKE] - logits[:, 1 - FAKE]).double().cpu()
    return float(torch.sigmoid((difference / temperature + bias).mean()))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
