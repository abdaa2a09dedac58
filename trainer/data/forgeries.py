# SPDX-License-Identifier: Apache-2.0
"""The forgery methods: genuine pictures and sound in, forged ones out, one seed, one record.

Each method leaves one kind of trace that real fakes leave, on purpose and alone:

* ``replaced`` another recording's voice (no trace in the sound, the pairing is wrong);
* ``shifted`` the clip's own sound, 0.4 to 1.0 s early or late (the pairing is wrong);
* ``vocoded`` the clip's own voice taken apart and resynthesised by WORLD (Morise et al., 2016) with
  another pitch and vocal-tract length (a vocoder's traces, the pairing is right);
* ``self_blend`` the face blended with a disturbed copy of itself: seam, colour and resolution
  differ inside the face (Shiohara & Yamasaki, self-blended images, 2022);
* ``mouth_replay`` the mouth region of another moment or recording laid over the face, as lip-sync
  forgeries do (region by ratio from the eyes and the nose, feathered, colours matched).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from runtime.errors import DependencyError
from runtime.faces import MEAN_FACE, Face, similarity
from runtime.spec import AudioSpec
from trainer.data.clips import Clip

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Params = dict[str, Any]

MIN_SHIFT_S, MAX_SHIFT_S = 0.4, 1.0  # below 0.4 s it would be transport, not forgery
# Ellipses in units of the mean face (dlib's unit square): centre x, y, half axes x, y.
MOUTH = (0.49, 0.83, 0.30, 0.21)
FACE = (0.49, 0.52, 0.46, 0.56)


# --- sound -------------------------------------------------------------------------------------


def replaced(audio: Float32, donor: Float32, rng: np.random.Generator) -> tuple[Float32, Params]:
    """audio [n], donor [m] -> donor's sound at the length and loudness of ``audio`` [n]."""
    out = np.resize(donor, len(audio)).astype(np.float32)  # repeats a donor that is too short
    return match_loudness(out, audio), {}


def shifted(audio: Float32, spec: AudioSpec, rng: np.random.Generator) -> tuple[Float32, Params]:
    """audio [n] rolled by 0.4 to 1.0 s either way, a 10 ms cross-fade over the seam."""
    shift_s = float(rng.uniform(MIN_SHIFT_S, MAX_SHIFT_S) * rng.choice([-1, 1]))
    shift = round(shift_s * spec.sample_rate_hz)
    out = np.roll(audio, shift)
    seam, fade = shift % len(audio), round(0.005 * spec.sample_rate_hz)
    lo, hi = max(0, seam - fade), min(len(audio), seam + fade)
    out[lo:hi] *= np.abs(np.linspace(-1, 1, hi - lo, dtype=np.float32))
    return out, {"shift_s": shift / spec.sample_rate_hz}


def vocoded(audio: Float32, spec: AudioSpec, rng: np.random.Generator) -> tuple[Float32, Params]:
    """audio [n] through WORLD, pitch times 0.85 to 1.2, vocal tract warped by up to 8 percent.

    Raises :class:`DependencyError` where pyworld is missing.
    """
    try:
        import pyworld
    except ImportError as err:
        raise DependencyError("pyworld is not installed: pip install '.[train]'") from err
    pitch, warp = float(rng.uniform(0.85, 1.2)), float(rng.uniform(0.92, 1.08))
    rate, x = spec.sample_rate_hz, audio.astype(np.float64)
    f0, times = pyworld.dio(x, rate)
    f0 = pyworld.stonemask(x, f0, times, rate)
    envelope = pyworld.cheaptrick(x, f0, times, rate)  # [frames, bins]
    aperiodicity = pyworld.d4c(x, f0, times, rate)
    bins = np.arange(envelope.shape[1])
    source = np.clip(bins / warp, 0, bins[-1])
    low = source.astype(int)
    high, part = np.minimum(low + 1, bins[-1]), source - low
    warped = envelope[:, low] * (1 - part) + envelope[:, high] * part
    y = pyworld.synthesize(f0 * pitch, np.ascontiguousarray(warped), aperiodicity, rate)
    out = np.zeros(len(audio), np.float32)
    out[: min(len(y), len(out))] = y[: len(out)]
    return match_loudness(out, audio), {"pitch": round(pitch, 4), "warp": round(warp, 4)}


def match_loudness(audio: Float32, like: Float32) -> Float32:
    """Scaled to the same root mean square, so that loudness separates nothing; [-1, 1] kept."""
    rms, wanted = np.sqrt(np.mean(audio**2)), np.sqrt(np.mean(like**2))
    gain = wanted / rms if rms > 1e-6 else 1.0
    return np.clip(audio * gain, -1, 1).astype(np.float32)


# --- picture -----------------------------------------------------------------------------------


