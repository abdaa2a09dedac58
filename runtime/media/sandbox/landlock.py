# SPDX-License-Identifier: Apache-2.0
"""Linux's Landlock: a process gives up, for good, what it will not need.

After :func:`restrict` this process and its later threads read the files it names and no others,
write, make and start none, and neither bind nor connect TCP; from newer kernels on they send no
signals and reach no abstract socket outside. UDP, and what was open before, are not affected.

Source: Linux, Documentation/userspace-api/landlock.rst and include/uapi/linux/landlock.h.  The
system calls have these numbers on every architecture.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION = 1  # flag of CREATE_RULESET: only say which version of the interface there is
PATH_BENEATH = 1
NO_NEW_PRIVS = 38  # of prctl

READ_FILE, READ_DIR = 1 << 2, 1 << 3
# How many rights over files each version knows, from the lowest bit on: all of them are given up.
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
TCP = 0b11  # bind and connect, from version 4 on
SCOPES = 0b11  # abstract sockets and signals, from version 6 on


def version() -> int:
    """Of the kernel's interface; 0: it has none, or it is switched off."""
    if sys.platform != "linux":
        return 0
    return max(0, ctypes.CDLL(None).syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION))


def restrict(readable: Iterable[Path]) -> int:
    """Give up everything but reading what is named: files, and folders with all below them.

    Returns the version by which this was done; 0: this kernel cannot, and nothing has changed.
    Raises OSError where the kernel refuses.
    """
    known = version()
    if not known:
        return 0
    files = (1 << FILE_RIGHTS[min(known, max(FILE_RIGHTS))]) - 1
    attributes = struct.pack("<Q", files)
    if known >= 4:
        attributes += struct.pack("<Q", TCP)
    if known >= 6:
        attributes += struct.pack("<Q", SCOPES)
    rules = _call(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    try:
        for path in readable:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                rights = READ_FILE | (READ_DIR if path.is_dir() else 0)
                _call(ADD_RULE, rules, PATH_BENEATH, struct.pack("<Qi", rights, handle), 0)
            finally:
                os.close(handle)
        _check(ctypes.CDLL(None, use_errno=True).prctl(NO_NEW_PRIVS, 1, 0, 0, 0))
        _call(RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)
    return known


def _call(*arguments: object) -> int:
    return _check(ctypes.CDLL(None, use_errno=True).syscall(*arguments))


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
