# SPDX-License-Identifier: Apache-2.0
"""trainer.face.sources and trainer.face.teacher: what is asked, and what is kept of the answers.

The teacher is a double in a process of its own (:mod:`tests.trainer.face_double`); the real one
answers where MSCT_TEACHER_ENV names an environment that holds it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.errors import DependencyError, MediaError, UsageError
from tests.trainer.face_double import (
    FATAL_WIDTH,
    draw,
    environment,
    mesh,
    write_film,
    write_pictures,
)
from trainer.face import teacher as teacher_module
from trainer.face.sources import Item, list_items, pictures
from trainer.face.teacher import (
    Teacher,
    answers_path,
    ask,
    ask_all,
    ensure_environment,
    load_answers,
)

REAL = "MSCT_TEACHER_ENV"


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people of one source, a film without a face, and what is no film."""
    root = tmp_path_factory.mktemp("clips")
    write_film(root / "studio" / "ann" / "a.mp4", [0.0, 0.1, 0.2])
    write_film(root / "studio" / "bob" / "b.mp4", [0.1, 0.1])
    write_pictures(root / "street" / "empty.mp4", [np.full((64, 64, 3), 90, np.uint8)] * 2)
    (root / "street" / "notes.txt").write_text("no film", encoding="utf-8")
    (root / "street" / "torn.mp4").write_bytes(b"\0" * 100)
    return root


class TestListing:
    def test_without_an_index_folders_say_source_and_person(self, folder):
        items, others = list_items(folder, "clip")
        assert [(i.file, i.source, i.person) for i in items][:3] == [
            ("street/empty.mp4", "street", "street:street/empty.mp4"),
            ("street/torn.mp4", "street", "street:street/torn.mp4"),
            ("studio/ann/a.mp4", "studio", "studio:studio/ann"),
        ]
        assert others == {"street/notes.txt": "not a clip: .txt"}

    def test_an_index_says_who_and_unknown_people_are_people_of_their_own(self, tmp_path):
        (tmp_path / "photos.tsv").write_text(
            "file\tsource\tperson\tlicence\nb.jpg\ts\tunknown\t-\na.jpg\ts\tP1\t-\nc.jpg\ts\t\t-\n",
            encoding="utf-8",
        )
        items, others = list_items(tmp_path, "photo")
        assert [i.person for i in items] == ["P1", "s:b.jpg", "s:c.jpg"]
        assert others == {}

    def test_an_index_without_its_columns_and_no_folder_are_refused(self, tmp_path):
        (tmp_path / "clips.tsv").write_text("name\nx\n", encoding="utf-8")
        with pytest.raises(UsageError, match="file, source and person"):
            list_items(tmp_path, "clip")
        with pytest.raises(UsageError, match="is no folder"):
            list_items(tmp_path / "none", "photo")


class TestPictures:
    def test_a_film_is_brought_to_25_pictures_a_second(self, tmp_path):
        write_film(tmp_path / "a.mp4", [0.1] * 9)
        item = Item(tmp_path / "a.mp4", "a.mp4", "clip", "s", "p")
        assert len(list(pictures(item))) == 9

    def test_a_photograph_of_ten_thousand_pixels_is_made_smaller(self, tmp_path):
        wide = np.zeros((500, 10_000, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "w.png"), wide)
        item = Item(tmp_path / "w.png", "w.png", "photo", "s", "p")
        [picture] = pictures(item)
        assert picture is not None
        assert picture.shape == (96, 1920, 3)

    def test_text_by_a_photographs_name_is_no_photograph(self, tmp_path):
        (tmp_path / "t.jpg").write_text("hello", encoding="utf-8")
        item = Item(tmp_path / "t.jpg", "t.jpg", "photo", "s", "p")
        with pytest.raises(MediaError, match="not a photograph"):
            list(pictures(item))


