# SPDX-License-Identifier: Apache-2.0
"""The pictures of one live source with the sound of another, on this machine's monotonic clock."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

from runtime.closing import Closing
from runtime.errors import UsageError
from runtime.media import Chunk, ClockReport, LiveSource, MediaInfo, VideoChunk
from runtime.media.feed import Feed

POLL_S = 0.05


class JoinedSource(Closing):
    """A camera (or a network stream without its own sound) and a microphone.

    Both are read by a thread each; chunks come in the order of their arrival.  Stream second 0 is
    the capture of the first picture, and sound from before it is left out.  The picture's end is
    the end; where sound drops out the stream goes on.  Both sources are closed with this one.
    """

    live = True

    def __init__(self, pictures: LiveSource, sound: LiveSource) -> None:
        if not pictures.info.has_video:
            raise UsageError(f"{pictures.info.name} has no pictures to join a microphone to")
        self._pictures, self._sound = pictures, sound
        self.info: MediaInfo = replace(pictures.info, has_audio=True)
        self.patience_s = max(pictures.patience_s, sound.patience_s)
        self._stop = threading.Event()

    @property
    def paced(self) -> bool:
        return self._pictures.paced

    @property
    def damaged(self) -> int:
        return self._pictures.damaged + self._sound.damaged

    @property
    def warnings(self) -> list[str]:
        return [*self._pictures.warnings, *self._sound.warnings]

    @property
    def drops(self) -> Mapping[str, int]:
        return Counter(self._pictures.drops) + Counter(self._sound.drops)

    @property
    def clock(self) -> ClockReport:
        return self._sound.clock

    def __iter__(self) -> Iterator[Chunk]:
        """One thread for the sound, whose chunks wait for the next picture: 40 ms at 25 a second,
        and while the picture is lost no longer than :data:`POLL_S`."""
        zero_s: float | None = None
        shifts: dict[type[Chunk], float] = {}  # from a source's stream seconds to this one's
        with Feed(self._pictures) as pictures, Feed(self._sound) as sound:
            while not self._stop.is_set():
                chunk = pictures.get(POLL_S)
                found: list[Chunk] = [chunk] if isinstance(chunk, VideoChunk) else []
                heard = sound.get(0.0)
                while heard is not None:
                    if not isinstance(heard, VideoChunk):
                        found.append(heard)
                    heard = sound.get(0.0)
                for item in found:
                    if item.captured_s is None:
                        continue
                    if zero_s is None:
                        if not isinstance(item, VideoChunk):
                            continue
                        zero_s = item.captured_s
                    shift = shifts.setdefault(type(item), item.captured_s - item.t_s - zero_s)
                    if item.t_s + shift >= 0:
                        yield replace(item, t_s=item.t_s + shift)
                if sound.error is not None:  # it never gave anything; a later outage is its own
                    raise sound.error
                if pictures.ended:
                    if pictures.error is not None:
                        raise pictures.error
                    return

    def close(self) -> None:
        self._stop.set()
        self._pictures.close()
        self._sound.close()
