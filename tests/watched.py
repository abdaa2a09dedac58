# SPDX-License-Identifier: Apache-2.0
"""A command run under ``strace``: whom it and its children call, and what they leave behind.

Source: strace(1); ``-y`` spells out what a descriptor stands for.  Without strace (or on another
system) only what is left in the home and working folders is seen.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Left out: reads, and calls on descriptors that these opened.
_NETWORK = ("connect", "sendto", "sendmsg", "sendmmsg", "bind")
_FILES = ("open", "openat", "openat2", "creat", "mkdir", "mkdirat", "mknod", "mknodat", "link",
          "linkat", "symlink", "symlinkat", "rename", "renameat", "renameat2",
          "truncate")  # fmt: skip
_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+|\?)(?:<(.*)>)?")
_ADDRESS = re.compile(r'inet_(?:addr\("([^"]+)"|pton\(AF_INET6, "([^"]+)")')
_PORT = re.compile(r"sin6?_port=htons\((\d+)\)")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_FOLDER_OF_NEXT = re.compile(r'(?:AT_FDCWD|\d+)<([^>]*)>, "')
DNS_PORT = 53


@dataclass(frozen=True)
class Seen:
    """What a command did; ``code`` and ``said`` are its exit code and its standard error."""

    code: int
    said: str
    calls: list[str]  # addresses beyond loopback, and look-ups of names
    written: set[Path]  # made, opened for writing or renamed to, as far as strace was there


def strace() -> str | None:
    """The program; None where there is none, or where it may not be used."""
    program = shutil.which("strace")
    if program is None:
        return None
    tried = subprocess.run([program, "-qq", "-e", "trace=none", sys.executable, "-c", ""],
                           capture_output=True, timeout=60, check=False)  # fmt: skip
    return program if tried.returncode == 0 else None


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    log: Path,
    timeout_s: float = 240,
) -> Seen:
    """Run it; ``log`` is where strace writes."""
    program = strace()
    watched = list(command)
    if program is not None:
        names = ",".join(f"?{name}" for name in (*_NETWORK, *_FILES))
        watched = [program, "-f", "-qq", "-y", "-s", "400", "--seccomp-bpf", "-o", str(log),
                   "-e", f"trace={names}", *command]  # fmt: skip
    done = subprocess.run(
        watched, cwd=cwd, env=dict(environment), capture_output=True, text=True, errors="replace",
        stdin=subprocess.DEVNULL, timeout=timeout_s, check=False,
    )  # fmt: skip
    lines = _joined(log.read_text(errors="replace").splitlines()) if program is not None else []
    calls, written = [], set()
    for line in lines:
        found = _CALL.match(line)
        if found is None:
            continue
        name, arguments, code, opened = found.groups()
        if name in _NETWORK:
            if (call := _beyond(name, arguments)) is not None:
                calls.append(call)
        elif not code.startswith("-"):
            written |= _targets(name, arguments, opened, cwd)
    return Seen(done.returncode, done.stderr, calls, written)


def _joined(lines: Sequence[str]) -> list[str]:
    """Calls that another thread's line interrupted, in one piece again."""
    begun: dict[str, str] = {}
    whole = []
    for line in lines:
        pid, _, rest = line.partition(" ")
        rest = rest.lstrip()
        if rest.endswith("<unfinished ...>"):
            begun[pid] = rest.removesuffix("<unfinished ...>").rstrip()
        elif (resumed := re.match(r"<\.\.\. \w+ resumed>", rest)) is not None:
            whole.append(begun.pop(pid, "") + rest[resumed.end() :])
        else:
            whole.append(rest)
    return whole


def _beyond(name: str, arguments: str) -> str | None:
    """An address that is not this machine, or the question for a name; None: neither."""
    if "sun_path=" in arguments and "nscd" in arguments:
        return None  # asked before files are read, also for names like localhost
    found, port = _ADDRESS.search(arguments), _PORT.search(arguments)
    if found is None or port is None:
        return None
    address = ipaddress.ip_address(found[1] or found[2])
    address = getattr(address, "ipv4_mapped", None) or address
    if int(port[1]) == DNS_PORT:
        return f"{name} {address}: a name is looked up"
    if address.is_loopback or (name == "bind" and address.is_unspecified and port[1] == "0"):
        return None
    return f"{name} {address} port {port[1]}"


def _targets(name: str, arguments: str, opened: str | None, cwd: Path) -> set[Path]:
    if name.startswith(("open", "creat")):
        writes = name == "creat" or re.search(r"O_WRONLY|O_RDWR|O_CREAT", arguments)
        return {Path(opened)} if writes and opened else set()
    names = _QUOTED.findall(arguments)
    if not names:
        return set()
    folders = _FOLDER_OF_NEXT.findall(arguments)
    folder = Path(folders[-1]) if folders else cwd
    return {Path(os.path.normpath(folder / names[-1]))}
