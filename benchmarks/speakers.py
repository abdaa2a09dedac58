# SPDX-License-Identifier: Apache-2.0
"""How often the speaker is found, over all pairs of people: ``python -m benchmarks.speakers``.

    python -m benchmarks.speakers --clips FOLDER [--output J.json]

FOLDER holds one clip a person.  For every ordered pair (who speaks, who is beside) both faces get
the speaker's sound and :func:`runtime.judging.speaker.find_speaker` decides, window by window, with
the model, offsets and rules of a session.  Four settings, from everyday to hard:

- ``listener``: the other one's mouth is as still as in the first 0.36 s of the clip, to and fro;
- ``both talk``: the other one says a sentence of their own;
- ``replaced voice, listener`` and ``replaced voice, both talk``: the sound is a third person's, so
  no lips fit; right is then the one who moves (``listener``), or nobody (``both talk``).

Each clip is decoded and its crops are encoded once; that two faces in one picture are followed and
judged so is what ``tests/runtime/judging/test_speaker.py`` holds.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.environment import describe
from runtime.backends import Backend, load_backend
from runtime.command import Parser, guarded
from runtime.errors import UsageError
from runtime.faces import Face
from runtime.faces.follower import FollowedFace
from runtime.faces.stage import face_stage
from runtime.files import write_json
from runtime.interrupt import check, leave
from runtime.judging.offset import OffsetTracker, lag_curve
from runtime.judging.speaker import Candidate, find_speaker, mouth, mouth_motion
from runtime.media.local_files import is_media
from runtime.media.open import MEDIA_SUFFIXES
from runtime.models import DEFAULT_PRESET, model_files
from runtime.overwrites import refuse_overwrites
from runtime.sound.tokens import AudioTokens, tokenize

STILL_FRAMES = 9  # of a clip's start, before anything is said


@dataclass(frozen=True)
class Seen:
    """A clip's one face, picture by picture."""

    features: NDArray[np.float32]  # [n, C]
    mouths: NDArray[np.float32]  # [n, ...], whose change is the mouth's motion

    @property
    def motion(self) -> NDArray[np.float32]:
        """[n]"""
        changes = (mouth_motion(a, b) for a, b in itertools.pairwise(self.mouths))
        return np.array([0.0, *changes], np.float32)

    def still(self) -> Seen:
        """The first pictures to and fro, as long as the clip."""
        n = min(STILL_FRAMES, len(self.features))
        there_and_back = [*range(n), *range(n - 2, 0, -1)]
        shown = [there_and_back[i % len(there_and_back)] for i in range(len(self.features))]
        return Seen(self.features[shown], self.mouths[shown])


@dataclass(frozen=True)
class Person:
    features: NDArray[np.float32]  # [n, C]
    motion: NDArray[np.float32]  # [n]


def load(path: Path, backend: Backend) -> tuple[Seen, AudioTokens]:
    """A clip's one face as the model's stage shows it, and its sound."""
    from runtime.media import VideoChunk
    from runtime.media.file import FileSource

    tracker = face_stage(backend.spec.face, backend.follow)
    shown: list[Face] = []
    pieces = []
    with FileSource(path, sample_rate_hz=backend.spec.audio.sample_rate_hz) as source:
        for chunk in source:
            check()
            if isinstance(chunk, VideoChunk):
                faces = tracker.update(chunk.frame, len(shown))
                if len(faces) != 1:
                    raise UsageError(f"{path}: one face throughout is needed, found {len(faces)}")
                shown += faces
            else:
                pieces.append(chunk.samples)
    sound = tokenize(np.concatenate(pieces), backend.spec.audio)
    followed = [face for face in shown if isinstance(face, FollowedFace)]
    if followed:
        features = np.stack([face.visual for face in followed])
        return Seen(features, np.stack([face.geometry for face in followed])), sound
    crops = np.stack([face.crop for face in shown])
    return Seen(backend.encode(crops), np.stack([mouth(crop) for crop in crops])), sound


def person(seen: Seen) -> Person:
    return Person(seen.features, seen.motion)


