# SPDX-License-Identifier: Apache-2.0
"""Teach a frame encoder to read and follow the face, by MediaPipe's FaceMesh.

    python -m trainer.distil --clips CLIPS --photos PHOTOS --output runs/face
    python -m trainer.distil --clips CLIPS --photos PHOTOS --output runs/fold0 --fold 0 \\
        --work runs/face-work
    python -m trainer.distil --report --output runs/face     # prints what it found, again

The encoder of a preset learns what lips, chin and cheeks do with the head's pose taken out
(``geometry``), where eyes, nose and lips are in the crop (``points``) and whether there is a face
(``presence``).  Folders of clips and photographs: :mod:`trainer.face.sources`.

Three stages, each of which goes on where it was stopped: the teacher is asked once about every
picture (an environment of its own is made for it: :mod:`trainer.face.teacher`), crops are cut
once, then the encoder is trained.  What the first two leave lies in ``--work`` and serves every
fold.  ``--output`` holds ``encoder.safetensors``, ``report.json`` (how well it does on people and
sources that it never saw), ``state.safetensors``, ``log.jsonl`` and ``environment.json``.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from runtime.command import Parser, print_error
from runtime.errors import EXIT_INTERRUPTED, UsageError, UserError
from runtime.files import write_json
from runtime.interrupt import leave
from runtime.overwrites import refuse_overwrites
from runtime.spec import FaceSpec
from trainer.config import PRESETS, ModelConfig, preset
from trainer.data.folds import FOLDS, load_folds
from trainer.face.batches import Batches, fit_targets, split
from trainer.face.checkpoint import save_encoder
from trainer.face.crops import CropSet, build
from trainer.face.learn import PRECISIONS, DistilConfig, train
from trainer.face.report import print_report, report
from trainer.face.sources import Item, list_items
from trainer.face.teacher import ask_all, environment_dir
from trainer.loop.state import LOG, STATE, record_start
from trainer.model.msct import FrameEncoder

ENCODER = "encoder.safetensors"
REPORT = "report.json"
WRITTEN = (ENCODER, REPORT, STATE, LOG)
WORK = "work"
GEOMETRY_DIM = 24
HOLD_OUT_PEOPLE = 0.05
VALIDATE_EVERY = 4  # pictures of a clip, while it trains


def distil(
    items: Sequence[Item],
    output: Path,
    *,
    work: Path | None = None,
    teacher: Path | None = None,
    model: ModelConfig | None = None,
    hold_out: Sequence[str] = (),
    hold_out_people: float = HOLD_OUT_PEOPLE,
    left_out: Sequence[str] = (),
    config: DistilConfig | None = None,
) -> dict[str, Any]:
    """All three stages; what report.json holds.

    model : a configuration with heads; by default msct-tiny's

    Raises
    ------
    UsageError
        For sources that are not there, a folder with another run, options that contradict.
    DependencyError
        Where the teacher's environment is needed and cannot be made.
    UserError
        Where no face is found, or something cannot be written.
    """
    config = config or DistilConfig()
    work = work or output / WORK
    model = model or preset("msct-tiny", geometry_dim=GEOMETRY_DIM)
    known = {item.source for item in items}
    if strangers := sorted(set(hold_out) - known):
        raise UsageError(
            f"--hold-out: no source named {', '.join(strangers)}; there are: "
            f"{', '.join(sorted(known))}"
        )
    crops, dropped = prepare(items, work, teacher, crop_px=model.crop_px)
    parts = split(
        crops.items, hold_out=hold_out, hold_out_people=hold_out_people, left_out=left_out
    )
    description = {
        "held_out": sorted(hold_out),
        "share_of_people_held_out": hold_out_people,
        "left_out": sorted(left_out),
        "items": _digest(crops, parts.train),
    }
    output.mkdir(parents=True, exist_ok=True)
    record_start(output, {"threads": config.threads})
    basis = fit_targets(crops, parts.train, model.geometry_dim)
    batches = Batches(crops, parts.train, basis, config.batch, config.seed)

    def validate(encoder: FrameEncoder, step: int) -> dict[str, Any]:
        found = report(encoder, basis, crops, parts.people, every=VALIDATE_EVERY)
        return {k: v for k, v in found.items() if k not in ("clips", "sources")}

    encoder = train(output, model, config, batches, basis, description, validate=validate)
    facts = {**description, "steps": config.steps, "teacher": "mediapipe FaceMesh, refined"}
    save_encoder(output / ENCODER, encoder, model, basis, facts)
    taught = [crops.items[n] for n in parts.train]
    result = {
        "held_out_sources": report(encoder, basis, crops, parts.sources),
        "held_out_people": report(encoder, basis, crops, parts.people),
        "trained_on": {
            kind: {
                "items": sum(i.kind == kind for i in taught),
                "people": len({i.person for i in taught if i.kind == kind}),
                "sources": sorted({i.source for i in taught if i.kind == kind}),
            }
            for kind in ("clip", "photo")
        },
        "encoder_sha256": hashlib.sha256((output / ENCODER).read_bytes()).hexdigest(),
        "model": model.name,
        "config": asdict(config),
        **{k: v for k, v in description.items() if k != "items"},
        "dropped": dict(sorted(dropped.items())),
    }
    write_json(output / REPORT, result)
    return result


def prepare(
    items: Sequence[Item], work: Path, teacher: Path | None, *, crop_px: int
) -> tuple[CropSet, dict[str, str]]:
    """The teacher's answers and the crops; why some items gave none."""
    ask_all(items, work, teacher or environment_dir())
    return build(items, work, replace(FaceSpec(), crop_px=crop_px))


