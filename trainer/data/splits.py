# SPDX-License-Identifier: Apache-2.0
"""Which clip trains, validates or tests: by person, never by clip.

Protocols
---------
``given``             what :mod:`trainer.forge` dealt
``subject-disjoint``  a seeded 70, 15 and 15 percent of the people; each fold is another draw
``1:1:1:1``           equally many clips of the four categories and five folds of people, after MRDF
                      (Zou et al., 2024; 400 train and 100 test clips a category on FakeAVCeleb):
                      the fold tests, and 15 percent of the other people validate.  MRDF validates
                      on its test clips; here they are not touched.
``all``               every clip tests, for a model trained elsewhere

A fake shows or sounds like a second person: the voice that was laid under, the face that was put
in.  A clip whose people stand in different parts would carry somebody across, so it is in no split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from runtime.errors import UsageError
from trainer.data.layouts import CATEGORIES

Row = Mapping[str, Any]  # of index.json

PROTOCOLS = GIVEN, SUBJECT_DISJOINT, ONE_TO_ONE, ALL = (
    "given",
    "subject-disjoint",
    "1:1:1:1",
    "all",
)
SPLITS = TRAIN, VAL, TEST = ("train", "val", "test")
FOLDS = 5
SHARE = 0.15  # of the people, for validation and for test


def assign(
    rows: Sequence[Row], protocol: str = GIVEN, fold: int = 0, seed: int = 0
) -> dict[str, str]:
    """file -> split; a row that is in no split has no entry.  A pure function of its arguments.

    Raises :class:`UsageError` for an unknown protocol or fold, and where there are too few people.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"no protocol named {protocol!r}; there are: {', '.join(PROTOCOLS)}")
    if not 0 <= fold < FOLDS:
        raise UsageError(f"--fold must be 0 to {FOLDS - 1}, not {fold}")
    if protocol == ALL:
        return {r["file"]: TEST for r in rows}
    if protocol == GIVEN:
        given = {r["file"]: r["split"] for r in rows if r["split"] is not None}
        if not given:
            raise UsageError(
                f"this set came without splits; choose --protocol {SUBJECT_DISJOINT} or "
                f"{ONE_TO_ONE}"
            )
        return given
    subjects = sorted({r["identity"] for r in rows})
    if protocol == SUBJECT_DISJOINT:
        order = _in_random_order(subjects, rows, np.random.default_rng([seed, fold]))
        return _by_people(rows, _in_shares(order))
    order = _in_random_order(subjects, rows, np.random.default_rng(seed))
    return _balanced(rows, _in_folds(order, rows, fold, seed), order, fold, seed)


def check_disjoint(rows: Iterable[Row], splits: Mapping[str, str]) -> None:
    """Raises :class:`UsageError` where somebody's face or voice is in two splits."""
    seen: dict[str, dict[str, str]] = {}  # person -> split -> a file
    for row in rows:
        split = splits.get(row["file"])
        if split is not None:
            for person in people(row):
                seen.setdefault(person, {}).setdefault(split, row["file"])
    crossing = {person: where for person, where in seen.items() if len(where) > 1}
    if crossing:
        person = min(crossing)
        where = "; ".join(f"{split}: {file}" for split, file in sorted(crossing[person].items()))
        raise UsageError(
            f"{len(crossing)} people are in two splits, e.g. {person} ({where}); "
            "mend the splits or let --protocol deal them"
        )


def people(row: Row) -> set[str]:
    """Whoever is seen or heard in a clip, as far as the set says."""
    keys = ("identity", "voice_identity", "swapped_identity")
    return {row[key] for key in keys if row.get(key) is not None}


