# SPDX-License-Identifier: Apache-2.0
"""The prepared set on disk, and the training windows drawn from it.

A clip is one uncompressed ``.npz``, read when it is asked for and kept while there is room.  One
file a clip, because FakeAVCeleb has 21,544 of them and four arrays each; read whole, because the
zip's checksum then tells a damaged file, and because that takes some 4 ms where augmenting a window
takes 30.

Every draw is a pure function of (seed, step): a run that is resumed sees the batches that it would
have seen.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.errors import MediaError, UsageError
from runtime.spec import AudioSpec, FaceSpec
from trainer.data.augment import augment_crops, augment_sound
from trainer.data.layouts import FAKE_AUDIO, REAL_PAIR
from trainer.data.splits import GIVEN, assign, check_disjoint

UInt8 = npt.NDArray[np.uint8]
Int16 = npt.NDArray[np.int16]
Float32 = npt.NDArray[np.float32]
Rng = np.random.Generator

INDEX = "index.json"
VERSION = 3  # of the index
ARRAYS_VERSION = 2  # an index of another version is made anew from arrays of the same one
CACHE_BYTES = 1 << 30


class ClipArrays(NamedTuple):
    """What the ``.npz`` of a clip holds."""

    crops: UInt8  # [T, H, W, 3]
    tokens: Float32  # [T, 104]
    level_dbfs: Float32  # [T]
    audio: Int16  # [640 T] mono at 16 kHz


@dataclass(frozen=True)
class PreparedClip:
    """One clip: its labels, and its arrays when they are asked for."""

    file: str
    identity: str  # whose face
    voice_identity: str | None  # whose voice; None: unknown
    swapped_identity: str | None  # whose face was put in; None: nobody's, or unknown
    clip: str  # name of the genuine clip that it is or was made from
    split: str
    category: str
    method: str
    fake_video: bool
    fake_audio: bool  # FakeAVCeleb's label: the sound is not the clip's own
    synthetic_voice: bool  # the voice itself is made by a machine
    matched: bool  # lips and voice belong together
    groups: dict[str, str]  # race, gender, where known
    silence_tokens: int  # of the whole clip, also where they are trimmed
    length: int  # tokens, after trimming; known without reading the arrays
    load: Callable[[], ClipArrays] = field(repr=False, compare=False)
    transport_ms: float | None = None  # how late the sound was made to come; None: unknown

    @property
    def transport_tokens(self) -> int:
        """Sound token i + this belongs to picture i, where they belong together; 0 if unknown."""
        return round((self.transport_ms or 0.0) / 1000 * AudioSpec().token_hz)

    @property
    def crops(self) -> UInt8:
        return self.load().crops

    @property
    def tokens(self) -> Float32:
        return self.load().tokens

    @property
    def level_dbfs(self) -> Float32:
        return self.load().level_dbfs

    @property
    def audio(self) -> Int16:
        return self.load().audio


@dataclass
class Batch:
    """B windows of T tokens, as arrays."""

    crops: UInt8  # [B, T, H, W, 3]
    audio: Float32  # [B, T, 104]
    fake: npt.NDArray[np.int64]  # [B] anything forged
    fake_video: npt.NDArray[np.int64]  # [B]
    fake_audio: npt.NDArray[np.int64]  # [B] FakeAVCeleb's label
    synthetic_voice: npt.NDArray[np.int64]  # [B] what the sound alone can tell
    matched: npt.NDArray[np.bool_]  # [B] lips and voice belong together, at lag_tokens
    lag_tokens: npt.NDArray[np.int64]  # [B] offset in the window: audio i + lag matches video i
    has_video: npt.NDArray[np.bool_]  # [B]
    has_audio: npt.NDArray[np.bool_]  # [B]

    @classmethod
    def of(cls, rows: list[tuple[Any, ...]]) -> Batch:
        """One tuple a window, in the order of the fields."""
        return cls(*(np.stack(column) for column in zip(*rows, strict=True)))


class PreparedSet:
    """What :mod:`trainer.prepare` wrote, split by a protocol of :mod:`trainer.data.splits`.

    Parameters
    ----------
    protocol, fold, seed : say which clip trains, validates or tests
    trimmed : leave out each clip's leading silence
    lazy : read a clip when it is asked for, and keep up to ``cache_bytes`` of them; otherwise all
        of them now

    ``clips`` are those that are in a split; ``left_out`` counts the others.

    Raises
    ------
    UsageError : the folder is no prepared set, or of an older version; no such protocol; somebody
        is in two splits
    MediaError : a clip's file is damaged
    """

    def __init__(
        self,
        folder: Path,
        *,
        protocol: str = GIVEN,
        fold: int = 0,
        seed: int = 0,
        trimmed: bool = False,
        lazy: bool = True,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        index = _read_index(folder)
        rows = index["clips"]
        self.folder, self.protocol, self.fold, self.trimmed = folder, protocol, fold, trimmed
        self.crop_px = int(index["crop_px"])
        faces = index.get("faces", {})  # nothing of dlib's
        self.face_stage: str = faces.get("stage", FaceSpec().stage)
        self.encoder_sha256: str | None = faces.get("encoder_sha256")  # that followed the faces
        self.layout: str = index["layout"]
        splits = assign(rows, protocol, fold, seed)
        check_disjoint(rows, splits)
        mean_tokens = sum(r["tokens"] for r in rows) / max(1, len(rows))
        audio = AudioSpec()  # float tokens and levels, samples of 16 bits
        mean_bytes = mean_tokens * (
            3 * self.crop_px**2 + 4 * (audio.token_dim + 1) + 2 * audio.token_samples
        )
        room = None if not lazy else max(8, int(cache_bytes / max(1.0, mean_bytes)))
        self._arrays = lru_cache(maxsize=room)(self._read)
        clips = [self._clip(r, splits[r["file"]]) for r in rows if r["file"] in splits]
        self.clips = [c for c in clips if c.length > 0]  # one of silence alone is gone if trimmed
        self.left_out = len(rows) - len(self.clips)
        if not lazy:
            for clip in self.clips:
                clip.load()

    def _clip(self, row: dict[str, Any], split: str) -> PreparedClip:
        array, tokens = row["array"], row["tokens"]
        skipped = row["silence_tokens"] if self.trimmed else 0
        return PreparedClip(
            **{k: row[k] for k in PreparedClip.__dataclass_fields__ if k in row and k != "split"},
            split=split,
            length=tokens - skipped,
            load=lambda: self._slice(array, tokens, skipped),
        )

    def _slice(self, array: str, tokens: int, skipped: int) -> ClipArrays:
        whole = self._arrays(array)
        if len(whole.crops) != tokens:
            raise MediaError(
                f"{self.folder / array} holds {len(whole.crops)} tokens, {INDEX} says {tokens}; "
                "run trainer.prepare again"
            )
        samples = skipped * AudioSpec().token_samples
        return ClipArrays(
            whole.crops[skipped:],
            whole.tokens[skipped:],
            whole.level_dbfs[skipped:],
            whole.audio[samples:],
        )

    def _read(self, array: str) -> ClipArrays:
        path = self.folder / array
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                return ClipArrays(*(arrays[name] for name in ClipArrays._fields))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as err:
            raise MediaError(f"{path} is damaged ({err}); delete it and prepare again") from err

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

    The offset of a window's sound is drawn from +-``max_lag_tokens``, whatever transport the clip
    already has; a clip that is hardly longer than a window allows only a part of that.
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
        usable = [c for c in clips if c.length >= window_tokens + 2]
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
        self.remixable = [c for c in self.by_category[REAL_PAIR] if self._can_be_remixed(c)]
        self.remix_weights = _identity_weights(self.remixable)

    def batch(self, step: int, size: int, *, genuine_only: bool = False) -> Batch:
        """The batch of one step: ``size`` windows."""
        rows = [self.row(step, i, genuine_only=genuine_only) for i in range(size)]
        return Batch.of(rows)

    def row(self, step: int, number: int, *, genuine_only: bool = False) -> tuple[Any, ...]:
        """One window of a step's batch, whatever the others are: processes may share a batch."""
        rng = np.random.default_rng([self.seed, step, number])
        categories = [REAL_PAIR] if genuine_only else list(self.by_category)
        return self._window(categories[number % len(categories)], rng, genuine_only)

    def _window(self, category: str, rng: Rng, align_only: bool) -> tuple[Any, ...]:
        clips = self.by_category[category]
        clip = clips[rng.choice(len(clips), p=self.weights[category])]
        fake_audio, matched = clip.fake_audio, clip.matched
        synthetic = clip.synthetic_voice
        own, reach = clip.transport_tokens, (clip.length - self.window) // 2
        lowest, highest = max(-reach, own - self.max_lag), min(reach, own + self.max_lag)
        # how much later the window of sound starts; a clip too short to undo its transport keeps it
        lag = int(rng.integers(lowest, highest + 1)) if lowest <= highest else 0
        lo, hi = max(0, -lag), clip.length - self.window - max(0, lag)
        start = int(rng.integers(lo, hi + 1))
        if category == FAKE_AUDIO and self.remixable and rng.random() < self.remix:
            crops, voice, at = self._remixed(rng)
            fake_audio, matched, synthetic, lag = True, False, False, own
        else:
            voice, at = clip.load(), start + lag
            crops = voice.crops[start : start + self.window]
        audio = voice.tokens[at : at + self.window]
        if self.augment:
            crops = augment_crops(crops, rng)
            audio = augment_sound(voice.audio, voice.tokens, at, self.window, rng)
        has_video = has_audio = True
        if not align_only and rng.random() < self.dropout:
            has_video = bool(rng.random() < 0.5)
            has_audio = not has_video
        # tokens taken ``lag`` later lie ``lag`` earlier in the window
        return (
            crops,
            audio,
            np.int64(clip.fake_video or fake_audio),
            np.int64(clip.fake_video),
            np.int64(fake_audio),
            np.int64(synthetic),
            np.bool_(matched),
            np.int64(own - lag),
            np.bool_(has_video),
            np.bool_(has_audio),
        )

    def _others(self, clip: PreparedClip) -> list[PreparedClip]:
        """The same speaker's other recordings, never another copy of this one."""
        return [c for c in self.genuine[clip.identity] if c.clip != clip.clip]

    def _can_be_remixed(self, clip: PreparedClip) -> bool:
        """A sound from elsewhere exists: another recording, or a moment that is far enough."""
        return bool(self._others(clip)) or bool(self._far_apart(clip).any())

    def _far_apart(self, clip: PreparedClip) -> npt.NDArray[np.bool_]:
        """[start of the picture, start of the sound]: at least ``forged_shift`` from matching."""
        starts = np.arange(clip.length - self.window + 1)
        shift = starts[None, :] - starts[:, None] - clip.transport_tokens
        return np.abs(shift) >= self.forged_shift

    def _remixed(self, rng: Rng) -> tuple[UInt8, ClipArrays, int]:
        """A genuine picture of length T, and where the same speaker's voice from elsewhere starts.

        From within one clip the voice is at least ``forged_shift_tokens`` away.
        """
        clip = self.remixable[rng.choice(len(self.remixable), p=self.remix_weights)]
        others = self._others(clip)
        far = self._far_apart(clip)
        arrays = clip.load()
        if others and (rng.random() < 0.5 or not far.any()):
            start = int(rng.integers(0, clip.length - self.window + 1))
            other = others[int(rng.integers(len(others)))]
            at = int(rng.integers(0, other.length - self.window + 1))
            voice = other.load()
        else:
            start = int(rng.choice(np.flatnonzero(far.any(1))))  # not the middle of a short clip
            at = int(rng.choice(np.flatnonzero(far[start])))
            voice = arrays
        return arrays.crops[start : start + self.window], voice, at


def set_files(folder: Path) -> list[Path]:
    """What a prepared set consists of, as far as it is there."""
    return [folder / INDEX, *(folder / "arrays").rglob("*.npz")]


def _identity_weights(clips: list[PreparedClip]) -> npt.NDArray[np.float64]:
    """A speaker with n clips weighs n^(1/4): few clips are seen often, not as often as many."""
    counts: dict[str, int] = {}
    for clip in clips:
        counts[clip.identity] = counts.get(clip.identity, 0) + 1
    weights = np.array([counts[c.identity] ** -0.75 for c in clips])
    return weights / weights.sum() if clips else weights


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise UsageError(
            f"{folder} has no readable {INDEX}; make the set by trainer.prepare"
        ) from err
    version = index.get("version", 1) if isinstance(index, dict) else None
    if version != VERSION:
        raise UsageError(
            f"{folder} is a prepared set of version {version}, this program reads {VERSION}; "
            "prepare it again with trainer.prepare"
        )
    lacking = sorted({"clips", "crop_px", "layout"} - index.keys())
    if lacking:
        raise UsageError(
            f"{folder / INDEX} is damaged (no {', '.join(lacking)}); run trainer.prepare again"
        )
    return index
