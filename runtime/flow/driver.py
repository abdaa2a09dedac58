# SPDX-License-Identifier: Apache-2.0
"""Streams in one process, one or many: one session each, one model for all.

Every source is read by a thread of its own (:class:`runtime.media.feed.Feed`); one thread, the
caller's, does the rest.  The rules:

* **Order.** Of the streams that have something to do, the one whose oldest chunk is due first goes
  next, one chunk at a time.  A live chunk is due :data:`DUE_S` after its capture, a file
  :data:`DUE_S` after it was last served, so a file uses what live streams leave and never waits
  for good.
* **Budget.** A stream's budget is an equal share of the thread's time.  One that has used more
  (four faces, a large picture) goes after all that have not, and is the first to do with less.
  What others do not use is anybody's.
* **Batches.** A stream that needs the model waits until no other has anything to do without it, at
  most :data:`BATCH_WAIT_S`; then all that wait share one call of each graph.  The results are those
  of each stream alone (:mod:`runtime.flow.model_calls`).
* **Shedding.** While a live stream is more than :data:`LAG_LIMIT_S` behind and does not catch up,
  one stream a second goes a step down :data:`STEPS_DOWN`: first fewer windows, then fewer
  pictures.  Below the last step its queue drops the oldest pictures.  When nobody has been behind
  for :data:`CALM_S` and time is left, one stream goes a step up.  Every step is reported, every
  window and picture left out is counted.  Files, and recordings over HTTP, never shed: they take
  longer.
* **Ends.** A stream that ends or fails is finished, reported and forgotten; the others go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtime import interrupt as signals
from runtime.backends.base import Backend
from runtime.flow.model_calls import AnyReply, Request, Steps, serve
from runtime.flow.pictures import FULL_LOAD, Load
from runtime.flow.session import OnJudged, OnScores
from runtime.flow.sink import Sink
from runtime.flow.stream_run import StreamRun
from runtime.flow.summary import Summary
from runtime.interrupt import Interrupt
from runtime.media import Chunk, Source
from runtime.media.feed import Feed
from runtime.spec import StreamSpec

DUE_S = 0.15  # from the capture of a chunk to when it should have been dealt with
BATCH_WAIT_S = 0.02  # that a request waits for others
LAG_LIMIT_S = 0.5  # behind by more: do less
CATCHING_UP = 0.9  # a lag below this share of what it was a second ago is on its way down
CALM_LAG_S = 0.2  # behind by less: all is well
CALM_S = 5.0  # all well for this long: one stream may do more again ...
CALM_BUSY = 0.5  # ... if the thread was idle for the rest: a step up may double the work
CHECK_S = 1.0  # between two decisions about the load
IDLE_S = 0.1  # that feeds are waited for while there is nothing to do; then others are looked at
QUIET_CHECK_S = 0.1  # between two looks whether a live source has fallen silent
INTERRUPTED = "interrupted"
USAGE_RATE = 0.5  # weight of the newest second in the running mean of a stream's time
STEPS_DOWN = (
    FULL_LOAD,
    Load(hops=2),
    Load(hops=4),
    Load(hops=4, pictures=2),
    Load(hops=4, pictures=3),  # a window bridges no longer gap
)


@dataclass(frozen=True)
class Stream:
    """One stream to run; its source stays the caller's to close."""

    source: Source
    sinks: Sequence[Sink] = ()
    name: str | None = None  # what verdicts call it; default: what the source calls itself
    with_audio: bool = True
    on_scores: OnScores | None = None  # of the session
    on_judged: OnJudged | None = None


@dataclass(frozen=True)
class Outcome:
    """How a stream went; ``summary`` also says what a stream that failed did until then."""

    summary: Summary
    error: Exception | None


@dataclass(frozen=True)
class LoadChange:
    """A stream does less than before, or more again."""

    source: str
    load: Load
    lag_s: float  # of this stream
    less: bool

    def __str__(self) -> str:
        hops = "every window" if self.load.hops == 1 else f"one window of {self.load.hops}"
        pictures = (
            "every picture" if self.load.pictures == 1 else f"one picture of {self.load.pictures}"
        )
        why = f"{self.lag_s:.1f} s behind" if self.less else "keeping up"
        return f"{self.source}: {why}, so {hops} and {pictures} from now on"


