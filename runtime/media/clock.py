# SPDX-License-Identifier: Apache-2.0
"""The clocks of live media: timestamps of a sender, and of a sound card, against this machine.

Nothing here reads a clock: whoever calls says what time it is (monotonic seconds).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from runtime.media import ClockReport, Samples

MAX_LEAP_S = 2.0  # a timestamp may run ahead of the time that has passed by so much
PACED = 1.25  # a camera gives no more media than this times what has passed, once it has begun
PACE_S = 1.0  # what has to have passed before that says anything
RECORDED = 1.5  # and a recording more than this times what its transfer took
MAX_AHEAD_S = 30.0  # no camera keeps more of the past for whoever connects
SMALL_STEP_BACK_S = 0.5  # items that are late by less are dropped, by more: another clock
MAX_SKEW_S = 10.0  # between the pictures and the sound of one sender
FIT_SECONDS = 120  # over which a sound card's drift is fitted
MIN_FIT_SECONDS = 5  # before it is corrected
MIN_REPORT_SECONDS = 20  # before it is reported
MAX_SOUND_JUMP_S = 0.1  # beyond it sound was lost; below, its times are merely noisy


@dataclass
class _Track:
    offset_s: float | None = None  # stream time minus timestamp; None: since the last connect
    last_s: float = -math.inf  # stream time given out last
    arrived_s: float = -math.inf  # when


class LiveClock:
    """Timestamps of a live sender's pictures and sound -> one stream clock that never runs back.

    Stream second 0 is the arrival of the first item.  Pictures and sound share one offset between
    timestamps and stream time, so that they stay together as the sender put them.  The offset is
    found anew when a connection is made (:meth:`connect`: the stream goes on where the wall clock
    is) and when timestamps jump back, wrap around or leap ahead of the time that has passed: the
    stream then goes on after as much time as passed between arrivals.  Such a change counts as one
    of :attr:`jumps`; items without a usable time are dropped and count as :attr:`unusable`.
    """

    def __init__(self) -> None:
        self.jumps = 0
        self.unusable = 0
        self._tracks = {"video": _Track(), "audio": _Track()}
        self._epoch_s: float | None = None  # the monotonic time of stream second 0
        self._lead_s = 0.0  # how far stream time has been ahead of the time since epoch

    def connect(self) -> None:
        """A connection begins; its timestamps may count from anywhere."""
        for track in self._tracks.values():
            track.offset_s = None
        self._lead_s = 0.0  # another sender's buffer: what came soonest of it is not known yet

    def captured_s(self, t_s: float) -> float:
        """When that stream time was, in monotonic seconds.

        A sender's buffer may give a second of the past at once: the item that came soonest after
        its time is taken to have come without any delay.
        """
        return (self._epoch_s or 0.0) + t_s - self._lead_s

    def place(self, kind: str, pts_s: float | None, step_s: float, now_s: float) -> float | None:
        """The stream time of an item that lasts ``step_s`` and arrived ``now_s``, or None: drop it.

        kind : ``video`` or ``audio``; pts_s : the sender's timestamp, None where it has none
        """
        if self._epoch_s is None:
            self._epoch_s = now_s
        track = self._tracks[kind]
        t_s = self._time(track, pts_s, step_s, now_s)
        if t_s is not None and t_s < 0:
            return None  # sound from before the first picture: nobody misses it
        if t_s is None or t_s <= track.last_s:
            self.unusable += 1
            return None
        track.last_s, track.arrived_s = t_s, now_s
        self._lead_s = max(self._lead_s, t_s - (now_s - self._epoch_s))
        return t_s

    def _time(
        self, track: _Track, pts_s: float | None, step_s: float, now_s: float
    ) -> float | None:
        if pts_s is None or not math.isfinite(pts_s):
            self.unusable += 1  # counted although it is repaired
            return None if track.offset_s is None else track.last_s + step_s
        if track.offset_s is None:
            track.offset_s = self._first_offset(track, pts_s, step_s, now_s)
            return pts_s + track.offset_s
        t_s = pts_s + track.offset_s
        limit_s = now_s - track.arrived_s + MAX_LEAP_S  # how far it may have gone
        if -SMALL_STEP_BACK_S < t_s - track.last_s <= limit_s:
            return t_s
        self.jumps += 1
        other = self._other(track)
        if other.offset_s is not None and 0 < pts_s + other.offset_s - track.last_s <= limit_s:
            track.offset_s = other.offset_s  # the other stream jumped before, or not at all
        else:
            track.offset_s = track.last_s + max(step_s, now_s - track.arrived_s) - pts_s
        return pts_s + track.offset_s

    def _first_offset(self, track: _Track, pts_s: float, step_s: float, now_s: float) -> float:
        """Of a connection's first picture or sound: the other one's, if that makes sense."""
        assert self._epoch_s is not None
        now = now_s - self._epoch_s
        other = self._other(track)
        if other.offset_s is not None:
            if abs(pts_s + other.offset_s - now) <= MAX_SKEW_S:
                return other.offset_s
            self.jumps += 1
        last_s = max(t.last_s for t in self._tracks.values())
        return max(now, last_s + step_s) - pts_s

    def _other(self, track: _Track) -> _Track:
        return next(t for t in self._tracks.values() if t is not track)


class Pace:
    """Does a connection bring things when they happen (a camera), or as fast as they are taken?

    began_s : when it was asked for, so that what FFmpeg reads to find out what it is counts as well
    """

    def __init__(self, began_s: float) -> None:
        self.paced = False  # shown so far
        self._began_s, self._aside_s = began_s, 0.0
        self._first_s, self._last_s = math.inf, -math.inf
        self._fetched = False  # farther ahead than any camera

    def came(self, t_s: float, now_s: float) -> None:
        """Something of stream time ``t_s`` arrived."""
        self._first_s, self._last_s = min(self._first_s, t_s), max(self._last_s, t_s)
        passed_s = now_s - self._began_s
        self._fetched |= self._media_s - passed_s > MAX_AHEAD_S
        waited_s = passed_s - self._aside_s  # a recording waits for whoever is busy
        shown = waited_s >= PACE_S and self._media_s <= PACED * waited_s
        self.paced = not self._fetched and (self.paced or shown)

    def set_aside(self, seconds: float) -> None:
        """So long nobody read: whoever takes or decodes what comes was busy."""
        self._aside_s += seconds

    def recorded(self, now_s: float) -> bool:
        """Did it come faster than it happened?  What a connection that just ended was."""
        return self._media_s > RECORDED * (now_s - self._began_s - self._aside_s)

    @property
    def _media_s(self) -> float:
        return max(0.0, self._last_s - self._first_s)


class SoundClock:
    """Sound whose times come from another clock than its samples -> sound that keeps those times.

    A sound card that is 200 ppm fast gives 3.2 samples a second too many.  A line through the times
    of the last :data:`FIT_SECONDS` says how many there should be; one sample is then left out or
    put in where its neighbours differ least, at most once a chunk.  That is inaudible, and unlike
    a correction in one piece it never costs a window.  Where the times jump by more than
    :data:`MAX_SOUND_JUMP_S` sound was lost: the line starts anew and the hole shows in ``t_s``.
    """

    def __init__(self, rate_hz: int) -> None:
        self.jumps = 0
        self.corrections = 0  # samples put in or left out
        self.report = ClockReport()  # of the last line that was long enough
        self._rate_hz = rate_hz
        self._restart(0.0)
        self._started = False

    def push(self, t_s: float, samples: Samples) -> tuple[float, Samples]:
        """The measured time of the first sample, and samples [n] -> the same, corrected."""
        expected_s = self._anchor_s + self._given / self._rate_hz
        if not self._started or abs(t_s - expected_s) > MAX_SOUND_JUMP_S:
            self.jumps += self._started
            self._restart(t_s)
            self._started = True
        self._observe(t_s)
        error_s = self._straight(t_s) - (self._anchor_s + self._given / self._rate_hz)
        out = samples
        if len(self._seconds) >= MIN_FIT_SECONDS and len(samples) > 2:
            if error_s * self._rate_hz >= 1:
                out = _one_more(samples)
            elif error_s * self._rate_hz <= -1:
                out = _one_less(samples)
            self.corrections += len(out) != len(samples)
        at_s = self._anchor_s + self._given / self._rate_hz
        self._taken += len(samples)
        self._given += len(out)
        return at_s, out

    def _restart(self, t_s: float) -> None:
        self._anchor_s = t_s
        self._taken = 0  # samples since then
        self._given = 0
        self._seconds: deque[tuple[float, float, float]] = deque(maxlen=FIT_SECONDS)
        self._second: list[float] = []  # delays of the present one
        self._slope, self._middle, self._at = 0.0, 0.0, 0.0

    def _observe(self, t_s: float) -> None:
        """Once a second: how late the samples came on average, and the line through that."""
        nominal_s = self._taken / self._rate_hz
        self._second.append(t_s - self._anchor_s - nominal_s)
        if nominal_s < self._at + 1:
            return
        delays = np.array(self._second)
        self._seconds.append((nominal_s, float(delays.mean()), float(delays.var())))
        self._second.clear()
        self._at = nominal_s
        times, means, _ = np.array(self._seconds).T
        centred = times - times.mean()
        spread = float(centred @ centred)
        self._slope = float(centred @ means) / spread if spread else 0.0
        self._middle = float(means.mean()) - self._slope * float(times.mean())
        if len(self._seconds) >= MIN_REPORT_SECONDS:
            jitter_s = float(np.sqrt(np.mean([variance for _, _, variance in self._seconds])))
            self.report = ClockReport(drift_ppm=-self._slope * 1e6, jitter_ms=jitter_s * 1e3)

    def _straight(self, t_s: float) -> float:
        """The time of the next sample, without its jitter."""
        nominal_s = self._taken / self._rate_hz
        return self._anchor_s + nominal_s + self._middle + self._slope * nominal_s


def _one_more(samples: Samples) -> Samples:
    at = int(np.argmin(np.abs(np.diff(samples)))) + 1
    return np.insert(samples, at, (samples[at - 1] + samples[at]) / 2)


def _one_less(samples: Samples) -> Samples:
    at = int(np.argmin(np.abs(samples[2:] - samples[:-2]))) + 1  # its neighbours meet best
    return np.delete(samples, at)
