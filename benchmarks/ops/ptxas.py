# SPDX-License-Identifier: Apache-2.0
"""What ``ptxas -v`` says of each kernel, read from a build's log, and the limits it must keep.

The build leaves ``ptxas/*.log`` in its folder (csrc/cmake/ptxas-log.sh).  Limits: CUDA Programming
Guide, appendix "Compute Capabilities", table of technical specifications.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

REGISTERS_PER_THREAD = 255
REGISTERS_PER_BLOCK = 64 * 1024
STATIC_SHARED_BYTES = 48 * 1024  # without asking for more, on every architecture
# Dynamic shared memory that a block may ask for (cudaFuncAttributeMaxDynamicSharedMemorySize).
SHARED_BYTES = {
    80: 163 * 1024,
    86: 99 * 1024,
    87: 163 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
    101: 227 * 1024,
    110: 227 * 1024,
    120: 99 * 1024,
}

_KERNEL = re.compile(r"Compiling entry function '(?P<name>[^']+)' for 'sm_(?P<arch>\d+)[af]?'")
_STACK = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads"
)
_USED = re.compile(r"Used (?P<registers>\d+) registers")
_SHARED = re.compile(r"(?P<shared>\d+) bytes smem")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Usage:
    """One kernel on one architecture.  Spills of functions it calls count as its own."""

    kernel: str  # as the source names it, where c++filt is installed
    architecture: int  # 87
    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    static_shared_bytes: int


def read_log(text: str) -> list[Usage]:
    """Every kernel of one log.  Raises ValueError where a kernel's report is incomplete."""
    found: list[Usage] = []
    name, arch = "", 0
    stack = stores = loads = 0
    complete = True  # has the kernel that was named last its "Used" line
    for line in text.splitlines():
        if match := _KERNEL.search(line):
            if not complete:
                raise ValueError(f"the log says nothing of the registers of {name}")
            name, arch, complete = match["name"], int(match["arch"]), False
            stack = stores = loads = 0
        elif match := _STACK.search(line):
            stack = max(stack, int(match["stack"]))
            stores += int(match["stores"])
            loads += int(match["loads"])
        elif (match := _USED.search(line)) and not complete:
            shared = _SHARED.search(line)
            shared_bytes = int(shared["shared"]) if shared else 0
            found.append(
                Usage(name, arch, int(match["registers"]), stack, stores, loads, shared_bytes)
            )
            complete = True
    if not complete:
        raise ValueError(f"the log ends before the registers of {name}")
    return found


def read_build(folder: Path) -> list[Usage]:
    """Every kernel of a build, by name and architecture, with readable names."""
    found = [
        usage
        for log in sorted((folder / "ptxas").glob("*.log"))
        for usage in read_log(log.read_text(encoding="utf-8"))
    ]
    names = readable({usage.kernel for usage in found})
    found = [replace(usage, kernel=names[usage.kernel]) for usage in found]
    return sorted(found, key=lambda usage: (usage.kernel, usage.architecture))


def readable(names: Iterable[str]) -> dict[str, str]:
    """Mangled name -> ``attention<float, 64>``; unchanged without c++filt."""
    mangled = sorted(names)
    if not mangled or shutil.which("c++filt") is None:
        return {name: name for name in mangled}
    done = subprocess.run(
        ["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True
    )
    return dict(zip(mangled, map(_short, done.stdout.splitlines()), strict=True))


def table(usages: Sequence[Usage]) -> str:
    """One line a kernel, its registers by architecture, and what should be zero."""
    architectures = sorted({usage.architecture for usage in usages})
    kernels = sorted({usage.kernel for usage in usages}, key=_natural)
    width = max((len(kernel) for kernel in kernels), default=6)
    heads = "".join(f"{f'sm_{arch}':>8}" for arch in architectures)
    lines = [f"{'registers of':<{width}}{heads}   spills  stack  static shared"]
    for kernel in kernels:
        rows = {usage.architecture: usage for usage in usages if usage.kernel == kernel}
        cells = "".join(
            f"{rows[arch].registers if arch in rows else '-':>8}" for arch in architectures
        )
        spills = sum(row.spill_store_bytes + row.spill_load_bytes for row in rows.values())
        stack = max(row.stack_bytes for row in rows.values())
        shared = max(row.static_shared_bytes for row in rows.values())
        lines.append(f"{kernel:<{width}}{cells}{spills:>9}{stack:>7}{shared:>15}")
    return "\n".join(lines)


def _short(name: str) -> str:
    """``void msct::(anonymous namespace)::f<__half, 64>(msct::Args)`` -> ``f<__half, 64>``."""
    name = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    return name.partition("(")[0].replace("msct::", "")


def _natural(name: str) -> list[str]:
    return _NUMBER.sub(lambda match: match.group().zfill(6), name).split(",")
