# SPDX-License-Identifier: Apache-2.0
"""The process in which :mod:`benchmarks.fuzz.readers` has one reader fuzzed.

    python -m benchmarks.fuzz.targets READER CORPUS [LIBFUZZER OPTIONS ...]

Atheris runs libFuzzer over the reader until a time is over or something is found: an exception
that is not the reader's own.  The runtime is imported here, and nowhere before, so that every
branch of it is instrumented: libFuzzer keeps an input that reaches a new one, to mutate it further.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # not imported before it can be instrumented
    from runtime.backends.manifest import EngineFacts
    from runtime.calibrate.site import SiteCalibration

READERS = ("site", "spec", "manifest", "onnx", "sources")
Reader = Callable[[bytes], object]


def seeds(reader: str) -> list[bytes]:
    """Good inputs to begin with; the model is the shipped one."""
    from runtime.backends.manifest import MANIFEST_FILE
    from runtime.backends.onnx import read_pair
    from runtime.models import DEFAULT_PRESET, model_dir

    folder = model_dir(DEFAULT_PRESET)
    spec, _ = read_pair(folder)
    if reader == "site":
        return [example_site(spec.model_id, spec.pair_id).to_json().encode()]
    if reader == "spec":
        return [spec.to_json().encode()]
    if reader == "manifest":
        files = {"fusion.engine": {"sha256": "ab" * 32}}
        engines = {"backend": "tensorrt", "files": files, "engine": example_engines().to_dict()}
        return [(folder / MANIFEST_FILE).read_bytes(), json.dumps(engines).encode()]
    if reader == "onnx":
        return [_graph()]
    return [b"# doors\nrtsp://user:word@camera/1\ncamera\nclips/*.mp4\ncsi://0\n"]


def example_site(model_id: str, pair_id: str) -> SiteCalibration:
    """A calibration as a camera gives it."""
    from runtime.calibrate.site import Offset, SiteCalibration, Threshold

    return SiteCalibration(
        model_id=model_id,
        pair_id=pair_id,
        created="2026-03-01T12:30:00+00:00",
        source_kind="camera",
        recordings=1,
        duration_s=120.0,
        window_tokens=50,
        hop_tokens=5,
        block_tokens=100,
        blocks=29,
        windows=591,
        used_windows=319,
        left_out={"between_blocks": 261, "no_speech": 11},
        offset=Offset(2, 80.0, True, 1, 3, 540, 580),
        threshold=Threshold(0.62, 0.54, 0.05, 0.61997, 29, 0.001, 0.12, 20, 1, 29, 28, 25),
    )


def example_engines() -> EngineFacts:
    """What a manifest says of a Jetson's engines."""
    from runtime.backends.manifest import EngineFacts, PluginFacts

    return EngineFacts(
        flavour="tensorrt",
        version="10.3.0.26",
        compute_capabilities=("8.7",),
        platform="linux-aarch64",
        precision="fp16",
        int8_encoder=False,
        plugins=PluginFacts("libmsct_plugins.so", "ab" * 32, {"frame_encoder": 0, "fusion": 8}),
        profiles={
            "frame_encoder": {
                "frames": {"min": [1, 64, 64, 3], "opt": [5, 64, 64, 3], "max": [50, 64, 64, 3]}
            },
            "fusion": {
                "visual": {"min": [1, 1, 128], "opt": [1, 50, 128], "max": [4, 75, 128]},
                "audio": {"min": [1, 1, 104], "opt": [1, 50, 104], "max": [4, 75, 104]},
            },
        },
    )


def _graph() -> bytes:
    """An ONNX model of one node, in protobuf's wire format (onnx.proto3)."""

    def field(number: int, *parts: bytes) -> bytes:
        body = b"".join(parts)
        return bytes([number << 3 | 2, len(body)]) + body

    node = field(1, field(4, b"MultiScaleKeyConv"), field(7, b"msct"))
    ends = field(11, field(1, b"visual")) + field(12, field(1, b"sync"))
    opset = field(8, field(1, b"msct"), b"\x10\x01")
    metadata = field(14, field(1, b"msct.spec"), field(2, b"{}"))
    return b"\x08\x0a" + field(7, node, ends) + opset + metadata


def target(reader: str, scratch: Path) -> Reader:
    """The reader as a function of bytes; errors that are its own are swallowed.  Files, where it
    wants some, are written into ``scratch``.

    Raises whatever else comes out of it: that is a finding.
    """
    from runtime.backends.manifest import MANIFEST_FILE, engine_facts, read_manifest
    from runtime.backends.onnx import read_pair
    from runtime.backends.onnx_file import WireError, read_onnx
    from runtime.calibrate.site import SiteCalibration
    from runtime.errors import UserError
    from runtime.media.open import LIST_SUFFIX, expand_sources
    from runtime.models import DEFAULT_PRESET, model_dir
    from runtime.spec import PairSpec

    shipped, _ = read_pair(model_dir(DEFAULT_PRESET))
    file = scratch / {"manifest": MANIFEST_FILE, "sources": f"x{LIST_SUFFIX}"}.get(reader, "x.json")

    def one(data: bytes) -> None:
        try:
            read(data)
        except (UserError, WireError):
            return

    def read(data: bytes) -> None:
        if reader == "spec":
            PairSpec.from_json(data.decode("utf-8", "surrogateescape")).to_json()
            return
        if reader == "onnx":
            read_onnx(data)
            return
        lines = data.decode("utf-8", "replace").splitlines() if reader == "sources" else []
        if any(line.strip().startswith("/") or ".." in line for line in lines):
            return  # it would look through the disk of this machine
        file.write_bytes(data)
        if reader == "site":
            SiteCalibration.read(file).apply(shipped).to_json()
        elif reader == "manifest":
            engine_facts(read_manifest(scratch))
        else:
            expand_sources([str(file)])

    return one


def main(arguments: list[str]) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris

    # an editable install finds modules by a loader of its own, which Atheris does not instrument
    sys.meta_path[:] = [f for f in sys.meta_path if "Redirecting" not in type(f).__name__]
    reader, corpus, *options = arguments
    with tempfile.TemporaryDirectory() as folder:
        with atheris.instrument_imports(include=["runtime"]):
            for number, data in enumerate(seeds(reader)):
                Path(corpus, f"seed-{number}").write_bytes(data)
            read = target(reader, Path(folder))
        atheris.Setup([sys.argv[0], *options, corpus], read)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
