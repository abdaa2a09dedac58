# SPDX-License-Identifier: Apache-2.0
"""How far a run is, and what follows from it: learning rate, best step, early end.

All of it is kept in the state that a run resumes from.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from trainer.recipes import FitConfig

PLATEAU_FACTOR = 0.5  # MRDF's
PLATEAU_PATIENCE = 3  # validations


@dataclass
class Progress:
    """JSON in and out."""

    step: int = 0
    best_score: float = -1.0
    best_step: int = -1
    waited: int = 0  # validations since the best score
    lowest_loss: float = math.inf
    plateau: int = 0  # validations since the lowest loss, or since the rate was halved
    rate: float = 1.0  # factor of the learning rate
    skipped: int = 0  # steps in a row whose gradient overflowed in fp16
    stopped: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {k: None if v == math.inf else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Progress:
        lowest = values["lowest_loss"]
        return cls(**{**values, "lowest_loss": math.inf if lowest is None else lowest})

    def validated(self, config: FitConfig, score: float, loss: float) -> bool:
        """Take note of a validation; True where its score is the best so far."""
        better = score > self.best_score
        if better:
            self.best_score, self.best_step, self.waited = score, self.step, 0
        else:
            self.waited += 1
            self.stopped = bool(config.patience) and self.waited >= config.patience
        if config.schedule == "plateau":
            self.plateau = 0 if loss < self.lowest_loss else self.plateau + 1
            self.lowest_loss = min(self.lowest_loss, loss)
            if self.plateau > PLATEAU_PATIENCE:
                self.rate, self.plateau = self.rate * PLATEAU_FACTOR, 0
        return better


def learning_rate(
    config: FitConfig, progress: Progress, align_steps: int, joint_steps: int
) -> float:
    """Of the next step.  Linear warm-up and, with ``cosine``, half a cosine to zero, each stage."""
    joint = progress.step >= align_steps
    at = progress.step - align_steps if joint else progress.step
    length = joint_steps if joint else align_steps
    rate = config.lr * min(1.0, (at + 1) / max(1, config.warmup))
    if config.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * at / max(1, length)))
    return rate * progress.rate
