# SPDX-License-Identifier: Apache-2.0
"""Which of FaceMesh's 478 landmarks mean what, and what is made of them.

* The points that the runtime follows (:data:`runtime.spec.FACE_POINTS`).
* The geometry: 51 points of lips, chin and cheeks, brought to one scale and pose by the similarity
  in 3-D (Umeyama, 1991) that lays 19 points, which do not move against the skull, onto a template;
  principal components of that.

"Left" is left in the picture, everywhere here.  Source of the numbers: MediaPipe's canonical face
model; its landmarks lie mirrored to each other but for those on the middle line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.spec import FACE_POINTS

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

# Rows of the lips from the left corner to the right one, corners left out.
UPPER_OUTER = (185, 40, 39, 37, 0, 267, 269, 270, 409)
LOWER_OUTER = (146, 91, 181, 84, 17, 314, 405, 321, 375)
UPPER_INNER = (191, 80, 81, 82, 13, 312, 311, 310, 415)
LOWER_INNER = (95, 88, 178, 87, 14, 317, 402, 318, 324)
OUTER_CORNERS, INNER_CORNERS = (61, 291), (78, 308)
CHIN = (176, 148, 152, 377, 400)
CHEEKS = (50, 280, 205, 425, 207, 427)
LEFT_EYE, RIGHT_EYE = (33, 133), (362, 263)  # corners
NOSE = 2  # its base, where it meets the lip: what dlib's five points call the nose

MOVING = (
    *OUTER_CORNERS, *UPPER_OUTER, *LOWER_OUTER, *INNER_CORNERS, *UPPER_INNER, *LOWER_INNER,
    *CHIN, *CHEEKS,
)  # fmt: skip
RIGID = (
    10, 151, 9, 8, 168, 6, 197,  # the middle line, from the hair to the bridge of the nose
    109, 338, 67, 297,  # forehead
    162, 389, 127, 356,  # temples
    33, 263, 133, 362,  # corners of the eyes
)  # fmt: skip
_PAIRS = (
    (61, 291), (185, 409), (40, 270), (39, 269), (37, 267), (146, 375), (91, 321), (181, 405),
    (84, 314), (78, 308), (191, 415), (80, 310), (81, 311), (82, 312), (95, 324), (88, 318),
    (178, 402), (87, 317), (176, 400), (148, 377), (50, 280), (205, 425), (207, 427),
    (109, 338), (67, 297), (162, 389), (127, 356), (33, 263), (133, 362),
)  # fmt: skip
_OTHER = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}  # the middle line is not in it


def mirrored(indices: tuple[int, ...]) -> list[int]:
    """Of a list of landmarks: where in that list each one's mirror image stands."""
    return [indices.index(_OTHER.get(i, i)) for i in indices]


_MIRRORED_MOVING = mirrored(MOVING)
_MIRRORED_RIGID = mirrored(RIGID)


def _points() -> dict[str, tuple[int, ...]]:
    """Name -> landmarks whose mean it is."""
    table = {
        "left_eye": LEFT_EYE, "right_eye": RIGHT_EYE, "nose": (NOSE,),
        "left_mouth": OUTER_CORNERS[:1], "right_mouth": OUTER_CORNERS[1:],
    }  # fmt: skip
    table |= {f"upper_lip_{i}": (p,) for i, p in enumerate(UPPER_OUTER, 1)}
    return table | {f"lower_lip_{i}": (p,) for i, p in enumerate(LOWER_OUTER, 1)}


_OF_POINT = _points()
MIRRORED_POINTS = [
    FACE_POINTS.index(name)
    for name in (
        f"{n[:-1]}{10 - int(n[-1])}"
        if "_lip_" in n
        else n.replace("left", "RIGHT").replace("right", "left").replace("RIGHT", "right")
        for n in FACE_POINTS
    )
]


def face_points(landmarks: npt.NDArray[Any]) -> Float64:
    """[..., 478, 3] -> :data:`FACE_POINTS` in the same pixels: [..., P, 2]."""
    rows = [landmarks[..., list(_OF_POINT[n]), :2].mean(-2) for n in FACE_POINTS]
    return np.stack(rows, axis=-2).astype(np.float64)


def similarity_3d(source: Float64, target: Float64) -> tuple[Float64, Float64, Float64]:
    """Least-squares scale [N], rotation [N, 3, 3] and shift [N, 3] of source [N, n, 3] onto target
    [n, 3] (Umeyama, 1991); never a reflection."""
    s_mean, t_mean = source.mean(1), target.mean(0)
    s, t = source - s_mean[:, None], target - t_mean
    u, d, vt = np.linalg.svd(np.einsum("ni,knj->kij", t, s))  # [N, 3, 3]
    sign = np.ones_like(d)
    sign[:, 2] = np.sign(np.linalg.det(u) * np.linalg.det(vt))
    rotation = np.einsum("kij,kj,kjl->kil", u, sign, vt)
    scale = (d * sign).sum(1) / np.maximum((s**2).sum((1, 2)), 1e-12)
    shift = t_mean - scale[:, None] * np.einsum("kij,kj->ki", rotation, s_mean)
    return scale, rotation, shift


