# SPDX-License-Identifier: Apache-2.0
"""Models that give whole clips a score: the graphs as they ship, a checkpoint, a baseline."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from runtime.backends.base import Backend
from runtime.errors import ModelError
from runtime.spec import StreamSpec
from trainer.data.prepared import PreparedClip
from trainer.scoring.clips import ClipScores, score_clips


class Scorer(NamedTuple):
    """A model that gives whole clips a score."""

    name: str
    crop_px: int | None  # None: takes any
    faces: str | None  # the stage whose crops it was trained on; None: takes any
    score: Callable[[Sequence[PreparedClip]], ClipScores]
    threshold: float


def pair_scorer(backend: Backend, *, argmax: bool = False) -> Scorer:
    """The graphs as they ship.  ``argmax``: the network's own logits and a threshold of 0.5, as
    the paper decides, instead of the calibration and the threshold of the model."""
    spec = backend.spec
    calibration = None if argmax else spec.calibration
    score = functools.partial(score_clips, backend, stream=spec.stream, calibration=calibration)
    threshold = 0.5 if calibration is None else calibration.threshold
    return Scorer(spec.model_id, spec.face.crop_px, spec.face.stage, score, threshold)


def checkpoint_scorer(checkpoint: Path, *, argmax: bool = False) -> Scorer:
    """MSCT or a baseline, ``argmax`` as in :func:`pair_scorer`; needs torch.

    Raises :class:`ModelError` for a file that is neither.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    from trainer.model.checkpoint import load_checkpoint
    from trainer.paper.baselines import fit as baselines
    from trainer.scoring.calibrate import Platt
    from trainer.scoring.windows import TorchPair

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with safe_open(checkpoint, framework="pt") as file:
            kind = (file.metadata() or {}).get("format")
    except (OSError, SafetensorError) as err:
        raise ModelError(f"cannot read the checkpoint {checkpoint}: {err}") from err
    if kind == json.dumps(baselines.FORMAT):  # as save_state writes what it is told
        baseline, config, platt = baselines.load(checkpoint)
        if argmax and baseline.SCORE_IS_LOGIT:
            platt = Platt(1.0, 0.0)
        score = functools.partial(baselines.score_clips, baseline.to(device), platt=platt)
        return Scorer(config.name, None, None, score, 0.5)
    model, cfg, spec = load_checkpoint(checkpoint)
    calibration = None if argmax or spec is None else spec.calibration
    score = functools.partial(
        score_clips,
        TorchPair(model.to(device)),
        stream=StreamSpec() if spec is None else spec.stream,
        calibration=calibration,
    )
    threshold = 0.5 if calibration is None else calibration.threshold
    faces = None if spec is None else spec.face.stage
    return Scorer(cfg.name, cfg.crop_px, faces, score, threshold)
