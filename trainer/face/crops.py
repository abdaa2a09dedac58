# SPDX-License-Identifier: Apache-2.0
"""Crops with a margin around every face the teacher found, on disk once, so that a training step
neither decodes nor waits.

They are cut by the runtime's own :func:`runtime.faces.align.align`, finer than the network's crop
and with so much around it that one thrown about by 15 % of its side, 20 % of its size and 20
degrees still lies inside.  Beside each a copy that went through H.264 at a low rate, clip by clip,
and a set of crops that show no face: beside it, across its edge, or a part of it.

    crops/<kind>/<file>.npy       uint8 [2, T, S, S, 3]: as they are, and after H.264
    crops/<kind>/<file>.none.npy  uint8 [M, S, S, 3]: crops without a face
    crops/<kind>/<file>.npz       written last: landmarks float32 [T, 478, 3] in pixels of the
                                  picture, points [T, P, 2] in pixels of the crops here, token [T],
                                  width_px [T], and of what they were made

A run that was stopped goes on where it was; items that come later are added.
"""

from __future__ import annotations

import functools
import hashlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from runtime import interrupt
from runtime.errors import MediaError, UserError
from runtime.faces.align import align, similarity, template
from runtime.spec import FACE_POINTS, FaceSpec
from trainer.face.mesh import face_points
from trainer.face.sources import Item, pictures
from trainer.face.teacher import Answers, answers_path, load_answers, stamp_of

UInt8 = npt.NDArray[np.uint8]
Float64 = npt.NDArray[np.float64]
Rng = np.random.Generator

CROPS = "crops"
VERSION = 1
DETAIL = 1.25  # pixels here for one of the network's crop
REACH = 1.8  # sides here for one of the network's crop
MIN_WIDTH_PX = 28.0  # of the mesh; a smaller face teaches little
NEGATIVE_EVERY = 16  # pictures of a clip; and one of four photographs
PHOTO_NEGATIVES = 0.25
ALIGNED = [FACE_POINTS.index(n) for n in ("left_eye", "right_eye", "nose")]


def margin_spec(face: FaceSpec) -> FaceSpec:
    """Of the crops here, for a network that sees crops of ``face``."""
    side = int(np.ceil(DETAIL * REACH * face.crop_px / 16)) * 16
    square = DETAIL * face.crop_px / (1 + 2 * face.crop_padding)  # the mean face's, in pixels here
    return replace(face, crop_px=side, crop_padding=(side / square - 1) / 2)


class CropSet:
    """All crops of some items; the pictures stay on disk and are mapped when they are asked for."""

    def __init__(self, output: Path, items: Sequence[Item], face: FaceSpec) -> None:
        self.folder, self.face = output / CROPS, face
        self.items: list[Item] = []
        parts: list[dict[str, npt.NDArray[Any]]] = []
        for item in items:
            small = _load_small(self.folder, item)
            if small is not None and len(small["token"]):
                self.items.append(item)
                parts.append(small)
        if not parts:
            raise MediaError("no face to learn from: no clip or photograph gave a crop")

        def joined(name: str) -> Any:
            return np.concatenate([part[name] for part in parts])

        counts = [len(part["token"]) for part in parts]
        self.item = np.repeat(np.arange(len(parts), dtype=np.int32), counts)  # [N]
        self.first = np.concatenate([[0], np.cumsum(counts)])  # row of each item's first crop
        self.landmarks = joined("landmarks")  # [N, 478, 3]
        self.points = joined("points")  # [N, P, 2]
        self.token = joined("token")  # [N]
        self.width_px = joined("width_px")  # [N]
        missing = [int(part["negatives"]) for part in parts]
        self.negative_item = np.repeat(np.arange(len(parts), dtype=np.int32), missing)  # [M]
        self._negative_first = np.concatenate([[0], np.cumsum(missing)])

    def __len__(self) -> int:
        return len(self.item)

    def crop(self, row: int, *, coded: bool = False) -> UInt8:
        """[S, S, 3]"""
        item = int(self.item[row])
        return _mapped(_paths(self.folder, self.items[item])[0])[int(coded), row - self.first[item]]

    def negative(self, number: int) -> UInt8:
        """[S, S, 3]"""
        item = int(self.negative_item[number])
        path = _paths(self.folder, self.items[item])[1]
        return _mapped(path)[number - self._negative_first[item]]

    def nominal(self) -> Float64:
        """[2, 3]: pixels here -> pixels of the network's crop, as the runtime cuts it."""
        return similarity(template(margin_spec(self.face)), template(self.face))


