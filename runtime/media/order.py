# SPDX-License-Identifier: Apache-2.0
"""When pictures are shown, where the container says only in which order they are to be decoded.

AVI numbers its chunks and knows no other time: that is the decoding order.  Matroska does the same
for tracks that were taken over from AVI (``V_MS/VFW/FOURCC``).  FFmpeg makes up presentation times
there, and with B-pictures they are wrong: some run backwards, and all are late by a picture.  The
rule of such containers is that of the players they were made for: the n-th picture that is shown
takes the time of the n-th one that is decoded, so a decoder's reorder delay shifts nothing.

A bare stream (``.h264``, ``.hevc``) has no time at all: its n-th picture is shown n steps of its
frame rate after the first one; from the network it is shown when it comes.
"""

from __future__ import annotations

from collections import deque
from typing import Any

DECODING_TIMES_ONLY = frozenset({"avi"})  # FFmpeg's names of containers
ANCHORS = (1, 2)  # FFmpeg's AV_PICTURE_TYPE_I and _P
NO_TAG = "\0\0\0\0"
MAX_DELAY = 64  # pictures; no decoder holds one back for longer


class PictureTimes:
    """The presentation times of one stream's pictures, in its ticks.

    Give it each packet before the decoder gets it (:meth:`sent`), and each frame that comes out
    (:meth:`shown`).  Where the container states presentation times they are given back as they are.

    Damage.  A packet that becomes no picture leaves its time unused.  It is passed over as soon as
    that is certain: what others are predicted from (I and P) is shown after everything that was
    decoded before it, and a B-picture at most the decoder's reorder depth before its own place in
    decoding order.  So a loss moves the few pictures around it by a step, and no more.
    """

    def __init__(self, container: Any, stream: Any, step_s: float | None) -> None:
        """``step_s``: between two pictures of a bare stream; None: its arrival says more."""
        codec = stream.codec_context
        names = container.format.name
        self._codec, self._step_s = codec, step_s
        from_avi = names.startswith("matroska") and codec.codec_tag != NO_TAG
        self._derives = names in DECODING_TIMES_ONLY or from_avi
        self.unstated = True  # no packet so far says any time
        self._sent = 0
        self._last: int | None = None  # decoding time sent last
        self._places: dict[int, int] = {}  # decoding time -> place in decoding order
        self._waiting: deque[tuple[int, int]] = deque()  # the same, in order, not yet given out
        self._shown = 0

    def sent(self, packet: Any) -> None:
        self.unstated = self.unstated and packet.dts is None and packet.pts is None
        if not self._derives or not packet.size:
            return
        dts, packet.pts = packet.dts, None
        if dts is None or (self._last is not None and dts <= self._last):
            return  # damage: its picture has no time, and whoever reads on repairs that
        packet.pts = dts  # the decoder hands it on to the picture
        self._places[dts] = self._sent
        self._waiting.append((self._sent, dts))
        self._last, self._sent = dts, self._sent + 1

    def shown(self, frame: Any, time_base: Any) -> int | None:
        """The frame's presentation time; None where nothing is known."""
        self._shown += 1
        if self.unstated and frame.pts is None and time_base and self._step_s:
            return round((self._shown - 1) * self._step_s / float(time_base))
        if not self._derives or frame.pts is None:
            return frame.pts  # type: ignore[no-any-return]
        place = self._places.get(frame.pts)
        if place is None or not self._waiting:  # a second picture of one packet
            return None
        ahead = 0 if int(frame.pict_type) in ANCHORS else self._codec.reorder_depth
        while self._waiting[0][0] < place - ahead:
            self._drop()
        return self._drop()

    def _drop(self) -> int:
        """The earliest time that waits, which does not any more."""
        place, dts = self._waiting.popleft()
        for old in [d for d, p in self._places.items() if p < place - MAX_DELAY]:
            del self._places[old]
        return dts
