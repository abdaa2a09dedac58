# SPDX-License-Identifier: Apache-2.0
"""A model repository for NVIDIA's Triton Inference Server: ``python -m export.triton``.

``python -m export.triton --model DIR|PRESET --output repository`` writes ::

    repository/manifest.json                  hashes and the spec; Triton reads folders only
    repository/frame_encoder/config.pbtxt     and 1/model.onnx or 1/model.plan
    repository/fusion/config.pbtxt            the same

A folder with TensorRT engines is served by Triton's TensorRT backend, any other by its ONNX Runtime
backend.  Both graphs batch dynamically: the server joins the crops, and the windows of one length,
of several streams.  Faces, the features' ring and the decision stay with the client, which finds
the spec in each model's configuration, as the parameter ``msct.spec``.

Source: Triton's ``model_config.proto`` (package ``inference``), ``TensorRT`` and ``ONNX Runtime``
backends' documentation.  The files are checked against that schema in the tests; **no Triton
server has loaded them so far**.

Exit codes: 0 done, 1 operational error, 2 usage (:mod:`runtime.errors`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.manifest import staged_folder, write_manifest
from runtime.backends.base import FRAME_ENCODER_FILE, FUSION_FILE
from runtime.backends.engine import Tensor, tensors
from runtime.backends.manifest import (
    ENGINE_FILES,
    MANIFEST_FILE,
    TENSORRT,
    EngineFacts,
    checked_bytes,
    engine_facts,
    has_engines,
    read_manifest,
)
from runtime.backends.onnx import read_pair
from runtime.command import guarded
from runtime.errors import EXIT_OK, UsageError
from runtime.models import DEFAULT_PRESET, model_dir
from runtime.spec import METADATA_KEY, PairSpec

DEFAULT_MAX_BATCH = 32  # of ONNX graphs, which take any; engines have theirs in their profile
DEFAULT_QUEUE_DELAY_US = 1000  # small beside a hop of 200 ms
VERSION = "1"
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
_ROLES = (Path(FRAME_ENCODER_FILE).stem, Path(FUSION_FILE).stem)


@dataclass(frozen=True)
class Options:
    """How the server runs both graphs."""

    device: str  # cpu or gpu
    instances: int  # of each graph, on each GPU or on the CPU
    max_batch: int | None  # of ONNX graphs
    queue_delay_us: int  # that a request waits for others to share its batch


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return guarded(lambda: _command(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m export.triton",
        description="Write a model repository for Triton Inference Server.",
    )
    p.add_argument("--model", default=DEFAULT_PRESET, metavar="NAME|DIR",
                   help="a shipped preset, or a folder with an ONNX pair or TensorRT engines "
                        "(default: %(default)s)")  # fmt: skip
    p.add_argument("--output", type=Path, required=True, metavar="DIR",
                   help="the repository; must not exist")  # fmt: skip
    p.add_argument("--device", choices=("cpu", "gpu"), default=None,
                   help="where the graphs run (default: cpu; engines: gpu)")  # fmt: skip
    p.add_argument("--instances", type=_positive, default=1, metavar="N",
                   help="copies of each graph, on the CPU or on each GPU (default: 1)")  # fmt: skip
    p.add_argument("--max-batch", type=_positive, default=None, metavar="N",
                   help="crops, or windows, that the server joins at most (default: "
                        f"{DEFAULT_MAX_BATCH}; engines: what they were built for)")  # fmt: skip
    p.add_argument("--queue-delay-us", type=_count, default=DEFAULT_QUEUE_DELAY_US, metavar="US",
                   help="time that a request waits for company (default: %(default)s)")  # fmt: skip
    p.add_argument("--allow-untrained", action="store_true",
                   help="also for random weights; what they answer means nothing")  # fmt: skip
    return p


def _command(args: argparse.Namespace) -> int:
    folder = model_dir(args.model)
    spec, onnx = read_pair(folder)
    if not spec.trained and not args.allow_untrained:
        raise UsageError(
            f"{spec.model_id}: its weights are random; train it, or give --allow-untrained"
        )
    facts = _engines(folder)
    if facts is None:
        options = Options(
            args.device or "cpu",
            args.instances,
            args.max_batch or DEFAULT_MAX_BATCH,
            args.queue_delay_us,
        )
        files = dict(zip(_ROLES, onnx, strict=True))
    else:
        if args.device == "cpu":
            raise UsageError(f"--device cpu: the engines in {folder} run on a GPU; leave it out")
        if args.max_batch is not None:
            raise UsageError(
                "--max-batch is for ONNX graphs: engines take what they were built for "
                "(export.build_engine --max-batch)"
            )
        options = Options("gpu", args.instances, None, args.queue_delay_us)
        manifest = read_manifest(folder)
        files = {
            role: checked_bytes(folder, name, manifest)
            for role, name in zip(_ROLES, ENGINE_FILES, strict=True)
        }
    if args.output.exists():
        raise UsageError(f"{args.output} exists; remove it, or give another --output")
    write_repository(args.output, spec, files, options, facts)
    _tell(args.output, spec, facts)
    return EXIT_OK


def write_repository(
    target: Path,
    spec: PairSpec,
    files: dict[str, bytes],
    options: Options,
    facts: EngineFacts | None = None,
) -> None:
    """Both models and the manifest, as a whole or not at all.

    ``files``: graph -> ONNX file, or engine where ``facts`` say how it was built.  Raises
    :class:`~runtime.errors.UserError` where nothing can be written.
    """
    model_file = "model.onnx" if facts is None else "model.plan"
    with staged_folder(target) as staging:
        names = []
        for role, data in files.items():
            version = staging / role / VERSION
            version.mkdir(parents=True)
            (version / model_file).write_bytes(data)
            text = config(role, spec, options, facts)
            (staging / role / "config.pbtxt").write_text(text, encoding="utf-8")
            names += [f"{role}/config.pbtxt", f"{role}/{VERSION}/{model_file}"]
        served = {"backend": "onnxruntime" if facts is None else "tensorrt"}
        engine = {} if facts is None else {"engine": facts.to_dict()}
        triton = {"triton": {**served, **dataclasses.asdict(options)}, **engine}
        write_manifest(staging, tuple(names), spec, triton)


def config(role: str, spec: PairSpec, options: Options, facts: EngineFacts | None = None) -> str:
    """``config.pbtxt`` of ``frame_encoder`` or ``fusion``.

    With ``max_batch_size`` above 0 the first dimension of every tensor is the batch and is not
    written; -1 is a dynamic one (T).
    """
    described = dict(zip(_ROLES, tensors(spec), strict=True))[role]
    lines = [
        f'name: "{role}"',
        f'backend: "{"onnxruntime" if facts is None else "tensorrt"}"',
        f"max_batch_size: {_max_batch(role, options, facts)}",
    ]
    for tensor in described:
        lines += _tensor(tensor)
    lines += [
        f"dynamic_batching {{ max_queue_delay_microseconds: {options.queue_delay_us} }}",
        f"instance_group [ {{ count: {options.instances}, kind: KIND_{options.device.upper()} }} ]",
    ]
    parameters = {METADATA_KEY: spec.to_json(), "msct.model_id": spec.model_id}
    if facts is None and options.device == "cpu":
        # the server's parallelism is its instances; by itself each would take every core
        parameters |= {"intra_op_thread_count": "1", "inter_op_thread_count": "1"}
    for key, value in parameters.items():
        quoted = f"{{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}"
        lines.append(f"parameters {quoted}")
    return "\n".join(lines) + "\n"


def _tensor(tensor: Tensor) -> list[str]:
    sizes = ", ".join(str(-1 if isinstance(d, str) else d) for d in tensor.dims[1:])
    kind = "input" if tensor.is_input else "output"
    return [
        f'{kind} [ {{ name: "{tensor.name}", data_type: {_TYPES[tensor.dtype.name]}, '
        f"dims: [ {sizes} ] }} ]"
    ]


def _max_batch(role: str, options: Options, facts: EngineFacts | None) -> int:
    if facts is None:
        assert options.max_batch is not None
        return options.max_batch
    return min(shapes["max"][0] for shapes in facts.profiles[role].values())


def _engines(folder: Path) -> EngineFacts | None:
    """What the folder's engines are; None where it has a pair alone.

    Raises :class:`UsageError` for engines of TensorRT-RTX, which Triton's backend cannot load.
    """
    if not (folder / MANIFEST_FILE).is_file() and not has_engines(folder):
        return None
    facts = engine_facts(read_manifest(folder))
    if facts is not None and facts.flavour != TENSORRT:
        raise UsageError(
            f"the engines in {folder} are TensorRT-RTX's, which Triton does not load; build some "
            "with --backend tensorrt on the server, or export the pair: --backend onnx"
        )
    return facts


def _tell(target: Path, spec: PairSpec, facts: EngineFacts | None) -> None:
    print(f"{target}: {spec.model_id}, {spec.precision}, for Triton's "
          f"{'ONNX Runtime' if facts is None else 'TensorRT'} backend")  # fmt: skip
    plugins = ""
    if facts is not None:
        print(f"  the server must have TensorRT {facts.version} and a GPU of compute capability "
              f"{', '.join(facts.compute_capabilities)}")  # fmt: skip
        if facts.plugins is not None:
            plugins = f" --backend-config=tensorrt,plugins=/path/to/{facts.plugins.library}"
    print(f"  tritonserver --model-repository={target}{plugins}")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
