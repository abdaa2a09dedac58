# SPDX-License-Identifier: Apache-2.0
"""What every baseline has: features of its own, a loss, a score.  One window is one input.

Dimensions: B windows of T tokens (40 ms each, 640 samples at 16 kHz), E embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

UInt8 = npt.NDArray[np.uint8]
Int16 = npt.NDArray[np.int16]
Float32 = npt.NDArray[np.float32]


class Recipe(NamedTuple):
    """How it is trained: as published, or as FIDELITY says; Adam throughout."""

    lr: float
    batch: int
    epochs: int
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    plateau: bool = False  # halve lr after 3 validations without a lower loss


class Labels(NamedTuple):
    """FakeAVCeleb's, 1 being fake, integers of shape (B,)."""

    fake: Tensor
    fake_video: Tensor
    fake_audio: Tensor


class Outputs(NamedTuple):
    """Scores: the higher, the more fake.  A difference of logits, or a distance."""

    score: Tensor  # [B]
    score_video: Tensor | None  # [B] None where the system has no such score
    score_audio: Tensor | None  # [B]
    embedding: Tensor  # [B, E]
    parts: dict[str, Tensor]  # what only the loss needs


class Baseline(nn.Module, ABC):
    """:meth:`inputs` turns one window into arrays, :meth:`forward` takes a batch of them."""

    NAME: ClassVar[str]
    FIDELITY: ClassVar[str]  # printed beside its figures
    RECIPE: ClassVar[Recipe]
    MINIATURE: ClassVar[dict[str, Any]]  # overrides that fit two cores and half an hour
    SCORE_IS_LOGIT: ClassVar[bool] = True  # else its scale comes from validation (Platt)
    SCORE_BATCH: ClassVar[int] = 8  # windows scored together
    window_tokens: int

    @abstractmethod
    def inputs(
        self, crops: UInt8, audio: Int16, rng: np.random.Generator | None = None
    ) -> dict[str, Float32]:
        """crops [T, H, W, 3], audio [640 T] -> the arrays of one window; ``rng`` in training."""

    @abstractmethod
    def forward(self, inputs: dict[str, Tensor]) -> Outputs: ...

    @abstractmethod
    def loss(self, out: Outputs, labels: Labels) -> dict[str, Tensor]:
        """Scalars by name; ``loss`` is the one to minimise."""


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
