# SPDX-License-Identifier: Apache-2.0
"""What tells forged clips from genuine ones without looking for a forgery.

    python -m trainer.probe --data PREPARED [--output probe.json] [--max-auc 0.6]

Logistic regressions on properties that say nothing about a forgery: size of the file, bit rates,
silence at the start, mean loudness, mean brightness, mean log-mel spectrum, and the 128-d face
descriptor of dlib (King, 2017), alone and together.  Scores are cross-validated in two ways.

``across people``: each person's clips are scored by a regression that never saw that person, and
the AUC is the mean over people.  Splits are by person, so this is what a short cut could add to a
figure on people never seen in training; on a good set it is near 0.5.  ``--max-auc`` makes the exit
code 1 where that of all properties together, on all forged clips, exceeds it.

``within people``: a genuine clip is in one fold with everything made from it, other clips of the
same person are not.  A regression may then learn how each person's face changes when it is forged,
so the face descriptor lies above 0.5 on forged pictures without being a short cut: it sees the
forgery.  On sound that was forged alone it must not.

Intervals are bootstraps over people, or over genuine clips with what was made from them: few people
stand behind them, so they say how sure the number is for this set, not for others.

:func:`baseline_scores` gives the same regressions as detectors: trained on some clips, scored on
others.  The face descriptor is used here alone, never by the runtime; its model file is the one
that the package face_recognition_models carries (by dlib's author, in the public domain).
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.command import Parser
from runtime.errors import EXIT_ERROR, EXIT_OK, DependencyError, MediaError, UsageError, UserError
from runtime.faces.align import predictor_path
from runtime.files import write_json
from runtime.interrupt import check, leave
from runtime.naming import plain
from runtime.optional import optional
from runtime.overwrites import refuse_overwrites
from runtime.spec import AudioSpec, FaceSpec
from trainer.data.layouts import CATEGORIES, REAL_PAIR
from trainer.data.prepared import INDEX, VERSION, set_files
from trainer.data.silence import THRESHOLD
from trainer.data.speech import log_mel
from trainer.scoring import metrics
from trainer.scoring.bootstrap import draw_identities, weighted_metrics

UInt8 = npt.NDArray[np.uint8]
Float64 = npt.NDArray[np.float64]

ALL = "all forged"
TOGETHER = "together"
DESCRIPTOR, LOG_MEL = "face descriptor", "mean log-mel"
WITHIN, ACROSS = "within people", "across people"
FOLDS = 5
MIN_PEOPLE = 3
DESCRIPTOR_CROPS = 3  # of a clip, evenly spaced; their mean
CHIP_PX, CHIP_PADDING = 150, 0.25  # what dlib's network was trained on
DESCRIPTOR_MODEL = "dlib_face_recognition_resnet_model_v1.dat"


@dataclass(frozen=True)
class Features:
    """n clips: what they are, and k numbers of each for every feature."""

    rows: list[dict[str, Any]]  # of index.json
    values: dict[str, Float64]  # name -> [n, k]

    @property
    def fake(self) -> npt.NDArray[np.bool_]:
        return np.array([r["category"] != REAL_PAIR for r in self.rows])

    @property
    def groups(self) -> npt.NDArray[np.str_]:
        """The genuine clip that each is or was made from."""
        return np.array([f"{r['identity']}/{r['clip']}" for r in self.rows])

    def matrix(self, names: Sequence[str]) -> Float64:
        return np.concatenate([self.values[name] for name in names], axis=1)


def read_features(prepared: Path) -> Features:
    """The features of a set made by :mod:`trainer.prepare`.

    Raises :class:`UsageError` where there is none, and :class:`MediaError` for a damaged array.
    """
    from rich.progress import track

    try:
        index = json.loads((prepared / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise UsageError(
            f"{prepared} has no readable {INDEX}; make the set by trainer.prepare"
        ) from err
    if index.get("version") != VERSION:
        raise UsageError(f"{prepared} was made by an older version; prepare it again")
    describe = Descriptor()
    columns: dict[str, list[npt.ArrayLike]] = {}
    for row in track(index["clips"], description="probing", transient=True):
        check()
        path = prepared / row["array"]
        try:
            with np.load(path) as arrays:
                crops, level, audio = arrays["crops"], arrays["level_dbfs"], arrays["audio"]
        except (OSError, ValueError, KeyError) as err:
            raise MediaError(f"{path} is damaged ({err}); delete it and prepare again") from err
        for name, value in _of_clip(row, crops, level, audio, describe).items():
            columns.setdefault(name, []).append(value)
    values = {k: np.array(v, np.float64).reshape(len(v), -1) for k, v in columns.items()}
    return Features(index["clips"], values)


def _of_clip(
    row: dict[str, Any], crops: UInt8, level: Any, audio: Any, describe: Descriptor
) -> dict[str, npt.ArrayLike]:
    """crops [T, H, W, 3], level [T] dBFS, audio int16 [640 T]"""
    spec = AudioSpec()
    samples = audio.astype(np.float32) / 32768
    loud = np.abs(samples) > THRESHOLD
    silent = int(loud.argmax()) if loud.any() else len(samples)
    chosen = np.linspace(0, len(crops) - 1, DESCRIPTOR_CROPS + 2).round().astype(int)[1:-1]
    return {
        "file size": np.log(row["file_bytes"]),
        "video bit rate": np.log(max(1, row["video_bit_rate"])),
        "audio bit rate": np.log(max(1, row["audio_bit_rate"])),
        "silence at the start": silent / spec.sample_rate_hz,
        "mean loudness": level.mean(),
        "mean brightness": crops.mean(),
        LOG_MEL: log_mel(samples, spec).mean(0),
        DESCRIPTOR: np.mean([describe(crops[i]) for i in chosen], axis=0),
    }


class Descriptor:
    """dlib's 128-d face descriptor of an aligned crop.  Raises DependencyError without dlib."""

    def __init__(self) -> None:
        with optional("for its face descriptor"):
            import dlib
        path = predictor_path().with_name(DESCRIPTOR_MODEL)
        if not path.is_file():
            raise DependencyError(
                f"{path} is missing; reinstall: "
                "pip install --force-reinstall face_recognition_models"
            )
        self._net = dlib.face_recognition_model_v1(str(path))
        self._padding = FaceSpec().crop_padding

    def __call__(self, crop: UInt8) -> Float64:
        """crop [H, W, 3] -> [128]"""
        return np.array(self._net.compute_face_descriptor(self._chip(crop)), np.float64)

    def _chip(self, crop: UInt8) -> UInt8:
        """The crop as dlib would have cut it: the same template with a wider border."""
        import cv2

        mine = len(crop) / (1 + 2 * self._padding)  # pixels per side of the mean face
        theirs = CHIP_PX / (1 + 2 * CHIP_PADDING)
        scale = theirs / mine
        shift = theirs * (CHIP_PADDING - self._padding)
        matrix = np.array([[scale, 0, shift], [0, scale, shift]])
        chip = cv2.warpAffine(
            crop, matrix, (CHIP_PX, CHIP_PX), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        )
        return np.asarray(chip, np.uint8)


