# SPDX-License-Identifier: Apache-2.0
"""Push pictures and sound, get verdicts: one stream, synchronous, deterministic, no threads.

Pictures go to the 25 Hz grid; each one that the grid uses is searched for faces once, each crop is
encoded once, and the features wait in a ring per face.  Sound becomes tokens on the same grid.
As soon as a window is full (``window_tokens`` long, every ``hop_tokens``) the features of every
face in it and the sound go through the fusion graph together and :mod:`runtime.judging.decision`
judges.

Crops are encoded in batches that end where windows end, never by when chunks happen to arrive, so
the verdicts do not depend on how picture and sound are interleaved.  Nothing older than a window
is kept.  When one of the two streams falls :data:`MAX_WAIT_S` behind, windows no longer wait for
it; what arrives after its window was judged is counted as late.

Each ``push_`` has a twin that returns :data:`runtime.flow.model_calls.Steps`: the same work, which
stops wherever it needs the model.  :mod:`runtime.flow.driver` steps many sessions and batches their
calls. A session may be told to do less (:class:`Load`); what it then leaves out is counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import Backend, FaceOutput, FusionOutput
from runtime.faces import Face
from runtime.faces.follower import FaceFollower, FollowedFace
from runtime.faces.identity import REACQUIRE_TOKENS
from runtime.faces.search import shared_search
from runtime.faces.tracker import FaceTracker
from runtime.flow.face_ring import FaceRing
from runtime.flow.model_calls import AnyReply, Encode, Follow, Fuse, Request, Steps, drive
from runtime.flow.summary import Stats
from runtime.grid import MISSING, TimelineError, VideoGrid
from runtime.judging.decision import MAX_CLOCK_ERROR_S, Decision, WindowFacts, WindowScores
from runtime.judging.offset import clarity, lag_curve
from runtime.judging.speaker import Candidate, find_speaker
from runtime.judging.verdict import Label, Reason, Verdict
from runtime.logits import fake_minus_real
from runtime.media import Frame, Samples
from runtime.sound.tokens import AudioTokenizer
from runtime.sound.track import SoundTrack
from runtime.spec import FaceSpec, StreamSpec

MAX_WAIT_S = 10.0  # for the other stream

Float32 = NDArray[np.float32]
_T = TypeVar("_T")
_Asking = Generator[Request, AnyReply, _T]  # work that may need the model on its way to a _T
LazyFrame = Frame | Callable[[], Frame]
OnPicture = Callable[[float, Frame, Sequence[Face]], None]  # stream seconds, pixels, its faces
OnScores = Callable[["WindowRecord"], None]
OnJudged = Callable[["WindowTimes"], None]


class Tracker(Protocol):
    """What a session needs of :class:`runtime.faces.tracker.FaceTracker`."""

    def update(self, frame: Frame, token: int) -> Sequence[Face]: ...

    def reset(self) -> None: ...


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


@dataclass(frozen=True)
class WindowTimes:
    """Where the time went from the arrival of a window's last evidence to its verdicts.

    Only work of the push that completed the window counts: what was done before it came held
    nobody up.  Several windows may become ready in one push; the later ones waited for the earlier.
    """

    t_end_s: float  # of the window, in stream seconds
    judged_s: float  # when its verdicts were made, by time.perf_counter
    waited_s: float | None  # from arrival to the push; None: nothing came, it ended or was overdue
    block_s: float  # length of what came: 0 for a picture; sound arrives with its first sample
    worked_s: float  # from the push to the verdicts
    seconds: dict[str, float]  # of that by stage, as in Stats; the rest belongs to none of them


@dataclass(frozen=True)
class Load:
    """How much a session does: all of it, or less where the machine cannot keep up."""

    hops: int = 1  # a window is judged every so many hops
    pictures: int = 1  # a picture is searched every so many tokens; the others repeat it

    def __post_init__(self) -> None:
        if self.hops < 1 or self.pictures < 1:
            raise ValueError(f"a load is counted from 1, not {self.hops} and {self.pictures}")


FULL_LOAD = Load()


def score_window(backend: Backend, frames: NDArray[np.uint8], audio: Float32) -> FusionOutput:
    """One whole window without any cache: encode every frame, then fuse.

    frames: uint8 crops [T, H, W, 3]; audio: tokens [T, 104].  Returns a batch of one.
    """
    return backend.fuse(backend.encode(frames)[None], audio[None])


class Session:
    """One stream's state.  Push in stream order per modality, then :meth:`finish` once.

    Parameters
    ----------
    backend : a loaded pair; its spec says everything that must be as in training
    source : what verdicts call the stream
    stream : window, hop and rules; default: the model's own
    has_video, has_audio : whether to wait for that modality
    tracker : default: what the model's face stage says, :class:`runtime.faces.tracker.FaceTracker`
        or :class:`runtime.faces.follower.FaceFollower`
    on_picture : called with each picture that was searched for faces, before it is judged
    on_scores : called with what each verdict was made of, in their order
    on_judged : called with where the time went, for each window

    Raises :class:`runtime.errors.DependencyError` where dlib or kaldi-native-fbank is missing.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        source: str,
        stream: StreamSpec | None = None,
        has_video: bool = True,
        has_audio: bool = True,
        tracker: Tracker | FaceFollower | None = None,
        on_picture: OnPicture | None = None,
        on_scores: OnScores | None = None,
        on_judged: OnJudged | None = None,
    ) -> None:
        spec = backend.spec
        self.stats = Stats()
        self.load = FULL_LOAD  # may be changed between two pushes
        self._backend, self._spec, self._source = backend, spec, source
        self._stream = stream or spec.stream
        self._has_video, self._has_audio = has_video, has_audio
        self._hz = spec.audio.token_hz
        self._max_wait = round(MAX_WAIT_S * self._hz)  # tokens
        self._decision = Decision(spec, self._stream)
        self._grid: VideoGrid[LazyFrame] = VideoGrid(self._hz, self._stream.max_gap_tokens)
        self._tracker = tracker if tracker is not None else _stage(spec.face)
        self._on_picture, self._on_scores, self._on_judged = on_picture, on_scores, on_judged
        self._frame_shape: tuple[int, ...] = ()
        self._faces: dict[int, FaceRing] = {}
        self._pending: list[tuple[int, int, Frame]] = []  # (face, token, crop) not yet encoded
        self._gaps: set[int] = set()  # tokens without a picture
        self._first_picture: int | None = None  # token
        self._last_search: int | None = None  # token of the last picture searched for faces
        self._video_tokens = 0
        self._sound = SoundTrack(AudioTokenizer(spec.audio))
        self._next_end = self._stream.window_tokens
        self._judged_end = 0  # the first token that no window judged so far has held
        self._finished = False
        self._arrival = self._begun = time.perf_counter()
        self._block_s: float | None = None  # length of the chunk in hand; None: there is none
        self._seconds_before: dict[str, float] = {}

    def push_video(self, t_s: float, frame: LazyFrame) -> list[Verdict]:
        """A picture, uint8 [H, W, 3] RGB, or a function that makes it (called only if used)."""
        return drive(self.video_steps(t_s, frame), self._backend)

    def push_audio(self, t_s: float, samples: Samples) -> list[Verdict]:
        """Mono samples float [n] in [-1, 1], the first of them at ``t_s``."""
        return drive(self.audio_steps(t_s, samples), self._backend)

    def advance(
        self, *, video_s: float | None = None, audio_s: float | None = None
    ) -> list[Verdict]:
        """Nothing of that modality from before the given stream time will come any more.

        For a live source that is silent, lost or broken: its windows abstain when their time has
        come instead of all at once when it is back.
        """
        return drive(self.advance_steps(video_s=video_s, audio_s=audio_s), self._backend)

    def finish(self) -> list[Verdict]:
        """The stream has ended: judge the windows that were still waiting."""
        return drive(self.finish_steps(), self._backend)

    def video_steps(self, t_s: float, frame: LazyFrame, arrival: float | None = None) -> Steps:
        """As :meth:`push_video`, step by step; run it to its end before the next one is begun.

        ``arrival`` is when the picture came, by :func:`time.perf_counter`; default: now.
        """
        self._begin(arrival, 0.0)
        try:
            items = self._grid.push(t_s, frame)
        except TimelineError:
            self.stats.dropped += 1
            return []
        verdicts: list[Verdict] = []
        for item in items:
            yield from self._take_picture(item.token, item.frame, item.fresh)
            verdicts += yield from self._ready_verdicts()
        return verdicts

    def audio_steps(self, t_s: float, samples: Samples, arrival: float | None = None) -> Steps:
        """As :meth:`push_audio`, step by step."""
        self._begin(arrival, samples.size / self._spec.audio.sample_rate_hz)
        verdicts: list[Verdict] = []
        for piece in self._sound.on_clock(t_s, samples):
            before = self._sound.tokens
            with self._timed("audio"):
                self._sound.take(piece)
            self.stats.late += max(0, min(self._sound.tokens, self._judged_end) - before)
            verdicts += yield from self._ready_verdicts()
        return verdicts

    def advance_steps(self, *, video_s: float | None = None, audio_s: float | None = None) -> Steps:
        """As :meth:`advance`, step by step."""
        self._begin(None, None)
        verdicts: list[Verdict] = []
        if video_s is not None:
            for item in self._grid.advance(video_s):
                yield from self._take_picture(item.token, item.frame, item.fresh)
                verdicts += yield from self._ready_verdicts()
        if audio_s is not None:
            for piece in self._sound.skip_to(audio_s):
                with self._timed("audio"):
                    self._sound.take(piece)
                verdicts += yield from self._ready_verdicts()
        return verdicts

    def finish_steps(self) -> Steps:
        """As :meth:`finish`, step by step."""
        self._begin(None, None)
        self._finished = True
        with self._timed("audio"):
            self._sound.finish()
        for item in self._grid.finish():
            yield from self._take_picture(item.token, item.frame, item.fresh)
        total = self._total_tokens()
        for item in self._grid.finish(total / self._hz):
            yield from self._take_picture(item.token, item.frame, item.fresh)
        yield from self._encode_pending()
        verdicts: list[Verdict] = []
        if total < self._stream.window_tokens:
            verdicts.append(self._too_short(total))
        while self._next_end <= total:
            verdicts += yield from self._judge_next()
        self._count()
        return verdicts

    def _begin(self, arrival: float | None, block_s: float | None) -> None:
        if self._finished:
            raise RuntimeError("this session has finished; make a new one for another stream")
        self._begun = time.perf_counter()
        self._arrival = self._begun if arrival is None else arrival
        self._block_s = block_s
        if self._on_judged is not None:
            self._seconds_before = dict(self.stats.seconds)

    def _take_picture(self, token: int, frame: LazyFrame | None, fresh: bool) -> _Asking[None]:
        """One token of the picture's grid."""
        self.stats.tokens += 1
        self._video_tokens = token + 1
        if token < self._judged_end:
            self.stats.late += 1
        if frame is None:
            self.stats.gaps += 1
            self._gaps.add(token)
        else:
            if self._first_picture is None:
                self._first_picture = token
            if fresh and token >= self._oldest:
                yield from self._search_or_shed(token, frame)
        if (token + 1 - self._stream.window_tokens) % self._stream.hop_tokens == 0:
            yield from self._encode_pending()

    def _search_or_shed(self, token: int, frame: LazyFrame) -> _Asking[None]:
        last = self._last_search
        if last is not None and token - last < self.load.pictures:
            self.stats.shed_pictures += 1
        else:
            if last is not None and token - last > REACQUIRE_TOKENS:
                self._tracker.reset()  # nothing was seen for longer than a lost face keeps its id
            self._last_search = token
            yield from self._find_faces(token, frame)

    def _find_faces(self, token: int, frame: LazyFrame) -> _Asking[None]:
        with self._timed("decode"):
            pixels = frame() if callable(frame) else frame  # [H, W, 3]
        with self._timed("face"):
            if pixels.shape != self._frame_shape:  # another size: what was followed is elsewhere
                if self._frame_shape:
                    self._tracker.reset()
                self._frame_shape = pixels.shape
        found: Sequence[Face]
        if isinstance(self._tracker, FaceFollower):
            found = yield from self._follow_faces(self._tracker, pixels, token)
        else:
            with self._timed("face"):
                found = self._tracker.update(pixels, token)
        for face in found:
            ring = self._faces.setdefault(face.track_id, FaceRing(self._stream))
            ring.see(token, face)
            if not isinstance(face, FollowedFace):
                self._pending.append((face.track_id, token, face.crop))
        if self._on_picture is not None:
            self._on_picture(token / self._hz, pixels, found)

    def _follow_faces(
        self, follower: FaceFollower, pixels: Frame, token: int
    ) -> _Asking[Sequence[Face]]:
        """The encoder says where the faces are, picture by picture."""
        steps = follower.update_steps(pixels, token)
        said: FaceOutput | None = None
        while True:
            with self._timed("face"):
                try:
                    crops = next(steps) if said is None else steps.send(said)
                except StopIteration as end:
                    return list(end.value)
            reply = yield Follow(crops)
            assert isinstance(reply.output, FaceOutput)
            said = reply.output
            self.stats.seconds["encode"] += reply.seconds
            self.stats.crops += len(crops)

    def _encode_pending(self) -> _Asking[None]:
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        reply = yield Encode(np.stack([crop for _, _, crop in pending]))
        assert isinstance(reply.output, np.ndarray)
        self.stats.seconds["encode"] += reply.seconds
        for (face_id, token, _), feature in zip(pending, reply.output, strict=True):
            self._faces[face_id].features[token] = feature  # [C]
        self.stats.crops += len(pending)

    @property
    def _oldest(self) -> int:
        """The oldest token that a later window can need."""
        return self._next_end - self._stream.window_tokens - self._stream.max_gap_tokens

    def _ready_verdicts(self) -> Steps:
        verdicts: list[Verdict] = []
        while self._is_ready(self._next_end):
            verdicts += yield from self._judge_next()
        return verdicts

    def _is_ready(self, end: int) -> bool:
        known = self._stream.av_offset_tokens
        shift = max([0, known, *(r.offset.compensation_tokens for r in self._faces.values())])
        picture = not self._has_video or self._video_tokens >= end
        sound = not self._has_audio or self._sound.tokens >= end + shift
        overdue = max(self._video_tokens, self._sound.tokens) >= end + self._max_wait
        return (picture and sound) or overdue

    def _total_tokens(self) -> int:
        """Length of the stream; a tail of one modality shorter than a hop is not judged."""
        shorter, longer = sorted((self._video_tokens, self._sound.tokens))
        if 0 < longer - shorter <= self._stream.hop_tokens and shorter:
            return min(longer, shorter + self._stream.max_gap_tokens)
        return longer

    def _judge_next(self) -> Steps:
        """Verdicts of the window that ends at ``_next_end``, one a face, and moves on."""
        end = self._next_end
        start = end - self._stream.window_tokens
        rows = [self._row(start, end, face_id) for face_id in self._faces_in(start, end)]
        rows = rows or [self._row(start, end, None)]
        yield from self._fuse([row for row in rows if row.scorable])
        with self._timed("decide"):
            self._attribute_sound(rows)
            judged = [(row, self._decision.judge(row.facts, row.scores)) for row in rows]
        if self._on_scores is not None:
            for row in rows:
                self._on_scores(row.record())
        verdicts = [
            self._verdict(
                start, end, row.facts.face_id, j.label, j.reason, p_fake=j.p_fake,
                p_fake_video=j.p_fake_video, p_fake_audio=j.p_fake_audio, sync=j.sync,
                av_offset_ms=row.offset_ms if j.sync is not None else None,
            )
            for row, j in judged
        ]  # fmt: skip
        if self._on_judged is not None:
            self._on_judged(self._window_times(end))
        self._judged_end = end
        self._next_end += self._stream.hop_tokens * self.load.hops
        self.stats.shed_windows += self.load.hops - 1
        self._forget()
        return verdicts

    def _window_times(self, end: int) -> WindowTimes:
        now, before = time.perf_counter(), self._seconds_before
        return WindowTimes(
            t_end_s=end / self._hz,
            judged_s=now,
            waited_s=None if self._block_s is None else self._begun - self._arrival,
            block_s=self._block_s or 0.0,
            worked_s=now - self._begun,
            seconds={stage: s - before[stage] for stage, s in self.stats.seconds.items()},
        )

    def _faces_in(self, start: int, end: int) -> list[int]:
        """Faces seen in at least half of the window, by track id."""
        seen = ((i, ring.sources(start, end)) for i, ring in sorted(self._faces.items()))
        return [i for i, tokens in seen if 2 * np.count_nonzero(tokens != MISSING) >= len(tokens)]

    def _row(self, start: int, end: int, face_id: int | None) -> _Row:
        ring = self._faces.get(face_id) if face_id is not None else None
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
            picture_gap=self._has_video and self._picture_gap(start, end),
            sound_throughout=sound,
            speech_fraction=float(np.mean(levels >= self._stream.speech_level_dbfs))
            if sound else 0.0,
            clock_error_s=self._sound.clock_error_s(start + shift, end + shift),
        )  # fmt: skip
        row = _Row(facts, ring, shift, levels_dbfs=levels)
        if ring is not None and seen is not None and self._decision.picture_reason(facts) is None:
            row.visual = ring.window(seen)  # [T, C]
            row.motion = ring.motion(seen)  # [T]
        if self._decision.sound_reason(facts) is None:
            row.audio = self._sound.window(heard)  # [T, 104]
        return row

    def _picture_gap(self, start: int, end: int) -> bool:
        """Is a picture missing, apart from a short wait for the very first?"""
        first = self._first_picture
        if first is None or first - start > self._stream.max_gap_tokens:
            return True
        return end > self._video_tokens or any(max(first, start) <= g < end for g in self._gaps)

    def _fuse(self, rows: list[_Row]) -> _Asking[None]:
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
        self.stats.seconds["fuse"] += reply.seconds
        with self._timed("decide"):
            for i, row in enumerate(rows):
                self._read_scores(row, FusionOutput(*(field[i] for field in reply.output)))

    def _read_scores(self, row: _Row, out: FusionOutput) -> None:
        """``out``: one row of the batch."""
        clear: float | None = None
        reliable = row.facts.clock_error_s <= MAX_CLOCK_ERROR_S
        if row.visual is not None and row.audio is not None and row.ring and reliable:
            row.curve = lag_curve(out.align_v, out.align_a, self._stream.max_lag_tokens)
            offset = row.ring.offset.update(row.curve)
            row.offset_ms = None if offset is None else offset * 1000 / self._hz
            clear = clarity(out.align_v, out.align_a)
        row.scores = WindowScores(
            logit_av=fake_minus_real(out.logits_av),
            logit_v=fake_minus_real(out.logits_v),
            logit_a=fake_minus_real(out.logits_a),
            sync=float(np.mean(out.sync, dtype=np.float64)),
            speaker=True,
            clarity=clear,
        )

    def _attribute_sound(self, rows: list[_Row]) -> None:
        """Of several faces that can be scored with the sound, only the speaker's has it."""
        matched = [row for row in rows if row.candidate is not None]
        if len(matched) < 2:
            return
        faces = [row.candidate for row in matched if row.candidate is not None]
        speaker = find_speaker(faces, self._stream.max_transport_tokens)
        for i, row in enumerate(matched):
            if row.scores and i != speaker:
                row.scores = replace(row.scores, speaker=False)

    def _too_short(self, total: int) -> Verdict:
        return self._verdict(0, total, None, Label.ABSTAIN, Reason.TOO_SHORT)

    def _verdict(
        self,
        start: int,
        end: int,
        face_id: int | None,
        label: Label,
        reason: Reason | None,
        *,
        p_fake: float | None = None,
        p_fake_video: float | None = None,
        p_fake_audio: float | None = None,
        sync: float | None = None,
        av_offset_ms: float | None = None,
    ) -> Verdict:
        self.stats.verdicts += 1
        self.stats.labels[label.value] += 1
        if reason is not None:
            self.stats.reasons[reason.value] = self.stats.reasons.get(reason.value, 0) + 1
        return Verdict(
            source=self._source,
            model_id=self._spec.model_id,
            t_start_s=start / self._hz,
            t_end_s=end / self._hz,
            face_id=face_id,
            p_fake=p_fake,
            p_fake_video=p_fake_video,
            p_fake_audio=p_fake_audio,
            sync=sync,
            av_offset_ms=av_offset_ms,
            label=label,
            reason=reason,
            latency_ms=(time.perf_counter() - self._arrival) * 1000,
        )

    def _forget(self) -> None:
        """Drop what no later window can need."""
        oldest = self._oldest
        self._pending = [p for p in self._pending if p[1] >= oldest]
        self._gaps = {g for g in self._gaps if g >= oldest}
        self._sound.forget_before(oldest - self._stream.max_transport_tokens)
        for face_id, ring in list(self._faces.items()):
            ring.forget_before(oldest)
            if not ring.widths_px:
                del self._faces[face_id]
                self._decision.forget(face_id)
        self._count()

    def _count(self) -> None:
        self.stats.skipped = self._grid.skipped
        self.stats.clock_corrections = self._sound.corrections

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stats.seconds[stage] += time.perf_counter() - start


def _stage(spec: FaceSpec) -> Tracker | FaceFollower:
    """What finds and follows the faces of a model."""
    return FaceTracker(spec) if spec.stage == "dlib" else FaceFollower(spec, shared_search())


@dataclass
class _Row:
    """One face of a window on its way through the fusion graph."""

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
