# SPDX-License-Identifier: Apache-2.0
"""The frame encoder that ``trainer.distil`` made: one safetensors file.

Its metadata holds the configuration, the basis of the geometry, the order of the points and what
was held out, as JSON: the file needs nothing beside it and runs no code when it is read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from runtime import leftovers
from runtime.errors import ModelError
from runtime.spec import FACE_POINTS
from trainer.config import ModelConfig
from trainer.face.mesh import GeometryBasis
from trainer.model.msct import FrameEncoder

FORMAT = "msct-face-encoder-1"


@dataclass(frozen=True)
class FaceEncoder:
    """A distilled frame encoder, on the CPU in eval mode."""

    encoder: FrameEncoder
    config: ModelConfig
    basis: GeometryBasis
    facts: dict[str, Any]  # held_out, left_out, steps, ...


def save_encoder(
    path: Path,
    encoder: FrameEncoder,
    config: ModelConfig,
    basis: GeometryBasis,
    facts: dict[str, Any],
) -> None:
    """Whole or not at all.  Raises :class:`ModelError` where it cannot be written."""
    metadata = {
        "format": FORMAT,
        "config": json.dumps(config.to_dict(), sort_keys=True),
        "basis": json.dumps(basis.to_dict(), sort_keys=True),
        "points": json.dumps(FACE_POINTS),
        "facts": json.dumps(facts, sort_keys=True),
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in encoder.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with leftovers.part_of(path) as part:
            save_file(tensors, part, metadata)
    except (OSError, SafetensorError) as err:
        raise ModelError(
            f"cannot write the encoder {path} ({str(err).splitlines()[0]}); make room, or choose "
            "another place"
        ) from err


def load_encoder(path: Path) -> FaceEncoder:
    """Raises :class:`ModelError` for a file that is missing, damaged or another's."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as err:
        raise ModelError(f"cannot read the encoder {path}: {err}") from err
    if metadata.get("format") != FORMAT:
        raise ModelError(
            f"{path} is no frame encoder of trainer.distil (expected {FORMAT}); give the file "
            "encoder.safetensors of its output"
        )
    try:
        config = ModelConfig.from_dict(json.loads(metadata["config"]))
        basis = GeometryBasis.from_dict(json.loads(metadata["basis"]))
        points = tuple(json.loads(metadata["points"]))
        facts = json.loads(metadata["facts"])
    except (KeyError, TypeError, ValueError) as err:
        raise ModelError(f"{path}: what it says of itself cannot be read ({err})") from err
    if points != FACE_POINTS:
        raise ModelError(f"{path} gives other points than this version knows; distil it again")
    encoder = FrameEncoder(config)
    try:
        encoder.load_state_dict(tensors)
    except RuntimeError as err:
        raise ModelError(f"{path}: the weights do not fit its configuration ({err})") from err
    return FaceEncoder(encoder.eval(), config, basis, facts)
