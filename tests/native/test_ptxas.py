# SPDX-License-Identifier: Apache-2.0
"""What the assembler made of the kernels: nothing spilled, everything within the limits.

The figures are those of the CUDA build that the tests make (fixture ``cuda_build``), for each of
its architectures; no GPU is needed.  Dynamic shared memory is asked for at launch, so the log
cannot hold it: the kernels assert their largest size at compile time.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.ops import ptxas
from benchmarks.ops.ptxas import Usage
from tests.native import cmake

LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1kILi64EEvPf' for 'sm_87'
ptxas info    : Function properties for _Z1kILi64EEvPf
    24 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Function properties for _Z6helperf
    0 bytes stack frame, 4 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 24 bytes cumulative stack size, 4096 bytes smem
ptxas info    : Compile time = 3.163 ms
ptxas info    : Compiling entry function '_Z5plainPf' for 'sm_110a'
ptxas info    : Function properties for _Z5plainPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 360 bytes cmem[0]
"""
_ENTRY = re.compile(r"\.entry (\w+)\(.*?\)\s*(?:\.maxntid (\d+), (\d+), (\d+))?", re.DOTALL)


@pytest.fixture(scope="module")
def usages(cuda_build: Path) -> list[Usage]:
    return ptxas.read_build(cuda_build)


def violations(usages: list[Usage], threads: dict[str, int]) -> list[str]:
    """A line for each limit that a kernel breaks; ``threads`` are those of its largest block."""
    broken = []
    for use in usages:
        at = f"{use.kernel} on sm_{use.architecture}"
        spilled = use.spill_store_bytes + use.spill_load_bytes
        if spilled or use.stack_bytes:
            broken.append(f"{at}: {spilled} bytes spilled, {use.stack_bytes} bytes of stack")
        if use.registers > ptxas.REGISTERS_PER_THREAD:
            broken.append(f"{at}: {use.registers} registers")
        if (whole := use.registers * threads[use.kernel]) > ptxas.REGISTERS_PER_BLOCK:
            broken.append(f"{at}: a block of {threads[use.kernel]} needs {whole} registers")
        if use.static_shared_bytes > ptxas.STATIC_SHARED_BYTES:
            broken.append(f"{at}: {use.static_shared_bytes} bytes of static shared memory")
    return broken


def largest_blocks(source: Path, architecture: int, folder: Path) -> dict[str, int]:
    """Threads of each kernel's largest block, from its launch bounds in PTX."""
    target = folder / f"{source.stem}.ptx"
    command = [cmake.nvcc(), "--ptx", f"-arch=compute_{architecture}", "-std=c++17"]
    command += ["-I", str(cmake.ROOT / "csrc"), str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {}
    for name, *sides in _ENTRY.findall(target.read_text(encoding="utf-8")):
        x, y, z = (int(side or 0) for side in sides)
        found[name] = x * y * z
    names = ptxas.readable(found)
    return {names[name]: threads for name, threads in found.items()}


class TestReader:
    def test_every_kernel_and_its_figures_are_read(self):
        first, second = ptxas.read_log(LOG)
        assert first == Usage("_Z1kILi64EEvPf", 87, 40, 24, 12, 12, 4096)
        assert second == Usage("_Z5plainPf", 110, 8, 0, 0, 0, 0)

    def test_a_log_that_breaks_off_is_no_log_without_spills(self):
        with pytest.raises(ValueError, match="registers of _Z5plainPf"):
            ptxas.read_log(LOG[: LOG.rindex("ptxas info    : Used")])
        with pytest.raises(ValueError, match="nothing of the registers of _Z1kILi64EEvPf"):
            ptxas.read_log(LOG.replace("Used 40 registers", ""))

    def test_the_table_has_a_line_a_kernel_and_a_column_an_architecture(self):
        lines = ptxas.table(ptxas.read_log(LOG)).splitlines()
        assert lines[0].split()[:4] == ["registers", "of", "sm_87", "sm_110"]
        assert lines[1].split() == ["_Z1kILi64EEvPf", "40", "-", "24", "24", "4096"]
        assert len(lines) == 3


class TestViolations:
    KERNEL = Usage("k", 87, 64, 0, 0, 0, 0)

    @pytest.mark.parametrize(
        ("change", "threads", "message"),
        [
            ({"spill_store_bytes": 4}, 128, "4 bytes spilled"),
            ({"spill_load_bytes": 8}, 128, "8 bytes spilled"),
            ({"stack_bytes": 16}, 128, "16 bytes of stack"),
            ({"registers": 256}, 32, "256 registers"),
            ({"registers": 128}, 1024, "needs 131072 registers"),
            ({"static_shared_bytes": 50_000}, 128, "50000 bytes of static shared memory"),
        ],
    )
    def test_each_limit_is_noticed(self, change, threads, message):
        usage = Usage(**{**vars(self.KERNEL), **change})
        (line,) = violations([usage], {"k": threads})
        assert message in line

    def test_a_kernel_within_the_limits_breaks_none(self):
        assert violations([self.KERNEL], {"k": 1024}) == []


class TestKernels:
    def test_every_source_compiles_for_every_architecture(self, usages, cuda_build):
        sources = sorted((cmake.ROOT / "csrc" / "kernels").glob("*.cu"))
        logs = {log.stem for log in (cuda_build / "ptxas").glob("*.log")}
        assert {source.name for source in sources} <= logs
        assert sources

        asked_for = cmake.architectures()
        known = subprocess.run(
            [cmake.nvcc(), "--list-gpu-arch"], capture_output=True, text=True, check=True
        ).stdout.split()
        expected = {arch for arch in asked_for if f"compute_{arch}" in known}
        if 110 in asked_for and "compute_110" not in known and "compute_101" in known:
            expected.add(101)  # Thor, before CUDA 13
        assert expected
        compiled: dict[str, set[int]] = {}
        for usage in usages:
            compiled.setdefault(usage.kernel, set()).add(usage.architecture)
        assert compiled
        assert {kernel: archs for kernel, archs in compiled.items() if archs != expected} == {}
        assert set(cmake.facts(cuda_build)["architectures"]["built"]) == expected

    @pytest.mark.thorough
    def test_nothing_spills_and_every_block_fits(self, usages, cuda_build, tmp_path, capsys):
        lowest = min(usage.architecture for usage in usages)
        threads: dict[str, int] = {}
        for source in sorted((cmake.ROOT / "csrc" / "kernels").glob("*.cu")):
            threads |= largest_blocks(source, lowest, tmp_path)
        with capsys.disabled():
            print(f"\n{ptxas.table(usages)}")
        assert {kernel for kernel, block in threads.items() if block == 0} == set(), (
            "kernels without __launch_bounds__"
        )
        assert violations(usages, threads) == []

    def test_the_limits_of_every_architecture_are_known(self, usages):
        assert {usage.architecture for usage in usages} <= set(ptxas.SHARED_BYTES)
