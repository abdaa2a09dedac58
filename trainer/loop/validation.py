# SPDX-License-Identifier: Apache-2.0
"""What the clips that nobody trains on say of a run: its scores, its calibration, its figures.

Validation chooses the step and fits the calibration; the test split is read once, at the end.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from runtime.errors import UsageError
from runtime.spec import FAKE, AudioSpec, Calibration, StreamSpec
from trainer.data.layouts import FAKE_AUDIO, REAL_PAIR
from trainer.data.prepared import ClipArrays, PreparedClip, PreparedSet
from trainer.model.msct import LAG_SCALE, MSCT
from trainer.recipes import FitConfig
from trainer.scoring import metrics
from trainer.scoring.calibrate import (
    Evidence,
    Platt,
    add_network,
    conformal_threshold,
    fit_lags,
    fit_platt,
)
from trainer.scoring.windows import WindowScores, score_windows, summarise

VOICES = 4  # of each kind, under each genuine picture of a trial
HOP_TOKENS = 12  # between the windows that are scored while the run goes on
NO_VALIDATION = "none: no clip validates, nothing is calibrated"
NO_TEST = "none: no clip tests"


class Validation:
    """The clips that validate and test a run.

    ``seen`` validate as well: clips of people that train, held out of training.  Raises
    :class:`UsageError` where clips are there and all of them are shorter than a window.
    """

    def __init__(
        self, config: FitConfig, data: PreparedSet, stream: StreamSpec, seen: list[PreparedClip]
    ) -> None:
        self.config, self.stream = config, stream
        self.unseen, self.seen = data.select("val"), seen
        self.clips = self.unseen + seen
        self.test = data.select("test")
        self.people = len({c.identity for c in data.select("train")})  # that train
        shortest = config.window_tokens
        for name, clips in (("validates", self.clips), ("tests", self.test)):
            if clips and all(c.length < shortest for c in clips):
                raise UsageError(
                    f"no clip that {name} is as long as a window of {shortest} tokens; give longer "
                    "clips or a smaller --window-tokens"
                )

    def lacking(self) -> str | None:
        """What nobody will say of this run, in one sentence; None where both parts have clips."""
        if self.clips and self.test:
            return None
        if self.clips:
            return "nobody tests: the only scores are those on validation"
        kept = "the weights of the last step are kept as they are, uncalibrated"
        if self.test:
            return f"nobody validates: {kept}"
        people = "one person trains" if self.people == 1 else f"{self.people} people train"
        return (
            f"{people} and nobody is left to validate or test on (it takes three people at least): "
            f"{kept}, and there are no scores"
        )

    def scores(self, model: MSCT, *, joint: bool) -> dict[str, Any]:
        """Of a model in training; ``joint``: past the first stage, which trains no decision."""
        scores = score_windows(model, self.clips, self.stream, hop_tokens=HOP_TOKENS)
        genuine = scores.where(scores.fake == 0)
        result: dict[str, Any] = {
            "lag_within_1": float((np.abs(genuine.lag_error_tokens) <= 1).mean()),
            "lag_confidence": float(np.median(genuine.lag_confidence)),
        }
        if joint:
            parts = {
                "auc_seen": _auc_of(scores, self.seen),
                "auc_unseen": _auc_of(scores, self.unseen),
            }
            known = [v for v in parts.values() if v is not None]
            sign = np.where(scores.fake == 1, -1.0, 1.0)
            result |= {
                **parts,
                "video_auc": metrics.auc(scores.fake_video, scores.difference_v),
                "audio_auc": metrics.auc(
                    self._audio_labels(scores, self.clips), scores.difference_a
                ),
                "loss": float(np.logaddexp(0, sign * scores.difference_av).mean()),
                "score": float(np.mean(known)) if known else 0.0,
            }
        return {k: None if v != v else v for k, v in result.items()}  # NaN: one class only

    def finish(self, model: MSCT) -> tuple[Calibration, dict[str, Any]]:
        """The calibration that ships, and what metrics.json says of validation and test.

        Where the model takes lag evidence, its last layer is fitted as well and then gives the
        log-odds itself: see :meth:`_trials` and :func:`weigh_evidence`.
        """
        calibration = Calibration()
        result: dict[str, Any] = {}
        if self.clips:
            evidence: Evidence | None = None
            scores = score_windows(model, self.clips, self.stream)
            if model.fusion.head_lags is not None and (trials := self._trials()):
                evidence = weigh_evidence(
                    model,
                    score_windows(model, trials, self.stream),
                    self._unseen_if_any(scores),
                )
                result["evidence"] = None if evidence is None else evidence._asdict()
                scores = score_windows(model, self.clips, self.stream)
            calibration, result["conformal_threshold"] = self._calibrate(
                scores, None if evidence is None else Platt(1.0, 0.0)
            )
            result["validation"] = self._summary(scores, self.clips, calibration)
        else:
            result["validation"] = NO_VALIDATION
        if self.test:
            scores = score_windows(model, self.test, self.stream)
            result["test"] = self._summary(scores, self.test, calibration)
        else:
            result["test"] = NO_TEST
        return calibration, result

    def _calibrate(
        self, scores: WindowScores, joint: Platt | None
    ) -> tuple[Calibration, dict[str, Any] | None]:
        """Probabilities from all of validation; what is promised of people the model has never
        seen (threshold, domain) from those alone, where validation has any.  ``joint`` is what the
        joint probability needs, where that is known."""
        av = joint or fit_platt(scores.difference_av, scores.fake, scores.identity)
        v, a = (
            fit_platt(difference, label, scores.identity)
            for difference, label in (
                (scores.difference_v, scores.fake_video),
                (scores.difference_a, self._audio_labels(scores, self.clips)),
            )
        )
        chosen = self._unseen_if_any(scores)
        rate = self.config.false_alarm_rate
        probability = av(chosen.difference_av)
        threshold = metrics.threshold_at_false_alarms(chosen.fake, probability, rate)
        genuine = chosen.fake == 0
        conformal = conformal_threshold(
            probability[genuine], chosen.clip[genuine], chosen.identity[genuine], rate
        )
        return Calibration(
            temperature_av=av.temperature,
            temperature_v=v.temperature,
            temperature_a=a.temperature,
            bias_av=av.bias,
            bias_v=v.bias,
            bias_a=a.bias,
            threshold=round(max(0.5, threshold), 4),
            false_alarm_rate=rate,
            min_clarity=round(
                float(np.quantile(chosen.clarity[genuine], self.config.out_of_domain)), 4
            )
            if genuine.any()
            else 0.0,
        ), conformal

    def _trials(self) -> list[PreparedClip]:
        """Genuine clips of the validation people that the model has not seen, if any, else of all;
        and each of their pictures under voices that do not belong to it, in equal numbers other
        clips' (of other people where there are any) and its own moved as far as a forged shift is:
        target and impostor trials, as speaker verification calls them.

        Forged clips would not do: a blended face over its own voice, or a voice that was timed to
        the lips, looks to the lag evidence as a genuine pair does, and a boundary fitted to those
        as well lies among the genuine pairs instead of between them and the others.
        """
        genuine = [c for c in self.unseen or self.clips if c.category == REAL_PAIR]
        voices = [c for c in self.clips if c.category == REAL_PAIR]
        rng = np.random.default_rng(self.config.seed)
        trials = list(genuine)
        for clip in genuine:
            others = [v for v in voices if v.identity != clip.identity]
            others = others or [v for v in voices if v.clip != clip.clip]
            picked = rng.permutation(len(others))[:VOICES]
            trials += [_under_the_voice(clip, others[i], 0) for i in picked]
            room = clip.length - self.stream.window_tokens
            moves = np.arange(self.stream.forged_shift_tokens, room + 1)
            moves = rng.permutation(np.concatenate((-moves, moves)))[:VOICES]
            trials += [_under_the_voice(clip, clip, int(move)) for move in moves]
        return [t for t in trials if t.length >= self.stream.window_tokens]

    def _unseen_if_any(self, scores: WindowScores) -> WindowScores:
        unseen = np.isin(scores.identity, [c.identity for c in self.unseen])
        return scores.where(unseen) if unseen.any() else scores

    def _summary(
        self, scores: WindowScores, clips: list[PreparedClip], calibration: Calibration
    ) -> dict[str, Any]:
        p = Platt(calibration.temperature_av, calibration.bias_av)(scores.difference_av)
        audio_auc = metrics.auc(self._audio_labels(scores, clips), scores.difference_a)
        return {
            **summarise(scores, p, calibration.threshold),
            "audio_head_auc": None if np.isnan(audio_auc) else audio_auc,
        }

    def _audio_labels(self, scores: WindowScores, clips: list[PreparedClip]) -> Any:
        """What the audio head was trained to tell, a label a window."""
        labels = np.array([int(getattr(c, self.config.audio_label)) for c in clips])
        return labels[scores.clip]


def _under_the_voice(clip: PreparedClip, voice: PreparedClip, move: int) -> PreparedClip:
    """The pictures of one clip and the sound of the other, ``move`` tokens later in it, as long as
    both last."""
    first, at = max(0, -move), max(0, move)
    length = min(clip.length - first, voice.length - at)

    def load() -> ClipArrays:
        sound, per_token = voice.load(), AudioSpec().token_samples
        return ClipArrays(
            clip.crops[first : first + length],
            sound.tokens[at : at + length],
            sound.level_dbfs[at : at + length],
            sound.audio[at * per_token : (at + length) * per_token],
        )

    return dataclasses.replace(
        clip,
        file=f"{clip.file} under {voice.file} {move:+d}",
        category=FAKE_AUDIO,
        method="trial",
        voice_identity=voice.voice_identity,
        fake_audio=True,
        matched=False,
        length=length,
        load=load,
    )


@torch.no_grad()
def weigh_evidence(model: MSCT, trials: WindowScores, forged: WindowScores) -> Evidence | None:
    """Writes what :func:`trainer.scoring.calibrate.fit_lags` finds in trials, and
    :func:`trainer.scoring.calibrate.add_network` in forged and genuine windows, into the last
    layer.

    Both are the model's own scores; it is left as it is where there is nothing to find.
    """
    head, both = model.fusion.head_lags, model.fusion.head_both
    assert head is not None
    weight, bias = head.weight.double().cpu().numpy(), head.bias.double().cpu().numpy()
    found = fit_lags(LAG_SCALE * trials.lag_peaks, trials.fake, trials.identity)
    if found is not None:
        peaks = LAG_SCALE * forged.lag_peaks.astype(np.float64)  # [n, 2]
        known = peaks @ (weight[FAKE] - weight[1 - FAKE]) + bias[FAKE] - bias[1 - FAKE]
        opinion = forged.difference_av - known
        found = add_network(found, opinion, peaks, forged.fake, forged.identity)
    if found is None:
        return None
    both.weight.mul_(found.network)
    both.bias.mul_(found.network)
    sign = torch.zeros(2, 1)
    sign[FAKE], sign[1 - FAKE] = 0.5, -0.5
    head.weight.copy_(sign * torch.tensor(found.lags))
    head.bias.copy_(sign[:, 0] * found.bias)
    return found


def _auc_of(scores: WindowScores, clips: list[PreparedClip]) -> float | None:
    """Over the windows of these clips' people; None where they are all genuine or all forged."""
    mask = np.isin(scores.identity, sorted({c.identity for c in clips}))
    if len(set(scores.fake[mask].tolist())) < 2:
        return None
    return metrics.auc(scores.fake[mask], scores.difference_av[mask])
