# SPDX-License-Identifier: Apache-2.0
"""From the training clips to one process's part of every batch.

A row of a batch is a pure function of (seed, step, row), so any number of processes and threads
gives the same batches, and a run that is resumed sees those that it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from runtime.errors import MediaError
from trainer.data.augment import lineage_crops
from trainer.data.prepared import Batch, PreparedClip

Row = tuple[Any, ...]


class RowSource(Protocol):
    def row(self, step: int, number: int, *, genuine_only: bool = False) -> Row: ...


class EpochSampler:
    """Every clip once an epoch, in a new order each time; clips as they are, at a random place.

    Batches run on from one epoch into the next.  ``crops``: MRDF's random crops and mirrored
    pictures; ``keep_size`` as in :func:`trainer.data.augment.lineage_crops`.  Clips shorter than a
    window are left out: ``too_short`` of them.
    """

    def __init__(
        self,
        clips: list[PreparedClip],
        *,
        window_tokens: int,
        batch: int,
        seed: int,
        crops: bool,
        keep_size: bool,
    ) -> None:
        self.clips = [c for c in clips if c.length >= window_tokens]
        self.too_short = len(clips) - len(self.clips)
        if not self.clips:
            raise MediaError(
                f"no training clip is as long as a window of {window_tokens} tokens; "
                "give longer clips or a smaller window"
            )
        self.window, self.batch, self.seed = window_tokens, batch, seed
        self.crops, self.keep_size = crops, keep_size
        self._order = lru_cache(maxsize=2)(self._order_of)

    def row(self, step: int, number: int, *, genuine_only: bool = False) -> Row:
        assert not genuine_only, "epochs have no first stage"
        epoch, place = divmod(step * self.batch + number, len(self.clips))
        clip = self.clips[self._order(epoch)[place]]
        rng = np.random.default_rng([self.seed, step, number])
        start = int(rng.integers(0, clip.length - self.window + 1))
        arrays = clip.load()
        crops = arrays.crops[start : start + self.window]
        if self.crops:
            crops = lineage_crops(crops, rng, keep_size=self.keep_size)
        return (
            crops,
            arrays.tokens[start : start + self.window],
            np.int64(clip.fake_video or clip.fake_audio),
            np.int64(clip.fake_video),
            np.int64(clip.fake_audio),
            np.int64(clip.synthetic_voice),
            np.bool_(clip.matched),
            np.int64(0),
            np.bool_(True),
            np.bool_(True),
        )

    def _order_of(self, epoch: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.clips))


class Batches:
    """This process's part of each step's batch; ``workers`` threads make the next ones meanwhile.

    0 workers: made when asked for.  Threads suffice: the work is OpenCV's and NumPy's, which let
    the others run.
    """

    def __init__(self, source: RowSource, part: range, *, align_steps: int, workers: int) -> None:
        self.source, self.part, self.align_steps = source, part, align_steps
        self.pool = ThreadPoolExecutor(workers) if workers else None

    def of(self, step: int) -> Batch:
        return Batch.of([self._row(step, number) for number in self.part])

    def between(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of the steps ``start`` to ``stop`` - 1."""
        if self.pool is None:
            for step in range(start, stop):
                yield self.of(step)
            return
        ahead: list[list[Future[Row]]] = []
        try:
            for step in range(start, stop):
                while len(ahead) < 2 and step + len(ahead) < stop:
                    at = step + len(ahead)
                    ahead.append([self.pool.submit(self._row, at, i) for i in self.part])
                yield Batch.of([future.result() for future in ahead.pop(0)])
        finally:
            for future in (f for row in ahead for f in row):
                future.cancel()

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def _row(self, step: int, number: int) -> Row:
        return self.source.row(step, number, genuine_only=step < self.align_steps)
