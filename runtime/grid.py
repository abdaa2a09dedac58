# SPDX-License-Identifier: Apache-2.0
"""The shared 25 Hz grid: which picture belongs to token i.

Token i stands for the stream time i / 25 s.  It shows the last picture whose timestamp is at most
half a token later (what a viewer sees at the middle of the token), and is given out once a later
picture proves that no better one can come.  Pictures may arrive at any rate: at 60 fps some
serve no token, at 12 fps each serves two.  A picture that is more than ``max_gap_tokens`` old
is a gap: the token comes without a picture.  The sound of token i is token i of
:mod:`runtime.sound.tokens`: both start at stream time 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.errors import MediaError

MISSING = -1  # in an array of token numbers
Tokens = NDArray[np.int64]

T = TypeVar("T")


class TimelineError(MediaError):
    """A timestamp that is not a number or runs backwards; the picture is not used."""


@dataclass(frozen=True)
class GridItem(Generic[T]):
    """One token of the picture's track."""

    token: int
    frame: T | None  # None: a gap longer than max_gap_tokens
    fresh: bool  # False: the same picture as the token before


class VideoGrid(Generic[T]):
    """Pictures with timestamps -> one item per token, in order, none left out.

    ``skipped`` counts pictures that no token shows (a frame rate above 25).
    """

    def __init__(self, token_hz: float = 25.0, max_gap_tokens: int = 3) -> None:
        self._token_hz = token_hz
        self._max_gap_s = max_gap_tokens / token_hz
        self._next_token = 0
        self._held: tuple[float, T] | None = None  # the newest picture
        self._held_used = False
        self.skipped = 0

    def push(self, t_s: float, frame: T) -> list[GridItem[T]]:
        """Give one picture with its stream time in seconds.

        Raises :class:`TimelineError` for a time that is not finite or not after the last one;
        the grid stays as it was and the caller counts the loss.
        """
        if not math.isfinite(t_s):
            raise TimelineError(f"picture timestamp {t_s} is not a number; picture dropped")
        if self._held is not None and t_s <= self._held[0]:
            raise TimelineError(
                f"picture timestamp {t_s:.3f} s is not after {self._held[0]:.3f} s; picture dropped"
            )
        items = self._emit_before(t_s)
        if self._held is not None and not self._held_used:
            self.skipped += 1
        self._held, self._held_used = (t_s, frame), False
        return items

    def advance(self, t_s: float) -> list[GridItem[T]]:
        """No picture of before ``t_s`` will come any more: tokens up to there, gaps among them."""
        return self._emit_before(t_s)

    def finish(self, end_s: float | None = None) -> list[GridItem[T]]:
        """Tokens up to the end of the stream (default: one token past the last picture's time)."""
        if self._held is None:
            return []
        if end_s is None:
            end_s = self._held[0] + 1 / self._token_hz
        # token i is inside the stream when it ends by end_s, to a thousandth of a token
        last = math.floor(end_s * self._token_hz + 1e-3)
        return self._emit_before((last - 0.5) / self._token_hz + 1e-6)

    def _emit_before(self, t_s: float) -> list[GridItem[T]]:
        """Tokens whose picture cannot be one at or after ``t_s``."""
        items: list[GridItem[T]] = []
        # picture k serves token i when t_k <= (i + 0.5) / 25; one at t_s serves i >= 25 t_s - 0.5
        while (self._next_token + 0.5) / self._token_hz < t_s - 1e-9:
            time_s = self._next_token / self._token_hz
            if self._held is None or time_s - self._held[0] > self._max_gap_s + 1e-9:
                items.append(GridItem(self._next_token, None, False))
            else:
                items.append(GridItem(self._next_token, self._held[1], not self._held_used))
                self._held_used = True
            self._next_token += 1
        return items


def nearest_before(wanted: Tokens, have: Tokens, max_gap: int) -> Tokens:
    """For each wanted token [T] the last one at hand, at most ``max_gap`` older, or MISSING.

    Tokens before the first one at hand take that one, when it is at most ``max_gap`` later.
    ``have`` [n] rises.
    """
    if not len(have):
        return np.full(len(wanted), MISSING, np.int64)
    index = np.searchsorted(have, wanted, side="right") - 1
    source = have[np.maximum(index, 0)]
    return np.where(np.abs(wanted - source) <= max_gap, source, MISSING)
