# SPDX-License-Identifier: Apache-2.0
"""The verdicts of a whole stream in bounded memory, for a timeline that fits on a page.

Verdicts fall into bins of time; when there are too many, neighbours are put together.  A week of a
camera takes no more room than a minute, and what was worst in a bin is still seen.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from runtime.judging.verdict import Label, Reason, Verdict
from runtime.sinks.terminal import shown_scores

MAX_BINS = 480  # along the stream
MAX_FACES = 24  # with a row of their own; a busy street has more, and they share one
OTHERS = -1  # its number


@dataclass
class Cell:
    """What was said of one face in one bin."""

    labels: Counter[Label] = field(default_factory=Counter)
    reasons: Counter[Reason] = field(default_factory=Counter)
    p_fake: float | None = None  # the highest, each
    p_fake_video: float | None = None
    p_fake_audio: float | None = None
    offset_ms: float | None = None  # the last

    @property
    def label(self) -> Label:
        """The gravest: one fake window makes the bin fake."""
        order = (Label.FAKE, Label.REAL, Label.ABSTAIN)
        return next(label for label in order if self.labels[label])

    def take(self, v: Verdict) -> None:
        both, picture, voice = shown_scores(v)
        reason = [] if v.reason is None else [v.reason]
        self.merge(Cell(Counter([v.label]), Counter(reason), both, picture, voice, v.av_offset_ms))

    def merge(self, later: Cell) -> None:
        self.labels += later.labels
        self.reasons += later.reasons
        self.p_fake = _highest(self.p_fake, later.p_fake)
        self.p_fake_video = _highest(self.p_fake_video, later.p_fake_video)
        self.p_fake_audio = _highest(self.p_fake_audio, later.p_fake_audio)
        self.offset_ms = self.offset_ms if later.offset_ms is None else later.offset_ms


class History:
    """``faces[face][bin]`` is the :class:`Cell` of stream seconds ``bin * bin_s`` and on.

    A verdict belongs to the hop that ended with its window.
    """

    def __init__(self, hop_s: float) -> None:
        self.bin_s = hop_s
        self.faces: dict[int | None, dict[int, Cell]] = {}
        self.end_s = 0.0

    @property
    def bins(self) -> int:
        """From the start of the stream to the last verdict."""
        return self._bin(self.end_s) + 1 if self.end_s else 0

    def take(self, verdict: Verdict) -> None:
        self.end_s = max(self.end_s, verdict.t_end_s)
        while self.bins > MAX_BINS:
            self._halve()
        face = verdict.face_id
        if face is not None and face not in self.faces and len(self.faces) >= MAX_FACES:
            face = OTHERS
        self.faces.setdefault(face, {}).setdefault(self._bin(verdict.t_end_s), Cell()).take(verdict)

    def _bin(self, end_s: float) -> int:
        return max(0, math.ceil(end_s / self.bin_s - 1e-6) - 1)

    def _halve(self) -> None:
        self.bin_s *= 2
        for face, cells in self.faces.items():
            merged: dict[int, Cell] = {}
            for i in sorted(cells):
                merged.setdefault(i // 2, Cell()).merge(cells[i])
            self.faces[face] = merged


def _highest(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else max(a, b)
