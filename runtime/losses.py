# SPDX-License-Identifier: Apache-2.0
"""What was lost or repaired on the way to the model, by cause: one account for all who tell of it.

The terminal, the page, the report and Prometheus show the same causes with the same counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.session import Stats

CAUSES: dict[str, str] = {  # what each count is of
    "damaged": "damaged packets or timestamps",
    "decode_error": "packets that do not decode",
    "timestamp": "timestamps that jump or could not be used",
    "gap": "moments (40 ms) without a picture",
    "late": "moments (40 ms) that came too late",
    "sound_clock": "corrections of the sound's clock",
    "stall": "times nothing came for too long",
    "queue_full": "pictures dropped because the model was busy",
    "sound_queue_full": "pieces of sound dropped because the model was busy",
    "behind": "times only key pictures were decoded, to catch up",
    "overflow": "pieces of sound lost before the microphone was read",
    "shed_windows": "windows left out to keep up",
    "shed_pictures": "pictures left out to keep up",
}
_DAMAGE = ("decode_error", "timestamp")  # causes of live sources that their ``damaged`` sums up


def losses(stats: Stats, damaged: int, drops: Mapping[str, int]) -> dict[str, int]:
    """By cause how often, 0 included: from a session, and from its source.

    damaged : of the source, in all
    drops : of a live source, by cause; {} of a file
    """
    own = dict(drops)  # a thread may go on counting
    counted = Counter(
        {
            "damaged": max(0, damaged - sum(own.get(cause, 0) for cause in _DAMAGE)),
            "timestamp": stats.dropped,
            "gap": stats.gaps,
            "late": stats.late,
            "sound_clock": stats.clock_corrections,
            "shed_windows": stats.shed_windows,
            "shed_pictures": stats.shed_pictures,
        }
    )
    counted.update(own)
    return dict(counted)


def in_words(counted: Mapping[str, int]) -> dict[str, int]:
    """The same without zeros, by the words of :data:`CAUSES`."""
    return {CAUSES.get(cause, cause): n for cause, n in counted.items() if n}
