# SPDX-License-Identifier: Apache-2.0
"""trainer.face.crops and trainer.face.batches: what a step of training sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.errors import MediaError, UsageError
from runtime.faces.align import align, template
from runtime.spec import FACE_POINTS, FaceSpec
from tests.trainer.face_double import SKIN, draw, environment, write_film
from trainer.face import crops as crops_module
from trainer.face.batches import Batches, Split, fit_targets, person_weights, split
from trainer.face.crops import ALIGNED, CropSet, build, points_in_picture, through_h264
from trainer.face.sources import Item, list_items, pictures
from trainer.face.teacher import answers_path, ask_all, load_answers
from trainer.face.throw import cut

FACE = FaceSpec()
OPENINGS = [float(v) for v in 0.15 + 0.15 * np.sin(np.arange(24) / 3)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Item], Path]:
    """Items with the teacher's answers: three people in two sources, four photographs."""
    root = tmp_path_factory.mktemp("world")
    for name, width in (("one/ann/a", 60), ("one/bob/b", 48), ("two/cat/c", 54)):
        write_film(root / "clips" / f"{name}.mp4", OPENINGS, width=width, shift=width / 4)
    for number in range(4):
        path = root / "photos" / f"p{number}.png"
        path.parent.mkdir(exist_ok=True)
        picture = draw((90, 90), (45, 45), 50.0, 0.05 * number)
        cv2.imwrite(str(path), picture[..., ::-1])
    small = draw((60, 60), (30, 30), 20.0, 0.1)
    cv2.imwrite(str(root / "photos" / "small.png"), small[..., ::-1])
    items = list_items(root / "clips", "clip")[0] + list_items(root / "photos", "photo")[0]
    assert ask_all(items, root / "work", environment(root / "teacher")) == {}
    return items, root / "work"


@pytest.fixture(scope="module")
def crops(world: tuple[list[Item], Path]) -> CropSet:
    return build(*world, FACE)[0]


class TestCrops:
    def test_those_of_an_item_are_its_pictures_in_order(self, world, crops):
        assert len(crops) == 3 * len(OPENINGS) + 4
        assert [crops.items[i].file for i in np.unique(crops.item)][:2] == [
            "one/ann/a.mp4",
            "one/bob/b.mp4",
        ]
        assert crops.token[: len(OPENINGS)].tolist() == list(range(len(OPENINGS)))

    def test_a_face_too_small_to_teach_is_named(self, world):
        assert build(*world, FACE)[1] == {"small.png": "no face of 28 px"}

    def test_they_show_what_the_runtime_would_cut(self, world, crops):
        """To the blur of one resampling more."""
        items, work = world
        answers = load_answers(answers_path(work, items[0]))
        picture = next(iter(pictures(items[0])))
        assert answers is not None
        assert picture is not None
        aligned = points_in_picture(answers.landmarks[0])[ALIGNED]
        expected = align(picture, aligned, FACE).astype(int)
        found = cut(crops.crop(0), crops.nominal(), FACE.crop_px).astype(int)
        assert np.abs(found - expected).mean() < 3.0

    def test_their_points_lie_on_the_template_and_on_the_lips(self, crops):
        points = crops.points[0] @ crops.nominal()[:, :2].T + crops.nominal()[:, 2]
        np.testing.assert_allclose(points[ALIGNED], template(FACE), atol=3.0)
        crop = cut(crops.crop(0), crops.nominal(), FACE.crop_px)
        lips = points[[FACE_POINTS.index("upper_lip_5"), FACE_POINTS.index("lower_lip_5")]]
        inside = crop[round(lips.mean(0)[1]), round(lips.mean(0)[0])]
        assert inside.max() < 90  # the drawn mouth is dark

    def test_the_coded_ones_are_the_same_pictures_worse(self, crops):
        plain, coded = crops.crop(5).astype(int), crops.crop(5, coded=True).astype(int)
        assert 0.5 < np.abs(plain - coded).mean() < 25

    def test_crops_without_a_face_do_not_show_all_of_one(self, crops):
        assert len(crops.negative_item) >= 3
        for number in range(len(crops.negative_item)):
            shown = cut(crops.negative(number), crops.nominal(), FACE.crop_px).astype(int)
            skin = np.abs(shown - SKIN).max(-1) < 60
            rows, columns = skin.any(1).mean(), skin.any(0).mean()
            middle = skin[20:44, 20:44].mean()
            assert min(rows, columns) < 0.75 or middle < 0.5 or skin.mean() > 0.9

    def test_nothing_is_cut_twice_until_the_file_changes(self, world, crops, monkeypatch):
        items, work = world
        done: list[str] = []
        known = crops_module._cut
        monkeypatch.setattr(
            crops_module, "_cut", lambda item, *a: done.append(item.file) or known(item, *a)
        )
        build(items, work, FACE)
        assert done == []
        items[1].path.touch()  # a copy of the same is the same
        build(items, work, FACE)
        assert done == []
        with items[1].path.open("ab") as file:
            file.write(b"\0")  # still the same film
        dropped = build(items, work, FACE)[1]  # answers about another file are none
        assert dropped[items[1].file] == "the teacher was not asked"
        ask_all(items, work, work.parent / "teacher")
        again, _ = build(items, work, FACE)
        assert done == [items[1].file]
        np.testing.assert_array_equal(again.crop(30), crops.crop(30))

    def test_crops_of_another_size_are_others(self, world, tmp_path):
        items, work = world
        (tmp_path / "answers").symlink_to(work / "answers")
        wider = build(items[:1], tmp_path, replace(FACE, crop_px=96))[0]
        assert wider.crop(0).shape == (224, 224, 3)

    def test_without_any_face_there_is_nothing_to_learn_from(self, world, tmp_path):
        with pytest.raises(MediaError, match="no face to learn from"):
            build([world[0][0]], tmp_path, FACE)


