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
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime import interrupt
from runtime.errors import ModelError, UsageError
from trainer.config import ModelConfig
from trainer.face.batches import Batches, FaceBatch
from trainer.face.mesh import GeometryBasis
from trainer.loop.state import STATE, Log, load_state, remove_leftovers, save_state
from trainer.model.msct import FrameEncoder

LOG_EVERY = 50
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


def train(
    folder: Path,
    model: ModelConfig,
    config: DistilConfig,
    batches: Batches,
    basis: GeometryBasis,
    description: dict[str, Any],
    *,
    validate: Callable[[FrameEncoder, int], dict[str, Any]] | None = None,
) -> FrameEncoder:
    """From the state in ``folder``, or from the beginning; the trained encoder in eval mode.

    description : what the run is; a state of another one is refused
    validate : called whenever a state is saved; its values go into the log

    Raises :class:`UsageError` for a folder with another run, :class:`ModelError` for a loss that
    is no number.
    """
    torch.set_num_threads(config.threads)
    remove_leftovers(folder)
    encoder, optimizer = start(model, config, batches)
    what = {**description, "model": model.to_dict(), "config": asdict(config)}
    what = json.loads(json.dumps(what))  # as a state gives it back
    step = _resume(folder / STATE, encoder, optimizer, what)
    spread = torch.from_numpy(basis.spread).float()
    weights = spread / spread.sum()
    log = Log(folder, step, tensorboard=False)
    try:
        with _bar(config.steps, step) as advance:
            _steps(folder, encoder, optimizer, config, batches, weights, what, step,
                   (log, advance, validate))  # fmt: skip
    finally:
        log.close()
    return encoder.eval()


def start(
    model: ModelConfig, config: DistilConfig, batches: Batches
) -> tuple[FrameEncoder, torch.optim.AdamW]:
    """A new encoder whose heads say what is usual."""
    torch.manual_seed(config.seed)
    encoder = FrameEncoder(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    heads = encoder.heads
    assert heads is not None
    usual = torch.from_numpy(batches.mean_geometry), torch.from_numpy(batches.mean_points)
    heads.start_at(*usual)
    decayed = [p for p in encoder.parameters() if p.ndim > 1]
    others = [p for p in encoder.parameters() if p.ndim <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    return encoder.train(), optimizer


def _steps(
    folder: Path,
    encoder: FrameEncoder,
    optimizer: torch.optim.AdamW,
    config: DistilConfig,
    batches: Batches,
    weights: Tensor,
    what: dict[str, Any],
    step: int,
    watchers: tuple[Log, Callable[[], None], Callable[[FrameEncoder, int], dict[str, Any]] | None],
) -> None:
    log, advance, validate = watchers
    began, first = time.monotonic(), step
    for batch in _made_ahead(batches, step, config.steps):
        interrupt.check()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        terms = losses(encoder, batch, weights, config)
        if not math.isfinite(float(terms["loss"].detach())):
            raise ModelError(
                f"the loss at step {step} is no number; begin anew with a smaller --lr"
            )
        optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), config.clip_gradient)
        optimizer.step()
        step += 1
        advance()
        last = step == config.steps
        if step % LOG_EVERY == 0 or last:
            values = {k: round(float(v.detach()), 5) for k, v in terms.items()}
            pace = (time.monotonic() - began) / (step - first)
            log.row({"step": step, **values, "seconds_a_step": round(pace, 3)})
        if step % config.save_every == 0 or last:
            _save(folder / STATE, encoder, optimizer, {"step": step, "run": what})
            if validate is not None:
                log.row({"step": step, "validation": validate(encoder, step)})


def _made_ahead(batches: Batches, first: int, end: int) -> Iterator[FaceBatch]:
    """Batches ``first`` to ``end``, each made while the one before is used."""
    with ThreadPoolExecutor(1) as maker:
        ahead = maker.submit(batches.batch, first) if first < end else None
        for step in range(first + 1, end + 1):
            assert ahead is not None
            batch = ahead.result()
            ahead = maker.submit(batches.batch, step) if step < end else None
            yield batch


def _save(
    path: Path, encoder: FrameEncoder, optimizer: torch.optim.AdamW, facts: dict[str, Any]
) -> None:
    tensors = {f"model.{k}": v for k, v in encoder.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{k}": torch.as_tensor(v) for k, v in state.items()}
    save_state(path, tensors, facts)


def _resume(
    path: Path, encoder: FrameEncoder, optimizer: torch.optim.AdamW, what: dict[str, Any]
) -> int:
    """The step to go on from."""
    if not path.exists():
        return 0
    tensors, facts = load_state(path)
    if facts.get("run") != what:
        other = sorted(k for k, v in what.items() if facts.get("run", {}).get(k) != v)
        raise UsageError(
            f"{path.parent} holds another run (it differs in {', '.join(other)}); give the options "
            "of before, or another --output"
        )
    encoder.load_state_dict(
        {k[len("model.") :]: v for k, v in tensors.items() if k.startswith("model.")}
    )
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".", 2)
            states.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    return int(facts["step"])


class _bar:
    """A progress bar whose context gives the function that advances it."""

    def __init__(self, total: int, done: int) -> None:
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn())
        self._progress = Progress(*columns, TimeRemainingColumn(), transient=True)
        self._task = self._progress.add_task("distilling", total=total, completed=done)

    def __enter__(self) -> Callable[[], None]:
        self._progress.start()
        return lambda: self._progress.advance(self._task)

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()
