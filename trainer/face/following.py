# SPDX-License-Identifier: Apache-2.0
"""Crops of a clip as a distilled encoder follows them: the runtime's own follower, run by torch.

Training and runtime so cut the same crops by the same code (:mod:`runtime.faces.follower`).
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from runtime.backends.base import FaceOutput
from runtime.errors import ModelError
from runtime.faces.stage import Tracker, face_stage
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


def encoder_stage(path: Path, spec: FaceSpec) -> Tracker:
    """Follows faces by this encoder.

    Raises :class:`ModelError` for an encoder that cannot be read, or wants crops of another size.
    """
    known = load_encoder(path)
    if known.config.crop_px != spec.crop_px:
        raise ModelError(f"{path} wants crops of {known.config.crop_px} px, not of {spec.crop_px}")

    @torch.no_grad()
    def follow(crops: UInt8) -> FaceOutput:
        out = known.encoder.follow(torch.from_numpy(crops))
        return FaceOutput(*(x.numpy() for x in out))

    return face_stage(spec, follow)


@functools.lru_cache(maxsize=1)
def _loaded(path: Path, spec: FaceSpec) -> Tracker:
    torch.set_num_threads(1)  # the processes are the parallelism
    return encoder_stage(path, spec)


def fresh_stage(path: Path, spec: FaceSpec) -> Tracker:
    """One that knows no face; one a process serves clip after clip."""
    stage = _loaded(path, spec)
    stage.reset()
    return stage
