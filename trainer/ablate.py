# SPDX-License-Identifier: Apache-2.0
"""The paper's tables and figure, theirs beside ours.

    python -m trainer.ablate --table 1 --table 2 --figure 5 --data prepared --protocol 1:1:1:1
    python -m trainer.ablate --table 2 --data prepared --miniature --jobs 2

Every arm is trained over seeds and folds, each run in a folder of its own, and scored on the test
clips of its fold.  A finished run is not repeated, a killed one goes on where it was, to the same
result: give the same command again.  Tables 1 and 2, ``--readings`` (what the paper leaves open)
and Fig. 5 share their runs.  ``--miniature`` is a configuration that two cores finish in half an
hour; it shows that the path works and how wide the intervals are, not how good anything is.

Written into ``--output``: ``table1.md``, ``.csv`` and ``.json``, likewise ``table2`` and
``readings``; ``figure5.png`` and ``.svg``; ``runs/<arm>/seed<s>-fold<f>/``.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.command import Parser
from runtime.errors import EXIT_ERROR, EXIT_INTERRUPTED, UsageError, UserError
from runtime.files import write_json
from runtime.interrupt import leave
from runtime.naming import plain
from runtime.overwrites import refuse_overwrites
from runtime.sinks.terminal import print_line
from trainer.config import ModelConfig, preset
from trainer.data.parallel import WorkerDied, over_processes
from trainer.data.prepared import PreparedSet, set_files
from trainer.fit import FitConfig, train
from trainer.model.checkpoint import load_checkpoint
from trainer.paper import arms, published, tables
from trainer.paper.arms import Arm
from trainer.paper.baselines import fit as baselines
from trainer.paper.baselines.base import parameter_count
from trainer.report import plots
from trainer.scoring.clips import ClipScores, score_clips
from trainer.scoring.windows import TorchPair

DONE = "run.json"  # written last
JOB = "job.json"
PREVIEW = (  # of the table in the terminal; the files hold all columns
    "model",
    "paper ACC",
    "our ACC",
    "paper AUC",
    "our balanced ACC",
    "our score AUC",
    "test identities",
)


@dataclass(frozen=True)
class Settings:
    """What all runs of one command share."""

    data: Path
    output: Path
    preset: str = "msct"
    protocol: str = "given"
    seeds: tuple[int, ...] = (0, 1, 2)
    folds: tuple[int, ...] = (0,)
    trimmed: bool = False  # train without leading silence
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of every MSCT arm
    fit: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of every MSCT arm
    baseline: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of every baseline


@dataclass(frozen=True)
class Job:
    """One run: an arm with one seed on one fold."""

    arm: Arm
    seed: int
    fold: int
    settings: Settings

    @property
    def folder(self) -> Path:
        return self.settings.output / "runs" / self.arm.name / f"seed{self.seed}-fold{self.fold}"

    def model_config(self) -> ModelConfig:
        s = self.settings
        config = preset(s.preset, **{**s.model, **self.arm.model})
        return dataclasses.replace(config, name=f"{s.preset}-{self.arm.name}")

    def fit_config(self) -> FitConfig:
        s = self.settings
        values = {"preset": s.preset, "threads": 1, **s.fit, **self.arm.fit}
        place = {"protocol": s.protocol, "fold": self.fold, "trimmed": s.trimmed}
        return FitConfig(**{**values, **place, "seed": self.seed})

    def baseline_config(self) -> baselines.BaselineConfig:
        assert self.arm.baseline is not None
        return baselines.BaselineConfig(
            name=self.arm.baseline, seed=self.seed, **self.settings.baseline
        )

    def description(self) -> dict[str, Any]:
        """All that decides the outcome, as JSON would give it back."""
        index = (self.settings.data / "index.json").read_bytes()
        if self.arm.baseline is not None:
            config = {"baseline": dataclasses.asdict(self.baseline_config())}
        else:
            config = {
                "model": self.model_config().to_dict(),
                "fit": dataclasses.asdict(self.fit_config()),
            }
        described = {
            **config,
            "data": hashlib.sha256(index).hexdigest()[:16],
            "protocol": self.settings.protocol,
            "fold": self.fold,
            "trimmed": self.settings.trimmed,
            "seed": self.seed,
        }
        result: dict[str, Any] = json.loads(json.dumps(described))
        return result


# --- one run --------------------------------------------------------------------------------


def run(job: Job) -> float:
    """Train and score, unless that is done; returns the seconds that it took this time.

    What the trainer prints goes to ``output.log`` in the run's folder.
    """
    started = time.perf_counter()
    folder = job.folder
    if check(job):
        return 0.0
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JOB, job.description())
    with (
        (folder / "output.log").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
    ):
        model_parameters = _train_and_score(job)
    write_json(
        folder / DONE,
        {"parameters": model_parameters, "seconds": round(time.perf_counter() - started, 1)},
    )
    return time.perf_counter() - started


def check(job: Job) -> bool:
    """Whether the run is finished; raises UsageError where its folder is another run's."""
    path = job.folder / JOB
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    if known != job.description():
        raise UsageError(
            f"{job.folder} belongs to a run of other options or data; choose another --output"
        )
    return (job.folder / DONE).is_file()


