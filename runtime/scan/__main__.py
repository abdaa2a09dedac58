# SPDX-License-Identifier: Apache-2.0
"""Score an archive: ``python -m runtime.scan FOLDER --output results.parquet``.

Clips are scored in parallel by Ray Data, one actor a worker with the model loaded once, one clip a
task.  The result is one row a clip, as Parquet and as CSV, sorted by path.  Every row is on the
disk before the next one is waited for (:mod:`runtime.scan.clips`): a scan that was killed goes on
where it was when the same command is given again.

Without ``--ray`` a private Ray runs for the length of the command: it listens on the loopback
address alone, serves no dashboard, and reports nothing to anybody.

Exit codes: 0 done; 1 operational error, or some clips could not be read (the table is written all
the same, with a row and the error for each); 2 usage; 3 every window of every clip abstained; 4 a
fake was found and ``--fail-on-fake`` was given; 130 interrupted.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import re
import socket
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime import interrupt, leftovers, waits
from runtime.backends import load_backend
from runtime.command import (
    Parser,
    add_model_options,
    add_track_options,
    guarded,
    other_inputs,
    positive_int,
    stream_spec,
)
from runtime.errors import (
    EXIT_ALL_ABSTAINED,
    EXIT_ERROR,
    EXIT_FAKE,
    EXIT_OK,
    UsageError,
    UserError,
)
from runtime.judging.verdict import Label
from runtime.media.open import MEDIA_SUFFIXES
from runtime.naming import plain
from runtime.optional import optional
from runtime.overwrites import refuse_overwrites
from runtime.scan.clips import Clip, Scorer, Work, find_clips, lost_row
from runtime.scan.journal import Journal, Settings, written_files
from runtime.scan.table import Row, check_output, write_tables

if TYPE_CHECKING:
    from rich.console import Console

    from runtime.spec import PairSpec

SHOWN = 10  # clips named in the summary, of each kind
# Two passes.  In the first the next clip waits at the worker while one is scored, and shares its
# fate; in the second nothing waits, so that a clip that is lost again is the one that did it.
QUEUED = (2, 1)
CONNECT_TIMEOUT_S = 10.0
OBJECT_STORE_BYTES = 100 << 20  # what travels are names and rows; Ray's least is 75 MiB
# Read by Ray when it is imported.
_QUIET = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # what matters also arrives as an exception
    # A thread of Ray's that asks for something when all has ended would begin another Ray, with
    # files in another place.
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
# The node's address is the loopback one only where Ray takes the
# machine for one that cannot be part of a cluster; on Linux that takes the third variable.
_PRIVATE = {
    "RAY_enable_metrics_collection": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leave the GPUs visible for --provider cuda
    "RAY_worker_niceness": "0",  # 15 by default; that of the command is the user's to say
    **_QUIET,
}
# Ray's process for usage reports asks the network which cloud this is (169.254.169.254,
# metadata.google.internal), also where it will report nothing.  With a proxy that is not there,
# whatever Ray would ask of the network ends on this machine.
_NOBODY = {
    "http_proxy": "http://127.0.0.1:9",  # discard (RFC 863): nothing listens
    "https_proxy": "http://127.0.0.1:9",
    "all_proxy": "http://127.0.0.1:9",
    "no_proxy": "127.0.0.1,localhost",
}
_CLUSTER_REMEDY = (
    "check the address, and that the cluster runs the same Ray; if it asks for a token, set "
    "RAY_AUTH_MODE=token and have the token in ~/.ray/auth_token"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return guarded(lambda: run_command(parser().parse_args(arguments)))


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="python -m runtime.scan",
        description="Score a folder of clips in parallel, resumably: one row a clip.",
        epilog="Exit codes: 0 done, 1 operational error or some clips could not be read (the table "
        "is written all the same), 2 usage, 3 every window abstained, 4 a fake was found and "
        "--fail-on-fake was given, 130 interrupted.",
    )
    p.add_argument("folder", type=Path, metavar="FOLDER", help="clips, also in folders below it")
    p.add_argument("--output", type=Path, required=True, metavar="FILE.parquet",
                   help="the table; FILE.csv comes with it, and FILE.parquet.parts/ keeps what a "
                        "later run need not do again")  # fmt: skip
    p.add_argument("--workers", type=positive_int, default=None, metavar="N",
                   help="clips at a time (default: one a core)")  # fmt: skip
    p.add_argument("--ray", default=None, metavar="ADDRESS",
                   help="a running Ray cluster, e.g. auto or 10.0.0.5:6379, whose machines see "
                        "the same folder and model (default: a private Ray here)")  # fmt: skip
    add_model_options(p)
    p.add_argument("--audio", choices=("same", "none"), default="same",
                   help="sound of the same clip, or none (default: same)")  # fmt: skip
    add_track_options(p)
    p.add_argument("--allow-untrained", action="store_true",
                   help="run a model with random weights; its verdicts mean nothing")  # fmt: skip
    p.add_argument("--fail-on-fake", action="store_true", help="exit code 4 when a fake is found")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    return p


def run_command(options: argparse.Namespace) -> int:
    from runtime.sinks import terminal

    out = terminal.console()
    start = time.perf_counter()
    check_output(options.output)
    clips = find_clips(options.folder, MEDIA_SUFFIXES)
    work = _work(options)
    parts = options.output.with_name(options.output.name + ".parts")
    refuse_overwrites(
        (("--output", path) for path in written_files(options.output, parts)),
        [*(os.fsdecode(clip.file) for clip in clips), *other_inputs(options)],
    )
    with Journal(parts, work.settings) as journal:
        rows = {key: row for c in clips if (row := journal.kept.get(key := c.key())) is not None}
        todo = [clip for clip in clips if clip.key() not in rows]
        known = len(rows)
        workers = 0
        try:
            with _progress(out, len(clips), known, quiet=options.quiet) as advance:
                if todo:
                    with _engine(options) as (ray, workers):
                        for queued in QUEUED:  # what a worker's death took along, once more
                            left = [clip for clip in todo if clip.key() not in rows]
                            rows_of = _scored(ray, left, work, workers, queued)
                            for row in waits.polled(rows_of) if left else ():
                                journal.add(row)
                                rows[row["key"]] = row
                                advance(row)
        except KeyboardInterrupt:
            print(f"{len(rows)} of {len(clips)} clips are kept in {plain(str(parts))}; the same "
                  "command goes on from there", file=sys.stderr)  # fmt: skip
            raise
        interrupt.check()
        table = [rows.get(c.key()) or lost_row(c, work.settings.model_id) for c in clips]
        files = write_tables(options.output, table)
    seconds = time.perf_counter() - start
    _print_summary(out, table)
    terminal.print_line(
        out,
        f"model {work.settings.model_id}: {len(todo)} clips scored by {workers} workers in "
        f"{seconds:.1f} s" + (f", {known} taken from {parts}" if known else ""),
        style="dim",
    )
    terminal.print_line(out, f"written: {files[0]}, {files[1]}")
    return exit_code(table, fail_on_fake=options.fail_on_fake)


def exit_code(rows: Sequence[Row], *, fail_on_fake: bool) -> int:
    """Of a run whose table is written."""
    if any(row["error"] for row in rows):
        return EXIT_ERROR
    if fail_on_fake and any(row["fake_spans"] for row in rows):
        return EXIT_FAKE
    return EXIT_ALL_ABSTAINED if all(row["coverage"] == 0 for row in rows) else EXIT_OK


def _work(options: argparse.Namespace) -> Work:
    """What every worker will do; the model is opened here once, so that what is wrong with it is
    said before Ray starts.  A cluster's machines may have a GPU that this one lacks: for them only
    the spec is read."""
    if options.ray is None:
        args = (options.model, options.backend, options.provider, options.threads)
        with load_backend(*args, options.plugin_library) as backend:
            spec = backend.spec
    else:
        spec = _spec(options.model)
    if not spec.trained and not options.allow_untrained:
        raise UsageError(
            f"{spec.model_id}: its weights are random, its verdicts would mean nothing; train it, "
            "or give --allow-untrained to run it all the same"
        )
    stream = stream_spec(spec.stream, spec.audio.token_hz, options)
    settings = Settings(
        model_id=spec.model_id,
        pair_id=spec.pair_id,
        precision=spec.precision,
        window_tokens=stream.window_tokens,
        hop_tokens=stream.hop_tokens,
        audio=options.audio == "same",
        video_track=options.video_track,
        audio_track=options.audio_track,
    )
    here = Path(options.model) if options.model is not None else None
    model = str(here.resolve()) if here is not None and here.is_dir() else options.model
    return Work(
        model=model,
        backend=options.backend,
        provider=options.provider,
        threads=options.threads,
        plugin_library=options.plugin_library and options.plugin_library.resolve(),
        stream=stream,
        settings=settings,
    )


def _spec(model: str | None) -> PairSpec:
    from runtime.backends.onnx import read_pair
    from runtime.models import DEFAULT_PRESET, model_dir

    return read_pair(model_dir(model or DEFAULT_PRESET))[0]


@contextlib.contextmanager
def _engine(options: argparse.Namespace) -> Iterator[tuple[Any, int]]:
    """Ray, and the number of workers; stopped when the block ends, however it ends.

    Raises :class:`DependencyError` without Ray, :class:`UserError` where the cluster does not
    answer.
    """
    for name, value in (_PRIVATE if options.ray is None else _QUIET).items():
        os.environ.setdefault(name, value)
    with ExitStack() as stack:
        if options.ray is None:
            stack.enter_context(_environment(_NOBODY))
        with optional("to scan an archive"):
            import ray
            import ray.data
        workers = options.workers or _cores()
        if options.ray is not None:
            _check_address(options.ray)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if options.ray is None:
            folder = stack.enter_context(leftovers.folder("msct-ray-"))
            quiet |= {
                "address": "local",  # not the cluster that RAY_ADDRESS may name
                "num_cpus": workers,
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": str(folder),
            }
        else:
            quiet["address"] = options.ray
        stack.callback(ray.shutdown)
        try:
            interrupt.check()
            # Ctrl-C and a closed terminal are for this process, which ends Ray's itself
            with _silent_stderr(), interrupt.shielded():
                ray.init(**quiet)
        except SystemExit:  # Ray's own handler of SIGTERM, for as long as it stands
            raise KeyboardInterrupt from None
        except Exception as err:  # Ray raises that very class where a node does not come up
            where = f"the Ray cluster {options.ray}" if options.ray else "Ray on this machine"
            raise UserError(
                f"{where} does not start or answer ({_last_line(err)}); "
                + (_CLUSTER_REMEDY if options.ray else "try again, or with fewer --workers")
            ) from None
        finally:
            interrupt.reinstall()  # Ray puts handlers of its own there
        interrupt.check()
        if options.ray is not None and options.workers is None:
            workers = max(1, int(_cluster(ray).get("CPU", 1)))
        yield ray, workers


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """These variables for as long as the block runs, and for the processes that it starts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _check_address(address: str) -> None:
    """Raise in seconds where nothing answers; Ray itself would try for minutes."""
    if address == "auto":  # Ray looks on this machine, and knows at once
        return
    found = re.fullmatch(r"(?:(?i:ray)://)?(?P<host>[^/\s]+):(?P<port>\d{1,5})", address)
    if found is None:
        raise UsageError(f"--ray {address}: give auto, HOST:PORT or ray://HOST:PORT")
    try:
        where = (found["host"].strip("[]"), int(found["port"]))
        socket.create_connection(where, timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as err:
        raise UserError(
            f"the Ray cluster {address} does not answer ({err}); check the address"
        ) from None


def _cluster(ray: Any) -> dict[str, float]:
    """Its resources, by name."""
    return dict(ray.cluster_resources())


def _scored(
    ray: Any, clips: Sequence[Clip], work: Work, workers: int, queued: int
) -> Iterator[Row]:
    """Rows as they come; none of a clip on which a worker died, or which waited there.

    ``queued``: clips given to a worker at a time.

    Raises :class:`UserError` where a worker cannot work or Ray gives up.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours knows of the clips that were done before
    context.max_errored_blocks = -1  # a task that failed for good is a clip: see lost_row
    context.execution_no_progress_timeout_s = -1  # a clip may last hours
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    items = ray.data.from_items(
        [dataclasses.asdict(clip) for clip in clips], override_num_blocks=len(clips)
    )
    with warnings.catch_warnings():  # deprecated before 2.64; pyproject.toml stays below
        warnings.filterwarnings("ignore", message="`ray_remote_args_fn` is deprecated")
        answers = items.map(
            Scorer,
            fn_constructor_args=[work],
            compute=ray.data.ActorPoolStrategy(
                size=min(workers, len(clips)), max_tasks_in_flight_per_actor=queued
            ),
            num_cpus=1,
            # a worker that dies starts again; a clip may still be sent to one that is about to
            ray_remote_args_fn=lambda: {"max_restarts": -1, "max_task_retries": 1},
        )
    try:
        for answer in answers.iter_rows():
            if answer["fatal"]:
                raise UserError(answer["fatal"])
            yield json.loads(answer["row"])
    except ray.exceptions.RayError as err:
        raise UserError(f"Ray gave up ({_last_line(err)}); the same command goes on") from None


@contextlib.contextmanager
def _progress(
    out: Console, total: int, known: int, *, quiet: bool
) -> Iterator[Callable[[Row], None]]:
    """A bar on a terminal, nothing in a log; the function it gives is told of every row."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    bar = Progress(
        "scan",
        BarColumn(),
        MofNCompleteColumn(),
        "{task.fields[notes]}",
        TimeRemainingColumn(),
        console=out,
        transient=True,
        disable=quiet or not out.is_terminal,
    )
    fakes = errors = 0
    with bar:
        task = bar.add_task("scan", total=total, completed=known, notes="")

        def advance(row: Row) -> None:
            nonlocal fakes, errors
            fakes += bool(row["fake_spans"])
            errors += bool(row["error"])
            bar.update(task, advance=1, notes=f"{fakes} with fakes, {errors} unreadable")

        yield advance


