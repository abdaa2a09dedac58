# SPDX-License-Identifier: Apache-2.0
"""What drove a window's score, in colour over its picture and its sound, and in words.

The changes come from :mod:`runtime.sinks.occlusion`.  Colours are those of Okabe & Ito (2008).
"""

from __future__ import annotations

import math

import numpy as np

from runtime.faces import template
from runtime.sinks.occlusion import SLICES, Float64, Importance, UInt8, band_edges
from runtime.sinks.report import PORTRAIT_PX
from runtime.spec import AudioSpec, PairSpec

FAKE_RGB, REAL_RGB = (230, 110, 10), (40, 140, 220)
HEAT_ALPHA = 0.8
VOICE_PX = (512, 156)  # width, height


def picture_map(portrait: UInt8 | None, change: Float64, scale: float, spec: PairSpec) -> UInt8:
    """change [H, W] of the crop over the face, or over where its eyes and nose are: RGB."""
    import cv2

    size = (PORTRAIT_PX, PORTRAIT_PX)
    if portrait is None:
        ground = np.full((*size, 3), 128, np.uint8)
        for x, y in template(spec.face) * (PORTRAIT_PX / spec.face.crop_px):
            cv2.circle(ground, (round(x), round(y)), 9, (200, 200, 200), 2, cv2.LINE_AA)
    else:
        grey = cv2.cvtColor(portrait, cv2.COLOR_RGB2GRAY)
        ground = np.repeat(grey[..., None], 3, axis=2)
    large = cv2.resize(change, size, interpolation=cv2.INTER_LINEAR)
    smooth = cv2.GaussianBlur(large, (0, 0), PORTRAIT_PX / 24)  # a patch has no sharp edge
    return _coloured(ground, smooth / scale)


def voice_map(driven_by: Importance, scale: float, audio: AudioSpec) -> UInt8:
    """The window's sound as a spectrogram with what each block of it changed: RGB."""
    import cv2

    frames = driven_by.tokens.reshape(-1, audio.mel_bins)  # [T stack, mel]
    low, high = np.percentile(frames, (2, 99))
    light = np.clip((frames - low) / max(float(high - low), 1e-6), 0, 1)
    grey = (225 * light.T[::-1]).astype(np.uint8)  # low pitches at the bottom
    grey = cv2.resize(grey, VOICE_PX, interpolation=cv2.INTER_LINEAR)
    blocks = cv2.resize(driven_by.voice[::-1].copy(), VOICE_PX, interpolation=cv2.INTER_NEAREST)
    return _coloured(np.repeat(grey[..., None], 3, axis=2), blocks / scale)


def driver(driven_by: Importance, spec: PairSpec) -> str:
    """The strongest part of each modality in words."""
    side = spec.face.crop_px
    y, x = np.unravel_index(int(np.abs(driven_by.picture).argmax()), driven_by.picture.shape)
    # Where dlib's mean face has its parts in the crop.
    place = "the eyes" if y < 0.42 * side else "the nose" if y < 0.64 * side else "the mouth"
    if abs(x - side / 2) > 0.32 * side:
        place = f"the edge of the face beside {place}"
    band, part = divmod(int(np.abs(driven_by.voice).argmax()), SLICES)
    window_s = len(driven_by.tokens) / spec.audio.token_hz
    start, end = (part * window_s / SLICES, (part + 1) * window_s / SLICES)
    low, high = (_mel_hz(spec.audio, edge) for edge in band_edges(spec)[band : band + 2])
    return (
        f"Covering {place} {_by(driven_by.picture[y, x])}; muting {low:.0f} to {high:.0f} Hz "
        f"from {start:.1f} to {end:.1f} s of the window {_by(driven_by.voice[band, part])}."
    )


def _coloured(ground: UInt8, change: Float64) -> UInt8:
    """ground [H, W, 3] grey; change [H, W] from -1 (genuine, blue) to 1 (fake, orange)."""
    strength = np.clip(np.abs(change), 0, 1)[..., None] * HEAT_ALPHA
    colour = np.where(change[..., None] > 0, FAKE_RGB, REAL_RGB)
    return np.asarray((1 - strength) * ground + strength * colour, np.uint8)


def _mel_hz(audio: AudioSpec, edge: int) -> float:
    """The pitch at which mel bin ``edge`` begins (kaldi's mel scale)."""
    low, high = (1127 * math.log(1 + hz / 700) for hz in (audio.low_hz, audio.high_hz))
    mel = low + (edge + 0.5) * (high - low) / (audio.mel_bins + 1)
    return 700 * (math.exp(mel / 1127) - 1)


def _by(change: float) -> str:
    if abs(change) < 0.05:
        return "changes next to nothing"
    return f"{'lowers' if change > 0 else 'raises'} the log-odds of fake by {abs(change):.1f}"
