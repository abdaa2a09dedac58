# SPDX-License-Identifier: Apache-2.0
"""The report of one source: what was judged, when, and what drove the worst moments.

While the stream runs the sink keeps the last seconds of crops and sound, and of the windows with
the highest ``p_fake`` what is needed to judge them again; nothing goes to disk.  At the end
:meth:`ReportSink.finish` covers parts of those windows (:mod:`runtime.sinks.occlusion`) and writes
one HTML file (:mod:`runtime.sinks.report_html`).

Faces in a report are personal data: ``faces`` chooses whether they are shown, blurred or left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from runtime.audio import AudioTokenizer
from runtime.backends.base import Backend
from runtime.errors import DependencyError
from runtime.faces import Face, align
from runtime.media import AudioChunk, Frame
from runtime.rings import MISSING, nearest_before
from runtime.sinks import Picture
from runtime.sinks.history import History
from runtime.sinks.occlusion import Evidence, Importance, UInt8, importance, windows_to_judge
from runtime.sinks.output import PendingFile
from runtime.sinks.timeline import shown_scores
from runtime.spec import PairSpec, StreamSpec
from runtime.verdict import Verdict

if TYPE_CHECKING:
    from runtime.pipeline import Summary

SHOW, BLUR, NONE = FACES = ("show", "blur", "none")  # what becomes of faces in the report
MAX_MOMENTS = 4  # in the report
MAX_CANDIDATES = 8  # whose evidence is kept; 0.7 MB each at 64 pixels
KEEP_S = 14.0  # of crops and sound: a window may wait 10 s for the other stream
PORTRAIT_PX = 256
PORTRAIT_EVERY_S = 0.2
BLUR_BLOCKS = 9  # along a blurred face, by which nobody is recognised
CLOCK_TOLERANCE_S = 0.02  # as in the session

Step = Callable[[int], None]  # so many windows were judged again since the last call
MakeProgress = Callable[[int], AbstractContextManager[Step]]  # for so many windows in all


class Portrait(NamedTuple):
    """A face as the picture shows it, in the frame of the model's crop."""

    token: int
    jpeg: bytes


@dataclass(frozen=True)
class Moment:
    """A window that is worth a look."""

    verdict: Verdict
    evidence: Evidence | None  # None: it cannot be judged again
    portrait: Portrait | None
    driven_by: Importance | None = None


