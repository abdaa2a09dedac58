# SPDX-License-Identifier: Apache-2.0
"""Genuine clips -> a set of the four FakeAVCeleb categories, with nothing but forgery between them.

    python -m trainer.forge --genuine CLIPS --output forged

writes ``OUTPUT/<category>/Unknown/unknown/<identity>/<clip>.mp4``, ``meta_data.csv`` in
FakeAVCeleb's columns and ``forge.json`` with every clip's method, seed, parameters, labels and
split.  Rules that keep short cuts out:

* genuine clips go through the same decoder, grid and encoder as forged ones;
* identities are split first, and every donor comes from the same split;
* donors are dealt by a cyclic permutation, so every voice and mouth is used in as many fakes as
  genuine clips: by default among the same speaker's other clips, among the split's speakers where
  a speaker has only one.

A clip that exists already is kept, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import EXIT_ERROR, MediaError, UsageError, UserError
from runtime.files import write_json
from runtime.spec import AudioSpec, FaceSpec
from trainer.data import forgeries
from trainer.data.clips import MAX_CLIP_S, Clip, find_faces, read_clip, write_clip
from trainer.data.layouts import CATEGORIES, FAKE_AUDIO, FAKE_BOTH, FAKE_VIDEO, find_genuine
from trainer.data.parallel import over_processes

SHORT = dict(zip(CATEGORIES, ("RARV", "FARV", "RAFV", "FAFV"), strict=True))
# category -> (picture method, sound method), dealt in turn
METHODS: dict[str, tuple[tuple[str, str], ...]] = {
    FAKE_AUDIO: (("none", "replaced"), ("none", "shifted"), ("none", "vocoded")),
    FAKE_VIDEO: (("self_blend", "none"), ("mouth_replay", "none")),
    FAKE_BOTH: (
        ("mouth_replay", "dubbed"),
        ("self_blend", "vocoded"),
        ("mouth_replay", "vocoded"),
        ("self_blend", "replaced"),
    ),
}
SYNTHETIC_VOICE = frozenset({"vocoded", "dubbed"})
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
MIN_TOKENS = 40


@dataclass(frozen=True)
class Piece:
    """One genuine clip, or one piece of a long one."""

    path: str
    identity: str
    split: str
    start_s: float
    duration_s: float
    name: str  # unique within its identity


@dataclass
class Forgery:
    """One file to write, and afterwards its record."""

    file: str  # relative to the output folder
    category: str
    picture: str  # none | self_blend | mouth_replay
    sound: str  # none | replaced | shifted | vocoded | dubbed
    seed: int
    source: Piece
    donor: Piece | None = None
    params: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """A line of forge.json.  ``matched`` is whether lips and voice belong together."""
        return {
            "file": self.file,
            "category": self.category,
            "method": f"{self.picture}+{self.sound}" if self.category != CATEGORIES[0] else "real",
            "identity": self.source.identity,
            "clip": self.source.name,
            "donor": self.donor.identity if self.donor else None,
            "donor_clip": self.donor.name if self.donor else None,
            "split": self.source.split,
            "fake_video": self.picture != "none",
            "fake_audio": self.sound != "none",
            "synthetic_voice": self.sound in SYNTHETIC_VOICE,
            "matched": _matched(self.picture, self.sound),
            "seed": self.seed,
            "params": self.params,
        }


def _matched(picture: str, sound: str) -> bool:
    if picture == "mouth_replay":
        return sound == "dubbed"
    return sound in ("none", "vocoded")


def assign_splits(
    identities: list[str], *, val: list[str] | None, test: list[str] | None, seed: int
) -> dict[str, str]:
    """identity -> train, val or test; by default a seeded 15 and 15 percent, at least one each.

    Fewer than three identities cannot be split by identity: all of them train, and the caller
    says so.  Raises :class:`UsageError` for a name that is no identity or stands in both lists.
    """
    if val is not None or test is not None:
        val, test = val or [], test or []
        unknown = sorted((set(val) | set(test)) - set(identities))
        if unknown:
            known = ", ".join(identities[:12])
            raise UsageError(f"no identity named {', '.join(unknown)}; there are: {known}")
        if set(val) & set(test):
            raise UsageError(f"in --val and --test: {', '.join(sorted(set(val) & set(test)))}")
        return {i: "val" if i in val else "test" if i in test else "train" for i in identities}
    if len(identities) < 3:
        return dict.fromkeys(identities, "train")
    order = list(np.random.default_rng(seed).permutation(identities))
    share = max(1, round(0.15 * len(order)))
    names = ["test"] * share + ["val"] * share + ["train"] * (len(order) - 2 * share)
    return {str(i): s for i, s in zip(order, names, strict=True)}


def plan(
    pieces: list[Piece], *, per_category: int, per_identity: int = 1, seed: int = 0
) -> list[Forgery]:
    """Every file of the set, donors dealt; a pure function of its arguments.

    Each piece gets ``per_category`` forgeries a category, more where its speaker has so few
    pieces that ``per_identity`` would not be reached.
    """
    own: dict[str, int] = {}
    for piece in pieces:
        own[piece.identity] = own.get(piece.identity, 0) + 1
    count = {i: max(per_category, math.ceil(per_identity / n)) for i, n in own.items()}
    jobs = [_forgery(piece, CATEGORIES[0], "none", "none", 0, None, seed) for piece in pieces]
    donors = {k: _deal_donors(pieces, seed + k) for k in range(max(count.values()))}
    for category, methods in METHODS.items():
        for i, piece in enumerate(pieces):
            for k in range(count[piece.identity]):
                picture, sound = methods[(i + k) % len(methods)]
                donor = donors[k].get(piece)
                if donor is None and sound in ("replaced", "dubbed"):
                    sound = "shifted" if sound == "replaced" else "vocoded"
                needs = sound in ("replaced", "dubbed") or picture == "mouth_replay"
                used = (donor or piece) if needs else None
                jobs.append(_forgery(piece, category, picture, sound, k, used, seed))
    return jobs


def _deal_donors(pieces: list[Piece], seed: int) -> dict[Piece, Piece]:
    """A permutation without fixed points within each speaker, or within the speakers of a split
    that have one clip each; no entry where a clip is alone."""
    by_speaker: dict[tuple[str, str], list[Piece]] = {}
    for piece in pieces:
        by_speaker.setdefault((piece.split, piece.identity), []).append(piece)
    groups = [g for g in by_speaker.values() if len(g) > 1]
    for split in sorted({p.split for p in pieces}):
        groups.append([g[0] for k, g in by_speaker.items() if k[0] == split and len(g) == 1])
    rng = np.random.default_rng(seed)
    donor: dict[Piece, Piece] = {}
    for group in groups:
        if len(group) < 2:
            continue
        order = [group[i] for i in rng.permutation(len(group))]
        step = 1 + seed % (len(order) - 1)
        for i, piece in enumerate(order):
            donor[piece] = order[(i + step) % len(order)]
    return donor


def _forgery(
    piece: Piece, category: str, picture: str, sound: str, k: int, donor: Piece | None, seed: int
) -> Forgery:
    suffix = "" if category == CATEGORIES[0] else f"_{picture}-{sound}_{k}"
    name = f"{piece.name}{suffix}.mp4"
    file = f"{category}/Unknown/unknown/{piece.identity}/{name}"
    digest = hashlib.sha256(f"{seed}/{file}".encode()).digest()
    return Forgery(file, category, picture, sound, int.from_bytes(digest[:4], "big"), piece, donor)


def forge_piece(jobs: list[Forgery], output: Path) -> list[dict[str, Any]]:
    """All files of one genuine piece; their records, the parameters filled in."""
    audio_spec, face_spec = AudioSpec(), FaceSpec()
    source: Clip | None = None
    records = []
    for job in jobs:
        target = output / job.file
        sidecar = target.with_suffix(".json")
        if target.is_file() and sidecar.is_file():
            records.append(json.loads(sidecar.read_text()))
            continue
        if source is None:
            source = _read(job.source, audio_spec)
        frames, audio = source.frames, source.audio
        rng = np.random.default_rng(job.seed)
        donor = _read(job.donor, audio_spec) if job.donor else None
        offset = 0
        if job.picture == "self_blend":
            frames, job.params["picture"] = forgeries.self_blend(
                source, find_faces(source, face_spec), rng
            )
        elif job.picture == "mouth_replay":
            assert donor is not None
            if job.donor == job.source:  # another moment of the same clip
                offset = int(rng.integers(donor.tokens // 4, donor.tokens * 3 // 4))
            frames, job.params["picture"] = forgeries.mouth_replay(
                source,
                find_faces(source, face_spec),
                donor,
                find_faces(donor, face_spec),
                offset,
                rng,
            )
        if job.sound == "shifted":
            audio, job.params["sound"] = forgeries.shifted(audio, audio_spec, rng)
        elif job.sound == "vocoded":
            audio, job.params["sound"] = forgeries.vocoded(audio, audio_spec, rng)
        elif job.sound in ("replaced", "dubbed"):
            assert donor is not None
            voice = np.roll(donor.audio, -offset * audio_spec.token_samples)
            audio, job.params["sound"] = forgeries.replaced(audio, voice, rng)
            if job.sound == "dubbed":
                audio, job.params["sound"] = forgeries.vocoded(audio, audio_spec, rng)
        write_clip(target, frames, audio, audio_spec)
        record = job.record()
        write_json(sidecar, record)
        records.append(record)
    return records


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
    seed: int = 0,
    workers: int = 1,
) -> dict[str, Any]:
    """Write the set; returns what forge.json holds.

    Clips that cannot be used are left out, named in ``dropped`` with the reason.  Raises
    :class:`MediaError` where nothing could be used.
    """
    clips = find_genuine(genuine, identities)
    names = sorted({c.identity for c in clips})
    splits = assign_splits(names, val=val, test=test, seed=seed)
    pieces: list[Piece] = []
    for name in names:
        own = [c for c in clips if c.identity == name]
        if max_clips is not None and len(own) > max_clips:
            keep = np.random.default_rng(seed).permutation(len(own))[:max_clips]
            own = [own[i] for i in sorted(keep)]
        stems: dict[str, int] = {}
        for clip in own:
            for piece in cut(clip.path, name, splits[name], segment_s):
                again = stems[piece.name] = stems.get(piece.name, -1) + 1
                if again:  # two files of one name, in two folders of one speaker
                    piece = Piece(**{**asdict(piece), "name": f"{piece.name}~{again}"})
                pieces.append(piece)
    jobs: dict[Piece, list[Forgery]] = {}
    for job in plan(pieces, per_category=per_category, per_identity=per_identity, seed=seed):
        jobs.setdefault(job.source, []).append(job)

    output.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    dropped: dict[str, str] = {}
    for piece, result in over_processes(
        _attempt,
        ((piece, (own, output)) for piece, own in jobs.items()),
        workers=workers,
        title="forging",
    ):
        if isinstance(result, MediaError):
            dropped[piece.name] = str(result)
        else:
            records += result
    if not records:
        raise MediaError(
            f"none of {len(pieces)} clips could be used: {next(iter(dropped.values()))}"
        )
    records.sort(key=lambda r: r["file"])
    summary = {
        "seed": seed,
        "per_category": per_category,
        "splits": splits,
        "dropped": dropped,
        "clips": records,
    }
    write_json(output / "forge.json", summary)
    _write_meta(output / "meta_data.csv", records)
    return summary


def _attempt(jobs: list[Forgery], output: Path) -> list[dict[str, Any]] | MediaError:
    import cv2

    cv2.setNumThreads(1)  # the processes are the parallelism
    try:
        return forge_piece(jobs, output)
    except MediaError as err:
        return err


def _write_meta(path: Path, records: list[dict[str, Any]]) -> None:
    """FakeAVCeleb v1.2's columns; the tenth has no name and holds the folder."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(META_COLUMNS)
        for r in records:
            folder, name = r["file"].rsplit("/", 1)
            short = SHORT[r["category"]]
            kind = {"RARV": "A", "FARV": "B", "RAFV": "C", "FAFV": "D"}[short]
            writer.writerow(
                [
                    r["identity"],
                    r["donor"] or "-",
                    "-",
                    r["method"],
                    kind,
                    r["category"],
                    "Unknown",
                    "unknown",
                    name,
                    f"FakeAVCeleb/{folder}",
                ]
            )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.forge", description=(__doc__ or "").split("\n")[0]
    )
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
            seed=args.seed,
            workers=args.workers,
        )
    except UserError as err:
        print(f"trainer.forge: {err}", file=sys.stderr)
        return err.exit_code
    except OSError as err:
        print(f"trainer.forge: {err.filename}: {err.strerror}", file=sys.stderr)
        return EXIT_ERROR
    counts: dict[tuple[str, str], int] = {}
    for record in summary["clips"]:
        key = (record["split"], SHORT[record["category"]])
        counts[key] = counts.get(key, 0) + 1
    for split in ("train", "val", "test"):
        people = sum(s == split for s in summary["splits"].values())
        row = "  ".join(f"{c} {counts.get((split, c), 0)}" for c in SHORT.values())
        print(f"{split:5}  identities {people}  {row}")
    for name, reason in summary["dropped"].items():
        print(f"dropped {name}: {reason}")
    return 0


def _names(text: str) -> list[str]:
    return [name for name in (part.strip() for part in text.split(",")) if name]


if __name__ == "__main__":
    sys.exit(main())
