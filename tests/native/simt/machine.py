# SPDX-License-Identifier: Apache-2.0
"""Builds the SIMT machine around the CUDA sources and runs single launches on it, without a GPU.

Three builds: ``plain``; ``address`` (AddressSanitizer, and checks of misaligned access among
others: what is read or written outside a tensor or outside shared memory); ``thread``
(ThreadSanitizer: shared memory used by two threads without a barrier between them).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[3]
SIMT = REPOSITORY / "tests" / "native" / "simt"
CSRC = REPOSITORY / "csrc"
CUDA_SOURCES = ("differential_cross_attention.cu", "multi_scale_key_conv.cu")
BUILDS = {
    "plain": ["-O2"],
    "address": [
        "-O1",
        "-fsanitize=address,alignment,bounds,shift,signed-integer-overflow,float-cast-overflow",
        "-fno-sanitize-recover=all",
    ],
    "thread": ["-O1", "-fsanitize=thread"],
}
FAULT, REFUSED = 3, 4  # exit statuses of the runner
DTYPES = ("float32", "float16", "bfloat16")  # in the order of msct::ScalarType
ORDERS = ("forward", "reverse", "random")


def cuda_headers() -> Path | None:
    """The folder with cuda_fp16.h: $CUDA_HOME, the one beside nvcc, /usr/local/cuda."""
    candidates = [Path(os.environ[v]) for v in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(v)]
    nvcc = shutil.which("nvcc")
    if nvcc:
        candidates.append(Path(nvcc).resolve().parents[1])
    candidates.append(Path("/usr/local/cuda"))
    for root in candidates:
        if (root / "include" / "cuda_fp16.h").is_file():
            return root / "include"
    return None


def why_not() -> str | None:
    """Why the machine cannot be built here; None if it can."""
    if not shutil.which("g++"):
        return "the SIMT machine needs g++"
    if cuda_headers() is None:
        return "the SIMT machine needs the CUDA toolkit's headers; say where with CUDA_HOME"
    return None


def build(name: str) -> Path:
    """The runner of one build, compiled unless these very sources have been."""
    headers = cuda_headers()
    assert headers is not None, "callers ask why_not() first"
    sources = [*(CSRC / "kernels" / n for n in CUDA_SOURCES), SIMT / "faulty.cu"]
    sources += [SIMT / "runner.cpp", SIMT / "simt.cpp"]
    common = ["g++", "-std=c++17", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    common += ["-D__CUDA_ARCH_LIST__=750,800", f"-I{SIMT / 'include'}", f"-I{SIMT}", f"-I{CSRC}"]
    common += ["-isystem", str(headers)]

    digest = hashlib.sha256(repr((common, BUILDS[name])).encode())
    included = [p for folder in (SIMT, CSRC / "kernels") for p in folder.rglob("*")]
    for path in sorted(p for p in included if p.suffix in {".cu", ".cuh", ".h", ".cpp"}):
        digest.update(path.name.encode() + path.read_bytes())
    folder = REPOSITORY / "build" / "tests-simt" / f"{name}-{digest.hexdigest()[:16]}"
    runner = folder / "runner"
    if runner.exists():
        return runner

    for old in folder.parent.glob(f"{name}-*"):
        shutil.rmtree(old)
    folder.mkdir(parents=True)
    objects, commands = [], []
    for source in sources:
        flags = BUILDS[name]
        if name == "thread" and source.name == "simt.cpp":  # its memory is shared on purpose
            flags = ["-O1", "-DSIMT_TSAN"]
        objects.append(folder / f"{source.name}.o")
        commands.append([*common, *flags, "-x", "c++", "-c", str(source), "-o", str(objects[-1])])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_run, commands))
    _run(["g++", *BUILDS[name], *map(str, objects), "-o", str(folder / "linked")])
    (folder / "linked").rename(runner)
    return runner


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


# Tensors, as the runner reads them ---------------------------------------------------------------


def to_storage(values: np.ndarray, dtype: str) -> np.ndarray:
    """Rounded to `dtype`; 16-bit types as their bits in uint16."""
    single = np.asarray(values, np.float32)
    if dtype == "float32":
        return single
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return single.astype(np.float16).view(np.uint16)
    bits = single.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16  # to nearest, ties to even
    return np.where(np.isnan(single), 0x7FC0, rounded).astype(np.uint16)


def from_storage(stored: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "float32":
        return stored
    if dtype == "float16":
        return stored.view(np.float16).astype(np.float32)
    return (stored.astype(np.uint32) << 16).view(np.float32)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values that `dtype` can hold."""
    return from_storage(to_storage(values, dtype), dtype)


