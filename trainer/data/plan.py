# SPDX-License-Identifier: Apache-2.0
"""Which forgeries are made of which genuine clips: splits, methods, donors; nothing is read here.

Identities are split first, and every donor comes from the same split.  The clips that a method is
given in a split are dealt to each other as its donors, so within a method every face and every
voice is lent as often as it is used up, and none is a sign of forgery.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runtime.errors import UsageError
from trainer.data.layouts import CATEGORIES, FAKE_AUDIO, FAKE_BOTH, FAKE_VIDEO
from trainer.data.nuisance import MAX_TRANSPORT_MS, Nuisance, draw_nuisance

# category -> (picture method, sound method), dealt in turn
METHODS: dict[str, tuple[tuple[str, str], ...]] = {
    FAKE_AUDIO: (
        ("none", "replaced"),
        ("none", "shifted"),
        ("none", "vocoded"),
        ("none", "griffin_lim"),
        ("none", "tts"),
    ),
    FAKE_VIDEO: (("self_blend", "none"), ("mouth_replay", "none"), ("face_swap", "none")),
    FAKE_BOTH: (
        ("mouth_replay", "dubbed"),
        ("self_blend", "vocoded"),
        ("face_swap", "replaced"),
        ("mouth_replay", "tts"),
        ("self_blend", "griffin_lim"),
        ("face_swap", "vocoded"),
    ),
}
ALL_METHODS = tuple(sorted({m for pairs in METHODS.values() for p in pairs for m in p} - {"none"}))
BALANCE = (1, 1, 1, 1)  # clips of each category for every genuine one
SYNTHETIC_VOICE = frozenset({"vocoded", "griffin_lim", "tts", "dubbed"})
OTHERS_VOICE = frozenset({"replaced", "dubbed"})  # the donor's


@dataclass(frozen=True)
class Piece:
    """One genuine clip, or one piece of a long one."""

    path: str
    identity: str
    split: str
    start_s: float
    duration_s: float
    name: str  # unique within its identity


@dataclass
class Forgery:
    """One file to write, and afterwards its record."""

    file: str  # relative to the output folder
    category: str
    picture: str  # none | self_blend | face_swap | mouth_replay
    sound: str  # none | replaced | shifted | vocoded | griffin_lim | tts | dubbed
    seed: int
    source: Piece
    nuisance: Nuisance
    face_donor: Piece | None = None  # of a face or a mouth
    voice_donor: Piece | None = None
    params: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """A line of forge.json.  ``matched`` is whether lips and voice belong together."""
        donor = self.face_donor or self.voice_donor
        voice: str | None = self.source.identity
        if self.sound == "tts":
            voice = None  # nobody's
        elif self.sound in OTHERS_VOICE and self.voice_donor:
            voice = self.voice_donor.identity
        swapped = self.face_donor.identity if self.face_donor else None
        return {
            "file": self.file,
            "category": self.category,
            "method": f"{self.picture}+{self.sound}" if self.category != CATEGORIES[0] else "real",
            "identity": self.source.identity,
            "voice_identity": voice,
            "swapped_identity": swapped if swapped != self.source.identity else None,
            "clip": self.source.name,
            "donor": donor.identity if donor else None,
            "donor_clip": donor.name if donor else None,
            "voice_donor_clip": self.voice_donor.name if self.voice_donor else None,
            "split": self.source.split,
            "fake_video": self.picture != "none",
            "fake_audio": self.sound != "none",
            "synthetic_voice": self.sound in SYNTHETIC_VOICE,
            "matched": _matched(self.picture, self.sound),
            "seed": self.seed,
            "params": {
                **self.params,
                "transport_ms": self.nuisance.transport_ms,
                "nuisance": self.nuisance.record(),
            },
        }


def _matched(picture: str, sound: str) -> bool:
    if picture == "mouth_replay":
        return sound == "dubbed"
    return sound in ("none", "vocoded", "griffin_lim")


def assign_splits(
    identities: list[str], *, val: list[str] | None, test: list[str] | None, seed: int
) -> dict[str, str]:
    """identity -> train, val or test; by default a seeded 15 and 15 percent, at least one each.

    Fewer than three identities cannot be split by identity: all of them train, and the caller
    says so.  Raises :class:`UsageError` for a name that is no identity or stands in both lists.
    """
    if val is not None or test is not None:
        val, test = val or [], test or []
        unknown = sorted((set(val) | set(test)) - set(identities))
        if unknown:
            known = ", ".join(identities[:12])
            raise UsageError(f"no identity named {', '.join(unknown)}; there are: {known}")
        if set(val) & set(test):
            raise UsageError(f"in --val and --test: {', '.join(sorted(set(val) & set(test)))}")
        return {i: "val" if i in val else "test" if i in test else "train" for i in identities}
    if len(identities) < 3:
        return dict.fromkeys(identities, "train")
    order = list(np.random.default_rng(seed).permutation(identities))
    share = max(1, round(0.15 * len(order)))
    names = ["test"] * share + ["val"] * share + ["train"] * (len(order) - 2 * share)
    return {str(i): s for i, s in zip(order, names, strict=True)}


def plan(
    pieces: list[Piece],
    *,
    per_category: int = 1,
    per_identity: int = 1,
    balance: Sequence[int] = BALANCE,
    methods: Sequence[str] = ALL_METHODS,
    max_transport_ms: float = MAX_TRANSPORT_MS,
    seed: int = 0,
) -> list[Forgery]:
    """Every file of the set, donors dealt; a pure function of its arguments.

    Each piece is taken ``per_category`` times, oftener where its speaker has so few pieces that
    ``per_identity`` would not be reached; each time gives ``balance`` files of the four categories.
    Raises :class:`UsageError` where ``methods`` leave a category that is asked for empty.
    """
    dealt = _chosen(methods, balance)
    own: dict[str, int] = {}
    for piece in pieces:
        own[piece.identity] = own.get(piece.identity, 0) + 1
    jobs: list[Forgery] = []
    for category, copies in zip(CATEGORIES, balance, strict=True):
        for i, piece in enumerate(pieces):
            for k in range(max(per_category, math.ceil(per_identity / own[piece.identity]))):
                for c in range(copies):
                    take = k * max(balance) + c
                    turn = (i + k) * copies + c
                    picture, sound = dealt[category][turn % len(dealt[category])]
                    light = np.random.default_rng(_digest(seed, piece.identity, piece.name, take))
                    nuisance = draw_nuisance(light, max_transport_ms)
                    jobs.append(_forgery(piece, category, picture, sound, take, nuisance, seed))
    return _deal_donors(jobs, seed)


def _chosen(methods: Sequence[str], balance: Sequence[int]) -> dict[str, list[tuple[str, str]]]:
    """category -> the pairs of methods that are dealt."""
    unknown = sorted(set(methods) - set(ALL_METHODS))
    if unknown:
        known = ", ".join(ALL_METHODS)
        raise UsageError(f"no method named {', '.join(unknown)}; there are: {known}")
    if len(balance) != len(CATEGORIES) or min(balance) < 0 or balance[0] < 1:
        raise UsageError(
            "--balance wants four whole numbers as in 1:1:1:1, the first (genuine) at least 1"
        )
    allowed = {"none", *methods}
    dealt = {CATEGORIES[0]: [("none", "none")]}
    for (category, pairs), copies in zip(METHODS.items(), balance[1:], strict=True):
        dealt[category] = [p for p in pairs if allowed >= set(p)]
        if copies and not dealt[category]:
            raise UsageError(
                f"--methods leaves {category} empty; name more, or set its share in --balance to 0"
            )
    return dealt


def _forgery(
    piece: Piece, category: str, picture: str, sound: str, take: int, nuisance: Nuisance, seed: int
) -> Forgery:
    suffix = "" if category == CATEGORIES[0] else f"_{picture}-{sound}"
    file = f"{category}/Unknown/unknown/{piece.identity}/{piece.name}{suffix}_{take}.mp4"
    return Forgery(file, category, picture, sound, _digest(seed, file), piece, nuisance)


def _digest(*parts: object) -> int:
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _deal_donors(jobs: list[Forgery], seed: int) -> list[Forgery]:
    """Fills in the donors; what finds none gets the next method that needs none."""
    groups: dict[tuple[str, ...], list[Forgery]] = {}
    for job in jobs:
        key: tuple[str, ...] = (job.source.split, job.category, job.picture, job.sound)
        groups.setdefault(key, []).append(job)
    for key, group in sorted(groups.items(), key=lambda item: item[0]):
        rng = np.random.default_rng(_digest(seed, *key))
        _, _, picture, sound = key
        if picture == "mouth_replay":  # the mouth stays the speaker's own, as in lip-sync forgeries
            by_speaker: dict[str, list[Forgery]] = {}
            for job in group:
                by_speaker.setdefault(job.source.identity, []).append(job)
            for own in by_speaker.values():
                for job, donor in zip(own, rotation(own, rng), strict=True):
                    job.face_donor = donor or job.source  # else another moment of the same clip
        elif picture == "face_swap":
            for job, donor in zip(group, rotation(group, rng), strict=True):
                job.face_donor = donor
                if donor is None:
                    job.picture = "self_blend"
        if sound == "dubbed":
            for job in group:
                job.voice_donor = job.face_donor
        elif sound == "replaced":
            for job, donor in zip(group, rotation(group, rng), strict=True):
                job.voice_donor = donor
                if donor is None:
                    job.sound = "shifted"
    renamed = []
    for job in jobs:
        take = int(job.file.removesuffix(".mp4").rsplit("_", 1)[1])
        named = _forgery(job.source, job.category, job.picture, job.sound, take, job.nuisance, seed)
        named.face_donor, named.voice_donor = job.face_donor, job.voice_donor
        renamed.append(named)
    return renamed


def rotation(jobs: list[Forgery], rng: np.random.Generator) -> list[Piece | None]:
    """A donor for each job, every source being lent exactly as often as it is there.

    The sources, in random order but speaker by speaker, are turned by the size of the largest
    speaker: as many as can be get another person's face or voice, the rest another clip of the same
    person.  None where that would be the clip itself.
    """
    by_speaker: dict[str, list[int]] = {}
    for i in rng.permutation(len(jobs)):
        by_speaker.setdefault(jobs[int(i)].source.identity, []).append(int(i))
    order = [i for name in sorted(by_speaker) for i in by_speaker[name]]
    step = max(len(own) for own in by_speaker.values())
    if step == len(order):  # one speaker alone
        step = 1
    donors: list[Piece | None] = [None] * len(jobs)
    for at, i in enumerate(order):
        donor = jobs[order[(at + step) % len(order)]].source
        donors[i] = donor if donor != jobs[i].source else None
    return donors
