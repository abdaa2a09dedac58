# SPDX-License-Identifier: Apache-2.0
"""A forged set -> face crops and audio tokens on disk, decoded once.

    python -m trainer.prepare --clips forged --output prepared

Reads the folder that :mod:`trainer.forge` wrote (``forge.json``) and writes one ``.npz`` a clip
(``crops`` uint8 [T, H, W, 3], ``tokens`` float32 [T, 104], ``level_dbfs`` float32 [T]) and
``index.json``.  Faces and sound go through the runtime's own code.  A clip whose face is away for
longer than the runtime bridges is dropped, and ``index.json`` says so.  Files that exist are kept:
a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import EXIT_ERROR, MediaError, UsageError, UserError
from runtime.files import write_json
from runtime.spec import AudioSpec, FaceSpec, StreamSpec
from trainer.data.clips import audio_tokens, find_faces, read_clip
from trainer.data.parallel import over_processes

INDEX = "index.json"


def prepare(
    clips: Path, output: Path, *, face: FaceSpec | None = None, workers: int = 1
) -> dict[str, Any]:
    """Returns what index.json holds.  Raises UsageError where ``clips`` is no forged set."""
    face = face or FaceSpec()
    try:
        forged = json.loads((clips / "forge.json").read_text())
    except (OSError, ValueError) as err:
        raise UsageError(
            f"{clips} has no readable forge.json; make the set by trainer.forge"
        ) from err
    output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    dropped: dict[str, str] = {}
    work = ((r, (clips / r["file"], _target(output, r["file"]), face)) for r in forged["clips"])
    for row, result in over_processes(_prepare_one, work, workers=workers, title="preparing"):
        if isinstance(result, MediaError):
            dropped[row["file"]] = str(result)
        else:
            array = _target(output, row["file"]).relative_to(output).as_posix()
            rows.append({**row, "array": array, "tokens": result})
    if not rows:
        raise MediaError(f"no clip of {clips} could be used: {next(iter(dropped.values()))}")
    rows.sort(key=lambda r: r["file"])
    index = {"crop_px": face.crop_px, "splits": forged["splits"], "dropped": dropped, "clips": rows}
    write_json(output / INDEX, index)
    return index


def _target(output: Path, file: str) -> Path:
    return output / "arrays" / Path(file).with_suffix(".npz")


def _prepare_one(source: Path, target: Path, face: FaceSpec) -> int | MediaError:
    """The number of tokens, or why the clip cannot be used."""
    import cv2

    cv2.setNumThreads(1)
    audio_spec = AudioSpec()
    try:
        if target.is_file():
            with np.load(target) as arrays:
                if arrays["crops"].shape[1] == face.crop_px:
                    return len(arrays["crops"])
        clip = read_clip(source, audio_spec)
        found = [None if f is None else f.crop for f in find_faces(clip, face)]
        crops = bridge(found, StreamSpec().max_gap_tokens)
        sound = audio_tokens(clip, audio_spec)
    except MediaError as err:
        return err
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part.npz")
    try:
        np.savez(temporary, crops=crops, tokens=sound.tokens, level_dbfs=sound.level_dbfs)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return len(crops)


def bridge(crops: list[Any], max_gap_tokens: int) -> Any:
    """Crops with short gaps filled by the last one before them -> [T, H, W, 3].

    Raises :class:`MediaError` for no face, or a gap longer than ``max_gap_tokens``.
    """
    filled: list[Any] = []
    gap = 0
    first = next((c for c in crops if c is not None), None)
    if first is None:
        raise MediaError("no face found")
    for crop in crops:
        gap = 0 if crop is not None else gap + 1
        if gap > max_gap_tokens:
            raise MediaError(f"the face is away for more than {max_gap_tokens} tokens")
        filled.append(crop if crop is not None else filled[-1] if filled else first)
    return np.stack(filled)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.prepare", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--clips", type=Path, required=True, help="folder written by trainer.forge")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--crop-px", type=int, default=FaceSpec().crop_px)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(argv)
    try:
        index = prepare(
            args.clips, args.output, face=FaceSpec(crop_px=args.crop_px), workers=args.workers
        )
    except UserError as err:
        print(f"trainer.prepare: {err}", file=sys.stderr)
        return err.exit_code
    except OSError as err:
        print(f"trainer.prepare: {err.filename}: {err.strerror}", file=sys.stderr)
        return EXIT_ERROR
    tokens = sum(r["tokens"] for r in index["clips"])
    print(
        f"{len(index['clips'])} clips, {tokens / AudioSpec().token_hz:.0f} s; "
        f"{len(index['dropped'])} dropped"
    )
    for file, reason in index["dropped"].items():
        print(f"dropped {file}: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