@functools.lru_cache(maxsize=512)
def _mapped(path: Path) -> UInt8:
    return np.load(path, mmap_mode="r")


def _paths(folder: Path, item: Item) -> tuple[Path, Path, Path]:
    base = folder / item.kind / item.file
    return tuple(base.with_name(base.name + end) for end in (".npy", ".none.npy", ".npz"))  # type: ignore[return-value]


def _load_small(
    folder: Path, item: Item, key: str | None = None
) -> dict[str, npt.NDArray[Any]] | None:
    """None where an item has none, or (with ``key``) others."""
    try:
        with _paths(folder, item)[2].open("rb") as file, np.load(file) as data:
            if key is not None and str(data["key"]) != key:
                return None
            return {k: data[k] for k in data.files} if key is None else {}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def build(items: Sequence[Item], output: Path, face: FaceSpec) -> tuple[CropSet, dict[str, str]]:
    """Cut all that is not cut yet; the crops, and why some items gave none: file -> reason.

    Raises :class:`MediaError` where no face is left, :class:`UserError` where the disk is full.
    """
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    cv2.setNumThreads(1)
    folder = output / CROPS
    margin = margin_spec(face)
    dropped: dict[str, str] = {}
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        for item in bar.track(items, description="cutting crops"):
            interrupt.check()
            stamp = stamp_of(item.path)
            key = _key(face, stamp)
            if _load_small(folder, item, key) is not None:
                continue
            answers = load_answers(answers_path(output, item), stamp)
            reason = answers.reason if answers else "the teacher was not asked"
            if answers and not reason and not _rows_of(answers).any():
                reason = f"no face of {MIN_WIDTH_PX:.0f} px"
            if answers and not reason:
                try:
                    _write(folder, item, answers, margin, key)
                except MediaError as err:  # it changed since the teacher saw it
                    reason = str(err)
                except OSError as err:
                    raise UserError(
                        f"cannot write to {folder} ({err.strerror}); make room and run the same "
                        "command again"
                    ) from err
            if reason:
                dropped[item.file] = reason
    return CropSet(output, items, face), dropped


def _key(face: FaceSpec, stamp: str) -> str:
    return f"{VERSION} {face.crop_px} {face.crop_padding} {DETAIL} {REACH} {stamp}"


def _write(folder: Path, item: Item, answers: Answers, margin: FaceSpec, key: str) -> None:
    rng = np.random.default_rng(list(hashlib.sha256(item.file.encode()).digest()[:8]))
    crops, negatives = _cut(item, answers, margin, rng)
    tokens = np.flatnonzero(_rows_of(answers))
    landmarks = answers.landmarks[tokens]
    in_picture = points_in_picture(landmarks)  # [T, P, 2]
    matrices = [similarity(p[ALIGNED], template(margin)) for p in in_picture]
    points = [p @ m[:, :2].T + m[:, 2] for p, m in zip(in_picture, matrices, strict=True)]
    pictures_path, none_path, small_path = _paths(folder, item)
    small_path.parent.mkdir(parents=True, exist_ok=True)
    small_path.unlink(missing_ok=True)  # until this item is done, its parts do not fit together
    _mapped.cache_clear()
    np.save(pictures_path, np.stack([crops, _coded(crops, rng)]))
    if negatives:
        np.save(none_path, np.stack(negatives))
    part = small_path.with_name(f".{small_path.name}.{os.getpid()}.part.npz")
    try:
        np.savez(
            part,
            landmarks=landmarks,
            points=np.stack(points).astype(np.float32),
            token=tokens.astype(np.int32),
            width_px=widths(landmarks),
            negatives=np.asarray(len(negatives)),
            key=np.asarray(key),
        )
        part.replace(small_path)
    finally:
        part.unlink(missing_ok=True)


def points_in_picture(landmarks: npt.NDArray[Any]) -> Float64:
    """[..., 478, 3] -> [..., P, 2].

    MediaPipe counts from the picture's corner, OpenCV from the middle of its first pixel.
    """
    return face_points(landmarks) - 0.5


