# SPDX-License-Identifier: Apache-2.0
"""How every baseline is trained and scored, on MSCT's clips and splits, by the one loop
(:mod:`trainer.loop.loop`).

Windows are drawn from the four categories in equal parts, a pure function of (seed, step); Adam
with the published rates; the weights that score best on validation are kept.  A run folder holds
``log.jsonl``, ``state.safetensors`` (to resume) and ``checkpoint.safetensors``, which carries the
baseline's name, its sizes and the scale of its score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.metrics import log_loss
from torch import Tensor

from runtime.errors import MediaError, ModelError
from runtime.spec import AudioSpec
from trainer.data.prepared import PreparedClip, PreparedSet
from trainer.loop.loop import SEED_STRIDE, Loop, data_digest
from trainer.loop.state import STATE, Log, load_state, save_state
from trainer.paper.baselines import Baseline, Labels, build
from trainer.scoring import metrics
from trainer.scoring.calibrate import Platt, fit_platt
from trainer.scoring.clips import ClipRow, ClipScores, window_starts

FORMAT = "msct-baseline-2"
_SAMPLES = AudioSpec().token_samples


@dataclass(frozen=True)
class BaselineConfig:
    """Everything that decides the outcome, besides the data."""

    name: str
    miniature: bool = False
    steps: int | None = None  # None: as many as the published epochs have
    batch: int | None = None  # None: as published
    lr: float | None = None
    validate_every: int = 250
    save_every: int = 50
    seed: int = 0
    threads: int = 1


class BaselineTrainer(Loop):
    """One run in one folder; :meth:`run` continues it where its state file says."""

    def __init__(self, config: BaselineConfig, data: PreparedSet, folder: Path) -> None:
        self.config, self.data, self.folder = config, data, folder
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = build(config.name, miniature=config.miniature).to(self.device)
        recipe = self.model.RECIPE
        self.lr = config.lr or recipe.lr
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), self.lr, recipe.betas, weight_decay=recipe.weight_decay
        )
        self.train: dict[str, list[PreparedClip]] = {}
        for clip in data.select("train"):
            self.train.setdefault(clip.category, []).append(clip)
        if not self.train:
            raise MediaError(f"{data.folder} has no training clips in this protocol")
        self.val = data.select("val")
        clips = sum(len(c) for c in self.train.values())
        self.batch = config.batch or recipe.batch
        self.steps = config.steps or recipe.epochs * -(-clips // self.batch)
        self.seed, self.save_every = config.seed, config.save_every
        self.validate_every = config.validate_every
        self.done = 0  # steps
        self.losses: list[float] = []  # of the validations so far
        self.best: dict[str, Any] = {"score": -1.0, "step": -1, "platt": [1.0, 0.0]}

    @property
    def step(self) -> int:
        return self.done

    def run(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / STATE).is_file():
            self.resume()
        log = Log(self.folder, self.step, tensorboard=False)
        try:
            self.go(range(self.step, self.steps), log)
        finally:
            log.close()

    def train_step(self, batch: int) -> dict[str, float]:
        """``batch`` is the number of the step: what is drawn is a function of it."""
        config = self.config
        torch.manual_seed(config.seed * SEED_STRIDE + batch)
        rng = np.random.default_rng([config.seed, batch])
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        inputs, labels = self._batch(self.batch, rng)
        terms = self.model.loss(self.model(inputs), labels)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        if not torch.isfinite(terms["loss"]):
            raise ModelError(f"the loss of {config.name} is not finite at step {batch}")
        self.optimizer.step()
        self.done += 1
        return {k: float(v.detach()) for k, v in terms.items()}

    def _learning_rate(self) -> float:
        """Constant, or halved after every third validation in a row without a lower loss."""
        lr, best, waited = self.lr, float("inf"), 0
        for loss in self.losses if self.model.RECIPE.plateau else ():
            waited = 0 if loss < best else waited + 1
            best = min(best, loss)
            if waited > 3:
                lr, waited = lr / 2, 0
        return max(lr, 1e-8)

    def _batch(self, size: int, rng: np.random.Generator) -> tuple[dict[str, Tensor], Labels]:
        names = sorted(self.train)
        rows, labels = [], []
        for i in range(size):
            clips = self.train[names[i % len(names)]]
            clip = clips[int(rng.integers(len(clips)))]
            crops, audio = clip.crops, clip.audio
            start = int(rng.integers(0, max(0, len(crops) - self.model.window_tokens) + 1))
            rows.append(self.model.inputs(*window(self.model, crops, audio, start), rng))
            fake_video, fake_audio = int(clip.fake_video), int(clip.fake_audio)
            labels.append((fake_video | fake_audio, fake_video, fake_audio))
        columns = torch.tensor(labels, device=self.device).unbind(1)
        return _stack(rows, self.device), Labels(*columns)

    def validate(self) -> dict[str, Any]:
        """Keeps the weights where the area under the ROC on validation is largest."""
        platt = Platt(1.0, 0.0)
        result: dict[str, float] = {}
        fake = np.array([int(c.fake_video or c.fake_audio) for c in self.val])
        if len(set(fake.tolist())) == 2:
            raw = np.array([raw_scores(self.model, clip).score for clip in self.val])
            if not self.model.SCORE_IS_LOGIT:
                platt = fit_platt(raw, fake, np.array([c.identity for c in self.val]))
            loss = float(log_loss(fake, platt(raw)))
            self.losses.append(loss)
            result = {"auc": metrics.auc(fake, raw), "loss": loss}
        score = result.get("auc", 0.0)
        if score > self.best["score"] or not result:
            self.best = {"score": score, "step": self.step, "platt": list(platt)}
            save(self.folder / "checkpoint.safetensors", self.model, self.config, platt)
        return result

    # --- state -----------------------------------------------------------------------------

    def description(self) -> dict[str, Any]:
        return {"fit": dataclasses.asdict(self.config), "data": data_digest(self.data)}

    def facts(self) -> dict[str, Any]:
        return {"step": self.done, "losses": self.losses, "best": self.best}

    def take_facts(self, facts: dict[str, Any]) -> None:
        self.done, self.losses, self.best = (facts[k] for k in ("step", "losses", "best"))


def window(model: Baseline, crops: Any, audio: Any, start: int) -> tuple[Any, Any]:
    """The window's crops [T, H, W, 3] and audio [640 T]; a shorter clip repeats its last frame
    and goes on in silence."""
    t = model.window_tokens
    crops, audio = crops[start : start + t], audio[_SAMPLES * start : _SAMPLES * (start + t)]
    crops = np.pad(crops, ((0, t - len(crops)), (0, 0), (0, 0), (0, 0)), mode="edge")
    return crops, np.pad(audio, (0, _SAMPLES * t - len(audio)))


class Raw(NamedTuple):
    """Means over the windows of one clip, on the network's own scale."""

    score: float
    score_video: float  # NaN where the system has no such score
    score_audio: float
    embedding: Any  # [E]
    windows: int


