# SPDX-License-Identifier: Apache-2.0
"""One training run in one folder, from the first step to the calibrated checkpoint.

Validation chooses the step and fits the calibration (:mod:`trainer.loop.validation`).  The first
process writes, all processes hold the same model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runtime.errors import ModelError, UsageError
from runtime.files import write_json
from runtime.spec import FaceSpec, PairSpec, StreamSpec
from trainer.config import ModelConfig
from trainer.data.prepared import Batch, PreparedClip, PreparedSet, Sampler
from trainer.face.checkpoint import load_encoder
from trainer.face.following import encoder_digest
from trainer.loop.batches import Batches, EpochSampler
from trainer.loop.distributed import Group, average_buffers, data_parallel
from trainer.loop.from_pair import is_pair, start_weights
from trainer.loop.loop import SEED_STRIDE, Loop, data_digest
from trainer.loop.losses import Totals
from trainer.loop.schedule import Progress, learning_rate
from trainer.loop.state import Log, record_start, remove_leftovers
from trainer.loop.step import TrainingStep, Windows
from trainer.loop.validation import Validation
from trainer.model.checkpoint import load_checkpoint, save_checkpoint, weights_digest
from trainer.model.msct import MSCT
from trainer.recipes import FitConfig

MAX_SKIPPED = 50  # steps in a row that overflow in fp16, while the scale of the loss is found
_ALIGN, _JOINT = "align", "joint"


@dataclass(frozen=True)
class Options:
    """What changes how a run is shown and how fast it is, not what comes out."""

    tensorboard: bool = False
    compile: bool = False
    workers: int | None = None  # threads that make batches; None: 0 on a CPU


class Trainer(Loop):
    """One run in one folder; :meth:`run` continues it where its state file says."""

    def __init__(
        self,
        config: FitConfig,
        model_config: ModelConfig,
        data: PreparedSet,
        folder: Path,
        *,
        group: Group | None = None,
        options: Options | None = None,
        encoder: Path | None = None,
    ) -> None:
        if data.crop_px != model_config.crop_px:
            raise UsageError(
                f"{data.folder} has crops of {data.crop_px} px, {model_config.name} wants "
                f"{model_config.crop_px}; prepare with --crop-px {model_config.crop_px}"
            )
        self.encoder_sha256, self._encoder = check_encoder(data, encoder), encoder
        self.config, self.data, self.folder = config, data, folder
        self.group, self.options = group or Group(), options or Options()
        self.stream = StreamSpec(window_tokens=config.window_tokens)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.device = choose_device(config.device, self.group)
        self._split()
        self._build(model_config)
        workers = self.options.workers
        if workers is None:
            cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            workers = max(1, min(8, cores - 1)) if self.device.type == "cuda" else 0
        self.batches = Batches(
            self.sampler,
            self.group.part(config.batch, config.accumulate),
            align_steps=config.align_steps,
            workers=workers,
        )
        self.progress = Progress()
        self.seed, self.writes = config.seed, self.group.first
        self.validate_every = (config.validate_every or self.epoch_steps) * bool(
            self.validation.clips
        )
        self.save_every = config.save_every
        self.init: str | None = None  # digest of the weights that the run began with

    def _split(self) -> None:
        config, data = self.config, self.data
        train = data.select("train")
        if not train:
            raise UsageError(
                f"{data.folder} has no training clips under protocol {data.protocol!r}; "
                "choose another --protocol (see trainer.data.splits)"
            )
        self.train_clips = train
        seen: list[PreparedClip] = []
        if config.holdout:
            self.train_clips, seen = data.holdout(config.holdout, config.seed)
        self.validation = Validation(config, data, self.stream, seen)
        if config.schedule == "plateau" and not self.validation.clips:
            raise UsageError(
                "the learning rate follows the validation loss and no clip validates; choose "
                "another --protocol, or --schedule cosine"
            )

    def _build(self, model_config: ModelConfig) -> None:
        config, stream = self.config, self.stream
        self.sampler: Sampler | EpochSampler
        if config.sampling == "epoch":
            self.sampler = EpochSampler(
                self.train_clips,
                window_tokens=config.window_tokens,
                batch=config.batch,
                seed=config.seed,
                crops=config.augment == "lineage",
                keep_size=model_config.backbone.pooling == "flatten",
            )
        else:
            if config.augment == "lineage":
                raise UsageError("augment 'lineage' goes with sampling 'epoch'")
            self.sampler = Sampler(
                self.train_clips,
                window_tokens=config.window_tokens,
                max_lag_tokens=stream.max_transport_tokens,
                forged_shift_tokens=stream.forged_shift_tokens,
                seed=config.seed,
                remix=config.remix,
                modality_dropout=config.modality_dropout,
                augment=config.augment == "full",
            )
        clips = len(self.train_clips)
        self.epoch_steps = max(1, round(clips / config.batch))
        joint = -(-config.epochs * clips // config.batch) if config.epochs else config.joint_steps
        self.align_steps, self.joint_steps = config.align_steps, joint
        self.steps = self.align_steps + joint

        torch.manual_seed(config.seed)
        self.model = MSCT(model_config)
        if self._encoder is not None:
            take_encoder(self.model, self._encoder)
        self.model.to(self.device)
        self.average = self.model  # exponential moving average of the weights
        if config.ema:
            self.average = MSCT(model_config)
            self.average.to(self.device).load_state_dict(self.model.state_dict())
        cuda = self.device.type == "cuda"
        if cuda:
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
            if self.group.size > 1 and not config.frozen_norm:
                nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        self.optimizer = kind(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
        )
        self.dtype = choose_precision(config.precision, self.device)
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.network: nn.Module = TrainingStep(self.model, config, autocast)
        if self.options.compile:
            self.network.compile()
        if self.group.size > 1:
            self.network = data_parallel(
                self.network,
                # the first stage reaches a part of the network, no contrast leaves its heads out
                some_unused=bool(config.align_steps) or not config.contrast_weight,
            )

    def start_from(self, init: Path) -> None:
        """Take the weights of a checkpoint or a pair (:mod:`trainer.loop.from_pair`) of the same
        model.

        Raises ModelError for another, and UsageError for a pair where batch normalisation would
        go on learning: the pair does not hold its statistics.
        """
        if is_pair(init) and not self.config.frozen_norm:
            raise UsageError(
                f"{init} is a pair of graphs, which holds no statistics of batch normalisation to "
                "go on from; add --recipe finetune, which leaves them as they are"
            )
        loaded = start_weights(init, self.model.cfg)
        self.init = weights_digest(loaded)
        self.model.load_state_dict(loaded.state_dict())
        if self._encoder is not None:  # whatever was before it in those weights
            take_encoder(self.model, self._encoder)
        self.average.load_state_dict(self.model.state_dict())

    @property
    def step(self) -> int:
        return self.progress.step

    @property
    def stage(self) -> str:
        return _ALIGN if self.progress.step <= self.align_steps else _JOINT

    @property
    def stopped(self) -> bool:
        return self.progress.stopped

    # --- one step --------------------------------------------------------------------------

    def train_step(self, batch: Batch | None = None) -> dict[str, float]:
        config, step = self.config, self.progress.step
        aligning = step < self.align_steps
        batch = batch or self.batches.of(step)
        # What is drawn here is a function of the step, and of the process for dropout.
        torch.manual_seed(config.seed * SEED_STRIDE + step + self.group.rank * 2_147_483_647)
        self.model.train()
        if self.encoder_sha256 is not None:
            self.model.frame_encoder.eval()
        if config.frozen_norm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        rate = learning_rate(config, self.progress, self.align_steps, self.joint_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        windows = Windows.of(batch, self._jitter(step), config.audio_label, self.device)
        terms = self._backward(windows, aligning)
        overflow = self._apply_gradients()
        if self.group.size > 1 and self.device.type == "cpu" and not config.frozen_norm:
            average_buffers(self.model, self.group)
        if not overflow:
            self._update_average()
        self.progress.step += 1
        names = list(terms)
        values = self.group.mean(torch.stack([terms[k] for k in names])).tolist()
        return {**dict(zip(names, values, strict=True)), "lr": rate}

    def _backward(self, windows: Windows, aligning: bool) -> dict[str, Tensor]:
        """Gradients of the whole batch's loss; the terms, whose mean over processes is its."""
        totals = Totals(*self.group.mean(windows.totals().float()).unbind())
        self.optimizer.zero_grad(set_to_none=True)
        summed: dict[str, Tensor] = {}
        pieces = windows.pieces(self.config.accumulate)
        for number, piece in enumerate(pieces, start=1):
            network, last = self.network, number == len(pieces)
            waits = isinstance(network, nn.parallel.DistributedDataParallel) and not last
            with network.no_sync() if waits else contextlib.nullcontext():
                terms = network(piece, totals, aligning)
                self.scaler.scale(terms["loss"]).backward()
            for name, value in terms.items():
                summed[name] = summed.get(name, 0) + value.detach()
        return summed

    def _apply_gradients(self) -> bool:
        """One step of the optimizer; True where fp16 overflowed, and nothing was done."""
        self.scaler.unscale_(self.optimizer)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self.config.clip_norm or float("inf"))
        finite = bool(torch.isfinite(norm))
        self.progress.skipped = 0 if finite else self.progress.skipped + 1
        if not finite and (not self.scaler.is_enabled() or self.progress.skipped > MAX_SKIPPED):
            raise ModelError(
                f"the gradient is not finite at step {self.progress.step}; "
                "begin anew with a lower --lr"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return not finite

    def _jitter(self, step: int) -> Tensor:
        """This process's part of one draw for the whole batch: [B, 1, C], or zeros [B, 1, 1]."""
        part, size = self.batches.part, self.config.appearance_jitter
        if not size:
            return torch.zeros(len(part), 1, 1)
        generator = torch.Generator().manual_seed(self.config.seed * SEED_STRIDE + step)
        draw = torch.randn(self.config.batch, 1, self.model.cfg.channels, generator=generator)
        return size * draw[part.start : part.stop]

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is self.model:
            return
        step = self.progress.step
        keep = min(self.config.ema, (1 + step) / (10 + step))
        for mine, new in zip(
            self.average.state_dict().values(), self.model.state_dict().values(), strict=True
        ):
            if mine.is_floating_point():
                mine.lerp_(new, 1 - keep)
            else:
                mine.copy_(new)

    # --- the run ---------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the end; returns what metrics.json holds."""
        from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        writes = self.group.first
        log: Log | None = None
        if writes:
            self._begin()
            lacking = self.validation.lacking()
            if lacking is not None:
                print(lacking)
            log = Log(self.folder, self.progress.step, tensorboard=self.options.tensorboard)
        columns = (
            *Progress.get_default_columns()[:-1],
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        try:
            with Progress(*columns, disable=not writes) as bar:
                task = bar.add_task(_ALIGN, total=self.steps, completed=self.progress.step, note="")
                first = self.steps if self.stopped else self.step
                batches = self.batches.between(first, self.steps) if first < self.steps else ()

                def note(step: int, terms: dict[str, float]) -> None:
                    told = f"loss {terms['loss']:.3f}"
                    bar.update(task, completed=step, description=self.stage, note=told)

                self.go(batches, log, note, bar.console.print)
                if self.stopped and first < self.steps:
                    bar.console.print(
                        f"step {self.step}: no better score for "
                        f"{self.config.patience} validations; stopped"
                    )
        finally:
            self.batches.close()
            if log is not None:
                log.close()
        return self.group.from_first(self._finish)

    def _begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        write_json(self.folder / "config.json", self.description())
        record_start(
            self.folder,
            {
                "device": str(self.device),
                "gpu": torch.cuda.get_device_name(self.device)
                if self.device.type == "cuda"
                else None,
                "precision": str(self.dtype).removeprefix("torch."),
                "processes": self.group.size,
                "threads": torch.get_num_threads(),
                "from_step": self.progress.step,
                **dataclasses.asdict(self.options),
            },
        )

    def due(self, every: int) -> bool:
        return super().due(every) or (every > 0 and self.step == self.align_steps)

    def validate(self) -> dict[str, Any]:
        """Scores on validation; in the joint stage the best step's weights are kept."""
        joint = self.stage == _JOINT
        result: dict[str, Any] = self.group.from_first(
            lambda: self.validation.scores(self.average, joint=joint)
        )
        if joint:
            better = self.progress.validated(self.config, result["score"], result["loss"])
            if better and self.group.first:
                save_checkpoint(
                    self.folder / "best.safetensors", self.average, self.average.cfg, None
                )
        return result

    def _finish(self) -> dict[str, Any]:
        """Choose the weights, calibrate on validation, read the test split, write the rest."""
        model, step = self.average, self.progress.step
        if self.progress.best_step >= 0 and self.config.select == "best":
            model, step = (
                load_checkpoint(self.folder / "best.safetensors")[0],
                (self.progress.best_step),
            )
            model.to(self.device)
        result: dict[str, Any] = {
            "step": step,
            "clips": {s: len(self.data.select(s)) for s in ("train", "val", "test")},
            "clips_left_out": self.data.left_out,
            "training_clips_too_short": sum(
                c.length < self.config.window_tokens for c in self.train_clips
            ),
            "identities": {
                s: len({c.identity for c in self.data.select(s)}) for s in ("train", "val", "test")
            },
        }
        calibration, report = self.validation.finish(model)
        result |= report
        result["weights_sha256"] = weights_digest(model)  # of what ships: finish() may fit a layer
        spec = PairSpec(
            model=model.cfg.model_spec(),
            face=FaceSpec(crop_px=model.cfg.crop_px, stage=self.data.face_stage),
            stream=self.stream,
            calibration=calibration,
            trained=True,
        )
        save_checkpoint(self.folder / "checkpoint.safetensors", model, model.cfg, spec)
        write_json(self.folder / "metrics.json", result)
        return result

    # --- state -----------------------------------------------------------------------------

    def description(self) -> dict[str, Any]:
        """What makes two runs the same, as JSON gives it back; ``config.json`` holds it."""
        text = json.dumps(
            {
                "fit": dataclasses.asdict(self.config),
                "model": self.model.cfg.to_dict(),
                "data": data_digest(self.data),
                "init": self.init,
                **({"encoder": self.encoder_sha256} if self.encoder_sha256 else {}),
            }
        )
        described: dict[str, Any] = json.loads(text)
        return described

    def networks(self) -> dict[str, nn.Module]:
        averages = {} if self.average is self.model else {"average": self.average}
        return {"model": self.model, **averages}

    def facts(self) -> dict[str, Any]:
        return {"progress": self.progress.to_dict(), "scaler": self.scaler.state_dict()}

    def take_facts(self, facts: dict[str, Any]) -> None:
        if facts["scaler"]:
            self.scaler.load_state_dict(facts["scaler"])
        self.progress = Progress.from_dict(facts["progress"])


def check_encoder(data: PreparedSet, encoder: Path | None) -> str | None:
    """The digest of the encoder that followed the faces of the set, which a model is trained on.

    Raises :class:`UsageError` for another encoder, or one that is missing or not wanted.
    """
    if encoder is None:
        if data.encoder_sha256 is not None:
            raise UsageError(
                f"the faces of {data.folder} were followed by an encoder (SHA-256 "
                f"{data.encoder_sha256[:16]}…); give its file with --encoder"
            )
        return None
    digest = encoder_digest(encoder)
    if digest != data.encoder_sha256:
        was = f"another, {data.encoder_sha256[:16]}…" if data.encoder_sha256 else "dlib"
        raise UsageError(
            f"{encoder} did not follow the faces of {data.folder}, {was} did; prepare with "
            f"--faces encoder --encoder {encoder}"
        )
    return digest


def take_encoder(model: MSCT, path: Path) -> None:
    """The weights of a distilled frame encoder, heads and all, which no step changes.

    Raises :class:`ModelError` for one of another configuration.
    """
    known = load_encoder(path)
    try:
        model.frame_encoder.load_state_dict(known.encoder.state_dict())
    except RuntimeError as err:
        raise ModelError(
            f"{path} is the encoder of {known.config.name}, not of {model.cfg.name}: "
            f"{str(err).splitlines()[0]}"
        ) from None
    model.frame_encoder.requires_grad_(False)


def choose_device(name: str, group: Group) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UsageError("torch sees no GPU here; use --device cpu, or install torch for CUDA")
    if group.local_rank >= torch.cuda.device_count():
        raise UsageError(
            f"{torch.cuda.device_count()} GPUs for more processes than that; "
            "lower torchrun's --nproc-per-node"
        )
    return torch.device("cuda", group.local_rank)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """What the network computes in; float32 is no autocast."""
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
