# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: one safetensors file holding the weights, the configuration and the spec.

The configuration and the :class:`~runtime.spec.PairSpec` travel as JSON in the file's metadata,
so that a checkpoint needs nothing beside it and runs no code when it is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from runtime import leftovers
from runtime.errors import ModelError
from runtime.spec import PairSpec
from trainer.config import ModelConfig
from trainer.model.msct import MSCT

FORMAT = "msct-checkpoint-1"


def save_checkpoint(path: Path | str, model: MSCT, cfg: ModelConfig, spec: PairSpec | None) -> None:
    """Write whole or not at all: a temporary file beside ``path``, then a rename."""
    path = Path(path)
    if model.cfg != cfg:
        raise ModelError(
            "the checkpoint's configuration is not the one that the model was built by"
        )
    metadata = {"format": FORMAT, "config": json.dumps(cfg.to_dict(), sort_keys=True)}
    if spec is not None:
        metadata["spec"] = spec.to_json()
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with leftovers.part_of(path) as temporary:
            save_file(tensors, temporary, metadata)
    except (OSError, SafetensorError) as err:
        reason = str(err).splitlines()[0]
        raise ModelError(
            f"cannot write the checkpoint {path} ({reason}); make room, or choose another place"
        ) from err


def load_checkpoint(
    path: Path | str, *, expect: ModelConfig | None = None
) -> tuple[MSCT, ModelConfig, PairSpec | None]:
    """The model on the CPU in eval mode, its configuration, and the spec if one was saved.

    Raises
    ------
    ModelError
        For a file that is missing, damaged or no checkpoint of this project; whose weights do not
        fit its configuration; or whose configuration is not ``expect``.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as err:
        raise ModelError(f"cannot read the checkpoint {path}: {err}") from err
    if metadata.get("format") != FORMAT:
        raise ModelError(f"{path} is no checkpoint of this project (expected {FORMAT})")
    try:
        cfg = ModelConfig.from_dict(json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError) as err:
        raise ModelError(f"{path}: its configuration cannot be read ({err})") from err
    if expect is not None and cfg != expect:
        raise ModelError(
            f"{path} holds another configuration ({_differences(cfg, expect)}); "
            "choose the matching preset or train anew"
        )
    model = MSCT(cfg)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as err:
        reason = str(err).splitlines()[1].strip() if "\n" in str(err) else str(err)
        raise ModelError(f"{path}: the weights do not fit its configuration ({reason})") from err
    text = metadata.get("spec")
    return model.eval(), cfg, PairSpec.from_older_json(text) if text is not None else None


def weights_digest(model: MSCT) -> str:
    """SHA-256 over names, types, shapes and bytes of all weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        array = value.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _differences(found: ModelConfig, expected: ModelConfig) -> str:
    return ", ".join(
        f"{f.name} {getattr(found, f.name)!r} instead of {getattr(expected, f.name)!r}"
        for f in dataclasses.fields(ModelConfig)
        if getattr(found, f.name) != getattr(expected, f.name)
    )
