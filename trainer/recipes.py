# SPDX-License-Identifier: Apache-2.0
"""What decides the outcome of a run, and the recipes: ``paper``, ``default``, ``finetune``.

``paper`` is MSCT (arXiv 2604.07741, section 3.2) and nothing else: Adam, 200 epochs, the four
losses, FakeAVCeleb's labels.  Where it is silent, its direct ancestor MRDF (Zou et al., ICASSP
2024; github Vincent-ZHQ/MRDF) decides:

    weights of the four losses 1, margins 0; learning rate 1e-3, betas 0.5 and 0.9, weight decay
    1e-4 (L2, as Adam has it), halved where the validation loss has not fallen for 3 epochs;
    batch 64; mixed precision; random crops of 100 of 112 px and mirrored pictures; the weights of
    the best validation.

Not as MRDF: validation is never the test set (see :mod:`trainer.data.splits`); a batch is not cut
to its shortest clip but made of windows of ``window_tokens``, at a random place of each clip;
the validation loss is the cross-entropy of the multimodal head; what is scored is the whole
picture, at the scale of the training crops.

``default`` is what works on few speakers.  Appearance jitter is off in it: the alignment reads the
same features, and learnt less with it (a GRID run with 0.4 had a validation AUC of 0.73 on people
seen in training after 800 steps of the second stage, and 0.83 after 200 more steps without).

``finetune`` goes on from ``--init`` on a user's own clips: a tenth of the learning rate, no first
stage, the batch statistics of the checkpoint; its figures are a choice, not a search's outcome.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from runtime.errors import UsageError

RECIPES: dict[str, dict[str, Any]] = {
    "default": {
        "preset": "msct-tiny",
        "align_steps": 600,
        "joint_steps": 1200,
        "epochs": 0,
        "batch": 16,
        "accumulate": 1,
        "window_tokens": 50,
        "sampling": "balanced",
        "holdout": 0.1,
        "augment": "full",
        "remix": 0.5,
        "modality_dropout": 0.1,
        "appearance_jitter": 0.0,
        "audio_label": "synthetic_voice",
        "contrast_weight": 0.5,
        "optimizer": "adamw",
        "lr": 1e-3,
        "beta1": 0.9,
        "beta2": 0.999,
        "weight_decay": 0.02,
        "schedule": "cosine",
        "warmup": 50,
        "clip_norm": 1.0,
        "ema": 0.995,
        "frozen_norm": False,
        "precision": "auto",
        "validate_every": 150,
        "save_every": 50,
        "patience": 5,
        "select": "best",
        "false_alarm_rate": 0.05,
        "out_of_domain": 0.02,
        "protocol": "given",
        "fold": 0,
        "trimmed": False,
        "seed": 0,
        "threads": 0,
        "device": "auto",
    }
}
RECIPES["paper"] = {
    **RECIPES["default"],
    "preset": "msct",
    "align_steps": 0,
    "joint_steps": 0,
    "epochs": 200,
    "batch": 64,
    "sampling": "epoch",
    "holdout": 0.0,
    "augment": "lineage",
    "remix": 0.0,
    "modality_dropout": 0.0,
    "appearance_jitter": 0.0,
    "audio_label": "fake_audio",
    "contrast_weight": 0.0,
    "optimizer": "adam",
    "beta1": 0.5,
    "beta2": 0.9,
    "weight_decay": 1e-4,
    "schedule": "plateau",
    "warmup": 0,
    "clip_norm": 0.0,
    "ema": 0.0,
    "validate_every": 0,
    "patience": 0,
}
RECIPES["finetune"] = {
    **RECIPES["default"],
    "align_steps": 0,
    "joint_steps": 400,
    "lr": 1e-4,
    "frozen_norm": True,
    "validate_every": 50,
}

MINIATURE: dict[str, Any] = {  # to show the path on the sample clip
    "align_steps": 20,
    "joint_steps": 20,
    "batch": 4,
    "warmup": 5,
    "validate_every": 20,
    "save_every": 20,
    "ema": 0.9,
}


def _of_recipe(what: str, *choices: str) -> Any:
    """A field that takes the recipe's value where it is not given."""
    return field(default=None, metadata={"help": what, "choices": choices})