class ReportSink:
    """One source's report; a :class:`runtime.sinks.MediaSink`.

    Raises :class:`runtime.sinks.jsonl.OutputError` where the target cannot be written, and
    :class:`DependencyError` without OpenCV or kaldi-native-fbank.
    """

    def __init__(
        self, target: Path, spec: PairSpec, stream: StreamSpec, *, faces: str = SHOW
    ) -> None:
        try:
            import cv2  # noqa: F401
        except ImportError as err:
            raise DependencyError(
                "OpenCV is needed to write a report: pip install '.[cpu]'"
            ) from err
        assert faces in FACES, faces
        self._sound = _SoundRing(spec)
        self._file = PendingFile(target)
        self._spec, self._stream, self._faces = spec, stream, faces
        self._hz = spec.audio.token_hz
        self._portrait_spec = replace(spec.face, crop_px=PORTRAIT_PX)
        self._crops: dict[int, deque[tuple[int, UInt8]]] = {}  # face -> (token, crop)
        self._portraits: dict[int, deque[Portrait]] = {}
        self._candidates: list[Moment] = []
        self.history = History(stream.hop_tokens / self._hz)

    def picture(self, picture: Picture) -> None:
        token = round(picture.t_s * self._hz)
        for face in picture.faces:
            self._crops.setdefault(face.track_id, deque()).append((token, face.crop))
            self._keep_portrait(token, face, picture.frame)
        self._forget(token - round(KEEP_S * self._hz))

    def sound(self, source: str, chunk: AudioChunk) -> None:
        self._sound.push(chunk)

    def write(self, verdict: Verdict) -> None:
        self.history.take(verdict)
        if shown_scores(verdict)[0] is None or not self._is_candidate(verdict):
            return
        apart = [m for m in self._candidates if not self._same_moment(m.verdict, verdict)]
        found = [*apart, self._moment(verdict)]
        self._candidates = sorted(found, key=lambda m: -(m.verdict.p_fake or 0.0))[:MAX_CANDIDATES]

    def end(self, summary: Summary) -> None:
        """Everything is kept already; :meth:`finish` writes it, in the thread of the backend."""

    def finish(
        self,
        summary: Summary,
        backend: Backend,
        progress: MakeProgress,
        *,
        model_card: str | None = None,
    ) -> None:
        """Judge the worst moments again and write the report.

        ``progress`` makes a progress bar; ``model_card`` is the Markdown
        of the model's README.  Raises :class:`runtime.sinks.jsonl.OutputError`.
        """
        from runtime.sinks.report_html import render

        moments = self._candidates[:MAX_MOMENTS]
        again = windows_to_judge() * sum(m.evidence is not None for m in moments)
        with progress(again) as step:
            explained = [
                replace(m, driven_by=importance(backend, m.evidence, m.verdict, step))
                if m.evidence is not None
                else m
                for m in moments
            ]
        html = render(
            summary, self._spec, self._stream, self.history, explained,
            faces=self._faces, model_card=model_card,
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

    def _moment(self, verdict: Verdict) -> Moment:
        start, end = (round(t * self._hz) for t in (verdict.t_start_s, verdict.t_end_s))
        portraits = self._portraits.get(-1 if verdict.face_id is None else verdict.face_id, ())
        middle = (start + end) // 2
        inside = [p for p in portraits if start <= p.token < end]
        portrait = min(inside, key=lambda p: abs(p.token - middle)) if inside else None
        return Moment(verdict, self._evidence(verdict.face_id, start, end), portrait)

    def _evidence(self, face_id: int | None, start: int, end: int) -> Evidence | None:
        kept = self._crops.get(face_id) if face_id is not None else None
        margin = self._stream.max_transport_tokens
        audio = self._sound.window(start - margin, end + margin, self._stream.max_gap_tokens)
        if kept is None or audio is None:
            return None
        gap = self._stream.max_gap_tokens
        have = {token: crop for token, crop in kept if start - gap <= token < end}
        tokens = np.array(sorted(have), np.int64)
        shown = nearest_before(np.arange(start, end), tokens, gap)
        if MISSING in shown:
            return None
        used = np.unique(shown)
        crops = np.stack([have[int(t)] for t in used])
        return Evidence(crops, np.searchsorted(used, shown), audio, margin)

    def _keep_portrait(self, token: int, face: Face, frame: Frame) -> None:
        import cv2

        kept = self._portraits.setdefault(face.track_id, deque())
        near = kept and token - kept[-1].token < round(PORTRAIT_EVERY_S * self._hz)
        if self._faces == NONE or near:
            return
        portrait = align(frame, face.landmarks, self._portrait_spec)  # [256, 256, 3]
        if self._faces == BLUR:
            portrait = blurred(portrait)
        fine, jpeg = cv2.imencode(".jpg", portrait[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
        if fine:
            kept.append(Portrait(token, jpeg.tobytes()))

    def _forget(self, before: int) -> None:
        for face, crops in list(self._crops.items()):
            while crops and crops[0][0] < before:
                crops.popleft()
            portraits = self._portraits.get(face, deque())
            while portraits and portraits[0].token < before:
                portraits.popleft()
            if not crops:
                del self._crops[face]
                self._portraits.pop(face, None)
        self._sound.forget_before(before)


class _SoundRing:
    """Tokens of the last seconds, on the clock that the session uses for them."""

    def __init__(self, spec: PairSpec) -> None:
        self._spec = spec.audio
        self._tokenizer = AudioTokenizer(spec.audio)
        self._at = 0  # position of the next sample
        self._started = False
        self._first = 0  # number of the first token with sound
        self._base = 0  # number of the first token kept
        self._kept: deque[np.ndarray[tuple[int], np.dtype[np.float32]]] = deque()  # [104] each

    def push(self, chunk: AudioChunk) -> None:
        rate = self._spec.sample_rate_hz
        error = round(chunk.t_s * rate) - self._at  # > 0: a gap, < 0: an overlap
        if not self._started:
            self._started = True
            self._first = -(-max(0, error) // self._spec.token_samples)
        elif abs(error) <= CLOCK_TOLERANCE_S * rate:
            error = 0
        for at in range(0, error, rate):
            self._take(np.zeros(min(rate, error - at), np.float32))
        self._take(chunk.samples[max(0, -error) :])

    def window(
        self, start: int, end: int, max_gap: int
    ) -> np.ndarray[tuple[int, int], np.dtype[np.float32]] | None:
        """Tokens [end - start, 104]; its ends may lie outside of what there is."""
        first, last = max(self._base, self._first), self._base + len(self._kept) - 1
        if first > last:
            return None
        wanted = np.clip(np.arange(start, end), first, last)
        return np.stack([self._kept[int(t) - self._base] for t in wanted])

    def forget_before(self, token: int) -> None:
        while self._kept and self._base < token:
            self._kept.popleft()
            self._base += 1

    def _take(self, samples: np.ndarray[tuple[int], np.dtype[np.float32]]) -> None:
        self._at += len(samples)
        self._kept.extend(self._tokenizer.push(samples).tokens)


def blurred(portrait: Frame) -> Frame:
    """portrait [H, W, 3] in BLUR_BLOCKS x BLUR_BLOCKS blocks of one colour each."""
    import cv2

    small = cv2.resize(portrait, (BLUR_BLOCKS, BLUR_BLOCKS), interpolation=cv2.INTER_AREA)
    size = portrait.shape[1], portrait.shape[0]
    return np.asarray(cv2.resize(small, size, interpolation=cv2.INTER_NEAREST), np.uint8)
