# SPDX-License-Identifier: Apache-2.0
"""Judge media: ``python -m runtime.stream --source video.mp4``.

Prints a timeline for people and, with ``--jsonl``, writes one JSON object a verdict.  Exit codes:
0 done, 1 operational error, 2 usage, 3 every window abstained, 4 a fake was found and
``--fail-on-fake`` was given, 130 interrupted.
"""

from __future__ import annotations

import argparse
import glob
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
from runtime.site import SiteBackend, SiteCalibration
from runtime.spec import SpecError, StreamSpec

if TYPE_CHECKING:
    from rich.console import Console

    from runtime.backends.base import Backend
    from runtime.media import Source
    from runtime.pipeline import Summary
    from runtime.sinks.jsonl import JsonLinesSink

EXIT_INTERRUPTED = 130
MEDIA_SUFFIXES = frozenset(
    [
        *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts"),
        *(".mts", ".vob", ".flv", ".wmv", ".asf", ".ogv", ".mxf", ".gif"),
        *(".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".oga", ".opus", ".wma", ".aiff"),
    ]
)


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
        help="a file, a folder, a glob, or camera, 0, /dev/video0; may be given several times",
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
    p.add_argument("--audio", choices=("same", "none"), default="same",
                   help="sound of the same source, or none (default: same)")  # fmt: skip


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m runtime.stream",
        description="Judge whether talking faces are genuine: picture, voice, and both together.",
        epilog="Exit codes: 0 done, 1 operational error, 2 usage, 3 every window abstained, "
        "4 a fake was found and --fail-on-fake was given.",
    )
    add_input_options(p)
    p.add_argument("--jsonl", default=None, metavar="PATH|-",
                   help="write verdicts as JSON Lines; - is standard output")  # fmt: skip
    p.add_argument("--site", type=Path, default=None, metavar="FILE",
                   help="thresholds and A/V offset of runtime.calibrate")  # fmt: skip
    p.add_argument("--allow-untrained", action="store_true",
                   help="run a model with random weights; its verdicts mean nothing")  # fmt: skip
    p.add_argument("--fail-on-fake", action="store_true", help="exit code 4 when a fake is found")
    p.add_argument("--quiet", action="store_true", help="only the header and the summary")
    return p


def run_command(options: argparse.Namespace) -> int:
    from runtime.sinks import timeline

    sources = expand_sources(options.source)
    out = timeline.console(stderr=options.jsonl == "-")
    with ExitStack() as stack:
        site = None if options.site is None else SiteCalibration.read(options.site)
        backend = stack.enter_context(load_model(options))
        if site is not None:
            backend = SiteBackend(backend, site)
        stream = stream_spec(backend.spec.stream, backend.spec.audio.token_hz, options)
        if site is not None:
            site.check_windows(stream, backend.spec.audio.token_hz)
        jsonl = _open_jsonl(options.jsonl, stack)
        summaries: list[Summary] = []
        failed: list[str] = []
        worst = EXIT_OK
        for source in sources:
            try:
                summaries.append(_stream_one(source, backend, stream, site, options, out, jsonl))
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
    return worst or exit_code(summaries, fail_on_fake=options.fail_on_fake)


def exit_code(summaries: Sequence[Summary], *, fail_on_fake: bool) -> int:
    """Of a run in which every source was read."""
    if fail_on_fake and any(s.stats.labels["fake"] for s in summaries):
        return EXIT_FAKE
    if all(s.stats.labels["abstain"] == s.stats.verdicts for s in summaries):
        return EXIT_ALL_ABSTAINED
    return EXIT_OK


def expand_sources(given: Sequence[str]) -> list[str]:
    """Folders and globs become their media files, sorted; each source once, in order.

    Raises :class:`UsageError` for what does not exist, a folder or glob without media, a URL.
    """
    from runtime.media.camera import camera_index

    found: dict[str, None] = {}
    for source in given:
        if "://" in source:
            scheme = source.split("://", 1)[0]
            raise UsageError(
                f"{scheme}:// sources are not supported by this version; give a file, a folder, "
                "a glob or camera"
            )
        path = Path(source)
        if path.is_dir():
            inside = sorted(
                str(file)
                for file in path.rglob("*")
                if file.suffix.lower() in MEDIA_SUFFIXES and file.is_file()
            )
            if not inside:
                raise UsageError(f"{source}: the folder holds no media files")
            found.update(dict.fromkeys(inside))
        elif path.exists() or camera_index(source) is not None:
            found[source] = None
        elif glob.has_magic(source):
            matches = sorted(f for f in glob.glob(source, recursive=True) if Path(f).is_file())  # noqa: PTH207
            if not matches:
                raise UsageError(f"{source}: no file matches")
            found.update(dict.fromkeys(matches))
        else:
            raise UsageError(f"{source}: no such file or folder")
    return list(found)


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


def open_source(source: str) -> Source:
    """A camera or a file; raises :class:`UserError` where it cannot be opened."""
    from runtime.media.camera import CameraSource, camera_index
    from runtime.media.file import FileSource

    index = camera_index(source)
    if index is not None and (source.startswith("/dev/") or not Path(source).exists()):
        return CameraSource(index)
    return FileSource(source)


def load_model(options: argparse.Namespace) -> Backend:
    """The model that the options ask for; raises :class:`UsageError` for one never trained."""
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


def _open_jsonl(target: str | None, stack: ExitStack) -> JsonLinesSink | None:
    from runtime.sinks.jsonl import JsonLinesSink

    return None if target is None else stack.enter_context(JsonLinesSink(target))


def _stream_one(
    name: str,
    backend: Backend,
    stream: StreamSpec,
    site: SiteCalibration | None,
    options: argparse.Namespace,
    out: Console,
    jsonl: JsonLinesSink | None,
) -> Summary:
    """One source from its header to its summary."""
    from runtime.pipeline import run
    from runtime.sinks import Sink, timeline

    hz = backend.spec.audio.token_hz
    with open_source(name) as source:
        trained = "" if backend.spec.trained else " (RANDOM WEIGHTS)"
        windows = f"windows of {stream.window_tokens / hz:g} s every {stream.hop_tokens / hz:g} s"
        timeline.print_header(
            out, source.info, backend.spec.model_id + trained, backend.provider, windows
        )
        if site is not None:
            timeline.print_line(out, site.headline, style="dim")
        if source.live:
            print("picture only: a camera has no sound here, so windows abstain (no_audio); "
                  "stop with Ctrl-C", file=sys.stderr)  # fmt: skip
        rows = timeline.TimelineSink(out)
        sinks: list[Sink] = [] if options.quiet else [rows]
        if jsonl is not None:
            sinks.append(jsonl)
        summary = run(
            source, backend, sinks=sinks, stream=stream, with_audio=options.audio == "same"
        )
        rows.flush()
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
