# SPDX-License-Identifier: Apache-2.0
"""The plugin library built from nothing for many architectures: time, size, registers, spills.

    python -m benchmarks.ops.native_build [--architectures "80;86;87"] [--output FILE.json]

Builds ``build/native`` anew with CMake, as ``make native`` does, and leaves the library there.
Nothing runs on a GPU.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.environment import describe, usable_cores
from benchmarks.ops import ptxas
from runtime import waits
from runtime.backends.native import PLUGIN_LIBRARY
from runtime.command import Parser, guarded
from runtime.errors import DependencyError, UsageError, UserError
from runtime.files import write_json
from runtime.interrupt import leave
from runtime.overwrites import refuse_overwrites

ROOT = Path(__file__).resolve().parents[2]
BUILD_FACTS = "cuda_build.json"
ARCHITECTURES = "80;86;87;89;90;110;120"


def build(folder: Path, architectures: str, jobs: int) -> dict[str, float]:
    """Compile into ``folder``, which is emptied first; seconds by step.

    Raises :class:`UsageError` for a folder that holds something else than a build of CMake,
    :class:`DependencyError` without CMake, :class:`UserError` where a step fails: what it said is
    on standard error.
    """
    if shutil.which("cmake") is None:
        raise DependencyError("cmake was not found: apt-get install cmake, or pip install cmake")
    if folder.exists() and not (folder / "CMakeCache.txt").is_file() and any(folder.iterdir()):
        raise UsageError(f"{folder} would be emptied, and is no build of CMake; give another one")
    shutil.rmtree(folder, ignore_errors=True)
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), "-DMSCT_CUDA=ON"]
    configure += ["-DMSCT_BINDINGS=OFF", "-DMSCT_PLUGINS=ON"]
    configure += [f"-DMSCT_CUDA_ARCHITECTURES={architectures}"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}"]
    compile_all = ["cmake", "--build", str(folder), "--parallel", str(jobs)]
    seconds = {}
    for step, command in (("configure_s", configure), ("compile_s", compile_all)):
        start = time.perf_counter()
        done = waits.run_program(command, stdout=sys.stderr)
        if done.returncode:
            raise UserError(f"{' '.join(command[:2])} failed with {done.returncode}: see above")
        seconds[step] = round(time.perf_counter() - start, 1)
    return seconds


def summary(usages: Sequence[ptxas.Usage]) -> dict[str, Any]:
    """The worst of each figure over all kernels and architectures."""
    return {
        "kernels": len({usage.kernel for usage in usages}),
        "compiled": len(usages),
        "max_registers": max(usage.registers for usage in usages),
        "max_stack_bytes": max(usage.stack_bytes for usage in usages),
        "spill_bytes": sum(u.spill_store_bytes + u.spill_load_bytes for u in usages),
        "max_static_shared_bytes": max(usage.static_shared_bytes for usage in usages),
    }


def parser() -> argparse.ArgumentParser:
    options = Parser(
        prog="python -m benchmarks.ops.native_build", description="Build the plugin library, timed."
    )
    options.add_argument("--architectures", default=ARCHITECTURES, metavar="LIST")
    options.add_argument("--folder", type=Path, default=ROOT / "build" / "native")
    options.add_argument("--jobs", type=int, default=usable_cores())
    options.add_argument("--output", type=Path, metavar="FILE.json")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of :mod:`runtime.errors`."""
    options = parser().parse_args(argv)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.output is not None:
        written = (options.folder / name for name in (PLUGIN_LIBRARY, BUILD_FACTS))
        refuse_overwrites([("--output", options.output), *(("--folder", w) for w in written)], [])
    seconds = build(options.folder, options.architectures, options.jobs)
    usages = ptxas.read_build(options.folder)
    facts = json.loads((options.folder / BUILD_FACTS).read_text(encoding="utf-8"))
    size_bytes = (options.folder / PLUGIN_LIBRARY).stat().st_size
    result = {
        "benchmark": "native-build",
        "schema_version": 1,
        **describe(),
        "build": {**facts, "jobs": options.jobs},
        **seconds,
        "library_bytes": size_bytes,
        "ptxas": {"summary": summary(usages), "kernels": [asdict(usage) for usage in usages]},
    }
    print(ptxas.table(usages))
    built = ", ".join(map(str, facts["architectures"]["built"]))
    print(
        f"{options.folder / PLUGIN_LIBRARY}: {size_bytes / 1e6:.1f} MB for {built}; "
        f"configured in {seconds['configure_s']} s, compiled in {seconds['compile_s']} s"
    )
    if options.output is not None:
        write_json(options.output, result)
        print(f"written: {options.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    leave(main)