def _train_and_score(job: Job) -> int:
    folder, test = job.folder, "test"
    data = _data(job, trimmed=job.settings.trimmed)
    if job.arm.baseline is not None:
        baselines.BaselineTrainer(job.baseline_config(), data, folder).run()
        baseline, _, platt = baselines.load(folder / "checkpoint.safetensors")
        parameters = parameter_count(baseline)

        def score(prepared: PreparedSet) -> ClipScores:
            return baselines.score_clips(baseline, prepared.select(test), platt)

    else:
        train(job.fit_config(), job.model_config(), data, folder)
        model, _, spec = load_checkpoint(folder / "checkpoint.safetensors")
        assert spec is not None
        parameters, stream = parameter_count(model), spec.stream

        def score(prepared: PreparedSet) -> ClipScores:
            return score_clips(TorchPair(model), prepared.select(test), stream)

    whole = _data(job, trimmed=False)
    if any(clip.silence_tokens for clip in whole.select(test)):
        score(_data(job, trimmed=True)).write(folder / "scores-trimmed.csv")
    score(whole).write(folder / "scores.csv")
    return parameters


def _data(job: Job, *, trimmed: bool) -> PreparedSet:
    s = job.settings
    return PreparedSet(s.data, protocol=s.protocol, fold=job.fold, trimmed=trimmed)


def read(job: Job) -> tables.Run:
    """The scores of a finished run."""
    folder = job.folder
    trimmed = folder / "scores-trimmed.csv"
    return tables.Run(
        job.arm.name,
        job.seed,
        job.fold,
        int(json.loads((folder / DONE).read_text())["parameters"]),
        ClipScores.read(folder / "scores.csv"),
        ClipScores.read(trimmed) if trimmed.is_file() else None,
    )


# --- all runs -------------------------------------------------------------------------------


def ablate(chosen: Mapping[str, Arm], settings: Settings, jobs: int = 1) -> list[tables.Run]:
    """Every arm over seeds and folds, ``jobs`` at a time; the scores of all of them."""
    work = [
        Job(arm, seed, fold, settings)
        for fold in settings.folds
        for seed in settings.seeds
        for arm in chosen.values()
    ]
    for job in work:  # before hours of work: unknown options, folders of other runs
        PreparedSet(settings.data, protocol=settings.protocol, fold=job.fold)
        check(job)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes started here
    for job, result in over_processes(
        run, ((j, (j,)) for j in work), workers=jobs, title="training", isolated=True
    ):
        if isinstance(result, WorkerDied):
            raise UserError(
                f"the run in {job.folder} died twice ({result}); look into its output.log, "
                "then give the same command again"
            )
        if result:
            name = f"{job.arm.name}, seed {job.seed}, fold {job.fold}"
            print(f"{name}: {result / 60:.1f} min", flush=True)
    return [read(job) for job in work]


def write_table(
    name: str,
    title: str,
    chosen: Mapping[str, Arm],
    runs: Sequence[tables.Run],
    printed: Mapping[str, published.Published],
    settings: Settings,
    *,
    reference: str,
    note: str = "",
) -> list[dict[str, Any]]:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    entries = tables.rows(chosen, runs, printed, reference=reference)
    about = (
        "Ours: mean over seeds and folds, argmax of the logits, in per cent; in brackets 95 % "
        "intervals over 1000 draws of test identities and seeds, with replacement. The paper's "
        "AUC is balanced accuracy: it is computed from called labels. The paper's figures are of "
        f"FakeAVCeleb; ours of {settings.data.name}, protocol {settings.protocol}. {note}".strip()
    )
    stem = settings.output / name
    label = chosen[reference].label
    tables.write(stem, entries, title=title, about=about, reference=label)
    write_json(stem.with_suffix(".json"), {"title": title, "about": about, "rows": entries})
    header, body = tables.cells(entries, label)
    wanted = [i for i, h in enumerate(header) if h in (*PREVIEW, f"gain over {label}")]
    table = Table(*(header[i] for i in wanted), box=box.SIMPLE_HEAD, title=title)
    for row in body:
        table.add_row(*(row[i] for i in wanted))
    console = Console(width=max(150, Console().width))
    console.print(table)
    console.print(about, soft_wrap=True)
    print_line(console, f"written: {stem}.md, .csv, .json")
    console.print()
    return entries


def write_figure(runs: Sequence[tables.Run], settings: Settings) -> None:
    """Fig. 5's four panels, of the first seed and fold."""
    first = {
        r.arm: r
        for r in runs
        if (r.seed, r.fold) == (settings.seeds[0], settings.folds[0]) and r.arm in arms.FIGURE_5
    }
    panels = {}
    for name, arm in arms.FIGURE_5.items():
        scores = first[name].untrimmed
        assert scores.embedding is not None
        panels[arm.label] = (scores.embedding, scores.category)
    stem = settings.output / "figure5"
    stem.parent.mkdir(parents=True, exist_ok=True)
    svg = plots.tsne(panels, "Fig. 5: t-SNE of the class tokens")
    stem.with_suffix(".svg").write_text(svg, encoding="utf-8")
    plots.save_tsne(panels, stem.with_suffix(".png"))
    print(plain(f"written: {stem}.png, .svg"))


