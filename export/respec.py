# SPDX-License-Identifier: Apache-2.0
"""Write an ONNX pair of an older version anew: the same graphs and weights, the spec of today.

    python -m export.respec FOLDER --output NEW

What the older spec did not say is as it was then (the face stage was dlib's), so the pair gives the
same verdicts, and keeps its names (``pair_id``, ``model_id``).  Engines are built again from it:
``python -m export.build_engine --onnx NEW``.  Needs onnx (the extra ``export``), no torch.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

from collections.abc import Sequence
from pathlib import Path

from export.manifest import staged_folder, write_manifest
from export.pair import PAIR
from runtime.backends.manifest import MANIFEST_FILE, MAX_MODEL_BYTES, read_manifest
from runtime.backends.onnx import read_pair
from runtime.command import Parser, guarded
from runtime.errors import EXIT_OK, ModelError, UsageError
from runtime.files import read_bounded
from runtime.interrupt import leave
from runtime.models import model_files
from runtime.optional import optional
from runtime.overwrites import refuse_overwrites
from runtime.spec import METADATA_KEY, PairSpec

_KEPT = ("backend", "parity", "int8")  # of the older manifest: what was measured then


def respec(folder: Path, output: Path) -> PairSpec:
    """Both files and their manifest in ``output``; the spec that they carry now.

    Raises :class:`ModelError` for files that are missing, damaged, of two pairs or no pair of this
    project, :class:`UsageError` for an output that is the folder itself.
    """
    if output.resolve() == folder.resolve():
        raise UsageError("--output is the folder that is read; give another one")
    written = [("--output", output / name) for name in (*PAIR, MANIFEST_FILE)]
    refuse_overwrites(written, model_files(folder))
    with optional("to write ONNX files"):
        import onnx

        from export import precision
    facts = {"backend": "onnx"}
    if (folder / MANIFEST_FILE).is_file():
        older = read_manifest(folder)
        facts |= {key: older[key] for key in _KEPT if key in older}
    models, specs = [], []
    for name in PAIR:
        path = folder / name
        try:
            model = onnx.load_from_string(read_bounded(path, MAX_MODEL_BYTES))
        except OSError as err:
            raise ModelError(f"cannot read {path} ({err.strerror})") from err
        except Exception as err:  # protobuf's own kinds
            raise ModelError(f"{path} is damaged or no ONNX file") from err
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        if METADATA_KEY not in metadata:
            raise ModelError(f"{path} carries no {METADATA_KEY}: it is no model of this project")
        models.append(model)
        specs.append(PairSpec.from_older_json(metadata[METADATA_KEY]))
    if specs[0] != specs[1]:
        raise ModelError(f"{folder}: the two ONNX files carry different specs")
    with staged_folder(output) as staging:
        for name, model in zip(PAIR, models, strict=True):
            precision.restamp(model, specs[0])
            (staging / name).write_bytes(model.SerializeToString(deterministic=True))
        write_manifest(staging, PAIR, specs[0], facts)
        read_pair(staging)  # as the runtime will
    return specs[0]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    parser = Parser(prog="python -m export.respec", description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with a pair of any version")
    parser.add_argument("--output", type=Path, required=True, metavar="NEW", help="another folder")
    options = parser.parse_args(argv)

    def command() -> int:
        spec = respec(options.folder, options.output)
        print(f"{options.output}: {spec.model_id}, spec version {spec.version}")
        return EXIT_OK

    return guarded(command)


if __name__ == "__main__":
    leave(main)
