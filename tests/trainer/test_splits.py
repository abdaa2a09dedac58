# SPDX-License-Identifier: Apache-2.0
"""Splits by person: nobody crosses, equal categories, five folds that cover everybody."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import pytest

from runtime.errors import UsageError
from trainer.data.layouts import CATEGORIES
from trainer.data.splits import FOLDS, PROTOCOLS, SPLITS, assign, check_disjoint, people

RACES = ("African", "Asian (East)", "Asian (South)", "Caucasian (American)", "Caucasian (European)")


def row(file: str, identity: str, category: str = CATEGORIES[0], **more: Any) -> dict[str, Any]:
    return {
        "file": file,
        "identity": identity,
        "voice_identity": identity,
        "swapped_identity": None,
        "category": category,
        "groups": {},
        "split": None,
        **more,
    }


def fakeavceleb(subjects: int = 200, fakes: int = 12) -> list[dict[str, Any]]:
    """Its shape: one RARV and RVFA clip a subject, many fakes with others of the same group."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(subjects):
        groups = {"race": RACES[i % 5], "gender": "men" if i % 10 < 5 else "women"}
        alike = [k for k in range(subjects) if k % 10 == i % 10]
        rows.append(row(f"a/{i}", f"id{i}", CATEGORIES[0], groups=groups))
        rows.append(row(f"b/{i}", f"id{i}", CATEGORIES[1], groups=groups))
        for k in range(fakes):
            target, voice = (f"id{rng.choice(alike)}" for _ in range(2))
            rows.append(
                row(f"c/{i}/{k}", f"id{i}", CATEGORIES[2], groups=groups, swapped_identity=target)
            )
            rows.append(
                row(f"d/{i}/{k}", f"id{i}", CATEGORIES[3], groups=groups, voice_identity=voice)
            )
    return rows


ROWS = fakeavceleb()


class TestEveryProtocol:
    @pytest.mark.parametrize("fold", range(FOLDS))
    @pytest.mark.parametrize("protocol", ["subject-disjoint", "1:1:1:1"])
    def test_nobody_crosses_and_every_split_has_people(self, protocol: str, fold: int):
        splits = assign(ROWS, protocol, fold)
        check_disjoint(ROWS, splits)
        assert set(splits.values()) == set(SPLITS)
        by_split = {s: set() for s in SPLITS}
        for r in ROWS:
            if r["file"] in splits:
                by_split[splits[r["file"]]] |= people(r)
        for a, b in [("train", "val"), ("train", "test"), ("val", "test")]:
            assert not by_split[a] & by_split[b]

    @pytest.mark.parametrize("protocol", ["subject-disjoint", "1:1:1:1"])
    def test_it_depends_on_the_seed_and_on_nothing_else(self, protocol: str):
        shuffled = [ROWS[i] for i in np.random.default_rng(1).permutation(len(ROWS))]
        assert assign(ROWS, protocol, 1, 5) == assign(shuffled, protocol, 1, 5)
        assert assign(ROWS, protocol, 1, 5) != assign(ROWS, protocol, 1, 6)

    def test_all_is_for_testing(self):
        assert set(assign(ROWS, "all").values()) == {"test"}
        assert len(assign(ROWS, "all")) == len(ROWS)

    def test_an_unknown_protocol_lists_the_known_ones(self):
        with pytest.raises(UsageError, match="no protocol named '1:1'; there are: given, subject"):
            assign(ROWS, "1:1")

    @pytest.mark.parametrize("fold", [-1, 5])
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_a_fold_that_does_not_exist_is_refused(self, protocol: str, fold: int):
        with pytest.raises(UsageError, match="--fold must be 0 to 4"):
            assign(ROWS, protocol, fold)


class TestGiven:
    def test_what_was_dealt_is_kept_and_the_rest_left_out(self):
        rows = [row("a", "x", split="train"), row("b", "y", split="test"), row("c", "z")]
        assert assign(rows) == {"a": "train", "b": "test"}

    def test_a_set_without_splits_names_the_protocols(self):
        with pytest.raises(UsageError, match="choose --protocol subject-disjoint or 1:1:1:1"):
            assign(ROWS)


