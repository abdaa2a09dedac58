# SPDX-License-Identifier: Apache-2.0
"""What finds and follows the faces of a model, where one call a picture is wanted.

A session asks the model step by step, so that many streams share a call
(:mod:`runtime.flow.pictures`); the trainer, the exporter and the benchmarks look at one clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from runtime.backends.base import FaceOutput
from runtime.errors import UsageError
from runtime.faces import Face
from runtime.faces.align import UInt8
from runtime.faces.follower import FaceFollower, FollowedFace
from runtime.faces.search import shared_search
from runtime.faces.tracker import FaceTracker
from runtime.spec import FaceSpec

Follow = Callable[[UInt8], FaceOutput]  # crops [N, S, S, 3] -> what the encoder says of them


class Tracker(Protocol):
    """What is needed of :class:`runtime.faces.tracker.FaceTracker`."""

    def update(self, frame: UInt8, token: int) -> Sequence[Face]: ...

    def reset(self) -> None: ...


class Following:
    """A follower and the encoder that it asks, used as a tracker is."""

    def __init__(self, spec: FaceSpec, follow: Follow) -> None:
        self._follower, self._follow = FaceFollower(spec, shared_search()), follow

    def reset(self) -> None:
        self._follower.reset()

    def update(self, frame: UInt8, token: int) -> list[FollowedFace]:
        """frame: [H, W, 3] RGB of grid position ``token`` (rising) -> its faces, by id."""
        steps = self._follower.update_steps(frame, token)
        try:
            crops = next(steps)
            while True:
                crops = steps.send(self._follow(crops))
        except StopIteration as end:
            faces: list[FollowedFace] = end.value
            return faces


def face_stage(spec: FaceSpec, follow: Follow | None = None) -> Tracker:
    """The stage that ``spec`` names.

    follow : :meth:`runtime.backends.base.Backend.follow`, or what serves as it

    Raises :class:`UsageError` for faces that an encoder follows, without one, and
    :class:`DependencyError` where dlib or OpenCV is missing.
    """
    if spec.stage == "dlib":
        return FaceTracker(spec)
    if follow is None:
        raise UsageError(
            "this model's faces are followed by its own encoder, which is not at hand here; give "
            "the pair itself"
        )
    return Following(spec, follow)
