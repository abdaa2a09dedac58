# SPDX-License-Identifier: Apache-2.0
"""What a session remembers of a face: its features, by token.

It is asked by window: which token stands for each of its positions
(:data:`runtime.grid.MISSING` where none does), and what is known there.  Nothing older than
:meth:`FaceRing.forget_before` says is kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.faces import Face
from runtime.faces.follower import FollowedFace
from runtime.grid import Tokens, nearest_before
from runtime.judging.offset import OffsetTracker
from runtime.judging.speaker import mouth, mouth_motion
from runtime.spec import StreamSpec

Float32 = NDArray[np.float32]


class FaceRing:
    """The features of one face, by token; tokens between pictures have none."""

    def __init__(self, stream: StreamSpec) -> None:
        self._max_gap = stream.max_gap_tokens
        self.features: dict[int, Float32] = {}  # token -> [C]
        self.widths_px: dict[int, float] = {}  # token -> width; also of crops not yet encoded
        self.turns_deg: dict[int, float] = {}
        self.motions: dict[int, float] = {}  # token -> change of the mouth since the crop before
        self.offset = OffsetTracker(stream)
        self._mouth: Float32 | None = None  # of the newest crop

    def see(self, token: int, face: Face) -> None:
        """What a crop says by itself; its features come later, unless the encoder followed it."""
        self.widths_px[token] = face.width_px
        self.turns_deg[token] = face.turn_deg
        if isinstance(face, FollowedFace):
            self.features[token], now = face.visual, face.geometry
        else:
            now = mouth(face.crop)
        self.motions[token] = 0.0 if self._mouth is None else mouth_motion(self._mouth, now)
        self._mouth = now

    def sources(self, start: int, end: int) -> Tokens:
        """For each token of a window the token whose feature it shows, or MISSING.  [T]

        A gap of up to ``max_gap_tokens`` repeats the feature before it; at the stream's first
        sight of the face, which may come as many tokens late, the feature after it.
        """
        have = sorted(t for t in self.features if start - self._max_gap <= t < end)
        return nearest_before(np.arange(start, end), np.array(have, np.int64), self._max_gap)

    def window(self, sources: Tokens) -> Float32:
        return np.stack([self.features[t] for t in sources.tolist()])  # [T, C]

    def motion(self, sources: Tokens) -> Float32:
        return np.array([self.motions[t] for t in sources.tolist()], np.float32)  # [T]

    def width_px(self, start: int, end: int) -> float:
        """Median over a window; NaN where the face was not seen."""
        return self._median(self.widths_px, start, end)

    def turn_deg(self, start: int, end: int) -> float:
        """Median over a window; NaN where the face was not seen."""
        return self._median(self.turns_deg, start, end)

    def _median(self, values: dict[int, float], start: int, end: int) -> float:
        inside = [v for t, v in values.items() if start - self._max_gap <= t < end]
        return float(np.median(inside)) if inside else float("nan")

    def forget_before(self, token: int) -> None:
        self.features = {t: f for t, f in self.features.items() if t >= token}
        for values in (self.widths_px, self.turns_deg, self.motions):
            for old in [t for t in values if t < token]:
                del values[old]
