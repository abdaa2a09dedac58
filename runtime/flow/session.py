# SPDX-License-Identifier: Apache-2.0
"""Push pictures and sound, get verdicts: one stream, synchronous, deterministic, no threads.

Pictures go to the 25 Hz grid and become features of each face (:mod:`runtime.flow.pictures`), sound
becomes tokens on the same grid (:mod:`runtime.sound.track`).  As soon as a window is full
(``window_tokens`` long, every ``hop_tokens``) the features of every face in it and the sound go
through the fusion graph together (:mod:`runtime.flow.windows`), and :mod:`runtime.judging.decision`
judges.

The verdicts do not depend on how picture and sound are interleaved.  Nothing older than a window is
kept.  When one of the two streams falls :data:`MAX_WAIT_S` behind, windows no longer wait for it;
what arrives after its window was judged is counted as late.

Each ``push_`` has a twin that returns :data:`runtime.flow.model_calls.Steps`: the same work, which
stops wherever it needs the model.  :mod:`runtime.flow.driver` steps many sessions and batches their
calls. A session may be told to do less (:class:`runtime.flow.pictures.Load`); what it then leaves
out is counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from runtime.backends.base import Backend
from runtime.faces.follower import FaceFollower
from runtime.faces.stage import Tracker
from runtime.flow.model_calls import Steps, drive
from runtime.flow.pictures import Asking, LazyFrame, Load, OnPicture, Pictures
from runtime.flow.summary import Stats, WindowTimes
from runtime.flow.windows import WindowRecord, Windows
from runtime.grid import GridItem, TimelineError
from runtime.judging.decision import Decision, Judgement
from runtime.judging.verdict import Label, Reason, Verdict
from runtime.media import Samples
from runtime.sound.tokens import AudioTokenizer
from runtime.sound.track import SoundTrack
from runtime.spec import StreamSpec

MAX_WAIT_S = 10.0  # for the other stream
TOO_SHORT = Judgement(None, None, None, None, Label.ABSTAIN, Reason.TOO_SHORT)

OnScores = Callable[[WindowRecord], None]
OnJudged = Callable[[WindowTimes], None]


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
        self._backend, self._spec, self._source = backend, spec, source
        self._stream = stream or spec.stream
        self._has_video, self._has_audio = has_video, has_audio
        self._hz = spec.audio.token_hz
        self._max_wait = round(MAX_WAIT_S * self._hz)  # tokens
        self._decision = Decision(spec, self._stream)
        self._sound = SoundTrack(AudioTokenizer(spec.audio))
        self._pictures = Pictures(
            spec.face, self._stream, self._hz, self.stats, tracker, on_picture
        )
        self._windows = Windows(
            spec, self._stream, self._pictures, self._sound, self._decision, self.stats,
            has_video=has_video,
        )  # fmt: skip
        self._on_scores, self._on_judged = on_scores, on_judged
        self._next_end = self._stream.window_tokens
        self._judged_end = 0  # the first token that no window judged so far has held
        self._finished = False
        self._arrival = self._begun = time.perf_counter()
        self._block_s: float | None = None  # length of the chunk in hand; None: there is none
        self._seconds_before: dict[str, float] = {}

    @property
    def load(self) -> Load:
        """How much is done; may be changed between two pushes."""
        return self._pictures.load

    @load.setter
    def load(self, load: Load) -> None:
        self._pictures.load = load

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
            items = self._pictures.grid.push(t_s, frame)
        except TimelineError:
            self.stats.dropped += 1
            return []
        return (yield from self._take_pictures(items))

    def audio_steps(self, t_s: float, samples: Samples, arrival: float | None = None) -> Steps:
        """As :meth:`push_audio`, step by step."""
        self._begin(arrival, samples.size / self._spec.audio.sample_rate_hz)
        verdicts: list[Verdict] = []
        for piece in self._sound.on_clock(t_s, samples):
            before = self._sound.tokens
            with self.stats.timed("audio"):
                self._sound.take(piece)
            self.stats.late += max(0, min(self._sound.tokens, self._judged_end) - before)
            verdicts += yield from self._ready_verdicts()
        return verdicts

    def advance_steps(self, *, video_s: float | None = None, audio_s: float | None = None) -> Steps:
        """As :meth:`advance`, step by step."""
        self._begin(None, None)
        verdicts: list[Verdict] = []
        if video_s is not None:
            verdicts += yield from self._take_pictures(self._pictures.grid.advance(video_s))
        if audio_s is not None:
            for piece in self._sound.skip_to(audio_s):
                with self.stats.timed("audio"):
                    self._sound.take(piece)
                verdicts += yield from self._ready_verdicts()
        return verdicts

    def finish_steps(self) -> Steps:
        """As :meth:`finish`, step by step."""
        self._begin(None, None)
        self._finished = True
        with self.stats.timed("audio"):
            self._sound.finish()
        for item in self._pictures.grid.finish():
            yield from self._take_picture(item)
        total = self._total_tokens()
        for item in self._pictures.grid.finish(total / self._hz):
            yield from self._take_picture(item)
        yield from self._pictures.encode_pending()
        verdicts: list[Verdict] = []
        if total < self._stream.window_tokens:
            verdicts.append(self._verdict(0, total, None, TOO_SHORT, None))
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

    def _take_pictures(self, items: Iterable[GridItem[LazyFrame]]) -> Steps:
        verdicts: list[Verdict] = []
        for item in items:
            yield from self._take_picture(item)
            verdicts += yield from self._ready_verdicts()
        return verdicts

    def _take_picture(self, item: GridItem[LazyFrame]) -> Asking[None]:
        if item.token < self._judged_end:
            self.stats.late += 1
        yield from self._pictures.take(item.token, item.frame, item.fresh, oldest=self._oldest)

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
        shift = max(
            [0, known, *(r.offset.compensation_tokens for r in self._pictures.rings.values())]
        )
        picture = not self._has_video or self._pictures.tokens >= end
        sound = not self._has_audio or self._sound.tokens >= end + shift
        overdue = max(self._pictures.tokens, self._sound.tokens) >= end + self._max_wait
        return (picture and sound) or overdue

    def _total_tokens(self) -> int:
        """Length of the stream; a tail of one modality shorter than a hop is not judged."""
        shorter, longer = sorted((self._pictures.tokens, self._sound.tokens))
        if 0 < longer - shorter <= self._stream.hop_tokens and shorter:
            return min(longer, shorter + self._stream.max_gap_tokens)
        return longer

    def _judge_next(self) -> Steps:
        """Verdicts of the window that ends at ``_next_end``, one a face, and moves on."""
        end = self._next_end
        start = end - self._stream.window_tokens
        rows = yield from self._windows.scored(start, end)
        with self.stats.timed("decide"):
            judged = [(row, self._decision.judge(row.facts, row.scores)) for row in rows]
        if self._on_scores is not None:
            for row in rows:
                self._on_scores(row.record())
        verdicts = [
            self._verdict(start, end, row.facts.face_id, judgement, row.offset_ms)
            for row, judgement in judged
        ]
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

    def _verdict(
        self, start: int, end: int, face_id: int | None, judged: Judgement, offset_ms: float | None
    ) -> Verdict:
        self.stats.count(judged)
        return Verdict(
            source=self._source,
            model_id=self._spec.model_id,
            t_start_s=start / self._hz,
            t_end_s=end / self._hz,
            face_id=face_id,
            av_offset_ms=offset_ms if judged.sync is not None else None,
            latency_ms=(time.perf_counter() - self._arrival) * 1000,
            **vars(judged),
        )

    def _forget(self) -> None:
        """Drop what no later window can need."""
        oldest = self._oldest
        self._sound.forget_before(oldest - self._stream.max_transport_tokens)
        for face_id in self._pictures.forget_before(oldest):
            self._decision.forget(face_id)
        self._count()

    def _count(self) -> None:
        self.stats.skipped = self._pictures.grid.skipped
        self.stats.clock_corrections = self._sound.corrections
