# SPDX-License-Identifier: Apache-2.0
"""A source around another one: it says what that one says, a subclass changes the chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from runtime.closing import Closing
from runtime.media import Chunk, ClockReport, LiveSource, MediaInfo, Source
from runtime.media.feed import DEFAULT_PATIENCE_S


class SourceAround(Closing):
    """Everything but the chunks is the inner source's, which it closes with itself."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._of_live = source if isinstance(source, LiveSource) else None

    @property
    def live(self) -> bool:
        return self._source.live

    @property
    def info(self) -> MediaInfo:
        return self._source.info

    @property
    def damaged(self) -> int:
        return self._source.damaged

    @property
    def warnings(self) -> list[str]:
        return self._source.warnings

    @property
    def paced(self) -> bool:
        return self._of_live is None or self._of_live.paced

    @property
    def patience_s(self) -> float:
        return DEFAULT_PATIENCE_S if self._of_live is None else self._of_live.patience_s

    @property
    def drops(self) -> Mapping[str, int]:
        return {} if self._of_live is None else self._of_live.drops

    @property
    def clock(self) -> ClockReport:
        return ClockReport() if self._of_live is None else self._of_live.clock

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self._source)

    def close(self) -> None:
        self._source.close()
