# SPDX-License-Identifier: Apache-2.0
"""Three points of a face onto a template: the crop that the network sees, and the head's turn.

One similarity (Umeyama, 1991) onto dlib's mean face.  How far the base of the nose stands beside
the middle of the eyes says how far the head is turned to a side; a nod shows in two points of the
profile only, and is not measured.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from runtime.errors import DependencyError
from runtime.spec import FaceSpec

UInt8 = npt.NDArray[np.uint8]
Float64 = npt.NDArray[np.float64]
# dlib's 5-point mean face in the unit square: centres of the left and right eye as seen in the
# picture (means of the two corners), and the base of the nose.
MEAN_FACE = np.array([[0.22733, 0.22139], [0.75281, 0.22123], [0.49011, 0.62780]])
NOSE_DEPTH = 0.3  # of the nose's base before the eyes, in distances between the eyes; approximate


def turn_deg(landmarks: Float64) -> float:
    """Landmarks [3, 2] (eyes, nose) -> how far the head is turned to a side, in degrees, 0 and up.

    Turned by ``a``, the eyes' distance ``e`` shrinks to ``e cos a`` and the nose, which stands
    ``NOSE_DEPTH e`` before them, moves aside by ``NOSE_DEPTH e sin a``.  Rolling changes nothing.
    """
    between = landmarks[1] - landmarks[0]
    aside = (landmarks[2] - (landmarks[0] + landmarks[1]) / 2) @ between
    square = max(float(between @ between), 1e-12)
    return math.degrees(math.atan(abs(float(aside)) / square / NOSE_DEPTH))


def template(spec: FaceSpec) -> Float64:
    """Where the eyes and the nose lie in a crop: [3, 2] pixels."""
    pad = spec.crop_padding
    return (MEAN_FACE + pad) / (1 + 2 * pad) * spec.crop_px


def similarity(source: Float64, target: Float64) -> Float64:
    """Least-squares rotation, scale and shift, source [n, 2] -> target [n, 2] (Umeyama, 1991).

    Returns [2, 3]; raises nothing: three equal points give a matrix of zeros and a shift.
    """
    s_mean, t_mean = source.mean(0), target.mean(0)
    s, t = source - s_mean, target - t_mean
    norm = max(float((s**2).sum()), 1e-12)
    a = float((s * t).sum()) / norm
    b = float((s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0]).sum()) / norm
    linear = np.array([[a, -b], [b, a]])
    shift = t_mean - linear @ s_mean
    return np.concatenate([linear, shift[:, None]], axis=1)


def align(frame: UInt8, landmarks: Float64, spec: FaceSpec) -> UInt8:
    """frame [H, W, 3], landmarks [3, 2] (eyes, nose) -> crop [crop_px, crop_px, 3].

    Large faces are warped at a multiple of the size and averaged down, so that they do not alias.
    """
    import cv2

    matrix = similarity(landmarks, template(spec))
    shrink = 1 / max(math.hypot(matrix[0, 0], matrix[1, 0]), 1e-6)  # source pixels per crop pixel
    over = min(8, max(1, round(shrink)))
    side = spec.crop_px * over
    centred = matrix * over
    centred[:, 2] += (over - 1) / 2  # pixel centres, not corners
    crop = cv2.warpAffine(
        frame, centred, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    if over > 1:
        crop = cv2.resize(crop, (spec.crop_px, spec.crop_px), interpolation=cv2.INTER_AREA)
    return np.asarray(crop, dtype=np.uint8)


def predictor_path() -> Path:
    """dlib's 5-point model, as the package face_recognition_models carries it.

    The package is found, not imported: its own module needs pkg_resources, which newer
    setuptools no longer has.
    """
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or spec.origin is None:
        raise DependencyError(
            "face_recognition_models is not installed; install the package: pip install '.[cpu]'"
        )
    path = Path(spec.origin).parent / "models" / "shape_predictor_5_face_landmarks.dat"
    if not path.is_file():
        raise DependencyError(
            f"{path} is missing; reinstall: pip install --force-reinstall face_recognition_models"
        )
    return path
