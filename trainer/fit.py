# SPDX-License-Identifier: Apache-2.0
"""Train a preset.

    python -m trainer.fit                                  # a miniature on the sample clip
    python -m trainer.fit --genuine CLIPS                  # forge your own clips, then train
    python -m trainer.fit --data PREPARED --output runs/a  # a set made by trainer.prepare

Two stages.  ``align``: frame encoder and align heads learn by temporal contrast (InfoNCE both
ways over the tokens of one window; van den Oord et al., 2018) where lips and voice match.
``joint``: the paper's four losses, and the contrast kept as a fifth term.  Validation chooses the
step; calibration is fitted on validation; the test split is read once, at the end.

A run folder holds ``config.json``, ``log.jsonl``, ``state.safetensors`` (to resume),
``checkpoint.safetensors`` (weights, configuration and spec) and ``metrics.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.errors import EXIT_ERROR, ModelError, UsageError, UserError
from runtime.files import write_json
from runtime.spec import Calibration, FaceSpec, PairSpec, StreamSpec
from trainer import metrics
from trainer.calibrate import Platt, fit_platt
from trainer.checkpoint import load_checkpoint, save_checkpoint
from trainer.config import PRESETS, ModelConfig, preset
from trainer.data.prepared import Batch, PreparedSet, Sampler
from trainer.losses import msct_loss, temporal_contrast
from trainer.model.msct import MSCT
from trainer.scoring import WindowScores, score_windows, summarise


@dataclass(frozen=True)
class FitConfig:
    """Everything that decides the outcome, besides the data and the model's own config."""

    preset: str = "msct-tiny"
    align_steps: int = 600
    joint_steps: int = 1200
    batch: int = 16  # windows
    window_tokens: int = 50
    lr: float = 1e-3
    weight_decay: float = 0.02
    warmup: int = 50  # steps, of each stage
    clip_norm: float = 1.0
    ema: float = 0.995
    contrast_weight: float = 0.5  # of the fifth term in the joint stage
    remix: float = 0.5
    modality_dropout: float = 0.1
    appearance_jitter: float = 0.4  # of a constant added to a window's visual features, below
    holdout: float = 0.1  # share of the training speakers' clips that validate as well
    validate_every: int = 150
    save_every: int = 50
    false_alarm_rate: float = 0.05  # on validation, at the threshold that ships
    out_of_domain: float = 0.02  # share of validation windows left out of the domain
    seed: int = 0
    threads: int = 0  # 0: torch's choice

    @property
    def steps(self) -> int:
        return self.align_steps + self.joint_steps


MINIATURE: dict[str, Any] = {
    "align_steps": 20,
    "joint_steps": 20,
    "batch": 4,
    "warmup": 5,
    "validate_every": 20,
    "save_every": 20,
    "ema": 0.9,
}


