# SPDX-License-Identifier: Apache-2.0
"""Faces in one picture: BlazeFace in ONNX Runtime, and what stands around it.

The network (Bazarevsky et al., 2019, arXiv 1907.05047; MediaPipe's "short range" model, made into
ONNX by ``python -m export.face_detector``) says of each cell of a grid whether a face has its
centre there, its box, and six points.  What is done with that is MediaPipe's: anchors in the
middle of the cells, a sigmoid of clipped scores, and boxes that overlap melted into their mean,
weighted by score (mediapipe/modules/face_detection/face_detection.pbtxt; calculators/tflite/
ssd_anchors_calculator.cc, calculators/tensor/tensors_to_detections_calculator.cc,
calculators/util/non_max_suppression_calculator.cc).

It is convolutions alone, so the grid may be of any size: ``detail`` says how many pixels the
network gets of the longer side of what it looks at.  It knows faces of about 20 to 130 of them, so
a picture is looked at twice, small for near faces and larger for far ones (:data:`LOOKS`);
docs/faces.md has what is found so, and at what cost.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.backends.manifest import MAX_MODEL_BYTES
from runtime.backends.onnx import first_line, session_options
from runtime.closing import Closing
from runtime.errors import ModelError, UsageError
from runtime.faces.align import Float64, UInt8
from runtime.faces.identity import Box
from runtime.files import read_bounded
from runtime.logits import sigmoid
from runtime.optional import optional

MODEL_FILE = Path(__file__).resolve().parents[1] / "models" / "face_detector" / "face_detector.onnx"
DETECTOR_INPUT = "picture"  # uint8 RGB [N, H, W, 3]
DETECTOR_OUTPUTS = ("boxes", "scores")  # [N, A, 16], [N, A, 1]
DETECTOR_KEY = "msct_face_detector"  # of the file's metadata: a Layout
POINTS = ("right_eye", "left_eye", "nose", "mouth", "right_ear", "left_ear")  # the person's own

MIN_SCORE = 0.6  # MediaPipe: 0.5 for its one look; more looks see more that is no face
SAME_FACE_IOU = 0.3  # face_detection.pbtxt: min_suppression_threshold
MAX_LOGIT = 100.0  # face_detection.pbtxt: score_clipping_thresh
LOOKS = (128, 384)  # details of a search: of 640 pixels, faces of 100 and more, and of 32 to 200
MAX_DETAIL = 2048  # pixels of the longer side; more takes a second and finds nobody further away
_AGAIN = "make it again with python -m export.face_detector"


@dataclass(frozen=True)
class Layout:
    """What a detector's file says of its outputs."""

    side_px: int  # of the square pictures that it was trained on
    multiple_px: int  # of the sides of any picture it can take
    cells: tuple[tuple[int, int], ...]  # (stride in pixels, anchors a cell), in order

    def to_json(self) -> str:
        return json.dumps(
            {"side_px": self.side_px, "multiple_px": self.multiple_px, "cells": self.cells}
        )

    @staticmethod
    def from_json(text: str) -> Layout:
        """Raises :class:`ValueError` for anything else."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("no object")
        try:
            numbers = [values["side_px"], values["multiple_px"]]
            cells = tuple((s, n) for s, n in values["cells"])
        except (KeyError, TypeError) as err:
            raise ValueError(f"{err} is missing or of the wrong kind") from None
        if not cells or not all(
            type(n) is int and 0 < n <= MAX_DETAIL for n in [*numbers, *sum(cells, ())]
        ):
            raise ValueError("sizes must be whole numbers from 1")
        return Layout(numbers[0], numbers[1], cells)


@dataclass(frozen=True)
class Detection:
    """A face, in pixels of the picture; its box may reach beyond the picture's border."""

    box: Box  # left, top, right, bottom
    score: float  # 0 ... 1
    points: Float64  # [6, 2]: x, y of POINTS


