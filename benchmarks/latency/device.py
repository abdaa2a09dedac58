# SPDX-License-Identifier: Apache-2.0
"""The device beyond its processor's name: GPUs, power mode, heat, and what slowed it down."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from runtime.doctor import checks

SYS = Path("/sys")
MEMORY_INFO = Path("/proc/meminfo")
TIMEOUT_S = 10


def describe_device() -> dict[str, Any]:
    """JSON-ready; null for what this device does not have or does not say."""
    jetson = {check.name: checks.examine(check) for check in checks.JETSON}
    return {
        "gpus": gpus(),
        "jetson": _found(jetson["Jetson"]),
        "power_mode": _found(jetson["power mode"]),
        "cpu_governor": _text(SYS / "devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "memory_mb": memory_mb(),
    }


def _found(finding: checks.Finding) -> str | None:
    return finding.detail if finding.state is checks.State.OK else None


def gpus() -> list[dict[str, str]]:
    """Name and driver of each NVIDIA GPU; none without nvidia-smi."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return []
    query = [smi, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in done.stdout.splitlines():
        name, comma, driver = line.rpartition(",")
        if comma:
            found.append({"name": name.strip(), "driver": driver.strip()})
    return found


def memory_mb() -> float | None:
    """Of the whole machine, in MB (10^6 bytes)."""
    for line in (_text(MEMORY_INFO) or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024 / 1e6
    return None


def temperatures_c() -> dict[str, float]:
    """By thermal zone; a zone that cannot be read is left out."""
    found = {}
    for zone in sorted((SYS / "class/thermal").glob("thermal_zone*")):
        milli = _text(zone / "temp")
        if milli is not None and milli.lstrip("-").isdecimal():
            name = _text(zone / "type") or zone.name
            found[f"{name} ({zone.name})"] = int(milli) / 1000
    return found


def throttle_count() -> int | None:
    """How often the processor's cores were slowed down by heat since the start; None: not told."""
    counts = [
        int(text)
        for path in (SYS / "devices/system/cpu").glob("cpu*/thermal_throttle/core_throttle_count")
        if (text := _text(path)) is not None and text.isdecimal()
    ]
    return sum(counts) if counts else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None
