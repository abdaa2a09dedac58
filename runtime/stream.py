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
from contextlib import ExitStack, suppress
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
from runtime.spec import SpecError, StreamSpec
from runtime.web import BROWSER, FACES
from runtime.web.address import DEFAULT as DEFAULT_ADDRESS

if TYPE_CHECKING:
    from rich.console import Console

    from runtime.backends.base import Backend
    from runtime.media import Source
    from runtime.pipeline import Summary
    from runtime.sinks.jsonl import JsonLinesSink
    from runtime.web.server import WebServer

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


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m runtime.stream",
        description="Judge whether talking faces are genuine: picture, voice, and both together.",
        epilog="Exit codes: 0 done, 1 operational error, 2 usage, 3 every window abstained, "
        "4 a fake was found and --fail-on-fake was given.",
    )
    p.add_argument(
        "--source", action="append", required=True, metavar="SOURCE",
        help="a file, a folder, a glob, or camera, 0, /dev/video0; with --web, browser: the camera "
             "and microphone of the page; may be given several times",
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
    p.add_argument("--jsonl", default=None, metavar="PATH|-",
                   help="write verdicts as JSON Lines; - is standard output")  # fmt: skip
    p.add_argument("--web", nargs="?", const=DEFAULT_ADDRESS, default=None, metavar="HOST:PORT",
                   help="serve a page to watch (default: this machine only, "
                        f"{DEFAULT_ADDRESS})")  # fmt: skip
    p.add_argument("--web-faces", choices=FACES, default="show",
                   help="faces on the page: show, blur, or hide all pictures (default: show)",
                   )  # fmt: skip
    p.add_argument("--web-cert", type=Path, default=None, metavar="FILE",
                   help="serve the page over TLS, with this certificate (PEM)")  # fmt: skip
    p.add_argument("--web-key", type=Path, default=None, metavar="FILE",
                   help="the key of --web-cert, where it is in a file of its own")  # fmt: skip
    p.add_argument("--web-hold", action="store_true",
                   help="keep the page up after the sources have ended, until Ctrl-C")  # fmt: skip
    p.add_argument("--window", type=_seconds, default=None, metavar="S",
                   help="length of a window in seconds (default: the model's, 2.0)")  # fmt: skip
    p.add_argument("--hop", type=_seconds, default=None, metavar="S",
                   help="time between verdicts in seconds (default: the model's, 0.2)")  # fmt: skip
    p.add_argument("--audio", choices=("same", "none"), default="same",
                   help="sound of the same source, or none (default: same)")  # fmt: skip
    p.add_argument("--allow-untrained", action="store_true",
                   help="run a model with random weights; its verdicts mean nothing")  # fmt: skip
    p.add_argument("--fail-on-fake", action="store_true", help="exit code 4 when a fake is found")
    p.add_argument("--quiet", action="store_true", help="only the header and the summary")
    return p


def run_command(options: argparse.Namespace) -> int:
    from runtime.sinks import timeline

    sources = expand_sources(options.source)
    check_page_options(options, sources)
    out = timeline.console(stderr=options.jsonl == "-")
    with ExitStack() as stack:
        backend = stack.enter_context(_load(options))
        stream = stream_spec(backend.spec.stream, backend.spec.audio.token_hz, options)
        jsonl = _open_jsonl(options.jsonl, stack)
        page = _open_page(options, sources, backend, stream, stack)
        summaries: list[Summary] = []
        failed: list[str] = []
        worst = EXIT_OK
        for source in sources:
            try:
                summary = _stream_one(source, backend, stream, options, out, jsonl, page)
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
        if page is not None and options.web_hold:
            _hold(page)
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
        if source == BROWSER:
            found[source] = None
            continue
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


def check_page_options(options: argparse.Namespace, sources: Sequence[str]) -> None:
    """Raises :class:`UsageError` where they contradict each other."""
    if options.web is not None:
        return
    if BROWSER in sources:
        raise UsageError(f"--source {BROWSER}: it is the page's camera; add --web")
    for name in ("web_cert", "web_key", "web_hold"):
        if getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')}: there is no page; add --web")


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


def _open_jsonl(target: str | None, stack: ExitStack) -> JsonLinesSink | None:
    from runtime.sinks.jsonl import JsonLinesSink

    return None if target is None else stack.enter_context(JsonLinesSink(target))


def _open_page(
    options: argparse.Namespace,
    sources: Sequence[str],
    backend: Backend,
    stream: StreamSpec,
    stack: ExitStack,
) -> WebServer | None:
    """Serves the page and says where; raises :class:`UserError` where it cannot."""
    if options.web is None:
        return None
    from runtime.web.address import parse_address
    from runtime.web.server import WebServer
    from runtime.web.sink import WebSink

    sink = WebSink(
        model_id=backend.spec.model_id,
        provider=backend.provider,
        judged_by=_windows(backend, stream),
        trained=backend.spec.trained,
    )
    page = WebServer(
        parse_address(options.web),
        sink,
        backend.spec,
        faces=options.web_faces,
        certificate=options.web_cert,
        key=options.web_key,
    )
    if BROWSER in sources:
        page.want_browser()
    stack.enter_context(page)
    print(f"page: {page.url}", file=sys.stderr)
    if BROWSER in sources:
        print("open it and press \"Use this camera and microphone\"; stop with Ctrl-C",
              file=sys.stderr)  # fmt: skip
        if not page.browser_can_record:
            print("on other machines browsers give a camera only to https://: use --web-cert and "
                  "--web-key", file=sys.stderr)  # fmt: skip
    return page


def _hold(page: WebServer) -> None:
    print(f"the page stays at {page.base_url} until Ctrl-C", file=sys.stderr)
    with suppress(KeyboardInterrupt):
        page.wait()


def _windows(backend: Backend, stream: StreamSpec) -> str:
    hz = backend.spec.audio.token_hz
    return f"windows of {stream.window_tokens / hz:g} s every {stream.hop_tokens / hz:g} s"


def _stream_one(
    name: str,
    backend: Backend,
    stream: StreamSpec,
    options: argparse.Namespace,
    out: Console,
    jsonl: JsonLinesSink | None,
    page: WebServer | None,
) -> Summary:
    """One source from its header to its summary."""
    from runtime.pipeline import run
    from runtime.sinks import Sink, timeline

    from_page = page is not None and name == BROWSER
    with page.browser_source() if page is not None and from_page else open_source(name) as source:
        trained = "" if backend.spec.trained else " (RANDOM WEIGHTS)"
        timeline.print_header(
            out, source.info, backend.spec.model_id + trained, backend.provider,
            _windows(backend, stream),
        )  # fmt: skip
        if source.live and not from_page:
            print("picture only: a camera has no sound here, so windows abstain (no_audio); "
                  "stop with Ctrl-C", file=sys.stderr)  # fmt: skip
        rows = timeline.TimelineSink(out)
        sinks: list[Sink] = [] if options.quiet else [rows]
        if jsonl is not None:
            sinks.append(jsonl)
        if page is not None:
            page.sink.watch(source)
            sinks.append(page.sink)
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
