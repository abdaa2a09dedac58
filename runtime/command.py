# SPDX-License-Identifier: Apache-2.0
"""What the commands share: their options, the model and the sources behind them, their errors."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from runtime import interrupt, waits
from runtime.address import remember_arguments, scheme_of
from runtime.backends import BACKENDS, load_backend
from runtime.errors import EXIT_ERROR, EXIT_INTERRUPTED, UsageError, UserError
from runtime.media.open import DECODERS, ISOLATED, Sound, open_source, parse_sound
from runtime.media.picking import Tracks
from runtime.models import model_files
from runtime.naming import plain, plain_line
from runtime.spec import FACE_STAGES, SpecError, StreamSpec

if TYPE_CHECKING:
    from runtime.backends.base import Backend
    from runtime.media import Source


class Parser(argparse.ArgumentParser):
    """The options of a command: what is wrong with them is said in plain text, and secrets in them
    are hidden in whatever the command prints."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = sys.argv[1:] if args is None else list(args)
        remember_arguments(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        super().error(plain(message))


def guarded(command: Callable[[], int]) -> int:
    """Runs ``command``; what a person can put right becomes one line on standard error."""
    try:
        interrupt.check()
        return command()
    except UserError as err:
        print_error(err)
        return err.exit_code
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except KeyboardInterrupt:
        interrupt.say_interrupted()
        return EXIT_INTERRUPTED
    except Exception:  # a fault of ours: with all that is known of it, and still without secrets
        for line in traceback.format_exc().splitlines():
            print(plain_line(line), file=sys.stderr)
        return EXIT_ERROR


def print_error(err: BaseException) -> None:
    print(f"error: {plain(str(err))}", file=sys.stderr)


def print_notice(line: str) -> None:
    """An outage of a live source, or its end: on standard error, when it happens."""
    print(f"note: {plain(line)}", file=sys.stderr, flush=True)


# --- options --------------------------------------------------------------------------------


def add_source_options(p: argparse.ArgumentParser) -> None:
    """``--source`` and what says how to read it."""
    p.add_argument(
        "--source", action="append", required=True, metavar="SOURCE",
        help="a file, a folder, a glob; camera, 0, /dev/video0, csi://0; rtsp://, rtsps://, "
             "http://, https://; or a list.streams of them; may be given several times",
    )  # fmt: skip
    p.add_argument("--name", action="append", default=[], metavar="NAME",
                   help="what the source is called everywhere (default: its address without user, "
                        "password and query, or its path); one for each --source, in their "
                        "order")  # fmt: skip
    p.add_argument("--audio", type=sound, default="same", metavar="same|mic[:ID]|none",
                   help="sound of the same source, of a microphone (ID: its number or a part of "
                        "its name), or none (default: same)")  # fmt: skip
    p.add_argument("--rtsp-transport", choices=("tcp", "udp"), default="tcp",
                   help="what carries RTSP's media (default: tcp)")  # fmt: skip
    p.add_argument("--decoder", choices=DECODERS, default=ISOLATED,
                   help="decode files in a process of their own, with limits on memory and time, "
                        "or in this one (default: process)")  # fmt: skip
    add_track_options(p)


def add_track_options(p: argparse.ArgumentParser) -> None:
    """Which track of a file: for :func:`tracks`."""
    for kind, letter in (("video", "v"), ("audio", "a")):
        p.add_argument(f"--{kind}-track", type=track_number, default=None, metavar="N",
                       help=f"which of several, counted from 0 as FFmpeg's {letter}:N (default: "
                            "the one that players play)")  # fmt: skip


def tracks(options: argparse.Namespace) -> Tracks:
    return Tracks(options.video_track, options.audio_track)


def add_model_options(p: argparse.ArgumentParser) -> None:
    """The model, what runs it, and its windows: for :func:`load_model` and :func:`stream_spec`."""
    p.add_argument("--model", default=None, metavar="NAME|DIR",
                   help="a shipped preset, or a folder with an ONNX pair or engines")  # fmt: skip
    p.add_argument("--backend", choices=BACKENDS, default="auto",
                   help="what runs the model (auto: the folder's engines where it has some, else "
                        "onnx; tensorrt: TensorRT or TensorRT-RTX)")  # fmt: skip
    p.add_argument("--provider", type=provider, default=None, metavar="cpu|cuda|cuda:N",
                   help="where ONNX Runtime computes (default: cpu)")  # fmt: skip
    p.add_argument("--threads", type=positive_int, default=None, metavar="N",
                   help="threads of the model in ONNX Runtime (default: 1)")  # fmt: skip
    p.add_argument("--faces", choices=FACE_STAGES, default=None,
                   help="what finds and follows faces: as the model was trained, which is also the "
                        "default; another one is refused")  # fmt: skip
    p.add_argument("--plugin-library", type=Path, default=None, metavar="FILE",
                   help="plugins of the engines (default: the installed ones)")  # fmt: skip
    p.add_argument("--window", type=seconds, default=None, metavar="S",
                   help="length of a window in seconds (default: the model's, 2.0)")  # fmt: skip
    p.add_argument("--hop", type=seconds, default=None, metavar="S",
                   help="time between verdicts in seconds (default: the model's, 0.2)")  # fmt: skip


def positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def track_number(text: str) -> int:
    if not text.isdecimal() or len(text) > 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a track, from 0")
    return int(text)


def provider(text: str) -> str:
    from runtime.backends.onnx import parse_provider

    try:
        parse_provider(text)
    except UsageError as err:
        raise argparse.ArgumentTypeError(str(err)) from None
    return text


def sound(text: str) -> Sound:
    try:
        return parse_sound(text)
    except UsageError as err:
        raise argparse.ArgumentTypeError(str(err)) from None


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 60:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to 60")
    return value


# --- what they ask for ----------------------------------------------------------------------


def load_model(options: argparse.Namespace) -> Backend:
    """The model that the options ask for; raises :class:`UsageError` for one never trained."""
    backend = load_backend(
        options.model,
        options.backend,
        options.provider,
        options.threads,
        options.plugin_library,
    )
    if interrupt.requested():  # what it takes seconds to import and to load
        backend.close()
        interrupt.check()
    stage = backend.spec.face.stage
    if options.faces not in (None, stage):
        backend.close()
        raise UsageError(
            f"{backend.spec.model_id} was trained on the crops of --faces {stage}; those of "
            f"{options.faces} would mean nothing to it: leave --faces out"
        )
    if not backend.spec.trained and not options.allow_untrained:
        backend.close()
        raise UsageError(
            f"{backend.spec.model_id or options.model}: its weights are random, its verdicts would "
            "mean nothing; train it, or give --allow-untrained to run it all the same"
        )
    return backend


def open_input(
    source: str, options: argparse.Namespace, sample_rate_hz: int, name: str | None = None
) -> Source:
    """One of the sources that the options name; ``name`` as in :func:`open_source`, which says
    what it raises."""

    def opened() -> Source:
        return open_source(
            source,
            name=name,
            sound=options.audio,
            transport=options.rtsp_transport,
            sample_rate_hz=sample_rate_hz,
            notice=print_notice,
            isolated=options.decoder == ISOLATED,
            tracks=tracks(options),
        )

    interrupt.check()
    return waits.call(opened) if scheme_of(source) else opened()  # a server may take its time


def other_inputs(options: argparse.Namespace) -> list[str | Path | None]:
    """Files that a command reads besides what its sources come to: for
    :func:`runtime.overwrites.refuse_overwrites`."""
    named = ("site", "plugin_library", "web_cert", "web_key")
    lists = getattr(options, "source", ())  # of sources
    return [*lists, *(getattr(options, name, None) for name in named), *model_files(options.model)]


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


def describe_windows(stream: StreamSpec, token_hz: float) -> str:
    """For people: ``windows of 2 s every 0.2 s``."""
    window_s, hop_s = stream.window_tokens / token_hz, stream.hop_tokens / token_hz
    return f"windows of {window_s:g} s every {hop_s:g} s"
