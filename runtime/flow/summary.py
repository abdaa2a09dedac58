# SPDX-License-Identifier: Apache-2.0
"""What is left to say of a stream: its counters, what was lost and why, how late verdicts came.

What was lost or repaired on the way to the model is one account for all who tell of it: the
terminal, the page, the report and Prometheus show the same causes with the same counts.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from runtime.judging.decision import Judgement
from runtime.judging.verdict import Label, Verdict
from runtime.media import (
    ClockReport,
    MediaInfo,
)

CAUSES: dict[str, str] = {  # what each count is of
    "damaged": "damaged packets or timestamps",
    "decode_error": "packets that do not decode",
    "damaged_picture": "pictures left out because they build on what was lost",
    "timestamp": "timestamps that jump or could not be used",
    "gap": "moments (40 ms) without a picture",
    "late": "moments (40 ms) that came too late",
    "sound_clock": "corrections of the sound's clock",
    "stall": "times nothing came for too long",
    "queue_full": "pictures dropped because the model was busy",
    "sound_queue_full": "pieces of sound dropped because the model was busy",
    "behind": "times only key pictures were decoded, to catch up",
    "overflow": "pieces of sound lost before the microphone was read",
    "shed_windows": "windows left out to keep up",
    "shed_pictures": "pictures left out to keep up",
}
_DAMAGE = ("decode_error", "timestamp")  # causes of live sources that their ``damaged`` sums up

MIN_SLOPE_S = 30.0  # a slope over less says nothing
KEPT_LAGS = 10_000  # for the percentiles: about half an hour's


@dataclass
class Stats:
    """Counters of one session; ``seconds`` is processor time on the wall clock, by stage."""

    tokens: int = 0  # of the picture's grid
    gaps: int = 0  # of these without a picture
    skipped: int = 0  # pictures that no token shows: a frame rate above 25
    dropped: int = 0  # pictures whose timestamp could not be used
    late: int = 0  # picture and sound tokens that came after their window
    clock_corrections: int = 0  # of the sound: gaps filled and overlaps cut
    shed_windows: int = 0  # not judged, to save time
    shed_pictures: int = 0  # not searched for faces, to save time
    crops: int = 0  # faces encoded
    verdicts: int = 0
    labels: dict[str, int] = field(default_factory=lambda: dict.fromkeys(map(str, Label), 0))
    reasons: dict[str, int] = field(default_factory=dict)  # of the abstentions
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            ("decode", "face", "audio", "encode", "fuse", "decide"), 0.0
        )
    )

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """What is done inside counts among ``seconds``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def count(self, judged: Judgement) -> None:
        self.verdicts += 1
        self.labels[judged.label.value] += 1
        if judged.reason is not None:
            self.reasons[judged.reason.value] = self.reasons.get(judged.reason.value, 0) + 1

    @property
    def coverage(self) -> float:
        """Share of verdicts that are no abstention; 0 without any."""
        judged = self.verdicts - self.labels[Label.ABSTAIN.value]
        return judged / self.verdicts if self.verdicts else 0.0


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
class LagReport:
    """How far verdicts were behind the world: from the capture of their last evidence."""

    median_ms: float  # of the last half an hour
    p99_ms: float
    slope_ms_per_min: float | None  # over the whole run; None when it was too short


class LagMeter:
    """Lag over a run of any length in constant memory."""

    def __init__(self) -> None:
        self._lags_ms = np.zeros(KEPT_LAGS)  # a ring
        self._added = 0
        self._start_s: float | None = None
        self._sums = np.zeros(5)  # n, x, y, xx, xy with x in minutes and y in ms
        self._last_s = 0.0

    def add(self, now_s: float, captured_s: float) -> None:
        """Both in monotonic seconds."""
        if self._start_s is None:
            self._start_s = now_s
        self._last_s = now_s
        lag_ms, minutes = (now_s - captured_s) * 1e3, (now_s - self._start_s) / 60
        self._lags_ms[self._added % KEPT_LAGS] = lag_ms
        self._added += 1
        self._sums += (1, minutes, lag_ms, minutes * minutes, minutes * lag_ms)

    def report(self) -> LagReport | None:
        if self._start_s is None:
            return None
        n, x, y, xx, xy = self._sums.tolist()
        spread = xx - x * x / n
        long_enough = self._last_s - self._start_s >= MIN_SLOPE_S and spread > 0
        median_ms, p99_ms = np.percentile(self._lags_ms[: self._added], (50, 99)).tolist()
        return LagReport(median_ms, p99_ms, (xy - x * y / n) / spread if long_enough else None)


