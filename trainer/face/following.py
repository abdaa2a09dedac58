# SPDX-License-Identifier: Apache-2.0
"""Crops of a clip as a distilled encoder follows them: the runtime's own follower, run by torch.

Training and runtime so cut the same crops by the same code (:mod:`runtime.faces.follower`).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from runtime.backends.base import FaceOutput
from runtime.errors import ModelError
from runtime.faces.follower import FaceFollower, FollowedFace
from runtime.faces.search import shared_search
from runtime.spec import FaceSpec
from trainer.face.checkpoint import load_encoder

UInt8 = npt.NDArray[np.uint8]


def encoder_digest(path: Path) -> str:
    """SHA-256 of the file: which encoder a prepared set and a run belong to.

    Raises :class:`ModelError` where it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as err:
        raise ModelError(f"cannot read the encoder {path} ({err.strerror})") from None


class EncoderTracker:
    """Used as :class:`runtime.faces.tracker.FaceTracker` is.

    Raises :class:`ModelError` for an encoder that cannot be read, or wants crops of another size.
    """

    def __init__(self, path: Path, spec: FaceSpec) -> None:
        known = load_encoder(path)
        if known.config.crop_px != spec.crop_px:
            raise ModelError(
                f"{path} wants crops of {known.config.crop_px} px, not of {spec.crop_px}"
            )
        self._encoder = known.encoder
        self._follower = FaceFollower(spec, shared_search())

    def reset(self) -> None:
        self._follower.reset()

    @torch.no_grad()
    def update(self, frame: UInt8, token: int) -> list[FollowedFace]:
        """frame: [H, W, 3] RGB of grid position ``token`` -> its faces, by id."""
        steps = self._follower.update_steps(frame, token)
        try:
            crops = next(steps)  # [N, S, S, 3]
            while True:
                out = self._encoder.follow(torch.from_numpy(crops))
                crops = steps.send(FaceOutput(*(x.numpy() for x in out)))
        except StopIteration as end:
            faces: list[FollowedFace] = end.value
            return faces


@functools.lru_cache(maxsize=1)
def _loaded(path: Path, spec: FaceSpec) -> EncoderTracker:
    return EncoderTracker(path, spec)


def encoder_tracker(path: Path, spec: FaceSpec) -> Callable[[UInt8, int], list[FollowedFace]]:
    """:meth:`EncoderTracker.update` of one that knows no face; one a process serves clip after
    clip."""
    torch.set_num_threads(1)  # the processes are the parallelism
    tracker = _loaded(path, spec)
    tracker.reset()
    return tracker.update