# --- command --------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m trainer.ablate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--table", type=int, choices=(1, 2), action="append", default=[])
    parser.add_argument("--figure", type=int, choices=(5,), action="append", default=[])
    parser.add_argument("--readings", action="store_true", help="what the paper leaves open")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these of the arms asked for")
    parser.add_argument("--data", type=Path, required=True, help="a set made by trainer.prepare")
    parser.add_argument("--output", type=Path, default=Path("runs/ablate"))
    parser.add_argument("--preset", help="of the MSCT arms; default msct")
    parser.add_argument("--protocol", default="given", help="see trainer.data.splits")
    parser.add_argument("--folds", type=int, nargs="+", help="default: all five of 1:1:1:1, else 0")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--trimmed", action="store_true", help="train without leading silence")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--miniature", action="store_true", help="half an hour on two cores")
    return parser


def settings_of(args: argparse.Namespace) -> Settings:
    if args.jobs < 1:
        raise UsageError("--jobs must be at least 1")
    folds = args.folds or (range(5) if args.protocol == "1:1:1:1" and not args.miniature else (0,))
    base = arms.MINIATURE if args.miniature else arms.PAPER
    return Settings(
        data=args.data,
        output=args.output,
        protocol=args.protocol,
        seeds=tuple(args.seeds),
        folds=tuple(folds),
        trimmed=args.trimmed,
        **{**base, **({"preset": args.preset} if args.preset else {})},
    )


def distinct(chosen: Mapping[str, Arm], settings: Settings) -> dict[str, Arm]:
    """The arms that differ, under these settings, from the first one."""
    reference, *others = chosen.items()

    def outcome(arm: Arm) -> tuple[ModelConfig, FitConfig]:
        job = Job(arm, 0, 0, settings)
        return dataclasses.replace(job.model_config(), name=""), job.fit_config()

    same = outcome(reference[1])
    return dict([reference, *((n, a) for n, a in others if outcome(a) != same)])


def _main(args: argparse.Namespace) -> None:
    if not (args.table or args.figure or args.readings):
        raise UsageError("say what to make: --table 1, --table 2, --figure 5, --readings")
    settings = settings_of(args)
    wanted: dict[str, dict[str, Arm]] = {}
    for name, chosen, asked in (
        ("table1", arms.TABLE_1, 1 in args.table),
        ("table2", arms.TABLE_2, 2 in args.table),
        ("figure5", arms.FIGURE_5, 5 in args.figure),
        ("readings", arms.READINGS, args.readings),
    ):
        if asked:
            kept = distinct(chosen, settings) if name == "readings" else chosen
            wanted[name] = {n: a for n, a in kept.items() if n in (args.arms or kept)}
    every = {n: a for chosen in wanted.values() for n, a in chosen.items()}
    unknown = sorted(set(args.arms or ()) - set(every))
    if unknown:
        raise UsageError(f"no arm named {', '.join(unknown)} in what was asked for")
    if "figure5" in wanted and set(wanted["figure5"]) != set(arms.FIGURE_5):
        raise UsageError("--figure 5 shows four arms; leave --arms out")
    endings = (".json", ".md", ".csv", ".svg")
    made = (args.output / f"{name}{ending}" for name in wanted for ending in endings)
    refuse_overwrites(
        (("--output", file) for file in made), set_files(args.data), options=vars(args)
    )
    note = arms.MINIATURE_NOTE if args.miniature else ""
    started = time.perf_counter()
    runs = ablate(every, settings, args.jobs)
    for name, title, printed, reference in (
        ("table1", "Table 1: comparison with other methods", published.TABLE_1, arms.REFERENCE),
        ("table2", "Table 2: ablation", published.TABLE_2, "ca+sa"),
        ("readings", "What the paper leaves open", {}, arms.REFERENCE),
    ):
        if name in wanted:
            chosen = wanted[name]
            shown = {n: p for n, p in printed.items() if n in chosen or not args.arms}
            mine = [r for r in runs if r.arm in chosen]
            anchor = reference if reference in chosen else next(iter(chosen))
            write_table(name, title, chosen, mine, shown, settings, reference=anchor, note=note)
    if "figure5" in wanted:
        write_figure(runs, settings)
    print(f"{len(runs)} runs; {(time.perf_counter() - started) / 60:.1f} min this time")


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        _main(args)
    except UserError as err:
        print(f"trainer.ablate: {plain(str(err))}", file=sys.stderr)
        return err.exit_code
    except OSError as err:
        print(plain(f"trainer.ablate: {err.filename}: {err.strerror}"), file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("trainer.ablate: stopped; the same command goes on", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    leave(main)
