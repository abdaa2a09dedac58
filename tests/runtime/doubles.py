# SPDX-License-Identifier: Apache-2.0
"""Mocks: a backend without a network, and a face tracker without a face.

:class:`MockBackend` is a seeded, deterministic stand-in that follows the Backend protocol.  Its
picture features carry the brightness of the crop, its alignment matches *codes*: a crop of code k
and a token of sound whose loudest pitch is :data:`PITCHES_HZ` [k] give the same unit vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from runtime.backends.base import (
    FaceOutput,
    FusionOutput,
    check_follows,
    check_frames,
    check_tokens,
)
from runtime.faces import Face
from runtime.faces.align import MEAN_FACE
from runtime.spec import AudioSpec, FaceSpec, ModelSpec, PairSpec

TOKEN_SAMPLES = AudioSpec().token_samples  # 640
RATE_HZ = AudioSpec().sample_rate_hz
PITCHES_HZ = (250.0, 500.0, 900.0, 1500.0, 2300.0, 3400.0, 4900.0, 6900.0)
CODES = np.random.default_rng(7).integers(0, len(PITCHES_HZ), 10_000)  # of token i
SPEC = PairSpec(
    model=ModelSpec(name="mock", channels=16, heads=4, blocks=1, align_dim=len(PITCHES_HZ)),
    face=FaceSpec(crop_px=32),
    trained=True,
    pair_id="mock",
    model_id="mock-1",
)


def mel_bin(pitch_hz: float) -> int:
    """The mel filter (of 26 from 20 to 8000 Hz) in whose middle a pitch lies."""

    def mel(hz: float) -> float:
        return 1127.0 * np.log(1 + hz / 700)

    return round((mel(pitch_hz) - mel(20.0)) / (mel(8000.0) - mel(20.0)) * 27) - 1


def brightness(code: int) -> int:
    return 16 + 28 * code


class MockBackend:
    """``p_fake``: log-odds +4 when picture and sound do not match at lag 0, -4 when they do."""

    def __init__(self, spec: PairSpec = SPEC) -> None:
        self.spec = spec
        self.provider = "mock"
        self.encoded: list[int] = []  # N of every call
        self.fused: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        rng = np.random.default_rng(3)
        self._basis = rng.normal(size=(3, spec.model.channels)).astype(np.float32)

    def encode(self, frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        check_frames(frames, self.spec)
        self.encoded.append(len(frames))
        means = frames.mean(axis=(1, 2)) / 255  # [N, 3]
        features = means @ self._basis
        features[:, 0] = means[:, 0]
        return features.astype(np.float32)

    def follow(self, frames: np.ndarray[Any, Any]) -> FaceOutput:
        check_follows(self.spec)
        raise NotImplementedError("this mock follows no face")

    def fuse(self, visual: np.ndarray[Any, Any], audio: np.ndarray[Any, Any]) -> FusionOutput:
        check_tokens(visual, audio, self.spec)
        self.fused.append((visual.copy(), audio.copy()))
        eye = np.eye(len(PITCHES_HZ), dtype=np.float32)
        seen = np.clip(np.rint((visual[..., 0] * 255 - 16) / 28), 0, 7).astype(int)  # [B, T]
        loudest = audio[..., 26:52].argmax(-1)  # [B, T] of the second of the four frames
        bins = np.array([mel_bin(p) for p in PITCHES_HZ])
        heard = np.abs(loudest[..., None] - bins).argmin(-1)
        align_v, align_a = eye[seen], eye[heard]  # [B, T, E]
        sync = (align_v * align_a).sum(-1)  # [B, T]
        present = visual.any((1, 2)) & audio.any((1, 2))  # [B]
        logit = np.where(present, 4 - 8 * sync.mean(-1), 0.0)

        def pair(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return np.stack([np.zeros_like(x), x], -1).astype(np.float32)

        return FusionOutput(
            logits_av=pair(logit),
            logits_a=pair(audio.std((1, 2)) - 2),
            logits_v=pair(visual.mean((1, 2))),
            sync=sync.astype(np.float32),
            align_v=align_v,
            align_a=align_a,
            embedding=np.concatenate([visual.mean(1), visual.std(1)], -1),
        )

    def close(self) -> None:
        pass

    def __enter__(self) -> MockBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Script = Callable[[int], Sequence[tuple[int, float]]]


def one_face(token: int) -> Sequence[tuple[int, float]]:
    """Face 0, 80 pixels wide, in every picture."""
    return [(0, 80.0)]


class MockTracker:
    """Faces by a script: token -> [(track id, width in pixels)]; crops are the picture's colour."""

    def __init__(self, script: Script = one_face, crop_px: int = SPEC.face.crop_px) -> None:
        self._script, self._crop_px = script, crop_px
        self.tokens: list[int] = []
        self.resets = 0

    def update(self, frame: np.ndarray[Any, Any], token: int) -> list[Face]:
        self.tokens.append(token)
        crop = np.full((self._crop_px, self._crop_px, 3), frame[0, 0], np.uint8)
        # Faces other than the first show another code, so they match nothing that is said.
        return [
            Face(
                track_id=track,
                crop=crop if track == 0 else np.full_like(crop, brightness(track)),
                box=(0.0, 0.0, width, width),
                landmarks=MEAN_FACE * width,
                width_px=width,
                confidence=1.0,
            )
            for track, width in self._script(token)
        ]

    def reset(self) -> None:
        self.resets += 1


def picture(token: int, size: tuple[int, int] = (48, 64)) -> np.ndarray[Any, Any]:
    """A frame whose colour is the code of its token."""
    return np.full((*size, 3), brightness(int(CODES[token])), np.uint8)


def speech(tokens: int, *, late_tokens: int = 0, level: float = 0.3) -> np.ndarray[Any, Any]:
    """Sound [tokens * 640] that says the codes, ``late_tokens`` after the pictures show them."""
    times = np.arange(TOKEN_SAMPLES) / RATE_HZ
    pieces = []
    for i in range(tokens):
        code = CODES[(i - late_tokens) % len(CODES)]
        pieces.append(level * np.sin(2 * np.pi * PITCHES_HZ[code] * times))
    return np.concatenate(pieces).astype(np.float32)


def with_stream(spec: PairSpec = SPEC, **changes: Any) -> PairSpec:
    return replace(spec, stream=replace(spec.stream, **changes))


def with_calibration(spec: PairSpec = SPEC, **changes: Any) -> PairSpec:
    return replace(spec, calibration=replace(spec.calibration, **changes))