OnLoad = Callable[[LoadChange], None]
OnEnd = Callable[[int, Outcome], None]


def run(
    source: Source,
    backend: Backend,
    *,
    sinks: Sequence[Sink] = (),
    stream: StreamSpec | None = None,
    with_audio: bool = True,
    name: str | None = None,
    interrupt: Interrupt | None = None,
    on_load: OnLoad | None = None,
    on_scores: OnScores | None = None,
    on_judged: OnJudged | None = None,
) -> Summary:
    """Read one source to its end; every verdict goes to every sink as soon as it is made.

    As :func:`run_many`, and an error of the source, the session or a sink is raised.
    """
    one = Stream(source, sinks, name, with_audio, on_scores, on_judged)
    (outcome,) = run_many([one], backend, spec=stream, interrupt=interrupt, on_load=on_load)
    if outcome.error is not None:
        raise outcome.error
    return outcome.summary


def run_many(
    streams: Sequence[Stream],
    backend: Backend,
    *,
    spec: StreamSpec | None = None,
    interrupt: Interrupt | None = None,
    on_load: OnLoad | None = None,
    on_end: OnEnd | None = None,
) -> list[Outcome]:
    """Run all streams to their ends, together; outcomes in the order of ``streams``.

    spec : windows and hop of every stream; default: the model's own
    interrupt : asks all streams to end, where one of them is live, as a signal does: what was
        waiting is judged; files alone are broken off by a signal (KeyboardInterrupt)
    on_load, on_end : told at once when a stream does less or more, and when one has ended (its
        index and outcome)

    An error of a source, a session or a sink ends its stream alone and is in its outcome.  An error
    of the model is raised, as is :class:`runtime.errors.UsageError` for a stream with nothing to
    judge and :class:`runtime.errors.DependencyError` for what is not installed.
    """
    scheduler = _Scheduler(streams, backend, spec, interrupt or Interrupt(), on_load, on_end)
    try:
        scheduler.run()
    finally:
        scheduler.close()
    return scheduler.outcomes()


class _Lane:
    """One stream on its way."""

    def __init__(
        self, index: int, run: StreamRun, source: Source, changed: threading.Condition
    ) -> None:
        self.index, self.run = index, run
        self.live = source.live
        self.feed = Feed(source, sample_rate_hz=run.rate_hz, changed=changed)
        self.head: Chunk | None = None  # the next chunk
        self.captured_s: float | None = None  # of the chunk in work
        self.steps: Steps | None = None  # work begun
        self.request: Request | None = None  # what it waits for
        self.since_s = 0.0  # the request was made
        self.served_s = time.monotonic()
        self.quiet_s = 0.0  # when it was last looked whether the source is silent
        self.level = 0  # of STEPS_DOWN
        self.spent_s = 0.0  # of the thread's time, since the last check
        self.usage = 0.0  # running mean of it, as a share of the time
        self.error: Exception | None = None
        self.finishing = False
        self.outcome: Outcome | None = None

    @property
    def name(self) -> str:
        return self.run.summary.source

    def due_s(self) -> float:
        """When what it has to do should be done, on the monotonic clock."""
        captured = self.head.captured_s if self.head is not None else None
        return (self.served_s if captured is None or not self.live else captured) + DUE_S

    def over(self, share: float) -> bool:
        """Has it used more than its share, lately or since the last check?"""
        return self.usage > share or self.spent_s > share * CHECK_S

    def lag_s(self, now_s: float) -> float:
        """How old the oldest chunk is that was not dealt with; 0 for a file."""
        self.fetch()
        if not self.live or self.head is None or self.head.captured_s is None:
            return 0.0
        return now_s - self.head.captured_s

    def fetch(self) -> None:
        if self.head is None:
            self.head = self.feed.get(timeout_s=0.0)

    @property
    def can_go_on(self) -> bool:
        return self.steps is not None or self.head is not None or self.feed.ready

    def drop_work(self) -> None:
        """What is begun is not ended."""
        self.steps = self.request = None


