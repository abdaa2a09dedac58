# SPDX-License-Identifier: Apache-2.0
"""What a session asks of the model, and its answers: apart, so that several sessions share calls.

A session's work is a generator (:data:`Steps`): it yields a :class:`Follow` (of faces that the
encoder follows), an :class:`Encode` (of crops that are cut by others) or a :class:`Fuse` wherever
it needs the model, is sent the :class:`Reply`, and returns its verdicts.  :func:`drive` runs one to
its end; :mod:`runtime.flow.driver` collects the requests of many and has :func:`serve` answer them
together.  A row of a batch does not see the others, so the results are those of the stream alone,
to float rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import Backend, FaceOutput, FusionOutput
from runtime.judging.verdict import Verdict

MAX_BATCH_FRAMES = 64  # of one call of the encoder; more is split
MAX_BATCH_WINDOWS = 32  # of one call of the fusion graph

T = TypeVar("T")


@dataclass(frozen=True)
class Encode:
    """Crops to encode."""

    frames: NDArray[np.uint8]  # [N, H, W, 3]


@dataclass(frozen=True)
class Follow:
    """Crops to encode, of which everything is wanted that the encoder says."""

    frames: NDArray[np.uint8]  # [N, H, W, 3]


@dataclass(frozen=True)
class Fuse:
    """Windows to score; a missing modality is all zeros."""

    visual: NDArray[np.float32]  # [B, T, C]
    audio: NDArray[np.float32]  # [B, T, 104]


@dataclass(frozen=True)
class Reply(Generic[T]):
    """The model's answer, and this request's share of the time it took."""

    output: T  # features [N, C], a FaceOutput of N rows, or a FusionOutput of B rows
    seconds: float


Request = Encode | Follow | Fuse
AnyReply = Reply[NDArray[np.float32]] | Reply[FaceOutput] | Reply[FusionOutput]
Steps = Generator[Request, AnyReply, list[Verdict]]


def drive(steps: Steps, backend: Backend) -> list[Verdict]:
    """Run one session's work to its end, each request on its own."""
    try:
        request = next(steps)
        while True:
            (reply,) = serve(backend, [request])
            request = steps.send(reply)
    except StopIteration as end:
        verdicts: list[Verdict] = end.value
        return verdicts


def serve(backend: Backend, requests: Sequence[Request]) -> list[AnyReply]:
    """Answer all requests in as few calls as fit; replies in the order of the requests.

    Windows of different lengths cannot share a call.
    """
    replies: dict[int, AnyReply] = {}
    encodes = [(i, r) for i, r in enumerate(requests) if isinstance(r, Encode)]
    replies |= _of_frames(encodes, backend.encode, lambda features, rows: features[rows])
    follows = [(i, r) for i, r in enumerate(requests) if isinstance(r, Follow)]
    replies |= _of_frames(follows, backend.follow, _face_rows)
    fuses = [(i, r) for i, r in enumerate(requests) if isinstance(r, Fuse)]
    for length in sorted({r.visual.shape[1] for _, r in fuses}):
        same = [(i, r, len(r.visual)) for i, r in fuses if r.visual.shape[1] == length]
        for windows in _groups(same, MAX_BATCH_WINDOWS):
            start = time.perf_counter()
            out = backend.fuse(
                _joined([r.visual for _, r in windows]), _joined([r.audio for _, r in windows])
            )
            spent = (time.perf_counter() - start) / len(out.sync)
            at = 0
            for i, window in windows:
                n = len(window.visual)
                rows = FusionOutput(*(field[at : at + n] for field in out))
                replies[i] = Reply(rows, spent * n)
                at += n
    return [replies[i] for i in range(len(requests))]


R = TypeVar("R", Encode, Follow, Fuse)
C = TypeVar("C", Encode, Follow)
S = TypeVar("S", np.uint8, np.float32)


def _of_frames(
    asked: Sequence[tuple[int, C]],
    call: Callable[[NDArray[np.uint8]], T],
    cut: Callable[[T, slice], T],
) -> dict[int, Reply[T]]:
    """The replies to requests about crops, by their index; ``cut`` takes rows of an answer."""
    replies: dict[int, Reply[T]] = {}
    for group in _groups([(i, r, len(r.frames)) for i, r in asked], MAX_BATCH_FRAMES):
        start = time.perf_counter()
        frames = _joined([r.frames for _, r in group])
        output = call(frames)
        spent = (time.perf_counter() - start) / max(1, len(frames))
        at = 0
        for i, request in group:
            n = len(request.frames)
            replies[i] = Reply(cut(output, slice(at, at + n)), spent * n)
            at += n
    return replies


def _face_rows(said: FaceOutput, rows: slice) -> FaceOutput:
    return FaceOutput(*(field[rows] for field in said))


def _groups(items: Sequence[tuple[int, R, int]], limit: int) -> list[list[tuple[int, R]]]:
    """Consecutive items of together at most ``limit`` rows; one that is larger goes alone."""
    groups: list[list[tuple[int, R]]] = []
    room = 0
    for index, request, rows in items:
        if not groups or rows > room:
            groups.append([])
            room = limit
        groups[-1].append((index, request))
        room -= rows
    return groups


def _joined(parts: Sequence[NDArray[S]]) -> NDArray[S]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
