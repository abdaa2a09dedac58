# SPDX-License-Identifier: Apache-2.0
"""Power, heat and GPU memory while something runs, by whatever this device offers.

Three readers: ``tegrastats`` on a Jetson, ``nvidia-smi`` (NVML) for other NVIDIA GPUs, RAPL for the
processor.  Each says what its watts are of, since a whole module, a GPU's board and a processor's
package are not to be added or compared.  A device without any is reported so, with the reasons.

Formats: tegrastats prints ``RAIL 4960mW/4960mW`` (now/average; without ``mW`` before JetPack 5) and
``tj@48.8C``.  Of a module with a rail for its whole input (VDD_IN, POM_5V_IN, VIN) that one counts;
AGX Orin has none, there the three rails that feed the module are added.  The bits of NVML's
throttle reasons are those of ``nvml.h``.  RAPL's counters are microjoules that wrap around at
``max_energy_range_uj``; Linux lets root alone read them since 5.10.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

INTERVAL_MS = 200  # between two samples
START_TIMEOUT_S = 5.0  # for the first one
STOP_TIMEOUT_S = 5.0
POWERCAP = Path("/sys/class/powercap")
MIB_PER_MB = 1.048576

TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "VIN")  # each is the whole input
SUMMED_RAILS = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")  # of AGX Orin
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/\d+(?:mW)?(?=\s|$)")
_TEMPERATURE = re.compile(r"\b([A-Za-z]\w*)@(-?\d+(?:\.\d+)?)C\b")
_RAM = re.compile(r"\bRAM (\d+)/\d+MB")
OFF_C = -100.0  # a sensor of an engine that is off says -256

NVML_FIELDS = ("power.draw", "temperature.gpu", "memory.used", "clocks_throttle_reasons.active")
THROTTLE_REASONS = {  # nvmlClocksThrottleReason*; what only says that the GPU is idle is left out
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal, by the driver",
    0x40: "thermal, by the hardware",
    0x80: "power brake",
}


@dataclass(frozen=True)
class Reading:
    """What one reader saw from its start to its stop."""

    source: str  # tegrastats, nvml, rapl
    of: str  # what the watts are of
    seconds: float
    samples: int
    mean_w: float
    max_w: float | None  # None: from energy counters, which know the mean alone
    joules: float
    temperature_c: dict[str, float] = field(default_factory=dict)  # sensor -> highest
    throttled: dict[str, float] = field(default_factory=dict)  # reason -> share of the samples
    device_memory_mb: dict[str, float] = field(default_factory=dict)  # at the start, highest

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class PowerReader(Protocol):
    """Something that can say what power was drawn between two moments."""

    source: str

    def start(self) -> None: ...

    def stop(self) -> Reading | None:
        """None where nothing usable came."""


@dataclass(frozen=True)
class Sample:
    """One line of a program, understood."""

    watts: float
    of: str
    temperature_c: dict[str, float] = field(default_factory=dict)
    throttled: tuple[str, ...] = ()
    memory_mb: float | None = None


def parse_tegrastats(line: str) -> Sample | None:
    """None for a line without the rails of a whole module."""
    rails = {name: int(mw) / 1000 for name, mw in _RAIL.findall(line)}
    whole = next((name for name in TOTAL_RAILS if name in rails), None)
    if whole is not None:
        watts, of = rails[whole], f"the whole input ({whole})"
    elif all(name in rails for name in SUMMED_RAILS):
        watts = sum(rails[name] for name in SUMMED_RAILS)
        of = f"the module ({' + '.join(SUMMED_RAILS)})"
    else:
        return None
    heat = {name: float(c) for name, c in _TEMPERATURE.findall(line) if float(c) > OFF_C}
    ram = _RAM.search(line)
    memory_mb = float(ram.group(1)) * MIB_PER_MB if ram else None
    return Sample(watts, of, heat, memory_mb=memory_mb)


def parse_nvidia_smi(line: str) -> Sample | None:
    """One line of :data:`NVML_FIELDS` as CSV without units; None where the power is not given."""
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) != len(NVML_FIELDS):
        return None
    watts, heat, memory_mib, reasons = cells
    power_w = _number(watts)
    if power_w is None:
        return None
    heat_c, used_mib = _number(heat), _number(memory_mib)
    try:
        bits = int(reasons, 16)
    except ValueError:  # [N/A]
        bits = 0
    return Sample(
        power_w,
        "the GPU's board",
        {} if heat_c is None else {"gpu": heat_c},
        tuple(name for bit, name in THROTTLE_REASONS.items() if bits & bit),
        None if used_mib is None else used_mib * MIB_PER_MB,
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # [N/A], [Not Supported]
        return None


class LineReader:
    """A program that prints a sample a line until it is ended."""

    def __init__(self, source: str, command: list[str]) -> None:
        self.source = source
        self._command = command
        self._parse = {"tegrastats": parse_tegrastats, "nvml": parse_nvidia_smi}[source]
        self._samples: list[Sample] = []
        self._first = threading.Event()

    def start(self) -> None:
        """Returns once the first sample is there, or none comes."""
        self._samples, self._first = [], threading.Event()
        self._start_s = time.monotonic()
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            start_new_session=True,  # Ctrl-C is for this process, which ends the program
        )  # fmt: skip
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self._first.wait(START_TIMEOUT_S)
        self._start_s = time.monotonic()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            sample = self._parse(line)
            if sample is not None:
                self._samples.append(sample)
                self._first.set()
        self._first.set()  # it has ended by itself

    def stop(self) -> Reading | None:
        seconds = time.monotonic() - self._start_s
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(STOP_TIMEOUT_S)
        assert self._process.stdout is not None
        with suppress(OSError):
            self._process.stdout.close()
        return summarise(self.source, self._samples, seconds)


def summarise(source: str, samples: Iterable[Sample], seconds: float) -> Reading | None:
    """Samples come in equal steps of time, so their mean is that of the time."""
    kept = list(samples)
    if not kept:
        return None
    watts = [s.watts for s in kept]
    mean_w = sum(watts) / len(watts)
    heat: dict[str, float] = {}
    for sample in kept:
        for name, celsius in sample.temperature_c.items():
            heat[name] = max(celsius, heat.get(name, celsius))
    throttled = Counter(reason for s in kept for reason in s.throttled)
    memory = [s.memory_mb for s in kept if s.memory_mb is not None]
    return Reading(
        source=source,
        of=kept[0].of,
        seconds=seconds,
        samples=len(kept),
        mean_w=mean_w,
        max_w=max(watts),
        joules=mean_w * seconds,
        temperature_c=heat,
        throttled={reason: n / len(kept) for reason, n in sorted(throttled.items())},
        device_memory_mb={"at_start": memory[0], "highest": max(memory)} if memory else {},
    )


class RaplReader:
    """Energy counters of the processor's packages, read once a second so that no wrap is missed."""

    source = "rapl"

    def __init__(self, zones: list[Path], *, interval_s: float = 1.0) -> None:
        self._zones, self._interval_s = zones, interval_s

    def start(self) -> None:
        self._microjoules, self._samples = 0, 0
        self._ranges = [int((z / "max_energy_range_uj").read_text()) for z in self._zones]
        self._last = self._counters()
        self._start_s = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._end.wait(self._interval_s):
            self._add()

    def _add(self) -> None:
        now = self._counters()
        for before, after, wraps_at in zip(self._last, now, self._ranges, strict=True):
            self._microjoules += after - before + (wraps_at if after < before else 0)
        self._last = now
        self._samples += 1

    def _counters(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self._zones]

    def stop(self) -> Reading | None:
        self._end.set()
        self._thread.join()
        self._add()
        seconds = time.monotonic() - self._start_s
        joules = self._microjoules / 1e6
        return Reading(
            source=self.source,
            of=f"{len(self._zones)} processor package(s), without memory and the rest",
            seconds=seconds,
            samples=self._samples,
            mean_w=joules / seconds,
            max_w=None,
            joules=joules,
        )