def widths(landmarks: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Of the mesh's box [N], in pixels of the picture."""
    return np.ptp(landmarks[..., 0], axis=-1).astype(np.float32)


def _rows_of(answers: Answers) -> npt.NDArray[np.bool_]:
    """Pictures of an item that give a crop."""
    with np.errstate(invalid="ignore"):
        wide: npt.NDArray[np.bool_] = widths(answers.landmarks) >= MIN_WIDTH_PX
    return answers.found & wide


def _cut(item: Item, answers: Answers, margin: FaceSpec, rng: Rng) -> tuple[UInt8, list[UInt8]]:
    wanted = _rows_of(answers)
    crops: list[UInt8] = []
    negatives: list[UInt8] = []
    token = -1
    for token, picture in enumerate(pictures(item)):
        if token >= len(wanted):
            break
        if picture is None or not wanted[token]:
            continue
        aligned = points_in_picture(answers.landmarks[token])[ALIGNED]
        crops.append(align(picture, aligned, margin))
        if item.kind == "photo":
            want = rng.random() < PHOTO_NEGATIVES
        else:
            want = (len(crops) - 1) % NEGATIVE_EVERY == NEGATIVE_EVERY // 2
        if want:
            place = negative_place(aligned, picture.shape[:2], margin, rng)
            if place is not None:
                negatives.append(align(picture, place, margin))
    if len(crops) != int(wanted.sum()):
        raise MediaError(f"{item.file} has changed since the teacher saw it; run this again")
    return np.stack(crops), negatives


def negative_place(
    aligned: Float64, size: tuple[int, int], margin: FaceSpec, rng: Rng
) -> Float64 | None:
    """Where :func:`align` is to cut what is no face to follow: eyes and nose [3, 2], moved.

    A third each: beside the face (by 1.3 crops and more, of any size and angle), across its edge
    (by half a crop to a whole one), and a part of it (three times as close).  None: no room.
    """
    face = template(margin)
    shrink = similarity(face, aligned)  # pixels of the margin's crop -> of the picture
    crop = margin.crop_px / REACH * float(np.hypot(shrink[0, 0], shrink[1, 0]))  # side, in pixels
    centre = aligned.mean(0)
    kind = int(rng.integers(3))
    for _ in range(10):
        angle, way = rng.uniform(-np.pi, np.pi, 2)
        distance = (rng.uniform(1.3, 4.0), rng.uniform(0.6, 1.0), rng.uniform(0.1, 0.35))[kind]
        zoom = (rng.uniform(0.4, 2.0), rng.uniform(0.85, 1.2), rng.uniform(0.25, 0.4))[kind]
        turn = angle if kind == 0 else np.radians(rng.normal(0, 10))
        to = centre + distance * crop * np.array([np.cos(way), np.sin(way)])
        inside = 0 <= to[0] < size[1] and 0 <= to[1] < size[0]
        apart = kind != 0 or distance > 0.7 * (1 + zoom)  # a large crop reaches back to the face
        if inside and apart:
            c, s = zoom * np.cos(turn), zoom * np.sin(turn)
            moved: Float64 = (aligned - centre) @ np.array([[c, s], [-s, c]]) + to
            return moved
    return None


def _coded(crops: UInt8, rng: Rng) -> UInt8:
    """The crops of one item as a film of low quality shows them: [T, S, S, 3]."""
    side = crops.shape[1]
    small = int(side * rng.uniform(0.5, 1.0)) // 2 * 2
    crf = int(rng.integers(26, 39))
    frames = [cv2.resize(c, (small, small), interpolation=cv2.INTER_AREA) for c in crops]
    back = through_h264(frames, crf)
    return np.stack([cv2.resize(f, (side, side), interpolation=cv2.INTER_LINEAR) for f in back])


def through_h264(frames: list[Any], crf: int) -> Iterator[UInt8]:
    """RGB frames with even sides, coded and decoded."""
    import av

    coder: Any = av.CodecContext.create("libx264", "w")
    height, width = frames[0].shape[:2]
    coder.width, coder.height, coder.pix_fmt = width, height, "yuv420p"
    coder.time_base, coder.thread_count = Fraction(1, 25), 1
    coder.options = {"crf": str(crf), "preset": "veryfast", "tune": "zerolatency"}
    decoder: Any = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    packets: list[Any] = []
    for number, rgb in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        picture.pts, picture.time_base = number, Fraction(1, 25)
        packets += coder.encode(picture)
    packets += coder.encode(None)
    decoded = [f for packet in (*packets, None) for f in decoder.decode(packet)]
    assert len(decoded) == len(frames), "H.264 gives back as many pictures as it took"
    for frame in decoded:
        yield frame.to_ndarray(format="rgb24")
