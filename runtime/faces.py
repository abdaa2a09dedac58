# SPDX-License-Identifier: Apache-2.0
"""Faces: find, follow, align, crop.

* Find: dlib's HOG + SVM detector (Dalal & Triggs, 2005; King, 2015) on a grey copy of the frame,
  640 pixels wide, which finds faces of about 75 pixels there.  While no face is followed every
  other search looks at twice the size, for faces half as large.
* Follow: dlib's correlation tracker (Danelljan et al., 2014), every other token.  At intervals
  the detector looks again, only around each face, and drops what is no face any more; a face that
  it has not confirmed gives no crop.
* Align: dlib's 5-point predictor (Kazemi & Sullivan, 2014) and a similarity onto its mean face.
  The 68-point model is not used: its data does not allow commercial use.

Everything is deterministic and synchronous; one :class:`FaceTracker` serves one stream.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import DependencyError
from runtime.spec import FaceSpec

UInt8 = npt.NDArray[np.uint8]
Float64 = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the frame

# dlib's 5-point mean face in the unit square: centres of the left and right eye as seen in the
# picture (means of the two corners), and the base of the nose.
MEAN_FACE = np.array([[0.22733, 0.22139], [0.75281, 0.22123], [0.49011, 0.62780]])

CONFIRM_FACE_PX = 100  # size a face is brought to before the detector looks at it again
CONFIRM_MARGIN = 0.6  # of the face's width, on each side
RETRY_TOKENS = 3  # after a look that found no face
MAX_MISSES = 3  # looks in a row before a face is given up
SAME_FACE_IOU = 0.3
KEEP_TRACKER_IOU = 0.5  # below it the tracker starts anew from the detection
FINE_SEARCH = 2.0  # how much larger every other search is while no face is followed
MAX_UPSCALE = 2.0  # larger adds no detail


@dataclass(frozen=True)
class Face:
    """One face in one picture."""

    track_id: int
    crop: UInt8  # [crop_px, crop_px, 3] RGB, aligned
    box: Box
    landmarks: Float64  # [3, 2] pixels of the frame: left and right eye as seen, base of the nose
    width_px: float  # of the box, in source pixels
    confidence: float  # margin of the detection that last confirmed the face, 0 and up


@dataclass
class _Track:
    track_id: int
    tracker: Any  # dlib.correlation_tracker
    box: Box
    score: float
    next_look: int  # token
    misses: int = 0
    landmarks: Float64 | None = field(default=None)  # [3, 2], smoothed


class FaceTracker:
    """Follows up to ``spec.max_faces`` faces.  Raises DependencyError where dlib is missing."""

    def __init__(self, spec: FaceSpec) -> None:
        self.spec = spec
        self._dlib, self._cv2, predictor = _load()
        self._detector = self._dlib.get_frontal_face_detector()
        self._predictor = self._dlib.shape_predictor(str(predictor))
        self._next_id = 0
        self.reset()

    def reset(self) -> None:
        """Forget every face (a new shot, a new source); ids are not used again."""
        self._tracks: list[_Track] = []
        self._next_follow = 0
        self._next_search = 0
        self._searches = 0

    def update(self, frame: UInt8, token: int) -> list[Face]:
        """frame: [H, W, 3] RGB of grid position ``token`` (rising) -> its faces, oldest first."""
        assert frame.shape[2:] == (3,), f"RGB [H, W, 3] expected, got {frame.shape}"
        assert frame.dtype == np.uint8, frame.dtype
        grey = self._cv2.cvtColor(frame, self._cv2.COLOR_RGB2GRAY)
        if token >= self._next_follow:
            self._follow(grey)
            self._next_follow = token + self.spec.track_every_tokens
        for track in self._tracks:
            if token >= track.next_look:
                self._confirm(track, grey, token)
        self._tracks = [t for t in self._tracks if t.misses < MAX_MISSES]
        if token >= self._next_search:
            self._search(grey, token)
        return [self._face(t, frame, grey) for t in self._tracks if t.misses == 0]

    def _follow(self, grey: UInt8) -> None:
        kept = []
        for track in self._tracks:
            quality = track.tracker.update(grey)
            track.box = _to_box(track.tracker.get_position())
            if quality >= self.spec.min_track_quality and _inside(track.box, grey):
                kept.append(track)
        if len(kept) < len(self._tracks):
            self._next_search = 0  # look for the lost face at once
        self._tracks = kept

    def _confirm(self, track: _Track, grey: UInt8, token: int) -> None:
        """Let the detector look at the surroundings of one face, at a size where it is quick."""
        x0, y0, x1, y1 = track.box
        margin = CONFIRM_MARGIN * (x1 - x0)
        left, top = max(0, int(x0 - margin)), max(0, int(y0 - margin))
        region = grey[top : int(y1 + margin) + 1, left : int(x1 + margin) + 1]
        found = self._detect(region, CONFIRM_FACE_PX / (x1 - x0), (left, top))
        found = [(b, s) for b, s in found if _iou(b, track.box) >= SAME_FACE_IOU]
        if not found:
            track.misses += 1
            track.landmarks = None
            track.next_look = token + RETRY_TOKENS
            return
        box, track.score = max(found, key=lambda item: item[1])
        track.misses = 0
        track.next_look = token + self.spec.detect_every_tokens
        if _iou(box, track.box) < KEEP_TRACKER_IOU:
            track.box = box
            track.tracker.start_track(grey, self._rectangle(box, float_=True))

    def _search(self, grey: UInt8, token: int) -> None:
        """Look at the whole picture for faces that are not followed yet."""
        fine = not self._tracks and self._searches % 2 == 1
        self._searches += 1
        scale = self.spec.detect_width_px / grey.shape[1] * (FINE_SEARCH if fine else 1.0)
        longest = self.spec.detect_width_px * (FINE_SEARCH if fine else 1.0)
        scale = min(scale, longest / grey.shape[0], MAX_UPSCALE * (FINE_SEARCH if fine else 1.0))
        for box, score in sorted(self._detect(grey, scale, (0, 0)), key=lambda item: -item[1]):
            if any(_iou(box, t.box) >= SAME_FACE_IOU for t in self._tracks):
                continue
            if len(self._tracks) >= self.spec.max_faces:
                break
            tracker = self._dlib.correlation_tracker()
            tracker.start_track(grey, self._rectangle(box, float_=True))
            look = token + self.spec.detect_every_tokens
            self._tracks.append(_Track(self._next_id, tracker, box, score, look))
            self._next_id += 1
        wait = self.spec.rescan_every_tokens if self._tracks else self.spec.search_every_tokens
        self._next_search = token + wait

    def _detect(
        self, grey: UInt8, scale: float, origin: tuple[int, int]
    ) -> list[tuple[Box, float]]:
        if min(grey.shape) * scale < 40:  # smaller than the detector's own window
            return []
        mode = self._cv2.INTER_AREA if scale < 1 else self._cv2.INTER_LINEAR
        if not math.isclose(scale, 1.0, rel_tol=0.02):
            size = (round(grey.shape[1] * scale), round(grey.shape[0] * scale))
            grey = self._cv2.resize(grey, size, interpolation=mode)
        else:
            scale = 1.0
        boxes, scores, _ = self._detector.run(
            np.ascontiguousarray(grey), 0, self.spec.min_detection_score
        )
        found = []
        for rect, score in zip(boxes, scores, strict=True):
            x0, y0, x1, y1 = _to_box(rect)
            box = (
                x0 / scale + origin[0],
                y0 / scale + origin[1],
                x1 / scale + origin[0],
                y1 / scale + origin[1],
            )
            found.append((box, float(score)))
        return found

    def _face(self, track: _Track, frame: UInt8, grey: UInt8) -> Face:
        shape = self._predictor(grey, self._rectangle(track.box))
        points = np.array([[p.x, p.y] for p in shape.parts()], np.float64)  # [5, 2]
        # dlib's order: right-hand eye (outer, inner), left-hand eye (outer, inner), nose
        eyes = [(points[2] + points[3]) / 2, (points[0] + points[1]) / 2]
        landmarks = np.stack([*eyes, points[4]])  # [3, 2]
        if track.landmarks is not None:
            weight = self.spec.landmark_smoothing
            landmarks = weight * landmarks + (1 - weight) * track.landmarks
        track.landmarks = landmarks
        crop = align(frame, landmarks, self.spec)
        width = track.box[2] - track.box[0]
        return Face(track.track_id, crop, track.box, landmarks, width, max(0.0, track.score))

    def _rectangle(self, box: Box, *, float_: bool = False) -> Any:
        if float_:
            return self._dlib.drectangle(*box)
        return self._dlib.rectangle(*(round(v) for v in box))


def template(spec: FaceSpec) -> Float64:
    """Where the eyes and the nose lie in a crop: [3, 2] pixels."""
    pad = spec.crop_padding
    return (MEAN_FACE + pad) / (1 + 2 * pad) * spec.crop_px


def similarity(source: Float64, target: Float64) -> Float64:
    """Least-squares rotation, scale and shift, source [n, 2] -> target [n, 2] (Umeyama, 1991).

    Returns [2, 3]; raises nothing: three equal points give a matrix of zeros and a shift.
    """
    s, t = source - source.mean(0), target - target.mean(0)
    norm = max(float((s**2).sum()), 1e-12)
    a = float((s * t).sum()) / norm
    b = float((s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0]).sum()) / norm
    linear = np.array([[a, -b], [b, a]])
    shift = target.mean(0) - linear @ source.mean(0)
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


def _load() -> tuple[Any, Any, Path]:
    try:
        import cv2
        import dlib
    except ImportError as err:
        raise DependencyError(
            f"{err.name} is not installed; install the package: pip install '.[cpu]'"
        ) from err
    return dlib, cv2, predictor_path()


def _to_box(rect: Any) -> Box:
    return float(rect.left()), float(rect.top()), float(rect.right()), float(rect.bottom())


def _inside(box: Box, grey: UInt8) -> bool:
    """At least the centre lies in the picture, and the box has a size."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return box[2] - box[0] >= 8 and 0 <= x < grey.shape[1] and 0 <= y < grey.shape[0]


def _iou(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return both / (area - both)