class Detector(Closing):
    """Finds faces; holds one session of ONNX Runtime on the CPU.

    model_file : instead of the one that is shipped
    threads : of one run (None: one)

    Raises :class:`ModelError` for a file that is missing, damaged or no detector,
    :class:`DependencyError` where ONNX Runtime or OpenCV is not installed.
    """

    def __init__(
        self,
        model_file: Path = MODEL_FILE,
        *,
        threads: int | None = None,
        min_score: float = MIN_SCORE,
    ) -> None:
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, not {threads}")
        if not 0 < min_score < 1:
            raise UsageError(f"a smallest score between 0 and 1 is needed, not {min_score}")
        with optional("to find faces"):
            import cv2
        cv2.setNumThreads(1)  # as runtime.faces.tracker does, and for its reasons
        self._cv2 = cv2
        self._path, self._min_score = model_file, min_score
        self._session, self.layout = _open(model_file, threads)

    def find(
        self, frame: UInt8, region: Box | None = None, *, detail: int | None = None
    ) -> list[Detection]:
        """frame: RGB [H, W, 3] -> its faces, the surest first.

        region : left, top, right, bottom of the part to look at, in pixels; None: all of it.  A
            part that lies outside is empty, and has no faces.
        detail : pixels that the network gets of the region's longer side, rounded up to what it
            takes; None: each of LOOKS in turn, and a face found in both is one
        """
        assert self._session is not None, "the detector is closed"
        assert frame.shape[2:] == (3,), f"RGB [H, W, 3] expected, got {frame.shape}"
        assert frame.dtype == np.uint8, frame.dtype
        if detail is None:
            return merge([d for look in LOOKS for d in self.find(frame, region, detail=look)])
        if not 0 < detail <= MAX_DETAIL:
            raise UsageError(f"a detail of 1 to {MAX_DETAIL} pixels is needed, not {detail}")
        left, top, part = _cut(frame, region)
        if part.size == 0:
            return []
        picture, scale = self._fit(part, detail)
        found = decode(*self._run(picture), self.layout, picture.shape[:2], self._min_score)
        origin = np.array([left, top], np.float64)
        return [_placed(item, scale, origin) for item in melt(*found)]

    def find_all(
        self, frame: UInt8, regions: Sequence[Box], *, detail: int | None = None
    ) -> list[Detection]:
        """As :meth:`find` of each region; a face that several of them show is one."""
        return merge([d for region in regions for d in self.find(frame, region, detail=detail)])

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def _fit(self, part: UInt8, wanted: int) -> tuple[UInt8, Float64]:
        """The network's picture, black at the right and below, and its pixels for one of ``part``,
        along x and y."""
        height, width = part.shape[:2]
        multiple = self.layout.multiple_px
        longer = -(-wanted // multiple) * multiple
        factor = longer / max(height, width)
        size = max(1, round(width * factor)), max(1, round(height * factor))
        mode = self._cv2.INTER_AREA if factor < 1 else self._cv2.INTER_LINEAR
        small = part if factor == 1 else self._cv2.resize(part, size, interpolation=mode)
        picture = np.zeros(
            (-(-size[1] // multiple) * multiple, -(-size[0] // multiple) * multiple, 3), np.uint8
        )
        picture[: size[1], : size[0]] = small
        return picture, np.array(size, np.float64) / (width, height)

    def _run(self, picture: UInt8) -> tuple[Float64, Float64]:
        """Raw boxes [A, 16] and scores [A]."""
        try:
            boxes, scores = self._session.run(
                list(DETECTOR_OUTPUTS), {DETECTOR_INPUT: picture[None]}
            )
        except Exception as err:  # ONNX Runtime's exceptions share no base but Exception
            raise _refused(self._path, "cannot be run", err) from err
        cells = len(anchors(self.layout, picture.shape[0], picture.shape[1]))
        if boxes.shape != (1, cells, 16) or scores.shape != (1, cells, 1):
            raise ModelError(
                f"{self._path} answers in shapes {list(boxes.shape)} and {list(scores.shape)} "
                f"where {cells} anchors are expected; {_AGAIN}"
            )
        return boxes[0], scores[0, :, 0]


def tiles(height: int, width: int, rows: int, columns: int, overlap: float) -> list[Box]:
    """Regions that cover a picture, row by row; neighbours share ``overlap`` of their sides."""
    tall, wide = (side / (n - (n - 1) * overlap) for side, n in ((height, rows), (width, columns)))
    corners = itertools.product(range(rows), range(columns))
    step = 1 - overlap
    return [
        (x * step * wide, y * step * tall, (x * step + 1) * wide, (y * step + 1) * tall)
        for y, x in corners
    ]


@functools.lru_cache(maxsize=16)
def anchors(layout: Layout, height: int, width: int) -> Float64:
    """The middles of the cells, row by row, layer by layer: [A, 2] x, y in pixels."""
    layers = []
    for stride, each in layout.cells:
        ys, xs = np.mgrid[: -(-height // stride), : -(-width // stride)]
        middles = np.stack([xs, ys], axis=-1).reshape(-1, 2)
        layers.append(np.repeat((middles + 0.5) * stride, each, axis=0))
    return np.concatenate(layers)


def decode(
    raw: npt.NDArray[Any], logits: npt.NDArray[Any], layout: Layout, size: tuple[int, int],
    min_score: float,
) -> tuple[Float64, Float64]:  # fmt: skip
    """Raw boxes [A, 16] (middle, size, six points; x before y) and logits [A] of a picture of
    ``size`` (height, width) -> corners and points [K, 8, 2], and scores [K], the surest first."""
    # what is not a number is no face
    clipped = np.clip(np.nan_to_num(logits.astype(np.float64), nan=-MAX_LOGIT), -MAX_LOGIT,
                      MAX_LOGIT)  # fmt: skip
    scores = sigmoid(clipped)
    sure = np.flatnonzero(scores >= min_score)
    sure = sure[np.argsort(-scores[sure], kind="stable")]
    pairs = raw[sure].astype(np.float64).reshape(-1, 8, 2)
    pairs[:, [0, 2, 3, 4, 5, 6, 7]] += anchors(layout, *size)[sure][:, None]
    middle, half = pairs[:, 0].copy(), pairs[:, 1] / 2
    pairs[:, 0], pairs[:, 1] = middle - half, middle + half
    real = np.isfinite(pairs).all(axis=(1, 2)) & (half > 0).all(axis=1)
    return pairs[real], scores[sure][real]


def melt(pairs: Float64, scores: Float64) -> list[tuple[Float64, float]]:
    """Weighted suppression of [K, 8, 2], the surest first: the mean of all boxes that overlap the
    surest, weighted by score, with the score of the surest; then the same of the others."""
    kept = []
    while len(pairs):
        close = _overlap(pairs[0], pairs) > SAME_FACE_IOU
        close[0] = True
        weights = scores[close, None, None]
        kept.append(((pairs[close] * weights).sum(axis=0) / weights.sum(), float(scores[0])))
        pairs, scores = pairs[~close], scores[~close]
    return kept


def merge(found: Sequence[Detection]) -> list[Detection]:
    """Of several looks at one picture: a face that several saw is one, the surest first."""
    if not found:
        return []
    ordered = sorted(found, key=lambda d: -d.score)
    pairs = np.stack([np.vstack([np.reshape(d.box, (2, 2)), d.points]) for d in ordered])
    kept = melt(pairs, np.array([d.score for d in ordered]))
    return [_placed(item, np.ones(2), np.zeros(2)) for item in kept]


def _overlap(one: Float64, all_: Float64) -> Float64:
    """Intersection over union of a box with each of [K, 8, 2]: [K]."""
    shared = np.minimum(one[1], all_[:, 1]) - np.maximum(one[0], all_[:, 0])
    inner = np.clip(shared, 0, None).prod(axis=1)
    areas = (all_[:, 1] - all_[:, 0]).prod(axis=1)
    union = (one[1] - one[0]).prod() + areas - inner
    return inner / np.maximum(union, 1e-12)


def _placed(item: tuple[Float64, float], scale: Float64, origin: Float64) -> Detection:
    """From the network's pixels to the picture's."""
    pairs, score = item[0] / scale + origin, item[1]
    (x0, y0), (x1, y1) = pairs[0].tolist(), pairs[1].tolist()
    return Detection((x0, y0, x1, y1), score, pairs[2:])


def _cut(frame: UInt8, region: Box | None) -> tuple[int, int, UInt8]:
    """Left, top and the pixels of the part of a region that lies in the picture."""
    if region is None:
        return 0, 0, frame
    height, width = frame.shape[:2]
    if not np.isfinite(region).all():
        raise UsageError(f"a region of finite numbers is needed, not {region}")
    left, right = (min(max(round(v), 0), width) for v in (region[0], region[2]))
    top, bottom = (min(max(round(v), 0), height) for v in (region[1], region[3]))
    return left, top, frame[top : max(bottom, top), left : max(right, left)]


def _open(path: Path, threads: int | None) -> tuple[Any, Layout]:
    with optional("to find faces"):
        onnxruntime: Any = importlib.import_module("onnxruntime")
    try:
        data = read_bounded(path, MAX_MODEL_BYTES)
    except OSError as err:
        raise ModelError(f"cannot read {path} ({err.strerror}); {_AGAIN}") from err
    try:
        session = onnxruntime.InferenceSession(
            data,
            sess_options=session_options(onnxruntime, threads),
            providers=["CPUExecutionProvider"],
        )
    except Exception as err:  # ONNX Runtime's exceptions share no base but Exception
        raise _refused(path, "is damaged or no ONNX file", err) from err
    names = [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]
    known = session.get_modelmeta().custom_metadata_map
    if names != ([DETECTOR_INPUT], list(DETECTOR_OUTPUTS)) or DETECTOR_KEY not in known:
        raise ModelError(f"{path} is no face detector of this project; {_AGAIN}")
    try:
        return session, Layout.from_json(known[DETECTOR_KEY])
    except ValueError as err:
        raise ModelError(f"{path}: its {DETECTOR_KEY} cannot be read ({err}); {_AGAIN}") from err


def _refused(path: Path, what: str, err: Exception) -> ModelError:
    return ModelError(f"{path} {what} ({first_line(err)}); {_AGAIN}")
