# SPDX-License-Identifier: Apache-2.0
"""Waits that break off when a signal has come (:func:`runtime.interrupt.check`)."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, Queue
from typing import Any, TypeVar

from runtime import interrupt, leftovers

POLL_S = 0.1  # how soon a wait notices that it is over
T = TypeVar("T")


def sleep(seconds: float) -> None:
    """Breaks off as ``check`` does."""
    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        interrupt.check()
        time.sleep(min(POLL_S, left_s))
    interrupt.check()


def polled(items: Iterator[T]) -> Iterator[T]:
    """The same items, read by a thread, so that waiting for one breaks off as ``check`` does."""
    queue: Queue[tuple[str, Any]] = Queue(maxsize=1)

    def read() -> None:
        try:
            for item in items:
                queue.put(("item", item))
        except BaseException as err:
            queue.put(("error", err))
        else:
            queue.put(("end", None))

    threading.Thread(target=read, name="polled", daemon=True).start()
    while True:
        interrupt.check()
        try:
            kind, value = queue.get(timeout=POLL_S)
        except Empty:
            continue
        if kind == "error":
            raise value
        if kind == "end":
            return
        yield value


def call(work: Callable[[], T]) -> T:
    """What ``work`` returns or raises; waiting for it breaks off as ``check`` does.

    Where signals are not handled it is simply called.
    """
    if not interrupt.handled() or threading.current_thread() is not threading.main_thread():
        return work()

    def once() -> Iterator[T]:
        yield work()

    (result,) = polled(once())
    return result


def run_program(
    command: Sequence[str | os.PathLike[str]],
    *,
    timeout: float | None = None,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """As ``subprocess.run``, but the wait breaks off as ``check`` does, and ends the program.

    It is in a session of its own: Ctrl-C is for this process.
    """
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    end_s = None if timeout is None else time.monotonic() + timeout
    with leftovers.unbroken():
        begun = subprocess.Popen(command, start_new_session=True, **options)
    with begun as process:
        try:
            while True:
                interrupt.check()
                try:
                    out, err = process.communicate(timeout=POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    if end_s is not None and time.monotonic() >= end_s:
                        raise subprocess.TimeoutExpired(command, timeout or 0.0) from None
        except BaseException:
            leftovers.end_children(process.pid)
            raise
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done
