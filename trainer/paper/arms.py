# SPDX-License-Identifier: Apache-2.0
"""What an ablation compares, and the miniature that shows it on two cores.

An arm is a model (overrides of a preset) or a baseline, with overrides of how it is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.config import ABLATION_ARMS
from trainer.paper.baselines import BASELINES

REFERENCE = "dca+mssa"  # the paper's network


@dataclass(frozen=True)
class Arm:
    name: str
    label: str
    note: str = ""
    model: Mapping[str, Any] = field(default_factory=dict)  # of trainer.config.ModelConfig
    fit: Mapping[str, Any] = field(default_factory=dict)  # of trainer.fit.FitConfig
    baseline: str | None = None


def _label(name: str) -> str:
    return name.upper().replace("-MATCHED", " (matched)")


_ARMS = {
    name: Arm(
        name,
        _label(name),
        "as many parameters as with DCA" if "matched" in name else "",
        model=overrides,
    )
    for name, overrides in ABLATION_ARMS.items()
}
_BASELINES = {
    name: Arm(name, kind.NAME, kind.FIDELITY, baseline=name) for name, kind in BASELINES.items()
}
TABLE_1: dict[str, Arm] = {**_BASELINES, REFERENCE: _ARMS[REFERENCE]}
TABLE_2: dict[str, Arm] = _ARMS
FIGURE_5: dict[str, Arm] = {n: a for n, a in _ARMS.items() if "matched" not in n}

# What the paper leaves open, one change at a time from its network.  The default recipe and the
# miniature have the temporal contrast, as a first stage and as a term, the paper's has none; an
# arm that the recipe at hand is already is left out.
READINGS: dict[str, Arm] = {
    REFERENCE: Arm(
        REFERENCE,
        "as built here",
        "softmax then subtract, lambda 1, kernels 1 3 5 7",
        model=ABLATION_ARMS[REFERENCE],
    ),
    **{
        name: Arm(name, label, model={**ABLATION_ARMS[REFERENCE], **model}, fit=fit)
        for name, label, model, fit in (
            (
                "subtract-then-softmax",
                "softmax: of the difference",
                {"dca_reading": "subtract_then_softmax"},
                {},
            ),
            ("no-softmax", "softmax: none", {"dca_reading": "no_softmax"}, {}),
            ("lambda-learned", "lambda: learned", {"lambda_kind": "learned"}, {}),
            ("kernels-1", "kernels: 1 1 1 1", {"mssa_kernels": (1, 1, 1, 1)}, {}),
            ("kernels-3", "kernels: 3 3 3 3", {"mssa_kernels": (3, 3, 3, 3)}, {}),
            ("kernels-3579", "kernels: 3 5 7 9", {"mssa_kernels": (3, 5, 7, 9)}, {}),
            (
                "contrast-none",
                "temporal contrast: none",
                {},
                {"contrast_weight": 0.0, "align_steps": 0},
            ),
            (
                "contrast-term",
                "temporal contrast: a fifth term",
                {},
                {"contrast_weight": 0.5, "align_steps": 0},
            ),
        )
    },
}

# How the runs are trained.  PAPER: its network, its recipe, the baselines as published.
PAPER: dict[str, Any] = {"preset": "msct", "fit": {"recipe": "paper"}}

# Half an hour on two cores for the four arms and the matched control over three seeds: the edge
# network made narrower, without the injected alignment (which is not the paper's), few steps.
MINIATURE: dict[str, Any] = {
    "preset": "msct-tiny",
    "model": {
        "channels": 64,
        "inject_alignment": False,
        "inject_lags": 0,
        "lag_evidence": 0,
        "backbone": {
            "stem_channels": 12,
            "widths": (4, 8, 12, 16),
            "outputs": (16, 32, 48, 64),
            "cbam_reduction": 4,
        },
    },
    "fit": {
        "align_steps": 30,
        "joint_steps": 90,
        "batch": 8,
        "holdout": 0.0,
        "ema": 0.98,
        "validate_every": 120,
    },
    "baseline": {"miniature": True, "steps": 200, "batch": 8, "validate_every": 100},
}
MINIATURE_NOTE = (
    "A miniature, to show the path and the width of the intervals: a narrow network, few steps, "
    "baselines reduced as well; no figure here says how good a method is."
)