def probe(features: Features, *, rounds: int = 1000, seed: int = 0) -> dict[str, Any]:
    """{"clips": …, WITHIN: {comparison: {feature: {"auc", "low", "high"}}}, ACROSS: …}.

    Comparisons: all forged clips, and each forged category, against the genuine ones.  A comparison
    that lacks a class, or has fewer genuine clips than folds, is left out; ACROSS is empty where
    fewer than :data:`MIN_PEOPLE` have clips of both classes.
    """
    categories = np.array([r["category"] for r in features.rows])
    people = np.array([r["identity"] for r in features.rows])
    found: dict[str, dict[str, dict[str, float]]] = {}
    apart: dict[str, dict[str, dict[str, float]]] = {}
    for name in (ALL, *CATEGORIES[1:]):
        mask = (
            np.ones(len(categories), bool)
            if name == ALL
            else np.isin(categories, (REAL_PAIR, name))
        )
        fake, groups = features.fake[mask], features.groups[mask]
        enough = min(len(set(groups[fake])), len(set(groups[~fake])))
        if enough < FOLDS:
            continue
        found[name] = {}
        for feature in (*features.values, TOGETHER):
            names = list(features.values) if feature == TOGETHER else [feature]
            scores = _cross_validated(features.matrix(names)[mask], fake, groups, seed)
            weights = draw_identities(groups, rounds, seed)
            drawn = weighted_metrics(fake, scores, weights, 0.5)["auc"]
            found[name][feature] = _figure(metrics.auc(fake, scores), drawn)
            each = _auc_of_each_person(features.matrix(names)[mask], fake, people[mask])
            if len(each) >= MIN_PEOPLE:
                rng = np.random.default_rng(seed)
                means = rng.choice(each, (rounds, len(each))).mean(1)
                apart.setdefault(name, {})[feature] = _figure(float(each.mean()), means)
    if not found:
        raise MediaError(f"the probe needs genuine and forged clips of {FOLDS} genuine clips each")
    return {
        "clips": {c: int((categories == c).sum()) for c in CATEGORIES},
        "identities": len({r["identity"] for r in features.rows}),
        "genuine_clips": len(set(features.groups)),
        "folds": FOLDS,
        "seed": seed,
        WITHIN: found,
        ACROSS: apart,
    }


