# SPDX-License-Identifier: Apache-2.0
"""The one training loop: steps, log, validations and a state to resume from, in one folder.

Who inherits knows the model: what a step and a validation are, and what makes two runs the same.
"""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runtime import interrupt
from runtime.errors import UsageError
from trainer.data.prepared import PreparedSet
from trainer.loop.state import STATE, Log, load_state, save_state

SEED_STRIDE = 1_000_003  # between the seeds of two runs: more than any run has steps

Note = Callable[[int, dict[str, float]], None]  # step and terms of the loss, after each step


class Loop(ABC):
    """One run in one folder; what inherits sets these before :meth:`resume` and :meth:`go`."""

    folder: Path
    seed: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int  # in all
    validate_every: int  # steps; 0: never
    save_every: int
    writes = True  # this process writes the state

    @property
    @abstractmethod
    def step(self) -> int:
        """How many are done."""

    @property
    def stage(self) -> str | None:
        return None

    @property
    def stopped(self) -> bool:
        return False

    @abstractmethod
    def train_step(self, batch: Any) -> dict[str, float]:
        """One step of the optimizer, and on; the terms of its loss."""

    @abstractmethod
    def validate(self) -> dict[str, Any]:
        """Scores on validation; keeps the weights where they are the best."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What makes two runs the same, as JSON gives it back: ``data``, and parts with names."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What else the state holds, as JSON; :meth:`take_facts` gets it back."""

    @abstractmethod
    def take_facts(self, facts: dict[str, Any]) -> None: ...

    def networks(self) -> dict[str, nn.Module]:
        """Whose weights the state holds, by their prefix in it."""
        return {"model": self.model}

    def due(self, every: int) -> bool:
        return every > 0 and (self.step == self.steps or self.step % every == 0)

    def go(
        self,
        batches: Iterable[Any],
        log: Log | None,
        note: Note = lambda step, terms: None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Train on ``batches``, one a step, to the end or until it has stopped."""
        for batch in batches:
            interrupt.check()
            started = time.perf_counter()
            terms = self.train_step(batch)
            note(self.step, terms)
            row: dict[str, Any] = {"step": self.step}
            row |= {} if self.stage is None else {"stage": self.stage}
            row["s"] = round(time.perf_counter() - started, 3)
            if log is not None:
                log.row({**row, **{k: round(v, 7) for k, v in terms.items()}})
            if self.due(self.validate_every):
                score = self.validate()
                if log is not None:
                    log.row({"step": self.step, "validation": score})
                    tell(f"step {self.step}: {one_line(score)}")
            if self.due(self.save_every) or self.stopped:
                self.save_state()
            if self.stopped:
                break

    def save_state(self) -> None:
        """Weights, optimizer and progress."""
        if not self.writes:
            return
        tensors = {
            f"{prefix}/{k}": v
            for prefix, network in self.networks().items()
            for k, v in network.state_dict().items()
        }
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{i}/{k}": v for k, v in state.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        save_state(self.folder / STATE, tensors, {**self.facts(), "run": self.description()})

    def resume(self) -> None:
        """Continue from the folder's state.  Raises UsageError for another run's state."""
        path = self.folder / STATE
        tensors, facts = load_state(path)
        check_same_run(facts.get("run"), self.description(), path)

        def part(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        for prefix, network in self.networks().items():
            network.load_state_dict(part(f"{prefix}/"))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in part("optimizer/").items():
            index, key = name.split("/")
            state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.take_facts(facts)


def data_digest(data: PreparedSet) -> str:
    labels = "\n".join(f"{c.file} {c.split} {c.length} {c.category} {c.method}" for c in data.clips)
    return hashlib.sha256(labels.encode()).hexdigest()[:16]


def check_same_run(found: Any, mine: Mapping[str, Any], path: Path) -> None:
    """UsageError where ``path`` belongs to a run with other options, model or data."""
    if found == mine:
        return
    if not isinstance(found, dict) or set(found) != set(mine):
        raise UsageError(f"{path} was written by another version; use a new folder")
    if found["data"] != mine["data"]:
        raise UsageError(f"{path} belongs to a run on another set; use a new folder")
    if found.get("init") != mine.get("init"):
        raise UsageError(
            f"{path} belongs to a run that began with other weights; give the same --init as then"
        )
    names = [
        f"{k} {found[part].get(k)!r} there, {v!r} here"
        for part, values in mine.items()
        if isinstance(values, dict)
        for k, v in values.items()
        if found[part].get(k) != v
    ]
    raise UsageError(
        f"{path} belongs to a run with other options ({'; '.join(names[:3])}); "
        "use its own, or a new folder"
    )


def one_line(score: Mapping[str, Any]) -> str:
    return "  ".join(
        f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in score.items()
    )
