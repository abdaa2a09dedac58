# SPDX-License-Identifier: Apache-2.0
"""Scores of whole clips, as the paper scores them, and the table that every model gives.

Frames are encoded once a clip, windows fused from the cached features, as the runtime does.  What
computes is a :class:`Pair`: the graphs as they ship (no torch needed), or a network by
:class:`trainer.scoring.windows.TorchPair`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from runtime import interrupt, leftovers
from runtime.backends.base import FusionOutput
from runtime.errors import UsageError
from runtime.judging.offset import clarity
from runtime.logits import calibrated, sigmoid
from runtime.sheets import original, safe
from runtime.spec import FAKE, Calibration, StreamSpec
from trainer.data.prepared import PreparedClip

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]


class Pair(Protocol):
    """The two graphs, shapes as in :class:`runtime.backends.base.Backend`."""

    def encode(self, frames: npt.NDArray[np.uint8]) -> Float32: ...

    def fuse(self, visual: Float32, audio: Float32) -> FusionOutput: ...


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
                groups = [safe(v[i]) for v in self.groups.values()]
                writer.writerow(
                    [repr(float(v)) if isinstance(v, float) else safe(v) for v in row] + groups
                )

    @classmethod
    def read(cls, path: Path) -> ClipScores:
        """Raises :class:`UsageError` for a file that is no such table."""
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            values = {
                name: np.array([kind(original(row[name])) for row in rows])
                for name, kind in _COLUMNS.items()
            }
            names = [k for k in rows[0] if k.startswith(_GROUP)]
            groups = {
                k.removeprefix(_GROUP): np.array([original(r[k]) for r in rows]) for k in names
            }
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


def score_clips(
    pair: Pair,
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
    calibration = calibration or Calibration()
    rows = []
    for clip in clips:
        interrupt.check()
        crops, tokens = clip.crops, clip.tokens
        window = min(stream.window_tokens, len(crops))
        visual = np.concatenate(  # in parts: the memory of a long clip is that of a window
            [pair.encode(crops[i : i + 64]) for i in range(0, len(crops), 64)]
        )  # [T, C]
        starts = window_starts(len(crops), window)
        pick = np.add.outer(np.array(starts), np.arange(window))  # [B, T of the window]
        out = pair.fuse(visual[pick], tokens[pick])
        bound = calibration.min_clarity
        inside = [clarity(v, a) >= bound for v, a in zip(out.align_v, out.align_a, strict=True)]
        p_fake, p_video, p_audio = (
            _mean_probability(logits, temperature, bias)
            for logits, temperature, bias in (
                (out.logits_av, calibration.temperature_av, calibration.bias_av),
                (out.logits_v, calibration.temperature_v, calibration.bias_v),
                (out.logits_a, calibration.temperature_a, calibration.bias_a),
            )
        )
        embedding = out.embedding.mean(0)
        rows.append(ClipRow(p_fake, p_video, p_audio, len(starts), sum(inside), embedding))
    return ClipScores.of(clips, rows)


def _mean_probability(logits: Float32, temperature: float, bias: float) -> float:
    difference = logits[:, FAKE].astype(np.float64) - logits[:, 1 - FAKE]
    return float(sigmoid(calibrated(difference, temperature, bias).mean()))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with leftovers.part_of(path, f".part{path.suffix}") as part:
        write(part)
