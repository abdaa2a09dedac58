# SPDX-License-Identifier: Apache-2.0
"""Where verdicts go.  A sink takes each verdict as it comes, in order."""

from __future__ import annotations

from typing import Protocol

from runtime.verdict import Verdict


class Sink(Protocol):
    def write(self, verdict: Verdict) -> None: ...


class Collector:
    """A sink that keeps the verdicts."""

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []

    def write(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)


__all__ = ["Collector", "Sink"]
