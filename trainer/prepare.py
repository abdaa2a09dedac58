# SPDX-License-Identifier: Apache-2.0
"""A folder of clips -> face crops and audio tokens on disk, decoded once.

    python -m trainer.prepare --data FakeAVCeleb_v1.2 --output prepared --workers 8
    python -m trainer.prepare --data forged --output prepared     # written by trainer.forge
    python -m trainer.prepare --data forged --output prepared --faces encoder \\
        --encoder runs/face/encoder.safetensors                   # of trainer.distil

Layouts: :mod:`trainer.data.layouts`.  Faces and sound go through the runtime's own code, at any
frame rate, onto its 25 Hz grid.  What is written:

* ``arrays/<file>.npz``, uncompressed: ``crops`` uint8 [T, H, W, 3], ``tokens`` float32 [T, 104],
  ``level_dbfs`` float32 [T], ``audio`` int16 [640 T];
* ``journal.jsonl``: a line as soon as a clip is done, whether kept or dropped;
* ``index.json``, at the end: labels and facts of every clip kept, and why the others were dropped.

A clip whose face is away for longer than the runtime bridges keeps its longest stretch with a face,
if that lasts a second; ``start_token`` says where it starts.

The index says which stage found the faces, and which encoder: a set made with one belongs to the
models that are trained on it.

A run that was stopped, killed or out of disk goes on where it was: clips whose array and line in
the journal exist, and whose source has not changed, are not read again.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import errno
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from runtime import leftovers
from runtime.command import Parser
from runtime.errors import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    MediaError,
    UsageError,
    UserError,
)
from runtime.files import write_json
from runtime.interrupt import leave
from runtime.naming import plain
from runtime.optional import optional
from runtime.overwrites import refuse_overwrites
from runtime.sound.tokens import tokenize
from runtime.spec import FACE_STAGES, AudioSpec, FaceSpec, StreamSpec
from trainer.data.clips import MAX_CLIP_S, read_faces
from trainer.data.fakeavceleb import CSV_NAME, find_root, list_fakeavceleb
from trainer.data.layouts import (
    FAKEAVCELEB,
    FOLDER,
    FORGE_INDEX,
    FORGED,
    GRID,
    GRID_SPEAKER,
    LAYOUTS,
    LabelledClip,
    Listing,
    list_forged,
    list_genuine,
)
from trainer.data.parallel import WorkerDied, over_processes
from trainer.data.prepared import ARRAYS_VERSION, INDEX, VERSION
from trainer.data.silence import silence_tokens

AUTO = "auto"
JOURNAL = "journal.jsonl"
ENCODER = "encoder"  # the face stage
MIN_TOKENS = 25  # the shortest stretch with a face that is kept


def prepare(
    data: Path,
    output: Path,
    *,
    layout: str = AUTO,
    identities: Path | None = None,
    face: FaceSpec | None = None,
    encoder: Path | None = None,
    workers: int = 1,
) -> dict[str, Any]:
    """Returns what index.json holds.  ``workers=0`` reads the clips in this process.

    face : its stage says what finds and follows the faces
    encoder : of :mod:`trainer.distil`; for the stage ``encoder``, and it alone

    Raises :class:`UsageError` for a folder that is not of the layout, :class:`MediaError` where no
    clip could be used, and :class:`UserError` where the disk is full.
    """
    face = face or FaceSpec()
    if (face.stage == ENCODER) != (encoder is not None):
        raise UsageError("--faces encoder and --encoder FILE go together")
    faces = made_with(face, encoder)
    listing = list_clips(data, layout, identities)
    made = [output / INDEX, output / JOURNAL, *(_target(output, c.file) for c in listing.clips)]
    indexes = [data / name for name in (FORGE_INDEX, CSV_NAME)]
    refuse_overwrites(
        (("--output", file) for file in made),
        [identities, encoder, *indexes, *(clip.path for clip in listing.clips)],
    )
    output.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(output)
    results: dict[str, dict[str, Any]] = {}  # file -> its line in the journal
    with Journal(output / JOURNAL, face.crop_px, faces) as journal:
        open_work: list[tuple[tuple[LabelledClip, Any], tuple[Any, ...]]] = []
        for clip in listing.clips:
            stamp = _stamp(clip.path)
            line = journal.lines.get(clip.file)
            if line and line["stamp"] == stamp and _array_is_there(output, clip.file, line):
                results[clip.file] = line
            else:
                arguments = (clip.path, _target(output, clip.file), face, encoder)
                open_work.append(((clip, stamp), arguments))
        if open_work:  # until this run is done, arrays and an older index do not fit together
            (output / INDEX).unlink(missing_ok=True)
        done = 0
        try:
            for (clip, stamp), result in over_processes(
                _prepare_one, open_work, workers=workers, title="preparing", isolated=True
            ):
                line = {"file": clip.file, "stamp": stamp}
                if isinstance(result, WorkerDied):  # not in the journal: tried again next time
                    results[clip.file] = {**line, "dropped": str(result)}
                else:
                    results[clip.file] = {**line, **result}
                    journal.write(results[clip.file])
                done += 1
        except OSError as err:
            full = err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            remedy = "free some space" if full else "put that right"
            raise UserError(
                f"cannot write to {output} ({err.strerror}); {done} clips of this run are done "
                f"and kept: {remedy} and run the same command again"
            ) from err
    return _write_index(output, listing, results, face.crop_px, faces)


def made_with(face: FaceSpec, encoder: Path | None) -> dict[str, Any]:
    """What index and journal say of the stage; nothing of dlib's, as ever.

    Raises :class:`ModelError` for an encoder that cannot be read or wants other crops.
    """
    if encoder is None:
        return {}
    with optional("to run an encoder", extra="train"):
        from trainer.face.following import encoder_digest, encoder_stage
    encoder_stage(encoder, face)  # before a worker is started for each clip
    return {"faces": {"stage": face.stage, "encoder_sha256": encoder_digest(encoder)}}


def list_clips(data: Path, layout: str = AUTO, identities: Path | None = None) -> Listing:
    """Every clip of a folder with its labels; raises as :func:`prepare` does."""
    if layout not in (AUTO, *LAYOUTS):
        raise UsageError(f"no layout named {layout!r}; there are: {', '.join((AUTO, *LAYOUTS))}")
    if not data.is_dir():
        raise UsageError(f"{data} is no folder; --data wants a folder of clips")
    chosen = _recognise(data) if layout == AUTO else layout
    if identities is not None and chosen in (FORGED, FAKEAVCELEB):
        raise UsageError(f"--identities is for genuine clips; {data} has the layout {chosen!r}")
    if chosen == FORGED:
        listing = list_forged(data)
    elif chosen == FAKEAVCELEB:
        listing = list_fakeavceleb(data)
    else:
        listing = list_genuine(data, chosen, identities)
    if not listing.clips:
        raise MediaError(f"no clip of {data} could be used: {next(iter(listing.dropped.values()))}")
    return listing


def _recognise(data: Path) -> str:
    if (data / FORGE_INDEX).is_file():
        return FORGED
    if find_root(data) is not None:
        return FAKEAVCELEB
    folders = [p.name for p in data.iterdir() if p.is_dir()]
    return GRID if folders and all(GRID_SPEAKER.fullmatch(name) for name in folders) else FOLDER


class Journal:
    """One line a finished clip; a line that a kill tore is not there when it is read again."""

    def __init__(self, path: Path, crop_px: int, faces: Mapping[str, Any]) -> None:
        self._path = path
        self._header = {"version": ARRAYS_VERSION, "crop_px": crop_px, **faces}
        self.lines: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Journal:
        try:
            text = self._path.read_bytes() if self._path.is_file() else b""
            whole = text[: text.rfind(b"\n") + 1]
            rows = [json.loads(line) for line in whole.splitlines()]
        except ValueError as err:
            raise UserError(f"{self._path} is damaged ({err}); delete it and run again") from err
        if rows and rows[0] != self._header:
            rows, whole = [], b""  # other crops: everything is made again
        self.lines = {row["file"]: row for row in rows[1:]}
        mode = "r+b" if self._path.is_file() else "w+b"
        self._file = self._path.open(mode, buffering=0)  # a line is in the file when it is written
        self._file.truncate(len(whole))
        self._file.seek(0, os.SEEK_END)
        if not rows:
            self.write(self._header)
        return self

    def write(self, line: dict[str, Any]) -> None:
        text = json.dumps(line).encode() + b"\n"
        if self._file.write(text) != len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __exit__(self, *exc: object) -> None:
        self._file.close()


def _prepare_one(
    source: Path, target: Path, face: FaceSpec, encoder: Path | None
) -> dict[str, Any]:
    """Writes one clip's arrays; returns its part of the row, or why it cannot be used."""
    import cv2

    cv2.setNumThreads(1)  # the processes are the parallelism
    audio_spec = AudioSpec()
    try:
        clip = read_faces(source, audio_spec, face, encoder)
        start, crops = longest_stretch(clip.crops, StreamSpec().max_gap_tokens)
    except (MediaError, UsageError) as err:  # a missing file is a usage error
        return {"dropped": _without_name(str(err), source)}
    except OSError as err:
        return {"dropped": f"cannot be read ({err.strerror})"}
    sound = tokenize(clip.audio, audio_spec)
    tokens = slice(start, start + len(crops))
    samples = slice(start * audio_spec.token_samples, tokens.stop * audio_spec.token_samples)
    silence = silence_tokens(clip.audio, audio_spec)
    target.parent.mkdir(parents=True, exist_ok=True)
    with leftovers.part_of(target, ".part.npz") as temporary:
        np.savez(
            temporary,
            crops=crops,
            tokens=sound.tokens[tokens],
            level_dbfs=sound.level_dbfs[tokens],
            audio=np.clip(np.rint(clip.audio[samples] * 32768), -32768, 32767).astype(np.int16),
        )
    return {
        "tokens": len(crops),
        "silence_tokens": min(max(silence - start, 0), len(crops)),
        "start_token": start,
        **asdict(clip.facts),
    }