def _figure(value: float, drawn: Float64) -> dict[str, float]:
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return {"auc": round(value, 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def _auc_of_each_person(x: Float64, fake: Any, people: Any) -> Float64:
    """AUC [people] on each person's clips of a regression on everybody else's.

    People without both classes, or whose absence leaves one class, are left out.
    """
    found = []
    for person in sorted(set(people.tolist())):
        mine = people == person
        if len(set(fake[mine])) == 2 and len(set(fake[~mine])) == 2:
            found.append(metrics.auc(fake[mine], _fit_and_score(x[~mine], fake[~mine], x[mine])))
    return np.array(found)


def baseline_scores(
    features: Features,
    train: Collection[str],
    test: Collection[str],
    feature: str,
    label: str = "fake",
) -> dict[str, float]:
    """file -> p of ``label`` for the files of ``test``, by a regression on those of ``train``.

    ``feature``: :data:`DESCRIPTOR`, :data:`LOG_MEL` or another of ``features.values``, or
    :data:`TOGETHER`; ``label``: fake, fake_video or fake_audio.  Raises :class:`UsageError` for a
    file that the set lacks, or a training part with one class.
    """
    at = {row["file"]: i for i, row in enumerate(features.rows)}
    missing = sorted((set(train) | set(test)) - set(at))
    if missing:
        raise UsageError(f"the set has no clip {missing[0]} ({len(missing)} missing)")
    known = features.fake if label == "fake" else np.array([bool(r[label]) for r in features.rows])
    rows, wanted = [at[f] for f in train], [at[f] for f in test]
    if len(set(known[rows])) < 2:
        raise UsageError(f"the training part has one class of {label!r}; a baseline needs both")
    x = features.matrix(list(features.values) if feature == TOGETHER else [feature])
    p = _fit_and_score(x[rows], known[rows], x[wanted])
    return {file: float(v) for file, v in zip(test, p, strict=True)}


def _regression() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000)
    )


def _fit_and_score(x: Float64, y: Any, wanted: Float64) -> Float64:
    """x [n, k], y [n], wanted [m, k] -> p [m]; on one thread, more only get in each other's way."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1):
        p: Float64 = _regression().fit(x, y).predict_proba(wanted)[:, 1]
    return p


def _cross_validated(x: Float64, fake: Any, groups: Any, seed: int) -> Float64:
    """x [n, k] -> p [n] of each clip by a regression that has not seen its group."""
    from sklearn.model_selection import StratifiedGroupKFold

    scores = np.zeros(len(x))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for train, test in folds.split(x, fake, groups):
        scores[test] = _fit_and_score(x[train], fake[train], x[test])
    return scores


def print_table(result: dict[str, Any]) -> None:
    for kind in (ACROSS, WITHIN):
        found = result[kind]
        if not found:
            print(f"{kind}: fewer than {MIN_PEOPLE} people have genuine and forged clips")
            continue
        print(f"{kind + ', AUC':22}" + "".join(f"{name:>22}" for name in found))
        for feature in next(iter(found.values())):
            cells = [found[name][feature] for name in found]
            row = "".join(f"{c['auc']:8.3f} ({c['low']:.2f} - {c['high']:.2f})" for c in cells)
            print(f"{feature:22}{row}")
        print()
    print(
        f"{sum(result['clips'].values())} clips made from {result['genuine_clips']} genuine ones, "
        f"{result['identities']} people; 0.5 is chance; in brackets 95 % intervals"
    )


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m trainer.probe", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a set made by trainer.prepare")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument(
        "--max-auc", type=float, metavar="X", help="exit code 1 where all together exceed it"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        if args.output:
            refuse_overwrites([("--output", args.output)], set_files(args.data), options=vars(args))
        result = probe(read_features(args.data), seed=args.seed)
        if args.output:
            write_json(args.output, result)
    except UserError as err:
        print(f"trainer.probe: {plain(str(err))}", file=sys.stderr)
        return err.exit_code
    print_table(result)
    if args.max_auc is None:
        return EXIT_OK
    if not result[ACROSS]:
        print("trainer.probe: too few people for --max-auc", file=sys.stderr)
        return EXIT_ERROR
    auc = result[ACROSS][ALL][TOGETHER]["auc"]
    if auc > args.max_auc:
        print(
            f"trainer.probe: an AUC of {auc:.3f} is above {args.max_auc}: a short cut",
            file=sys.stderr,
        )
        return EXIT_ERROR
    return EXIT_OK


if __name__ == "__main__":
    leave(main)
