# SPDX-License-Identifier: Apache-2.0
"""What a figure needs beside it to mean anything: machine, versions, commit; and a table."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "msct",
    "numpy",
    "av",
    "opencv-python-headless",
    "dlib-bin",
    "kaldi-native-fbank",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "tensorrt",
    "tensorrt-rtx",
)


def describe() -> dict[str, Any]:
    """JSON-ready: ``time``, ``commit``, ``machine`` and ``versions``."""
    return {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": processor(),
            "cores": usable_cores(),
        },
        "versions": {"python": platform.python_version(), **versions()},
    }


def versions() -> dict[str, str]:
    """Versions of the packages that make a difference, as far as they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Short hash of the checked-out commit, ``-dirty`` behind it if files differ, or None."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return f"{head}-dirty" if _git("status", "--porcelain", "-uno") else head
    except (OSError, subprocess.SubprocessError):
        return None


def processor() -> str:
    """The processor's name as its maker writes it, where the system says it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_memory_mb() -> float:
    """Highest resident memory of this process so far, in MB (10^6 bytes)."""
    if Path("/proc/self/status").exists():
        # ru_maxrss would also count the parent's pages from before the exec
        return memory_field_mb("VmHWM")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if platform.system() == "Darwin" else peak * 1024 / 1e6


def memory_field_mb(name: str, pid: int | None = None) -> float:
    """VmHWM, VmSize and the like of a process (this one), as Linux counts it, in MB (10^6 bytes).

    Raises OSError where the process is gone.
    """
    status = Path(f"/proc/{'self' if pid is None else pid}/status")
    for line in status.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"{status} has no {name}")


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equal length as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _git(*arguments: str) -> str:
    command = ["git", "--no-optional-locks", *arguments]  # which leave the index as it is
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