def _in_random_order(names: Sequence[str], rows: Sequence[Row], rng: np.random.Generator) -> Any:
    """The names so that every slice holds each group (race, gender) in its share."""
    group_of = {r["identity"]: tuple(sorted(r["groups"].items())) for r in reversed(rows)}
    members: dict[tuple[Any, ...], list[str]] = {}
    for name in names:
        members.setdefault(group_of[name], []).append(name)
    place: dict[str, float] = {}
    for group in sorted(members):
        start = rng.random()
        for rank, i in enumerate(rng.permutation(len(members[group]))):
            place[members[group][i]] = (rank + start) / len(members[group])
    return sorted(names, key=lambda n: (place[n], n))


def _in_shares(order: list[str]) -> dict[str, str]:
    """person -> split, at least one person in each."""
    if len(order) < 3:
        raise UsageError(
            f"{len(order)} people cannot be split into train, val and test; three are the least"
        )
    share = max(1, round(SHARE * len(order)))
    names = [TEST] * share + [VAL] * share + [TRAIN] * (len(order) - 2 * share)
    return dict(zip(order, names, strict=True))


def _in_folds(order: list[str], rows: Sequence[Row], fold: int, seed: int) -> dict[str, str]:
    """person -> split: the fold tests, some of the others validate."""
    if len(order) < FOLDS:
        raise UsageError(
            f"{len(order)} people cannot be dealt into {FOLDS} folds; use --protocol "
            f"{SUBJECT_DISJOINT}"
        )
    parts = [[str(n) for n in part] for part in np.array_split(np.array(order), FOLDS)]
    others = sorted(n for i, part in enumerate(parts) if i != fold for n in part)
    others = _in_random_order(others, rows, np.random.default_rng([seed, fold]))
    val = set(others[: max(1, round(SHARE * len(others)))])
    return {
        **dict.fromkeys(parts[fold], TEST),
        **{n: VAL if n in val else TRAIN for n in others},
    }


def _by_people(rows: Sequence[Row], part_of: Mapping[str, str]) -> dict[str, str]:
    """file -> split where all people of a clip are in one part.

    Somebody who is only ever a voice or a swapped face goes where most of the clips are.
    """
    where: dict[str, Counter[str]] = {}
    for row in rows:
        for person in people(row) - part_of.keys():
            where.setdefault(person, Counter())[part_of[row["identity"]]] += 1
    whole = dict(part_of)
    for person, count in where.items():
        whole[person] = max(SPLITS, key=count.__getitem__)
    splits = {}
    for row in rows:
        parts = {whole[person] for person in people(row)}
        if len(parts) == 1:
            splits[row["file"]] = parts.pop()
    return splits


def _balanced(
    rows: Sequence[Row], part_of: Mapping[str, str], order: list[str], fold: int, seed: int
) -> dict[str, str]:
    """Equally many clips of each category in each split, dealt person by person in turn."""
    splits = _by_people(rows, part_of)
    chosen: dict[str, str] = {}
    for split in SPLITS:
        queues: dict[str, dict[str, list[str]]] = {c: {} for c in CATEGORIES}
        for row in rows:
            if splits.get(row["file"]) == split:
                queues[row["category"]].setdefault(row["identity"], []).append(row["file"])
        counts = {c: sum(map(len, by_person.values())) for c, by_person in queues.items()}
        least = min(CATEGORIES, key=lambda c: counts[c])
        if not counts[least]:
            raise UsageError(
                f"no {least} clip is left for {split} in fold {fold}; use more clips or "
                f"--protocol {SUBJECT_DISJOINT}"
            )
        for number, category in enumerate(CATEGORIES):
            rng = np.random.default_rng([seed, number])
            for person in order:  # every person's, in the same order in every fold
                files = sorted(queues[category].get(person, []))
                queues[category][person] = [files[i] for i in rng.permutation(len(files))]
            longest = max(len(files) for files in queues[category].values())
            in_turn = [
                queues[category][person][turn]
                for turn in range(longest)
                for person in order
                if turn < len(queues[category][person])
            ]
            chosen |= dict.fromkeys(in_turn[: counts[least]], split)
    return chosen
