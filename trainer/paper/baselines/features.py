# SPDX-License-Identifier: Apache-2.0
"""Sound and picture as the baselines' own publications prepare them.

``mfcc`` and ``log_filterbank`` are those of python_speech_features 0.6 (Lyons), which MDS and MRDF
use: no window function, power spectrum, filters on the bins of the mel scale 2595 log10(1 + f/700).
Samples stay on the scale of 16-bit integers, as there.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import scipy.fft

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Int16 = npt.NDArray[np.int16]

SAMPLE_RATE_HZ = 16_000
FRAME_SAMPLES = 400  # 25 ms
HOP_SAMPLES = 160  # 10 ms
FILTERS = 26
PREEMPHASIS = 0.97
LIFTER = 22
_TINY = np.finfo(np.float64).eps


def log_filterbank(audio: Int16, *, fft: int = 512) -> Float64:
    """audio [n] -> natural logarithm of the energy in 26 mel filters, shape = (frames, 26)."""
    return np.log(_filterbank(audio, fft)[0])


def mfcc(audio: Int16, *, fft: int = 2048, coefficients: int = 13) -> Float64:
    """shape = (frames, 13); the first is the logarithm of the frame's energy.  MDS takes 2048."""
    energies, total = _filterbank(audio, fft)
    cepstrum = scipy.fft.dct(np.log(energies), type=2, axis=1, norm="ortho")[:, :coefficients]
    lift = 1 + LIFTER / 2 * np.sin(np.pi * np.arange(coefficients) / LIFTER)
    cepstrum = cepstrum * lift
    cepstrum[:, 0] = np.log(total)
    return cepstrum


def _filterbank(audio: Int16, fft: int) -> tuple[Float64, Float64]:
    x = audio.astype(np.float64)
    x = np.append(x[0], x[1:] - PREEMPHASIS * x[:-1])
    count = 1 + max(0, -(-(len(x) - FRAME_SAMPLES) // HOP_SAMPLES))
    x = np.pad(x, (0, (count - 1) * HOP_SAMPLES + FRAME_SAMPLES - len(x)))
    frames = np.lib.stride_tricks.sliding_window_view(x, FRAME_SAMPLES)[::HOP_SAMPLES]
    power = np.abs(np.fft.rfft(frames, fft)) ** 2 / fft  # [frames, fft / 2 + 1]
    energies = power @ _filters(fft).T
    total = power.sum(1)
    energies[energies == 0] = _TINY
    total[total == 0] = _TINY
    return energies, total


@functools.lru_cache
def _filters(fft: int) -> Float64:
    """Triangles between bins at equal distances of the mel scale, shape = (26, fft / 2 + 1)."""
    top = 2595 * np.log10(1 + SAMPLE_RATE_HZ / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, top, FILTERS + 2) / 2595) - 1)
    edges = np.floor((fft + 1) * hertz / SAMPLE_RATE_HZ)
    bins = np.arange(fft // 2 + 1)
    rows = []
    for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
        rising = (bins - low) / max(middle - low, 1)
        falling = (high - bins) / max(high - middle, 1)
        rows.append(np.where(bins < middle, rising, falling) * ((bins >= low) & (bins < high)))
    return np.array(rows)


def log_spectrogram(audio: Int16, fft: int = 512) -> Float64:
    """Hann windows of 25 ms every 10 ms, standardised, shape = (fft/2+1, frames)."""
    x = audio.astype(np.float64) / 32768
    frames = np.lib.stride_tricks.sliding_window_view(x, FRAME_SAMPLES)[::HOP_SAMPLES]
    power = np.abs(np.fft.rfft(frames * np.hanning(FRAME_SAMPLES), fft)) ** 2
    level = np.log(power + 1e-10).T
    return (level - level.mean()) / (level.std() + 1e-6)


def resize(image: npt.NDArray, side: int) -> npt.NDArray:
    """Bilinear to side x side; an image of that size is returned as it is."""
    import cv2

    if image.shape[:2] == (side, side):
        return image
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)


def frames(crops: UInt8, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Float32:
    """crops [T, H, W, 3] -> [3, T, side, side], in [0, 1] and then standardised."""
    x = np.stack([resize(crop, side) for crop in crops]).astype(np.float32) / 255
    x = (x - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(x.transpose(3, 0, 1, 2))