def _digest(crops: CropSet, train: Sequence[int]) -> str:
    names = "\n".join(f"{crops.items[n].kind} {crops.items[n].file}" for n in train)
    return hashlib.sha256(names.encode()).hexdigest()


def print_result(result: dict[str, Any]) -> None:
    """What report.json holds, for people."""
    for kind, row in result["trained_on"].items():
        if row["items"]:
            sources = len(row["sources"])
            print(f"learned from {row['items']} {kind}s: {row['people']} people, {sources} sources")
    dropped = Counter(result["dropped"].values())
    for reason, count in dropped.most_common():
        example = next(f for f, r in result["dropped"].items() if r == reason)
        print(f"{count} not used: {reason}, e.g. {example}")
    print_report(
        {
            "sources held out": result["held_out_sources"],
            "people held out": result["held_out_people"],
        }
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m trainer.distil",
        description=(__doc__ or "").split("\n")[0],
        epilog="A run that was stopped goes on with the same command.",
    )
    parser.add_argument(
        "--clips", type=Path, action="append", default=[], metavar="DIR",
        help="a folder of talking faces, of any length; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--photos", type=Path, action="append", default=[], metavar="DIR",
        help="a folder of photographs of faces; may be given several times",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--work", type=Path, metavar="DIR",
        help="the teacher's answers and the crops, for several runs (default: OUTPUT/work)",
    )  # fmt: skip
    parser.add_argument(
        "--teacher-env", type=Path, metavar="DIR",
        help="the teacher's environment (default: one in the user's cache, made when needed)",
    )  # fmt: skip
    parser.add_argument("--prepare-only", action="store_true", help="stop before training")
    parser.add_argument("--report", action="store_true", help="print OUTPUT/report.json, no more")
    unseen = parser.add_argument_group("what the encoder must not see")
    unseen.add_argument("--hold-out", nargs="+", default=[], metavar="SOURCE", help="whole sources")
    unseen.add_argument(
        "--fold", type=int, choices=range(FOLDS), help="the sources of a committed fold"
    )
    unseen.add_argument(
        "--hold-out-people", type=float, default=HOLD_OUT_PEOPLE, metavar="SHARE",
        help=f"of the people in the other sources' clips (default: {HOLD_OUT_PEOPLE})",
    )  # fmt: skip
    unseen.add_argument(
        "--leave-out", nargs="+", default=[], metavar="PERSON|FILE",
        help="in no part at all, beside those that the folds' file names",
    )  # fmt: skip
    default = DistilConfig()
    how = parser.add_argument_group("training")
    how.add_argument("--preset", choices=list(PRESETS), default="msct-tiny")
    how.add_argument("--steps", type=int, default=default.steps)
    how.add_argument("--batch", type=int, default=default.batch)
    how.add_argument("--lr", type=float, default=default.lr)
    how.add_argument("--seed", type=int, default=default.seed)
    how.add_argument("--precision", choices=PRECISIONS, default=default.precision,
                     help="what the network computes in; bf16 saves time on processors with "
                          "instructions for it (default: %(default)s)")  # fmt: skip
    how.add_argument("--threads", type=int, default=default.threads)
    return parser


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    try:
        _run(options)
    except UserError as err:
        print_error(err)
        return err.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.report:
        print_result(_known(options.output / REPORT))
        return
    items, others = _items(options)
    refuse_overwrites(
        [("--output", options.output / name) for name in WRITTEN],
        [i.path for i in items],
        options=vars(options),
    )
    folds = load_folds()
    hold_out = list(options.hold_out)
    if options.fold is not None:
        known = {i.source for i in items}
        hold_out += [s for s in folds.sources[options.fold] if s in known and s not in hold_out]
        if not hold_out:
            raise UsageError(f"--fold {options.fold}: none of its sources is in these folders")
    if options.prepare_only:
        model = preset(options.preset)
        work = options.work or options.output / WORK
        crops, dropped = prepare(items, work, options.teacher_env, crop_px=model.crop_px)
        print(f"{len(crops.items)} of {len(items)} files gave {len(crops)} crops, in {work}")
        for reason, count in Counter({**others, **dropped}.values()).most_common():
            print(f"{count} not used: {reason}")
        return
    result = distil(
        items,
        options.output,
        work=options.work,
        teacher=options.teacher_env,
        model=preset(options.preset, geometry_dim=GEOMETRY_DIM),
        hold_out=hold_out,
        hold_out_people=options.hold_out_people,
        left_out=[*options.leave_out, *folds.left_out, *folds.left_out_files],
        config=DistilConfig(
            steps=options.steps,
            batch=options.batch,
            lr=options.lr,
            seed=options.seed,
            threads=options.threads,
            precision=options.precision,
        ),
    )
    if others:
        result["dropped"] = dict(sorted({**result["dropped"], **others}.items()))
        write_json(options.output / REPORT, result)
    print_result(result)


def _items(options: argparse.Namespace) -> tuple[list[Item], dict[str, str]]:
    if not options.clips:
        raise UsageError("give a folder of talking faces with --clips")
    items: list[Item] = []
    others: dict[str, str] = {}
    for folder in options.clips:
        found, not_used = list_items(folder, "clip")
        items, others = items + found, others | not_used
    for folder in options.photos:
        found, not_used = list_items(folder, "photo")
        items, others = items + found, others | not_used
    twice = [k for k, n in Counter((i.kind, i.file) for i in items).items() if n > 1]
    if twice:
        raise UsageError(f"two of the folders hold a file named {twice[0][1]}; rename one")
    if not any(i.kind == "clip" for i in items):
        raise UsageError(f"no clip in {options.clips[0]}; it holds {len(others)} other files")
    return items, others


def _known(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as err:
        raise UsageError(f"{path} cannot be read ({err}); distil something first") from None


if __name__ == "__main__":
    leave(main)
