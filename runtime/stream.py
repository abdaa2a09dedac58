# SPDX-License-Identifier: Apache-2.0
"""Judge media: ``python -m runtime.stream --source video.mp4``.

Prints a timeline for people and, with ``--jsonl``, writes one JSON object a verdict.  Exit codes:
0 done, 1 operational error, 2 usage, 3 every window abstained, 4 a fake was found and
``--fail-on-fake`` was given, 130 interrupted.  A live source is ended by SIGINT (Ctrl-C) or
SIGTERM: its regular end, with a summary and the codes above; a second one ends at once, with 130.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.command import (
    add_model_options,
    add_source_options,
    describe_windows,
    guarded,
    load_model,
    open_input,
    print_error,
    print_notice,
    stream_spec,
)
from runtime.errors import (
    EXIT_ALL_ABSTAINED,
    EXIT_ERROR,
    EXIT_FAKE,
    EXIT_OK,
    DependencyError,
    UserError,
)
from runtime.interrupt import Interrupt
from runtime.media.open import BROWSER, expand_sources, is_live
from runtime.sinks import outputs as output_options
from runtime.sinks.outputs import Outputs, SourceOutputs
from runtime.site import SiteBackend, SiteCalibration
from runtime.web import options as page_options

if TYPE_CHECKING:
    from rich.console import Console

    from runtime.backends.base import Backend
    from runtime.media import Source
    from runtime.pipeline import Summary
    from runtime.sinks import Sink
    from runtime.sinks.jsonl import JsonLinesSink
    from runtime.spec import StreamSpec
    from runtime.web.server import WebServer


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return guarded(lambda: run_command(parser().parse_args(arguments)))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m runtime.stream",
        description="Judge whether talking faces are genuine: picture, voice, and both together.",
        epilog="Exit codes: 0 done, 1 operational error, 2 usage, 3 every window abstained, "
        "4 a fake was found and --fail-on-fake was given, 130 interrupted.",
    )
    add_source_options(p)
    p.add_argument("--parallel", action="store_true",
                   help="judge several sources at the same time, batched through one model; always "
                        "so where one of them is live, else one file after the other")  # fmt: skip
    add_model_options(p)
    p.add_argument("--site", type=Path, default=None, metavar="FILE",
                   help="thresholds and A/V offset of runtime.calibrate")  # fmt: skip
    p.add_argument("--allow-untrained", action="store_true",
                   help="run a model with random weights; its verdicts mean nothing")  # fmt: skip
    p.add_argument("--jsonl", default=None, metavar="PATH|-",
                   help="write verdicts as JSON Lines; - is standard output")  # fmt: skip
    p.add_argument("--fail-on-fake", action="store_true", help="exit code 4 when a fake is found")
    p.add_argument("--quiet", action="store_true", help="only the header and the summary")
    output_options.add_options(p)
    page_options.add_options(p)
    return p


def run_command(options: argparse.Namespace) -> int:
    from runtime.sinks import timeline

    sources = expand_sources(options.source)
    page_options.check_options(options, sources)
    live = any(is_live(source) for source in sources)
    site = None if options.site is None else SiteCalibration.read(options.site)
    out = timeline.console(stderr=options.jsonl == "-")
    interrupt = Interrupt()
    with ExitStack() as stack:
        outputs = stack.enter_context(Outputs(options, sources, interrupt))
        backend = stack.enter_context(load_model(options))
        if site is not None:
            backend = SiteBackend(backend, site)
        token_hz = backend.spec.audio.token_hz
        stream = stream_spec(backend.spec.stream, token_hz, options)
        if site is not None:
            site.check_windows(stream, token_hz)
        jsonl = _open_jsonl(options.jsonl, stack, live=live)
        page = page_options.make_page(options, sources, backend, describe_windows(stream, token_hz))
        if page is not None:
            stack.enter_context(page)
            page_options.announce(page, sources)
        stack.enter_context(interrupt.installed())
        run = _Run(options, backend, stream, site, out, jsonl, outputs, page, interrupt)
        if len(sources) > 1 and (live or options.parallel):
            run.together(sources)
        else:
            run.one_by_one(sources)
        if len(sources) > 1:
            timeline.print_table(out, run.summaries, run.failed)
        if jsonl is not None and run.summaries:
            jsonl.commit()
        outputs.finish()
        if outputs.failed:
            run.worst = run.worst or EXIT_ERROR
        if page is not None and options.web_hold:
            page_options.hold(page)
    return run.worst or exit_code(run.summaries, fail_on_fake=options.fail_on_fake)


def exit_code(summaries: Sequence[Summary], *, fail_on_fake: bool) -> int:
    """Of a run in which every source was read."""
    if fail_on_fake and any(s.stats.labels["fake"] for s in summaries):
        return EXIT_FAKE
    if all(s.stats.labels["abstain"] == s.stats.verdicts for s in summaries):
        return EXIT_ALL_ABSTAINED
    return EXIT_OK


@dataclass
class _Run:
    """What all sources of one command share, and what became of them."""

    options: argparse.Namespace
    backend: Backend
    stream: StreamSpec
    site: SiteCalibration | None
    out: Console
    jsonl: JsonLinesSink | None
    outputs: Outputs
    page: WebServer | None
    interrupt: Interrupt
    summaries: list[Summary] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    worst: int = EXIT_OK  # exit code of the sources that failed

    def one_by_one(self, sources: Sequence[str]) -> None:
        """Each source after the other; one that fails does not stop the rest."""
        for name in sources:
            try:
                self.summaries.append(self._one(name))
            except DependencyError:
                raise
            except UserError as err:
                if len(sources) == 1 or _is_output_error(err):
                    raise
                self._fail(name, err)

    def together(self, sources: Sequence[str]) -> None:
        """All sources at the same time, through one model."""
        from runtime.scheduler import Outcome, Stream, run_many
        from runtime.sinks import timeline

        running: list[Stream] = []
        rows: list[timeline.TimelineSink] = []
        asked_for: list[SourceOutputs] = []
        outcomes: dict[int, Outcome] = {}

        def ended(index: int, outcome: Outcome) -> None:
            summary = outcomes.setdefault(index, outcome).summary
            rows[index].flush()
            timeline.print_name(self.out, summary.source)
            timeline.print_summary(self.out, summary)
            if outcome.error is None:
                self.summaries.append(summary)
            else:
                self._fail(summary.source, outcome.error)

        with ExitStack() as opened:
            for name in sources:
                try:
                    source = opened.enter_context(self._open(name))
                except DependencyError:
                    raise
                except UserError as err:
                    self._fail(name, err)
                    continue
                self._print_header(source)
                rows.append(timeline.TimelineSink(self.out, source.info.name))
                asked_for.append(opened.enter_context(self._outputs_of(name, source)))
                sinks = self._sinks(source, rows[-1], asked_for[-1])
                running.append(Stream(source, sinks, with_audio=self._with_audio))
            run_many(
                running,
                self.backend,
                spec=self.stream,
                interrupt=self.interrupt,
                on_load=lambda change: print_notice(str(change)),
                on_end=ended,
            )
            for index, outcome in sorted(outcomes.items()):  # now nobody else needs the model
                told = len(outcome.summary.warnings)
                asked_for[index].finish(outcome.summary, self.backend, self.out)
                for line in outcome.summary.warnings[told:]:
                    print_notice(line)

    def _one(self, name: str) -> Summary:
        """One source from its header to its summary."""
        from runtime.pipeline import run
        from runtime.sinks import timeline

        with self._open(name) as source:
            self._print_header(source)
            rows = timeline.TimelineSink(self.out)
            with self._outputs_of(name, source) as asked_for:
                summary = run(
                    source,
                    self.backend,
                    sinks=self._sinks(source, rows, asked_for),
                    stream=self.stream,
                    with_audio=self._with_audio,
                    interrupt=self.interrupt,
                )
                rows.flush()
                asked_for.finish(summary, self.backend, self.out)
            timeline.print_summary(self.out, summary)
        return summary

    @property
    def _with_audio(self) -> bool:
        return bool(self.options.audio.kind != "none")

    def _open(self, name: str) -> Source:
        if name == BROWSER and self.page is not None:
            return self.page.browser_source()
        return open_input(name, self.options, self.backend.spec.audio.sample_rate_hz)

    def _print_header(self, source: Source) -> None:
        from runtime.sinks import timeline

        spec = self.backend.spec
        trained = "" if spec.trained else " (RANDOM WEIGHTS)"
        windows = describe_windows(self.stream, spec.audio.token_hz)
        timeline.print_header(
            self.out, source.info, spec.model_id + trained, self.backend.provider, windows
        )
        if self.site is not None:
            timeline.print_line(self.out, self.site.headline, style="dim")
        if source.live and not source.info.has_audio:
            print_notice("no sound, so windows abstain (no_audio); --audio mic adds a microphone")

    def _outputs_of(self, name: str, source: Source) -> SourceOutputs:
        return self.outputs.of_source(name, source, self.backend, self.stream, self.jsonl)

    def _sinks(self, source: Source, rows: Sink, asked_for: SourceOutputs) -> list[Sink]:
        sinks = [*([] if self.options.quiet else [rows]), *asked_for.sinks]
        if self.page is not None:
            self.page.sink.watch(source)
            sinks.append(self.page.sink)
        return sinks

    def _fail(self, name: str, err: Exception) -> None:
        print_error(err)
        self.failed.append(name)
        self.worst = max(self.worst, err.exit_code if isinstance(err, UserError) else EXIT_ERROR)


def _open_jsonl(target: str | None, stack: ExitStack, *, live: bool) -> JsonLinesSink | None:
    from runtime.sinks.jsonl import JsonLinesSink

    return None if target is None else stack.enter_context(JsonLinesSink(target, live=live))


def _is_output_error(err: UserError) -> bool:
    from runtime.sinks.jsonl import OutputError

    return isinstance(err, OutputError)


if __name__ == "__main__":
    sys.exit(main())
