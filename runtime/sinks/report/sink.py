# SPDX-License-Identifier: Apache-2.0
"""The report of one source: what was judged, when, and what the worst moments were judged by.

While the stream runs the sink keeps the faces of the last seconds, and of the windows with the
highest ``p_fake`` a face and what the session made the verdict of (``on_scores``); nothing goes to
disk.  At the end :meth:`ReportSink.finish` writes one HTML file (:mod:`runtime.sinks.report.page`).

Faces in a report are personal data: ``faces`` chooses whether they are shown, blurred or left out.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.faces import Face
from runtime.faces.align import align
from runtime.files import PendingFile
from runtime.flow.sink import Picture
from runtime.flow.windows import WindowRecord
from runtime.judging.verdict import Verdict
from runtime.media import AudioChunk, Frame
from runtime.optional import optional
from runtime.sinks.report.history import History
from runtime.sinks.report.moments import (
    BLUR,
    BLUR_BLOCKS,
    FACES,
    NONE,
    PORTRAIT_PX,
    SHOW,
    Moment,
    Portrait,
)
from runtime.sinks.terminal import shown_scores
from runtime.spec import PairSpec, StreamSpec

if TYPE_CHECKING:
    from runtime.flow.summary import Summary

MAX_MOMENTS = 4  # in the report
MAX_CANDIDATES = 8  # kept, for those that a worse one of the same moment replaces
KEEP_S = 14.0  # of faces: a window may wait 10 s for the other stream
PORTRAIT_EVERY_S = 0.2


class ReportSink:
    """One source's report; a :class:`runtime.flow.sink.MediaSink` and a ``ScoresSink``.

    ``file`` is what is judged, where it is one; its SHA-256 is in the report.

    Raises :class:`runtime.files.OutputError` where the target cannot be written, and
    :class:`DependencyError` without OpenCV.
    """

    def __init__(
        self,
        target: Path,
        spec: PairSpec,
        stream: StreamSpec,
        *,
        faces: str = SHOW,
        file: Path | None = None,
    ) -> None:
        with optional("to write a report"):
            import cv2  # noqa: F401
        assert faces in FACES, faces
        self._file = PendingFile(target)
        self._spec, self._stream, self._faces, self._source = spec, stream, faces, file
        self._hz = spec.audio.token_hz
        self._portrait_spec = replace(spec.face, crop_px=PORTRAIT_PX)
        self._portraits: dict[int, deque[Portrait]] = {}
        self._records: dict[tuple[int | None, int], WindowRecord] = {}  # by face and end token
        self._candidates: list[Moment] = []
        self.history = History(stream.hop_tokens / self._hz)

    def picture(self, picture: Picture) -> None:
        token = round(picture.t_s * self._hz)
        if self._faces != NONE:
            for face in picture.faces:
                self._keep_portrait(token, face, picture.frame)
        self._forget(token - round(KEEP_S * self._hz))

    def sound(self, source: str, chunk: AudioChunk) -> None:
        """Not shown."""

    def scores(self, record: WindowRecord) -> None:
        """Before the verdict that was made of it."""
        end = record.facts.end_token
        self._forget_records(end - round(KEEP_S * self._hz))
        self._records[record.facts.face_id, end] = replace(record, visual=None, audio=None)

    def write(self, verdict: Verdict) -> None:
        self.history.take(verdict)
        record = self._records.pop((verdict.face_id, round(verdict.t_end_s * self._hz)), None)
        if shown_scores(verdict)[0] is None or not self._is_candidate(verdict):
            return
        apart = [m for m in self._candidates if not self._same_moment(m.verdict, verdict)]
        found = [*apart, Moment(verdict, record, self._portrait(verdict))]
        self._candidates = sorted(found, key=lambda m: -(m.verdict.p_fake or 0.0))[:MAX_CANDIDATES]

    def end(self, summary: Summary) -> None:
        """Everything is kept already; :meth:`finish` writes it, when all warnings are known."""

    def finish(self, summary: Summary, *, model_card: str | None = None) -> None:
        """Write the report; ``model_card`` is the Markdown of the model's README.

        Raises :class:`runtime.files.OutputError`.
        """
        from runtime.sinks.report.page import render

        html = render(
            summary, self._spec, self._stream, self.history, self._candidates[:MAX_MOMENTS],
            faces=self._faces, model_card=model_card, file=self._source,
        )  # fmt: skip
        try:
            self._file.path.write_text(html, encoding="utf-8", errors="replace")
        except OSError as err:
            self._file.discard()
            raise self._file.failure(err) from None
        self._file.commit()

    def abandon(self) -> None:
        """Leave no file behind."""
        self._file.discard()

    def _is_candidate(self, verdict: Verdict) -> bool:
        """Would it be among the worst?"""
        p = verdict.p_fake or 0.0
        for m in self._candidates:
            if self._same_moment(m.verdict, verdict):
                return p > (m.verdict.p_fake or 0.0)
        full = len(self._candidates) >= MAX_CANDIDATES
        return not full or p > (self._candidates[-1].verdict.p_fake or 0.0)

    def _same_moment(self, a: Verdict, b: Verdict) -> bool:
        apart_s = self._stream.window_tokens / self._hz
        return a.face_id == b.face_id and abs(a.t_end_s - b.t_end_s) < apart_s - 1e-6

    def _portrait(self, verdict: Verdict) -> Portrait | None:
        """The one nearest to the middle of the window."""
        start, end = (round(t * self._hz) for t in (verdict.t_start_s, verdict.t_end_s))
        kept = self._portraits.get(-1 if verdict.face_id is None else verdict.face_id, ())
        inside = [p for p in kept if start <= p.token < end]
        return min(inside, key=lambda p: abs(p.token - (start + end) // 2), default=None)

    def _keep_portrait(self, token: int, face: Face, frame: Frame) -> None:
        import cv2

        kept = self._portraits.setdefault(face.track_id, deque())
        if kept and token - kept[-1].token < round(PORTRAIT_EVERY_S * self._hz):
            return
        portrait = align(frame, face.landmarks, self._portrait_spec)  # [256, 256, 3]
        if self._faces == BLUR:
            portrait = blurred(portrait)
        fine, jpeg = cv2.imencode(".jpg", portrait[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
        if fine:
            kept.append(Portrait(token, jpeg.tobytes()))

    def _forget(self, before: int) -> None:
        for face, portraits in list(self._portraits.items()):
            while portraits and portraits[0].token < before:
                portraits.popleft()
            if not portraits:
                del self._portraits[face]

    def _forget_records(self, before: int) -> None:
        """Of verdicts that were lost on the way here."""
        for key in [key for key in self._records if key[1] < before]:
            del self._records[key]


def blurred(portrait: Frame) -> Frame:
    """portrait [H, W, 3] in BLUR_BLOCKS x BLUR_BLOCKS blocks of one colour each."""
    import cv2

    small = cv2.resize(portrait, (BLUR_BLOCKS, BLUR_BLOCKS), interpolation=cv2.INTER_AREA)
    size = portrait.shape[1], portrait.shape[0]
    return np.asarray(cv2.resize(small, size, interpolation=cv2.INTER_NEAREST), np.uint8)