class _Scheduler:
    def __init__(
        self,
        streams: Sequence[Stream],
        backend: Backend,
        spec: StreamSpec | None,
        interrupt: Interrupt,
        on_load: OnLoad | None,
        on_end: OnEnd | None,
    ) -> None:
        self._backend, self._interrupt = backend, interrupt
        self._on_load, self._on_end = on_load, on_end
        self._changed = threading.Condition()  # of all feeds
        runs = [
            StreamRun(
                s.source, backend, s.sinks, spec, s.with_audio, s.name, s.on_scores, s.on_judged
            )
            for s in streams
        ]
        self._lanes = [
            _Lane(i, run, s.source, self._changed)
            for i, (run, s) in enumerate(zip(runs, streams, strict=True))
        ]
        self._active = list(self._lanes)
        self._any_live = any(lane.live for lane in self._lanes)
        self._start = time.perf_counter()
        self._checked_s = self._calm_since_s = time.monotonic()
        self._behind_s = 0.0  # the largest lag of a live stream at the last check
        self._busy = 0.0  # running mean of the thread's time in use, as a share

    def run(self) -> None:
        signals.check()
        while self._active:
            try:
                self._go_on()
            except KeyboardInterrupt:  # in a program that does not use runtime.interrupt
                if self._interrupt.asked or not self._any_live:
                    raise
                for lane in self._active:
                    lane.drop_work()
                self._interrupt.ask(INTERRUPTED)

    def _go_on(self) -> None:
        """The next piece of work, or a wait for it."""
        if not self._any_live:
            signals.check()
        elif self._interrupt.asked:
            signals.answer()
            self._stop()
        ready = [lane for lane in self._active if lane.request is None and self._begin(lane)]
        waiting = [lane for lane in self._active if lane.request is not None]
        now_s = time.monotonic()
        if waiting and (not ready or now_s - min(w.since_s for w in waiting) > BATCH_WAIT_S):
            self._serve(waiting)
        elif ready:
            share = 1 / len(self._active)
            self._step(min(ready, key=lambda lane: (lane.over(share), lane.due_s())))
        else:
            with self._changed:
                self._changed.wait_for(lambda: any(s.can_go_on for s in self._active), IDLE_S)
        if time.monotonic() - self._checked_s >= CHECK_S:
            self._check_load()

    def close(self) -> None:
        """Stop all threads, whatever happened."""
        for lane in self._lanes:
            lane.feed.close()

    def outcomes(self) -> list[Outcome]:
        return [lane.outcome for lane in self._lanes if lane.outcome is not None]

    def _begin(self, lane: _Lane) -> bool:
        """Is there something to do?  Takes up the next piece of work where none is begun."""
        if lane.steps is not None:
            return True
        lane.fetch()
        if lane.head is not None:
            return True
        if lane.feed.ended:
            if lane.feed.error is not None and lane.error is None:
                lane.error = self._plain(lane)
            self._finish(lane)
            return True
        now_s = time.monotonic()
        if lane.live and now_s - lane.quiet_s >= QUIET_CHECK_S:
            lane.quiet_s = now_s
            lane.captured_s = None
            lane.steps = lane.run.quiet_steps(lane.feed)
        return lane.steps is not None

    def _plain(self, lane: _Lane) -> Exception | None:
        """What a feed's thread ended with; that of an interrupt ends the whole run."""
        error = lane.feed.error
        if error is None or isinstance(error, Exception):
            return error
        if not lane.live or self._interrupt.asked:
            raise error
        self._interrupt.ask(INTERRUPTED)
        return None

    def _finish(self, lane: _Lane) -> None:
        lane.finishing, lane.captured_s = True, None
        lane.head = None
        lane.steps = lane.run.session.finish_steps()

    def _stop(self) -> None:
        """Somebody asked: what has not been begun is left."""
        for lane in self._active:
            if lane.steps is None and not lane.finishing:
                self._finish(lane)

    def _step(self, lane: _Lane, reply: AnyReply | None = None) -> None:
        """On to where it needs the model, or to the end of this chunk."""
        start = time.perf_counter()
        try:
            if lane.steps is None:
                assert lane.head is not None
                chunk, lane.head = lane.head, None
                lane.captured_s = chunk.captured_s
                lane.steps = lane.run.take_steps(chunk)
            lane.request = lane.steps.send(reply) if reply is not None else next(lane.steps)
            lane.since_s = time.monotonic()
        except StopIteration as end:
            lane.steps = lane.request = None
            self._publish(lane, end)
        except Exception as err:  # whatever it is, it is this stream's alone
            self._fail(lane, err)
        lane.spent_s += time.perf_counter() - start + (reply.seconds if reply is not None else 0.0)
        lane.served_s = time.monotonic()

    def _publish(self, lane: _Lane, end: StopIteration) -> None:
        try:
            lane.run.publish(end.value, lane.captured_s)
        except Exception as err:  # a sink's
            self._fail(lane, err)
            return
        if lane.finishing:
            self._end(lane)

    def _fail(self, lane: _Lane, err: Exception) -> None:
        lane.error = lane.error or err
        lane.drop_work()
        self._end(lane)

    def _end(self, lane: _Lane) -> None:
        """The stream is over: its summary, and the feed's thread ends."""
        summary = lane.run.summary
        lane.run.look_at(lane.feed)
        asked = self._interrupt.asked
        if lane.live or asked:
            failed = None if lane.error is None else str(lane.error)
            summary.ended = self._interrupt.reason if asked else failed or "the source ended"
        lane.feed.close()
        try:
            lane.run.end(time.perf_counter() - self._start)
        except Exception as err:  # a sink's
            lane.error = lane.error or err
        lane.outcome = Outcome(summary, lane.error)
        self._active.remove(lane)
        if self._on_end is not None:
            self._on_end(lane.index, lane.outcome)

    def _serve(self, waiting: list[_Lane]) -> None:
        """One call a graph for all that wait, and on with each, the most urgent first."""
        waiting.sort(key=lambda lane: lane.due_s())
        requests = [lane.request for lane in waiting if lane.request is not None]
        for lane, reply in zip(waiting, serve(self._backend, requests), strict=True):
            lane.request = None
            self._step(lane, reply)

    def _check_load(self) -> None:
        """Once a second: who used how much, and does anybody have to do less, or may do more?"""
        now_s = time.monotonic()
        passed_s = now_s - self._checked_s
        self._checked_s = now_s
        spent_s = 0.0
        for lane in self._active:
            spent_s += lane.spent_s
            lane.usage += USAGE_RATE * (lane.spent_s / passed_s - lane.usage)
            lane.spent_s = 0.0
            lane.run.look_at(lane.feed)
            if lane.level > 0:
                lane.run.summary.shed_s += passed_s
        self._busy += USAGE_RATE * (spent_s / passed_s - self._busy)
        live = [lane for lane in self._active if lane.live and not lane.feed.lossless]
        behind_s = max((lane.lag_s(now_s) for lane in live), default=0.0)
        if behind_s > CALM_LAG_S:
            self._calm_since_s = now_s
        catching_up = behind_s < CATCHING_UP * self._behind_s
        self._behind_s = behind_s
        if behind_s > LAG_LIMIT_S and not catching_up:
            able = [lane for lane in live if lane.level + 1 < len(STEPS_DOWN)]
            if able:  # who uses most gives first
                self._move(max(able, key=lambda lane: lane.usage), 1, now_s)
        if now_s - self._calm_since_s >= CALM_S and self._busy < CALM_BUSY:
            shedding = [lane for lane in live if lane.level > 0]
            if shedding:  # who gave most is relieved first
                self._move(max(shedding, key=lambda lane: lane.level), -1, now_s)
                self._calm_since_s = now_s

    def _move(self, lane: _Lane, by: int, now_s: float) -> None:
        lane.level += by
        lane.run.session.load = STEPS_DOWN[lane.level]
        if self._on_load is not None:
            change = LoadChange(lane.name, STEPS_DOWN[lane.level], lane.lag_s(now_s), by > 0)
            self._on_load(change)