class TestAnswers:
    def test_landmarks_come_back_in_pixels_with_the_detectors_score(self, double):
        with Teacher(double / "bin" / "python") as teacher:
            found, score = teacher.look(draw((120, 160), (80, 60), 60, 0.2), still=True, new=True)
            nothing, _ = teacher.look(np.full((50, 70, 3), 90, np.uint8), still=False, new=True)
        assert teacher.version == "mediapipe 0.10.21"
        assert found is not None
        np.testing.assert_allclose(found[33], mesh(0.2)[33] * 60 + [80, 60, 0], atol=1.5)
        assert score == pytest.approx(0.875)
        assert nothing is None

    def test_all_items_are_asked_about_and_reasons_name_those_without(
        self, double, folder, tmp_path
    ):
        items, _ = list_items(folder, "clip")
        reasons = ask_all(items, tmp_path, double)
        assert reasons["street/empty.mp4"] == "no face found"
        assert "not a media file" in reasons["street/torn.mp4"]
        assert len(reasons) == 2
        answers = load_answers(answers_path(tmp_path, items[2]))
        assert answers is not None
        assert answers.found.tolist() == [True] * 3
        assert answers.landmarks.shape == (3, 478, 3)
        assert answers.size == (120, 160)
        opened = answers.landmarks[:, 17, 1] - answers.landmarks[:, 0, 1]
        assert opened[0] < opened[1] < opened[2]

    def test_what_was_answered_is_not_asked_again_unless_the_file_changed(
        self, double, tmp_path, monkeypatch
    ):
        clips, output = tmp_path / "clips", tmp_path / "work"
        for name in "ab":
            write_film(clips / f"{name}.mp4", [0.1, 0.1])
        items, _ = list_items(clips, "clip")
        ask_all(items, output, double)
        asked: list[str] = []
        known = teacher_module.ask
        monkeypatch.setattr(
            teacher_module, "ask", lambda t, item: asked.append(item.file) or known(t, item)
        )
        ask_all(items, output, double)
        assert asked == []
        write_film(clips / "b.mp4", [0.1, 0.2, 0.3])
        ask_all(items, output, double)
        assert asked == ["b.mp4"]
        found = load_answers(answers_path(output, items[1]))
        assert found is not None
        assert len(found.found) == 3

    def test_torn_answers_are_asked_for_again(self, double, tmp_path):
        write_film(tmp_path / "clips" / "a.mp4", [0.1])
        [item] = list_items(tmp_path / "clips", "clip")[0]
        path = answers_path(tmp_path, item)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"PK\x03\x04 torn")
        ask_all([item], tmp_path, double)
        assert load_answers(path) is not None

    def test_a_teacher_that_dies_over_a_picture_costs_that_item_alone(self, double, tmp_path):
        write_pictures(
            tmp_path / "clips" / "a.mp4", [draw((120, FATAL_WIDTH), (60, 60), 60, 0.1)] * 2
        )
        write_film(tmp_path / "clips" / "b.mp4", [0.1])
        items, _ = list_items(tmp_path / "clips", "clip")
        reasons = ask_all(items, tmp_path / "work", double)
        assert reasons == {"a.mp4": "the teacher's process died over it"}

    def test_a_face_that_fills_its_photograph_is_looked_for_with_room_around_it(self, tmp_path):
        class NeedsRoom:
            def look(self, picture, *, still, new):
                if picture.shape != (180, 180, 3):
                    return None, 0.0
                return np.full((478, 3), 90.0, np.float32), 0.9

        cv2.imwrite(str(tmp_path / "p.png"), np.zeros((100, 100, 3), np.uint8))
        item = Item(tmp_path / "p.png", "p.png", "photo", "s", "p")
        answers = ask(NeedsRoom(), item)  # type: ignore[arg-type]
        np.testing.assert_allclose(answers.landmarks[0, 0], [50.0, 50.0, 90.0])


class TestEnvironment:
    def test_one_that_is_there_is_taken(self, double):
        assert ensure_environment(double) == double / "bin" / "python"

    def test_without_a_python_that_fits_the_message_says_which_and_how(self, tmp_path, monkeypatch):
        monkeypatch.setattr(teacher_module, "find_python", lambda: None)
        with pytest.raises(DependencyError) as caught:
            ensure_environment(tmp_path / "none")
        message = str(caught.value)
        assert "Python of 3.9 to 3.12" in message
        assert f"python3.12 -m venv {tmp_path / 'none'}" in message
        assert "pip install 'mediapipe<0.10.22'" in message
        assert "\n" not in message

    def test_where_pip_fails_its_own_words_are_in_the_message(self, tmp_path, monkeypatch):
        script = tmp_path / "python"
        script.write_text(
            "#!/bin/sh\n"
            'mkdir -p "$4/bin"\n'
            'printf "#!/bin/sh\\necho no such wheel >&2; exit 1\\n" > "$4/bin/python"\n'
            'chmod +x "$4/bin/python"\n',
            encoding="utf-8",
        )
        script.chmod(0o755)
        monkeypatch.setattr(teacher_module, "find_python", lambda: str(script))
        with pytest.raises(DependencyError, match=r"no such wheel.*by hand: python3\.12 -m venv"):
            ensure_environment(tmp_path / "env")

    def test_a_folder_that_holds_something_else_is_left_alone(self, tmp_path, monkeypatch):
        """An environment that is made anew is emptied first."""
        (tmp_path / "film.mp4").touch()
        monkeypatch.setattr(teacher_module, "find_python", lambda: sys.executable)
        with pytest.raises(UsageError, match="would be emptied"):
            ensure_environment(tmp_path)
        assert (tmp_path / "film.mp4").exists()

    def test_a_python_that_cannot_run_is_passed_over(self, tmp_path, monkeypatch):
        """A shim of pyenv may lie on the path and not work."""
        for version, text in (("3.12", "exit 127"), ("3.11", "exit 0")):
            script = tmp_path / f"python{version}"
            script.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
            script.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(teacher_module.sys, "version_info", (3, 13, 0))
        assert teacher_module.find_python() == str(tmp_path / "python3.11")


@pytest.mark.skipif(REAL not in os.environ, reason=f"{REAL} names no environment of the teacher")
def test_the_real_teacher_finds_the_face_of_a_clip(grid_clip):
    python = ensure_environment(Path(os.environ[REAL]))
    item = Item(grid_clip, "g", "clip", "s", "p")
    picture = next(p for p in pictures(item) if p is not None)
    began = time.monotonic()
    with Teacher(python) as teacher:
        found, _ = teacher.look(picture, still=True, new=True)
    assert time.monotonic() - began < 60
    assert found is not None
    from trainer.face.mesh import face_points

    left, right, nose, *_ = face_points(found)
    assert left[0] < nose[0] < right[0]
    assert 20 < right[0] - left[0] < 120