def self_blend(
    clip: Clip, faces: list[Face | None], rng: np.random.Generator
) -> tuple[list[UInt8], Params]:
    """Frames [T][H, W, 3] whose faces are blended with one constant disturbance of themselves."""
    params: Params = {
        "gain": [round(float(v), 4) for v in rng.uniform(0.88, 1.12, 3)],
        "offset": [round(float(v), 2) for v in rng.uniform(-12, 12, 3)],
        "scale": round(float(rng.uniform(0.96, 1.04)), 4),
        "shift": [round(float(v), 4) for v in rng.uniform(-0.03, 0.03, 2)],  # of the eye distance
        "downscale": round(float(rng.uniform(1.3, 2.6)), 3),
        "sharpen": round(float(rng.uniform(0.0, 0.8)), 3),
        "strength": round(float(rng.uniform(0.75, 1.0)), 3),
        "region": [round(float(v), 4) for v in rng.uniform(0.8, 1.05, 2)],
        "feather": round(float(rng.uniform(0.04, 0.12)), 4),
    }
    cx, cy, ax, ay = FACE
    region = (cx, cy, ax * params["region"][0], ay * params["region"][1])
    jitter = rng.normal(0, 0.006, (clip.tokens, 2))  # what a generator leaves from frame to frame
    out = []
    for frame, face, wobble in zip(clip.frames, faces, jitter, strict=True):
        out.append(frame if face is None else _self_blend_one(frame, face, region, wobble, params))
    return out, params


def _self_blend_one(
    frame: UInt8, face: Face, region: tuple[float, float, float, float], wobble: Any, params: Params
) -> UInt8:
    eye_px = _eye_px(face)
    mask = _ellipse(frame.shape, face, region, params["feather"] * eye_px) * params["strength"]
    centre = face.landmarks.mean(0)
    shift = (np.asarray(params["shift"]) + wobble) * eye_px
    matrix = np.array([[params["scale"], 0, 0], [0, params["scale"], 0]])
    matrix[:, 2] = centre - params["scale"] * centre + shift
    size = (frame.shape[1], frame.shape[0])
    source = cv2.warpAffine(frame, matrix, size, borderMode=cv2.BORDER_REPLICATE)
    small = (
        max(8, round(size[0] / params["downscale"])),
        max(8, round(size[1] / params["downscale"])),
    )
    source = cv2.resize(
        cv2.resize(source, small, interpolation=cv2.INTER_AREA), size, interpolation=cv2.INTER_CUBIC
    )
    wide = source.astype(np.float32)
    wide += params["sharpen"] * (wide - cv2.GaussianBlur(wide, (0, 0), 1.5))
    wide = wide * np.float32(params["gain"]) + np.float32(params["offset"])
    return _blend(frame, wide, mask)


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
    feather = float(rng.uniform(0.06, 0.14))
    grow = float(rng.uniform(0.9, 1.15))
    match = bool(rng.random() < 0.8)
    region = (MOUTH[0], MOUTH[1], MOUTH[2] * grow, MOUTH[3] * grow)
    out = []
    for i, (frame, face) in enumerate(zip(clip.frames, faces, strict=True)):
        j = (i + offset) % donor.tokens
        other = donor_faces[j]
        if face is None or other is None:
            out.append(frame)
            continue
        matrix = similarity(other.landmarks, face.landmarks)
        size = (frame.shape[1], frame.shape[0])
        source = cv2.warpAffine(
            donor.frames[j], matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        ).astype(np.float32)
        mask = _ellipse(frame.shape, face, region, feather * _eye_px(face))
        if match:
            source = _match_colours(source, frame.astype(np.float32), mask)
        out.append(_blend(frame, source, mask))
    return out, {
        "offset_tokens": offset,
        "feather": round(feather, 4),
        "grow": round(grow, 4),
        "colours_matched": match,
    }


def _eye_px(face: Face) -> float:
    return float(np.linalg.norm(face.landmarks[1] - face.landmarks[0]))


def _ellipse(
    shape: tuple[int, ...], face: Face, region: tuple[float, float, float, float], feather_px: float
) -> Float32:
    """Soft mask [H, W] in [0, 1] of an ellipse given in units of the mean face."""
    to_picture = similarity(MEAN_FACE, face.landmarks)  # [2, 3]
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    cx, cy, ax, ay = region
    outline = np.stack([cx + ax * np.cos(angle), cy + ay * np.sin(angle), np.ones_like(angle)])
    points = (to_picture @ outline).T  # [48, 2]
    mask = np.zeros(shape[:2], np.float32)
    cv2.fillConvexPoly(mask, np.round(points * 16).astype(np.int32), 1.0, cv2.LINE_AA, 4)
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), max(feather_px, 0.6)), np.float32)


def _match_colours(source: Float32, target: Float32, mask: Float32) -> Float32:
    """Mean and spread of each channel inside the mask as in the target (Reinhard et al., 2001)."""
    inside = mask > 0.5
    if inside.sum() < 16:
        return source
    mean_s, std_s = source[inside].mean(0), source[inside].std(0) + 1e-3
    mean_t, std_t = target[inside].mean(0), target[inside].std(0)
    gain = np.clip(std_t / std_s, 0.7, 1.4)
    return ((source - mean_s) * gain + mean_t).astype(np.float32)


def _blend(frame: UInt8, source: Float32, mask: Float32) -> UInt8:
    soft = mask[..., None]
    mixed = frame.astype(np.float32) * (1 - soft) + source * soft
    return np.clip(np.round(mixed), 0, 255).astype(np.uint8)
