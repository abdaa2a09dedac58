# SPDX-License-Identifier: Apache-2.0
"""SIGINT, SIGTERM and SIGHUP: the first asks, the second ends at once.

A command begins with :func:`install`, before it imports what takes long, and ends by :func:`leave`:

    if __name__ == "__main__":
        from runtime.interrupt import install

        install()
    ...
    if __name__ == "__main__":
        leave(main)

* While modules are still being imported nothing can be lost: any signal ends the process, with 130.
* The first signal afterwards sets a flag.  No exception is raised wherever the process happens to
  be, which may be in the middle of somebody's C++.  Whoever waits or loops looks at the flag:
  :func:`check` breaks off, a live source ends in its regular way (:func:`answer`).
* A second one removes temporary files, ends all children and then the process, with 130, whatever
  the main thread does meanwhile: a thread of its own is told (``signal.set_wakeup_fd``).
* SIGHUP is like SIGTERM, unless it was ignored from the start (nohup).  A terminal that is closed
  sends it twice, by the kernel and by the shell, which is one; and nothing is written to it any
  more.

Without :func:`install`, as in somebody else's program, nothing is handled and nothing is asked.
Waits that look at the flag are in :mod:`runtime.waits`; this module imports little, to be early.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from runtime.errors import EXIT_INTERRUPTED

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HANGUP_S = 1.0  # two SIGHUPs in it are one
SHOW_CURSOR = b"\x1b[?25h"  # which a progress bar hides


class _State:
    """Of this process."""

    def __init__(self) -> None:
        self.installed = False
        self.importing = True  # nothing has begun yet
        self.first = ""  # the name of the first signal
        self.first_s = 0.0
        self.answered = False  # the flag has been seen by somebody who ends in a regular way
        self.said = False  # that it was interrupted
        self.over: int | None = None  # the exit code, once all is done
        self.terminals: list[int] = []  # of standard output and error


_state = _State()


# --- what a command calls -------------------------------------------------------------------


def install() -> None:
    """Handle the signals from here on; in the main thread.  Calling it again changes nothing."""
    if _state.installed:
        return
    _state.installed = True
    _state.terminals = [fd for fd in (1, 2) if _is_terminal(fd)]
    _listen(_received)
    _handle()
    atexit.register(_ignore)  # Python itself restores the default action long before its end


def leave(main: Callable[[], int]) -> NoReturn:
    """Run the command and end the process with its exit code."""
    _state.importing = False
    try:
        code = main()
    except KeyboardInterrupt:
        say_interrupted()
        code = EXIT_INTERRUPTED
    _state.over = code
    if not _state.first:
        sys.exit(code)
    # Threads may be left in the middle of a read; Python's own end would take them down in C++.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    _end(code)


def say_interrupted() -> None:
    if _state.said:
        return
    _state.said = True
    with suppress(OSError, ValueError):
        print("interrupted\n", end="", file=sys.stderr, flush=True)


def reinstall() -> None:
    """After a library has put handlers of its own in the place of ours."""
    if _state.installed and threading.current_thread() is threading.main_thread():
        _handle()


# --- what loops and waits call --------------------------------------------------------------


def requested() -> str:
    """The name of the signal that has come, or nothing."""
    return _state.first


def handled() -> bool:
    """Are signals this module's in this process?"""
    return _state.installed


def check() -> None:
    """Raises KeyboardInterrupt in the main thread where a signal has come and is not answered."""
    if (
        _state.first
        and not _state.answered
        and threading.current_thread() is threading.main_thread()
    ):
        raise KeyboardInterrupt


def answer() -> None:
    """Whoever calls this ends in its regular way; from here on only a second signal breaks off."""
    _state.answered = True


# --- child processes of ours ----------------------------------------------------------------


@contextmanager
def shielded() -> Iterator[None]:
    """A child that is started in here begins with SIGINT and SIGHUP blocked.

    Ctrl-C and a closed terminal go to the whole group; a child that is still being started would
    die of it with a traceback.  It says by :func:`install_in_worker` that it is up.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def install_in_worker() -> None:
    """In a child that its parent ends, by SIGTERM: it removes what is its own and is gone."""
    _state.installed = True
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _listen(lambda number: _end(EXIT_INTERRUPTED))
    signal.signal(signal.SIGTERM, _heard)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


# --- for one run ----------------------------------------------------------------------------


class Interrupt:
    """What ends the live sources of one run: a signal, or somebody who asks."""

    def __init__(self) -> None:
        self._reason = ""
        self._asked = threading.Event()

    @property
    def asked(self) -> bool:
        return self._asked.is_set() or bool(_state.first)

    @property
    def reason(self) -> str:
        """The signal's name, or what was given to :meth:`ask`."""
        return self._reason or _state.first

    def ask(self, reason: str) -> None:
        """As if a signal had come; from any thread."""
        self._reason = self._reason or reason
        self._asked.set()


# --- signals --------------------------------------------------------------------------------


def _heard(number: int, frame: object) -> None:
    """Python's handler, which runs when the main thread gets to it: all is done by the thread."""


def _handle() -> None:
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _heard)


def _listen(told: Callable[[int], None]) -> None:
    """``told`` is called with the number of each signal, in a thread, as soon as it comes."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    signal.set_wakeup_fd(writes, warn_on_full_buffer=False)

    def watch() -> None:
        while True:
            for number in os.read(reads, 64):
                if number in SIGNALS:
                    told(number)

    threading.Thread(target=watch, name="signals", daemon=True).start()


def _received(number: int) -> None:
    now_s = time.monotonic()
    if number == signal.SIGHUP:
        _let_go_of_terminals()
        if _state.first == signal.SIGHUP.name and now_s - _state.first_s < HANGUP_S:
            return
    if _state.over is not None:  # all is done: Python is on its way out
        _end(_state.over)
    if _state.importing or _state.first:
        if not _state.said:
            _state.said = True
            _write(2, b"interrupted\n")
        _end(EXIT_INTERRUPTED)
    _state.first_s, _state.first = now_s, signal.Signals(number).name


def _end(code: int) -> NoReturn:
    """At once, from any thread."""
    leftovers = sys.modules.get("runtime.leftovers")  # nothing is left where it was not imported
    if leftovers is not None:
        with suppress(Exception):
            leftovers.end_all()
    for fd in _state.terminals:
        _write(fd, SHOW_CURSOR)
    os._exit(code)


def _let_go_of_terminals() -> None:
    """What is printed from here on goes nowhere, instead of being an error."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for fd in _state.terminals:
            os.dup2(nowhere, fd)
        os.close(nowhere)


def _ignore() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _write(fd: int, data: bytes) -> None:
    with suppress(OSError):
        os.write(fd, data)