class TestSubjectDisjoint:
    def test_shares_are_70_15_15_of_the_people_and_of_each_group(self):
        rows = [r for r in ROWS if r["category"] == CATEGORIES[0]]
        splits = assign(rows, "subject-disjoint")
        assert collections.Counter(splits.values()) == {"train": 140, "val": 30, "test": 30}
        of_race = collections.Counter(
            r["groups"]["race"] for r in rows if splits[r["file"]] == "test"
        )
        assert set(of_race.values()) <= {5, 6, 7}

    def test_clips_that_carry_somebody_across_are_in_no_split(self):
        rows = [row(f"{i}", f"id{i}") for i in range(6)]
        splits = assign(rows, "subject-disjoint")
        trained = next(f"id{f}" for f, s in splits.items() if s == "train")
        tested = next(f"id{f}" for f, s in splits.items() if s == "test")
        crossing = row("x", trained, voice_identity=tested)
        assert assign([*rows, crossing], "subject-disjoint") == splits

    def test_somebody_who_is_only_ever_a_voice_goes_where_most_of_its_clips_are(self):
        rows = [row(f"{i}", f"id{i}") for i in range(6)]
        splits = assign(rows, "subject-disjoint")
        trained = [f"id{f}" for f, s in splits.items() if s == "train"]
        tested = next(f"id{f}" for f, s in splits.items() if s == "test")
        lent = [row(f"v{i}", p, voice_identity="zoe") for i, p in enumerate([*trained, tested])]
        again = assign([*rows, *lent], "subject-disjoint")
        assert {again.get(r["file"]) for r in lent[:-1]} == {"train"}
        assert lent[-1]["file"] not in again

    def test_two_people_are_too_few(self):
        with pytest.raises(UsageError, match="2 people cannot be split"):
            assign([row("a", "x"), row("b", "y")], "subject-disjoint")


class TestOneToOne:
    def test_the_four_categories_are_equal_in_every_split(self):
        splits = assign(ROWS, "1:1:1:1", 2)
        counts = collections.Counter(
            (splits[r["file"]], r["category"]) for r in ROWS if r["file"] in splits
        )
        for split in SPLITS:
            assert len({counts[split, c] for c in CATEGORIES}) == 1
        assert counts["test", CATEGORIES[0]] == 40  # a fifth of 200 people
        assert counts["train", CATEGORIES[0]] == 136
        assert counts["val", CATEGORIES[0]] == 24

    def test_every_person_is_tested_in_exactly_one_fold(self):
        tested: collections.Counter[str] = collections.Counter()
        for fold in range(FOLDS):
            splits = assign(ROWS, "1:1:1:1", fold)
            tested.update(
                {r["identity"] for r in ROWS if splits.get(r["file"]) == "test"},
            )
        assert set(tested.values()) == {1}
        assert len(tested) == 200

    def test_fakes_come_from_as_many_people_as_possible(self):
        splits = assign(ROWS, "1:1:1:1", 0)
        per_person = collections.Counter(
            r["identity"]
            for r in ROWS
            if splits.get(r["file"]) == "train" and r["category"] == CATEGORIES[2]
        )
        assert max(per_person.values()) <= 2
        assert len(per_person) >= 0.9 * 136

    def test_a_category_that_runs_out_is_named(self):
        rows = [r for r in ROWS if r["category"] != CATEGORIES[1]]
        with pytest.raises(UsageError, match="no RealVideo-FakeAudio clip is left for train"):
            assign(rows, "1:1:1:1")

    def test_four_people_cannot_be_five_folds(self):
        with pytest.raises(UsageError, match="4 people cannot be dealt into 5 folds"):
            assign(fakeavceleb(4), "1:1:1:1")


class TestCheck:
    @pytest.mark.parametrize("key", ["identity", "voice_identity", "swapped_identity"])
    def test_a_person_in_two_splits_is_named_with_the_files(self, key: str):
        rows = [row("one.mp4", "x"), {**row("two.mp4", "y"), "voice_identity": None, key: "x"}]
        with pytest.raises(
            UsageError, match=r"1 people are in two splits, e\.g\. x \(test: two.*train: one\.mp4"
        ):
            check_disjoint(rows, {"one.mp4": "train", "two.mp4": "test"})

    def test_an_unknown_voice_crosses_nothing(self):
        rows = [row("1", "x", voice_identity=None), row("2", "y", voice_identity=None)]
        check_disjoint(rows, {"1": "train", "2": "test"})

    def test_clips_in_no_split_do_not_count(self):
        check_disjoint([row("1", "x"), row("2", "x")], {"1": "train"})