def longest_stretch(crops: list[Any], max_gap_tokens: int) -> tuple[int, Any]:
    """(first token, crops [T, H, W, 3]) of the longest run of faces, the earlier one of two.

    Gaps of up to ``max_gap_tokens`` show the face before them, as on the device; a longer one ends
    the run.  Raises :class:`MediaError` for no face, or none for ``MIN_TOKENS``.
    """
    runs: list[tuple[int, list[Any]]] = []
    last = -1  # token of the last face
    for token, crop in enumerate(crops):
        if crop is None:
            continue
        gap = token - last - 1
        if not runs or gap > max_gap_tokens:
            # the device waits for a face: a short wait at the start shows the first one
            lead = gap if not runs and gap <= max_gap_tokens else 0
            runs.append((token - lead, [crop] * lead))
        else:
            runs[-1][1].extend([crops[last]] * gap)
        runs[-1][1].append(crop)
        last = token
    if not runs:
        raise MediaError("no face found")
    trailing = len(crops) - 1 - last
    if trailing <= max_gap_tokens:
        runs[-1][1].extend([crops[last]] * trailing)
    start, run = max(runs, key=lambda r: (len(r[1]), -r[0]))
    if len(run) < MIN_TOKENS:
        raise MediaError(f"a face for less than {MIN_TOKENS} tokens on end")
    return start, np.stack(run)


