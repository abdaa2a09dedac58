# SPDX-License-Identifier: Apache-2.0
"""Streams of a model that follows faces itself: drawn faces, a mock of its two graphs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("cv2", reason="needs OpenCV")

import runtime.flow.pictures
from runtime.backends.base import FaceOutput
from runtime.command import load_model
from runtime.errors import UsageError
from runtime.faces import Face
from runtime.faces.follower import FollowedFace, Found, box_of
from runtime.faces.tracker import FaceTracker
from runtime.flow.driver import Stream, run, run_many
from runtime.flow.session import Session
from runtime.flow.sink import Collector
from runtime.judging.verdict import Verdict
from runtime.media import AudioChunk, Chunk, VideoChunk
from runtime.stream.__main__ import parser
from tests.runtime.doubles import SPEC, MockBackend, speech
from tests.runtime.faces.test_follower import Drawn, draw, encoder
from tests.runtime.flow.test_driver import Clip

FOLLOWING = replace(
    SPEC,
    model=replace(SPEC.model, geometry_dim=2),
    face=replace(SPEC.face, crop_px=64, stage="encoder"),
)


class MockFollower(MockBackend):
    """Its encoder reads the drawn points."""

    def __init__(self) -> None:
        super().__init__(FOLLOWING)
        self.followed: list[int] = []  # N of every call

    def follow(self, frames: np.ndarray) -> FaceOutput:
        self.followed.append(len(frames))
        features = self.encode(frames)
        self.encoded.pop()
        said = encoder(frames)
        return FaceOutput(features, said.geometry, said.points, said.presence)


class Film(Clip):
    """Anna, who moves, from ``x`` on; ``gone``: tokens without anybody."""

    def __init__(self, name: str, tokens: int, x: int = 200, gone: range = range(0)) -> None:
        super().__init__(name, tokens)
        self.x, self.gone = x, gone

    def picture(self, t: int) -> np.ndarray:
        return draw([] if t in self.gone else [Drawn("anna", self.x + t, 180)])

    def __iter__(self) -> Iterator[Chunk]:
        samples = speech(self._tokens)
        for t in range(self._tokens):
            yield VideoChunk(t / 25, lambda t=t: self.picture(t))
            yield AudioChunk(t / 25, samples[t * 640 : t * 640 + 640])


@pytest.fixture(autouse=True)
def _search(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(frame: np.ndarray) -> list[Found]:
        red = np.argwhere((frame[..., 0] > 250) & (frame[..., 1] < 50))
        if not len(red):
            return []
        y, x = red.mean(0)
        at = Drawn("anna", x + 20, y + 14).landmarks
        return [Found(box_of(at), 0.9, at)]

    monkeypatch.setattr(runtime.flow.pictures, "shared_search", lambda: find)


def timeless(verdicts: list[Verdict]) -> list[Verdict]:
    return [replace(v, latency_ms=0.0) for v in verdicts]


def test_each_picture_is_one_call_of_one_crop_and_nothing_is_encoded_twice() -> None:
    backend, kept = MockFollower(), Collector()
    summary = run(Film("a", 75), backend, sinks=[kept])
    assert backend.followed == [1] * 75
    assert backend.encoded == []
    assert summary.stats.crops == 75
    assert {v.face_id for v in kept.verdicts} == {0}
    assert len(kept.verdicts) == 6
    assert all(v.reason is None or str(v.reason) == "uncertain" for v in kept.verdicts)


def test_streams_share_calls_and_each_gets_what_it_gets_alone() -> None:
    films = [Film("a", 75), Film("b", 60, 240), Film("c", 70, 160, range(30, 34))]
    alone = []
    for film in films:
        kept = Collector()
        run(film, MockFollower(), sinks=[kept])
        alone.append(timeless(kept.verdicts))
    backend, sinks = MockFollower(), [Collector() for _ in films]
    run_many([Stream(f, [s]) for f, s in zip(films, sinks, strict=True)], backend)
    assert [timeless(s.verdicts) for s in sinks] == alone
    assert max(backend.followed) > 1


def test_how_pictures_and_sound_are_interleaved_changes_nothing() -> None:
    chunks = list(Film("a", 70))
    results = []
    for order in (chunks, sorted(chunks, key=lambda c: isinstance(c, VideoChunk))):
        session = Session(MockFollower(), source="a")
        verdicts: list[Verdict] = []
        for chunk in order:
            if isinstance(chunk, VideoChunk):
                verdicts += session.push_video(chunk.t_s, chunk.convert)
            else:
                verdicts += session.push_audio(chunk.t_s, chunk.samples)
        results.append(timeless(verdicts + session.finish()))
    assert results[0] == results[1]


def test_the_motion_of_the_mouth_is_the_change_of_the_geometry() -> None:
    seen: list[Face] = []

    def on_picture(_: float, __: object, faces: list[Face]) -> None:
        seen.extend(faces)

    session = Session(MockFollower(), source="a", on_picture=on_picture)
    film = Film("a", 10)
    for t in range(10):
        session.push_video(t / 25, film.picture(t))
    ring = session._pictures.rings[0]
    assert all(isinstance(face, FollowedFace) for face in seen)
    said = np.stack([face.geometry for face in seen if isinstance(face, FollowedFace)])
    expected = np.abs(np.diff(said, axis=0)).mean(1)
    np.testing.assert_allclose([ring.motions[t] for t in range(1, 9)], expected[:8], rtol=1e-5)
    np.testing.assert_array_equal(ring.features[4], seen[4].visual)


def test_dlibs_crops_are_no_crops_for_it() -> None:
    with pytest.raises(UsageError, match="follows faces itself"):
        FaceTracker(FOLLOWING.face)


@pytest.mark.parametrize(("asked", "spec"), [("dlib", FOLLOWING), ("encoder", SPEC)])
def test_another_stage_than_the_models_is_refused(
    asked: str, spec: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = MockFollower() if spec is FOLLOWING else MockBackend()
    monkeypatch.setattr("runtime.command.load_backend", lambda *_: backend)
    options = parser().parse_args(["--source", "x.mp4", "--faces", asked])
    with pytest.raises(UsageError, match=f"was trained on the crops of --faces (?!{asked})"):
        load_model(options)


@pytest.mark.parametrize("asked", [[], ["--faces", "encoder"]])
def test_the_models_own_stage_is_taken(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    backend = MockFollower()
    monkeypatch.setattr("runtime.command.load_backend", lambda *_: backend)
    assert load_model(parser().parse_args(["--source", "x.mp4", *asked])) is backend
