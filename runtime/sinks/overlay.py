# SPDX-License-Identifier: Apache-2.0
"""What is drawn over a picture: face boxes, scores, and a strip with the last seconds below it.

Colours are those of Okabe & Ito (2008), which colour-blind people tell apart, and every colour is
also said in words.  Drawn at the size of the output, never scaled afterwards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime.faces import Face
from runtime.judging.verdict import Label, Verdict
from runtime.media import Frame
from runtime.sinks.terminal import number, offset, shown_scores

Colour = tuple[int, int, int]  # RGB

COLOURS: dict[Label | None, Colour] = {
    Label.REAL: (86, 180, 233),  # sky blue
    Label.FAKE: (230, 120, 20),  # between orange and vermilion: it must glow on dark and bright
    Label.ABSTAIN: (176, 176, 176),
    None: (255, 255, 255),  # no verdict yet
}
INK: Colour = (245, 245, 245)
SOFT: Colour = (165, 172, 180)
GROUND: Colour = (20, 24, 29)
TRACK: Colour = (70, 78, 88)

BASE_PX = 540  # short side of a picture on which a line of text is 18 pixels high
MIN_SHORT_PX, MAX_LONG_PX = 540, 1920  # of the picture in the output
SPAN_S = 10.0  # of the strip
STALE_S = 1.0  # a verdict older than this no longer describes the face
MAX_ROWS = 4  # of the strip; the faces judged last


class Overlay:
    """Draws on pictures of one stream.

    Parameters
    ----------
    width, height : of the first picture; others are fitted into its frame
    hop_s : time between verdicts
    """

    def __init__(self, width: int, height: int, hop_s: float) -> None:
        import cv2

        self._cv2 = cv2
        grow = max(1.0, MIN_SHORT_PX / min(width, height))
        grow = min(grow, MAX_LONG_PX / max(width, height))
        self.width, self._picture_height = _even(width * grow), _even(height * grow)
        self._unit = min(self.width, self._picture_height) / BASE_PX
        self._strip_height = _even(self._px(104))
        self.height = self._picture_height + self._strip_height
        self._hop_s = hop_s
        self._history: dict[int | None, deque[Verdict]] = {}

    def take(self, verdict: Verdict) -> None:
        """A verdict that the pictures from its end on show."""
        self._history.setdefault(verdict.face_id, deque()).append(verdict)

    def draw(self, frame: Frame, t_s: float, faces: Sequence[Face]) -> Frame:
        """frame [H, W, 3] RGB at stream second ``t_s`` -> [height, width, 3]."""
        self._forget(t_s)
        canvas = np.empty((self.height, self.width, 3), np.uint8)
        canvas[:] = GROUND
        scale, left, top = self._paste(canvas, frame)
        for face in faces:
            x0, y0, x1, y1 = (v * scale for v in face.box)
            verdict = self._current(face.track_id, t_s)
            self._face(canvas, (x0 + left, y0 + top, x1 + left, y1 + top), face.track_id, verdict)
        self._strip(canvas, t_s)
        return canvas

    def _paste(self, canvas: Frame, frame: Frame) -> tuple[float, float, float]:
        """Fits the picture in; returns its scale and where it starts."""
        height, width = frame.shape[:2]
        scale = min(self.width / width, self._picture_height / height)
        size = (
            min(self.width, round(width * scale)),
            min(self._picture_height, round(height * scale)),
        )
        mode = self._cv2.INTER_AREA if scale < 1 else self._cv2.INTER_CUBIC
        fitted = (
            frame if size == (width, height) else self._cv2.resize(frame, size, interpolation=mode)
        )
        left, top = (self.width - size[0]) // 2, (self._picture_height - size[1]) // 2
        canvas[top : top + size[1], left : left + size[0]] = fitted
        return scale, left, top

    def _face(
        self, canvas: Frame, box: tuple[float, ...], face_id: int, verdict: Verdict | None
    ) -> None:
        colour = COLOURS[verdict.label if verdict else None]
        x0, y0, x1, y1 = (round(v) for v in box)
        line = self._px(2.5)
        self._cv2.rectangle(
            canvas, (x0, y0), (x1, y1), GROUND, line + self._px(2), self._cv2.LINE_AA
        )
        self._cv2.rectangle(canvas, (x0, y0), (x1, y1), colour, line, self._cv2.LINE_AA)

        tag = f"face {face_id}  {outcome(verdict)}"
        high, pad = self._px(18), self._px(6)
        wide = self._text_width(tag, high) + 2 * pad
        left = int(np.clip(x0 - line // 2, 0, max(0, self.width - wide)))
        top = max(0, y0 - high - 2 * pad)
        canvas[top : top + high + 2 * pad, left : left + wide] = colour
        self._text(canvas, tag, left + pad, top + pad, high, GROUND)
        if verdict is not None:
            self._card(canvas, (x0, y0, x1, y1), verdict)

    def _card(self, canvas: Frame, box: tuple[int, int, int, int], verdict: Verdict) -> None:
        """Bars of both, picture and voice and the offset: right of the face, or left, or in it."""
        high, pad, bar = self._px(14), self._px(8), self._px(64)
        label = self._text_width("picture", high) + pad
        value = self._text_width("0.00", high) + pad
        wide, step = label + bar + value + 2 * pad, high + self._px(6)
        tall = 4 * step + 2 * pad - self._px(6)
        gap = self._px(8)
        left = box[2] + gap
        if left + wide > self.width:
            left = box[0] - gap - wide
        if left < 0:
            left = max(0, self.width - wide)
        top = int(np.clip(box[1], 0, max(0, self._picture_height - tall)))
        area = canvas[top : top + tall, left : left + wide]
        area[:] = (0.25 * area + 0.75 * np.array(GROUND)).astype(np.uint8)
        y = top + pad
        names = ("both", "picture", "voice")
        for name, p in zip(names, shown_scores(verdict), strict=True):
            self._text(canvas, name, left + pad, y, high, INK)
            x = left + pad + label
            middle = y + high // 2
            half = max(2, self._px(4))
            self._cv2.rectangle(canvas, (x, middle - half), (x + bar, middle + half), TRACK, -1)
            if p is not None:
                end = x + round(bar * min(1.0, max(0.0, p)))
                self._cv2.rectangle(canvas, (x, middle - half), (end, middle + half), INK, -1)
            self._text(canvas, number(p).strip(), x + bar + pad, y, high, INK)
            y += step
        self._text(canvas, "A/V", left + pad, y, high, SOFT)
        self._text(canvas, offset(verdict), left + pad + label, y, high, SOFT)

    def _strip(self, canvas: Frame, t_s: float) -> None:
        high, pad = self._px(13), self._px(8)
        top = self._picture_height
        begin, now = self._px(76), self.width - pad
        self._text(canvas, f"last {SPAN_S:g} s", pad, top + pad, high, SOFT)
        self._text(
            canvas,
            f"{t_s:.1f} s",
            now - self._text_width(f"{t_s:.1f} s", high),
            top + pad,
            high,
            INK,
        )
        x = begin
        for label, word in ((Label.REAL, "real"), (Label.FAKE, "fake"), (Label.ABSTAIN, "abstain")):
            canvas[top + pad : top + pad + high, x : x + high] = COLOURS[label]
            if label is Label.ABSTAIN:
                self._hatch(canvas[top + pad : top + pad + high, x : x + high])
            self._text(canvas, word, x + high + pad // 2, top + pad, high, SOFT)
            x += high + pad // 2 + self._text_width(word, high) + 2 * pad
        rows = sorted(self._history.items(), key=lambda item: -item[1][-1].t_end_s)[:MAX_ROWS]
        rows.sort(key=lambda item: -1 if item[0] is None else item[0])
        room_top, room_bottom = top + 2 * pad + high, self.height - pad
        n = max(1, len(rows))
        tall = min(self._px(30), (room_bottom - room_top) // n - self._px(3))
        for i, (face_id, verdicts) in enumerate(rows):
            y0 = room_top + i * (room_bottom - room_top) // n
            name = "no face" if face_id is None else f"face {face_id}"
            size = min(high, tall)
            self._text(canvas, name, pad, y0 + (tall - size) // 2, size, INK)
            canvas[y0 : y0 + tall, begin:now] = TRACK
            for v in verdicts:
                self._cell(canvas[y0 : y0 + tall, begin:now], v, t_s)

    def _cell(self, row: Frame, verdict: Verdict, t_s: float) -> None:
        """One verdict in a row [h, w, 3] of the strip: its colour, and how high p_fake is."""
        per_s = row.shape[1] / SPAN_S
        x1 = round((verdict.t_end_s - t_s + SPAN_S) * per_s)
        x0 = max(0, round((verdict.t_end_s - self._hop_s - t_s + SPAN_S) * per_s))
        if x1 <= x0:
            return
        cell = row[:, x0:x1]
        colour = np.array(COLOURS[verdict.label])
        p = shown_scores(verdict)[0]
        if verdict.label is Label.ABSTAIN or p is None:
            cell[:] = (colour * 0.7).astype(np.uint8)
            self._hatch(cell, x0)
            return
        cell[:] = (colour * 0.35).astype(np.uint8)
        cell[round((1 - p) * (len(cell) - 1)) :] = colour

    def _hatch(self, area: Frame, x0: int = 0) -> None:
        """Diagonal lines: an abstention is told from a verdict without colours."""
        height, width = area.shape[:2]
        period = max(4, self._px(6))
        rows, columns = np.ogrid[:height, x0 : x0 + width]
        area[(rows + columns) % period < period // 3] = GROUND

    def _current(self, face_id: int, t_s: float) -> Verdict | None:
        verdicts = self._history.get(face_id)
        if not verdicts or t_s - verdicts[-1].t_end_s > STALE_S:
            return None
        return verdicts[-1]

    def _forget(self, t_s: float) -> None:
        for face_id, verdicts in list(self._history.items()):
            while verdicts and verdicts[0].t_end_s < t_s - SPAN_S:
                verdicts.popleft()
            if not verdicts:
                del self._history[face_id]

    def _px(self, at_base: float) -> int:
        return max(1, round(at_base * self._unit))

    def _font(self, high: int) -> tuple[Any, float, int]:
        """Font, its scale for capitals of about 0.7 ``high``, and the thickness of a stroke."""
        return self._cv2.FONT_HERSHEY_SIMPLEX, high / 30, max(1, round(high / 14))

    def _text_width(self, text: str, high: int) -> int:
        return int(self._cv2.getTextSize(text, *self._font(high))[0][0])

    def _text(self, canvas: Frame, text: str, x: int, y: int, high: int, colour: Colour) -> None:
        """Text whose line of height ``high`` starts at (x, y), its upper left corner."""
        font, scale, thick = self._font(high)
        base = y + round(high * 0.86)
        self._cv2.putText(canvas, text, (x, base), font, scale, colour, thick, self._cv2.LINE_AA)


def outcome(verdict: Verdict | None) -> str:
    """The verdict in words, as the tag of a face says it."""
    if verdict is None:
        return "listening"
    if verdict.reason is not None:
        return f"abstain: {verdict.reason.value.replace('_', ' ')}"
    p = number(verdict.p_fake).strip()
    return f"FAKE {p}" if verdict.label is Label.FAKE else f"{verdict.label} {p}"


def _even(size: float) -> int:
    """H.264 in 4:2:0 takes even sides only."""
    return max(2, 2 * round(size / 2))
