# SPDX-License-Identifier: Apache-2.0
"""What drove a score: cover a part of the evidence, judge again, see how the log-odds change.

Occlusion sensitivity (Zeiler & Fergus, 2014).  It needs nothing but the two graphs, so it is the
same on every backend and knows no gradients.  In the picture a grey square covers the same place of
all crops of a window; in the voice a block of time and pitch is set to the mean of its tokens,
which is 0 after their normalisation.  Where the log-odds of fake fall, the covered part spoke for
fake; where they rise, for genuine.

It says which part of the input the score hangs on, not where a forgery is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import Backend, FusionOutput
from runtime.decision import fake_minus_real, sigmoid
from runtime.spec import PairSpec
from runtime.verdict import Verdict

GREY = 128
PATCH_SHARE = 0.25  # of a crop's side
PLACES = 6  # of the patch along each side; they overlap
BANDS = 6  # of pitch
SLICES = 10  # of time
ENCODE_BATCH = 128  # crops
FUSE_BATCH = 16  # windows
SAME_P = 0.02  # a window judged again must have the scores of its verdict

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
UInt8 = NDArray[np.uint8]
Progress = Callable[[int], None]  # how many windows were judged again since the last call


@dataclass(frozen=True)
class Evidence:
    """What a window was judged by, to judge it again."""

    crops: UInt8  # [n, H, W, 3], each picture once
    shown: NDArray[np.int64]  # [T] which of them each token shows
    audio: Float32  # [T + 2 margin, 104]: the offset that was compensated is found again
    margin: int


@dataclass(frozen=True)
class Importance:
    """By how much the log-odds of fake fall when a part is covered."""

    picture: Float64  # [H, W], of the crop
    voice: Float64  # [BANDS, SLICES], low pitches first
    tokens: Float32  # [T, 104], the sound that was judged


def windows_to_judge() -> int:
    """How many times :func:`importance` judges a window again, for a progress bar."""
    return PLACES**2 + BANDS * SLICES


def importance(
    backend: Backend, evidence: Evidence, verdict: Verdict, progress: Progress
) -> Importance | None:
    """None where the evidence does not give the scores of the verdict again, so that a map of it
    would be one of something else (the sound's clock was corrected, say)."""
    features = _encode(backend, evidence.crops)  # [n, C]
    visual = features[evidence.shown]  # [T, C]
    found = _judged_sound(backend, visual, evidence, verdict)
    if found is None:
        return None
    tokens, before = found

    places = _places(backend.spec.face.crop_px)
    side = round(PATCH_SHARE * backend.spec.face.crop_px)
    covered = []
    for y in places:
        for x in places:
            crops = evidence.crops.copy()
            crops[:, y : y + side, x : x + side] = GREY
            covered.append(_encode(backend, crops)[evidence.shown])
            progress(1)
    after = _log_odds(backend, np.stack(covered), np.repeat(tokens[None], len(covered), 0))
    picture = _spread(before - after, places, side, backend.spec.face.crop_px)

    muted = np.stack(
        [_mute(tokens, backend.spec, b, s) for b in range(BANDS) for s in range(SLICES)]
    )
    after = _log_odds(backend, np.repeat(visual[None], len(muted), 0), muted)
    progress(len(muted))
    return Importance(picture, (before - after).reshape(BANDS, SLICES), tokens)


def band_edges(spec: PairSpec) -> list[int]:
    """Mel bins where the bands begin, and the end: [BANDS + 1]."""
    return [round(i * spec.audio.mel_bins / BANDS) for i in range(BANDS + 1)]


def _judged_sound(
    backend: Backend, visual: Float32, evidence: Evidence, verdict: Verdict
) -> tuple[Float32, float] | None:
    """The tokens [T, 104] that the verdict was made of, and their log-odds."""
    length = len(visual)
    shifts = range(2 * evidence.margin + 1)
    heard = np.stack([evidence.audio[s : s + length] for s in shifts])  # [shifts, T, 104]
    out = backend.fuse(np.repeat(visual[None], len(heard), 0), heard)
    wanted = np.array([verdict.p_fake_video, verdict.p_fake_audio], np.float64)
    c = backend.spec.calibration
    errors = []
    for i in shifts:
        got = [
            sigmoid(fake_minus_real(out.logits_v[i]) / c.temperature_v + c.bias_v),
            sigmoid(fake_minus_real(out.logits_a[i]) / c.temperature_a + c.bias_a),
        ]
        sync = 0.0 if verdict.sync is None else abs(float(out.sync[i].mean()) - verdict.sync)
        errors.append(max(float(np.abs(wanted - got).max()), sync))
    best = int(np.argmin(errors))
    if not errors[best] <= SAME_P:  # also where a score is NaN: it was not measured
        return None
    return heard[best], float(_from_output(backend, out)[best])


def _encode(backend: Backend, crops: UInt8) -> Float32:
    starts = range(0, len(crops), ENCODE_BATCH)
    return np.concatenate([backend.encode(crops[i : i + ENCODE_BATCH]) for i in starts])


def _log_odds(backend: Backend, visual: Float32, audio: Float32) -> Float64:
    """visual [B, T, C], audio [B, T, 104] -> calibrated log-odds of fake [B]."""
    starts = range(0, len(visual), FUSE_BATCH)
    parts = [
        _from_output(backend, backend.fuse(visual[i : i + FUSE_BATCH], audio[i : i + FUSE_BATCH]))
        for i in starts
    ]
    return np.concatenate(parts)


def _from_output(backend: Backend, out: FusionOutput) -> Float64:
    c = backend.spec.calibration
    return np.array([fake_minus_real(p) / c.temperature_av + c.bias_av for p in out.logits_av])


def _places(side_px: int) -> list[int]:
    last = side_px - round(PATCH_SHARE * side_px)
    return [round(i * last / (PLACES - 1)) for i in range(PLACES)]


def _spread(changes: Float64, places: list[int], side: int, crop_px: int) -> Float64:
    """One change a patch [PLACES ** 2] -> for each pixel the mean of those that cover it."""
    total, count = np.zeros((crop_px, crop_px)), np.zeros((crop_px, crop_px))
    spots = [(y, x) for y in places for x in places]
    for (y, x), change in zip(spots, changes, strict=True):
        total[y : y + side, x : x + side] += change
        count[y : y + side, x : x + side] += 1
    return np.asarray(total / np.maximum(count, 1))


def _mute(tokens: Float32, spec: PairSpec, band: int, part: int) -> Float32:
    """tokens [T, 104] with one block of time and pitch at their mean."""
    edges = band_edges(spec)
    start, end = (round(i * len(tokens) / SLICES) for i in (part, part + 1))
    muted = tokens.copy()
    frames = muted.reshape(len(tokens), spec.audio.stack, spec.audio.mel_bins)  # a view
    frames[start:end, :, edges[band] : edges[band + 1]] = 0.0
    return muted
