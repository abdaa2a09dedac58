# SPDX-License-Identifier: Apache-2.0
"""The windows that a report shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from runtime.flow.windows import WindowRecord
from runtime.judging.verdict import Verdict

SHOW, BLUR, NONE = FACES = ("show", "blur", "none")  # what becomes of faces in the report
PORTRAIT_PX = 256
BLUR_BLOCKS = 9  # along a blurred face, by which nobody is recognised


class Portrait(NamedTuple):
    """A face as the picture shows it, in the frame of the model's crop."""

    token: int
    jpeg: bytes


@dataclass(frozen=True)
class Moment:
    """A window that is worth a look."""

    verdict: Verdict
    record: WindowRecord | None  # what it was judged by; None: that was lost on the way here
    portrait: Portrait | None
