# SPDX-License-Identifier: Apache-2.0
"""Scenes with several people, made of GRID clips of one person each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.media import AudioChunk, VideoChunk
from runtime.media.file import FileSource
from tests.runtime.clips import write_clip

Image = np.ndarray[Any, Any]  # [H, W, 3] RGB


def speakers(grid_dir: Path) -> list[Path]:
    """One clip of each of seven people."""
    clips = sorted((grid_dir / "speakers").glob("*.mpg"))
    if len(clips) < 2:
        pytest.skip(f"no clips of several people in {grid_dir / 'speakers'}")
    return clips


def pictures(path: Path, count: int = 75) -> list[Image]:
    with FileSource(path) as source:
        found = (chunk.frame for chunk in source if isinstance(chunk, VideoChunk))
        return [frame for frame, _ in zip(found, range(count), strict=False)]


def samples(path: Path) -> Image:
    """Mono at 16 kHz, [n]."""
    with FileSource(path) as source:
        return np.concatenate([c.samples for c in source if isinstance(c, AudioChunk)])


def side_by_side(target: Path, left: Path, right: Path, voice: Path) -> Path:
    """Two people in one picture, 720x288, with the sound of ``voice``."""
    pairs = list(zip(pictures(left), pictures(right), strict=False))
    frames = [np.concatenate(pair, axis=1) for pair in pairs]
    height, width = frames[0].shape[:2]
    return write_clip(
        target, times_ms=[40 * i for i in range(len(frames))], size=(width, height),
        sound=samples(voice), codec="libx264", picture=lambda i, _: frames[i],
    )  # fmt: skip


def cut_out(frame: Image) -> tuple[Image, Image]:
    """The head of a GRID picture [288, 360, 3], 180 x 150, and its mask [180, 150, 1], 0 to 1."""
    head = frame[60:240, 105:255].astype(np.float32)
    y, x = np.mgrid[-1 : 1 : head.shape[0] * 1j, -1 : 1 : head.shape[1] * 1j]
    mask = np.clip((1 - np.hypot(x, y)) * 8, 0, 1).astype(np.float32)
    return head, mask[..., None]


def walk(
    actors: Sequence[tuple[list[Image], Callable[[int], float | None]]],
    tokens: int,
    size: tuple[int, int] = (640, 260),
) -> list[Image]:
    """Heads on a plain wall; each actor is (pictures, token -> left edge or None: not there).

    Later actors are nearer: they hide the earlier ones.
    """
    frames = []
    for t in range(tokens):
        canvas = np.full((size[1], size[0], 3), (90, 110, 120), np.float32)
        for shots, place in actors:
            at = place(t)
            if at is None:
                continue
            head, mask = cut_out(shots[t % len(shots)])
            x = round(at)
            lo, hi = max(0, -x), min(head.shape[1], size[0] - x)
            if lo < hi:
                region = canvas[40:220, x + lo : x + hi]
                region += mask[:, lo:hi] * (head[:, lo:hi] - region)
        frames.append(canvas.astype(np.uint8))
    return frames


def turned(frame: Image, degrees: float, centre_x: float, radius_px: float) -> Image:
    """The picture of a head, modelled as a cylinder with a nose, turned to a side."""
    import cv2

    angle = np.deg2rad(degrees)
    xs = np.arange(frame.shape[1], dtype=np.float64)
    u = np.clip((xs - centre_x) / radius_px, -0.999, 0.999)
    depth = radius_px * (np.sqrt(1 - u * u) - np.cos(0.5) + 0.35 * np.exp(-((u / 0.15) ** 2)))
    shown = centre_x + (xs - centre_x) * np.cos(angle) + depth * np.sin(angle)
    rising = np.maximum.accumulate(shown)  # what turns behind the edge is not seen
    source = np.interp(xs, rising + np.arange(len(xs)) * 1e-6, xs).astype(np.float32)
    rows = np.repeat(np.arange(frame.shape[0], dtype=np.float32)[:, None], len(xs), axis=1)
    columns = np.repeat(source[None], frame.shape[0], axis=0)
    return np.asarray(cv2.remap(frame, columns, rows, cv2.INTER_LINEAR))
