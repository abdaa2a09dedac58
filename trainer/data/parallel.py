# SPDX-License-Identifier: Apache-2.0
"""Work spread over processes, with a progress bar."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def over_processes(
    function: Callable[..., Result],
    items: Iterable[tuple[Item, tuple[Any, ...]]],
    *,
    workers: int,
    title: str,
) -> Iterator[tuple[Item, Result]]:
    """Yields (item, function(*arguments)) as each is done; one worker runs in this process.

    Processes are spawned, never forked: OpenCV, FFmpeg and OpenMP hold threads and locks that a
    fork would copy in whatever state they are in.
    """
    from rich.progress import Progress

    work = list(items)
    with Progress(transient=True) as bar:
        task = bar.add_task(title, total=len(work))
        if workers <= 1 or len(work) <= 1:
            for item, arguments in work:
                yield item, function(*arguments)
                bar.advance(task)
            return
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(work)), mp_context=spawn) as pool:
            futures = {pool.submit(function, *arguments): item for item, arguments in work}
            for future in as_completed(futures):
                bar.advance(task)
                yield futures[future], future.result()