class Trainer:
    """One run in one folder; :meth:`run` continues it where its state file says."""

    def __init__(
        self, config: FitConfig, model_config: ModelConfig, data: PreparedSet, folder: Path
    ) -> None:
        if data.crop_px != model_config.crop_px:
            raise UsageError(
                f"{data.folder} has crops of {data.crop_px} px, {model_config.name} wants "
                f"{model_config.crop_px}; prepare with --crop-px {model_config.crop_px}"
            )
        self.config, self.data, self.folder = config, data, folder
        self.stream = StreamSpec(window_tokens=config.window_tokens)
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.model = MSCT(model_config)
        self.average = MSCT(model_config)  # exponential moving average of the weights
        self.average.load_state_dict(self.model.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self.train_clips, self.seen_val = data.holdout(config.holdout, config.seed)
        self.val_clips = data.select("val") + self.seen_val
        self.sampler = Sampler(
            self.train_clips,
            window_tokens=config.window_tokens,
            max_lag_tokens=self.stream.max_transport_tokens,
            forged_shift_tokens=self.stream.forged_shift_tokens,
            seed=config.seed,
            remix=config.remix,
            modality_dropout=config.modality_dropout,
        )
        self.step = 0
        self.best: dict[str, Any] = {"score": -1.0, "step": -1}

    def start_from(self, checkpoint: Path) -> None:
        """Take the weights of a checkpoint of the same model; raises ModelError for another."""
        loaded, _, _ = load_checkpoint(checkpoint, expect=self.model.cfg)
        self.model.load_state_dict(loaded.state_dict())
        self.average.load_state_dict(loaded.state_dict())

    # --- one step --------------------------------------------------------------------------

    def train_step(self) -> dict[str, float]:
        config, step = self.config, self.step
        aligning = step < config.align_steps
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout is a function of the step
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        batch = self.sampler.batch(step, config.batch, genuine_only=aligning)
        terms = self._align_terms(batch) if aligning else self._joint_terms(batch)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        if not torch.isfinite(norm):
            raise ModelError(
                f"the gradient is not finite at step {step}; lower --lr and resume the run"
            )
        self.optimizer.step()
        self._update_average()
        self.step += 1
        return {k: float(v.detach()) for k, v in terms.items()}

    def _align_terms(self, batch: Batch) -> dict[str, Tensor]:
        fusion = self.model.fusion
        b, t = batch.crops.shape[:2]
        visual = self.model.frame_encoder(torch.from_numpy(batch.crops).flatten(0, 1))
        align_v = fusion.align_visual(visual.view(b, t, -1))
        align_a = fusion.align_audio(torch.from_numpy(batch.audio))
        loss = temporal_contrast(align_v, align_a, offsets=torch.from_numpy(batch.lag_tokens))
        return {"loss": loss, "contrast": loss}

    def _joint_terms(self, batch: Batch) -> dict[str, Tensor]:
        b, t = batch.crops.shape[:2]
        visual = self.model.frame_encoder(torch.from_numpy(batch.crops).flatten(0, 1))
        visual = visual.view(b, t, -1)
        # Few training speakers: one constant a window hides who it is, not how the face moves.
        if self.config.appearance_jitter:
            visual = visual + self.config.appearance_jitter * torch.randn(b, 1, visual.shape[-1])
        has_v, has_a = torch.from_numpy(batch.has_video), torch.from_numpy(batch.has_audio)
        visual = visual * has_v[:, None, None]  # a missing modality is all zeros
        audio = torch.from_numpy(batch.audio) * has_a[:, None, None]
        out = self.model.fusion.for_training(visual, audio)
        loss = msct_loss(
            out,
            fake_av=torch.from_numpy(batch.fake),
            fake_a=torch.from_numpy(batch.synthetic_voice),
            fake_v=torch.from_numpy(batch.fake_video),
            weight_av=has_v & has_a,
            weight_a=has_a,
            weight_v=has_v,
        )
        contrast = temporal_contrast(
            out.align_v,
            out.align_a,
            offsets=torch.from_numpy(batch.lag_tokens),
            weight=torch.from_numpy(batch.matched) & has_v & has_a,
        )
        total = loss.total + self.config.contrast_weight * contrast
        return {**loss._asdict(), "contrast": contrast, "loss": total}

    def _learning_rate(self) -> float:
        """Linear warm-up, then a half cosine to zero, in each stage."""
        config = self.config
        joint = self.step >= config.align_steps
        at = self.step - config.align_steps if joint else self.step
        length = config.joint_steps if joint else config.align_steps
        ramp = min(1.0, (at + 1) / max(1, config.warmup))
        return config.lr * ramp * 0.5 * (1 + math.cos(math.pi * at / max(1, length)))

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(self.config.ema, (1 + self.step) / (10 + self.step))
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

        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_config()
        columns = (
            *Progress.get_default_columns()[:-1],
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns) as bar, (self.folder / "log.jsonl").open("a") as log:
            task = bar.add_task("align", total=self.config.steps, completed=self.step, note="")
            while self.step < self.config.steps:
                started = time.perf_counter()
                terms = self.train_step()
                seconds = time.perf_counter() - started
                stage = "align" if self.step <= self.config.align_steps else "joint"
                bar.update(
                    task, completed=self.step, description=stage, note=f"loss {terms['loss']:.3f}"
                )
                row = {"step": self.step, "stage": stage, "s": round(seconds, 3)}
                log.write(json.dumps({**row, **{k: round(v, 5) for k, v in terms.items()}}) + "\n")
                if self._due(self.config.validate_every):
                    score = self._validate(stage)
                    log.write(json.dumps({"step": self.step, "validation": score}) + "\n")
                    bar.console.print(f"step {self.step}: {_one_line(score)}")
                log.flush()
                if self._due(self.config.save_every):
                    self.save_state()
        return self._finish()

    def _due(self, every: int) -> bool:
        last = self.step in (self.config.steps, self.config.align_steps)
        return last or self.step % every == 0

    def _validate(self, stage: str) -> dict[str, Any]:
        """Scores on validation; in the joint stage the best step's weights are kept."""
        if not self.val_clips:
            return {"skipped": "no validation clips: fewer than three identities"}
        scores = score_windows(self.average, self.val_clips, self.stream, hop_tokens=12)
        genuine = scores.where(scores.fake == 0)
        result: dict[str, Any] = {
            "lag_within_1": float((np.abs(genuine.lag_tokens) <= 1).mean()),
            "lag_confidence": float(np.median(genuine.lag_confidence)),
        }
        if stage == "joint":
            result["auc_seen"] = _auc_of(scores, [c.identity for c in self.seen_val])
            result["auc_unseen"] = _auc_of(
                scores, [c.identity for c in self.val_clips if c.split == "val"]
            )
            result["video_auc"] = metrics.auc(scores.fake_video, scores.difference_v)
            result["audio_auc"] = metrics.auc(scores.synthetic_voice, scores.difference_a)
            parts = [result[k] for k in ("auc_seen", "auc_unseen") if result[k] is not None]
            score = float(np.mean(parts)) if parts else 0.0
            if score > self.best["score"]:
                self.best = {"score": score, "step": self.step}
                save_checkpoint(
                    self.folder / "best.safetensors", self.average, self.average.cfg, None
                )
        return result

    def _finish(self) -> dict[str, Any]:
        """Choose the weights, calibrate on validation, read the test split, write the rest."""
        best = self.folder / "best.safetensors"
        model = load_checkpoint(best)[0] if best.is_file() else self.average
        result: dict[str, Any] = {
            "step": self.best["step"] if best.is_file() else self.step,
            "identities": {
                s: len({c.identity for c in self.data.select(s)}) for s in ("train", "val", "test")
            },
        }
        calibration = Calibration()
        if self.val_clips:
            scores = score_windows(model, self.val_clips, self.stream)
            calibration = self._calibrate(scores)
            p = Platt(calibration.temperature_av, calibration.bias_av)(scores.difference_av)
            result["validation"] = summarise(scores, p, calibration.threshold)
        else:
            result["validation"] = "none: fewer than three identities, nothing is calibrated"
        test = self.data.select("test")
        if test:
            scores = score_windows(model, test, self.stream)
            p = Platt(calibration.temperature_av, calibration.bias_av)(scores.difference_av)
            result["test"] = summarise(scores, p, calibration.threshold)
        else:
            result["test"] = "none: fewer than three identities"
        spec = PairSpec(
            model=model.cfg.model_spec(),
            face=FaceSpec(crop_px=model.cfg.crop_px),
            stream=self.stream,
            calibration=calibration,
            trained=True,
        )
        save_checkpoint(self.folder / "checkpoint.safetensors", model, model.cfg, spec)
        write_json(self.folder / "metrics.json", result)
        return result

    def _calibrate(self, scores: WindowScores) -> Calibration:
        """Probabilities from all of validation; what is promised of people the model has never
        seen (threshold, domain) from those alone, where validation has any."""
        av, v, a = (
            fit_platt(difference, label, scores.identity)
            for difference, label in (
                (scores.difference_av, scores.fake),
                (scores.difference_v, scores.fake_video),
                (scores.difference_a, scores.synthetic_voice),
            )
        )
        unseen = np.isin(scores.identity, [c.identity for c in self.data.select("val")])
        chosen = scores.where(unseen) if unseen.any() else scores
        threshold = metrics.threshold_at_false_alarms(
            chosen.fake, av(chosen.difference_av), self.config.false_alarm_rate
        )
        return Calibration(
            temperature_av=av.temperature,
            temperature_v=v.temperature,
            temperature_a=a.temperature,
            bias_av=av.bias,
            bias_v=v.bias,
            bias_a=a.bias,
            threshold=round(max(0.5, threshold), 4),
            false_alarm_rate=self.config.false_alarm_rate,
            min_clarity=round(float(np.quantile(chosen.clarity, self.config.out_of_domain)), 4),
        )

    # --- state -----------------------------------------------------------------------------

    def _write_config(self) -> None:
        write_json(
            self.folder / "config.json",
            {
                "fit": dataclasses.asdict(self.config),
                "model": self.model.cfg.to_dict(),
                "data": self._data_digest(),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "machine": platform.machine(),
            },
        )

    def _data_digest(self) -> str:
        names = "\n".join(f"{c.file} {c.split} {len(c.crops)}" for c in self.data.clips)
        return hashlib.sha256(names.encode()).hexdigest()[:16]

    def save_state(self) -> None:
        """Weights, average and optimizer, whole or not at all; safetensors only."""
        from safetensors.torch import save_file

        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average/{k}": v for k, v in self.average.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{i}/{k}": v for k, v in state.items()}
        metadata = {
            "step": str(self.step),
            "best": json.dumps(self.best),
            "config": json.dumps(dataclasses.asdict(self.config), sort_keys=True),
            "data": self._data_digest(),
        }
        path = self.folder / "state.safetensors"
        temporary = path.with_suffix(f".{os.getpid()}.part")
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata)
        temporary.replace(path)

    def resume(self) -> None:
        """Continue from the folder's state.  Raises ModelError for another run's state."""
        from safetensors import SafetensorError, safe_open

        path = self.folder / "state.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as err:
            raise ModelError(f"{path} cannot be read ({err}); start without --resume") from err
        if json.loads(metadata["config"]) != dataclasses.asdict(self.config):
            raise UsageError(
                f"{path} belongs to a run with other options; use its own, or a new folder"
            )
        if metadata["data"] != self._data_digest():
            raise UsageError(f"{path} belongs to a run on another set")

        def part(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model/"))
        self.average.load_state_dict(part("average/"))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in part("optimizer/").items():
            index, key = name.split("/")
            state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.step, self.best = int(metadata["step"]), json.loads(metadata["best"])


def _auc_of(scores: WindowScores, identities: list[str]) -> float | None:
    mask = np.isin(scores.identity, sorted(set(identities)))
    if len(set(scores.fake[mask].tolist())) < 2:
        return None
    return metrics.auc(scores.fake[mask], scores.difference_av[mask])


def _one_line(score: dict[str, Any]) -> str:
    return "  ".join(
        f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in score.items()
    )


def _forge_and_prepare(
    genuine: Path, folder: Path, *, segment_s: float | None, crop_px: int, seed: int
) -> PreparedSet:
    from trainer.forge import forge
    from trainer.prepare import prepare

    forge(genuine, folder / "forged", segment_s=segment_s, per_identity=4, seed=seed, workers=2)
    prepare(folder / "forged", folder / "prepared", face=FaceSpec(crop_px=crop_px), workers=2)
    return PreparedSet(folder / "prepared")


def _parser() -> argparse.ArgumentParser:
    defaults = FitConfig()
    parser = argparse.ArgumentParser(
        prog="python -m trainer.fit", description="Train a preset; without data: a miniature."
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, help="a set made by trainer.prepare")
    source.add_argument("--genuine", type=Path, help="a folder of genuine clips, forged first")
    parser.add_argument("--preset", default=defaults.preset, help=", ".join(PRESETS))
    parser.add_argument("--output", type=Path, default=Path("runs/fit"), help="run folder")
    parser.add_argument("--init", type=Path, metavar="FILE", help="start from this checkpoint")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    parser.add_argument(
        "--segment", type=float, metavar="S", help="cut long clips (with --genuine)"
    )
    for name, what in (
        ("align_steps", "steps of the first stage"),
        ("joint_steps", "of the second"),
        ("batch", "windows a step"),
        ("window_tokens", "tokens of 40 ms a window"),
        ("validate_every", "steps"),
        ("save_every", "steps"),
        ("seed", ""),
        ("threads", "0: torch's choice"),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=what)
    for name in (
        "lr",
        "weight_decay",
        "contrast_weight",
        "modality_dropout",
        "appearance_jitter",
        "remix",
        "false_alarm_rate",
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return _main(args)
    except UserError as err:
        print(f"trainer.fit: {err}", file=sys.stderr)
        return err.exit_code
    except OSError as err:
        print(f"trainer.fit: {err.filename}: {err.strerror}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("trainer.fit: stopped; --resume continues from the last saved step", file=sys.stderr)
        return EXIT_ERROR


def _main(args: argparse.Namespace) -> int:
    model_config = preset(args.preset)
    names = {f.name for f in dataclasses.fields(FitConfig)}
    given = {k: v for k, v in vars(args).items() if k in names and v is not None}
    base: dict[str, Any] = {}
    if args.data is None and args.genuine is None:
        base = MINIATURE
        print(
            "no --data and no --genuine: a miniature on the sample clip, to show that the whole "
            "path works; it learns nothing worth using"
        )
    config = FitConfig(**{**base, **given})
    if min(config.align_steps, config.joint_steps) < 0 or config.batch < 1:
        raise UsageError("steps must not be negative and --batch must be at least 1")
    if args.data is not None:
        data = PreparedSet(args.data)
    else:
        genuine, segment_s = args.genuine, args.segment
        if genuine is None:
            from runtime.samples import sample_clip

            genuine, segment_s = sample_clip().parent, segment_s or 2.8
        data = _forge_and_prepare(
            genuine,
            args.output,
            segment_s=segment_s,
            crop_px=model_config.crop_px,
            seed=config.seed,
        )
    trainer = Trainer(config, model_config, data, args.output)
    if args.init is not None:
        trainer.start_from(args.init)
    if args.resume:
        trainer.resume()
    elif (args.output / "state.safetensors").exists():
        raise UsageError(
            f"{args.output} holds a run already; --resume it or choose another --output"
        )
    result = trainer.run()
    print(f"checkpoint: {args.output / 'checkpoint.safetensors'}")
    for split in ("validation", "test"):
        report = result[split]
        if isinstance(report, str):
            print(f"{split}: {report}")
        else:
            shown = {k: v for k, v in report.items() if isinstance(v, (int, float))}
            print(f"{split}: " + "  ".join(f"{k} {v:.4g}" for k, v in shown.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
