# SPDX-License-Identifier: Apache-2.0
"""A face that is drawn, and a FaceMesh that finds it: what trainer.distil is tested with.

``environment`` makes a folder that passes for the teacher's environment: its Python is this one,
its mediapipe a few lines that look for the drawing.  The module is also imported by those lines, so
it needs NumPy alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

SKIN, HOLE = (200, 40, 40), (10, 10, 30)
BACKGROUND = (90, 120, 90)


def mesh(opening: float, turn_deg: float = 0.0) -> np.ndarray:
    """[478, 3]: a face one wide whose middle is at 0, y down, its front at negative z."""
    from_middle = {
        (33, 263): (-0.33, -0.1, 0.0), (133, 362): (-0.12, -0.1, -0.08),
        (109, 338): (-0.15, -0.6, -0.08), (67, 297): (-0.28, -0.55, -0.03),
        (162, 389): (-0.5, -0.2, 0.35), (127, 356): (-0.5, -0.05, 0.4),
        (50, 280): (-0.35, 0.08, 0.0), (205, 425): (-0.28, 0.15, -0.08),
        (207, 427): (-0.28, 0.25, -0.05), (61, 291): (-0.18, 0.3, -0.12),
        (78, 308): (-0.16, 0.3, -0.12), (176, 400): (-0.12, 0.53 + opening / 2, -0.08),
        (148, 377): (-0.06, 0.54 + opening / 2, -0.09),
    }  # fmt: skip
    points = np.zeros((478, 3))
    for (left, right), (x, y, z) in from_middle.items():
        points[left], points[right] = (x, y, z), (-x, y, z)
    middle = {10: (-0.62, -0.1), 151: (-0.48, -0.16), 9: (-0.3, -0.2), 8: (-0.22, -0.22),
              168: (-0.15, -0.22), 6: (-0.08, -0.26), 197: (0.0, -0.3), 2: (0.15, -0.3),
              152: (0.55 + opening / 2, -0.1)}  # fmt: skip
    for index, (y, z) in middle.items():
        points[index] = (0, y, z)
    rows = {
        (185, 40, 39, 37, 0, 267, 269, 270, 409): (-0.06, 0.0),
        (191, 80, 81, 82, 13, 312, 311, 310, 415): (-0.01, 0.0),
        (95, 88, 178, 87, 14, 317, 402, 318, 324): (0.01, 0.9),
        (146, 91, 181, 84, 17, 314, 405, 321, 375): (0.06, 1.0),
    }
    for row, (thick, open_share) in rows.items():
        for i, index in enumerate(row, 1):
            arch = np.sin(np.pi * i / 10)
            x = -0.18 + 0.036 * i
            points[index] = (x, 0.3 + (thick + open_share * opening) * arch, -0.12 - 0.1 * arch)
    c, s = np.cos(np.radians(turn_deg)), np.sin(np.radians(turn_deg))
    return points @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]).T


def draw(size: tuple[int, int], centre: tuple[float, float], width: float, opening: float):
    """A picture [H, W, 3] with the face ``width`` pixels wide in it."""
    import cv2

    picture = np.full((*size, 3), BACKGROUND, np.uint8)
    picture[::7, :, 2] = 160  # something that is no face

    def at(x: float, y: float) -> tuple[int, int]:
        return round(centre[0] + x * width), round(centre[1] + y * width)

    half = (round(width / 2), round(0.65 * width))
    cv2.ellipse(picture, at(0, 0), half, 0, 0, 360, SKIN, -1)
    for x in (-0.22, 0.22):
        cv2.circle(picture, at(x, -0.1), max(1, round(0.07 * width)), (240, 240, 240), -1)
    lips = (round(0.18 * width), max(1, round((0.05 + opening / 2) * width)))
    cv2.ellipse(picture, at(0, 0.3 + opening / 2), lips, 0, 0, 360, HOLE, -1)
    return picture


def find(picture: np.ndarray) -> np.ndarray | None:
    """The landmarks [478, 3] in shares of the picture's sides, as MediaPipe gives them."""
    height, width = picture.shape[:2]
    x = picture.astype(int)
    skin = (x[..., 0] > 140) & (x[..., 1] < 100) & (x[..., 2] < 100)
    if skin.sum() < 150:
        return None
    columns, rows = np.flatnonzero(skin.any(0)), np.flatnonzero(skin.any(1))
    size = columns[-1] - columns[0] + 1.0
    centre = np.array([columns[0] + size / 2, (rows[0] + rows[-1] + 1) / 2, 0.0])
    middle = x[:, int(centre[0])]
    dark = (middle.max(-1) < 90) & (np.arange(height) > centre[1]) & (np.arange(height) < rows[-1])
    opening = max(0.0, dark.sum() / size - 0.1)
    points = mesh(opening) * size + centre
    return points / np.array([width, height, width])


MEDIAPIPE = """
import sys
sys.path.insert(0, {here!r})
__version__ = "0.10.21"
"""
SOLUTION = """
import os
from types import SimpleNamespace
from face_double import find

class SolutionBase:
    def __init__(self, **options):
        self.still = not options["side_inputs"]["use_prev_landmarks"]
        self.films = 0
    def reset(self):
        self.films += 1
    def process(self, picture):
        if picture.shape[1] == {fatal_width}:
            os._exit(7)
        found = find(picture)
        if found is None:
            return SimpleNamespace(multi_face_landmarks=None, face_detections=None)
        face = [SimpleNamespace(x=x, y=y, z=z) for x, y, z in found]
        seen = [SimpleNamespace(score=[0.875])]
        return SimpleNamespace(
            multi_face_landmarks=[SimpleNamespace(landmark=face)], face_detections=seen
        )
"""
FATAL_WIDTH = 122  # a picture so wide kills the teacher


def environment(folder: Path) -> Path:
    """What :func:`trainer.face.teacher.ensure_environment` takes for one that is there."""
    package = folder / "site" / "mediapipe"
    for path, text in {
        package / "__init__.py": MEDIAPIPE.format(here=str(Path(__file__).parent)),
        package / "python" / "__init__.py": "",
        package / "python" / "solution_base.py": SOLUTION.format(fatal_width=FATAL_WIDTH),
        package / "python" / "solutions" / "__init__.py": "",
        package / "python" / "solutions" / "face_mesh.py": "_BINARYPB_FILE_PATH = 'none'\n",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -I ] && shift\nPYTHONPATH={folder / "site"} '
        f'exec {sys.executable} "$@"\n',
        encoding="utf-8",
    )
    python.chmod(0o755)
    return folder


def write_film(path: Path, openings: list[float], *, width: float = 60.0, shift: float = 0.0):
    """A clip of the face that opens its mouth so far in each picture, without sound."""
    write_pictures(
        path, [draw((120, 160), (80 + shift, 60), width, opening) for opening in openings]
    )


def write_pictures(path: Path, pictures: list[np.ndarray]) -> None:
    from fractions import Fraction

    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt, video.options = "yuv444p", {"crf": "4", "preset": "ultrafast"}
        video.codec_context.thread_count = 1
        for number, rgb in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
