# SPDX-License-Identifier: Apache-2.0
"""What another precision changes in the verdicts of the same clips: counts and differences.

Everything is taken from the verdicts as they are published: ``p_fake`` is calibrated and smoothed,
labels have hysteresis, windows abstain.  A rounding error that moves a window across a threshold
shows as a flip, as it would for a user.  Windows are paired by clip, face and end time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from runtime.calibrate.conformal import share_interval
from runtime.judging.verdict import Label, Verdict


class Key(NamedTuple):
    """One window of one face of one clip."""

    source: str
    face_id: int | None
    t_end_s: float  # stream seconds, to the millisecond


Verdicts = Mapping[Key, Verdict]


def key(source: str, verdict: Verdict) -> Key:
    return Key(source, verdict.face_id, round(verdict.t_end_s, 3))


def compare(before: Verdicts, after: Verdicts, genuine: Collection[str]) -> dict[str, Any]:
    """Changes from ``before`` to ``after``; JSON-ready.

    ``genuine`` names the sources on which a label ``fake`` is a false alarm.  ``p_fake`` is None
    where no window has one in both, ``false_alarms`` where no source is genuine.
    """
    both = [(k, before[k], after[k]) for k in before if k in after]
    labels = [(a.label, b.label) for _, a, b in both]
    abstain = Label.ABSTAIN
    reasons = sum(
        a.reason != b.reason for _, a, b in both if a.label is abstain and b.label is abstain
    )
    return {
        "windows": len(both),
        "windows_lost": sum(k not in after for k in before),
        "windows_new": sum(k not in before for k in after),
        "judged_in_both": sum(abstain not in pair for pair in labels),
        "p_fake": _change(both),
        "scores_without_partner": sum((a.p_fake is None) != (b.p_fake is None) for _, a, b in both),
        "label_flips": {
            "real_to_fake": labels.count((Label.REAL, Label.FAKE)),
            "fake_to_real": labels.count((Label.FAKE, Label.REAL)),
        },
        "abstention_flips": {
            "to_abstain": sum(a is not abstain and b is abstain for a, b in labels),
            "from_abstain": sum(a is abstain and b is not abstain for a, b in labels),
            "other_reason": reasons,
        },
        "false_alarms": {
            "before": false_alarms(before, genuine),
            "after": false_alarms(after, genuine),
        }
        if genuine
        else None,
    }


def _change(both: list[tuple[Key, Verdict, Verdict]]) -> dict[str, Any] | None:
    """Of ``p_fake``, over the windows that have one in both, abstentions with a score included."""
    scored = [
        (k, b.p_fake - a.p_fake)
        for k, a, b in both
        if a.p_fake is not None and b.p_fake is not None
    ]
    if not scored:
        return None
    changes = np.array([change for _, change in scored])
    sizes = np.abs(changes)
    worst = scored[int(sizes.argmax())][0]
    return {
        "windows": len(scored),
        "max": float(sizes.max()),
        "p99": float(np.percentile(sizes, 99)),
        "mean": float(sizes.mean()),
        "mean_signed": float(changes.mean()),  # above 0: it says fake more readily
        "worst": {"source": worst.source, "face_id": worst.face_id, "t_end_s": worst.t_end_s},
    }


def false_alarms(verdicts: Verdicts, genuine: Collection[str]) -> dict[str, Any]:
    """How many judged windows of genuine clips are labelled fake, at the model's own threshold.

    The interval is Clopper and Pearson's at 95 %, as if windows were independent; those of one
    clip overlap, so it is too narrow.
    """
    labels = [v.label for k, v in verdicts.items() if k.source in genuine]
    judged = [label for label in labels if label is not Label.ABSTAIN]
    alarms = judged.count(Label.FAKE)
    interval = share_interval(alarms, len(judged))
    return {
        "windows": len(labels),
        "judged": len(judged),
        "fake": alarms,
        "rate": alarms / len(judged) if judged else None,
        "interval": [interval.low, interval.high],
    }
