# SPDX-License-Identifier: Apache-2.0
"""From the model's numbers to a verdict: calibration, smoothing, hysteresis, abstention.

The rules, in words.

* A pair of logits becomes a probability of fake by the model's own calibration:
  ``sigmoid((logit[1] - logit[0]) / temperature + bias)``.
* ``p_fake`` is smoothed over a face's windows: its log-odds are a running mean in which the newest
  window has the weight ``smoothing``.  Windows that abstain for a reason other than ``uncertain``
  do not enter it, and after a whole window's length without a scored window it starts anew.
  ``p_fake_video`` and ``p_fake_audio`` are those of the window alone.
* The label is fake from ``threshold + hysteresis``, real up to ``threshold - hysteresis``; in
  between a face keeps its label, and one that has none abstains (``uncertain``).  Near 0 and 1 the
  band shrinks to half of what is left, so that both labels can always be reached.
* A window abstains for the first of these reasons that holds:

  ===================== ======================================================================
  too_short             the stream ended before one window was full
  no_face               no face, or the face was not in view throughout the window
  face_too_small        its median width is below ``min_face_px``
  face_turned           its median turn to a side is above :data:`MAX_TURN_DEG`
  too_many_drops        pictures are missing for longer than ``max_gap_tokens``
  no_audio              no sound, or not throughout the window
  no_speech             fewer than ``min_speech_fraction`` of the tokens are loud enough
  av_clock_unreliable   the sound's timestamps jump by more than 200 ms in all
  out_of_domain         the encoders cannot read this face and this sound: the running mean of
                        their :func:`runtime.judging.offset.clarity` is below ``min_clarity``
  no_active_speaker     of several faces this one is not the one that speaks, or none is known
                        to be: :mod:`runtime.judging.speaker`
  uncertain             see above
  ===================== ======================================================================

* Scores without a basis are None.  Without a usable face only ``p_fake_audio`` is left, without
  usable sound only ``p_fake_video``; when the clock is unreliable both, but not the joint ones.
* A/V offset: :class:`OffsetTracker`.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime.judging.verdict import Label, Reason
from runtime.logits import calibrated, probability, sigmoid
from runtime.spec import PairSpec, StreamSpec

MAX_TURN_DEG = 35.0  # by runtime.faces.align.turn_deg: the far corner of the mouth begins to hide
MAX_CLOCK_ERROR_S = 0.2  # corrections of the sound's clock that one window tolerates


@dataclass(frozen=True)
class WindowFacts:
    """What is known of a face's window before the model has seen it."""

    end_token: int
    face_id: int | None
    face_throughout: bool
    face_width_px: float  # median over the window; NaN without a face
    picture_gap: bool  # pictures, not only the face, are missing
    sound_throughout: bool
    speech_fraction: float
    clock_error_s: float  # sum of the corrections of the sound's clock in the window
    face_turn_deg: float = 0.0  # median over the window; NaN without a face


@dataclass(frozen=True)
class WindowScores:
    """What the model said of it; the logits are fake minus real."""

    logit_av: float
    logit_v: float
    logit_a: float
    sync: float
    speaker: bool  # the sound can be this face's
    clarity: float | None  # of the alignment; None where it was not measured


@dataclass(frozen=True)
class Judgement:
    p_fake: float | None
    p_fake_video: float | None
    p_fake_audio: float | None
    sync: float | None
    label: Label
    reason: Reason | None


@dataclass
class _FaceState:
    log_odds: float
    end_token: int  # of the last window that was scored
    label: Label | None = None


