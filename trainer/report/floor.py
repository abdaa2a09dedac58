# SPDX-License-Identifier: Apache-2.0
"""What a detector must beat: logistic regressions that look for no forgery.

Trained on the training clips of the same protocol and scored on the same clips as the model: dlib's
face descriptor, the mean log-mel spectrum, and everything that :mod:`trainer.probe` knows together.
A model that is no better has learnt who is in the picture, or how the set was made.

A gain is the model's AUC minus the floor's on the same draws of identities, so it is paired.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import UsageError
from trainer.data.prepared import PreparedSet
from trainer.probe import (
    DESCRIPTOR,
    LOG_MEL,
    TOGETHER,
    Features,
    baseline_scores,
    probe,
    read_features,
)
from trainer.scoring.bootstrap import draw_identities, point, weighted_metrics
from trainer.scoring.clips import ClipScores
from trainer.scoring.figures import ROUNDS, figure

FLOORS = (DESCRIPTOR, LOG_MEL, TOGETHER)


def floors(
    scores: ClipScores, data: PreparedSet, features: Features, *, rounds: int = ROUNDS
) -> dict[str, Any]:
    """{floor: {"auc": figure, "gain": figure}}, figures as of
    :func:`trainer.scoring.figures.figure`.

    ``scores`` are a model's, of clips of ``data``; the regressions learn from its training clips.
    Raises :class:`UsageError` where a scored clip is one of those, or training has one class.
    """
    train = [clip.file for clip in data.select("train")]
    test = scores.file.tolist()
    if seen := set(train) & set(test):
        raise UsageError(
            f"{len(seen)} of the scored clips are training clips, on which a floor means nothing; "
            "choose --split val or test"
        )
    weights = draw_identities(scores.identity, rounds, seed=0)  # [R, n]
    mine = point(scores.fake, scores.p_fake, 0.5)["auc"]
    mine_drawn = weighted_metrics(scores.fake, scores.p_fake, weights, 0.5)["auc"]
    result = {}
    for name in FLOORS:
        by_file = baseline_scores(features, train, test, name)
        p = np.array([by_file[file] for file in test])
        value = point(scores.fake, p, 0.5)["auc"]
        drawn = weighted_metrics(scores.fake, p, weights, 0.5)["auc"]
        result[name] = {
            "auc": figure(value, drawn),
            "gain": figure(mine - value, mine_drawn - drawn),
        }
    return result


def measure(scores: ClipScores, data: PreparedSet, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """{"floors": of :func:`floors`, "probe": of :func:`trainer.probe.probe`} of the set's features.

    Reads every clip of the set; needs dlib.
    """
    features = read_features(Path(data.folder))
    return {
        "floors": floors(scores, data, features, rounds=rounds),
        "probe": probe(features, rounds=rounds),
    }
