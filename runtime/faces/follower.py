# SPDX-License-Identifier: Apache-2.0
"""Faces that the frame encoder follows itself; a detector looks now and then.

* Follow: each face's crop is cut by the points that the encoder found in its last one (eyes, base
  of the nose), smoothed and moved on with the speed of the head, and goes through the encoder:
  features, points and presence of one call, whatever the number of faces.  No crop depends on a
  later picture.  Points that lie off the template by more than the encoder was taught to bear
  (:data:`FAR`, of a face that has just been found) are cut and asked once more.
* Lose: a face whose ``presence`` stays under :data:`MIN_PRESENCE` is lost; the detector looks at
  once.  So is one of two that have come to follow the same face.
* Find: a detector looks at the whole picture, often while nobody is followed, seldom else.  What it
  finds beyond the faces that are followed becomes a new face, or a lost one under its old id where
  place, size and looks allow it (:mod:`runtime.faces.identity`).
* Keep apart: a crop that does not look like its face (somebody has stepped in front, the shot has
  changed) is withheld, and the detector asked.

Everything is deterministic and synchronous; one :class:`FaceFollower` serves one stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.backends.base import FaceOutput
from runtime.faces import Face
from runtime.faces.align import (
    MEAN_FACE,
    Float64,
    UInt8,
    align,
    similarity,
    template,
    turn_deg,
)
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
from runtime.spec import FACE_POINTS, FaceSpec

Float32 = npt.NDArray[np.float32]

MIN_PRESENCE = 0.5
MAX_MISSES = 3  # pictures in a row without a face before it is given up
FAR = 0.08  # of a crop's side, from where its three points should be: it is cut once more
SPEED_RATE = 0.5  # weight of the newest step in the running mean of the speed
ANCHORS = [FACE_POINTS.index(name) for name in ("left_eye", "right_eye", "nose")]
_FACE_CENTRE = np.array([0.5, 0.5])  # of the unit square of MEAN_FACE


@dataclass(frozen=True)
class Found:
    """A face that a detector has found."""

    box: Box
    score: float
    landmarks: Float64  # [3, 2] left and right eye as seen, base of the nose; roughly


@dataclass(frozen=True, kw_only=True)
class FollowedFace(Face):
    """One face in one picture, with what the encoder said of its crop."""

    visual: Float32  # [C]
    geometry: Float32  # [G]


Asking = Generator[UInt8, FaceOutput, list[FollowedFace]]  # yields crops [N, S, S, 3]
Find = Callable[[UInt8], Sequence[Found]]  # of a picture [H, W, 3]


@dataclass
class _Track:
    track_id: int
    landmarks: Float64  # [3, 2] in the picture of ``token``
    token: int
    speed: Float64  # [2] pixels a token
    score: float
    motion: Motion
    looks: Looks | None = None  # None: its first crop is still to come
    new: bool = True  # its crop may have been cut far from where the face is
    settled: bool = False  # it has been seen where it is
    misses: int = 0
    odd: bool = False  # the newest crop did not look like the face
    crop: UInt8 | None = None  # given out last
    next_look: int = 0  # token; of a lost face

    def predicted(self, token: int) -> Float64:
        return self.landmarks + self.speed * (token - self.token)

    @property
    def box(self) -> Box:
        return box_of(self.landmarks)


class FaceFollower:
    """Follows up to ``spec.max_faces`` faces.

    find : looks for faces in a whole picture

    Raises DependencyError where OpenCV is missing.
    """

    def __init__(self, spec: FaceSpec, find: Find) -> None:
        with optional("to follow faces"):
            import cv2
        cv2.setNumThreads(1)  # on pieces this small a second thread takes from the decoder
        self.spec, self._find, self._cv2 = spec, find, cv2
        self._template = template(spec)
        self._next_id = 0
        self.reset()

    def reset(self) -> None:
        """Forget every face (a new shot, a new source); ids are not used again."""
        self._tracks: list[_Track] = []
        self._lost: list[_Track] = []
        self._next_search = 0

    def update_steps(self, frame: UInt8, token: int) -> Asking:
        """frame: [H, W, 3] RGB of grid position ``token`` (rising) -> its faces, by id.

        Yields crops and is sent what the encoder says of them.
        """
        assert frame.shape[2:] == (3,), f"RGB [H, W, 3] expected, got {frame.shape}"
        assert frame.dtype == np.uint8, frame.dtype
        self._lost = [t for t in self._lost if token - t.motion.token <= REACQUIRE_TOKENS]
        shown = yield from self._follow(frame, token, self._tracks)
        self._part(token)
        if token >= self._next_search or any(token >= t.next_look for t in self._lost):
            found = yield from self._search(frame, token)
            shown = {**shown, **found}
        alive = {t.track_id for t in self._tracks}
        return [face for i, face in sorted(shown.items()) if i in alive]

    def _follow(
        self, frame: UInt8, token: int, tracks: Sequence[_Track]
    ) -> Generator[UInt8, FaceOutput, dict[int, FollowedFace]]:
        """What these faces show, by id; those that show none are counted, or lost."""
        shown: dict[int, FollowedFace] = {}
        asked = [(track, track.predicted(token)) for track in tracks]
        while asked:
            crops = np.stack([align(frame, at, self.spec) for _, at in asked])
            out = yield crops
            again = []
            for i, (track, at) in enumerate(asked):
                landmarks = self._in_frame(out.points[i, ANCHORS], at)
                if not (out.presence[i] >= MIN_PRESENCE and _inside(landmarks, frame)):
                    self._miss(track, token)
                elif track.new and self._off(out.points[i, ANCHORS]):
                    track.new = False  # once
                    again.append((track, landmarks))
                else:
                    track.new = False
                    seen = out.visual[i], out.geometry[i]
                    face = self._take(track, token, crops[i], landmarks, seen)
                    if face is not None:
                        shown[track.track_id] = face
            asked = again
        return shown

    def _in_frame(self, points: Float32, at: Float64) -> Float64:
        """Points of the crop that was cut ``at`` these landmarks, in pixels of the frame: [3, 2]"""
        matrix = similarity(at, self._template)  # frame -> crop
        linear, shift = matrix[:, :2], matrix[:, 2]
        placed: Float64 = (points.astype(np.float64) - shift) @ np.linalg.inv(linear).T
        return placed

    def _off(self, points: Float32) -> bool:
        apart = np.linalg.norm(points - self._template, axis=1).mean()
        return bool(apart > FAR * self.spec.crop_px)

    def _take(
        self,
        track: _Track,
        token: int,
        crop: UInt8,
        landmarks: Float64,
        seen: tuple[Float32, Float32],
    ) -> FollowedFace | None:
        """The face moves on to where it was seen; None: the crop does not look like it."""
        colours = colours_of(crop, self._cv2)
        if track.looks is not None and self._is_other(track, crop, colours, token):
            if track.odd:
                self._lose(track, token)
            else:
                track.odd, self._next_search = True, token
            return None
        track.odd, track.misses = False, 0
        expected, weight = track.predicted(token), self.spec.landmark_smoothing
        if track.settled:  # its first place is taken as it is
            landmarks = weight * landmarks + (1 - weight) * expected
            tokens = max(1, token - track.token)
            step = (landmarks - track.landmarks).mean(0) / tokens
            track.speed = track.speed + SPEED_RATE * (step - track.speed)
        track.landmarks, track.token, track.settled = landmarks, token, True
        track.motion.moved_to(track.box, token)
        if track.looks is None:
            track.looks = Looks(colours)
        elif not any(t is not track and iou(t.box, track.box) > OVERLAP_IOU for t in self._tracks):
            track.looks.learn(colours)
        track.crop = crop
        return FollowedFace(
            track_id=track.track_id,
            crop=crop,
            box=track.box,
            landmarks=landmarks,
            width_px=width(track.box),
            confidence=track.score,
            turn_deg=turn_deg(landmarks),
            visual=seen[0],
            geometry=seen[1],
        )

    def _is_other(self, track: _Track, crop: UInt8, colours: Float32, token: int) -> bool:
        assert track.looks is not None
        tokens = token - track.motion.token
        return shows_another(track.looks, track.crop, crop, colours, tokens, self._cv2)

    def _miss(self, track: _Track, token: int) -> None:
        """No face where it should be: it stays there for a moment, then it is lost."""
        track.misses += 1
        if track.looks is None:  # the detector was wrong
            self._tracks.remove(track)
        elif track.misses >= MAX_MISSES:
            self._lose(track, token)
        else:
            track.landmarks, track.token = track.predicted(token), token
            track.speed = track.speed / 2

    def _part(self, token: int) -> None:
        """Two that follow one face: the one that it looks less like is lost."""
        for i, track in enumerate(list(self._tracks)):
            for other in self._tracks[i + 1 :]:
                both = track in self._tracks and other in self._tracks
                if both and iou(track.box, other.box) > DUPLICATE_IOU:
                    self._lose(self._less_like(track, other), token)

    def _less_like(self, a: _Track, b: _Track) -> _Track:
        """Of two tracks on one face the one that does not belong there."""
        newest = a if a.token >= b.token else b
        if newest.crop is None or a.looks is None or b.looks is None:
            return b
        colours = colours_of(newest.crop, self._cv2)
        return a if a.looks.distance(colours) > b.looks.distance(colours) else b

    def _lose(self, track: _Track, token: int) -> None:
        self._tracks.remove(track)
        track.misses, track.odd, track.next_look = 0, False, token
        self._lost = [*self._lost, track][-self.spec.max_faces :]
        self._next_search = token

    def _search(
        self, frame: UInt8, token: int
    ) -> Generator[UInt8, FaceOutput, dict[int, FollowedFace]]:
        """Look at the whole picture for faces that nobody follows; what they show."""
        for lost in self._lost:
            lost.next_look = token + LOST_LOOK_TOKENS
        room = self.spec.max_faces - len(self._tracks)
        shown: dict[int, FollowedFace] = {}
        if room > 0:  # else nobody could be followed
            free = [
                found
                for found in sorted(self._find(frame), key=lambda f: -f.score)
                if not any(iou(found.box, t.box) >= SAME_FACE_IOU for t in self._tracks)
            ][:room]
            new = self._claim(free, frame, token)
            shown = yield from self._follow(frame, token, new)
        wait = self.spec.rescan_every_tokens if self._tracks else self.spec.search_every_tokens
        self._next_search = token + wait
        return shown

    def _claim(self, free: Sequence[Found], frame: UInt8, token: int) -> list[_Track]:
        """Tracks of the faces found: lost ones under their ids, others anew."""
        colours = [colours_of(align(frame, f.landmarks, self.spec), self._cv2) for f in free]
        lost = list(self._lost)
        boxes = [box_of(found.landmarks) for found in free]
        known = [(track.looks, track.motion) for track in lost if track.looks is not None]
        assert len(known) == len(lost), "a face without a crop so far is dropped, not lost"
        known_as = recognised(list(zip(boxes, colours, strict=True)), known, token)
        new = []
        for found, box, index in zip(free, boxes, known_as, strict=True):
            motion = Motion(box, token)
            place = (found.landmarks, token, np.zeros(2), found.score, motion)
            if index is None:
                track = _Track(self._next_id, *place)
                self._next_id += 1
            else:
                back = lost[index]
                self._lost.remove(back)
                track = _Track(back.track_id, *place, looks=back.looks)
            self._tracks.append(track)
            new.append(track)
        self._tracks.sort(key=lambda t: t.track_id)
        return new


def box_of(landmarks: Float64) -> Box:
    """The upright square that dlib's detector would draw about these eyes and this nose [3, 2]."""
    matrix = similarity(MEAN_FACE, landmarks)  # unit square -> frame
    x, y = (matrix[:, :2] @ _FACE_CENTRE + matrix[:, 2]).tolist()
    half = math.hypot(matrix[0, 0], matrix[1, 0]) / 2
    return x - half, y - half, x + half, y + half


def _inside(landmarks: Float64, frame: UInt8) -> bool:
    """The middle of the face lies in the picture, and the face has a size."""
    x0, y0, x1, y1 = box_of(landmarks)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return x1 - x0 >= 8 and 0 <= x < frame.shape[1] and 0 <= y < frame.shape[0]
