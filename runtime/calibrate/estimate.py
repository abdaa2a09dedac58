# SPDX-License-Identifier: Apache-2.0
"""From the windows of genuine footage to the numbers of a site calibration.

Three assumptions, each said where it is used: the footage is genuine; it is like what will be
judged later (same camera, microphone, room and kind of person); blocks of it are exchangeable with
blocks to come.

Windows overlap and p_fake is smoothed over them, so windows are far from independent.  The unit is
therefore the *block*: :data:`BLOCK_WINDOWS` windows' length of one recording, and of it the windows
that lie wholly inside.  Windows across two blocks are left out, so no picture and no sound counts
twice.  A recording shorter than a block is one block.  What is slower than a block (light, posture,
the person) stays common to all blocks of a recording: the more recordings, the better.

**Offset.**  The median of the windows' lag peaks that are as clear as the model asks for, in whole
tokens.  It is found where :data:`MIN_AGREEING` of all windows, and :data:`MIN_AGREEMENT` of those
with a clear peak, have one within a token of the median.  In genuine footage lips and voice match:
a model that finds no common offset there cannot read it.

**Threshold.**  :mod:`runtime.calibrate.conformal` on the blocks' highest p_fake, smoothed as in a
stream. The threshold is such that with its hysteresis a face is called fake only above the
quantile: in a new block p_fake gets there with a probability of at most the stated rate.  The
trainer's floor of one half holds here, too: a lower probability is no finding.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import NamedTuple

import numpy as np

from runtime.backends.base import Backend
from runtime.calibrate import conformal
from runtime.calibrate.site import Offset, SiteCalibration, Threshold
from runtime.errors import UserError
from runtime.flow.windows import WindowRecord
from runtime.judging.decision import Decision, Judgement
from runtime.judging.offset import clarity, lag_peak
from runtime.judging.verdict import Label, Reason
from runtime.logits import fake_minus_real
from runtime.spec import PairSpec, StreamSpec

BLOCK_WINDOWS = 2
MIN_AGREEING = 0.5  # of all windows
MIN_AGREEMENT = 0.75  # of those with a clear peak
MIN_THRESHOLD = 0.5
DIGITS = 4  # of thresholds, rounded up
FALSE_ALARM_RATE = 0.05  # of genuine blocks, unless somebody chooses another

BETWEEN_BLOCKS = "between_blocks"
UNFINISHED_BLOCK = "unfinished_block"
BEFORE_OFFSET = "before_offset_was_known"

REMEDIES = {
    Reason.TOO_SHORT: "record longer stretches",
    Reason.NO_FACE: "let a face look into the camera",
    Reason.FACE_TOO_SMALL: "come closer or choose a higher resolution",
    Reason.FACE_TURNED: "look towards the camera",
    Reason.TOO_MANY_DROPS: "raise the camera's frame rate or lower the machine's load",
    Reason.NO_AUDIO: "check that the sound is recorded throughout",
    Reason.NO_SPEECH: "let the person speak, and raise the microphone's level",
    Reason.AV_CLOCK_UNRELIABLE: "check the sound device, its clock jumps",
    Reason.NO_ACTIVE_SPEAKER: "have one person at a time in the picture",
    Reason.OUT_OF_DOMAIN: "the model cannot read this footage: train it on footage of this camera "
    "(python -m trainer.fit --genuine)",
}


class CalibrationError(UserError):
    """Footage that cannot calibrate; the message says what to do."""


class Recording:
    """The records of one stream in their order, and how long it was.

    An hour has 18,000 windows, so the model's input is kept only of those, a few a block, that
    :func:`_shifted` can use.
    """

    def __init__(self, stream: StreamSpec) -> None:
        self.records: list[WindowRecord] = []
        self.seconds = 0.0
        self._stream = stream
        self._with_input: set[tuple[int | None, int, int]] = set()  # (face, block, part of it)

    def add(self, record: WindowRecord) -> None:
        """For :class:`runtime.flow.session.Session`'s ``on_scores``."""
        window = self._stream.window_tokens
        block, inside = divmod(record.facts.end_token - window, BLOCK_WINDOWS * window)
        place = (record.facts.face_id, block, inside // _shift_tokens(self._stream))
        if record.curve is None or inside > window or place in self._with_input:
            record = replace(record, visual=None, audio=None)
        else:
            self._with_input.add(place)
        self.records.append(record)


class _Block(NamedTuple):
    """Judged windows of one block."""

    windows: list[tuple[WindowRecord, Judgement]]

    @property
    def score(self) -> float:
        return max(j.p_fake or 0.0 for _, j in self.windows)

    @property
    def alarms(self) -> bool:
        return any(j.label is Label.FAKE for _, j in self.windows)


class Tally(NamedTuple):
    """What a spec makes of genuine footage."""

    windows: int  # of all faces
    judged: int  # not abstained, or only for the threshold's sake
    blocks: int  # with a judged window
    alarms: int  # blocks in which a face was called fake
    shifted: int  # windows that were given later sound, one a block
    shifted_found: int  # of these called fake


def tally(
    footage: Sequence[Recording], backend: Backend, spec: PairSpec, stream: StreamSpec
) -> Tally:
    """``spec``: its calibration counts; the footage was recorded with ``backend``."""
    blocks, left_out = _blocks(footage, spec, stream)
    shifted = list(_shifted(blocks, backend, stream))
    used = sum(len(block.windows) for block in blocks)
    return Tally(
        windows=used + sum(left_out.values()),
        judged=used + left_out[BETWEEN_BLOCKS] + left_out[UNFINISHED_BLOCK],
        blocks=len(blocks),
        alarms=sum(block.alarms for block in blocks),
        shifted=len(shifted),
        shifted_found=sum(_called_fake(record, spec, stream) for record in shifted),
    )


def estimate(
    footage: Sequence[Recording],
    backend: Backend,
    stream: StreamSpec,
    rate: float,
    offset: Offset,
    source_kind: str,
) -> SiteCalibration:
    """The threshold at ``rate``; :func:`estimate_offset` gave the offset; ``stream``: as recorded.

    Raises :class:`CalibrationError` where the footage is too little for the rate.
    """
    footage = [_after_offset(recording, stream, offset) for recording in footage]
    spec = backend.spec
    block_tokens = BLOCK_WINDOWS * stream.window_tokens
    blocks, left_out = _blocks(footage, spec, stream)
    token_s = 1 / spec.audio.token_hz
    if conformal.rank(len(blocks), rate) is None:
        raise CalibrationError(
            _too_little(footage, len(blocks), left_out, rate, offset, block_tokens * token_s)
        )
    return SiteCalibration(
        model_id=spec.model_id,
        pair_id=spec.pair_id,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        source_kind=source_kind,
        recordings=len(footage),
        duration_s=round(sum(r.seconds for r in footage), 2),
        window_tokens=stream.window_tokens,
        hop_tokens=stream.hop_tokens,
        block_tokens=block_tokens,
        blocks=len(blocks),
        windows=sum(left_out.values()) + sum(len(b.windows) for b in blocks),
        used_windows=sum(len(b.windows) for b in blocks),
        left_out=dict(sorted(left_out.items())),
        offset=offset,
        threshold=_threshold(blocks, footage, backend, stream, rate),
    )


def estimate_offset(footage: Sequence[Recording], spec: PairSpec, stream: StreamSpec) -> Offset:
    """The constant A/V offset.

    Raises :class:`CalibrationError` for one beyond the range of ordinary transport.
    """
    measured, clear = 0, []
    for recording in footage:
        for records in _by_window(recording.records):
            peaks = [
                (lag_peak(r.curve), r.compensation_tokens)
                for r in records
                if r.curve is not None and r.facts.face_width_px >= spec.face.min_face_px
            ]
            if not peaks:
                continue
            measured += 1
            peak, shift = max(peaks, key=lambda p: p[0].confidence)  # of several: who speaks
            if peak.confidence >= stream.min_lag_confidence:
                clear.append(peak.lag_tokens + shift)
    clear.sort()
    if not clear:
        return Offset(0, 0.0, False, 0, 0, 0, measured)
    median = clear[len(clear) // 2]
    agreeing = sum(abs(lag - median) <= 1 for lag in clear)
    found = agreeing >= max(MIN_AGREEING * measured, MIN_AGREEMENT * len(clear))
    ms = 1000 / spec.audio.token_hz
    if found and abs(median) > stream.max_transport_tokens:
        late = "late" if median > 0 else "early"
        raise CalibrationError(
            f"the sound comes {abs(median) * ms:.0f} ms {late} in {len(clear)} of {measured} "
            f"windows: beyond the +-{stream.max_transport_tokens * ms:.0f} ms of ordinary "
            "transport nothing is compensated, it would hide a forgery; put the delay right where "
            "it arises (buffers of the capture device, picture and sound of different devices), "
            "then calibrate again"
        )
    low, high = np.percentile(clear, [5, 95])
    return Offset(
        tokens=median if found else 0,
        ms=median * ms if found else 0.0,
        found=found,
        spread_low_tokens=math.floor(low),
        spread_high_tokens=math.ceil(high),
        clear_windows=len(clear),
        measured_windows=measured,
    )


def _after_offset(recording: Recording, stream: StreamSpec, offset: Offset) -> Recording:
    """Without the windows that the model saw under another offset, before it was compensated.

    A stream at this site will not have them.  What is compensated later for some reason of the
    footage's own stays.
    """
    reached: set[int | None] = set()
    kept = Recording(stream)
    kept.seconds = recording.seconds
    for record in recording.records:
        face = record.facts.face_id
        if record.compensation_tokens == offset.tokens:
            reached.add(face)
        if face not in reached and record.curve is not None:
            record = replace(record, scores=None)
        kept.records.append(record)
    return kept


def _judge(
    footage: Sequence[Recording], spec: PairSpec, stream: StreamSpec
) -> list[list[Judgement]]:
    """Every window's judgement under ``spec``."""
    judgements = []
    for recording in footage:
        decision = Decision(spec, stream)
        judgements.append([decision.judge(r.facts, r.scores) for r in recording.records])
    return judgements


def _has_verdict(judgement: Judgement) -> bool:
    """Also one at the threshold, which another threshold would decide."""
    return judgement.p_fake is not None and judgement.reason in (None, Reason.UNCERTAIN)


def _blocks(
    footage: Sequence[Recording], spec: PairSpec, stream: StreamSpec
) -> tuple[list[_Block], Counter[str]]:
    """The blocks that have a verdict, in order, and the windows left out by reason."""
    blocks: list[_Block] = []
    left_out: Counter[str] = Counter()
    length = BLOCK_WINDOWS * stream.window_tokens
    for recording, judgements in zip(footage, _judge(footage, spec, stream), strict=True):
        found: dict[int, _Block] = {}
        total = max((r.facts.end_token for r in recording.records), default=0)
        for record, judgement in zip(recording.records, judgements, strict=True):
            if not _has_verdict(judgement):
                # without a score and yet without a reason: see _after_offset
                unknown = judgement.reason is Reason.UNCERTAIN
                left_out[BEFORE_OFFSET if unknown else str(judgement.reason)] += 1
                continue
            block = (record.facts.end_token - stream.window_tokens) // length
            end = (block + 1) * length
            if record.facts.end_token > end:
                left_out[BETWEEN_BLOCKS] += 1
            elif end > total and block > 0:
                left_out[UNFINISHED_BLOCK] += 1
            else:
                found.setdefault(block, _Block([])).windows.append((record, judgement))
        blocks += found.values()
    return blocks, left_out


def _threshold(
    blocks: Sequence[_Block],
    footage: Sequence[Recording],
    backend: Backend,
    stream: StreamSpec,
    rate: float,
) -> Threshold:
    spec = backend.spec
    rank = conformal.rank(len(blocks), rate)
    quantile = conformal.threshold([block.score for block in blocks], rate)
    assert rank is not None
    assert quantile is not None
    value = max(MIN_THRESHOLD, _threshold_below(quantile, stream.hysteresis))
    interval = conformal.rate_interval(len(blocks), rank)
    before = tally(footage, backend, spec, stream)
    after = tally(footage, backend, _with(spec, threshold=value), stream)
    return Threshold(
        threshold=value,
        replaces=spec.calibration.threshold,
        false_alarm_rate=rate,
        quantile=quantile,
        rank=rank,
        rate_low=interval.low,
        rate_high=interval.high,
        alarms_before=before.alarms,
        alarms_after=after.alarms,
        shifted=after.shifted,
        shifted_before=before.shifted_found,
        shifted_after=after.shifted_found,
    )


def _threshold_below(quantile: float, hysteresis: float) -> float:
    """The threshold under which a face is called fake just above ``quantile``, and not at it.

    :class:`runtime.judging.decision.Decision` says fake from the threshold plus the hysteresis, or
    half way to 1 where that is less.
    """
    level = min(1.0, _up(quantile + 10**-DIGITS / 2))
    return _up(max(level - hysteresis, 2 * level - 1))


def _shift_tokens(stream: StreamSpec) -> int:
    """Far enough that nobody takes it for transport, near enough for the shortest clip."""
    return 2 * stream.forged_shift_tokens


def _shifted(
    blocks: Sequence[_Block], backend: Backend, stream: StreamSpec
) -> Iterator[WindowRecord]:
    """One window a block, with sound that belongs some time later: the crudest of forgeries.

    A model that works at a site finds it, so it says what a threshold leaves of the model.
    """
    for block in blocks:
        with_input = [r for r, _ in block.windows if r.visual is not None and r.audio is not None]
        for first in with_input[:1]:
            least = first.facts.end_token + _shift_tokens(stream)
            for later in with_input:
                same = later.facts.face_id == first.facts.face_id
                if same and later.facts.end_token >= least:
                    yield _scored_with(first, later, backend)
                    break


def _scored_with(seen: WindowRecord, heard: WindowRecord, backend: Backend) -> WindowRecord:
    """The picture of one window with the sound of another."""
    assert seen.visual is not None
    assert heard.audio is not None
    assert seen.scores is not None
    out = backend.fuse(seen.visual[None], heard.audio[None])
    scores = replace(
        seen.scores,
        logit_av=fake_minus_real(out.logits_av[0]),
        clarity=clarity(out.align_v[0], out.align_a[0]),
    )
    return replace(seen, scores=scores)


def _called_fake(record: WindowRecord, spec: PairSpec, stream: StreamSpec) -> bool:
    """As the first window of a stream: without a past to smooth over."""
    return Decision(spec, stream).judge(record.facts, record.scores).label is Label.FAKE


def _too_little(
    footage: Sequence[Recording],
    blocks: int,
    left_out: Counter[str],
    rate: float,
    offset: Offset,
    block_s: float,
) -> str:
    needed = conformal.scores_needed(rate)
    seconds = sum(r.seconds for r in footage)
    said = (
        f"too little footage for a false-alarm rate of {100 * rate:g} %: it "
        f"needs {needed} blocks of {block_s:g} s with a verdict, {seconds:.0f} s of footage gave "
        f"{blocks}"
    )
    if blocks:
        more = (needed - blocks) * seconds / blocks
        said += f"; record {duration(more)} more of the same, {duration(seconds + more)} in all"
    else:
        said += f"; {duration(needed * block_s)} would be enough if all of it could be judged"
    reasons = [(n, Reason(name)) for name, n in left_out.items() if name in REMEDY_NAMES]
    if reasons:
        n, reason = max(reasons, key=lambda item: item[0])
        said += f"; {n} windows abstained ({reason}): {REMEDIES[reason]}"
    if not offset.found:
        said += (
            f"; lips and voice matched at no common offset ({offset.clear_windows} of "
            f"{offset.measured_windows} windows had a clear peak)"
        )
    return said


REMEDY_NAMES = frozenset(str(reason) for reason in REMEDIES)


def duration(seconds: float) -> str:
    """In words, rounded up to ten seconds: ``2 min 10 s``."""
    minutes, rest = divmod(math.ceil(seconds / 10) * 10, 60)
    return " ".join(f"{n} {unit}" for n, unit in ((minutes, "min"), (rest, "s")) if n) or "0 s"


def _by_window(records: Sequence[WindowRecord]) -> list[list[WindowRecord]]:
    """All faces of one window together."""
    windows: dict[int, list[WindowRecord]] = {}
    for record in records:
        windows.setdefault(record.facts.end_token, []).append(record)
    return list(windows.values())


def _with(spec: PairSpec, **changes: float) -> PairSpec:
    return replace(spec, calibration=replace(spec.calibration, **changes))


def _up(value: float) -> float:
    return math.ceil(value * 10**DIGITS) / 10**DIGITS
