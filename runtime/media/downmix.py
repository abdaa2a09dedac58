# SPDX-License-Identifier: Apache-2.0
"""Several channels become one, also where left and right are out of phase.

A cable with two wires exchanged, or a mixer's button, turns one channel upside down.  Each channel
alone sounds right; their sum is nothing, and a voice would be judged that nobody can hear.

The rule.  Sound is looked at in blocks of :data:`BLOCK_S`, counted from the first sample.  Of each
two powers are taken: that of the mix, and that which it would have if the channels had nothing to
do with each other.  A block in which the second is below :data:`AUDIBLE` counts for nothing.  Where
over the last :data:`EVIDENCE` blocks that count the mix has less than :data:`CANCELS` of the
second, the channels cancel each other: the one that gives most to the mix is taken alone, as it is,
from the next block on.  Where it has more than :data:`ADDS` again, the mix is taken again.
Channels that are alike give 2, independent ones 1, one that sounds alone 1; one that is the other
one's opposite and half as loud gives 0.2 and is audible in the mix, so nothing is changed.

What a live source has sent cannot be waited for, so there the first second of such sound is still
mixed.  Of a file the beginning is held back until the first decision, which then holds for it, too
(:data:`EVIDENCE` blocks that count, but :data:`MAX_HELD` at most, or its end); later changes take
effect as in a live source.

Samples alone decide, never how they were cut into chunks: any chunking gives the same sound.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.media import Samples

BLOCK_S = 0.1
EVIDENCE = 10  # blocks: a second
MAX_HELD = 20  # blocks: no verdict comes before two seconds of sound anyway
AUDIBLE = 1e-6  # power: -60 dBFS
CANCELS, ADDS = 0.1, 0.5

Channels = NDArray[np.float32]  # [c, n]


class _Block(NamedTuple):
    mixed: float  # power of the mix
    apart: NDArray[np.float64]  # [c]; what each channel alone would give it


class Downmix:
    """One stream's channels -> its mono sound.

    Parameters
    ----------
    weights : of the channels in the mix
    rate_hz : of the samples
    hold : may the beginning be held back?  Of a file, not of a live source

    ``alone`` is the channel that is taken at the moment; None: the mix.  ``ever`` is the first one
    that was.
    """

    def __init__(self, weights: Sequence[float], rate_hz: int, *, hold: bool) -> None:
        self.alone: int | None = None
        self.ever: int | None = None
        self._weights = np.array(weights, np.float32)
        self._block = max(1, round(rate_hz * BLOCK_S))  # samples
        self._parts: list[Channels] = []  # of the block that is not yet full
        self._filled = 0  # samples in it
        self._blocks = 0  # that were full
        self._recent: deque[_Block] = deque(maxlen=EVIDENCE)
        self._holding = hold
        self._held: list[tuple[Any, Channels]] = []

    def push(self, channels: Channels, tag: Any = None) -> list[tuple[Any, Samples]]:
        """channels: [c, n] -> pieces of mono sound [n], each with the tag that it came with."""
        if not np.isfinite(channels).all():  # damaged data
            channels = np.nan_to_num(channels, nan=0.0, posinf=0.0, neginf=0.0)
        if not self._holding:
            return [(tag, self._take(channels))]
        self._held.append((tag, channels))
        pieces = self._split(channels)
        for n, piece in enumerate(pieces):
            self._look(piece)
            if len(self._recent) == EVIDENCE or self._blocks == MAX_HELD:
                return self._release(pieces[n + 1 :])
        return []

    def finish(self) -> list[tuple[Any, Samples]]:
        """What was held back: a file that is over decides by what it had."""
        if not self._holding:
            return []
        self._end_block()
        self._decide(at_least=1)
        return self._release([])

    def _release(self, rest: list[Channels]) -> list[tuple[Any, Samples]]:
        """All that is held; ``rest`` are the pieces at its end that nobody has looked at yet."""
        self._holding = False
        later = sum(piece.shape[1] for piece in rest)
        held, self._held = self._held, []
        done = []
        for tag, channels in held[:-1]:
            done.append((tag, self._one(channels)))
        for tag, channels in held[-1:]:
            border = channels.shape[1] - later
            begun, unseen = self._one(channels[:, :border]), self._take(channels[:, border:])
            done.append((tag, np.concatenate([begun, unseen])))
        return done

    def _take(self, channels: Channels) -> Samples:
        """Mono [n]; each block as it was decided when it began."""
        out = []
        for piece in self._split(channels):
            out.append(self._one(piece))
            self._look(piece)
        return np.concatenate(out) if out else np.zeros(0, np.float32)

    def _split(self, channels: Channels) -> list[Channels]:
        """Cut where blocks end."""
        borders = range(self._block - self._filled, channels.shape[1], self._block)
        return [p for p in np.split(channels, list(borders), axis=1) if p.shape[1]]

    def _one(self, channels: Channels) -> Samples:
        if self.alone is not None:
            return channels[self.alone].copy()
        return self._mix(channels)

    def _mix(self, channels: Channels) -> Samples:
        """Sample by sample in one order, so that no grouping rounds otherwise."""
        mixed = np.zeros(channels.shape[1], np.float32)
        for weight, channel in zip(self._weights, channels, strict=True):
            mixed += weight * channel
        return mixed

    def _look(self, piece: Channels) -> None:
        """A piece that ends no later than the block that it is in."""
        self._parts.append(piece)
        self._filled += piece.shape[1]
        if self._filled == self._block:
            self._end_block()
            self._blocks += 1
            self._decide(at_least=EVIDENCE)

    def _end_block(self) -> None:
        if not self._filled:
            return
        block = np.concatenate(self._parts, axis=1).astype(np.float64)  # [c, n]
        self._parts, self._filled = [], 0
        weights = self._weights.astype(np.float64)
        apart = weights**2 * np.mean(block**2, axis=1)  # [c]
        if apart.sum() >= AUDIBLE:
            self._recent.append(_Block(float(np.mean((weights @ block) ** 2)), apart))

    def _decide(self, *, at_least: int) -> None:
        if len(self._recent) < at_least:
            return
        apart = np.sum([block.apart for block in self._recent], axis=0)  # [c]
        share = sum(block.mixed for block in self._recent) / float(apart.sum())
        if self.alone is None and share < CANCELS:
            self.alone = int(apart.argmax())
            self.ever = self.alone if self.ever is None else self.ever
        elif self.alone is not None and share > ADDS:
            self.alone = None
