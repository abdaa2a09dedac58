# SPDX-License-Identifier: Apache-2.0
"""Crops thrown about, with their points: at run time they follow the network's own points.

A throw is drawn within 15 % of the crop's side, 20 % of its size and 20 degrees, small ones more
often than large ones (the sum of two even draws), and mirrored half of the time.  Then, in half of
the crops, light, colour, blur, JPEG, noise, holes, and lines and boxes over the face, each in a
share of them; H.264 of low quality comes from :mod:`trainer.face.crops`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from trainer.face.mesh import MIRRORED_POINTS

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Rng = np.random.Generator

MAX_SHIFT = 0.15  # of the crop's side, along each axis
MAX_SCALE = 0.2
MAX_TURN_DEG = 20.0
DISTURBED_SHARE = 0.5  # of the crops; the small network learns less of lips from worse pictures
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_SCRIPT_SIMPLEX)
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:!?-  "


@dataclass(frozen=True)
class Throw:
    """Where a crop is cut, beside where it should be."""

    shift: tuple[float, float] = (0.0, 0.0)  # of the side
    scale: float = 1.0
    turn_deg: float = 0.0
    mirror: bool = False

    def matrix(self, nominal: Float64, side: int) -> Float64:
        """[2, 3]: pixels of the stored crop -> pixels of the thrown one."""
        middle = (side - 1) / 2
        c, s = np.cos(np.radians(self.turn_deg)), np.sin(np.radians(self.turn_deg))
        turn = self.scale * np.array([[c, -s], [s, c]])
        shift = np.array([middle, middle]) - turn @ np.array([middle, middle])
        shift += np.array(self.shift) * side
        own = np.vstack([np.c_[turn, shift], [0, 0, 1]])
        if self.mirror:
            own = np.array([[-1.0, 0, side - 1], [0, 1, 0], [0, 0, 1]]) @ own
        out: Float64 = (own @ np.vstack([nominal, [0, 0, 1]]))[:2]
        return out


def draw_throw(rng: Rng, share: float = 1.0) -> Throw:
    """``share`` of the full range."""
    shift = share * MAX_SHIFT * rng.uniform(-0.5, 0.5, (2, 2)).sum(0)
    scale = share * np.log1p(MAX_SCALE) * rng.uniform(-0.5, 0.5, 2).sum()
    turn = share * MAX_TURN_DEG * rng.uniform(-0.5, 0.5, 2).sum()
    return Throw(
        (float(shift[0]), float(shift[1])), float(np.exp(scale)), float(turn), rng.random() < 0.5
    )


def cut(stored: UInt8, matrix: Float64, side: int) -> UInt8:
    """[S, S, 3] -> [side, side, 3]."""
    return np.asarray(
        cv2.warpAffine(
            stored, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        ),
        np.uint8,
    )


def move_points(points: npt.NDArray[np.floating], matrix: Float64, *, mirror: bool) -> Float32:
    """[P, 2] of the stored crop -> of the thrown one, each under its own name."""
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    return (moved[MIRRORED_POINTS] if mirror else moved).astype(np.float32)


def disturb(crop: UInt8, rng: Rng) -> UInt8:
    """[side, side, 3] -> the same shape: what a camera and a line do, and what stands before it."""
    if rng.random() >= DISTURBED_SHARE:
        return crop
    side = crop.shape[0]
    x = crop
    if rng.random() < 0.15:
        x = _drawn_on(x.copy(), rng)
    if rng.random() < 0.15:
        x = _holed(x.copy(), rng)
    if rng.random() < 0.3:
        small = max(8, round(side / rng.uniform(1.2, 3.5)))
        low = cv2.resize(x, (small, small), interpolation=cv2.INTER_AREA)
        x = cv2.resize(low, (side, side), interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
    elif rng.random() < 0.15:
        x = cv2.GaussianBlur(x, (0, 0), float(rng.uniform(0.4, 1.5)) * side / 64)  # type: ignore[assignment]
    x = cv2.LUT(x, _light(rng)[None])  # type: ignore[assignment]
    if rng.random() < 0.1:
        x = np.repeat(x.mean(-1, keepdims=True).astype(np.uint8), 3, axis=-1)
    if rng.random() < 0.25:
        sigma = rng.uniform(1.0, 12.0)
        noise = rng.standard_normal(x.shape, dtype=np.float32) * np.float32(sigma)
        x = np.clip(x + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        quality = int(rng.integers(12, 80))
        coded = cv2.imencode(".jpg", x, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        x = cv2.imdecode(coded, cv2.IMREAD_COLOR)  # type: ignore[assignment]
    return np.asarray(x, np.uint8)


def _light(rng: Rng) -> UInt8:
    """A tone curve for each colour [256, 3]."""
    x = np.linspace(0, 1, 256)[:, None] ** np.exp(rng.normal(0, 0.25))
    gain = np.exp(rng.normal(0, 0.2)) * np.exp(rng.normal(0, 0.07, 3))
    return np.clip(255 * x * gain + rng.normal(0, 12.0), 0, 255).astype(np.uint8)


def _colour(rng: Rng) -> tuple[int, int, int]:
    r, g, b = (int(v) for v in rng.integers(0, 256, 3))
    return r, g, b


def _drawn_on(x: UInt8, rng: Rng) -> UInt8:
    """Lines, boxes and letters, as viewers and annotators draw them over faces."""
    side = x.shape[0]
    for _ in range(int(rng.integers(1, 4))):
        a, b = ([int(v) for v in p] for p in rng.integers(-side // 8, side + side // 8, (2, 2)))
        thick = int(rng.integers(1, 3))
        kind = int(rng.integers(3))
        if kind == 0:
            cv2.line(x, a, b, _colour(rng), thick, cv2.LINE_AA)
        elif kind == 1:
            cv2.rectangle(x, a, b, _colour(rng), thick)
        else:
            _write(x, rng)
    return x


def _write(x: UInt8, rng: Rng) -> None:
    side = x.shape[0]
    text = "".join(LETTERS[int(i)] for i in rng.integers(0, len(LETTERS), rng.integers(3, 14)))
    at = [int(v) for v in rng.integers(-side // 4, side, 2)]
    size = float(rng.uniform(0.3, 1.0)) * side / 64
    cv2.putText(
        x, text, at, FONTS[int(rng.integers(len(FONTS)))], size, _colour(rng), 1, cv2.LINE_AA
    )


def _holed(x: UInt8, rng: Rng) -> UInt8:
    """Up to two rectangles of one colour or of noise, each at most a third of the side long."""
    side = x.shape[0]
    for _ in range(int(rng.integers(1, 3))):
        h, w = (int(v) for v in rng.integers(side // 12, side // 3, 2))
        top, left = int(rng.integers(0, side - h)), int(rng.integers(0, side - w))
        hole = x[top : top + h, left : left + w]
        hole[:] = rng.integers(0, 256, hole.shape) if rng.random() < 0.4 else _colour(rng)
    return x


def draw_nothing(side: int, rng: Rng) -> UInt8:
    """A crop without a face, made: noise of any grain, a slope, letters, lines.  [side, side, 3]"""
    grain = int(rng.integers(2, side + 1))
    field = rng.integers(0, 256, (grain, grain, 3), dtype=np.uint8)
    x = cv2.resize(field, (side, side), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    x = _colour(rng) + (x - 128) * rng.uniform(0, 1.2)
    x += np.linspace(-1, 1, side)[:, None, None] * rng.uniform(-80, 80, 3)
    out = np.clip(x, 0, 255).astype(np.uint8)
    for _ in range(int(rng.integers(0, 5))):
        _write(out, rng)
    return _drawn_on(out, rng) if rng.random() < 0.5 else out
