# SPDX-License-Identifier: Apache-2.0
"""The outputs that ``runtime.stream`` was asked for, from its options to their last line.

Some belong to one source (annotated video, report), some to the whole run (metrics, webhook).  Each
stands behind a queue of its own; what became of it is in the summary, and :attr:`Outputs.failed`
says whether something that was asked for is missing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from runtime import listen
from runtime.address import public_name, scheme_of
from runtime.backends.base import Backend
from runtime.closing import Closing
from runtime.command import other_inputs
from runtime.errors import UsageError, UserError
from runtime.files import read_bounded
from runtime.flow.sink import Sink
from runtime.interrupt import Interrupt
from runtime.media import Source
from runtime.media.open import own_name
from runtime.models import DEFAULT_PRESET, model_dir
from runtime.naming import file_stem, plain
from runtime.overwrites import refuse_overwrites, same_name
from runtime.sinks.background import DRAIN_S, Background, Worker, in_background, say
from runtime.sinks.metrics import DEFAULT_ADDRESS, MetricsSink
from runtime.sinks.metrics import parse_address as parse_metrics
from runtime.sinks.report.moments import FACES, SHOW
from runtime.sinks.report.sink import ReportSink
from runtime.sinks.video import VideoSink
from runtime.sinks.webhook import TOKEN_VARIABLE, WebhookSink
from runtime.spec import StreamSpec

if TYPE_CHECKING:
    from runtime.flow.summary import Summary

MAX_CARD_BYTES = 1 << 20


def add_options(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("outputs")
    g.add_argument("--save-video", type=Path, default=None, metavar="PATH.mp4|DIR",
                   help="write the video with its verdicts drawn in and its sound")  # fmt: skip
    g.add_argument("--report", type=Path, default=None, metavar="PATH.html|DIR",
                   help="write one HTML page: what was judged, when, and why")  # fmt: skip
    g.add_argument("--report-faces", choices=FACES, default=SHOW,
                   help=f"faces in the report (default: {SHOW})")  # fmt: skip
    g.add_argument("--metrics", nargs="?", const=DEFAULT_ADDRESS, default=None,
                   metavar="HOST:PORT",
                   help=f"serve Prometheus metrics (default: {DEFAULT_ADDRESS})")  # fmt: skip
    listen.add_option(g)
    g.add_argument("--webhook", default=None, metavar="URL",
                   help="POST to this URL when what is said of a face changes; a secret in "
                        f"{TOKEN_VARIABLE} is sent along")  # fmt: skip
    g.add_argument("--webhook-abstain", action="store_true",
                   help="to begin or to stop abstaining is a change, too")  # fmt: skip


class Outputs(Closing):
    """A context manager over the outputs of a whole run.

    ``sources``: each with what it is called (:func:`runtime.media.open.name_sources`).
    ``interrupt`` is asked to end live sources when their record, ``--jsonl``, cannot be written any
    more; without any other output they go on.

    Raises :class:`UsageError` and :class:`runtime.errors.DependencyError` for options that cannot
    be met, before a model is loaded.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        sources: Mapping[str, str],
        interrupt: Interrupt | None = None,
    ) -> None:
        self._options, self._interrupt = options, interrupt or Interrupt()
        self._videos = _targets("--save-video", options.save_video, ".mp4", sources)
        self._reports = _targets("--report", options.report, ".html", sources)
        refuse_overwrites(
            [
                None if options.jsonl is None else ("--jsonl", options.jsonl),
                *(("--save-video", file) for file in self._videos.values()),
                *(("--report", file) for file in self._reports.values()),
            ],
            [*sources, *other_inputs(options)],
        )
        self._workers: list[Worker] = []
        self.failed = False
        _check_allowed(options)
        self._webhook = None
        if options.webhook is not None:
            self._webhook = WebhookSink(options.webhook, on_abstain=options.webhook_abstain)
            self._workers.append(self._webhook.worker)
        elif options.webhook_abstain:
            raise UsageError("--webhook-abstain needs --webhook URL")
        self._metrics = None
        if options.metrics is not None:
            address = parse_metrics(options.metrics)
            self._metrics = MetricsSink(lambda: self._workers)
            where = self._metrics.serve(options.metrics, options.allow_host)
            print(f"metrics: {plain(where)}", file=sys.stderr)
            if not address.loopback:
                print(f"notice: whoever reaches {plain(address.host)} can read the metrics: "
                      "names of sources, and what was said of them", file=sys.stderr)  # fmt: skip

    def of_source(
        self, name: str, source: Source, backend: Backend, stream: StreamSpec, jsonl: Sink | None
    ) -> SourceOutputs:
        """``jsonl``, where there is one: a file waits for it, a live source does not."""
        options, spec = self._options, backend.spec
        with_sound = options.audio.kind != "none" and source.info.has_audio
        mine = SourceOutputs(self, source.live)
        try:
            if self._webhook is not None:
                mine.sinks.append(self._webhook)
            if self._metrics is not None:
                mine.sinks.append(self._metrics)
            if jsonl is not None:
                record = plain(f"--jsonl {options.jsonl}")  # also the label of a metric
                mine.sinks.append(
                    mine.background(jsonl, record, tell=self._record_is_lost)
                    if source.live
                    else jsonl
                )
            if name in self._videos:
                mine.video = VideoSink(
                    self._videos[name],
                    token_hz=spec.audio.token_hz,
                    hop_s=stream.hop_tokens / spec.audio.token_hz,
                    sound_hz=spec.audio.sample_rate_hz if with_sound else None,
                    original=getattr(source, "original_sound", None) if with_sound else None,
                )
                mine.sinks.append(mine.background(mine.video, "--save-video"))
            if name in self._reports:
                mine.report = ReportSink(
                    self._reports[name],
                    spec,
                    stream,
                    faces=options.report_faces,
                    file=Path(name) if not source.live and os.path.isfile(name) else None,  # noqa: PTH113
                )
                mine.sinks.append(mine.background(mine.report, "--report"))
        except BaseException:
            mine.abandon()
            raise
        return mine

    def model_card(self) -> str | None:
        """Markdown beside the model's files, where there is some."""
        try:
            card = model_dir(self._options.model or DEFAULT_PRESET) / "README.md"
            return read_bounded(card, MAX_CARD_BYTES).decode(errors="replace")
        except (UserError, OSError):
            return None

    def _record_is_lost(self, line: str) -> None:
        say(line)
        self._interrupt.ask("--jsonl cannot be written")

    def register(self, worker: Worker) -> None:
        self._workers.append(worker)

    def forget(self, worker: Worker) -> None:
        """A worker of a source that has ended; its failure and its losses stay."""
        self.failed = self.failed or worker.error is not None
        if worker in self._workers and worker.error is None and not worker.lost:
            self._workers.remove(worker)

    def finish(self) -> None:
        """Deliver what waits, and say what was not."""
        if self._webhook is None:
            return
        self._webhook.close(DRAIN_S)
        self.failed = self.failed or self._webhook.failed
        for line in self._webhook.notes():
            say(line)

    def close(self) -> None:
        if self._webhook is not None:
            self._webhook.close(0.0)
        if self._metrics is not None:
            self._metrics.close()


