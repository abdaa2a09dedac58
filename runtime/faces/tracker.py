# SPDX-License-Identifier: Apache-2.0
"""Faces: find, follow, align, crop.

* Find: dlib's HOG + SVM detector (Dalal & Triggs, 2005; King, 2015) on a grey copy of the frame,
  640 pixels wide, which finds faces of about 75 pixels there.  While no face is followed every
  other search looks at twice the size, for faces half as large.
* Follow: dlib's correlation tracker (Danelljan et al., 2014), every other token.  At intervals
  the detector looks again, only around each face, and drops what is no face any more; a face that
  it has not confirmed gives no crop.
* Keep apart: a crop that does not look like its face (somebody has stepped in front, the shot has
  changed) is withheld and the detector asked at once.  A face that is lost keeps its id for a while
  and is looked for where it should be; :mod:`runtime.faces.identity` says who may come back as
  whom.
* Align: dlib's 5-point predictor (Kazemi & Sullivan, 2014) and a similarity onto its mean face.
  The 68-point model is not used: its data does not allow commercial use.
* Turn: how far the base of the nose stands beside the middle of the eyes says how far the head is
  turned to a side.  A nod shows in two points of the profile only, and is not measured.

Everything is deterministic and synchronous; one :class:`FaceTracker` serves one stream.
"""

from __future__ import annotations

import functools
import math
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import UsageError
from runtime.faces import Face
from runtime.faces.align import Float64, UInt8, align, predictor_path, turn_deg
from runtime.faces.identity import (
    DUPLICATE_IOU,
    LOST_LOOK_TOKENS,
    OVERLAP_IOU,
    REACQUIRE_TOKENS,
    SAME_FACE_IOU,
    Box,
    Looks,
    Motion,
    colours_of,
    iou,
    recognised,
    shows_another,
    width,
)
from runtime.optional import optional
from runtime.spec import FaceSpec

Float32 = npt.NDArray[np.float32]


CONFIRM_FACE_PX = 100  # size a face is brought to before the detector looks at it again
CONFIRM_MARGIN = 0.6  # of the face's width, on each side
RETRY_TOKENS = 3  # after a look that found no face
MAX_MISSES = 3  # looks in a row before a face is given up
KEEP_TRACKER_IOU = 0.5  # below it the tracker starts anew from the detection
FINE_SEARCH = 2.0  # how much larger some searches are while no face is followed: ...
EAGER_SEARCHES = 8  # ... of so many, every other one; then
FINE_EVERY = 5  # one of so many: they cost four times the others, and a room may be empty all day
MAX_UPSCALE = 2.0  # larger adds no detail
MAX_LOOK_MARGIN = 1.6  # of the width of a lost face, on each side of where it should be

_detecting = threading.Lock()  # the detector is shared, and writes its pyramid into itself


@dataclass(frozen=True)
class _Picture:
    frame: UInt8  # [H, W, 3] RGB
    grey: UInt8  # [H, W]
    token: int


@dataclass
class _Track:
    track_id: int
    tracker: Any  # dlib.correlation_tracker
    box: Box
    score: float
    next_look: int  # token
    looks: Looks
    motion: Motion
    misses: int = 0
    odd: bool = False  # the newest crop did not look like the face
    landmarks: Float64 | None = field(default=None)  # [3, 2], smoothed
    crop: UInt8 | None = field(default=None)  # given out last


