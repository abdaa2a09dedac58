# SPDX-License-Identifier: Apache-2.0
"""Train a preset.

    python -m trainer.fit                                  # a miniature on the sample clip
    python -m trainer.fit --data PREPARED --output runs/a  # a set made by trainer.prepare
    python -m trainer.fit --data PREPARED --recipe paper --protocol 1:1:1:1 --fold 0
    python -m trainer.fit --genuine CLIPS                  # forge your own clips, then train
    python -m trainer.fit --genuine CLIPS --init msct-tiny # ... going on from the shipped weights
    torchrun --nproc-per-node 4 -m trainer.fit --data PREPARED

Two stages.  ``align``: frame encoder and align heads learn by temporal contrast (InfoNCE both
ways over the tokens of one window; van den Oord et al., 2018) where lips and voice match.
``joint``: the paper's four losses, and the contrast kept as a fifth term.  The recipe ``paper``
has the four losses alone.  Recipes and every option: :mod:`trainer.recipes`.

A run folder holds ``config.json``, ``environment.json`` (versions, commit, machine, command line
of every start), ``log.jsonl``, ``state.safetensors`` (to resume), ``best.safetensors``,
``checkpoint.safetensors`` (weights, configuration and spec) and ``metrics.json``.  A run that was
killed goes on with the same command and ``--resume``, and ends with the weights of a run that was
not: bit for bit on a CPU of the same kind with as many threads and processes.

Several processes share each batch; what that means for batch normalisation: see
:mod:`trainer.loop.distributed`.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.command import Parser
from runtime.errors import UsageError
from runtime.interrupt import leave
from runtime.models import model_files
from runtime.overwrites import refuse_overwrites
from runtime.spec import FaceSpec
from trainer.config import PRESETS, ModelConfig, preset
from trainer.data.prepared import PreparedSet, set_files
from trainer.face.checkpoint import load_encoder
from trainer.loop.distributed import Group, run_together
from trainer.loop.loop import check_same_run
from trainer.loop.run import Options, Trainer
from trainer.loop.state import STATE, require_tensorboard
from trainer.recipes import MINIATURE, RECIPES, FitConfig

__all__ = ["MINIATURE", "FitConfig", "Options", "Trainer", "main", "train"]

WRITTEN = ("checkpoint.safetensors", "best.safetensors", "config.json", "metrics.json", STATE)
EPILOG = """exit codes: 0 done; 1 a file that cannot be read or written, a full disk, a checkpoint
of another model, a gradient that is not finite; 2 a wrong option, a set that does not fit, a
run folder of another run; 130 stopped by Ctrl-C or another signal.  Each is one line on standard
error."""


def train(
    config: FitConfig,
    model_config: ModelConfig,
    data: PreparedSet,
    folder: Path,
    *,
    resume: bool | None = None,
    init: Path | None = None,
    encoder: Path | None = None,
    group: Group | None = None,
    options: Options | None = None,
) -> dict[str, Any]:
    """Train to the end; what metrics.json holds.

    ``resume``: True continues the run in ``folder``, also one that was killed before it saved
    anything; False begins one, where none is; None does what fits.  ``init``: the checkpoint or
    the pair that the run begins with, also when it is resumed.  ``encoder``: the distilled frame
    encoder that followed the faces of the set; it stays as it is.

    Raises
    ------
    UsageError
        For a folder that holds another run, or (True) none, or (False) one; a set that does not
        fit the model or the recipe.
    ModelError
        For ``init`` of another model, a damaged state, a gradient that is not finite.
    UserError
        Where something cannot be written; the state that was saved last is intact.
    """
    trainer = Trainer(
        config, model_config, data, folder, group=group, options=options, encoder=encoder
    )
    if init is not None:
        trainer.start_from(init)
    state, known = folder / STATE, folder / "config.json"
    if state.exists():
        if resume is False:
            raise UsageError(
                f"{folder} holds a run already; --resume it or choose another --output"
            )
        trainer.resume()
        return trainer.run()
    if known.exists() and resume is not False:  # killed before the first state was saved
        try:
            found = json.loads(known.read_text(encoding="utf-8"))
        except (OSError, ValueError) as err:
            raise UsageError(f"{known} is damaged ({err}); use a new folder") from err
        check_same_run(found, trainer.description(), known)
    elif resume:
        raise UsageError(f"{folder} holds no run to resume; leave --resume out")
    return trainer.run()


def _forge_and_prepare(
    genuine: Path, folder: Path, *, segment_s: float | None, crop_px: int, seed: int
) -> None:
    from trainer.forge import forge
    from trainer.prepare import prepare

    forge(genuine, folder / "forged", segment_s=segment_s, per_identity=4, seed=seed, workers=2)
    prepare(folder / "forged", folder / "prepared", face=FaceSpec(crop_px=crop_px), workers=2)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m trainer.fit",
        description="Train a preset; without data: a miniature.",
        epilog=EPILOG,
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, help="a set made by trainer.prepare")
    source.add_argument("--genuine", type=Path, help="a folder of genuine clips, forged first")
    parser.add_argument(
        "--segment", type=float, metavar="S", help="cut long clips (with --genuine)"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/fit"), help="run folder")
    parser.add_argument(
        "--init",
        type=Path,
        metavar="FILE|PAIR",
        help="start from a checkpoint, a folder with a pair of graphs, or a shipped preset's name",
    )
    parser.add_argument(
        "--encoder",
        type=Path,
        metavar="FILE",
        help="encoder.safetensors of trainer.distil that followed the faces of --data; it is not "
        "trained on",
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    parser.add_argument("--tensorboard", action="store_true", help="into --output/tensorboard")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument(
        "--workers", type=int, help="threads that make batches; default: 0, up to 8 on a GPU"
    )
    parser.add_argument(
        "--recipe",
        choices=list(RECIPES),
        help="default: default, or finetune with --genuine and --init",
    )
    recipe = parser.add_argument_group("what the recipe decides where it is not given")
    defaults = RECIPES["default"]
    for f in dataclasses.fields(FitConfig)[1:]:
        name, what = f"--{f.name.replace('_', '-')}", f.metadata["help"]
        kind = type(defaults[f.name])
        if kind is bool:
            recipe.add_argument(
                name, action=argparse.BooleanOptionalAction, default=None, help=what
            )
        elif f.metadata["choices"]:
            recipe.add_argument(name, choices=f.metadata["choices"], help=what)
        elif f.name == "preset":
            recipe.add_argument(name, help=", ".join(PRESETS))
        else:
            recipe.add_argument(name, type=kind, metavar=kind.__name__.upper(), help=what)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    return run_together(args.device or "auto", lambda group: _main(args, group), "trainer.fit")


def _main(args: argparse.Namespace, group: Group) -> int:
    _refuse_overwrites(args)
    config = _config(args)
    model_config = preset(config.preset)
    if args.encoder is not None:
        if args.data is None:
            raise UsageError("--encoder goes with --data, a set that it was prepared with")
        model_config = replace(
            model_config, geometry_dim=load_encoder(args.encoder).config.geometry_dim
        )
    if args.tensorboard:
        require_tensorboard()
    if args.workers is not None and args.workers < 0:
        raise UsageError("--workers must not be negative")
    folder = args.data
    if folder is None:
        genuine, segment_s = args.genuine, args.segment
        if genuine is None:
            from runtime.demo.sample import sample_clip

            if group.first:
                print(
                    "no --data and no --genuine: a miniature on the sample clip, to show that the "
                    "whole path works; it learns nothing worth using"
                )
            genuine, segment_s = sample_clip().parent, segment_s or 2.8
        group.from_first(
            lambda: _forge_and_prepare(
                genuine,
                args.output,
                segment_s=segment_s,
                crop_px=model_config.crop_px,
                seed=config.seed,
            )
        )
        folder = args.output / "prepared"
    data = PreparedSet(folder, protocol=config.protocol, fold=config.fold, trimmed=config.trimmed)
    result = train(
        config,
        model_config,
        data,
        args.output,
        # a stop while clips were forged or prepared left no run to resume, and lost nothing either
        resume=None if args.resume and args.data is None else args.resume,
        init=args.init,
        encoder=args.encoder,
        group=group,
        options=Options(args.tensorboard, args.compile, args.workers),
    )
    if group.first:
        _show(result, args.output)
    return 0


def _refuse_overwrites(args: argparse.Namespace) -> None:
    init = [] if args.init is None else [args.init, *model_files(args.init)]
    data = [] if args.data is None else set_files(args.data)
    written = (("--output", args.output / name) for name in WRITTEN)
    refuse_overwrites(written, [*init, *data], options=vars(args))


def _config(args: argparse.Namespace) -> FitConfig:
    names = {f.name for f in dataclasses.fields(FitConfig)}
    given = {k: v for k, v in vars(args).items() if k in names and v is not None}
    if "recipe" not in given and args.genuine is not None and args.init is not None:
        given["recipe"] = "finetune"
    miniature = args.data is None and args.genuine is None and "recipe" not in given
    return FitConfig(**{**(MINIATURE if miniature else {}), **given})


def _show(result: dict[str, Any], folder: Path) -> None:
    print(f"checkpoint: {folder / 'checkpoint.safetensors'}")
    for split in ("validation", "test"):
        report = result[split]
        if not isinstance(report, str):  # else nobody is in it, which was said at the start
            shown = {k: v for k, v in report.items() if isinstance(v, (int, float))}
            print(f"{split}: " + "  ".join(f"{k} {v:.4g}" for k, v in shown.items()))


if __name__ == "__main__":
    leave(main)
