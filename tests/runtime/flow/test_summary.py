# SPDX-License-Identifier: Apache-2.0
"""What was lost on the way to the model: one account, in words, for all who tell of it."""

from __future__ import annotations

import re
from pathlib import Path

import runtime
from runtime.flow.summary import CAUSES, Stats, in_words, losses

COUNTED = re.compile(r'(?:drops\[|_drop_oldest\(\w+, |_put\(.*, )"(\w+)"')


def test_every_cause_that_a_source_counts_has_words() -> None:
    folder = Path(runtime.__file__).parent
    files = [*(folder / "media").glob("*.py"), *(folder / "web").glob("*.py")]
    counted = {cause for file in files for cause in COUNTED.findall(file.read_text("utf-8"))}
    assert counted >= {"queue_full", "sound_queue_full", "stall", "behind", "overflow"}
    assert counted <= set(CAUSES)


def test_every_cause_of_a_session_has_words() -> None:
    assert set(losses(Stats(), 0, {})) <= set(CAUSES)


def test_damage_of_a_file_is_damage() -> None:
    assert losses(Stats(), 3, {})["damaged"] == 3


def test_damage_of_a_live_source_is_counted_once() -> None:
    found = losses(Stats(dropped=2), 5, {"decode_error": 4, "timestamp": 1, "behind": 3})
    assert (found["damaged"], found["decode_error"], found["behind"]) == (0, 4, 3)
    assert found["timestamp"] == 1 + 2


def test_damage_that_no_cause_explains_is_not_lost() -> None:
    found = losses(Stats(), 5, {"queue_full": 7, "sound_queue_full": 0})
    assert (found["damaged"], found["queue_full"]) == (5, 7)


def test_in_words_only_what_happened() -> None:
    told = in_words(losses(Stats(gaps=2), 0, {"queue_full": 8, "stall": 0}))
    assert told == {
        "moments (40 ms) without a picture": 2,
        "pictures dropped because the model was busy": 8,
    }