class FaceTracker:
    """Follows up to ``spec.max_faces`` faces.

    Raises DependencyError where dlib is missing, UsageError for the spec of another stage.
    """

    def __init__(self, spec: FaceSpec) -> None:
        if spec.stage != "dlib":
            raise UsageError(
                "this model follows faces itself, and crops that dlib cuts would mean nothing to "
                "it: a folder of its own crops is needed"
            )
        self.spec = spec
        self._dlib, self._cv2, self._detector, self._predictor = _load()
        self._next_id = 0
        self.reset()

    def reset(self) -> None:
        """Forget every face (a new shot, a new source); ids are not used again."""
        self._tracks: list[_Track] = []
        self._lost: list[_Track] = []
        self._next_follow = 0
        self._next_search = 0
        self._vain_searches = 0  # since a face was followed

    def update(self, frame: UInt8, token: int) -> list[Face]:
        """frame: [H, W, 3] RGB of grid position ``token`` (rising) -> its faces, by id."""
        assert frame.shape[2:] == (3,), f"RGB [H, W, 3] expected, got {frame.shape}"
        assert frame.dtype == np.uint8, frame.dtype
        grey = self._cv2.cvtColor(frame, self._cv2.COLOR_RGB2GRAY)
        picture = _Picture(frame, grey, token)
        if token >= self._next_follow:
            self._follow(picture)
            self._next_follow = token + self.spec.track_every_tokens
        for track in list(self._tracks):
            if token >= track.next_look:
                self._confirm(track, picture)
        for track in list(self._tracks):
            if track.misses >= MAX_MISSES:
                self._lose(track, picture)
        self._lost = [t for t in self._lost if token - t.motion.token <= REACQUIRE_TOKENS]
        for track in list(self._lost):
            if token >= track.next_look and track in self._lost:
                self._look_for(track, picture)
        if token >= self._next_search:
            self._search(picture)
        shown = [self._face(track, picture) for track in self._tracks if track.misses == 0]
        return [face for face in shown if face is not None]

    def _follow(self, picture: _Picture) -> None:
        for track in list(self._tracks):
            quality = track.tracker.update(picture.grey)
            track.box = _to_box(track.tracker.get_position())
            if quality < self.spec.min_track_quality or not _inside(track.box, picture.grey):
                self._lose(track, picture)
        for i, track in enumerate(list(self._tracks)):
            for other in self._tracks[i + 1 :]:
                if track in self._tracks and iou(track.box, other.box) > DUPLICATE_IOU:
                    self._lose(self._less_like(track, other, picture), picture)

    def _lose(self, track: _Track, picture: _Picture) -> None:
        """Follow it no more; it is looked for, at once in the whole picture."""
        self._tracks.remove(track)
        track.misses, track.odd, track.landmarks = 0, False, None
        track.next_look = picture.token + LOST_LOOK_TOKENS
        self._lost.append(track)
        self._lost = self._lost[-self.spec.max_faces :]
        self._next_search = 0

    def _less_like(self, a: _Track, b: _Track, picture: _Picture) -> _Track:
        """Of two tracks on one face the one that does not belong there."""
        distances = [t.looks.distance(self._colours_at(t.box, picture)) for t in (a, b)]
        return a if distances[0] > distances[1] else b

    def _confirm(self, track: _Track, picture: _Picture) -> None:
        """Let the detector look at the surroundings of one face, at a size where it is quick."""
        found = self._look(picture, track.box, CONFIRM_MARGIN)
        found = [(b, s) for b, s in found if iou(b, track.box) >= SAME_FACE_IOU]
        if not found:
            track.misses += 1
            track.landmarks = None
            track.next_look = picture.token + RETRY_TOKENS
            return
        box, score = max(found, key=lambda item: item[1])
        crop = self._crop_at(box, picture)
        if self._is_other(track, crop, colours_of(crop, self._cv2), picture.token):
            self._lose(track, picture)  # it is a face, but another one: the search finds whose
            return
        track.score, track.misses, track.odd = score, 0, False
        track.next_look = picture.token + self.spec.detect_every_tokens
        if iou(box, track.box) < KEEP_TRACKER_IOU:
            track.box = box
            track.tracker.start_track(picture.grey, self._rectangle(box, float_=True))

    def _look_for(self, track: _Track, picture: _Picture) -> None:
        """Let the detector look where a lost face should be."""
        track.next_look = picture.token + LOST_LOOK_TOKENS
        box = track.motion.predicted(picture.token)
        margin = CONFIRM_MARGIN + track.motion.gate_px(picture.token) / width(box)
        if _inside(box, picture.grey):
            self._claim(self._look(picture, box, min(margin, MAX_LOOK_MARGIN)), picture)

    def _look(self, picture: _Picture, box: Box, margin: float) -> list[tuple[Box, float]]:
        """What the detector finds around ``box``, ``margin`` of its width on each side."""
        x0, y0, x1, y1 = box
        by = margin * (x1 - x0)
        left, top = max(0, int(x0 - by)), max(0, int(y0 - by))
        region = picture.grey[top : int(y1 + by) + 1, left : int(x1 + by) + 1]
        return self._detect(region, CONFIRM_FACE_PX / (x1 - x0), (left, top))

    def _search(self, picture: _Picture) -> None:
        """Look at the whole picture for faces that are not followed yet."""
        grey = picture.grey
        self._vain_searches = 0 if self._tracks else self._vain_searches + 1
        every = 2 if self._vain_searches <= EAGER_SEARCHES else FINE_EVERY
        fine = self._vain_searches > 0 and self._vain_searches % every == 0
        scale = self.spec.detect_width_px / grey.shape[1] * (FINE_SEARCH if fine else 1.0)
        longest = self.spec.detect_width_px * (FINE_SEARCH if fine else 1.0)
        scale = min(scale, longest / grey.shape[0], MAX_UPSCALE * (FINE_SEARCH if fine else 1.0))
        if len(self._tracks) < self.spec.max_faces:  # else nobody could be followed
            self._claim(self._detect(grey, scale, (0, 0)), picture)
        wait = self.spec.rescan_every_tokens if self._tracks else self.spec.search_every_tokens
        self._next_search = picture.token + wait

    def _claim(self, found: list[tuple[Box, float]], picture: _Picture) -> None:
        """Follow the faces found that nobody follows: lost ones under their ids, others anew."""
        free = [
            item
            for item in sorted(found, key=lambda item: -item[1])
            if not any(iou(item[0], t.box) >= SAME_FACE_IOU for t in self._tracks)
        ][: self.spec.max_faces - len(self._tracks)]
        colours = [self._colours_at(box, picture) for box, _ in free]
        lost = list(self._lost)
        boxes = [box for box, _ in free]
        known = recognised(
            list(zip(boxes, colours, strict=True)),
            [(track.looks, track.motion) for track in lost],
            picture.token,
        )
        for (box, score), seen, index in zip(free, colours, known, strict=True):
            tracker = self._dlib.correlation_tracker()
            tracker.start_track(picture.grey, self._rectangle(box, float_=True))
            look = picture.token + self.spec.detect_every_tokens
            if index is None:
                motion = Motion(box, picture.token)
                track = _Track(self._next_id, tracker, box, score, look, Looks(seen), motion)
                self._next_id += 1
            else:
                track = lost[index]
                self._lost.remove(track)
                track.tracker, track.box, track.score, track.next_look = tracker, box, score, look
                track.motion = Motion(box, picture.token)
            self._tracks.append(track)
        self._tracks.sort(key=lambda t: t.track_id)

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
        grey = np.ascontiguousarray(grey)
        with _detecting:
            boxes, scores, _ = self._detector.run(grey, 0, self.spec.min_detection_score)
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

    def _face(self, track: _Track, picture: _Picture) -> Face | None:
        """None: the crop does not look like the face."""
        landmarks = self._landmarks(track.box, picture.grey)
        if track.landmarks is not None:
            weight = self.spec.landmark_smoothing
            landmarks = weight * landmarks + (1 - weight) * track.landmarks
        track.landmarks = landmarks
        crop = align(picture.frame, landmarks, self.spec)
        colours = colours_of(crop, self._cv2)
        if self._is_other(track, crop, colours, picture.token):
            if not track.odd:  # ask the detector in the next picture, later in the usual turn
                track.odd, track.next_look = True, picture.token + 1
            return None
        track.odd = False
        track.motion.moved_to(track.box, picture.token)
        if not any(t is not track and iou(t.box, track.box) > OVERLAP_IOU for t in self._tracks):
            track.looks.learn(colours)
        track.crop = crop
        return Face(
            track_id=track.track_id,
            crop=crop,
            box=track.box,
            landmarks=landmarks,
            width_px=width(track.box),
            confidence=max(0.0, track.score),
            turn_deg=turn_deg(landmarks),
        )

    def _is_other(self, track: _Track, crop: UInt8, colours: Float32, token: int) -> bool:
        tokens = token - track.motion.token
        return shows_another(track.looks, track.crop, crop, colours, tokens, self._cv2)

    def _colours_at(self, box: Box, picture: _Picture) -> Float32:
        return colours_of(self._crop_at(box, picture), self._cv2)

    def _crop_at(self, box: Box, picture: _Picture) -> UInt8:
        return align(picture.frame, self._landmarks(box, picture.grey), self.spec)

    def _landmarks(self, box: Box, grey: UInt8) -> Float64:
        """Left and right eye as seen and the base of the nose: [3, 2] pixels."""
        shape = self._predictor(grey, self._rectangle(box))
        parts = [shape.part(i) for i in range(shape.num_parts)]
        points = np.array([[p.x, p.y] for p in parts], np.float64)  # [5, 2]
        # dlib's order: right-hand eye (outer, inner), left-hand eye (outer, inner), nose
        eyes = [(points[2] + points[3]) / 2, (points[0] + points[1]) / 2]
        return np.stack([*eyes, points[4]])

    def _rectangle(self, box: Box, *, float_: bool = False) -> Any:
        if float_:
            return self._dlib.drectangle(*box)
        return self._dlib.rectangle(*(round(v) for v in box))


@functools.cache
def _load() -> tuple[Any, Any, Any, Any]:
    """dlib, OpenCV, the detector and the predictor.

    The last two keep nothing from one picture to the next, and to make them takes as long as a few
    seconds of video: all trackers of a process share them.

    OpenCV is told to use one thread, in the whole process: on pieces this small a second one makes
    nothing faster, and its waiting takes from the decoder.
    """
    with optional("to find faces"):
        import cv2
        import dlib
    cv2.setNumThreads(1)
    predictor = dlib.shape_predictor(str(predictor_path()))
    return dlib, cv2, dlib.get_frontal_face_detector(), predictor


def _to_box(rect: Any) -> Box:
    return float(rect.left()), float(rect.top()), float(rect.right()), float(rect.bottom())


def _inside(box: Box, grey: UInt8) -> bool:
    """At least the centre lies in the picture, and the box has a size."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return box[2] - box[0] >= 8 and 0 <= x < grey.shape[1] and 0 <= y < grey.shape[0]