def _print_summary(out: Console, rows: Sequence[Row]) -> None:
    from runtime.sinks.terminal import print_line

    windows = sum(row["windows"] for row in rows)

    def share(label: str) -> str:
        counted = sum(row["windows"] * (row[f"share_{label}"] or 0.0) for row in rows)
        return f"{counted / windows if windows else 0:.0%} {label}"

    reasons: Counter[str] = Counter()
    for row in rows:
        reasons.update({r["reason"]: r["windows"] for r in row["reasons"]})
    said = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())
    line = f"{windows} windows: {', '.join(map(share, Label))}" + (f" ({said})" if said else "")
    print_line(out, line, style="bold")
    unreadable = [row for row in rows if row["error"]]
    fakes = sorted((r for r in rows if r["fake_spans"]), key=lambda r: -r["highest_p_fake"])
    for title, found in (("with fake windows", fakes), ("not read", unreadable)):
        if found:
            print_line(out, f"{len(found)} of {len(rows)} clips {title}:")
        for row in found[:SHOWN]:
            what = row["error"] or f"highest p_fake {row['highest_p_fake']:.2f}"
            print_line(out, f"  {plain(row['path'])}  {what}")
        if len(found) > SHOWN:
            print_line(out, f"  and {len(found) - SHOWN} more, in the table")


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Ray's native part announces its settings there; its errors are exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _last_line(err: BaseException) -> str:
    lines = str(err).strip().splitlines()
    return lines[-1].strip() if lines else type(err).__name__


if __name__ == "__main__":
    interrupt.leave(main)
