# SPDX-License-Identifier: Apache-2.0
"""The sound of one stream as tokens on the stream's clock, for as long as a window needs them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from runtime.grid import MISSING, Tokens
from runtime.media import Samples
from runtime.sound.tokens import AudioTokenizer

CLOCK_TOLERANCE_S = 0.02  # rounding of timestamps in containers; beyond it the clock is corrected

Float32 = NDArray[np.float32]


class SoundTrack:
    """Sound on the stream's clock: gaps become zeros, overlaps are cut, both are remembered.

    A hole is a gap that somebody announced (:meth:`skip_to`): there is no sound in it, whereas
    after a jump of the timestamps nobody knows where the sound belongs.
    """

    def __init__(self, tokenizer: AudioTokenizer) -> None:
        self._tokenizer = tokenizer
        self._spec = tokenizer.spec
        self._samples = 0  # position of the next sample
        self._first: int | None = None  # first token with sound
        self._base = 0  # number of the first token kept
        self._kept = np.zeros((0, self._spec.token_dim), np.float32)  # [n, 104]
        self._levels = np.zeros(0, np.float32)  # [n]
        self._clock_errors: list[tuple[int, float]] = []  # (token, seconds)
        self._holes: list[tuple[int, int]] = []  # [first sample, end)
        self.corrections = 0

    @property
    def tokens(self) -> int:
        """How many tokens there have been."""
        return self._base + len(self._kept)

    def on_clock(self, t_s: float, samples: Samples) -> Iterator[Samples]:
        """The samples [n] with what is needed before them, in pieces of at most a second."""
        rate = self._spec.sample_rate_hz
        error = round(t_s * rate) - self._samples  # > 0: a gap, < 0: an overlap
        if error > 0 and self._holes and self._holes[-1][1] == self._samples:
            yield from self.skip_to(t_s)
            error = 0
        if self._first is None:
            self._first = -(-(self._samples + max(0, error)) // self._spec.token_samples)
        elif abs(error) <= CLOCK_TOLERANCE_S * rate:
            error = 0
        else:
            error = max(error, -len(samples))  # no more than is cut here
            token = self._samples // self._spec.token_samples
            self._clock_errors.append((token, abs(error) / rate))
            self.corrections += 1
        samples = samples[max(0, -error) :]
        for at in range(0, error, rate):
            yield np.zeros(min(rate, error - at), np.float32)
        if len(samples):
            yield samples

    def skip_to(self, t_s: float) -> Iterator[Samples]:
        """Zeros for a hole from here to ``t_s``, in pieces of at most a second."""
        rate = self._spec.sample_rate_hz
        end = round(t_s * rate)
        if end <= self._samples:
            return
        if self._holes and self._holes[-1][1] == self._samples:
            self._holes[-1] = (self._holes[-1][0], end)
        else:
            self._holes.append((self._samples, end))
        while self._samples < end:  # whoever takes a piece moves on
            yield np.zeros(min(rate, end - self._samples), np.float32)

    def take(self, samples: Samples) -> None:
        self._samples += len(samples)
        self._append(*self._tokenizer.push(samples))

    def finish(self) -> None:
        self._append(*self._tokenizer.finish())

    def _append(self, tokens: Float32, levels: Float32) -> None:
        if len(tokens):
            self._kept = np.concatenate([self._kept, tokens])
            self._levels = np.concatenate([self._levels, levels])

    def sources(self, start: int, end: int, max_gap: int) -> Tokens:
        """For each token of a window the token that stands for it, or MISSING.  [T]

        Before the first and after the last token up to ``max_gap`` tokens repeat it.
        """
        wanted = np.arange(start, end)
        first = max(self._base, self._first or 0)
        if first >= self.tokens:
            return np.full(len(wanted), MISSING, np.int64)
        near = np.clip(wanted, first, self.tokens - 1)
        found = np.where(np.abs(near - wanted) <= max_gap, near, MISSING)
        for start_sample, end_sample in self._holes:
            begins, ends = (at / self._spec.token_samples for at in (start_sample, end_sample))
            found[(found + 1 > begins) & (found < ends)] = MISSING
        return found

    def window(self, sources: Tokens) -> Float32:
        window: Float32 = self._kept[sources - self._base]  # [T, 104]
        return window

    def levels_dbfs(self, sources: Tokens) -> Float32:
        levels: Float32 = self._levels[sources - self._base]  # [T]
        return levels

    def clock_error_s(self, start: int, end: int) -> float:
        return sum(error for token, error in self._clock_errors if start <= token < end)

    def forget_before(self, token: int) -> None:
        drop = min(token - self._base, len(self._kept))
        if drop > 0:
            self._kept, self._levels = self._kept[drop:], self._levels[drop:]
            self._base += drop
        self._clock_errors = [e for e in self._clock_errors if e[0] >= token]
        self._holes = [h for h in self._holes if h[1] >= token * self._spec.token_samples]
