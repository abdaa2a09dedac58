# SPDX-License-Identifier: Apache-2.0
"""Genuine clips -> a set of the four FakeAVCeleb categories, with nothing but forgery between them.

    python -m trainer.forge --genuine CLIPS --output forged

writes ``OUTPUT/<category>/Unknown/unknown/<identity>/<clip>.mp4``, ``meta_data.csv`` in
FakeAVCeleb's columns and ``forge.json`` with every clip's method, seed, parameters, labels and
split.  Rules that keep short cuts out:

* identities are split first, and every donor comes from the same split;
* the clips that a method is given are dealt to each other as its donors, so within a method every
  face and every voice is lent as often as it is used up;
* a clip and everything made from it go the same way through transport, light, level, frame rate
  and one encoder (:mod:`trainer.data.nuisance`), drawn once for all of them; a speaker with few
  clips is seen several times, genuine and forged equally often;
* ``python -m trainer.probe`` measures what is left.

A file that exists already is kept, so a run that was stopped goes on where it was, to the same set.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import csv
import errno
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from runtime.command import Parser
from runtime.errors import EXIT_ERROR, EXIT_INTERRUPTED, MediaError, UsageError, UserError
from runtime.files import write_json
from runtime.interrupt import leave
from runtime.naming import plain
from runtime.overwrites import refuse_overwrites
from runtime.sheets import safe
from runtime.spec import AudioSpec, FaceSpec
from trainer.data import forgeries, speech
from trainer.data.clips import MAX_CLIP_S, Clip, find_faces, read_clip, write_clip
from trainer.data.fakeavceleb import CSV_NAME
from trainer.data.layouts import CATEGORIES, FORGE_INDEX, find_genuine
from trainer.data.nuisance import MARGIN_TOKENS, MAX_TRANSPORT_MS, apply_nuisance
from trainer.data.parallel import over_processes
from trainer.data.plan import (
    ALL_METHODS,
    BALANCE,
    OTHERS_VOICE,
    Forgery,
    Piece,
    assign_splits,
    plan,
)

SHORT = dict(zip(CATEGORIES, ("RARV", "FARV", "RAFV", "FAFV"), strict=True))
KIND = dict(zip(CATEGORIES, "ABCD", strict=True))  # FakeAVCeleb's types
META_COLUMNS = (
    "source",
    "target1",
    "target2",
    "method",
    "category",
    "type",
    "race",
    "gender",
    "path",
    "",
)
MIN_TOKENS = 40 + MARGIN_TOKENS
OPTIONS = "forge-options.json"


def forge_piece(
    jobs: list[Forgery], output: Path, sentences: tuple[str, ...] = (), voice: str = "hibari"
) -> list[dict[str, Any]]:
    """All files of one genuine piece; their records, the parameters filled in."""
    audio_spec = AudioSpec()
    source: Clip | None = None
    records = []
    for job in jobs:
        target = output / job.file
        sidecar = target.with_suffix(".json")
        if target.is_file() and sidecar.is_file():
            records.append(json.loads(sidecar.read_text(encoding="utf-8")))
            continue
        if source is None:
            source = _read(job.source, audio_spec)
        rng = np.random.default_rng(job.seed)
        frames, offset = _forge_picture(job, source, rng)
        audio = _forge_sound(job, source, offset, rng, sentences, voice)
        frames, audio = apply_nuisance(frames, audio, job.nuisance, audio_spec)
        write_clip(
            target,
            frames,
            audio,
            audio_spec,
            crf=job.nuisance.crf,
            audio_bit_rate=job.nuisance.audio_bit_rate,
        )
        record = job.record()
        write_json(sidecar, record)
        records.append(record)
    return records


def _forge_picture(
    job: Forgery, source: Clip, rng: np.random.Generator
) -> tuple[list[forgeries.UInt8], int]:
    """(frames, how many tokens later the donor's pictures are taken)"""
    if job.picture == "none":
        return source.frames, 0
    face_spec = FaceSpec()
    faces = find_faces(source, face_spec)
    if job.picture == "self_blend":
        frames, job.params["picture"] = forgeries.self_blend(source, faces, rng)
        return frames, 0
    assert job.face_donor is not None
    same = job.face_donor == job.source  # then another moment of the same clip
    donor = source if same else _read(job.face_donor, AudioSpec())
    offset = int(rng.integers(donor.tokens // 4, donor.tokens * 3 // 4)) if same else 0
    method = forgeries.face_swap if job.picture == "face_swap" else forgeries.mouth_replay
    frames, job.params["picture"] = method(
        source, faces, donor, find_faces(donor, face_spec), offset, rng
    )
    return frames, offset


def _forge_sound(
    job: Forgery,
    source: Clip,
    offset: int,
    rng: np.random.Generator,
    sentences: tuple[str, ...],
    voice: str,
) -> speech.Float32:
    spec, audio = AudioSpec(), source.audio
    if job.sound == "shifted":
        audio, params = speech.shifted(audio, spec, rng, job.nuisance.transport_ms)
    elif job.sound == "vocoded":
        audio, params = speech.vocoded(audio, spec, rng)
    elif job.sound == "griffin_lim":
        audio, params = speech.griffin_lim(audio, spec, rng)
    elif job.sound == "tts":
        audio, params = speech.tts(audio, spec, rng, sentences=sentences, voice=voice)
    elif job.sound in OTHERS_VOICE:
        assert job.voice_donor is not None
        donor = source if job.voice_donor == job.source else _read(job.voice_donor, spec)
        lent = np.roll(donor.audio, -offset * spec.token_samples)
        audio, params = speech.replaced(audio, lent), {}
        if job.sound == "dubbed":
            resynthesis = speech.vocoded if rng.random() < 0.5 else speech.griffin_lim
            audio, params = resynthesis(audio, spec, rng)
            params["resynthesis"] = resynthesis.__name__
    else:
        return audio
    job.params["sound"] = params
    return audio


def _read(piece: Piece, audio_spec: AudioSpec) -> Clip:
    clip = read_clip(
        Path(piece.path), audio_spec, start_s=piece.start_s, duration_s=piece.duration_s
    )
    if clip.tokens < MIN_TOKENS:
        shortest_s = MIN_TOKENS / audio_spec.token_hz
        raise MediaError(f"{Path(piece.path).name}: shorter than {shortest_s:.1f} s")
    return clip


def cut(path: Path, identity: str, split: str, segment_s: float | None) -> list[Piece]:
    """A clip as one piece, or as equal pieces of about ``segment_s`` seconds."""
    if segment_s is None:
        return [Piece(str(path), identity, split, 0.0, MAX_CLIP_S, path.stem)]
    from runtime.media.file import FileSource

    with FileSource(path) as source:
        length_s = source.info.duration_s or 0.0
    n = max(1, int(length_s / segment_s))
    token_hz = AudioSpec().token_hz
    step_s = round(length_s / n * token_hz) / token_hz
    return [
        Piece(str(path), identity, split, round(i * step_s, 2), step_s, f"{path.stem}-{i}")
        for i in range(n)
    ]


def forge(
    genuine: Path,
    output: Path,
    *,
    identities: Path | None = None,
    val: list[str] | None = None,
    test: list[str] | None = None,
    per_category: int = 1,
    per_identity: int = 1,
    max_clips: int | None = None,
    segment_s: float | None = None,
    balance: Sequence[int] = BALANCE,
    methods: Sequence[str] = ALL_METHODS,
    max_transport_ms: float = MAX_TRANSPORT_MS,
    sentences: tuple[str, ...] = (),
    voice: str = speech.TTS_VOICES[0],
    seed: int = 0,
    workers: int = 1,
) -> dict[str, Any]:
    """Write the set; returns what forge.json holds.

    Clips that cannot be used are left out, named in ``dropped`` with the reason.  Raises
    :class:`MediaError` where nothing could be used, and :class:`UsageError` for an option that
    does not exist or an ``output`` that holds a set made with other options.
    """
    options = {
        "seed": seed,
        "per_category": per_category,
        "per_identity": per_identity,
        "balance": list(balance),
        "methods": sorted(methods),
        "max_transport_ms": max_transport_ms,
        "voice": voice,
        "sentences": list(sentences),
    }
    clips = find_genuine(genuine, identities)
    if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(genuine)):
        raise UsageError(
            f"--output {output} lies in {genuine}: what is forged would be taken for genuine the "
            "next time; choose a folder elsewhere"
        )
    names = sorted({c.identity for c in clips})
    splits = assign_splits(names, val=val, test=test, seed=seed)
    pieces: list[Piece] = []
    dropped: dict[str, str] = {}
    for name in names:
        own = [c for c in clips if c.identity == name]
        if max_clips is not None and len(own) > max_clips:
            keep = np.random.default_rng(seed).permutation(len(own))[:max_clips]
            own = [own[i] for i in sorted(keep)]
        stems: dict[str, int] = {}
        for clip in own:
            try:
                parts = cut(clip.path, name, splits[name], segment_s)
            except MediaError as err:
                dropped[clip.path.stem] = str(err)
                continue
            for piece in parts:
                again = stems[piece.name] = stems.get(piece.name, -1) + 1
                if again:  # two files of one name, in two folders of one speaker
                    piece = Piece(**{**asdict(piece), "name": f"{piece.name}~{again}"})
                pieces.append(piece)
    jobs: dict[Piece, list[Forgery]] = {}
    for job in plan(
        pieces,
        per_category=per_category,
        per_identity=per_identity,
        balance=balance,
        methods=methods,
        max_transport_ms=max_transport_ms,
        seed=seed,
    ):
        jobs.setdefault(job.source, []).append(job)

    made = [output / name for name in (FORGE_INDEX, CSV_NAME, OPTIONS)]
    for job in (job for own in jobs.values() for job in own):
        made += [output / job.file, (output / job.file).with_suffix(".json")]
    refuse_overwrites(
        (("--output", file) for file in made), [identities, *(clip.path for clip in clips)]
    )
    _claim(output, options)
    _remove_leftovers(output)
    records: list[dict[str, Any]] = []
    try:
        for piece, result in over_processes(
            _attempt,
            ((piece, (own, output, sentences, voice)) for piece, own in jobs.items()),
            workers=workers,
            title="forging",
        ):
            if isinstance(result, MediaError):
                dropped[piece.name] = str(result)
            else:
                records += result
    except OSError as err:
        _remove_leftovers(output)  # of the other processes
        full = err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free some space" if full else "put that right"
        raise UserError(
            f"cannot write to {output} ({err.strerror}); what was forged is kept: {remedy} and run "
            "the same command again"
        ) from err
    if not records:
        raise MediaError(f"no clip could be used: {next(iter(dropped.values()))}")
    records.sort(key=lambda r: r["file"])
    summary = {
        **options,
        "splits": splits,
        "dropped": dropped,
        "clips": records,
    }
    write_json(output / FORGE_INDEX, summary)
    _write_meta(output / CSV_NAME, records)
    return summary


def _remove_leftovers(output: Path) -> None:
    """What a killed or failed run was writing."""
    for part in output.rglob(".*.part"):
        part.unlink(missing_ok=True)


def _claim(output: Path, options: dict[str, Any]) -> None:
    """Files that are there are kept, so they must have been made with the same options."""
    path = output / OPTIONS
    output.mkdir(parents=True, exist_ok=True)
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (output / FORGE_INDEX).exists():
            raise UsageError(
                f"{output} holds a set of an older version; choose another folder"
            ) from None
        write_json(path, options)
        return
    except ValueError as err:
        raise UsageError(f"{path} is damaged ({err}); choose another folder") from err
    if not isinstance(before, dict):
        raise UsageError(f"{path} is damaged; choose another folder")
    other = sorted(k for k in options if before.get(k) != options[k])
    if other:
        raise UsageError(
            f"{output} holds a set made with other options ({', '.join(other)}); "
            "choose another folder"
        )


def _attempt(
    jobs: list[Forgery], output: Path, sentences: tuple[str, ...], voice: str
) -> list[dict[str, Any]] | MediaError:
    import cv2

    cv2.setNumThreads(1)  # the processes are the parallelism
    try:
        return forge_piece(jobs, output, sentences, voice)
    except MediaError as err:
        return err


def _write_meta(path: Path, records: list[dict[str, Any]]) -> None:
    """FakeAVCeleb v1.2's columns; the tenth has no name and holds the folder."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(META_COLUMNS)
        for r in records:
            folder, name = r["file"].rsplit("/", 1)
            row = [
                r["identity"],
                r["donor"] or "-",
                "-",
                r["method"],
                KIND[r["category"]],
                r["category"],
                "Unknown",
                "unknown",
                name,
                f"FakeAVCeleb/{folder}",
            ]
            writer.writerow(map(safe, row))


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m trainer.forge", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--genuine", type=Path, required=True, help="folder of genuine clips")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--identities", type=Path, help="CSV 'file,identity' (default: sub-folders)"
    )
    parser.add_argument("--val", type=_names, help="identities for validation, by comma")
    parser.add_argument("--test", type=_names, help="identities for the test, by comma")
    parser.add_argument("--per-category", type=int, default=1, help="forgeries a clip and category")
    parser.add_argument(
        "--per-identity",
        type=int,
        default=1,
        metavar="N",
        help="forgeries a speaker and category at least (more from each clip)",
    )
    parser.add_argument("--max-clips", type=int, help="a speaker's clips at most")
    parser.add_argument("--segment", type=float, metavar="S", help="cut long clips into pieces")
    parser.add_argument(
        "--methods",
        type=_names,
        default=list(ALL_METHODS),
        help=f"by comma, of {', '.join(ALL_METHODS)} (default: all)",
    )
    parser.add_argument(
        "--balance",
        type=_balance,
        default=BALANCE,
        metavar="A:B:C:D",
        help="clips of " + ", ".join(CATEGORIES) + " for each genuine clip (default: 1:1:1:1)",
    )
    parser.add_argument(
        "--max-transport-ms",
        type=float,
        default=MAX_TRANSPORT_MS,
        metavar="MS",
        help="largest A/V offset put on genuine and forged alike (default and most: 200)",
    )
    parser.add_argument(
        "--sentences", type=Path, metavar="FILE", help="for tts, one a line (default: GRID's)"
    )
    parser.add_argument("--voice", choices=speech.TTS_VOICES, default=speech.TTS_VOICES[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(argv)
    try:
        summary = forge(
            args.genuine,
            args.output,
            identities=args.identities,
            val=args.val,
            test=args.test,
            per_category=args.per_category,
            per_identity=args.per_identity,
            max_clips=args.max_clips,
            segment_s=args.segment,
            balance=args.balance,
            methods=args.methods,
            max_transport_ms=args.max_transport_ms,
            sentences=_lines(args.sentences) if args.sentences else (),
            voice=args.voice,
            seed=args.seed,
            workers=args.workers,
        )
    except UserError as err:
        print(f"trainer.forge: {plain(str(err))}", file=sys.stderr)
        return err.exit_code
    except OSError as err:
        print(plain(f"trainer.forge: {err.filename}: {err.strerror}"), file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("trainer.forge: stopped; the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    counts: dict[tuple[str, str], int] = {}
    for record in summary["clips"]:
        key = (record["split"], SHORT[record["category"]])
        counts[key] = counts.get(key, 0) + 1
    for split in ("train", "val", "test"):
        people = sum(s == split for s in summary["splits"].values())
        row = "  ".join(f"{c} {counts.get((split, c), 0)}" for c in SHORT.values())
        print(f"{split:5}  identities {people}  {row}")
    for name, reason in summary["dropped"].items():
        print(plain(f"dropped {name}: {reason}"))
    return 0


def _names(text: str) -> list[str]:
    return [name for name in (part.strip() for part in text.split(",")) if name]


def _balance(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(":"))
    except ValueError as err:
        raise argparse.ArgumentTypeError("four whole numbers as in 1:1:1:1") from err


def _lines(path: Path) -> tuple[str, ...]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(f"{path} cannot be read ({err})") from err
    found = tuple(line for line in lines if line)
    if not found:
        raise UsageError(f"{path} has no sentences; write one a line")
    return found


if __name__ == "__main__":
    leave(main)
