# SPDX-License-Identifier: Apache-2.0
"""What happens to genuine and forged clips alike on their way: transport, light, level, codec.

One draw belongs to one genuine clip and is given to everything made from it, so none of these can
tell a forgery.  The sound's transport offset is cut, not filled: :data:`MARGIN_TOKENS` are lost at
the ends of every clip, and what is left is the recording's own from its first sample to its last.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from runtime.spec import AudioSpec

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

MAX_TRANSPORT_MS = 200.0  # an offset that ordinary transport has
LEAD_TOKENS = 1  # codecs start a file with some milliseconds of digital silence
MARGIN_TOKENS = LEAD_TOKENS + 5  # 200 ms at 25 Hz
HELD_RATE_SHARE = 0.25  # of the clips have a lower frame rate


@dataclass(frozen=True)
class Nuisance:
    """All that is done to a clip after it was forged or left alone."""

    transport_ms: float = 0.0  # > 0: the sound comes late
    scale: float = 1.0  # of the picture's sides
    gamma: float = 1.0
    contrast: float = 1.0
    frame_hz: float | None = None  # pictures are held so that there are this many a second
    gain_db: float = 0.0
    crf: int = 20  # x264's quality
    audio_bit_rate: int = 64_000

    def record(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k != "transport_ms"}


def draw_nuisance(rng: np.random.Generator, max_transport_ms: float = MAX_TRANSPORT_MS) -> Nuisance:
    """One draw.  ``max_transport_ms`` is at most 200: beyond it an offset is no transport."""
    assert 0 <= max_transport_ms <= MAX_TRANSPORT_MS, max_transport_ms
    return Nuisance(
        transport_ms=round(float(rng.uniform(-max_transport_ms, max_transport_ms)), 1),
        scale=round(float(rng.uniform(0.8, 1.2)), 3),
        gamma=round(float(np.exp(rng.uniform(-0.2, 0.2))), 3),
        contrast=round(float(rng.uniform(0.85, 1.1)), 3),
        frame_hz=float(rng.choice([12.5, 15.0, 20.0])) if rng.random() < HELD_RATE_SHARE else None,
        gain_db=round(float(rng.uniform(-15, -3)), 2),
        crf=int(rng.integers(17, 29)),
        audio_bit_rate=int(rng.choice([32_000, 48_000, 64_000, 96_000])),
    )


def apply_nuisance(
    frames: list[UInt8], audio: Float32, nuisance: Nuisance, spec: AudioSpec
) -> tuple[list[UInt8], Float32]:
    """T frames [H, W, 3] and audio [640 T] -> T - MARGIN_TOKENS frames and their sound."""
    length = len(frames) - MARGIN_TOKENS
    assert length > 0, f"a clip of {len(frames)} tokens has nothing inside its margins"
    late = round(nuisance.transport_ms / 1000 * spec.sample_rate_hz)  # samples
    first = LEAD_TOKENS if late <= 0 else MARGIN_TOKENS
    at = first * spec.token_samples - late
    gain = np.float32(10 ** (nuisance.gain_db / 20))
    sound = np.clip(audio[at : at + length * spec.token_samples] * gain, -1, 1)
    kept = [frames[i] for i in held(first, length, nuisance.frame_hz, spec.token_hz)]
    light = _light(nuisance)
    height, width = (max(2, round(side * nuisance.scale / 2) * 2) for side in frames[0].shape[:2])
    mode = cv2.INTER_AREA if nuisance.scale < 1 else cv2.INTER_CUBIC
    out = [cv2.resize(cv2.LUT(f, light), (width, height), interpolation=mode) for f in kept]
    return [np.asarray(f, np.uint8) for f in out], sound


def held(first: int, length: int, frame_hz: float | None, token_hz: float) -> list[int]:
    """Which picture each of ``length`` tokens from ``first`` on shows at ``frame_hz``."""
    index = np.arange(length)
    if frame_hz is not None:
        every = token_hz / frame_hz
        index = np.floor(np.floor(index / every + 1e-9) * every + 1e-9).astype(int)
    return [first + int(i) for i in index]


def _light(nuisance: Nuisance) -> UInt8:
    """The tone curve [256]."""
    x = np.linspace(0, 1, 256) ** nuisance.gamma
    return np.clip(np.round(255 * ((x - 0.5) * nuisance.contrast + 0.5)), 0, 255).astype(np.uint8)
