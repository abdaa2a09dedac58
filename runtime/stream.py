# SPDX-License-Identifier: Apache-2.0
"""Judge media: ``python -m runtime.stream --source video.mp4``.

Prints a timeline for people and, with ``--jsonl``, writes one JSON object a verdict.  Exit codes:
0 done, 1 operational error, 2 usage, 3 every window abstained, 4 a fake was found and
``--fail-on-fake`` was given, 130 interrupted.  A live source is ended by SIGINT (Ctrl-C) or
SIGTERM: its regular end, with a summary and the codes above; a second one ends at once, with 130.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.backends import BACKENDS, load_backend
from runtime.errors import (
    EXIT_ALL_ABSTAINED,
    EXIT_ERROR,
    EXIT_FAKE,
    EXIT_OK,
    DependencyError,
    UsageError,
    UserError,
)
from runtime.interrupt import Interrupt
from runtime.media.open import Sound, expand_sources, is_live, open_source, parse_sound
from runtime.sinks.outputs import Outputs, add_options
from runtime.spec import SpecError, StreamSpec

if TYPE_CHECKING:
    from rich.console import Console

    from runtime.backends.base import Backend
    from runtime.media import Source
    from runtime.pipeline import Summary
    from runtime.sinks.jsonl import JsonLinesSink

EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return guarded(lambda: run_command(parser().parse_args(arguments)))


def guarded(command: Callable[[], int]) -> int:
    """Runs ``command``; what a person can put right becomes one line on standard error."""
    try:
        return command()
    except UserError as err:
        print_error(err)
        return err.exit_code
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def print_error(err: BaseException) -> None:
    print(f"error: {' '.join(str(err).split())}", file=sys.stderr)


def add_input_options(p: argparse.ArgumentParser) -> None:
    """Sources, model and windows: what every command that judges media is given."""
    p.add_argument(
        "--source", action="append", required=True, metavar="SOURCE",
        help="a file, a folder, a glob; camera, 0, /dev/video0, csi://0; rtsp://, rtsps://, "
             "http://, https://; or a list.streams of them; may be given several times",
    )  # fmt: skip
    p.add_argument("--model", default=None, metavar="NAME|DIR",
                   help="a shipped preset, or a folder with an ONNX pair or engines")  # fmt: skip
    p.add_argument("--backend", choices=BACKENDS, default="auto",
                   help="what runs the model (auto: the folder's engines where it has some, else "
                        "onnx; tensorrt: TensorRT or TensorRT-RTX)")  # fmt: skip
    p.add_argument("--provider", type=_provider, default=None, metavar="cpu|cuda|cuda:N",
                   help="where ONNX Runtime computes (default: cpu)")  # fmt: skip
    p.add_argument("--threads", type=_positive_int, default=None, metavar="N",
                   help="threads of the model in ONNX Runtime (default: 1)")  # fmt: skip
    p.add_argument("--plugin-library", type=Path, default=None, metavar="FILE",
                   help="plugins of the engines (default: the installed ones)")  # fmt: skip
    p.add_argument("--window", type=_seconds, default=None, metavar="S",
                   help="length of a window in seconds (default: the model's, 2.0)")  # fmt: skip
    p.add_argument("--hop", type=_seconds, default=None, metavar="S",
                   help="time between verdicts in seconds (default: the model's, 0.2)")  # fmt: skip
    p.add_argument("--audio", type=_sound, default="same", metavar="same|mic[:ID]|none",
                   help="sound of the same source, of a microphone (ID: its number or a part of "
                        "its name), or none (default: same)")  # fmt: skip
    p.add_argument("--rtsp-transport", choices=("tcp", "udp"), default="tcp",
                   help="what carries RTSP's media (default: tcp)")  # fmt: skip
    p.add_argument("--allow-untrained", action="store_true",
                   help="run a model with random weights; its verdicts mean nothing")  # fmt: skip
    p.add_argument("--fail-on-fake", action="store_true", help="exit code 4 when a fake is found")
    p.add_argument("--parallel", action="store_true",
                   help="judge several sources at the same time, batched through one model; always "
                        "so where one of them is live, else one file after the other")  # fmt: skip
    p.add_argument("--quiet", action="store_true", help="only the header and the summary")
    add_options(p)
    return p


def run_command(options: argparse.Namespace) -> int:
    from runtime.sinks import timeline

    sources = expand_sources(options.source)
    live = any(is_live(source) for source in sources)
    together = len(sources) > 1 and (live or options.parallel)
    out = timeline.console(stderr=options.jsonl == "-")
    with ExitStack() as stack:
        outputs = stack.enter_context(Outputs(options, sources))
        backend = stack.enter_context(_load(options))
        stream = stream_spec(backend.spec.stream, backend.spec.audio.token_hz, options)
        jsonl = _open_jsonl(options.jsonl, stack, live=live)
        interrupt = stack.enter_context(Interrupt().installed())
        summaries: list[Summary] = []
        failed: list[str] = []
        worst = EXIT_OK
        if together:
            worst = _stream_together(
                sources, backend, stream, options, out, jsonl, interrupt, summaries, failed
            )
        for source in () if together else sources:
            try:
                summary = _stream_one(
                    source, backend, stream, options, out, jsonl, interrupt, outputs
                )
                summaries.append(summary)
            except DependencyError:
                raise
            except UserError as err:
                if len(sources) == 1 or _is_output_error(err):
                    raise
                print_error(err)
                failed.append(source)
                worst = max(worst, err.exit_code) if worst else err.exit_code
        if len(sources) > 1:
            timeline.print_table(out, summaries, failed)
        if jsonl is not None and summaries:
            jsonl.commit()
        outputs.finish()
        if outputs.failed:
            worst = worst or EXIT_ERROR
    return worst or exit_code(summaries, fail_on_fake=options.fail_on_fake)


def exit_code(summaries: Sequence[Summary], *, fail_on_fake: bool) -> int:
    """Of a run in which every source was read."""
    if fail_on_fake and any(s.stats.labels["fake"] for s in summaries):
        return EXIT_FAKE
    if all(s.stats.labels["abstain"] == s.stats.verdicts for s in summaries):
        return EXIT_ALL_ABSTAINED
    return EXIT_OK


def stream_spec(spec: StreamSpec, token_hz: float, options: argparse.Namespace) -> StreamSpec:
    """The model's own windows, or those of --window and --hop, in whole tokens.

    Raises :class:`UsageError` where they contradict each other.
    """

    def tokens(seconds: float | None, default: int) -> int:
        return default if seconds is None else max(1, round(seconds * token_hz))

    window = tokens(options.window, spec.window_tokens)
    hop = tokens(options.hop, spec.hop_tokens)
    try:
        return replace(spec, window_tokens=window, hop_tokens=hop)
    except SpecError as err:
        shortest = (spec.max_lag_tokens + 1) / token_hz
        raise UsageError(
            f"--window {window / token_hz:.2f} --hop {hop / token_hz:.2f}: a window takes at least "
            f"{shortest:.2f} s and a hop at most a window ({err})"
        ) from None


def _load(options: argparse.Namespace) -> Backend:
    backend = load_backend(
        options.model,
        options.backend,
        options.provider,
        options.threads,
        options.plugin_library,
    )
    if not backend.spec.trained and not options.allow_untrained:
        backend.close()
        raise UsageError(
            f"{backend.spec.model_id or options.model}: its weights are random, its verdicts would "
            "mean nothing; train it, or give --allow-untrained to run it all the same"
        )
    return backend


def _open_jsonl(target: str | None, stack: ExitStack, *, live: bool) -> JsonLinesSink | None:
    from runtime.sinks.jsonl import JsonLinesSink

    return None if target is None else stack.enter_context(JsonLinesSink(target, live=live))


def print_notice(line: str) -> None:
    """An outage of a live source, or its end: on standard error, when it happens."""
    print(f"note: {line}", file=sys.stderr, flush=True)


def _stream_together(
    sources: Sequence[str],
    backend: Backend,
    stream: StreamSpec,
    options: argparse.Namespace,
    out: Console,
    jsonl: JsonLinesSink | None,
    interrupt: Interrupt,
    summaries: list[Summary],
    failed: list[str],
) -> int:
    """All sources at the same time; fills ``summaries`` and ``failed``, returns the worst code."""
    from runtime.scheduler import Outcome, Stream, run_many
    from runtime.sinks import Sink, timeline

    worst = EXIT_OK
    running: list[Stream] = []
    rows: list[timeline.TimelineSink] = []

    def fail(name: str, err: Exception) -> None:
        nonlocal worst
        print_error(err)
        failed.append(name)
        worst = max(worst, err.exit_code if isinstance(err, UserError) else EXIT_ERROR)

    def ended(index: int, outcome: Outcome) -> None:
        name = outcome.summary.source
        rows[index].flush()
        timeline.print_name(out, name)
        timeline.print_summary(out, outcome.summary)
        if outcome.error is None:
            summaries.append(outcome.summary)
        else:
            fail(name, outcome.error)

    with ExitStack() as opened:
        for name in sources:
            try:
                source = opened.enter_context(_open(name, backend, options))
            except DependencyError:
                raise
            except UserError as err:
                fail(name, err)
                continue
            _print_header(source, backend, stream, out)
            rows.append(timeline.TimelineSink(out, source.info.name))
            sinks: list[Sink] = [] if options.quiet else [rows[-1]]
            if jsonl is not None:
                sinks.append(jsonl)
            running.append(Stream(source, sinks, with_audio=options.audio.kind != "none"))
        run_many(
            running,
            backend,
            spec=stream,
            interrupt=interrupt,
            on_load=lambda change: print_notice(str(change)),
            on_end=ended,
        )
    return worst


def _open(name: str, backend: Backend, options: argparse.Namespace) -> Source:
    return open_source(
        name,
        sound=options.audio,
        transport=options.rtsp_transport,
        sample_rate_hz=backend.spec.audio.sample_rate_hz,
        notice=print_notice,
    )


def _print_header(source: Source, backend: Backend, stream: StreamSpec, out: Console) -> None:
    from runtime.sinks import timeline

    hz = backend.spec.audio.token_hz
    trained = "" if backend.spec.trained else " (RANDOM WEIGHTS)"
    windows = f"windows of {stream.window_tokens / hz:g} s every {stream.hop_tokens / hz:g} s"
    timeline.print_header(
        out, source.info, backend.spec.model_id + trained, backend.provider, windows
    )
    if source.live and not source.info.has_audio:
        print_notice("no sound, so windows abstain (no_audio); --audio mic adds a microphone")


def _stream_one(
    name: str,
    backend: Backend,
    stream: StreamSpec,
    site: SiteCalibration | None,
    options: argparse.Namespace,
    out: Console,
    jsonl: JsonLinesSink | None,
    interrupt: Interrupt,
    outputs: Outputs,
) -> Summary:
    """One source from its header to its summary."""
    from runtime.pipeline import run
    from runtime.sinks import Sink, timeline

    with _open(name, backend, options) as source:
        _print_header(source, backend, stream, out)
        rows = timeline.TimelineSink(out)
        sinks: list[Sink] = [] if options.quiet else [rows]
        with outputs.of_source(name, source, backend, stream, jsonl) as asked_for:
            sinks += asked_for.sinks
            summary = run(
                source,
                backend,
                sinks=sinks,
                stream=stream,
                with_audio=options.audio.kind != "none",
                interrupt=interrupt,
            )
            rows.flush()
            asked_for.finish(summary, backend, out)
        timeline.print_summary(out, summary)
    return summary


def _is_output_error(err: UserError) -> bool:
    from runtime.sinks.jsonl import OutputError

    return isinstance(err, OutputError)


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _provider(text: str) -> str:
    from runtime.backends.onnx import parse_provider

    try:
        parse_provider(text)
    except UsageError as err:
        raise argparse.ArgumentTypeError(str(err)) from None
    return text


def _sound(text: str) -> Sound:
    try:
        return parse_sound(text)
    except UsageError as err:
        raise argparse.ArgumentTypeError(str(err)) from None


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 60:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to 60")
    return value


if __name__ == "__main__":
    sys.exit(main())