def test_h264_gives_back_every_picture():
    frames = [draw((48, 64), (32, 24), 30.0, 0.02 * i) for i in range(7)]
    back = list(through_h264(frames, 30))
    assert len(back) == 7
    assert all(np.abs(a.astype(int) - b).mean() < 40 for a, b in zip(frames, back, strict=True))


def item(source: str, person: str, kind: str = "clip") -> Item:
    file = f"{source}/{person}.x"
    return Item(Path(file), file, kind, source, person)  # type: ignore[arg-type]


class TestSplit:
    def test_a_source_is_held_out_whole_and_its_people_teach_nowhere(self):
        items = [item("a", "1"), item("a", "2"), item("b", "2"), item("b", "3")]
        assert split(items, hold_out=["a"]) == Split(train=[3], people=[], sources=[0, 1])

    def test_who_is_left_out_is_in_no_part(self):
        items = [item("a", "1"), item("b", "1"), item("b", "2"), item("b", "3")]
        found = split(items, hold_out=["a"], left_out=["1", "b/3.x"])
        assert found == Split(train=[2], people=[], sources=[])

    def test_people_are_held_out_by_their_names_alone(self):
        items = [item("a", str(n)) for n in range(200)]
        found = split(items, hold_out_people=0.2)
        assert 25 < len(found.people) < 55
        backwards = split(items[::-1], hold_out_people=0.2)
        assert {items[::-1][n].person for n in backwards.people} == {
            items[n].person for n in found.people
        }

    def test_photographs_of_somebody_held_out_teach_nothing(self):
        items = [
            *(item("a", str(n)) for n in range(30)),
            *(item("p", str(n), "photo") for n in range(30)),
        ]
        found = split(items, hold_out_people=0.3)
        taught = {items[n].person for n in found.train}
        assert found.people
        assert not taught & {items[n].person for n in found.people}

    def test_nobody_left_is_an_error(self):
        with pytest.raises(UsageError, match="no clip is left"):
            split([item("a", "1"), item("p", "2", "photo")], hold_out=["a"])


def test_a_persons_chance_goes_with_the_square_root_of_their_pictures():
    items = {0: item("a", "1"), 1: item("a", "1"), 2: item("b", "2")}
    weights = person_weights(items, {0: 300, 1: 100, 2: 100})
    assert weights[0] + weights[1] == pytest.approx(20.0)
    assert weights[0] == pytest.approx(3 * weights[1])
    assert weights[2] == pytest.approx(10.0)


class TestBatches:
    @pytest.fixture
    def batches(self, crops):
        train = split(crops.items, hold_out=["two"]).train
        return Batches(crops, train, fit_targets(crops, train, 4), 32, seed=3)

    def test_faces_come_first_then_crops_without_one(self, batches):
        batch = batches.batch(0)
        assert batch.crops.shape == (32, 64, 64, 3)
        assert len(batch.geometry) == len(batch.points) == 27
        assert batch.pairs == 7
        assert batch.geometry.shape[1] == 4

    def test_a_batch_depends_on_seed_and_step_alone(self, batches):
        first, again, other = batches.batch(5), batches.batch(5), batches.batch(6)
        np.testing.assert_array_equal(first.crops, again.crops)
        np.testing.assert_array_equal(first.geometry, again.geometry)
        assert (first.crops != other.crops).any()

    def test_points_stay_on_the_lips_when_crops_are_thrown(self, batches):
        """The mouth drawn is dark: most of the light ones would be elsewhere."""
        upper, lower = FACE_POINTS.index("upper_lip_5"), FACE_POINTS.index("lower_lip_5")
        dark = []
        for step in range(6):
            batch = batches.batch(step)
            for crop, points in zip(batch.crops, batch.points, strict=False):
                x, y = np.clip(np.rint(points[[upper, lower]].mean(0)), 0, 63).astype(int)
                dark.append(crop[y, x].mean() < crop.mean())
        assert np.mean(dark) > 0.75

    def test_nobody_held_out_is_in_the_basis_or_in_a_batch(self, crops, monkeypatch):
        train = split(crops.items, hold_out=["two"]).train
        basis = fit_targets(crops, train, 4)
        seen: list[int] = []
        known = CropSet.crop
        monkeypatch.setattr(
            CropSet, "crop", lambda self, row, **k: seen.append(row) or known(self, row, **k)
        )
        made = Batches(crops, train, basis, 32, seed=0)
        for step in range(5):
            made.batch(step)
        assert {crops.items[crops.item[row]].source for row in seen} <= {"one", "photos"}
        assert not np.isin(
            made._negatives, np.flatnonzero(~np.isin(crops.negative_item, train))
        ).any()
