# SPDX-License-Identifier: Apache-2.0
"""Push pictures and sound, get verdicts: one stream, synchronous, deterministic, no threads.

Pictures go to the 25 Hz grid; each one that the grid uses is searched for faces once, each crop is
encoded once, and the features wait in a ring per face.  Sound becomes tokens on the same grid.
As soon as a window is full (``window_tokens`` long, every ``hop_tokens``) the features of every
face in it and the sound go through the fusion graph together and :mod:`runtime.decision` judges.

Crops are encoded in batches that end where windows end, never by when chunks happen to arrive, so
the verdicts do not depend on how picture and sound are interleaved.  Nothing older than a window
is kept.  When one of the two streams falls :data:`MAX_WAIT_S` behind, windows no longer wait for
it; what arrives after its window was judged is counted as late.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.alignment import clarity, lag_curve
from runtime.audio import AudioTokenizer
from runtime.backends.base import Backend, FusionOutput
from runtime.decision import (
    MAX_CLOCK_ERROR_S,
    Decision,
    OffsetTracker,
    WindowFacts,
    WindowScores,
    fake_minus_real,
)
from runtime.faces import Face, FaceTracker
from runtime.media import Frame, Samples
from runtime.spec import StreamSpec
from runtime.timeline import TimelineError, VideoGrid
from runtime.verdict import Label, Reason, Verdict

MAX_WAIT_S = 10.0  # for the other stream
CLOCK_TOLERANCE_S = 0.02  # rounding of timestamps in containers; beyond it the clock is corrected
MISSING = -1  # in an array of token numbers

Float32 = NDArray[np.float32]
Tokens = NDArray[np.int64]
LazyFrame = Frame | Callable[[], Frame]
OnPicture = Callable[[float, Frame, Sequence[Face]], None]  # stream seconds, pixels, its faces
OnScores = Callable[["WindowRecord"], None]


class Tracker(Protocol):
    """What a session needs of :class:`runtime.faces.FaceTracker`."""

    def update(self, frame: Frame, token: int) -> Sequence[Face]: ...

    def reset(self) -> None: ...


@dataclass(frozen=True)
class WindowRecord:
    """What one verdict was made of, for :mod:`runtime.calibrate`: more than the verdict says.

    Replayed in order through :class:`runtime.decision.Decision`, records give the verdicts again,
    under the same calibration or another.
    """

    facts: WindowFacts
    scores: WindowScores | None
    compensation_tokens: int  # by which the sound was shifted before the model saw it
    curve: NDArray[np.float64] | None  # lag curve [2 L + 1] under that shift
    visual: Float32 | None  # [T, C] and
    audio: Float32 | None  # [T, 104]: the model's input; None: could not be scored


@dataclass
class Stats:
    """Counters of one session; ``seconds`` is processor time on the wall clock, by stage."""

    tokens: int = 0  # of the picture's grid
    gaps: int = 0  # of these without a picture
    skipped: int = 0  # pictures that no token shows: a frame rate above 25
    dropped: int = 0  # pictures whose timestamp could not be used
    late: int = 0  # picture and sound tokens that came after their window
    clock_corrections: int = 0  # of the sound: gaps filled and overlaps cut
    crops: int = 0  # faces encoded
    verdicts: int = 0
    labels: dict[str, int] = field(default_factory=lambda: dict.fromkeys(map(str, Label), 0))
    reasons: dict[str, int] = field(default_factory=dict)  # of the abstentions
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            ("decode", "face", "audio", "encode", "fuse", "decide"), 0.0
        )
    )

    @property
    def coverage(self) -> float:
        """Share of verdicts that are no abstention; 0 without any."""
        judged = self.verdicts - self.labels[Label.ABSTAIN.value]
        return judged / self.verdicts if self.verdicts else 0.0


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
    tracker : default: :class:`runtime.faces.FaceTracker`
    on_picture : called with each picture that was searched for faces, before it is judged
    on_scores : called with what each verdict was made of, in their order

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
        tracker: Tracker | None = None,
        on_picture: OnPicture | None = None,
        on_scores: OnScores | None = None,
    ) -> None:
        spec = backend.spec
        self.stats = Stats()
        self._backend, self._spec, self._source = backend, spec, source
        self._stream = stream or spec.stream
        self._has_video, self._has_audio = has_video, has_audio
        self._hz = spec.audio.token_hz
        self._max_wait = round(MAX_WAIT_S * self._hz)  # tokens
        self._decision = Decision(spec, self._stream)
        self._grid: VideoGrid[LazyFrame] = VideoGrid(self._hz, self._stream.max_gap_tokens)
        self._tracker: Tracker = tracker if tracker is not None else FaceTracker(spec.face)
        self._on_picture, self._on_scores = on_picture, on_scores
        self._frame_shape: tuple[int, ...] = ()
        self._faces: dict[int, _FaceRing] = {}
        self._pending: list[tuple[int, int, Frame]] = []  # (face, token, crop) not yet encoded
        self._gaps: set[int] = set()  # tokens without a picture
        self._first_picture: int | None = None  # token
        self._video_tokens = 0
        self._sound = _SoundTrack(AudioTokenizer(spec.audio))
        self._next_end = self._stream.window_tokens
        self._finished = False
        self._arrival = time.perf_counter()

    def push_video(self, t_s: float, frame: LazyFrame) -> list[Verdict]:
        """A picture, uint8 [H, W, 3] RGB, or a function that makes it (called only if used)."""
        self._arrive()
        try:
            items = self._grid.push(t_s, frame)
        except TimelineError:
            self.stats.dropped += 1
            return []
        verdicts: list[Verdict] = []
        for item in items:
            self._take_picture(item.token, item.frame, item.fresh)
            verdicts += self._ready_verdicts()
        return verdicts

    def push_audio(self, t_s: float, samples: Samples) -> list[Verdict]:
        """Mono samples float [n] in [-1, 1], the first of them at ``t_s``."""
        self._arrive()
        verdicts: list[Verdict] = []
        for piece in self._sound.on_clock(t_s, samples):
            before = self._sound.tokens
            with self._timed("audio"):
                self._sound.take(piece)
            self.stats.late += max(0, min(self._sound.tokens, self._judged_end) - before)
            verdicts += self._ready_verdicts()
        return verdicts

    def finish(self) -> list[Verdict]:
        """The stream has ended: judge the windows that were still waiting."""
        self._arrive()
        self._finished = True
        with self._timed("audio"):
            self._sound.finish()
        for item in self._grid.finish():
            self._take_picture(item.token, item.frame, item.fresh)
        total = self._total_tokens()
        for item in self._grid.finish(total / self._hz):
            self._take_picture(item.token, item.frame, item.fresh)
        self._encode_pending()
        verdicts: list[Verdict] = []
        if total < self._stream.window_tokens:
            verdicts.append(self._too_short(total))
        while self._next_end <= total:
            verdicts += self._judge_next()
        self._count()
        return verdicts

    def _arrive(self) -> None:
        if self._finished:
            raise RuntimeError("this session has finished; make a new one for another stream")
        self._arrival = time.perf_counter()

    def _take_picture(self, token: int, frame: LazyFrame | None, fresh: bool) -> None:
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
                self._find_faces(token, frame)
        if (token + 1 - self._stream.window_tokens) % self._stream.hop_tokens == 0:
            self._encode_pending()

    def _find_faces(self, token: int, frame: LazyFrame) -> None:
        with self._timed("decode"):
            pixels = frame() if callable(frame) else frame  # [H, W, 3]
        with self._timed("face"):
            if pixels.shape != self._frame_shape:  # another size: what was followed is elsewhere
                if self._frame_shape:
                    self._tracker.reset()
                self._frame_shape = pixels.shape
            found = self._tracker.update(pixels, token)
        for face in found:
            ring = self._faces.setdefault(face.track_id, _FaceRing(self._stream))
            ring.widths_px[token] = face.width_px
            self._pending.append((face.track_id, token, face.crop))
        if self._on_picture is not None:
            self._on_picture(token / self._hz, pixels, found)

    def _encode_pending(self) -> None:
        if not self._pending:
            return
        with self._timed("encode"):
            features = self._backend.encode(np.stack([crop for _, _, crop in self._pending]))
        for (face_id, token, _), feature in zip(self._pending, features, strict=True):
            self._faces[face_id].features[token] = feature  # [C]
        self.stats.crops += len(self._pending)
        self._pending.clear()

    @property
    def _judged_end(self) -> int:
        """The first token that no window judged so far has held."""
        judged = self._next_end > self._stream.window_tokens
        return self._next_end - self._stream.hop_tokens if judged else 0

    @property
    def _oldest(self) -> int:
        """The oldest token that a later window can need."""
        return self._next_end - self._stream.window_tokens - self._stream.max_gap_tokens

    def _ready_verdicts(self) -> list[Verdict]:
        verdicts: list[Verdict] = []
        while self._is_ready(self._next_end):
            verdicts += self._judge_next()
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

    def _judge_next(self) -> list[Verdict]:
        """Verdicts of the window that ends at ``_next_end``, one a face, and moves on."""
        end = self._next_end
        start = end - self._stream.window_tokens
        rows = [self._row(start, end, face_id) for face_id in self._faces_in(start, end)]
        rows = rows or [self._row(start, end, None)]
        self._fuse([row for row in rows if row.scorable])
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
        self._next_end += self._stream.hop_tokens
        self._forget()
        return verdicts

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
            picture_gap=self._has_video and self._picture_gap(start, end),
            sound_throughout=sound,
            speech_fraction=float(np.mean(levels >= self._stream.speech_level_dbfs))
            if sound else 0.0,
            clock_error_s=self._sound.clock_error_s(start + shift, end + shift),
        )  # fmt: skip
        row = _Row(facts, ring, shift)
        if ring is not None and seen is not None and self._decision.picture_reason(facts) is None:
            row.visual = ring.window(seen)  # [T, C]
        if self._decision.sound_reason(facts) is None:
            row.audio = self._sound.window(heard)  # [T, 104]
        return row

    def _picture_gap(self, start: int, end: int) -> bool:
        """Is a picture missing, apart from a short wait for the very first?"""
        first = self._first_picture
        if first is None or first - start > self._stream.max_gap_tokens:
            return True
        return end > self._video_tokens or any(max(first, start) <= g < end for g in self._gaps)

    def _fuse(self, rows: list[_Row]) -> None:
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
        with self._timed("fuse"):
            out = self._backend.fuse(visual, audio)
        with self._timed("decide"):
            for i, row in enumerate(rows):
                self._read_scores(row, FusionOutput(*(field[i] for field in out)))

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
        """Of several faces only the one that matches the sound best, and matches it, speaks."""
        matched = [r for r in rows if r.visual is not None and r.audio is not None and r.ring]
        if len(matched) < 2:
            return
        best = max(matched, key=lambda r: r.ring.offset.confidence if r.ring else 0.0)
        for row in matched:
            if row.scores and not (row is best and row.ring and row.ring.offset.confident):
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


class _FaceRing:
    """The features of one face, by token; tokens between pictures have none."""

    def __init__(self, stream: StreamSpec) -> None:
        self._max_gap = stream.max_gap_tokens
        self.features: dict[int, Float32] = {}  # token -> [C]
        self.widths_px: dict[int, float] = {}  # token -> width; also of crops not yet encoded
        self.offset = OffsetTracker(stream)

    def sources(self, start: int, end: int) -> Tokens:
        """For each token of a window the token whose feature it shows, or MISSING.  [T]

        A gap of up to ``max_gap_tokens`` repeats the feature before it; at the stream's first
        sight of the face, which may come as many tokens late, the feature after it.
        """
        have = sorted(t for t in self.features if start - self._max_gap <= t < end)
        return nearest_before(np.arange(start, end), np.array(have, np.int64), self._max_gap)

    def window(self, sources: Tokens) -> Float32:
        return np.stack([self.features[t] for t in sources.tolist()])  # [T, C]

    def width_px(self, start: int, end: int) -> float:
        widths = [w for t, w in self.widths_px.items() if start - self._max_gap <= t < end]
        return float(np.median(widths)) if widths else float("nan")

    def forget_before(self, token: int) -> None:
        self.features = {t: f for t, f in self.features.items() if t >= token}
        self.widths_px = {t: w for t, w in self.widths_px.items() if t >= token}


class _SoundTrack:
    """Sound on the stream's clock: gaps become zeros, overlaps are cut, both are remembered."""

    def __init__(self, tokenizer: AudioTokenizer) -> None:
        self._tokenizer = tokenizer
        self._spec = tokenizer.spec
        self._samples = 0  # position of the next sample
        self._first: int | None = None  # first token with sound
        self._base = 0  # number of the first token kept
        self._kept = np.zeros((0, self._spec.token_dim), np.float32)  # [n, 104]
        self._levels = np.zeros(0, np.float32)  # [n]
        self._clock_errors: list[tuple[int, float]] = []  # (token, seconds)
        self.corrections = 0

    @property
    def tokens(self) -> int:
        """How many tokens there have been."""
        return self._base + len(self._kept)

    def on_clock(self, t_s: float, samples: Samples) -> Iterator[Samples]:
        """The samples [n] with what is needed before them, in pieces of at most a second."""
        rate = self._spec.sample_rate_hz
        error = round(t_s * rate) - self._samples  # > 0: a gap, < 0: an overlap
        if self._first is None:
            self._first = -(-max(0, error) // self._spec.token_samples)
        elif abs(error) <= CLOCK_TOLERANCE_S * rate:
            error = 0
        else:
            error = max(error, -len(samples))  # no more than is cut here
            token = self._samples // self._spec.token_samples
            self._clock_errors.append((token, abs(error) / rate))
            self.corrections += 1
        samples = samples[max(0, -error) :]
        for at in range(0, error, rate):
            yield np.zeros(min(rate, error - at), np.float32)
        if len(samples):
            yield samples

    def take(self, samples: Samples) -> None:
        self._samples += len(samples)
        self._append(*self._tokenizer.push(samples))

    def finish(self) -> None:
        self._append(*self._tokenizer.finish())

    def _append(self, tokens: Float32, levels: Float32) -> None:
        if len(tokens):
            self._kept = np.concatenate([self._kept, tokens])
            self._levels = np.concatenate([self._levels, levels])

    def sources(self, start: int, end: int, max_gap: int) -> Tokens:
        """For each token of a window the token that stands for it, or MISSING.  [T]

        Before the first and after the last token up to ``max_gap`` tokens repeat it.
        """
        wanted = np.arange(start, end)
        first = max(self._base, self._first or 0)
        if first >= self.tokens:
            return np.full(len(wanted), MISSING, np.int64)
        near = np.clip(wanted, first, self.tokens - 1)
        return np.where(np.abs(near - wanted) <= max_gap, near, MISSING)

    def window(self, sources: Tokens) -> Float32:
        window: Float32 = self._kept[sources - self._base]  # [T, 104]
        return window

    def levels_dbfs(self, sources: Tokens) -> Float32:
        levels: Float32 = self._levels[sources - self._base]  # [T]
        return levels

    def clock_error_s(self, start: int, end: int) -> float:
        return sum(error for token, error in self._clock_errors if start <= token < end)

    def forget_before(self, token: int) -> None:
        drop = min(token - self._base, len(self._kept))
        if drop > 0:
            self._kept, self._levels = self._kept[drop:], self._levels[drop:]
            self._base += drop
        self._clock_errors = [e for e in self._clock_errors if e[0] >= token]


@dataclass
class _Row:
    """One face of a window on its way through the fusion graph."""

    facts: WindowFacts
    ring: _FaceRing | None
    shift_tokens: int  # of the sound, to compensate its offset
    visual: Float32 | None = None  # [T, C]; None: cannot be scored
    audio: Float32 | None = None  # [T, 104]
    scores: WindowScores | None = None
    curve: NDArray[np.float64] | None = None  # [2 L + 1]
    offset_ms: float | None = None

    @property
    def scorable(self) -> bool:
        return self.visual is not None or self.audio is not None

    def record(self) -> WindowRecord:
        return WindowRecord(
            self.facts, self.scores, self.shift_tokens, self.curve, self.visual, self.audio
        )


def nearest_before(wanted: Tokens, have: Tokens, max_gap: int) -> Tokens:
    """For each wanted token [T] the last one at hand, at most ``max_gap`` older, or MISSING.

    Tokens before the first one at hand take that one, when it is at most ``max_gap`` later.
    ``have`` [n] rises.
    """
    if not len(have):
        return np.full(len(wanted), MISSING, np.int64)
    index = np.searchsorted(have, wanted, side="right") - 1
    source = have[np.maximum(index, 0)]
    return np.where(np.abs(wanted - source) <= max_gap, source, MISSING)
