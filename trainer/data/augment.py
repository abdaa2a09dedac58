# SPDX-License-Identifier: Apache-2.0
"""Disturbances that say nothing about forgery: one draw a window, the same for all its frames.

Picture: crop jitter (shift, scale, rotation of the window, and the small unrest of a face tracker
from frame to frame), mirror, light and colour, blur (down- and up-scaling, Gaussian), JPEG, noise.

Sound, on the waveform, since none of it can be made from tokens whose level is normalised away:
reverberation smears over many tokens, noise and clipping depend on the level, a codec works on
samples.  Tokens are then made by the runtime's own code.  Gain is a constant on all log-mel bins,
which the LayerNorm takes out: it changes tokens only where it clips or where the filter bank's
floor is near.  A smooth equaliser curve and a little noise go onto the tokens of every window.

Sources: reverberation is exponentially decaying noise behind the direct sound (Polack, 1988);
recompression of the sound is G.711's mu-law behind a low-pass, what telephony does.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from runtime.sound.tokens import tokenize
from runtime.spec import AudioSpec

UInt8 = npt.NDArray[np.uint8]
Int16 = npt.NDArray[np.int16]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Rng = np.random.Generator

LEAD_TOKENS = 10  # of sound before the window that its reverberation comes from
LINEAGE_CROP = 100 / 112  # share of the side that MRDF's random crops keep


# --- picture --------------------------------------------------------------------------------


def augment_crops(crops: UInt8, rng: Rng) -> UInt8:
    """crops [T, H, W, 3] -> the same shape."""
    side = crops.shape[1]
    angle, scale = rng.normal(0, 4.0), np.exp(rng.normal(0, 0.05))
    matrix = cv2.getRotationMatrix2D((side / 2, side / 2), float(angle), float(scale))
    matrix[:, 2] += rng.normal(0, 0.025 * side, 2)
    unrest = rng.normal(0, 0.006 * side, (len(crops), 2)) if rng.random() < 0.25 else None
    mirror = rng.random() < 0.5
    gain = np.exp(rng.normal(0, 0.12)) * np.exp(rng.normal(0, 0.06, 3))
    offset = rng.normal(0, 8.0)
    grey = rng.random() < 0.05
    shrink = rng.uniform(1.2, 2.0) if rng.random() < 0.25 else None
    sigma = rng.uniform(0.4, 1.2) * side / 64 if rng.random() < 0.15 else None
    quality = int(rng.integers(40, 90)) if rng.random() < 0.25 else None
    noise = rng.uniform(1.0, 5.0) if rng.random() < 0.25 else None
    table = np.clip(np.arange(256)[:, None] * gain + offset, 0, 255).astype(np.uint8)  # [256, 3]
    out = np.empty_like(crops)
    for i, crop in enumerate(crops):
        place = matrix.copy()
        if unrest is not None:
            place[:, 2] += unrest[i]
        x = cv2.warpAffine(
            crop, place, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        if shrink:
            small = round(side / shrink)
            x = cv2.resize(
                cv2.resize(x, (small, small), interpolation=cv2.INTER_AREA),
                (side, side),
                interpolation=cv2.INTER_LINEAR,
            )
        if sigma:
            x = cv2.GaussianBlur(x, (0, 0), sigma)
        x = cv2.LUT(x, table[None])
        if quality is not None:
            x = cv2.imdecode(
                cv2.imencode(".jpg", x, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR
            )
        out[i] = x
    if grey:
        out[:] = out.mean(-1, keepdims=True).astype(np.uint8)
    if mirror:
        out = out[:, :, ::-1]
    if noise:
        out = np.clip(out + rng.normal(0, noise, out.shape), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(out)


def lineage_crops(crops: UInt8, rng: Rng, *, keep_size: bool) -> UInt8:
    """MRDF's: a random 100 of 112 px, mirrored half of the time; crops [T, H, W, 3].

    ``keep_size`` is for a network that takes one size only: the cut is laid into the middle of a
    picture of the old size, its edge repeated.
    """
    side = crops.shape[1]
    cut = round(LINEAGE_CROP * side)
    y, x = (int(v) for v in rng.integers(0, side - cut + 1, 2))
    out: Any = crops[:, y : y + cut, x : x + cut]
    if rng.random() < 0.5:
        out = out[:, :, ::-1]
    if keep_size:
        before = (side - cut) // 2
        margin = (before, side - cut - before)
        out = np.pad(out, ((0, 0), margin, margin, (0, 0)), mode="edge")
    return np.ascontiguousarray(out)


# --- sound ----------------------------------------------------------------------------------


def augment_sound(audio: Int16, tokens: Float32, start: int, length: int, rng: Rng) -> Float32:
    """The window's tokens [length, 104], disturbed.

    ``audio`` [640 T] and ``tokens`` [T, 104] are the whole clip's; the window starts at token
    ``start``.  The tokens are made anew only where the waveform is touched.
    """
    spec = AudioSpec()
    reverb = rng.uniform(0.1, 0.5) if rng.random() < 0.2 else None  # seconds to -60 dB
    gain_db = rng.uniform(-15.0, 15.0) if rng.random() < 0.2 else None
    snr_db = rng.uniform(5.0, 30.0) if rng.random() < 0.2 else None
    cutoff_hz = rng.uniform(3_400.0, 7_500.0) if rng.random() < 0.15 else None
    window = tokens[start : start + length]
    if not (reverb is None and gain_db is None and snr_db is None and cutoff_hz is None):
        lead = min(start, LEAD_TOKENS)
        first = (start - lead) * spec.token_samples
        tail = spec.token_span_samples - spec.token_samples  # the last token's look past its end
        last = (start + length) * spec.token_samples + tail
        x = audio[first:last].astype(np.float64) / 32768
        if reverb is not None:
            x = reverberate(x, reverb, float(rng.uniform(2.0, 12.0)), spec.sample_rate_hz, rng)
        if gain_db is not None:
            x = np.clip(x * 10 ** (gain_db / 20), -1, 1)
        if snr_db is not None:
            x = add_noise(x, snr_db, bool(rng.random() < 0.5), rng)
        if cutoff_hz is not None:
            x = telephone(x, cutoff_hz, spec.sample_rate_hz)
        made = tokenize(x.astype(np.float32), spec).tokens
        window = made[lead : lead + length]
    return augment_tokens(window, rng)


def reverberate(x: Float64, rt60_s: float, direct_db: float, rate_hz: int, rng: Rng) -> Float64:
    """x [n] in a room; ``direct_db`` is the direct sound over the reverberation, in energy."""
    from scipy.signal import fftconvolve

    n = max(2, int(rt60_s * rate_hz))
    tail = rng.standard_normal(n) * 10 ** (-3 * np.arange(n) / n)
    tail[: int(0.002 * rate_hz)] = 0  # nothing comes back before 2 ms
    tail *= 10 ** (-direct_db / 20) / max(1e-9, float(np.sqrt((tail**2).sum())))
    tail[0] = 1.0
    wet: Float64 = fftconvolve(x, tail)[: len(x)]
    return wet


def add_noise(x: Float64, snr_db: float, pink: bool, rng: Rng) -> Float64:
    """x [n] with white or pink noise, ``snr_db`` below its mean power; silence stays silent."""
    noise = rng.standard_normal(len(x))
    if pink:
        spectrum = np.fft.rfft(noise)
        spectrum /= np.sqrt(np.maximum(1, np.arange(len(spectrum))))
        noise = np.fft.irfft(spectrum, len(x))
    power = float((x**2).mean()) / max(1e-12, float((noise**2).mean()))
    return x + noise * np.sqrt(power * 10 ** (-snr_db / 10))


def telephone(x: Float64, cutoff_hz: float, rate_hz: int) -> Float64:
    """x [n] in [-1, 1] behind a low-pass, in 8 bits of G.711's mu-law."""
    from scipy.signal import butter, sosfilt

    low = np.clip(sosfilt(butter(6, cutoff_hz, fs=rate_hz, output="sos"), x), -1, 1)
    mu = 255.0
    code = np.round(127 * np.sign(low) * np.log1p(mu * np.abs(low)) / np.log1p(mu)) / 127
    out: Float64 = np.sign(code) * np.expm1(np.abs(code) * np.log1p(mu)) / mu
    return out


def augment_tokens(tokens: Float32, rng: Rng) -> Float32:
    """tokens [T, 104] -> the same shape, normalised again; all-zero tokens (silence) stay."""
    spec = AudioSpec()
    bins = np.linspace(0, np.pi, spec.mel_bins)
    curve = sum(rng.normal(0, 0.25) * np.cos(k * bins) for k in range(1, 5))  # [26]
    x = tokens.astype(np.float64) + np.tile(curve, spec.stack)
    x += rng.normal(0, rng.uniform(0, 0.2), x.shape)
    x -= x.mean(-1, keepdims=True)
    x /= np.sqrt(x.var(-1, keepdims=True) + spec.layer_norm_eps)
    x[np.abs(tokens).max(-1) == 0] = 0
    return x.astype(np.float32)