def decide(people: Sequence[Person], sound: AudioTokens, backend: Backend) -> list[int | None]:
    """Of each window the index of who speaks, or None."""
    stream = backend.spec.stream
    offsets = [OffsetTracker(stream) for _ in people]
    total = min(len(sound.tokens), *(len(p.features) for p in people))
    found: list[int | None] = []
    for start in range(0, total - stream.window_tokens + 1, stream.hop_tokens):
        candidates = []
        for who, offset in zip(people, offsets, strict=True):
            # as a session does it: the sound is taken at the offset found so far
            at = min(max(0, start + offset.compensation_tokens), total - stream.window_tokens)
            heard = slice(at, at + stream.window_tokens)
            window = slice(start, start + stream.window_tokens)
            out = backend.fuse(who.features[window][None], sound.tokens[heard][None])
            offset.update(lag_curve(out.align_v[0], out.align_a[0], stream.max_lag_tokens))
            candidates.append(
                Candidate(
                    offset.confidence, offset.confident, who.motion[window], sound.level_dbfs[heard]
                )
            )
        found.append(find_speaker(candidates, stream.max_transport_tokens))
    return found


def measure(folder: Path, backend: Backend) -> dict[str, Any]:
    """Counts for each setting; JSON-ready."""
    paths = sorted(p for p in folder.iterdir() if is_media(p, MEDIA_SUFFIXES))
    if len(paths) < 3:
        raise UsageError(f"{folder}: at least three clips of one person each are needed")
    loaded = [load(path, backend) for path in paths]
    talking = [person(seen) for seen, _ in loaded]
    listening = [person(seen.still()) for seen, _ in loaded]
    sounds = [sound for _, sound in loaded]
    settings: dict[str, dict[str, int]] = {}
    for a, b in itertools.permutations(range(len(paths)), 2):
        check()
        third = next(i for i in range(len(paths)) if i not in (a, b))
        for name, other, sound, right in (
            ("listener", listening[b], sounds[a], 0),
            ("both talk", talking[b], sounds[a], 0),
            ("replaced voice, listener", listening[b], sounds[third], 0),
            ("replaced voice, both talk", talking[b], sounds[third], None),
        ):
            found = decide([talking[a], other], sound, backend)
            counts = settings.setdefault(name, {"windows": 0, "right": 0, "nobody": 0})
            counts["windows"] += len(found)
            counts["right"] += sum(f == right for f in found)
            counts["nobody"] += sum(f is None for f in found)
    return {"people": len(paths), "pairs": len(paths) * (len(paths) - 1), "settings": settings}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of :mod:`runtime.errors`."""
    options = Parser(
        prog="python -m benchmarks.speakers", description="How often the speaker is found."
    )
    options.add_argument("--clips", type=Path, required=True, help="one clip a person")
    options.add_argument("--model", default=DEFAULT_PRESET, help="a preset, or a pair's folder")
    options.add_argument("--output", type=Path, metavar="FILE.json")
    return guarded(lambda: _run(options.parse_args(argv)))


def _run(options: argparse.Namespace) -> int:
    if not options.clips.is_dir():
        raise UsageError(f"{options.clips}: no such folder")
    refuse_overwrites(
        [options.output and ("--output", options.output)],
        [*options.clips.iterdir(), *model_files(options.model)],
        options=vars(options),
    )
    with load_backend(options.model) as backend:
        result = measure(options.clips, backend)
        model_id = backend.spec.model_id
    print(f"{result['pairs']} ordered pairs of {result['people']} people, {model_id}")
    for name, n in result["settings"].items():
        print(f"{name:<28}{n['windows']:>5} windows: right {n['right'] / n['windows']:.1%}, "
              f"nobody found {n['nobody'] / n['windows']:.1%}")  # fmt: skip
    if options.output is not None:
        write_json(
            options.output,
            {"benchmark": "speakers", "schema_version": 1, **describe(), "model_id": model_id,
             **result},
        )  # fmt: skip
        print(f"written: {options.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    leave(main)
