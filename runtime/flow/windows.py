# SPDX-License-Identifier: Apache-2.0
"""One window on its way through the fusion graph: a row for each face in it.

What is known of the face and the sound in that time decides first whether they can be scored; what
can goes through the graph in one batch, and what it says becomes the scores that
:mod:`runtime.judging.decision` judges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import Backend, FusionOutput
from runtime.flow.face_ring import FaceRing
from runtime.flow.model_calls import Fuse
from runtime.flow.pictures import Asking, Pictures
from runtime.flow.summary import Stats
from runtime.grid import MISSING
from runtime.judging.decision import MAX_CLOCK_ERROR_S, Decision, WindowFacts, WindowScores
from runtime.judging.offset import clarity, lag_curve
from runtime.judging.speaker import Candidate, find_speaker
from runtime.logits import fake_minus_real
from runtime.sound.track import SoundTrack
from runtime.spec import PairSpec, StreamSpec

Float32 = NDArray[np.float32]


def score_window(backend: Backend, frames: NDArray[np.uint8], audio: Float32) -> FusionOutput:
    """One whole window without any cache: encode every frame, then fuse.

    frames: uint8 crops [T, H, W, 3]; audio: tokens [T, 104].  Returns a batch of one.
    """
    return backend.fuse(backend.encode(frames)[None], audio[None])


@dataclass(frozen=True)
class WindowRecord:
    """What one verdict was made of, for :mod:`runtime.calibrate`: more than the verdict says.

    Replayed in order through :class:`runtime.judging.decision.Decision`, records give the verdicts
    again, under the same calibration or another.
    """

    facts: WindowFacts
    scores: WindowScores | None
    compensation_tokens: int  # by which the sound was shifted before the model saw it
    curve: NDArray[np.float64] | None  # lag curve [2 L + 1] under that shift
    visual: Float32 | None  # [T, C] and
    audio: Float32 | None  # [T, 104]: the model's input; None: could not be scored


@dataclass
class Row:
    """One face of a window."""

    facts: WindowFacts
    ring: FaceRing | None
    shift_tokens: int  # of the sound, to compensate its offset
    visual: Float32 | None = None  # [T, C]; None: cannot be scored
    audio: Float32 | None = None  # [T, 104]
    scores: WindowScores | None = None
    curve: NDArray[np.float64] | None = None  # [2 L + 1]
    offset_ms: float | None = None
    levels_dbfs: Float32 | None = None  # [T], of the sound at this face's offset
    motion: Float32 | None = None  # [T], of the mouth

    @property
    def scorable(self) -> bool:
        return self.visual is not None or self.audio is not None

    @property
    def candidate(self) -> Candidate | None:
        """The face as one that may be speaking; None where picture or sound cannot be scored."""
        if self.ring is None or self.audio is None or self.motion is None:
            return None
        assert self.levels_dbfs is not None
        offset = self.ring.offset
        return Candidate(offset.confidence, offset.confident, self.motion, self.levels_dbfs)

    def record(self) -> WindowRecord:
        return WindowRecord(
            self.facts, self.scores, self.shift_tokens, self.curve, self.visual, self.audio
        )


class Windows:
    """Rows of one stream: what is in a window, and what the model says of it.

    has_video : whether a picture that is missing is a fault
    """

    def __init__(
        self,
        spec: PairSpec,
        stream: StreamSpec,
        pictures: Pictures,
        sound: SoundTrack,
        decision: Decision,
        stats: Stats,
        *,
        has_video: bool,
    ) -> None:
        self._spec, self._stream, self._stats = spec, stream, stats
        self._pictures, self._sound, self._decision = pictures, sound, decision
        self._has_video = has_video

    def scored(self, start: int, end: int) -> Asking[list[Row]]:
        """One row a face of the window [start, end), or one without a face, as far as they can be
        scored; of several faces only the speaker's has the sound."""
        faces: list[int | None] = [*self._pictures.faces_in(start, end)]
        rows = [self._row(start, end, face_id) for face_id in faces or [None]]
        yield from self._fuse([row for row in rows if row.scorable])
        with self._stats.timed("decide"):
            self._attribute_sound(rows)
        return rows

    def _row(self, start: int, end: int, face_id: int | None) -> Row:
        ring = self._pictures.rings.get(face_id) if face_id is not None else None
        shift = ring.offset.compensation_tokens if ring else self._stream.av_offset_tokens
        heard = self._sound.sources(start + shift, end + shift, self._stream.max_gap_tokens)
        sound = MISSING not in heard
        levels = self._sound.levels_dbfs(heard) if sound else np.zeros(0, np.float32)
        seen = ring.sources(start, end) if ring else None
        facts = WindowFacts(
            end_token=end,
            face_id=face_id,
            face_throughout=seen is not None and MISSING not in seen,
            face_width_px=ring.width_px(start, end) if ring else np.nan,
            face_turn_deg=ring.turn_deg(start, end) if ring else np.nan,
            picture_gap=self._has_video and self._pictures.gap_in(start, end),
            sound_throughout=sound,
            speech_fraction=float(np.mean(levels >= self._stream.speech_level_dbfs))
            if sound else 0.0,
            clock_error_s=self._sound.clock_error_s(start + shift, end + shift),
        )  # fmt: skip
        row = Row(facts, ring, shift, levels_dbfs=levels)
        if ring is not None and seen is not None and self._decision.picture_reason(facts) is None:
            row.visual = ring.window(seen)  # [T, C]
            row.motion = ring.motion(seen)  # [T]
        if self._decision.sound_reason(facts) is None:
            row.audio = self._sound.window(heard)  # [T, 104]
        return row

    def _fuse(self, rows: list[Row]) -> Asking[None]:
        """Scores all rows in one batch; a missing modality is all zeros."""
        if not rows:
            return
        t = self._stream.window_tokens
        visual = np.zeros((len(rows), t, self._spec.model.channels), np.float32)  # [B, T, C]
        audio = np.zeros((len(rows), t, self._spec.audio.token_dim), np.float32)  # [B, T, 104]
        for i, row in enumerate(rows):
            if row.visual is not None:
                visual[i] = row.visual
            if row.audio is not None:
                audio[i] = row.audio
        reply = yield Fuse(visual, audio)
        assert isinstance(reply.output, FusionOutput)
        self._stats.seconds["fuse"] += reply.seconds
        with self._stats.timed("decide"):
            for i, row in enumerate(rows):
                self._read_scores(row, FusionOutput(*(field[i] for field in reply.output)))

    def _read_scores(self, row: Row, out: FusionOutput) -> None:
        """``out``: one row of the batch."""
        clear: float | None = None
        reliable = row.facts.clock_error_s <= MAX_CLOCK_ERROR_S
        if row.visual is not None and row.audio is not None and row.ring and reliable:
            row.curve = lag_curve(out.align_v, out.align_a, self._stream.max_lag_tokens)
            offset = row.ring.offset.update(row.curve)
            row.offset_ms = None if offset is None else offset * 1000 / self._spec.audio.token_hz
            clear = clarity(out.align_v, out.align_a)
        row.scores = WindowScores(
            logit_av=fake_minus_real(out.logits_av),
            logit_v=fake_minus_real(out.logits_v),
            logit_a=fake_minus_real(out.logits_a),
            sync=float(np.mean(out.sync, dtype=np.float64)),
            speaker=True,
            clarity=clear,
        )

    def _attribute_sound(self, rows: list[Row]) -> None:
        """Of several faces that can be scored with the sound, only the speaker's has it."""
        matched = [row for row in rows if row.candidate is not None]
        if len(matched) < 2:
            return
        faces = [row.candidate for row in matched if row.candidate is not None]
        speaker = find_speaker(faces, self._stream.max_transport_tokens)
        for i, row in enumerate(matched):
            if row.scores and i != speaker:
                row.scores = replace(row.scores, speaker=False)
