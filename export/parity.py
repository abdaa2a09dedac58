# SPDX-License-Identifier: Apache-2.0
"""Do two forms of a model agree?  torch against ONNX, fp32 against fp16 and int8, an engine.

Each form is a :class:`runtime.backends.base.Backend` or anything with its ``encode`` and
``fuse``.  Probes go through both graphs in a row, as in a stream, so an error of the encoder
shows in the logits.  Probabilities are those of the softmax before calibration; logits are the
harder measure and the one that has a limit for fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime import interrupt
from runtime.backends.base import FUSION_OUTPUTS, FaceOutput, FusionOutput
from runtime.errors import UserError
from runtime.faces.stage import Follow, face_stage
from runtime.logits import sigmoid
from runtime.spec import FAKE, PairSpec

LOGIT_LIMIT_FP32 = 1e-4  # ONNX Runtime against torch
LOGIT_LIMIT_ENGINE_FP32 = 1e-3  # an fp32 engine: other kernels, another order of the sums
PROBABILITY_LIMIT_FP16 = 0.01  # fp16 against fp32
PROBABILITY_LIMIT_INT8 = 0.05  # int8 against fp32 on real clips: StreamSpec's hysteresis
ENCODER_BATCHES = (1, 2, 5)  # N
FUSION_SHAPES = ((1, 1), (2, 2), (1, 51), (3, 51), (1, 150))  # B, T
_REPORT = "report this with the model and the versions of torch, onnx and onnxruntime"
_LOGITS = ("logits_av", "logits_a", "logits_v")


class ParityError(UserError):
    """Two forms of one model give different answers."""


class Form(Protocol):
    """What is compared."""

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]: ...

    def follow(self, frames: NDArray[np.uint8]) -> FaceOutput: ...

    def fuse(self, visual: NDArray[np.float32], audio: NDArray[np.float32]) -> FusionOutput: ...


class Window(NamedTuple):
    """A window of real input: ``frames`` uint8 [T, H, W, 3], ``audio`` float32 [T, 104]."""

    frames: NDArray[np.uint8]
    audio: NDArray[np.float32]


@dataclass
class Parity:
    """Largest differences over all probes."""

    form: str
    against: str
    probes: int = 0
    real_windows: int = 0
    max_logit_difference: float = 0.0
    max_probability_difference: float = 0.0
    max_difference: dict[str, float] = field(default_factory=dict)  # by output; visual: "features"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def check(
        self,
        *,
        logits: float | None = None,
        probability: float | None = None,
        remedy: str = _REPORT,
    ) -> None:
        """Raise :class:`ParityError` if a difference is beyond its limit or not finite."""
        for what, found, limit in (
            ("logits", self.max_logit_difference, logits),
            ("probabilities", self.max_probability_difference, probability),
        ):
            if limit is not None and not found <= limit:
                raise ParityError(
                    f"{self.form} differs from {self.against} by {found:.3g} in {what}, more than "
                    f"{limit:g}: nothing was written; {remedy}"
                )


def compare(
    form: Form,
    against: Form,
    spec: PairSpec,
    *,
    names: tuple[str, str],
    real: Iterable[Window] = (),
    random: bool = True,
    seed: int = 0,
) -> Parity:
    """Run random probes of several N, B and T, and the real windows, through both forms.

    ``random=False`` leaves the former out: a quantised model is made for real pictures alone.
    """
    result = Parity(*names)
    for frames, pick, audio in random_probes(spec, seed) if random else ():
        ours, theirs = _encoder(result, form, against, spec, frames)
        _fusion(result, form, against, (ours[pick], theirs[pick]), audio)
        silent, unseen = np.zeros_like(audio), np.zeros_like(ours[pick])
        _fusion(result, form, against, (ours[pick], theirs[pick]), silent)  # no sound
        _fusion(result, form, against, (unseen, unseen), audio)  # no face
    for window in real:
        interrupt.check()
        ours, theirs = _encoder(result, form, against, spec, window.frames)
        _fusion(result, form, against, (ours[None], theirs[None]), window.audio[None])
        result.real_windows += 1
    return result


def random_probes(
    spec: PairSpec, seed: int = 0
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.intp], NDArray[np.float32]]]:
    """Frames [N, H, W, 3], an index [B, T] into them that makes windows, and audio [B, T, 104].

    Encoding 150 frames of noise would tell no more than a few: windows repeat frames.  Frames are
    by turns noise and smooth pictures, audio tokens are layer-normed like real ones.
    """
    rng = np.random.default_rng(seed)
    side, width = spec.face.crop_px, spec.audio.token_dim
    for i, (b, t) in enumerate(FUSION_SHAPES):
        n = ENCODER_BATCHES[i % len(ENCODER_BATCHES)]
        noise = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
        frames = noise if i % 2 else _smooth(noise)
        audio = rng.standard_normal((b, t, width), dtype=np.float32)
        audio -= audio.mean(-1, keepdims=True)
        audio /= audio.std(-1, keepdims=True)
        yield frames, rng.integers(0, n, (b, t)), audio


def real_windows(
    path: Path,
    spec: PairSpec,
    limit: int = 4,
    step: int | None = None,
    follow: Follow | None = None,
) -> list[Window]:
    """Windows in a row of the first face of a clip, with its sound, as the runtime sees them.

    ``step`` is in tokens from one to the next; None: none overlap.  ``follow``: of a backend
    of this pair, where its encoder follows the faces.

    Raises :class:`runtime.errors.UserError` if the clip cannot be read or holds no such window.
    """
    from runtime.grid import VideoGrid
    from runtime.media import AudioChunk
    from runtime.media.file import FileSource
    from runtime.sound.tokens import AudioTokenizer

    length = spec.stream.window_tokens
    grid: VideoGrid[NDArray[np.uint8]] = VideoGrid(spec.audio.token_hz, spec.stream.max_gap_tokens)
    tracker, tokenizer = face_stage(spec.face, follow), AudioTokenizer(spec.audio)
    crops: dict[int, NDArray[np.uint8]] = {}  # by token
    tokens: list[NDArray[np.float32]] = []
    with FileSource(path, sample_rate_hz=spec.audio.sample_rate_hz) as source:
        for chunk in source:
            interrupt.check()
            if isinstance(chunk, AudioChunk):
                tokens.append(tokenizer.push(chunk.samples).tokens)
                continue
            for item in grid.push(chunk.t_s, chunk.frame):
                faces = tracker.update(item.frame, item.token) if item.frame is not None else []
                if faces:
                    crops[item.token] = faces[0].crop
    audio = np.concatenate([*tokens, tokenizer.finish().tokens])
    windows: list[Window] = []
    start = 0
    while start + length <= len(audio) and len(windows) < limit:
        span = range(start, start + length)
        if all(token in crops for token in span):
            frames = np.stack([crops[token] for token in span])
            windows.append(Window(frames, audio[start : start + length]))
            start += length if step is None else step
        else:
            start += 1
    if not windows:
        raise UserError(f"{path} has no {length / spec.audio.token_hz:g} s with a face and sound")
    return windows


def _smooth(noise: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The top left 4 x 4 pixels, stretched over the picture by bilinear interpolation."""
    side = noise.shape[1]
    at = np.linspace(0, 3, side)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(4)))  # [H, 4]
    corner = noise[:, :4, :4].astype(np.float64)
    picture = np.einsum("hi,nijc,wj->nhwc", weights, corner, weights)
    return np.round(picture).astype(np.uint8)