class SourceOutputs:
    """The outputs of one source; leaving it without :meth:`finish` leaves no files behind."""

    def __init__(self, run: Outputs, live: bool) -> None:
        self._run, self._live = run, live
        self._mine: list[Background] = []
        self.sinks: list[Sink] = []
        self.video: VideoSink | None = None
        self.report: ReportSink | None = None

    def background(self, sink: Sink, name: str, tell: Callable[[str], None] = say) -> Background:
        made = in_background(sink, name, live=self._live, tell=tell)
        self._mine.append(made)
        self._run.register(made.worker)
        return made

    def finish(self, summary: Summary) -> None:
        """Wait for the sinks, write the report; what went wrong joins the summary's warnings."""
        end = time.monotonic() + DRAIN_S
        for mine in self._mine:
            mine.worker.close(max(0.1, end - time.monotonic()))
        if self.video is not None:
            summary.warnings += [f"--save-video: {note}" for note in self.video.notes]
        for mine in self._mine:
            summary.warnings += mine.worker.notes()
        if self.report is not None and not self._broken(self.report):
            self._write_report(self.report, summary)
        self.abandon()

    def abandon(self) -> None:
        """Give up what is not finished: no half files, and no waiting."""
        for mine in self._mine:
            mine.worker.abandon()
            self._run.forget(mine.worker)
        for sink in (self.video, self.report):
            if sink is not None:
                sink.abandon()

    def __enter__(self) -> SourceOutputs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abandon()

    def _broken(self, sink: Sink) -> bool:
        return any(m.worker.error is not None for m in self._mine if m.sink is sink)

    def _write_report(self, report: ReportSink, summary: Summary) -> None:
        try:
            report.finish(summary, model_card=self._run.model_card())
        except UserError as err:
            self._run.failed = True
            summary.warnings.append(f"--report: {err}")


def _check_allowed(options: argparse.Namespace) -> None:
    """Raises :class:`UsageError` where --allow-host has no use."""
    served = []
    if options.metrics is not None:
        served.append(parse_metrics(options.metrics))
    if options.web is not None:
        served.append(listen.page_address(options.web))
    listen.check_allowed(options.allow_host, served)


def _targets(
    option: str, target: Path | None, suffix: str, sources: Mapping[str, str]
) -> dict[str, Path]:
    """Source -> its output file."""
    if target is None:
        return {}
    if len(sources) > 1 and not is_folder(target, suffix):
        raise UsageError(f"{option} {target}: for several sources give a folder")
    taken: set[Path] = set()
    files = {}
    for source, name in sources.items():
        own = own_name(source)
        called = None if name == own or name.startswith(f"{own} (") else name
        files[source] = target_of(target, suffix, source, taken, called)
    return files


def is_folder(target: Path, suffix: str) -> bool:
    """Does an option's PATH|DIR name a folder: one that exists, or a name without the suffix?"""
    return os.path.isdir(target) or target.suffix.lower() != suffix  # noqa: PTH112, it never raises


def target_of(
    target: Path, suffix: str, source: str, taken: set[Path], name: str | None = None
) -> Path:
    """The output file of one source; in a folder it is named after the source.

    ``taken`` holds the targets so far and gets this one; names that a file system may take for
    one (``Talk``, ``talk``) are given to one source alone.  ``name`` is what somebody called the
    source.
    """
    file = target
    if is_folder(target, suffix):
        stem = file_stem(_stem(source) if name is None else name.rsplit("/", 1)[-1], suffix)
        names = (f"{stem}{'' if n == 1 else f'-{n}'}{suffix}" for n in range(1, len(taken) + 2))
        file = next(f for name in names if same_name(f := target / name) not in taken)
    taken.add(same_name(file))
    return file


def _stem(source: str) -> str:
    """Of an address the last part of its path, or its host; never its query."""
    if scheme_of(source) is None:
        return Path(source).stem
    host, _, path = public_name(source).split("://", 1)[1].partition("/")
    return Path(path).stem or host
