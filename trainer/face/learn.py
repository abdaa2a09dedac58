# SPDX-License-Identifier: Apache-2.0
"""The training loop of :mod:`trainer.distil`.

AdamW over one cycle of the learning rate (Smith & Topin, 2019).  Losses: smooth L1 on the geometry,
each component weighed by the movement that it stands for, and on how it differs between two
pictures of one clip; smooth L1 on the points in pixels; cross-entropy on presence.  The next batch
is made by a thread of its own while the network learns from this one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.errors import ModelError, UsageError
from trainer.config import ModelConfig
from trainer.face.batches import Batches, FaceBatch
from trainer.face.mesh import GeometryBasis
from trainer.loop.loop import Loop
from trainer.loop.state import STATE, Log, remove_leftovers
from trainer.model.msct import FrameEncoder

Validate = Callable[[FrameEncoder, int], dict[str, Any]]
WARM_UP = 0.15  # of the steps, in which the rate rises
PRECISIONS = ("fp32", "bf16")
FIRST_RATE, LAST_RATE = 0.04, 0.002  # shares of the highest


@dataclass(frozen=True)
class DistilConfig:
    """What decides the weights, beside the data."""

    steps: int = 7200
    batch: int = 96
    lr: float = 3e-3
    weight_decay: float = 0.02
    differences: float = 1.0  # weight of the loss on how two pictures of a clip differ
    points: float = 0.25
    presence: float = 0.5
    clip_gradient: float = 2.0
    seed: int = 0
    save_every: int = 200
    threads: int = 1
    precision: str = "fp32"  # bf16: of the backbone, where the processor has instructions for it

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"--precision is one of {', '.join(PRECISIONS)}")
        if self.steps < 1 or self.batch < 16 or self.threads < 1 or self.save_every < 1:
            raise UsageError(
                "--steps, --threads and the steps between two states must be at least 1, --batch 16"
            )


def learning_rate(step: int, config: DistilConfig) -> float:
    """One cycle: up and down along half cosines."""
    rise = max(1.0, WARM_UP * config.steps)
    if step < rise:
        first, last, share = FIRST_RATE, 1.0, step / rise
    else:
        first, last, share = 1.0, LAST_RATE, (step - rise) / max(1.0, config.steps - rise)
    return config.lr * (last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def losses(
    encoder: FrameEncoder, batch: FaceBatch, weights: Tensor, config: DistilConfig
) -> dict[str, Tensor]:
    """``loss`` is what is minimised.  ``weights`` [G] sum to 1."""
    assert encoder.heads is not None
    with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
        visual = encoder(torch.from_numpy(batch.crops))
    out = encoder.heads(visual.float())
    faces = len(batch.geometry)
    geometry, points = torch.from_numpy(batch.geometry), torch.from_numpy(batch.points)
    said = out.geometry[:faces]
    shape = (F.smooth_l1_loss(said, geometry, reduction="none") * weights).sum(1).mean()
    clips = 2 * batch.pairs
    change = (said[0:clips:2] - said[1:clips:2], geometry[0:clips:2] - geometry[1:clips:2])
    moved = (F.smooth_l1_loss(*change, reduction="none") * weights).sum(1).mean()
    place = F.smooth_l1_loss(out.points[:faces], points)
    there = torch.zeros_like(out.presence)
    there[:faces] = 1.0
    presence = F.binary_cross_entropy_with_logits(out.presence, there)
    loss = shape + config.points * place + config.presence * presence
    if clips:
        loss = loss + config.differences * moved
    terms = {"geometry": shape, "points": place, "presence": presence}
    if clips:
        terms["differences"] = moved
    return {"loss": loss, **{k: v.detach() for k, v in terms.items()}}


class Distillation(Loop):
    """One run.

    description : what the run is, ``items`` being its data; a state of another one is refused
    validate : called whenever a state is saved; its values go into the log
    """

    def __init__(
        self,
        folder: Path,
        model: ModelConfig,
        config: DistilConfig,
        batches: Batches,
        basis: GeometryBasis,
        description: Mapping[str, Any],
        validate: Validate | None = None,
    ) -> None:
        self.folder, self.config, self.seed = folder, config, config.seed
        self.model: FrameEncoder = start(model, config, batches)
        self.optimizer = _optimizer(self.model, config)
        self.steps, self.save_every = config.steps, config.save_every
        self.validate_every = config.save_every if validate is not None else 0
        self._validate, self._step = validate, 0
        spread = torch.from_numpy(basis.spread).float()
        self._weights = spread / spread.sum()
        others = {k: v for k, v in description.items() if k != "items"}
        self._what = {"data": description["items"], "kept out": others, "model": model.to_dict()}

    @property
    def step(self) -> int:
        return self._step

    def train_step(self, batch: FaceBatch) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self._step, self.config)
        terms = losses(self.model, batch, self._weights, self.config)
        if not math.isfinite(float(terms["loss"].detach())):
            raise ModelError(
                f"the loss at step {self._step} is no number; begin anew with a smaller --lr"
            )
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_gradient)
        self.optimizer.step()
        self._step += 1
        return {k: float(v.detach()) for k, v in terms.items()}

    def validate(self) -> dict[str, Any]:
        assert self._validate is not None
        return self._validate(self.model, self._step)

    def description(self) -> dict[str, Any]:
        text = json.dumps({**self._what, "fit": asdict(self.config)})
        described: dict[str, Any] = json.loads(text)  # as a state gives it back
        return described

    def facts(self) -> dict[str, Any]:
        return {"step": self._step}

    def take_facts(self, facts: dict[str, Any]) -> None:
        self._step = int(facts["step"])


def train(
    folder: Path,
    model: ModelConfig,
    config: DistilConfig,
    batches: Batches,
    basis: GeometryBasis,
    description: Mapping[str, Any],
    *,
    validate: Validate | None = None,
) -> FrameEncoder:
    """From the state in ``folder``, or from the beginning; the trained encoder in eval mode.

    Arguments as of :class:`Distillation`.

    Raises :class:`UsageError` for a folder with another run, :class:`ModelError` for a loss that
    is no number.
    """
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    torch.set_num_threads(config.threads)
    remove_leftovers(folder)
    run = Distillation(folder, model, config, batches, basis, description, validate)
    if (folder / STATE).exists():
        run.resume()
    log = Log(folder, run.step, tensorboard=False)
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, transient=True) as bar:
            task = bar.add_task("distilling", total=run.steps, completed=run.step)
            made = _made_ahead(batches, run.step, run.steps)
            run.go(made, log, lambda step, terms: bar.update(task, completed=step))
    finally:
        log.close()
    return run.model.eval()


def start(model: ModelConfig, config: DistilConfig, batches: Batches) -> FrameEncoder:
    """A new encoder whose heads say what is usual."""
    torch.manual_seed(config.seed)
    encoder = FrameEncoder(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert encoder.heads is not None
    usual = torch.from_numpy(batches.mean_geometry), torch.from_numpy(batches.mean_points)
    encoder.heads.start_at(*usual)
    trained: FrameEncoder = encoder.train()
    return trained


def _optimizer(encoder: FrameEncoder, config: DistilConfig) -> torch.optim.AdamW:
    decayed = [p for p in encoder.parameters() if p.ndim > 1]
    others = [p for p in encoder.parameters() if p.ndim <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)


def _made_ahead(batches: Batches, first: int, end: int) -> Iterator[FaceBatch]:
    """Batches ``first`` to ``end``, each made while the one before is used."""
    with ThreadPoolExecutor(1) as maker:
        ahead = maker.submit(batches.batch, first) if first < end else None
        for step in range(first + 1, end + 1):
            assert ahead is not None
            batch = ahead.result()
            ahead = maker.submit(batches.batch, step) if step < end else None
            yield batch
