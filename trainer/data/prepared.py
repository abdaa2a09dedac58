# SPDX-License-Identifier: Apache-2.0
"""The prepared set in memory, and the training windows drawn from it.

Every draw is a pure function of (seed, step): a run that is resumed sees the batches that it would
have seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import MediaError, UsageError
from trainer.augment import augment_audio, augment_crops
from trainer.data.layouts import FAKE_AUDIO, REAL_PAIR

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Rng = np.random.Generator


@dataclass(frozen=True)
class PreparedClip:
    """One clip: its crops uint8 [T, H, W, 3], tokens float32 [T, 104] and labels."""

    file: str
    identity: str
    clip: str  # name of the genuine clip that it is or was made from
    split: str
    category: str
    method: str
    fake_video: bool
    fake_audio: bool  # FakeAVCeleb's label: the sound is not the clip's own
    synthetic_voice: bool  # the voice itself is made by a machine
    matched: bool  # lips and voice belong together
    crops: UInt8
    tokens: Float32
    level_dbfs: Float32


@dataclass
class Batch:
    """B windows of T tokens, as arrays."""

    crops: UInt8  # [B, T, H, W, 3]
    audio: Float32  # [B, T, 104]
    fake: npt.NDArray[np.int64]  # [B] anything forged
    fake_video: npt.NDArray[np.int64]  # [B]
    synthetic_voice: npt.NDArray[np.int64]  # [B] what the sound alone can tell
    matched: npt.NDArray[np.bool_]  # [B] lips and voice belong together, at lag_tokens
    lag_tokens: npt.NDArray[np.int64]  # [B] transport offset: audio i + lag matches video i
    has_video: npt.NDArray[np.bool_]  # [B]
    has_audio: npt.NDArray[np.bool_]  # [B]


class PreparedSet:
    """What :mod:`trainer.prepare` wrote.  Raises :class:`UsageError` where it did not."""

    def __init__(self, folder: Path) -> None:
        try:
            index = json.loads((folder / "index.json").read_text())
        except (OSError, ValueError) as err:
            raise UsageError(
                f"{folder} has no readable index.json; make the set by trainer.prepare"
            ) from err
        self.folder = folder
        self.crop_px = int(index["crop_px"])
        self.splits: dict[str, str] = index["splits"]
        self.clips = [self._load(row) for row in index["clips"]]

    def _load(self, row: dict[str, Any]) -> PreparedClip:
        path = self.folder / row["array"]
        try:
            with np.load(path) as arrays:
                crops, tokens, level = arrays["crops"], arrays["tokens"], arrays["level_dbfs"]
        except (OSError, ValueError, KeyError) as err:
            raise MediaError(f"{path} is damaged ({err}); delete it and prepare again") from err
        length = min(len(crops), len(tokens))
        return PreparedClip(
            row["file"],
            row["identity"],
            row["clip"],
            row["split"],
            row["category"],
            row["method"],
            row["fake_video"],
            row["fake_audio"],
            row["synthetic_voice"],
            row["matched"],
            crops[:length],
            tokens[:length],
            level[:length],
        )

    def select(self, split: str) -> list[PreparedClip]:
        return [clip for clip in self.clips if clip.split == split]

    def holdout(self, share: float, seed: int) -> tuple[list[PreparedClip], list[PreparedClip]]:
        """Training clips -> (kept, held out): of each speaker with ten genuine clips or more, a
        share of the genuine clips with everything forged from them."""
        rng = np.random.default_rng(seed)
        held: set[tuple[str, str]] = set()
        train = self.select("train")
        for identity in sorted({c.identity for c in train}):
            names = sorted(
                {c.clip for c in train if c.identity == identity and c.category == REAL_PAIR}
            )
            if len(names) >= 10:
                chosen = rng.permutation(len(names))[: max(1, round(share * len(names)))]
                held |= {(identity, names[i]) for i in chosen}
        kept = [c for c in train if (c.identity, c.clip) not in held]
        return kept, [c for c in train if (c.identity, c.clip) in held]


class Sampler:
    """Draws training batches: categories in equal parts, speakers with few clips more often.

    ``remix`` is the share of the fake-audio windows made on the spot, by laying the tokens of
    another moment or of another clip of the same speaker under a genuine picture.
    """

    def __init__(
        self,
        clips: list[PreparedClip],
        *,
        window_tokens: int,
        max_lag_tokens: int,
        forged_shift_tokens: int,
        seed: int,
        remix: float = 0.5,
        modality_dropout: float = 0.1,
        augment: bool = True,
    ) -> None:
        self.window, self.max_lag = window_tokens, max_lag_tokens
        self.forged_shift, self.seed = forged_shift_tokens, seed
        self.remix, self.dropout, self.augment = remix, modality_dropout, augment
        usable = [c for c in clips if len(c.crops) >= window_tokens + 2]
        if not usable:
            raise MediaError(
                f"no training clip is as long as a window of {window_tokens} tokens; "
                "give longer clips or a smaller window"
            )
        self.by_category: dict[str, list[PreparedClip]] = {}
        for clip in usable:
            self.by_category.setdefault(clip.category, []).append(clip)
        if REAL_PAIR not in self.by_category:
            raise MediaError("the training set has no genuine clips")
        self.weights = {k: _identity_weights(v) for k, v in self.by_category.items()}
        self.genuine: dict[str, list[PreparedClip]] = {}
        for clip in self.by_category[REAL_PAIR]:
            self.genuine.setdefault(clip.identity, []).append(clip)

    def batch(self, step: int, size: int, *, genuine_only: bool = False) -> Batch:
        """The batch of one step: ``size`` windows."""
        rng = np.random.default_rng([self.seed, step])
        categories = [REAL_PAIR] if genuine_only else list(self.by_category)
        rows = [
            self._window(categories[i % len(categories)], rng, genuine_only) for i in range(size)
        ]
        return Batch(*(np.stack(column) for column in zip(*rows, strict=True)))

    def _window(self, category: str, rng: Rng, align_only: bool) -> tuple[Any, ...]:
        clips = self.by_category[category]
        clip = clips[rng.choice(len(clips), p=self.weights[category])]
        fake_audio, matched = clip.fake_audio, clip.matched
        synthetic = clip.synthetic_voice
        reach = min(self.max_lag, (len(clip.crops) - self.window) // 2)
        lag = int(rng.integers(-reach, reach + 1))
        lo, hi = max(0, -lag), len(clip.crops) - self.window - max(0, lag)
        start = int(rng.integers(lo, hi + 1))
        crops = clip.crops[start : start + self.window]
        audio = clip.tokens[start + lag : start + lag + self.window]
        if category == FAKE_AUDIO and rng.random() < self.remix:
            crops, audio = self._remixed(rng)
            fake_audio, matched, synthetic, lag = True, False, False, 0
        if self.augment:
            crops, audio = augment_crops(crops, rng), augment_audio(audio, rng)
        has_video = has_audio = True
        if not align_only and rng.random() < self.dropout:
            has_video = bool(rng.random() < 0.5)
            has_audio = not has_video
        # the sign: tokens taken ``lag`` later lie ``lag`` earlier in the window
        return (
            crops,
            audio,
            np.int64(clip.fake_video or fake_audio),
            np.int64(clip.fake_video),
            np.int64(synthetic),
            np.bool_(matched),
            np.int64(-lag),
            np.bool_(has_video),
            np.bool_(has_audio),
        )

    def _remixed(self, rng: Rng) -> tuple[UInt8, Float32]:
        """A genuine picture with the same speaker's voice from elsewhere, both lengths T."""
        pool = self.by_category[REAL_PAIR]
        clip = pool[rng.choice(len(pool), p=self.weights[REAL_PAIR])]
        others = [c for c in self.genuine[clip.identity] if c is not clip]
        slack = len(clip.crops) - self.window
        start = int(rng.integers(0, slack + 1))
        crops = clip.crops[start : start + self.window]
        if others and (rng.random() < 0.5 or slack < self.forged_shift):
            other = others[int(rng.integers(len(others)))]
            at = int(rng.integers(0, len(other.tokens) - self.window + 1))
            return crops, other.tokens[at : at + self.window]
        starts = np.arange(slack + 1)
        far = starts[np.abs(starts - start) >= self.forged_shift]
        if not len(far):  # the middle of a short clip: start at its edge instead
            start = 0
            crops = clip.crops[: self.window]
            far = starts[starts >= min(self.forged_shift, slack)]
        at = int(far[int(rng.integers(len(far)))])
        return crops, clip.tokens[at : at + self.window]


def _identity_weights(clips: list[PreparedClip]) -> npt.NDArray[np.float64]:
    """A speaker with n clips weighs n^(1/4): few clips are seen often, not as often as many."""
    counts: dict[str, int] = {}
    for clip in clips:
        counts[clip.identity] = counts.get(clip.identity, 0) + 1
    weights = np.array([counts[c.identity] ** -0.75 for c in clips])
    return weights / weights.sum()