def fit_template(landmarks: npt.NDArray[Any], rounds: int = 3) -> Float64:
    """[N, 478, 3] -> the mean of the rigid points [19, 3], symmetric, of root mean square 1.

    Procrustes: every face is laid onto the mean of before, whose first is one of the faces.  The
    template looks at the camera because a face and its mirror image count alike.
    """
    points = landmarks[:, list(RIGID)].astype(np.float64)
    template = _unit(points[np.argmin(_turned(points))])
    both = np.concatenate([points, _flip(points, _MIRRORED_RIGID)])
    for _ in range(rounds):
        scale, rotation, shift = similarity_3d(both, template)
        template = _unit(_lay(both, scale, rotation, shift).mean(0))
    return _unit((template + _flip(template, _MIRRORED_RIGID)) / 2)


def _turned(points: Float64) -> Float64:
    """How far faces look to a side: the depths of mirrored points differ.  [N]"""
    return np.abs(points[..., 2] - points[:, _MIRRORED_RIGID, 2]).sum(1) / np.ptp(
        points[..., 0], axis=1
    )


def _unit(points: Float64) -> Float64:
    centred = points - points.mean(-2, keepdims=True)
    out: Float64 = centred / np.sqrt((centred**2).sum(-1).mean())
    return out


def _flip(points: Float64, order: list[int]) -> Float64:
    """The mirror image [..., n, 3] about x = 0, each landmark under its own name."""
    out: Float64 = points[..., order, :] * np.array([-1.0, 1.0, 1.0])
    return out


def _lay(points: Float64, scale: Float64, rotation: Float64, shift: Float64) -> Float64:
    turned = np.einsum("kij,knj->kni", rotation, points)
    out: Float64 = scale[:, None, None] * turned + shift[:, None]
    return out


def shapes(landmarks: npt.NDArray[Any], template: Float64) -> Float64:
    """[N, 478, 3] pixels -> lips, chin and cheeks without the head's pose: [N, 51, 3]."""
    points = landmarks.astype(np.float64)
    fit = similarity_3d(points[:, list(RIGID)], template)
    return _lay(points[:, list(MOVING)], *fit)


def head_turn_deg(landmarks: npt.NDArray[Any], template: Float64) -> Float64:
    """Yaw of each head [N] in degrees, > 0 to the picture's right, 0 to the camera."""
    _, rotation, _ = similarity_3d(landmarks[:, list(RIGID)].astype(np.float64), template)
    ahead = rotation[:, 2]  # of the template's z axis in the picture: rows of the inverse
    out: Float64 = np.degrees(np.arctan2(ahead[:, 0], ahead[:, 2]))
    return out


@dataclass(frozen=True)
class GeometryBasis:
    """Shapes <-> G numbers, each of unit spread within clips; fitted on training sources alone."""

    template: Float64  # [19, 3] of the rigid points
    mean: Float64  # [153], symmetric
    components: Float64  # [G, 153], orthonormal rows, the largest movement first
    spread: Float64  # [G], the standard deviation of each within clips

    def project(self, shapes: Float64) -> Float32:
        """[N, 51, 3] -> geometry [N, G]."""
        flat = shapes.reshape(len(shapes), -1) - self.mean
        return (flat @ self.components.T / self.spread).astype(np.float32)

    def of(self, landmarks: npt.NDArray[Any], *, mirror: bool = False) -> Float32:
        """[N, 478, 3] -> geometry [N, G], or that of the mirror image."""
        found = shapes(landmarks, self.template)
        return self.project(_flip(found, _MIRRORED_MOVING) if mirror else found)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {k: getattr(self, k).tolist() for k in _BASIS_FIELDS}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GeometryBasis:
        return cls(**{k: np.asarray(values[k], np.float64) for k in _BASIS_FIELDS})


LEAST_SPREAD = 1e-2  # of a component, as a share of the first one's
_BASIS_FIELDS = ("template", "mean", "components", "spread")


def fit_basis(
    landmarks: list[npt.NDArray[Any]], weights: list[float], size: int, template: Float64
) -> GeometryBasis:
    """The ``size`` main movements within clips.

    landmarks : of each clip, [T, 478, 3]
    weights : of each clip, shared by its pictures
    """
    total = float(sum(weights))
    mean = np.zeros(3 * len(MOVING))
    cov = np.zeros((len(mean), len(mean)))
    for points, weight in zip(landmarks, weights, strict=True):
        found = shapes(points, template)
        for side in (found, _flip(found, _MIRRORED_MOVING)):  # left and right alike
            flat = side.reshape(len(side), -1)
            centre = flat.mean(0)
            mean += weight / total / 2 * centre
            cov += weight / total / 2 * (flat - centre).T @ (flat - centre) / len(flat)
    values, vectors = np.linalg.eigh(cov)
    order = np.argsort(values)[::-1][:size]
    components = vectors[:, order].T
    largest = np.abs(components).argmax(1)  # a sign for each that does not depend on the solver
    components *= np.sign(components[np.arange(len(order)), largest])[:, None]
    floor = max(LEAST_SPREAD**2 * float(values[order[0]]), 1e-12)  # no movement is no division by 0
    spread = np.sqrt(np.maximum(values[order], floor))
    return GeometryBasis(template, mean, components, spread)
