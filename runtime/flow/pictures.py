# SPDX-License-Identifier: Apache-2.0
"""A stream's pictures on their way from the 25 Hz grid to the features of each face.

Each picture that the grid uses is searched for faces once, each crop is encoded once, and the
features wait in a ring per face (:mod:`runtime.flow.face_ring`).  Crops are encoded in batches that
end where windows end, never by when chunks happen to arrive, so what becomes of them does not
depend on how picture and sound are interleaved.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from runtime.backends.base import FaceOutput
from runtime.faces import Face
from runtime.faces.follower import FaceFollower, FollowedFace
from runtime.faces.identity import REACQUIRE_TOKENS
from runtime.faces.search import shared_search
from runtime.faces.stage import Tracker
from runtime.faces.tracker import FaceTracker
from runtime.flow.face_ring import FaceRing
from runtime.flow.model_calls import AnyReply, Encode, Follow, Request
from runtime.flow.summary import Stats
from runtime.grid import MISSING, VideoGrid
from runtime.media import Frame
from runtime.spec import FaceSpec, StreamSpec

_T = TypeVar("_T")
Asking = Generator[Request, AnyReply, _T]  # work that may need the model on its way to a _T
LazyFrame = Frame | Callable[[], Frame]
OnPicture = Callable[[float, Frame, Sequence[Face]], None]  # stream seconds, pixels, its faces


@dataclass(frozen=True)
class Load:
    """How much a session does: all of it, or less where the machine cannot keep up."""

    hops: int = 1  # a window is judged every so many hops
    pictures: int = 1  # a picture is searched every so many tokens; the others repeat it

    def __post_init__(self) -> None:
        if self.hops < 1 or self.pictures < 1:
            raise ValueError(f"a load is counted from 1, not {self.hops} and {self.pictures}")


FULL_LOAD = Load()


class Pictures:
    """Of one stream.

    token_hz : of the grid
    tracker : default: what the model's face stage says
    on_picture : called with each picture that was searched for faces
    """

    def __init__(
        self,
        face: FaceSpec,
        stream: StreamSpec,
        token_hz: float,
        stats: Stats,
        tracker: Tracker | FaceFollower | None = None,
        on_picture: OnPicture | None = None,
    ) -> None:
        self.load = FULL_LOAD  # may be changed between two pictures
        self.grid: VideoGrid[LazyFrame] = VideoGrid(token_hz, stream.max_gap_tokens)
        self.rings: dict[int, FaceRing] = {}  # by track id
        self.tokens = 0  # that have come, with or without a picture
        self._stream, self._hz, self._stats = stream, token_hz, stats
        self._tracker = tracker if tracker is not None else _stage(face)
        self._on_picture = on_picture
        self._frame_shape: tuple[int, ...] = ()
        self._pending: list[tuple[int, int, Frame]] = []  # (face, token, crop) not yet encoded
        self._gaps: set[int] = set()  # tokens without a picture
        self._first: int | None = None  # token of the first picture
        self._last_search: int | None = None  # token of the last picture searched for faces

    def take(
        self, token: int, frame: LazyFrame | None, fresh: bool, *, oldest: int
    ) -> Asking[None]:
        """One token of the grid; ``oldest`` is the first that a later window can need."""
        self._stats.tokens += 1
        self.tokens = token + 1
        if frame is None:
            self._stats.gaps += 1
            self._gaps.add(token)
        else:
            if self._first is None:
                self._first = token
            if fresh and token >= oldest:
                yield from self._search_or_shed(token, frame)
        if (token + 1 - self._stream.window_tokens) % self._stream.hop_tokens == 0:
            yield from self.encode_pending()

    def _search_or_shed(self, token: int, frame: LazyFrame) -> Asking[None]:
        last = self._last_search
        if last is not None and token - last < self.load.pictures:
            self._stats.shed_pictures += 1
        else:
            if last is not None and token - last > REACQUIRE_TOKENS:
                self._tracker.reset()  # nothing was seen for longer than a lost face keeps its id
            self._last_search = token
            yield from self._find_faces(token, frame)

    def _find_faces(self, token: int, frame: LazyFrame) -> Asking[None]:
        with self._stats.timed("decode"):
            pixels = frame() if callable(frame) else frame  # [H, W, 3]
        with self._stats.timed("face"):
            if pixels.shape != self._frame_shape:  # another size: what was followed is elsewhere
                if self._frame_shape:
                    self._tracker.reset()
                self._frame_shape = pixels.shape
        found: Sequence[Face]
        if isinstance(self._tracker, FaceFollower):
            found = yield from self._follow_faces(self._tracker, pixels, token)
        else:
            with self._stats.timed("face"):
                found = self._tracker.update(pixels, token)
        for face in found:
            ring = self.rings.setdefault(face.track_id, FaceRing(self._stream))
            ring.see(token, face)
            if not isinstance(face, FollowedFace):
                self._pending.append((face.track_id, token, face.crop))
        if self._on_picture is not None:
            self._on_picture(token / self._hz, pixels, found)

    def _follow_faces(
        self, follower: FaceFollower, pixels: Frame, token: int
    ) -> Asking[Sequence[Face]]:
        """The encoder says where the faces are, picture by picture."""
        steps = follower.update_steps(pixels, token)
        said: FaceOutput | None = None
        while True:
            with self._stats.timed("face"):
                try:
                    crops = next(steps) if said is None else steps.send(said)
                except StopIteration as end:
                    return list(end.value)
            reply = yield Follow(crops)
            assert isinstance(reply.output, FaceOutput)
            said = reply.output
            self._stats.seconds["encode"] += reply.seconds
            self._stats.crops += len(crops)

    def encode_pending(self) -> Asking[None]:
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        reply = yield Encode(np.stack([crop for _, _, crop in pending]))
        assert isinstance(reply.output, np.ndarray)
        self._stats.seconds["encode"] += reply.seconds
        for (face_id, token, _), feature in zip(pending, reply.output, strict=True):
            self.rings[face_id].features[token] = feature  # [C]
        self._stats.crops += len(pending)

    def faces_in(self, start: int, end: int) -> list[int]:
        """Faces seen in at least half of the window, by track id."""
        seen = ((i, ring.sources(start, end)) for i, ring in sorted(self.rings.items()))
        return [i for i, tokens in seen if 2 * np.count_nonzero(tokens != MISSING) >= len(tokens)]

    def gap_in(self, start: int, end: int) -> bool:
        """Is a picture missing, apart from a short wait for the very first?"""
        first = self._first
        if first is None or first - start > self._stream.max_gap_tokens:
            return True
        return end > self.tokens or any(max(first, start) <= g < end for g in self._gaps)

    def forget_before(self, oldest: int) -> list[int]:
        """Drop what no later window can need; the faces of which nothing is left."""
        self._pending = [p for p in self._pending if p[1] >= oldest]
        self._gaps = {g for g in self._gaps if g >= oldest}
        gone = []
        for face_id, ring in list(self.rings.items()):
            ring.forget_before(oldest)
            if not ring.widths_px:
                del self.rings[face_id]
                gone.append(face_id)
        return gone


def _stage(spec: FaceSpec) -> Tracker | FaceFollower:
    """What finds and follows the faces of a model."""
    return FaceTracker(spec) if spec.stage == "dlib" else FaceFollower(spec, shared_search())
