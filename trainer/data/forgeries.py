# SPDX-License-Identifier: Apache-2.0
"""Forged pictures: genuine frames in, forged frames and the parameters out, one seed, one record.

Each method leaves the traces of one family of real fakes (the sound is in
:mod:`trainer.data.speech`):

* ``self_blend`` the face blended with a disturbed copy of itself: colour, sharpness, resolution,
  place and a deformed mask differ, as in self-blended images (Shiohara & Yamasaki, CVPR 2022);
  the landmarks are the detector's five, so the masks are ovals in units of the mean face;
* ``face_swap`` another clip's face warped on by the similarity of the landmarks and cloned
  seamlessly (Poisson image editing, Pérez et al., 2003); the mouth stays, so the lips still fit
  the voice, as they do after a real face swap;
* ``mouth_replay`` the mouth region of another moment or recording laid over the face, as lip-sync
  forgeries do (region by ratio from the landmarks; feathered or cloned seamlessly).

A disturbance is constant over the clip but for a slow wander (an AR(1) process) of place and
colour, which is what generators leave from frame to frame.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from runtime.faces import Face
from runtime.faces.align import MEAN_FACE, similarity
from trainer.data.clips import Clip

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Params = dict[str, Any]
Oval = tuple[float, float, float, float]

# Ovals in units of the mean face (dlib's unit square): centre x, y, half axes x, y.
MOUTH: Oval = (0.49, 0.83, 0.30, 0.21)
LIPS: Oval = (0.49, 0.84, 0.26, 0.15)  # what a face swap leaves alone
SWAP: Oval = (0.49, 0.52, 0.43, 0.54)  # within the skin: hair at its edge would bleed into the face
REGIONS: dict[str, Oval] = {
    "face": (0.49, 0.50, 0.50, 0.72),  # forehead to chin
    "inner": (0.49, 0.52, 0.46, 0.54),  # brows to lower lip
    "upper": (0.49, 0.28, 0.54, 0.34),  # eyes and nose
    "lower": (0.49, 0.86, 0.46, 0.38),  # nose to chin
}
REGION_WEIGHTS = (0.3, 0.3, 0.2, 0.2)
HARMONICS = 4  # of the outline's deformation
WANDER_MEMORY = 0.9  # of the AR(1) process, per token
HALF_WIDTH, HALF_HEIGHT = 2.1, 2.7  # of what a mask can reach, in eye distances from the nose
RING = 1.35  # the skin around a region, as a multiple of its axes


def self_blend(
    clip: Clip, faces: list[Face | None], rng: np.random.Generator
) -> tuple[list[UInt8], Params]:
    """Frames [T][H, W, 3] whose faces are blended with one disturbed copy of themselves.

    One of the disturbances leads and is drawn from the strong half of its range, so that no clip
    is a forgery in name only.
    """
    lead = str(rng.choice(["colour", "place", "resolution"], p=[0.45, 0.35, 0.2]))

    def draw(name: str, low: float, high: float) -> float:
        middle = (low + high) / 2
        return round(float(rng.uniform(middle if name == lead else low, high)), 4)

    def signed(size: float) -> float:
        return round(float(size * rng.choice([-1, 1])), 4)

    params: Params = {
        "lead": lead,
        "region": str(rng.choice(list(REGIONS), p=REGION_WEIGHTS)),
        "axes": [round(float(v), 4) for v in rng.uniform(0.88, 1.12, 2)],
        "outline": [round(float(v), 4) for v in rng.normal(0, 0.03, 2 * HARMONICS)],
        "feather": round(float(rng.uniform(0.03, 0.14)), 4),  # of the eye distance
        "strength": float(rng.choice([0.75, 0.9, 1.0], p=[0.2, 0.2, 0.6])),
        "light": signed(draw("colour", 0, 18)),  # of 255, all channels
        "tint": [signed(draw("colour", 0, 9)) for _ in range(3)],
        "contrast": round(1 + signed(draw("colour", 0, 0.14)), 4),
        "scale": round(1 + signed(draw("place", 0, 0.06)), 4),
        "turn_deg": signed(draw("place", 0, 3)),
        "shift": [signed(draw("place", 0, 0.07)) for _ in range(2)],  # of the eye distance
        "downscale": draw("resolution", 1.0, 4.0),
        "sharpen": round(float(rng.uniform(0.2, 1.2)), 4) if rng.random() < 0.3 else 0.0,
        "wander": round(float(rng.uniform(0.0, 0.02)), 4),  # of the eye distance
        "flicker": round(float(rng.uniform(0.0, 3.0)), 4),  # of 255
    }
    place = _wander(clip.tokens, 2, params["wander"], rng)
    colour = _wander(clip.tokens, 3, params["flicker"], rng)
    region = _grown(REGIONS[params["region"]], params["axes"])
    out = []
    for i, (whole, found) in enumerate(zip(clip.frames, faces, strict=True)):
        if found is None:
            out.append(whole)
            continue
        near, face = _surroundings(whole, found)
        frame, eye_px = whole[near], _eye_px(face)
        mask = oval(frame.shape, face, region, params["feather"] * eye_px, params["outline"])
        shift = (np.asarray(params["shift"]) + place[i]) * eye_px
        source = _moved(frame, face, params["scale"], params["turn_deg"], shift)
        source = _resampled(source, params["downscale"], params["sharpen"])
        source = _recoloured(source, mask, colour[i], params)
        forged = whole.copy()
        forged[near] = _blend(frame, source, mask * np.float32(params["strength"]))
        out.append(forged)
    return out, params


def face_swap(
    clip: Clip,
    faces: list[Face | None],
    donor: Clip,
    donor_faces: list[Face | None],
    offset: int,
    rng: np.random.Generator,
) -> tuple[list[UInt8], Params]:
    """Frames [T][H, W, 3] with the face of donor token i + ``offset`` (around the end) swapped in.

    The clip's own mouth stays.  Tokens where either face is missing stay as they are.
    """
    params: Params = {
        "offset_tokens": offset,
        "axes": [round(float(v), 4) for v in rng.uniform(0.88, 1.06, 2)],
        "outline": [round(float(v), 4) for v in rng.normal(0, 0.02, 2 * HARMONICS)],
        "downscale": round(float(rng.uniform(1.0, 2.0)), 4),
        "strength": float(rng.choice([0.85, 1.0])),
    }
    region = _grown(SWAP, params["axes"])

    def one(frame: UInt8, face: Face, source: Float32) -> UInt8:
        eye_px = _eye_px(face)
        source = _resampled(source, params["downscale"], 0.0)
        mask = oval(frame.shape, face, region, 0.0, params["outline"])
        source = _match_colours(source, frame, mask > 0.5)
        lips = oval(frame.shape, face, LIPS, 0.05 * eye_px)
        cloned = _cloned(frame, source, mask)
        soft = oval(frame.shape, face, region, 0.04 * eye_px, params["outline"]) * (1 - lips)
        return _blend(frame, cloned, soft * np.float32(params["strength"]))

    return _transplanted(clip, faces, donor, donor_faces, offset, one), params


def mouth_replay(
    clip: Clip,
    faces: list[Face | None],
    donor: Clip,
    donor_faces: list[Face | None],
    offset: int,
    rng: np.random.Generator,
) -> tuple[list[UInt8], Params]:
    """Frames [T][H, W, 3] with the mouth of donor token i + ``offset`` (around the end) laid on.

    With the donor's own sound at the same offset this is a lip-sync forgery; with the clip's own
    sound the lips are wrong.
    """
    params: Params = {
        "offset_tokens": offset,
        "feather": round(float(rng.uniform(0.06, 0.14)), 4),
        "axes": [round(float(v), 4) for v in rng.uniform(0.9, 1.15, 2)],
        "outline": [round(float(v), 4) for v in rng.normal(0, 0.02, 2 * HARMONICS)],
        "downscale": round(float(rng.uniform(1.0, 2.5)), 4),
        "cloned": bool(rng.random() < 0.4),
    }
    region = _grown(MOUTH, params["axes"])

    def one(frame: UInt8, face: Face, source: Float32) -> UInt8:
        source = _resampled(source, params["downscale"], 0.0)
        feather_px = params["feather"] * _eye_px(face)
        mask = oval(frame.shape, face, region, feather_px, params["outline"])
        if params["cloned"]:
            source = _cloned(frame, source, oval(frame.shape, face, _grown(region, (1.1, 1.1)), 0))
        else:
            around = oval(frame.shape, face, _grown(region, (RING, RING)), 0)
            source = _match_colours(source, frame, (around > 0.5) & (mask < 0.5))
        return _blend(frame, source, mask)

    return _transplanted(clip, faces, donor, donor_faces, offset, one), params


def _transplanted(
    clip: Clip,
    faces: list[Face | None],
    donor: Clip,
    donor_faces: list[Face | None],
    offset: int,
    one: Any,
) -> list[UInt8]:
    """``one(frame, face, source)`` around the face of every token, source [h, w, 3] being the
    donor's picture warped so that its landmarks lie on the face's."""
    out = []
    for i, (whole, found) in enumerate(zip(clip.frames, faces, strict=True)):
        j = (i + offset) % donor.tokens
        other = donor_faces[j]
        if found is None or other is None:
            out.append(whole)
            continue
        near, face = _surroundings(whole, found)
        frame = whole[near]
        matrix = similarity(other.landmarks, face.landmarks)
        size = (frame.shape[1], frame.shape[0])
        source = cv2.warpAffine(
            donor.frames[j], matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        )
        forged = whole.copy()
        forged[near] = one(frame, face, source.astype(np.float32))
        out.append(forged)
    return out


def _surroundings(frame: UInt8, face: Face) -> tuple[tuple[slice, slice], Face]:
    """The part of ``frame`` that any mask reaches, and the face in its coordinates."""
    middle = face.landmarks.mean(0)
    half = np.array([HALF_WIDTH, HALF_HEIGHT]) * _eye_px(face)
    size = np.array([frame.shape[1], frame.shape[0]])
    low = np.clip(np.floor(middle - half), 0, size - 1).astype(int)
    high = np.clip(np.ceil(middle + half), low + 1, size).astype(int)
    near = (slice(low[1], high[1]), slice(low[0], high[0]))
    return near, replace(face, landmarks=face.landmarks - low)


# --- masks -------------------------------------------------------------------------------------


def oval(
    shape: tuple[int, ...],
    face: Face,
    region: Oval,
    feather_px: float,
    outline: list[float] | None = None,
) -> Float32:
    """Mask [H, W] in [0, 1] of an oval given in units of the mean face.

    ``outline``: 2 * HARMONICS numbers, the cosine and sine parts of the relative change of the
    radius around the oval.  ``feather_px`` 0 gives a hard edge.
    """
    to_picture = similarity(MEAN_FACE, face.landmarks)  # [2, 3]
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    radius = np.ones_like(angle)
    for k in range(len(outline or ()) // 2):
        assert outline is not None
        radius += outline[2 * k] * np.cos((k + 1) * angle)
        radius += outline[2 * k + 1] * np.sin((k + 1) * angle)
    cx, cy, ax, ay = region
    line = np.stack(
        [cx + ax * radius * np.cos(angle), cy + ay * radius * np.sin(angle), np.ones_like(angle)]
    )
    points = (to_picture @ line).T  # [64, 2]
    mask = np.zeros(shape[:2], np.float32)
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 1.0, cv2.LINE_AA, 4)
    if feather_px > 0:
        mask = cv2.GaussianBlur(mask, (0, 0), max(feather_px, 0.6))
    return np.asarray(mask, np.float32)


def _eye_px(face: Face) -> float:
    return float(np.linalg.norm(face.landmarks[1] - face.landmarks[0]))


def _grown(region: Oval, factors: Any) -> Oval:
    cx, cy, ax, ay = region
    return cx, cy, ax * float(factors[0]), ay * float(factors[1])


def _wander(tokens: int, n: int, size: float, rng: np.random.Generator) -> Float64:
    """[tokens, n] of an AR(1) process with standard deviation ``size``."""
    noise = rng.normal(0, size, (tokens, n))
    noise[1:] *= np.sqrt(1 - WANDER_MEMORY**2)
    for i in range(1, tokens):
        noise[i] += WANDER_MEMORY * noise[i - 1]
    return noise


# --- disturbances ------------------------------------------------------------------------------


def _moved(frame: UInt8, face: Face, scale: float, turn_deg: float, shift: Float64) -> Float32:
    """frame [H, W, 3] scaled and turned about the face, then shifted by ``shift`` pixels."""
    x, y = (float(v) for v in face.landmarks.mean(0))
    matrix = cv2.getRotationMatrix2D((x, y), turn_deg, scale)
    matrix[:, 2] += shift
    size = (frame.shape[1], frame.shape[0])
    moved = cv2.warpAffine(
        frame, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(moved, np.float32)


def _resampled(source: Float32, downscale: float, sharpen: float) -> Float32:
    """Detail lost by going through a smaller picture, then edges raised."""
    height, width = source.shape[:2]
    if downscale > 1.02:
        small = (max(8, round(width / downscale)), max(8, round(height / downscale)))
        source = cv2.resize(source, small, interpolation=cv2.INTER_AREA)
        source = cv2.resize(source, (width, height), interpolation=cv2.INTER_CUBIC)
    if sharpen > 0:
        source = source + np.float32(sharpen) * (source - cv2.GaussianBlur(source, (0, 0), 1.5))
    return np.asarray(source, np.float32)


def _recoloured(source: Float32, mask: Float32, flicker: Float64, params: Params) -> Float32:
    mean = source[mask > 0.5].mean(0) if (mask > 0.5).any() else source.mean((0, 1))
    change = params["light"] + np.asarray(params["tint"]) + flicker
    out = (source - mean) * np.float32(params["contrast"]) + mean + change
    return np.asarray(out, np.float32)


def _match_colours(source: Float32, target: UInt8, where: npt.NDArray[np.bool_]) -> Float32:
    """Each channel's mean and spread over ``where`` as in the target (Reinhard et al., 2001)."""
    if where.sum() < 16:
        return source
    here = target[where].astype(np.float32)
    mean_s, std_s = source[where].mean(0), source[where].std(0) + 1e-3
    gain = np.clip(here.std(0) / std_s, 0.85, 1.2)
    return ((source - mean_s) * gain + here.mean(0)).astype(np.float32)


def _cloned(frame: UInt8, source: Float32, mask: Float32) -> Float32:
    """``source`` inside the mask (above 0.5) with the gradients of its own and the edge of
    ``frame`` [H, W, 3]."""
    hard = np.zeros(mask.shape, np.uint8)
    hard[2:-2, 2:-2] = np.where(mask[2:-2, 2:-2] > 0.5, 255, 0)
    x, y, width, height = cv2.boundingRect(hard)
    if width < 8 or height < 8:
        return source
    pasted = np.clip(np.round(source), 0, 255).astype(np.uint8)
    centre = (x + width // 2, y + height // 2)  # of the mask: nothing moves
    cloned = cv2.seamlessClone(pasted, frame.copy(), hard, centre, cv2.NORMAL_CLONE)
    return np.asarray(cloned, np.float32)


def _blend(frame: UInt8, source: Float32, mask: Float32) -> UInt8:
    soft = mask[..., None]
    mixed = frame.astype(np.float32) * (1 - soft) + source * soft
    return np.clip(np.round(mixed), 0, 255).astype(np.uint8)