def find_readers() -> tuple[list[PowerReader], dict[str, str]]:
    """What can be read here, and why the others cannot."""
    readers: list[PowerReader] = []
    missing: dict[str, str] = {}
    tegrastats = shutil.which("tegrastats")
    if tegrastats is not None:
        command = [tegrastats, "--interval", str(INTERVAL_MS)]
        readers.append(LineReader("tegrastats", command))
    else:
        missing["tegrastats"] = "no such program: this is no Jetson"
    smi = shutil.which("nvidia-smi")
    if smi is None:
        missing["nvml"] = "no nvidia-smi: there is no NVIDIA GPU, or no driver for it"
    elif tegrastats is not None:
        missing["nvml"] = "a Jetson's GPU has no board of its own; see tegrastats"
    else:
        query = [f"--query-gpu={','.join(NVML_FIELDS)}", "--format=csv,noheader,nounits"]
        # the first GPU: the one that the backends use
        readers.append(LineReader("nvml", [smi, "-i", "0", *query, f"-lms={INTERVAL_MS}"]))
    zones, reason = rapl_zones()
    if zones:
        readers.append(RaplReader(zones))
    else:
        missing["rapl"] = reason
    return readers, missing


def rapl_zones() -> tuple[list[Path], str]:
    """The packages' folders, or why there are none."""
    packages = []
    for zone in sorted(POWERCAP.glob("intel-rapl:*")):
        name = zone / "name"
        # intel-rapl:0 is a package, intel-rapl:0:1 a part of it; psys holds the packages, too
        if zone.name.count(":") == 1 and name.is_file() and name.read_text()[:7] == "package":
            packages.append(zone)
    if not packages:
        return [], "the system shows no energy counters of its processor"
    try:
        for zone in packages:
            (zone / "energy_uj").read_text()
    except PermissionError:
        return [], f"only root may read {POWERCAP}/intel-rapl:*/energy_uj"
    except OSError as err:
        return [], f"{POWERCAP}: {err.strerror}"
    return packages, ""
