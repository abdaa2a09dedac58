# SPDX-License-Identifier: Apache-2.0
"""How well a distilled encoder reads faces that it never saw, against its teacher.

* ``correlation``: of each component of the geometry with the teacher's, within clips: each clip
  less its means, all pictures of a part together, every person weighing alike.  Beside it the mean
  over people of the clips' own coefficients.
* ``points``: the mean distance of a picture's points from the teacher's as a share of the distance
  between the eyes; median and 95th percentile over pictures, every person weighing alike.
* ``presence``: faces taken for none, and crops without a face taken for one, at one half.

Crops are cut as the runtime would by the teacher's points (``nominal``), and thrown about by a
third of what training throws (``thrown``): what the network's own points leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainer.face.crops import CropSet
from trainer.face.mesh import GeometryBasis
from trainer.face.throw import Throw, cut, draw_throw, move_points
from trainer.model.msct import FrameEncoder

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

HEADLINE = 3  # components
MIN_PICTURES = 10  # of a clip, for a correlation within it
THROWN_SHARE = 1 / 3
BATCH = 256
EYES = (0, 1)  # of runtime.spec.FACE_POINTS


def report(
    encoder: FrameEncoder,
    basis: GeometryBasis,
    crops: CropSet,
    items: Sequence[int],
    *,
    every: int = 1,
    seed: int = 0,
) -> dict[str, Any]:
    """JSON-ready.  ``every``: of so many pictures of a clip one is looked at.

    An empty dict where there is nothing to look at.
    """
    clips = [n for n in items if crops.items[n].kind == "clip"]
    rows = np.concatenate(
        [np.arange(crops.first[n], crops.first[n + 1])[::every] for n in clips]
        or [np.zeros(0, np.int64)]
    )
    negatives = np.flatnonzero(np.isin(crops.negative_item, np.asarray(items, np.int64)))
    if not len(rows):
        return {}
    truth = basis.of(crops.landmarks[rows])  # [N, G]
    people = np.array([crops.items[i].person for i in crops.item[rows]])
    out: dict[str, Any] = {
        "people": len(set(people)),
        "sources": len({crops.items[n].source for n in clips}),
        "clips": len(clips),
        "pictures": len(rows),
    }
    for name, share in (("nominal", 0.0), ("thrown", THROWN_SHARE)):
        rng = np.random.default_rng(seed)
        throws = [_throw(rng, share) for _ in rows]
        said = _look(encoder, crops, rows, throws)
        out[name] = {
            "correlation": correlation(said["geometry"], truth, crops.item[rows], people),
            "points": _points(said["error"], people),
            "faces_missed": _rate(said["presence"] < 0.5),
        }
    if len(negatives):
        side, nominal = crops.face.crop_px, crops.nominal()
        cuts = (cut(crops.negative(int(n)), nominal, side) for n in negatives)
        presence = np.concatenate([o["presence"] for o in _encode(encoder, cuts)])
        out["negatives"] = len(negatives)
        out["false_faces"] = _rate(presence >= 0.5)
    return out


def _throw(rng: np.random.Generator, share: float) -> Throw:
    throw = draw_throw(rng, share)
    return Throw(throw.shift, throw.scale, throw.turn_deg)  # never mirrored


def _look(
    encoder: FrameEncoder, crops: CropSet, rows: npt.NDArray[Any], throws: list[Throw]
) -> dict[str, Float32]:
    side, nominal = crops.face.crop_px, crops.nominal()
    matrices = [t.matrix(nominal, side) for t in throws]
    cuts = (cut(crops.crop(int(r)), m, side) for r, m in zip(rows, matrices, strict=True))
    parts = _encode(encoder, cuts)
    said = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    targets = np.stack(
        [move_points(crops.points[r], m, mirror=False) for r, m in zip(rows, matrices, strict=True)]
    )
    distance = np.linalg.norm(said.pop("points") - targets, axis=-1).mean(-1)  # [N]
    eyes = np.linalg.norm(targets[:, EYES[0]] - targets[:, EYES[1]], axis=-1)
    # A head in profile has its eyes close together in the picture: the crop's own measure then.
    usual = side * 0.4
    said["error"] = (distance / np.maximum(eyes, usual / 2)).astype(np.float32)
    return said


def _encode(encoder: FrameEncoder, cuts: Any) -> list[dict[str, Float32]]:
    was_training = encoder.training
    encoder.eval()
    parts: list[dict[str, Float32]] = []
    batch: list[Any] = []

    def run() -> None:
        with torch.inference_mode():
            out = encoder.follow(torch.from_numpy(np.stack(batch)))
        parts.append(
            {k: getattr(out, k).numpy().copy() for k in ("geometry", "points", "presence")}
        )
        batch.clear()

    for crop in cuts:
        batch.append(crop)
        if len(batch) == BATCH:
            run()
    if batch:
        run()
    encoder.train(was_training)
    return parts


def correlation(
    said: Float32,
    truth: Float32,
    clip: npt.NDArray[Any],
    person: npt.NDArray[Any],
    count: int = HEADLINE,
) -> dict[str, Any]:
    """said, truth [N, G]; clip, person [N]."""
    weight = _person_weight(person)
    a, b = said[:, :count].astype(np.float64), truth[:, :count].astype(np.float64)
    used = np.zeros(len(a), bool)
    own: dict[Any, list[Float64]] = {}
    for number in np.unique(clip):
        at = np.flatnonzero(clip == number)
        a[at] -= a[at].mean(0)
        b[at] -= b[at].mean(0)
        if len(at) >= MIN_PICTURES:
            used[at] = True
            scale = np.sqrt((a[at] ** 2).sum(0) * (b[at] ** 2).sum(0))
            own.setdefault(person[at[0]], []).append((a[at] * b[at]).sum(0) / (scale + 1e-12))
    a, b, w = a[used], b[used], weight[used, None]
    norm = np.sqrt((w * a**2).sum(0) * (w * b**2).sum(0)) + 1e-12
    pooled = (w * a * b).sum(0) / norm
    each = np.array([np.mean(r, axis=0) for r in own.values()]).reshape(-1, count)
    by_person = each.mean(0) if len(each) else np.zeros(count)
    return {
        "mean": round(float(pooled.mean()), 4),
        "components": [round(float(v), 4) for v in pooled],
        "mean_over_people": [round(float(v), 4) for v in by_person],
        "people": len(each),
    }


def _points(error: Float32, person: npt.NDArray[Any]) -> dict[str, float]:
    weight = _person_weight(person)
    order = np.argsort(error)
    share = np.cumsum(weight[order]) / weight.sum()
    at = [min(int(np.searchsorted(share, q)), len(error) - 1) for q in (0.5, 0.95)]
    median, high = (float(error[order[i]]) for i in at)
    return {"median": round(median, 4), "p95": round(high, 4)}


def _person_weight(person: npt.NDArray[Any]) -> Float64:
    _, inverse, counts = np.unique(person, return_inverse=True, return_counts=True)
    out: Float64 = 1.0 / counts[inverse]
    return out


def _rate(wrong: npt.NDArray[np.bool_]) -> float:
    return round(float(wrong.mean()), 4)


def print_report(parts: dict[str, dict[str, Any]]) -> None:
    for name, part in parts.items():
        if not part:
            print(f"{name}: nobody")
            continue
        print(
            f"{name}: {part['people']} people, {part['sources']} sources, {part['clips']} clips, "
            f"{part['pictures']} pictures"
        )
        for kind in ("nominal", "thrown"):
            row = part[kind]
            each = " / ".join(f"{v:.3f}" for v in row["correlation"]["components"])
            print(
                f"  {kind}: correlation {row['correlation']['mean']:.3f} ({each}), points "
                f"{100 * row['points']['median']:.2f} % of the eyes' distance (95th percentile "
                f"{100 * row['points']['p95']:.1f} %), faces missed "
                f"{100 * row['faces_missed']:.2f} %"
            )
        if "false_faces" in part:
            print(
                f"  {part['negatives']} crops without a face: {100 * part['false_faces']:.2f} % "
                "taken for one"
            )
