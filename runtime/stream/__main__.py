# SPDX-License-Identifier: Apache-2.0
"""Judge media: ``python -m runtime.stream --source video.mp4``.

Prints a timeline for people and, with ``--jsonl``, writes one JSON object a verdict.  Exit codes:
0 done, 1 operational error, 2 usage, 3 every window abstained, 4 a fake was found and
``--fail-on-fake`` was given, 130 interrupted.  A live source is ended by SIGINT (Ctrl-C) or
SIGTERM or SIGHUP: its regular end, with a summary and the codes above; files are broken off.  A
second signal ends at once, with 130.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.calibrate.site import SiteBackend, SiteCalibration
from runtime.command import (
    Parser,
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
from runtime.interrupt import Interrupt, check, leave
from runtime.media.open import BROWSER, is_live, name_sources
from runtime.sinks import outputs as output_options
from runtime.sinks.outputs import Outputs, SourceOutputs
from runtime.web import options as page_options

if TYPE_CHECKING:
    from rich.console import Console

    from runtime.backends.base import Backend
    from runtime.flow.driver import Outcome
    from runtime.flow.sink import Sink
    from runtime.flow.summary import Summary
    from runtime.media import Source
    from runtime.sinks.jsonl import JsonLinesSink
    from runtime.spec import StreamSpec
    from runtime.web.server import WebServer


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return guarded(lambda: run_command(parser().parse_args(arguments)))


def parser() -> argparse.ArgumentParser:
    p = Parser(
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
    from runtime.sinks import terminal

    sources = name_sources(options.source, options.name)
    page_options.check_options(options, sources)
    live = any(is_live(source) for source in sources)
    site = None if options.site is None else SiteCalibration.read(options.site)
    out = terminal.console(stderr=options.jsonl == "-")
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
        check()
        run = _Run(options, sources, backend, stream, site, out, jsonl, outputs, page, interrupt)
        at_once = len(sources) if live or options.parallel else 1
        names = list(sources)
        for first in range(0, len(names), at_once):
            check()
            run.together(names[first : first + at_once])
        run.commit()
        if len(sources) > 1:
            terminal.print_table(out, run.summaries, run.failed)
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
    sources: Mapping[str, str]  # each with what it is called
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

    def commit(self) -> None:
        """The record of all sources takes its name, unless there is nothing in it."""
        if self.jsonl is not None and self.summaries:
            self.jsonl.commit()

    def together(self, names: Sequence[str]) -> None:
        """These sources at the same time, through one model; one that fails stops no other."""
        from runtime.flow.driver import Stream, run_many
        from runtime.sinks import terminal

        running: list[Stream] = []
        rows: list[terminal.TimelineSink] = []
        asked_for: list[SourceOutputs] = []
        outcomes: dict[int, Outcome] = {}
        alone = len(names) == 1

        def ended(index: int, outcome: Outcome) -> None:
            outcomes[index] = outcome
            rows[index].flush()
            if not alone:
                terminal.print_name(self.out, outcome.summary.source)
                terminal.print_summary(self.out, outcome.summary)
                self._account(outcome)

        with ExitStack() as opened:
            for name in names:
                try:
                    source, outputs = self._begin(name, opened)
                except UserError as err:
                    self._fail(self.sources[name], err)
                    continue
                self._print_header(source)
                rows.append(terminal.TimelineSink(self.out, None if alone else source.info.name))
                asked_for.append(outputs)
                sinks = self._sinks(source, rows[-1], outputs)
                running.append(Stream(source, sinks, with_audio=self._with_audio))
            run_many(
                running,
                self.backend,
                spec=self.stream,
                interrupt=self.interrupt,
                on_load=lambda change: print_notice(str(change)),
                on_end=ended,
            )
            for index, outcome in sorted(outcomes.items()):  # nobody waits now
                if alone and outcome.error is not None:
                    continue
                told = len(outcome.summary.warnings)
                asked_for[index].finish(outcome.summary)
                for line in () if alone else outcome.summary.warnings[told:]:
                    print_notice(line)
        if alone and outcomes:
            self._account(outcomes[0])
            if outcomes[0].error is None:
                terminal.print_summary(self.out, outcomes[0].summary)

    def _account(self, outcome: Outcome) -> None:
        """What became of a source."""
        if outcome.error is not None:
            self._fail(outcome.summary.source, outcome.error)
            return
        self.summaries.append(outcome.summary)
        if len(self.summaries) + len(self.failed) == len(self.sources):
            self.commit()  # whatever becomes of the printing

    def _begin(self, name: str, opened: ExitStack) -> tuple[Source, SourceOutputs]:
        """A source and its outputs, both or neither."""
        with ExitStack() as both:
            source = both.enter_context(self._open(name))
            outputs = both.enter_context(self._outputs_of(name, source))
            opened.enter_context(both.pop_all())
        return source, outputs

    @property
    def _with_audio(self) -> bool:
        return bool(self.options.audio.kind != "none")

    def _open(self, name: str) -> Source:
        if name == BROWSER and self.page is not None:
            return self.page.browser_source(self.sources[name], print_notice)
        rate_hz = self.backend.spec.audio.sample_rate_hz
        return open_input(name, self.options, rate_hz, self.sources[name])

    def _print_header(self, source: Source) -> None:
        from runtime.sinks import terminal

        spec = self.backend.spec
        trained = "" if spec.trained else " (RANDOM WEIGHTS)"
        windows = describe_windows(self.stream, spec.audio.token_hz)
        terminal.print_header(
            self.out, source.info, spec.model_id + trained, self.backend.provider, windows
        )
        if self.site is not None:
            terminal.print_line(self.out, self.site.headline, style="dim")
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
        from runtime.sinks.jsonl import RecordError

        if len(self.sources) == 1 or isinstance(err, DependencyError | RecordError):
            raise err
        print_error(err)
        self.failed.append(name)
        self.worst = max(self.worst, err.exit_code if isinstance(err, UserError) else EXIT_ERROR)


def _open_jsonl(target: str | None, stack: ExitStack, *, live: bool) -> JsonLinesSink | None:
    from runtime.sinks.jsonl import JsonLinesSink

    return None if target is None else stack.enter_context(JsonLinesSink(target, live=live))


if __name__ == "__main__":
    leave(main)