@torch.inference_mode()
def raw_scores(model: Baseline, clip: PreparedClip) -> Raw:
    """The model is left in eval mode."""
    model.eval()
    device = next(model.parameters()).device
    crops, audio = clip.crops, clip.audio
    starts = window_starts(len(crops), model.window_tokens)
    inputs = [model.inputs(*window(model, crops, audio, start)) for start in starts]
    parts = [
        model(_stack(inputs[i : i + model.SCORE_BATCH], device))
        for i in range(0, len(inputs), model.SCORE_BATCH)
    ]

    def mean(values: list[Tensor | None]) -> float:
        known = [v for v in values if v is not None]
        return float(torch.cat(known).double().mean()) if known else float("nan")

    return Raw(
        mean([p.score for p in parts]),
        mean([p.score_video for p in parts]),
        mean([p.score_audio for p in parts]),
        torch.cat([p.embedding for p in parts]).float().mean(0).cpu().numpy(),
        len(starts),
    )


def score_clips(model: Baseline, clips: Sequence[PreparedClip], platt: Platt) -> ClipScores:
    """One score a clip: the sigmoid of the scaled mean over its windows."""
    as_it_is = Platt(1.0, 0.0)
    rows = []
    for clip in clips:
        raw = raw_scores(model, clip)
        p_fake, p_video, p_audio = (
            float(scale(np.array(value)))
            for scale, value in (
                (platt, raw.score),
                (as_it_is, raw.score_video),
                (as_it_is, raw.score_audio),
            )
        )
        rows.append(ClipRow(p_fake, p_video, p_audio, raw.windows, raw.windows, raw.embedding))
    return ClipScores.of(clips, rows)


def _stack(rows: list[dict[str, Any]], device: torch.device) -> dict[str, Tensor]:
    return {k: torch.from_numpy(np.stack([r[k] for r in rows])).to(device) for k in rows[0]}


# --- checkpoints ----------------------------------------------------------------------------


def save(path: Path, model: Baseline, config: BaselineConfig, platt: Platt) -> None:
    facts = {"format": FORMAT, "config": dataclasses.asdict(config), "platt": list(platt)}
    save_state(path, model.state_dict(), facts)


def load(path: Path) -> tuple[Baseline, BaselineConfig, Platt]:
    """The model on the CPU in eval mode; raises :class:`ModelError` for another file."""
    tensors, facts = load_state(path)
    if facts.get("format") != FORMAT:
        raise ModelError(f"{path} is no baseline of this project (expected {FORMAT})")
    config = BaselineConfig(**facts["config"])
    model = build(config.name, miniature=config.miniature)
    model.load_state_dict(tensors)
    return model.eval(), config, Platt(*facts["platt"])
