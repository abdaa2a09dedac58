# SPDX-License-Identifier: Apache-2.0
"""The systems of the paper's Table 1, in our own code, behind one interface.

========  ====================================================  =================================
name      what it is                                            how far it goes
========  ====================================================  =================================
mds       Chugh et al., ACM MM 2020                             in full
mrdf-ce   Zou et al., ICASSP 2024                               in full
vfd       Cheng et al., ToMM 2023                               without its VoxCeleb2 pre-training
avoid-df  Yang et al., TIFS 2023                                without its two selection steps,
                                                                which nothing published defines
========  ====================================================  =================================

BusterX, a multimodal language model, is quoted only.  No weights of anybody are used: every
baseline starts from random numbers, on the clips and splits that MSCT is trained on.
"""

from __future__ import annotations

from typing import Any

from runtime.errors import UsageError
from trainer.paper.baselines.avoid_df import AvoidDf
from trainer.paper.baselines.base import Baseline, Labels, Outputs
from trainer.paper.baselines.mds import Mds
from trainer.paper.baselines.mrdf import MrdfCe
from trainer.paper.baselines.vfd import Vfd

BASELINES: dict[str, type[Baseline]] = {
    "vfd": Vfd,
    "mds": Mds,
    "avoid-df": AvoidDf,
    "mrdf-ce": MrdfCe,
}

__all__ = ["BASELINES", "Baseline", "Labels", "Outputs", "build"]


def build(name: str, *, miniature: bool = False, **overrides: Any) -> Baseline:
    """A baseline with random weights, at its published size unless ``miniature``.

    Raises :class:`UsageError` for an unknown name or option.
    """
    if name not in BASELINES:
        raise UsageError(f"unknown baseline {name!r}; there are: {', '.join(BASELINES)}")
    kind = BASELINES[name]
    try:
        return kind(**{**(kind.MINIATURE if miniature else {}), **overrides})
    except TypeError as err:
        raise UsageError(f"{name}: {err}") from err
