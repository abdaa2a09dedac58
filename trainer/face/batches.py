# SPDX-License-Identifier: Apache-2.0
"""Batches for :mod:`trainer.distil`: people drawn before clips, photographs and crops without a
face beside them.

A person's chance goes with the square root of the minutes that there are of them.  Clips give two
pictures each, so that the network is also taught how one differs from the other.  A batch depends
on the seed and the step alone: a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.errors import UsageError
from trainer.face.crops import CropSet
from trainer.face.mesh import GeometryBasis, fit_basis, fit_template
from trainer.face.sources import Item
from trainer.face.throw import cut, disturb, draw_nothing, draw_throw, move_points

UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

TEMPLATE_FACES = 4000  # that the template is the mean of
CODED_SHARE = 0.2  # of the crops went through H.264
MADE_NEGATIVES = 0.25  # of the crops without a face are drawn, not cut
CLIPS, PHOTOS, NEGATIVES = 0.45, 0.42, 0.13  # of a batch


class FaceBatch(NamedTuple):
    """B crops: 2 C of clips (two neighbours are of one clip), then photographs, then no faces."""

    crops: UInt8  # [B, H, W, 3]
    geometry: Float32  # [F, G] of the F crops with a face, which come first
    points: Float32  # [F, P, 2]
    pairs: int  # C


@dataclass(frozen=True)
class Split:
    """Which items teach, and which only tell how well."""

    train: list[int]
    people: list[int]  # of people held out, of sources that teach
    sources: list[int]  # of sources held out


def split(
    items: list[Item],
    *,
    hold_out: Collection[str] = (),
    hold_out_people: float = 0.0,
    left_out: Collection[str] = (),
) -> Split:
    """Numbers of the items in each part.

    hold_out : sources, whole; photographs of a source too
    hold_out_people : share of the other sources' people in clips, chosen by their names
    left_out : people or files that are in no part

    Somebody who is held out or left out teaches in no source.  Raises :class:`UsageError` where
    nothing is left to learn from.
    """
    out = set(left_out)
    kept = [i for i, x in enumerate(items) if x.person not in out and x.file not in out]
    sources = [i for i in kept if items[i].source in set(hold_out)]
    away = {items[i].person for i in sources}
    rest = [i for i in kept if items[i].source not in set(hold_out) and items[i].person not in away]
    chosen = {
        items[i].person
        for i in rest
        if items[i].kind == "clip" and _fraction(items[i].person) < hold_out_people
    }
    train = [i for i in rest if items[i].person not in chosen]
    if not any(items[i].kind == "clip" for i in train):
        raise UsageError("no clip is left to learn from; hold out fewer sources or people")
    people = [i for i in rest if items[i].person in chosen]
    return Split(train, people, sources)


def _fraction(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def person_weights(items: Mapping[int, Item], pictures: Mapping[int, int]) -> dict[int, float]:
    """Item -> its chance: a person's is the square root of all their pictures, shared among
    their items by the pictures of each."""
    of_person: dict[str, int] = {}
    for number, item in items.items():
        of_person[item.person] = of_person.get(item.person, 0) + pictures[number]
    return {n: pictures[n] / of_person[x.person] ** 0.5 for n, x in items.items()}


def fit_targets(crops: CropSet, train: list[int], size: int) -> GeometryBasis:
    """The basis of the geometry, from the training items alone."""
    rows = _rows(crops, train)
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), TEMPLATE_FACES)).astype(int)]
    template = fit_template(crops.landmarks[some])
    clips = {
        n: crops.items[n]
        for n in train
        if crops.items[n].kind == "clip" and len(_rows(crops, [n])) > 1
    }
    if not clips:
        raise UsageError("no clip with two faces is left to learn movement from")
    weights = person_weights(clips, {n: len(_rows(crops, [n])) for n in clips})
    found = [crops.landmarks[_rows(crops, [n])] for n in clips]
    return fit_basis(found, [weights[n] for n in clips], size, template)


def _rows(crops: CropSet, items: list[int]) -> Int64:
    parts = [np.arange(crops.first[i], crops.first[i + 1]) for i in items]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


class Batches:
    """Made from training items."""

    def __init__(
        self, crops: CropSet, train: list[int], basis: GeometryBasis, size: int, seed: int
    ) -> None:
        self._crops, self._seed, self._size = crops, seed, size
        self._side = crops.face.crop_px
        clips = {n: crops.items[n] for n in train if crops.items[n].kind == "clip"}
        weights = person_weights(clips, {n: len(_rows(crops, [n])) for n in clips})
        self._clips = np.fromiter(clips, np.int64)
        chance = np.array([weights[n] for n in clips])
        self._chance = np.cumsum(chance / chance.sum())
        self._photos = _rows(crops, [n for n in train if crops.items[n].kind == "photo"])
        self._negatives = np.flatnonzero(np.isin(crops.negative_item, train))
        self._nominal = crops.nominal()
        rows = _rows(crops, train)
        shape = (len(crops), len(basis.spread))
        self._geometry = np.zeros((2, *shape), np.float32)  # as it is, and mirrored
        for mirror in (False, True):
            self._geometry[int(mirror), rows] = basis.of(crops.landmarks[rows], mirror=mirror)
        faces = crops.points[rows] @ self._nominal[:, :2].T + self._nominal[:, 2]
        self.mean_points: Float32 = faces.mean(0).astype(np.float32)  # [P, 2]
        self.mean_geometry: Float32 = self._geometry[:, rows].mean((0, 1))  # [G]

    def batch(self, step: int) -> FaceBatch:
        rng = np.random.default_rng([self._seed, step])
        negatives = round(NEGATIVES * self._size)
        photos = round(PHOTOS * self._size) if len(self._photos) else 0
        pairs = (self._size - negatives - photos) // 2
        rows: list[int] = []
        for clip in self._clips[np.searchsorted(self._chance, rng.random(pairs) * (1 - 1e-9))]:
            first, last = self._crops.first[clip], self._crops.first[clip + 1]
            rows += rng.integers(first, last, 2).tolist()
        if photos:
            rows += rng.choice(self._photos, photos).tolist()
        cuts, geometry, points = [], [], []
        for row in rows:
            throw = draw_throw(rng)
            matrix = throw.matrix(self._nominal, self._side)
            stored = self._crops.crop(row, coded=bool(rng.random() < CODED_SHARE))
            cuts.append(disturb(cut(stored, matrix, self._side), rng))
            geometry.append(self._geometry[int(throw.mirror), row])
            points.append(move_points(self._crops.points[row], matrix, mirror=throw.mirror))
        cuts += [self._nothing(rng) for _ in range(self._size - len(rows))]
        return FaceBatch(np.stack(cuts), np.stack(geometry), np.stack(points), pairs)

    def _nothing(self, rng: np.random.Generator) -> UInt8:
        if not len(self._negatives) or rng.random() < MADE_NEGATIVES:
            return disturb(draw_nothing(self._side, rng), rng)
        stored = self._crops.negative(int(rng.choice(self._negatives)))
        matrix = draw_throw(rng).matrix(self._nominal, self._side)
        return disturb(cut(stored, matrix, self._side), rng)
