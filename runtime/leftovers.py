# SPDX-License-Identifier: Apache-2.0
"""What a process must not leave behind: its temporary files, and the processes that it started.

Whoever makes a temporary file keeps track of it here until it has its final name.  A process that
is ended in the middle (:mod:`runtime.interrupt`) ends its children and removes what is tracked.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.naming import temporary_name

REMOVE_S = 2.0  # that a folder may be written into by a child that ends
CHILDREN_S = 0.4  # that children have each time to remove what is theirs
LOCK_S = 1.0  # that a file may take to be made, on a network's disk
_tracked: dict[Path, None] = {}  # in the order of their making
_making = threading.RLock()  # nothing is made or begun any more once it is held by who ends all


def keep_track(path: Path) -> None:
    """``path`` is temporary; it need not exist yet."""
    _tracked[path] = None


def forget(path: Path) -> None:
    """It has its final name, or is gone."""
    _tracked.pop(path, None)


@contextmanager
def unbroken() -> Iterator[None]:
    """What is done in here is not cut in two by :func:`end_all`; it must be quick.

    A child process is begun in here: else one that began while all are being ended would stay.
    """
    with _making:
        yield


def new_file(target: Path) -> Path:
    """A new hidden file beside ``target``, tracked, with the rights of an ordinary one.

    Raises OSError.
    """
    with _making:
        beside = target.parent
        handle, name = tempfile.mkstemp(".tmp", temporary_name(target), beside)
        path = Path(name)
        keep_track(path)
    mask = os.umask(0)
    os.umask(mask)
    os.fchmod(handle, 0o666 & ~mask)  # mkstemp's 0600 would surprise the reader
    os.close(handle)
    return path


@contextmanager
def part_of(path: Path, suffix: str = ".part") -> Iterator[Path]:
    """A file to fill, which takes the name of ``path`` when the block ends well, and else goes.

    suffix : of its name, for a library that goes by it; one that ends in .part is looked for by
        whoever clears up after a process that was killed
    """
    part = path.with_name(temporary_name(path, f"{os.getpid()}{suffix}"))
    keep_track(part)
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
        forget(part)


@contextmanager
def folder(prefix: str = "msct-", beside: Path | None = None) -> Iterator[Path]:
    """A temporary folder, by default where this system has them; gone when the block ends."""
    with _making:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=beside))
        keep_track(path)
    try:
        yield path
    finally:
        _remove([path])
        forget(path)


def end_all() -> None:
    """Children end, temporary files go; nothing is made or begun afterwards in this process."""
    _making.acquire(timeout=LOCK_S)  # kept: this process is about to end
    end_children()
    remove()


def remove() -> None:
    """Whatever is tracked goes."""
    _remove(list(_tracked))


def _remove(paths: Sequence[Path]) -> None:
    """Also what a child that is just ending still writes into."""
    end_s = time.monotonic() + REMOVE_S
    while True:
        for path in paths:
            with suppress(OSError):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        if not any(path.exists() for path in paths) or time.monotonic() >= end_s:
            return
        time.sleep(0.02)


def end_children(of: int | None = None) -> None:
    """Every process that descends from this one ends, or that one and all that do from it.

    Each is asked, asked again (a command of ours ends at once then), and killed.  Linux's /proc
    says who they are; elsewhere that one alone is known, and ours end by themselves, with their
    pipe.
    """
    found = _descendants(of or os.getpid()) + ([] if of is None else [of])
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        for pid in found:
            with suppress(OSError):
                os.kill(pid, number)
        end_s = time.monotonic() + CHILDREN_S
        while (found := [pid for pid in found if _runs(pid)]) and time.monotonic() < end_s:
            time.sleep(0.01)


def _descendants(of: int) -> list[int]:
    parents: dict[int, int] = {}
    with suppress(OSError):
        for name in os.listdir("/proc"):  # noqa: PTH208  (a thousand Paths for nothing)
            if name.isdecimal() and (fields := _stat(int(name))) is not None:
                parents[int(name)] = int(fields[1])
    found, left = [], [of]
    while left:
        parent = left.pop()
        children = [pid for pid, its in parents.items() if its == parent]
        found += children
        left += children
    return found


def _runs(pid: int) -> bool:
    if not Path("/proc/self/stat").exists():
        return True  # nobody knows: it is given the time
    fields = _stat(pid)
    return fields is not None and fields[0] not in ("Z", "X")


def _stat(pid: int) -> list[str] | None:
    """State and parent of a process, and what else /proc says behind its name."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return file.read().rpartition(b")")[2].decode().split()
    except OSError:
        return None
