# SPDX-License-Identifier: Apache-2.0
"""Work spread over processes, with a progress bar.

``concurrent.futures`` gives up on all its work when one process dies, and cannot say on what it was
working.  Clips from anywhere do crash decoders, so each worker here has a pipe of its own: the one
that breaks names the item, another worker takes its place, and the rest goes on.  A worker ends
with its parent, however that ends: who gives the same command again finds nobody at work on it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from runtime import interrupt
from runtime.errors import MediaError, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
POLL_S = 0.1  # how soon a signal is seen


class WorkerDied(MediaError):
    """The process that worked on one item ended without an answer."""

    def __init__(self, exit_code: int | None) -> None:
        if exit_code is not None and exit_code < 0:
            name = signal.Signals(-exit_code).name
            how = f"killed by {name}"
        else:
            how = f"exit code {exit_code}"
        super().__init__(f"the process that read it died ({how})")


def over_processes(
    function: Callable[..., Result],
    items: Iterable[tuple[Item, tuple[Any, ...]]],
    *,
    workers: int,
    title: str,
    isolated: bool = False,
) -> Iterator[tuple[Item, Result | WorkerDied]]:
    """Yields (item, function(*arguments)) as each is done.

    An exception of the function is raised here; an item on which two processes die has
    :class:`WorkerDied` as its result.  One worker runs in this process unless ``isolated``, none
    always does.  Processes are spawned, never forked: OpenCV, FFmpeg and OpenMP hold threads and
    locks that a fork would copy in whatever state they are in.
    """
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    work = list(items)
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(title, total=len(work))
        if workers < 1 or (workers == 1 and not isolated):
            for item, arguments in work:
                interrupt.check()
                yield item, function(*arguments)
                bar.advance(task)
            return
        pool = _Pool(function, min(workers, len(work)))
        try:
            for index, result in pool.run([arguments for _, arguments in work]):
                bar.advance(task)
                yield work[index][0], result
        finally:
            pool.close()


class _Pool:
    """Spawned processes, each at the far end of its own pipe."""

    def __init__(self, function: Callable[..., Any], workers: int) -> None:
        self._function = function
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[Connection, Any] = {}
        self._busy: dict[Connection, int] = {}  # connection -> index of its work
        for _ in range(workers):
            self._start()
        try:
            for connection, process in self._processes.items():
                _greet(connection, process)
        except BaseException:
            self.close()
            raise

    def run(self, work: list[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        waiting = list(enumerate(work))[::-1]
        tried: set[int] = set()
        for connection in list(self._processes):
            self._give(connection, waiting)
        while self._busy:
            interrupt.check()
            ready = set(wait(list(self._busy), POLL_S))
            for connection in [c for c in self._busy if c in ready]:
                index = self._busy.pop(connection)
                try:
                    answer = connection.recv()
                except (EOFError, ConnectionError):
                    died = WorkerDied(self._bury(connection))
                    if index not in tried:  # someone may have killed it: once more, at the end
                        tried.add(index)
                        waiting.insert(0, (index, work[index]))
                    else:
                        yield index, died
                    if waiting:
                        successor = self._start()
                        _greet(successor, self._processes[successor])
                        self._give(successor, waiting)
                    continue
                self._give(connection, waiting)
                if isinstance(answer, _Raised):
                    raise answer.error from RuntimeError(answer.where)
                yield index, answer

    def close(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for connection in list(self._processes):
            self._bury(connection)

    def _start(self) -> Connection:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(self._function, there), daemon=True)
        resource_tracker.ensure_running()  # it opens this thread to signals when it is started
        with interrupt.shielded():
            process.start()
        there.close()  # the worker has its own: its end closes when it ends
        self._processes[here] = process
        return here

    def _give(self, connection: Connection, waiting: list[tuple[int, tuple[Any, ...]]]) -> None:
        if waiting:
            index, arguments = waiting.pop()
            self._busy[connection] = index
            with contextlib.suppress(ConnectionError):  # it died: waiting for it says so
                connection.send(arguments)

    def _bury(self, connection: Connection) -> int | None:
        process = self._processes.pop(connection)
        connection.close()
        process.join()
        return process.exitcode


def _greet(connection: Connection, process: Any) -> None:
    """Wait for a worker to be up; one that cannot start has no clip to blame."""
    try:
        while not connection.poll(POLL_S):
            interrupt.check()
        connection.recv()
    except (EOFError, ConnectionError):
        process.join()
        raise UserError(
            f"a worker process cannot start (exit code {process.exitcode}); a script that calls "
            "this needs `if __name__ == '__main__':` around it"
        ) from None


class _Raised:
    """An exception on its way through a pipe."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.where = "in a worker process:\n" + traceback.format_exc()


def _serve(function: Callable[..., Any], pipe: Connection) -> None:
    """A worker's life: it ends when the other end is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    interrupt.install_in_worker()
    with contextlib.suppress(ConnectionError):
        pipe.send("ready")
    while True:
        try:
            arguments = pipe.recv()
        except (EOFError, ConnectionError):
            return
        try:
            answer: Any = function(*arguments)
        except Exception as err:
            answer = _Raised(err)
        try:
            pipe.send(answer)
        except ConnectionError:
            return


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers, and one at work does not look at its pipe."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
