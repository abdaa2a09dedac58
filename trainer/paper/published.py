# SPDX-License-Identifier: Apache-2.0
"""The figures that the paper prints, in per cent, once: everything that compares reads them here.

Source: MSCT (arXiv 2604.07741), Tables 1 and 2, on FakeAVCeleb at 1:1:1:1.  What the paper calls
AUC is balanced accuracy: all four rows of Table 2 are whole numbers of wrong clips on a fold of
100 genuine and 300 forged ones, as the "AUC" of hard labels is (see
:mod:`trainer.scoring.metrics`).
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    label: str  # as printed
    accuracy: float
    balanced_accuracy: float | None  # printed as AUC; None where the paper prints a dash


TABLE_1: dict[str, Published] = {
    "vfd": Published("VFD", 81.52, 86.11),
    "mds": Published("MDS", 82.80, 86.50),
    "avoid-df": Published("AVOID-DF", 83.70, 89.20),
    "mrdf-ce": Published("MRDF-CE", 94.05, 92.43),
    "busterx": Published("BusterX", 96.30, None),
    "dca+mssa": Published("Ours", 98.75, 98.83),
}

TABLE_2: dict[str, Published] = {
    "ca+sa": Published("CA+SA", 96.75, 96.17),
    "ca+mssa": Published("CA+MSSA", 97.00, 97.00),
    "dca+sa": Published("DCA+SA", 98.00, 98.00),
    "dca+mssa": Published("DCA+MSSA", 98.75, 98.83),
}
FIGURE_5 = tuple(TABLE_2)  # the panels, in order