@dataclass(frozen=True)
class Layout:
    """How a [B, h, T, D] tensor lies in its storage.

    `order` says which of batch, head and token is outermost; `gap` elements follow each row and
    `offset` precede the first.  The storage ends with the last element.
    """

    order: str = "bht"
    gap: int = 0
    offset: int = 0

    def strides(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        extent = dict(zip("bht", shape, strict=False))
        step, result = shape[3] + self.gap, {}
        for axis in reversed(self.order):
            result[axis] = step
            step *= extent[axis]
        return result["b"], result["h"], result["t"]

    def size(self, shape: tuple[int, ...]) -> int:
        last = sum((n - 1) * s for n, s in zip(shape, self.strides(shape), strict=False))
        return self.offset + last + shape[3]

    def view(self, storage: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        steps = [s * storage.itemsize for s in (*self.strides(shape), 1)]
        return np.lib.stride_tricks.as_strided(storage[self.offset :], shape, steps)


DENSE = Layout()
POISON = {
    "float32": np.float32(12345.0),
    "float16": np.uint16(0x7B00),
    "bfloat16": np.uint16(0x46FF),
}


@dataclass
class Machine:
    """Which device to be, and the order in which its threads go on."""

    build: str = "plain"
    order: str = "forward"
    seed: int = 0
    capability: int = 80
    processors: int = 16


@dataclass
class Outcome:
    status: int
    message: str
    values: np.ndarray = field(default_factory=lambda: np.empty(0))  # [B, h, T, D] float32
    untouched: bool = True  # all of the output's storage outside the tensor
    bits: bytes = b""
    blocks: int = 0
    threads_per_block: int = 0
    shared_bytes: int = 0
    barriers: int = 0
    multiply_adds: int = 0
    matrix_loads: int = 0
    bank_conflicts: int = 0
    async_copies: int = 0


def _launch(machine: Machine, op: int, request: bytes) -> tuple[Outcome, bytes]:
    header = struct.pack(
        "<5q",
        op,
        ORDERS.index(machine.order),
        machine.seed,
        machine.capability,
        machine.processors,
    )
    done = subprocess.run(
        [build(machine.build)],
        input=header + request,
        capture_output=True,
        check=False,
        timeout=120,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=0"},
    )
    outcome = Outcome(done.returncode, done.stderr.decode(errors="replace").strip())
    if done.returncode != 0:
        return outcome, b""
    names = ("blocks", "threads_per_block", "shared_bytes", "barriers")
    names += ("multiply_adds", "matrix_loads", "bank_conflicts", "async_copies")
    for name, value in zip(names, struct.unpack("<8q", done.stdout[:64]), strict=True):
        setattr(outcome, name, value)
    return outcome, done.stdout[64:]


def _tensor(stored: np.ndarray) -> bytes:
    return struct.pack("<q", stored.nbytes) + stored.tobytes()


def _laid_out(values: np.ndarray, dtype: str, layout: Layout) -> bytes:
    """Offset, strides and storage; what lies between the rows is poison."""
    stored = to_storage(values, dtype)
    storage = np.full(layout.size(values.shape), POISON[dtype])
    layout.view(storage, values.shape)[...] = stored
    return struct.pack("<4q", layout.offset, *layout.strides(values.shape)) + _tensor(storage)


def _poisoned(shape: tuple[int, ...], dtype: str, layout: Layout) -> bytes:
    storage = np.full(layout.size(shape), POISON[dtype])
    return struct.pack("<4q", layout.offset, *layout.strides(shape)) + _tensor(storage)


def _finish(outcome: Outcome, raw: bytes, shape: tuple[int, ...], dtype: str, out: Layout) -> None:
    storage = np.frombuffer(raw, POISON[dtype].dtype).copy()
    outcome.bits = raw
    outcome.values = from_storage(out.view(storage, shape).copy(), dtype)
    out.view(storage, shape)[...] = POISON[dtype]
    outcome.untouched = bool((storage == POISON[dtype]).all())


def attention(
    machine: Machine,
    dtype: str,
    q_self: np.ndarray,
    q_cross: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    lam: np.ndarray,
    scale: float,
    layouts: dict[str, Layout] | None = None,
    claimed: tuple[int, ...] | None = None,
) -> Outcome:
    """One launch; `layouts` names those of q_self, q_cross, key, value, out that are not dense.

    `claimed` is a shape to be told instead of the true one: one that must be refused.
    """
    layouts = layouts or {}
    shape = q_self.shape
    out = layouts.get("out", DENSE)
    request = struct.pack("<5qd", DTYPES.index(dtype), *(claimed or shape), scale)
    tensors = {"q_self": q_self, "q_cross": q_cross, "key": key, "value": value}
    for name, values in tensors.items():
        request += _laid_out(values, dtype, layouts.get(name, DENSE))
    request += _poisoned(shape, dtype, out) + _tensor(lam.astype(np.float32))
    outcome, raw = _launch(machine, 0, request)
    if outcome.status == 0:
        _finish(outcome, raw, shape, dtype, out)
    return outcome


def key_conv(
    machine: Machine,
    dtype: str,
    key: np.ndarray,
    weights: list[np.ndarray],
    biases: list[np.ndarray],
    prefix: int,
    layouts: dict[str, Layout] | None = None,
    claimed: tuple[int, ...] | None = None,
) -> Outcome:
    """One launch; `layouts` names those of key and out that are not dense, `claimed` as above."""
    layouts = layouts or {}
    out = layouts.get("out", DENSE)
    sizes = [w.shape[-1] for w in weights]
    request = struct.pack("<10q", DTYPES.index(dtype), *(claimed or key.shape), prefix, *sizes)
    request += _laid_out(key, dtype, layouts.get("key", DENSE))
    request += _poisoned(key.shape, dtype, out)
    for tensor in (*weights, *biases):
        request += _tensor(to_storage(tensor, dtype))
    outcome, raw = _launch(machine, 1, request)
    if outcome.status == 0:
        _finish(outcome, raw, key.shape, dtype, out)
    return outcome


def faulty(machine: Machine, which: int) -> Outcome:
    """One of the kernels of faulty.cu on 64 floats."""
    outcome, raw = _launch(machine, 2, struct.pack("<q", which) + _tensor(np.zeros(64, np.float32)))
    if outcome.status == 0:
        outcome.values = np.frombuffer(raw, np.float32)
    return outcome
