# SPDX-License-Identifier: Apache-2.0
"""One short loop that trains and scores every baseline, on MSCT's clips and splits.

Windows are drawn from the four categories in equal parts, a pure function of (seed, step); Adam
with the published rates; the weights that score best on validation are kept.  A run folder holds
``log.jsonl``, ``state.safetensors`` (to resume) and ``checkpoint.safetensors``, which carries the
baseline's name, its sizes and the scale of its score.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.metrics import log_loss
from torch import Tensor

from runtime.errors import MediaError, ModelError, UsageError, UserError
from trainer import metrics
from trainer.baselines import Baseline, Labels, build
from trainer.calibrate import Platt, fit_platt
from trainer.clip_scores import ClipRow, ClipScores, window_starts
from trainer.data.prepared import PreparedClip, PreparedSet

FORMAT = "msct-baseline-1"
_SAMPLES = 640  # of a token


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


class BaselineTrainer:
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
        self.step = 0
        self.losses: list[float] = []  # of the validations so far
        self.best: dict[str, Any] = {"score": -1.0, "step": -1, "platt": [1.0, 0.0]}

    def run(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / "state.safetensors").is_file():
            self._resume()
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            while self.step < self.steps:
                terms = self._train_step()
                log.write(json.dumps({"step": self.step, **terms}) + "\n")
                last = self.step == self.steps
                if last or self.step % self.config.validate_every == 0:
                    log.write(
                        json.dumps({"step": self.step, "validation": self._validate()}) + "\n"
                    )
                    log.flush()
                if last or self.step % self.config.save_every == 0:
                    self._save_state()

    def _train_step(self) -> dict[str, float]:
        config = self.config
        torch.manual_seed(config.seed * 1_000_003 + self.step)
        rng = np.random.default_rng([config.seed, self.step])
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        inputs, labels = self._batch(self.batch, rng)
        terms = self.model.loss(self.model(inputs), labels)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        if not torch.isfinite(terms["loss"]):
            raise ModelError(f"the loss of {config.name} is not finite at step {self.step}")
        self.optimizer.step()
        self.step += 1
        return {k: round(float(v.detach()), 5) for k, v in terms.items()}

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

    def _validate(self) -> dict[str, float]:
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

    def _metadata(self) -> dict[str, str]:
        names = "\n".join(f"{c.file} {c.split}" for c in self.data.clips)
        return {"config": json.dumps(dataclasses.asdict(self.config)), "data": names}

    def _save_state(self) -> None:
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{i}/{k}": v for k, v in state.items()}
        progress = {"step": self.step, "losses": self.losses, "best": self.best}
        metadata = {**self._metadata(), "progress": json.dumps(progress)}
        _write(self.folder / "state.safetensors", tensors, metadata)

    def _resume(self) -> None:
        path = self.folder / "state.safetensors"
        metadata, tensors = _read(path)
        if {k: metadata.get(k) for k in ("config", "data")} != self._metadata():
            raise UsageError(f"{path} belongs to a run of other options or data; use a new folder")
        progress = json.loads(metadata["progress"])
        self.step, self.losses, self.best = (progress[k] for k in ("step", "losses", "best"))
        self.model.load_state_dict(
            {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
        )
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer/"):
                _, index, key = name.split("/")
                state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})


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
    metadata = {
        "format": FORMAT,
        "config": json.dumps(dataclasses.asdict(config)),
        "platt": json.dumps(list(platt)),
    }
    _write(path, model.state_dict(), metadata)


def load(path: Path) -> tuple[Baseline, BaselineConfig, Platt]:
    """The model on the CPU in eval mode; raises :class:`ModelError` for another file."""
    metadata, tensors = _read(path)
    if metadata.get("format") != FORMAT:
        raise ModelError(f"{path} is no baseline of this project (expected {FORMAT})")
    config = BaselineConfig(**json.loads(metadata["config"]))
    model = build(config.name, miniature=config.miniature)
    model.load_state_dict(tensors)
    return model.eval(), config, Platt(*json.loads(metadata["platt"]))


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Raises UserError where it cannot be written; an earlier file stays as it is."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    values = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            save_file(values, part, metadata)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, SafetensorError) as err:
        reason = (getattr(err, "strerror", None) or str(err)).splitlines()[0]
        raise UserError(
            f"cannot write {path} ({reason}); make room, then give the same command again"
        ) from err


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except (OSError, SafetensorError) as err:
        raise ModelError(f"{path} cannot be read ({err})") from err
