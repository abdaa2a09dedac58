# SPDX-License-Identifier: Apache-2.0
"""Which of several faces is speaking.

Two cues, each of which fails where the other holds:

* the synchrony of lips and voice in the model (:class:`runtime.judging.offset.OffsetTracker`):
  tells two moving mouths apart, but only on material that the model can read;
* how the mouth moves: the mean change of the mouth's region from one aligned crop to the next,
  correlated with the level of the sound.  It asks no model, so it also holds for forged voices and
  strange cameras, but hardly tells two people who both talk apart.

A face's score is the first plus :data:`MOTION_WEIGHT` times the second.  The face with the highest
score speaks, provided that one of the two cues vouches for it alone; else nobody does: the voice
may be that of somebody out of view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOUTH = (0.69, 0.97, 0.25, 0.75)  # top, bottom, left, right, as shares of the aligned crop
MOTION_WEIGHT = 0.2  # chosen on pairs of GRID speakers; from 0.1 to 0.35 the results are the same
MIN_MOTION = 0.25  # evidence from which moving lips alone vouch for a face ...
MOTION_LEAD = 2.0  # ... that has this many times the evidence of every other face

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Candidate:
    """One face of a window, as far as it matters for who speaks."""

    confidence: float  # of the lag curve's peak
    confident: bool  # is it high enough to say that lips and sound belong together?
    motion: Float32  # [T] mouth motion by token
    levels_dbfs: Float32  # [T] of the sound


def mouth(crop: NDArray[np.uint8]) -> Float32:
    """The mouth's region of an aligned crop [S, S, 3], grey: [h, w]."""
    side = crop.shape[0]
    top, bottom, left, right = (round(share * side) for share in MOUTH)
    region = crop[top:bottom, left:right].astype(np.float32)
    return (region[..., 0] + region[..., 1] + region[..., 2]) / np.float32(3)


def mouth_motion(before: Float32, now: Float32) -> float:
    """Mean absolute change between two mouth regions, or between what an encoder says of them.

    Its unit does not matter: faces of one stream are compared with each other."""
    return float(np.abs(now - before).mean())


def correlation(motion: Float32, levels_dbfs: Float32, max_lag: int) -> float:
    """Highest correlation of motion and level, both [T], at lags of up to ``max_lag``; 0 and up.

    Transport may shift the two against each other, and lips open before they are heard.
    """
    best = 0.0
    t = len(motion)
    moved, heard = motion.astype(np.float64), levels_dbfs.astype(np.float64)
    for lag in range(-max_lag, max_lag + 1):
        m = moved[max(0, -lag) : t - max(0, lag)]
        a = heard[max(0, lag) : t + min(0, lag)]
        m, a = m - m.mean(), a - a.mean()
        norm = float(np.sqrt((m * m).sum() * (a * a).sum()))
        if norm > 1e-6:  # a still mouth or an even tone says nothing
            best = max(best, float((m * a).sum()) / norm)
    return best


def motion_evidence(faces: Sequence[Candidate], max_lag: int) -> list[float]:
    """Of each face, 0 to 1: its correlation with the sound times its share of the liveliest mouth's
    motion, so that the twitches of a listener who happens to be in time count little."""
    means = [float(face.motion.mean()) for face in faces]
    most = max(means, default=0.0)
    return [
        correlation(face.motion, face.levels_dbfs, max_lag) * mean / most if most > 0 else 0.0
        for face, mean in zip(faces, means, strict=True)
    ]


def find_speaker(faces: Sequence[Candidate], max_lag: int) -> int | None:
    """The index of the face that speaks, or None when no cue vouches for any."""
    if not faces:
        return None
    evidence = motion_evidence(faces, max_lag)
    scores = [f.confidence + MOTION_WEIGHT * e for f, e in zip(faces, evidence, strict=True)]
    best = int(np.argmax(scores))
    others = max((e for i, e in enumerate(evidence) if i != best), default=0.0)
    moves = evidence[best] >= MIN_MOTION and evidence[best] >= MOTION_LEAD * others
    return best if faces[best].confident or moves else None
