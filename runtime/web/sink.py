# SPDX-License-Identifier: Apache-2.0
"""What the page knows: a sink that pipelines write to and the server reads from.

Everything is keyed by ``source``, so several streams may write at the same time, from threads of
their own.  Writing costs a lock and a dictionary: pictures are kept by reference, the newest one
of each source only, and become JPEG in the server's thread where somebody watches.  So a slow
browser, or none, never stalls a stream, and memory is bounded whatever happens.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.flow.sink import Picture
from runtime.flow.summary import Stats, losses
from runtime.judging.verdict import Label, Verdict
from runtime.media import AudioChunk
from runtime.sinks.terminal import shown_scores

if TYPE_CHECKING:
    from runtime.flow.summary import Summary
    from runtime.media import Source

STATE_VERSION = 1  # of /api/state and of the messages on /ws
KEPT_VERDICTS = 1500  # of each source: five minutes of one face at five a second
KEPT_LATENCIES = 3000  # the last ones, for p50 and p99
RECENT_PICTURES = 50  # from whose arrival the rate is counted
SILENCE_DBFS = -90.0


class WebSink:
    """A sink of everything there is to see, and what the server shows of it.

    Parameters
    ----------
    model_id, provider : what judges, and on what it runs
    judged_by : a line for people, such as the length of the windows
    trained : False: random weights, whose verdicts mean nothing
    """

    def __init__(
        self, *, model_id: str = "", provider: str = "", judged_by: str = "", trained: bool = True
    ) -> None:
        self._about: dict[str, Any] = {
            "model_id": model_id, "provider": provider, "judged_by": judged_by, "trained": trained
        }  # fmt: skip
        self._lock = threading.Lock()
        self._streams: dict[str, _Stream] = {}
        self._media: dict[str, Source] = {}

    # Written by pipelines

    def watch(self, source: Source) -> None:
        """Shows what only the source itself knows while it runs: damage, drops and warnings."""
        with self._lock:
            self._media[source.info.name] = source

    def begin(self, summary: Summary) -> None:
        """A source starts; its counters are read from ``summary`` as they grow."""
        with self._lock:
            stream = self._streams[summary.source] = _Stream()
            stream.summary, stream.media = summary, self._media.get(summary.source)

    def write(self, verdict: Verdict) -> None:
        with self._lock:
            self._of(verdict.source).add(verdict)

    def picture(self, picture: Picture) -> None:
        with self._lock:
            self._of(picture.source).show(picture)

    def sound(self, source: str, chunk: AudioChunk) -> None:
        if not chunk.samples.size:
            return
        power = max(1e-12, float(np.mean(np.square(chunk.samples, dtype=np.float32))))
        with self._lock:
            self._of(source).level_dbfs = max(SILENCE_DBFS, 10 * math.log10(power))

    def end(self, summary: Summary) -> None:
        with self._lock:
            stream = self._of(summary.source)
            stream.summary, stream.status = summary, "ended"
            self._media.pop(summary.source, None)
            stream.level_dbfs = None

    # Read by the server

    def state(self) -> dict[str, Any]:
        """Everything, for ``/api/state``; verdicts in the schema of ``--jsonl``."""
        return self.news({})[0]

    def statuses(self) -> dict[str, str]:
        """By source ``live`` or ``ended``."""
        with self._lock:
            return {name: stream.status for name, stream in self._streams.items()}

    def news(self, seen: dict[str, int]) -> tuple[dict[str, Any], dict[str, int]]:
        """The state with only those verdicts that are new since ``seen``, and the new ``seen``.

        ``seen`` holds, by source, the number of the last verdict that a viewer has; {} is a new
        viewer, who gets all that are kept.
        """
        with self._lock:
            streams = {
                name: stream.state(seen.get(name, 0)) for name, stream in self._streams.items()
            }
            now_seen = {name: stream.verdicts_so_far for name, stream in self._streams.items()}
        return {"state_version": STATE_VERSION, **self._about, "sources": streams}, now_seen

    def newest_pictures(self, seen: dict[str, int]) -> dict[str, tuple[int, Picture]]:
        """By source the newest picture and its number, where ``seen`` has an older one."""
        with self._lock:
            return {
                name: (stream.pictures_so_far, stream.newest)
                for name, stream in self._streams.items()
                if stream.newest is not None and stream.pictures_so_far > seen.get(name, 0)
            }

    def _of(self, name: str) -> _Stream:
        return self._streams.setdefault(name, _Stream())


class _Stream:
    """One source.  Its methods are called with the sink's lock held."""

    def __init__(self) -> None:
        self.status = "live"
        self.summary: Summary | None = None
        self.media: Source | None = None
        self.verdicts: deque[tuple[int, Verdict]] = deque(maxlen=KEPT_VERDICTS)
        self.verdicts_so_far = 0
        self.labels = dict.fromkeys(map(str, Label), 0)
        self.reasons: dict[str, int] = {}
        self.latencies_ms: deque[float] = deque(maxlen=KEPT_LATENCIES)
        self.offset_ms: float | None = None
        self.newest: Picture | None = None
        self.pictures_so_far = 0
        self.arrivals_s: deque[float] = deque(maxlen=RECENT_PICTURES)
        self.level_dbfs: float | None = None
        self.t_s = 0.0

    def add(self, verdict: Verdict) -> None:
        self.verdicts_so_far += 1
        self.verdicts.append((self.verdicts_so_far, verdict))
        self.labels[verdict.label.value] += 1
        if verdict.reason is not None:
            self.reasons[verdict.reason.value] = self.reasons.get(verdict.reason.value, 0) + 1
        self.latencies_ms.append(verdict.latency_ms)
        if verdict.av_offset_ms is not None:
            self.offset_ms = verdict.av_offset_ms
        self.t_s = max(self.t_s, verdict.t_end_s)

    def show(self, picture: Picture) -> None:
        self.newest = picture
        self.pictures_so_far += 1
        self.arrivals_s.append(time.monotonic())
        self.t_s = max(self.t_s, picture.t_s)

    def state(self, after: int) -> dict[str, Any]:
        judged = self.verdicts_so_far - self.labels[Label.ABSTAIN.value]
        info = self.summary.info if self.summary else None
        return {
            "status": self.status,
            "live": bool(self.media.live) if self.media else False,
            "t_s": round(self.t_s, 3),
            "size": [info.width, info.height] if info else None,
            "has_video": info.has_video if info else None,
            "has_audio": info.has_audio if info else None,
            "pictures_per_s": self._pictures_per_s(),
            "level_dbfs": _rounded(self.level_dbfs, 1),
            "windows": self.verdicts_so_far,
            "labels": dict(self.labels),
            "reasons": dict(self.reasons),
            "coverage": round(judged / self.verdicts_so_far, 4) if self.verdicts_so_far else None,
            "latency_ms": _percentiles(self.latencies_ms),
            "av_offset_ms": _rounded(self.offset_ms, 1),
            "drops": self._drops(),
            "warnings": list(self.media.warnings) if self.media else [],
            "verdicts": [_plain(n, verdict) for n, verdict in self.verdicts if n > after],
        }

    def _pictures_per_s(self) -> float | None:
        if len(self.arrivals_s) < 2:
            return None
        span = self.arrivals_s[-1] - self.arrivals_s[0]
        return round((len(self.arrivals_s) - 1) / span, 1) if span > 0 else None

    def _drops(self) -> dict[str, int]:
        """By cause; only what happened.  The pipeline's thread goes on counting meanwhile."""
        stats = self.summary.stats if self.summary else Stats()
        damaged = self.media.damaged if self.media else 0
        # what the source itself counts is newer, what its queue dropped the summary alone knows
        drops = Counter(getattr(self.media, "drops", {})) | Counter(
            self.summary.drops if self.summary else {}
        )
        return {cause: n for cause, n in losses(stats, damaged, drops).items() if n}


def _plain(number: int, verdict: Verdict) -> dict[str, Any]:
    """The verdict's own JSON, its number, and which scores people get to see."""
    fields: dict[str, Any] = json.loads(verdict.to_json())
    shown = [_rounded(p, 4) for p in shown_scores(verdict)]
    return {"n": number, **fields, "shown": shown}


def _percentiles(values: Sequence[float] | deque[float]) -> dict[str, float] | None:
    if not values:
        return None
    p50, p99 = np.percentile(np.fromiter(values, np.float64), [50, 99])
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1), "of": len(values)}


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