def _encoder(
    result: Parity, form: Form, against: Form, spec: PairSpec, frames: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The features of both; what the encoder says of the face besides is compared, too."""
    if not spec.model.geometry_dim:
        ours, theirs = form.encode(frames), against.encode(frames)
        _take(result, "features", ours, theirs)
        return ours, theirs
    said, expected = form.follow(frames), against.follow(frames)
    for name, a, b in zip(("features", *FaceOutput._fields[1:]), said, expected, strict=True):
        _take(result, name, a, b)
    return said.visual, expected.visual


def _fusion(
    result: Parity,
    form: Form,
    against: Form,
    visual: tuple[NDArray[np.float32], NDArray[np.float32]],  # of each form
    audio: NDArray[np.float32],
) -> None:
    ours, theirs = form.fuse(visual[0], audio), against.fuse(visual[1], audio)
    for name, a, b in zip(FUSION_OUTPUTS, ours, theirs, strict=True):
        difference = _take(result, name, a, b)
        if name in _LOGITS:
            result.max_logit_difference = _worse(result.max_logit_difference, difference)
            p = float(np.abs(_p_fake(a) - _p_fake(b)).max())
            result.max_probability_difference = _worse(result.max_probability_difference, p)
    result.probes += 1


def _take(
    result: Parity, name: str, ours: NDArray[np.float32], theirs: NDArray[np.float32]
) -> float:
    if ours.shape != theirs.shape:
        raise ParityError(
            f"{result.form} gives {name} of shape {list(ours.shape)}, {result.against} "
            f"{list(theirs.shape)}"
        )
    difference = float(np.abs(ours.astype(np.float64) - theirs).max())
    result.max_difference[name] = _worse(result.max_difference.get(name, 0.0), difference)
    return difference


def _worse(a: float, b: float) -> float:
    """The larger; NaN is the worst and stays."""
    return a if a != a or a >= b else b


def _p_fake(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logits [B, 2] -> probability of fake [B]."""
    margin = logits[:, FAKE].astype(np.float64) - logits[:, 1 - FAKE]
    p: NDArray[np.float64] = sigmoid(margin)
    return p


def summary(checks: Sequence[Parity]) -> dict[str, Any]:
    """The worst of several comparisons, and each of them, for a report."""
    logits = probability = 0.0
    for check in checks:
        logits = _worse(logits, check.max_logit_difference)
        probability = _worse(probability, check.max_probability_difference)
    return {
        "max_logit_difference": logits,
        "max_probability_difference": probability,
        "checks": [check.to_dict() for check in checks],
    }