def _write_index(
    output: Path,
    listing: Listing,
    results: dict[str, dict[str, Any]],
    crop_px: int,
    faces: dict[str, Any],
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    dropped = dict(listing.dropped)
    for clip in listing.clips:
        result = {k: v for k, v in results[clip.file].items() if k not in ("file", "stamp")}
        if "dropped" in result:
            dropped[clip.file] = result["dropped"]
        else:
            rows.append(_row(clip, result))
    if not rows:
        raise MediaError(f"no clip could be used: {next(iter(dropped.values()))}")
    rows.sort(key=lambda r: r["file"])
    index = {
        "version": VERSION,
        "crop_px": crop_px,
        **faces,
        "layout": listing.layout,
        "notes": listing.notes,
        "dropped": dict(sorted(dropped.items())),
        "clips": rows,
    }
    write_json(output / INDEX, index)
    return index


def _row(clip: LabelledClip, result: dict[str, Any]) -> dict[str, Any]:
    labels = clip.row()
    return {"file": labels.pop("file"), "array": f"arrays/{clip.file}.npz", **result, **labels}


def _target(output: Path, file: str) -> Path:
    return output / "arrays" / f"{file}.npz"


def _array_is_there(output: Path, file: str, line: dict[str, Any]) -> bool:
    return "dropped" in line or _target(output, file).is_file()


def _stamp(path: Path) -> list[int] | None:
    """Size and time of a source: arrays of an older one are made again."""
    try:
        stat = path.stat()
    except OSError:
        return None  # reading it says why
    return [stat.st_size, stat.st_mtime_ns]


def _remove_leftovers(output: Path) -> None:
    """What a killed run was writing."""
    for part in (output / "arrays").rglob(".*.part.npz"):
        part.unlink(missing_ok=True)


def _without_name(reason: str, path: Path) -> str:
    for name in (str(path), path.name):
        reason = reason.removeprefix(f"{name}: ")
    return reason.replace(str(path), path.name)


def print_report(index: dict[str, Any]) -> None:
    """What was kept, what was dropped and why."""
    rows, dropped = index["clips"], index["dropped"]
    seconds = sum(r["tokens"] for r in rows) / AudioSpec().token_hz
    print(f"{len(rows)} clips, {len({r['identity'] for r in rows})} people, {seconds:.0f} s")
    for category, count in sorted(Counter(r["category"] for r in rows).items()):
        print(f"  {count:6d}  {category}")
    for note in index["notes"]:
        print(plain(note))
    rates = Counter(r["fps"] for r in rows)
    if len(rates) > 1:
        shown = ", ".join(f"{n} at {rate or 'an unstated rate'}" for rate, n in rates.most_common())
        print(f"frame rates, all brought to {AudioSpec().token_hz:.0f} Hz: {shown}")
    for what, count in (
        ("start with silence", sum(r["silence_tokens"] > 0 for r in rows)),
        ("lost a part without a face", sum(_is_shortened(r) for r in rows)),
        ("have damaged packets or timestamps", sum(r["damaged"] > 0 for r in rows)),
        (f"are longer than {MAX_CLIP_S:.0f} s: the rest was left out", sum(r["cut"] for r in rows)),
    ):
        if count:
            print(f"{count} clips {what}")
    if dropped:
        print(f"{len(dropped)} dropped ({INDEX} names them all):")
    for reason, files in by_reason(dropped).items():
        print(f"  {len(files):6d}  {plain(f'{reason}, e.g. {files[0]}')}")


def by_reason(dropped: dict[str, str]) -> dict[str, list[str]]:
    """reason -> files, the commonest first; reasons that differ in numbers alone are one."""
    groups: dict[str, dict[str, str]] = {}
    for file, reason in dropped.items():
        groups.setdefault(re.sub(r"\d+(\.\d+)?", "N", reason), {})[file] = reason
    named = {
        next(iter(group.values())) if len(set(group.values())) == 1 else general: sorted(group)
        for general, group in groups.items()
    }
    return dict(sorted(named.items(), key=lambda item: (-len(item[1]), item[0])))


def _is_shortened(row: dict[str, Any]) -> bool:
    return row["tokens"] < round(row["duration_s"] * AudioSpec().token_hz)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m trainer.prepare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--data", "--clips", type=Path, required=True, metavar="ROOT", help="folder of clips"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="PREPARED")
    parser.add_argument("--layout", choices=(AUTO, *LAYOUTS), default=AUTO)
    parser.add_argument(
        "--identities", type=Path, metavar="CSV", help="file,identity of genuine clips"
    )
    parser.add_argument("--crop-px", type=int, default=FaceSpec().crop_px)
    parser.add_argument("--faces", choices=FACE_STAGES, default=FaceSpec().stage,
                        help="what finds and follows the faces (default: %(default)s)")  # fmt: skip
    parser.add_argument("--encoder", type=Path, metavar="FILE",
                        help="of trainer.distil, for --faces encoder")  # fmt: skip
    parser.add_argument("--workers", type=int, default=2, help="processes; 0: this one")
    args = parser.parse_args(argv)
    try:
        index = prepare(
            args.data,
            args.output,
            layout=args.layout,
            identities=args.identities,
            face=FaceSpec(crop_px=args.crop_px, stage=args.faces),
            encoder=args.encoder,
            workers=args.workers,
        )
    except UserError as err:
        print(f"trainer.prepare: {plain(str(err))}", file=sys.stderr)
        return err.exit_code
    except OSError as err:
        print(plain(f"trainer.prepare: {err.filename}: {err.strerror}"), file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("trainer.prepare: stopped; the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    print_report(index)
    return 0


if __name__ == "__main__":
    leave(main)
