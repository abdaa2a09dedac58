# SPDX-License-Identifier: Apache-2.0
"""The paper's figures are the ones that whole numbers of clips give."""

from __future__ import annotations

import pytest

pytest.importorskip("sklearn", reason="needs the train extra: pip install '.[train]'")

from trainer.config import ABLATION_ARMS
from trainer.paper.published import TABLE_1, TABLE_2
from trainer.scoring import metrics


@pytest.mark.parametrize(
    ("arm", "missed", "false_alarms"),
    [("ca+sa", 8, 5), ("ca+mssa", 9, 3), ("dca+sa", 6, 2), ("dca+mssa", 4, 1)],
)
def test_the_printed_auc_is_balanced_accuracy(arm: str, missed: int, false_alarms: int):
    labels = [0] * 100 + [1] * 300
    called = [1] * false_alarms + [0] * (100 - false_alarms) + [0] * missed + [1] * (300 - missed)
    row = TABLE_2[arm]
    assert round(100 * metrics.accuracy(labels, called), 2) == row.accuracy
    assert round(100 * metrics.balanced_accuracy(labels, called), 2) == row.balanced_accuracy
    assert arm in ABLATION_ARMS


def test_the_last_rows_are_the_same_network():
    assert TABLE_1["dca+mssa"][1:] == TABLE_2["dca+mssa"][1:]
    assert TABLE_1["busterx"].balanced_accuracy is None