@dataclass(frozen=True)
class FakeSpan:
    """Overlapping windows of one face that were judged fake, together; stream seconds."""

    face_id: int | None
    start_s: float
    end_s: float


@dataclass
class Summary:
    """What is left to say when a source has ended."""

    source: str
    model_id: str
    provider: str
    info: MediaInfo
    stats: Stats
    spans: list[FakeSpan] = field(default_factory=list)
    highest_p_fake: float | None = None  # of the windows with a verdict
    damaged: int = 0
    warnings: list[str] = field(default_factory=list)
    media_s: float = 0.0  # stream seconds read
    wall_s: float = 0.0
    ended: str = ""  # why a live source ended: the name of a signal, or what the source says
    drops: dict[str, int] = field(default_factory=dict)  # of a live source, by cause
    lag: LagReport | None = None  # of a live source
    shed_s: float = 0.0  # seconds in which less than everything was done, to keep up
    clock: ClockReport = field(default_factory=ClockReport)  # of a live source
    offsets_ms: dict[float, int] = field(default_factory=dict)  # measured A/V offset -> windows

    @property
    def av_offset_ms(self) -> float | None:
        """Median of the measured A/V offset, apart from any verdict; above 0: the sound is late."""
        left = sum(self.offsets_ms.values()) / 2
        for offset_ms, windows in sorted(self.offsets_ms.items()):
            left -= windows
            if left <= 0:
                return offset_ms
        return None

    def add(self, verdict: Verdict) -> None:
        if verdict.av_offset_ms is not None:
            windows = self.offsets_ms.get(verdict.av_offset_ms, 0)
            self.offsets_ms[verdict.av_offset_ms] = windows + 1
        if verdict.label is Label.ABSTAIN or verdict.p_fake is None:
            return
        self.highest_p_fake = max(self.highest_p_fake or 0.0, verdict.p_fake)
        if verdict.label is not Label.FAKE:
            return
        for i, span in enumerate(self.spans):
            if span.face_id == verdict.face_id and verdict.t_start_s <= span.end_s:
                self.spans[i] = FakeSpan(span.face_id, span.start_s, verdict.t_end_s)
                return
        self.spans.append(FakeSpan(verdict.face_id, verdict.t_start_s, verdict.t_end_s))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = asdict(self)
        plain["offsets_ms"] = {f"{ms:g}": n for ms, n in sorted(self.offsets_ms.items())}
        return {**plain, "coverage": self.stats.coverage, "av_offset_ms": self.av_offset_ms}


def losses(stats: Stats, damaged: int, drops: Mapping[str, int]) -> dict[str, int]:
    """By cause how often, 0 included: from a session, and from its source.

    damaged : of the source, in all
    drops : of a live source, by cause; {} of a file
    """
    own = dict(drops)  # a thread may go on counting
    counted = Counter(
        {
            "damaged": max(0, damaged - sum(own.get(cause, 0) for cause in _DAMAGE)),
            "timestamp": stats.dropped,
            "gap": stats.gaps,
            "late": stats.late,
            "sound_clock": stats.clock_corrections,
            "shed_windows": stats.shed_windows,
            "shed_pictures": stats.shed_pictures,
        }
    )
    counted.update(own)
    return dict(counted)


def in_words(counted: Mapping[str, int]) -> dict[str, int]:
    """The same without zeros, by the words of :data:`CAUSES`."""
    return {CAUSES.get(cause, cause): n for cause, n in counted.items() if n}