class Decision:
    """The rules above for one stream; holds the running state of each face."""

    def __init__(self, spec: PairSpec, stream: StreamSpec | None = None) -> None:
        self._stream = stream or spec.stream
        self._min_face_px = spec.face.min_face_px
        self._calibration = spec.calibration
        self._faces: dict[int, _FaceState] = {}
        self._clarity: dict[int, float] = {}  # running mean over a face's windows
        threshold, margin = self._calibration.threshold, self._stream.hysteresis
        self._fake_from = min(threshold + margin, (1 + threshold) / 2)
        self._real_to = max(threshold - margin, threshold / 2)

    def picture_reason(self, facts: WindowFacts) -> Reason | None:
        """Why the picture cannot be scored; a face that is merely small can."""
        if facts.picture_gap:
            return Reason.TOO_MANY_DROPS
        return None if facts.face_throughout else Reason.NO_FACE

    def sound_reason(self, facts: WindowFacts) -> Reason | None:
        """Why the sound cannot be scored."""
        if not facts.sound_throughout:
            return Reason.NO_AUDIO
        if facts.speech_fraction < self._stream.min_speech_fraction:
            return Reason.NO_SPEECH
        return None

    def judge(self, facts: WindowFacts, scores: WindowScores | None) -> Judgement:
        """``scores`` is None when neither picture nor sound can be scored."""
        picture, sound = self.picture_reason(facts), self.sound_reason(facts)
        clock = facts.clock_error_s > MAX_CLOCK_ERROR_S
        joint = scores is not None and picture is None and sound is None and not clock
        in_domain = self._in_domain(facts, scores)
        reason = self._reason(facts, picture, sound, clock, scores, in_domain)
        p_fake, label = None, None
        if joint and scores is not None:
            logit = calibrated(
                scores.logit_av, self._calibration.temperature_av, self._calibration.bias_av
            )
            if reason is None:
                p_fake, label = self._decide(facts, logit)
            else:
                p_fake = float(sigmoid(logit))
        if label is None and reason is None:
            reason = Reason.UNCERTAIN
        return Judgement(
            p_fake=p_fake,
            p_fake_video=self._video(scores) if scores and picture is None else None,
            p_fake_audio=self._audio(scores) if scores and sound is None else None,
            sync=scores.sync if scores and joint else None,
            label=label or Label.ABSTAIN,
            reason=reason,
        )

    def forget(self, face_id: int) -> None:
        """A face that is gone; should it come back under its id, it starts anew."""
        self._faces.pop(face_id, None)
        self._clarity.pop(face_id, None)

    def _in_domain(self, facts: WindowFacts, scores: WindowScores | None) -> bool:
        """Updates the face's running clarity, where this window has one, and compares it."""
        if facts.face_id is None or scores is None or scores.clarity is None:
            return True
        before = self._clarity.get(facts.face_id, scores.clarity)
        clarity = before + self._stream.smoothing * (scores.clarity - before)
        self._clarity[facts.face_id] = clarity
        return clarity >= self._calibration.min_clarity

    def _reason(
        self,
        facts: WindowFacts,
        picture: Reason | None,
        sound: Reason | None,
        clock: bool,
        scores: WindowScores | None,
        in_domain: bool,
    ) -> Reason | None:
        if picture is Reason.NO_FACE:
            return picture
        if facts.face_width_px < self._min_face_px:  # False for NaN
            return Reason.FACE_TOO_SMALL
        if facts.face_turn_deg > MAX_TURN_DEG:  # False for NaN
            return Reason.FACE_TURNED
        if picture or sound:
            return picture or sound
        if clock:
            return Reason.AV_CLOCK_UNRELIABLE
        if not in_domain:
            return Reason.OUT_OF_DOMAIN
        if scores is not None and not scores.speaker:
            return Reason.NO_ACTIVE_SPEAKER
        return None

    def _decide(self, facts: WindowFacts, logit: float) -> tuple[float, Label | None]:
        """Updates the face's running log-odds and label."""
        assert facts.face_id is not None
        state = self._faces.get(facts.face_id)
        if state is None or facts.end_token - state.end_token >= self._stream.window_tokens:
            state = _FaceState(logit, facts.end_token)
        else:
            state.log_odds += self._stream.smoothing * (logit - state.log_odds)
            state.end_token = facts.end_token
        self._faces[facts.face_id] = state
        p_fake = float(sigmoid(state.log_odds))
        if p_fake >= self._fake_from:
            state.label = Label.FAKE
        elif p_fake <= self._real_to:
            state.label = Label.REAL
        return p_fake, state.label

    def _video(self, scores: WindowScores) -> float:
        c = self._calibration
        return float(probability(scores.logit_v, c.temperature_v, c.bias_v))

    def _audio(self, scores: WindowScores) -> float:
        c = self._calibration
        return float(probability(scores.logit_a, c.temperature_a, c.bias_a))