@dataclass(frozen=True)
class FitConfig:
    """Everything that decides the outcome, besides the data and the model's own config.

    A field that is not given has the value of ``recipe``.
    """

    recipe: str = "default"
    preset: str = _of_recipe("of the model, see trainer.config")
    align_steps: int = _of_recipe("steps of the first stage, temporal contrast alone")
    joint_steps: int = _of_recipe("steps of the second stage, all losses")
    epochs: int = _of_recipe("length of the second stage instead of --joint-steps, if not 0")
    batch: int = _of_recipe("windows a step, over all processes")
    accumulate: int = _of_recipe("parts a process's share of a batch goes through memory in")
    window_tokens: int = _of_recipe("tokens of 40 ms a window")
    sampling: str = _of_recipe(
        "balanced: categories in equal parts, people with few clips more often; "
        "epoch: every clip once an epoch",
        "balanced",
        "epoch",
    )
    holdout: float = _of_recipe("share of the training speakers' clips that validate as well")
    augment: str = _of_recipe(
        "full; lineage: random crops and mirrored pictures, as MRDF; none",
        "full",
        "lineage",
        "none",
    )
    remix: float = _of_recipe("share of fake-audio windows made of genuine clips on the spot")
    modality_dropout: float = _of_recipe("share of windows without sound or without picture")
    appearance_jitter: float = _of_recipe("of a constant added to a window's visual features")
    audio_label: str = _of_recipe(
        "of the audio head: synthetic_voice, what the sound alone can tell; fake_audio, "
        "FakeAVCeleb's: the sound is not the clip's own",
        "synthetic_voice",
        "fake_audio",
    )
    contrast_weight: float = _of_recipe("of the temporal contrast in the second stage")
    optimizer: str = _of_recipe("adamw, or adam with L2", "adamw", "adam")
    lr: float = _of_recipe("learning rate")
    beta1: float = _of_recipe("of the optimizer")
    beta2: float = _of_recipe("of the optimizer")
    weight_decay: float = _of_recipe("of the optimizer")
    schedule: str = _of_recipe(
        "cosine: to zero in each stage; plateau: halved after 3 validations without a lower "
        "loss; constant",
        "cosine",
        "plateau",
        "constant",
    )
    warmup: int = _of_recipe("steps of each stage in which the learning rate rises")
    clip_norm: float = _of_recipe("of the gradient; 0: not clipped")
    ema: float = _of_recipe("of the weights, a step; 0: none")
    frozen_norm: bool = _of_recipe("batch normalisation keeps its running statistics")
    precision: str = _of_recipe(
        "auto: bf16 on a GPU that has it, else fp16; fp32 on a CPU", "auto", "fp32", "bf16", "fp16"
    )
    validate_every: int = _of_recipe("steps; 0: once an epoch")
    save_every: int = _of_recipe("steps between two states to resume from")
    patience: int = _of_recipe("validations without a better score before stopping; 0: no end")
    select: str = _of_recipe(
        "the weights that are kept: of the best validation, or of the last step, where validation "
        "has too few people to choose by",
        "best",
        "last",
    )
    false_alarm_rate: float = _of_recipe("on validation, at the threshold that ships")
    out_of_domain: float = _of_recipe("share of genuine validation windows left out of the domain")
    protocol: str = _of_recipe("which clips train, see trainer.data.splits")
    fold: int = _of_recipe("of the protocol")
    trimmed: bool = _of_recipe("leave out each clip's leading silence")
    seed: int = _of_recipe("of everything that is drawn")
    threads: int = _of_recipe("of torch; 0: its choice")
    device: str = _of_recipe("auto: a GPU if there is one", "auto", "cpu", "cuda")

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise UsageError(f"unknown recipe {self.recipe!r}; there are: {', '.join(RECIPES)}")
        for f in dataclasses.fields(self):
            if getattr(self, f.name) is None:
                object.__setattr__(self, f.name, RECIPES[self.recipe][f.name])
            choices = f.metadata.get("choices")
            if choices and getattr(self, f.name) not in choices:
                raise UsageError(
                    f"{f.name}: {getattr(self, f.name)!r} is not one of {', '.join(choices)}"
                )
        for name in ("align_steps", "joint_steps", "epochs", "warmup", "patience", "threads"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must not be negative")
        for name in ("batch", "accumulate", "window_tokens", "save_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1")
        if self.batch % self.accumulate:
            raise UsageError(
                f"a batch of {self.batch} cannot be cut in {self.accumulate} equal parts"
            )
        if not self.lr > 0:
            raise UsageError("lr must be above 0")
        for name in ("holdout", "remix", "modality_dropout", "ema", "out_of_domain"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} must be in [0, 1]")
        if not 0 < self.false_alarm_rate < 1:
            raise UsageError("false_alarm_rate must be above 0 and below 1")
        if self.sampling == "epoch" and (self.remix or self.modality_dropout or self.align_steps):
            raise UsageError(
                "sampling 'epoch' draws the clips as they are: it goes with remix 0, "
                "modality_dropout 0 and align_steps 0"
            )
        if self.select == "last" and self.patience:
            raise UsageError("select 'last' goes with patience 0: nothing stops the run early")
        if self.epochs and self.sampling != "epoch":
            raise UsageError("epochs go with sampling 'epoch'; give joint_steps")
