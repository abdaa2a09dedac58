# SPDX-License-Identifier: Apache-2.0
"""The probe finds a short cut that is there, and none where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the train extra: pip install '.[train]'")

from runtime.errors import MediaError, UsageError
from trainer.data.layouts import CATEGORIES
from trainer.data.prepared import INDEX, VERSION
from trainer.probe import (
    ACROSS,
    ALL,
    DESCRIPTOR,
    LOG_MEL,
    TOGETHER,
    WITHIN,
    Descriptor,
    Features,
    baseline_scores,
    main,
    print_table,
    probe,
    read_features,
)


def features(n: int = 60, *, leak: float = 0.0, of_clip: float = 5.0, seed: int = 0) -> Features:
    """n genuine clips, each with one of every category: a number that belongs to the genuine clip,
    and noise; ``leak`` is added to the noise of the forged ones."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    own, leaking = [], []
    for i in range(n):
        place = of_clip * rng.standard_normal(4)
        for category in CATEGORIES:
            fake = category != CATEGORIES[0]
            rows.append(
                {
                    "file": f"{category}/{i}.mp4",
                    "identity": f"p{i % 5}",
                    "clip": str(i),
                    "category": category,
                    "fake_video": category.startswith("Fake"),
                    "fake_audio": category.endswith("FakeAudio"),
                }
            )
            own.append(place)
            leaking.append([rng.standard_normal() + leak * fake])
    return Features(rows, {LOG_MEL: np.array(own), "file size": np.array(leaking)})


def auc(result: dict[str, Any], comparison: str, feature: str, kind: str = WITHIN) -> float:
    return result[kind][comparison][feature]["auc"]


def prepared(folder: Path, *, forged_silence: int, clips: int = 6) -> Path:
    """A prepared set of random pictures and noise; forged clips start with some silence."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(clips):
        for category in CATEGORIES:
            noise = rng.integers(-3000, 3000, 640 * 10).astype(np.int16)
            if category != CATEGORIES[0]:
                noise[: forged_silence + int(rng.integers(20))] = 0
            array = folder / f"{i}-{category}.npz"
            folder.mkdir(exist_ok=True)
            np.savez(
                array,
                crops=rng.integers(0, 255, (10, 64, 64, 3), dtype=np.uint8),
                tokens=np.zeros((10, 104), np.float32),
                level_dbfs=np.full(10, -30, np.float32),
                audio=noise,
            )
            rows.append(
                {
                    "file": array.name,
                    "array": array.name,
                    "identity": f"p{i}",
                    "clip": str(i),
                    "category": category,
                    "file_bytes": int(rng.integers(9_000, 11_000)),
                    "video_bit_rate": 80_000,
                    "audio_bit_rate": 32_000,
                }
            )
    index = {"version": VERSION, "crop_px": 64, "layout": "forged", "dropped": {}, "clips": rows}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


@pytest.mark.thorough
def test_numbers_of_the_genuine_clip_tell_nothing():
    """A regression that could memorise a clip would know all that was made from it."""
    result = probe(features(), rounds=20)
    for comparison in (ALL, *CATEGORIES[1:]):
        assert abs(auc(result, comparison, TOGETHER) - 0.5) < 0.12


def test_a_leak_is_found_alone_and_together_and_named():
    result = probe(features(leak=2.0), rounds=50)
    assert auc(result, ALL, "file size") > 0.85
    assert auc(result, ALL, TOGETHER) > 0.85
    assert auc(result, ALL, LOG_MEL) < 0.62
    assert auc(result, ALL, TOGETHER, ACROSS) > 0.85
    for kind in (WITHIN, ACROSS):
        cell = result[kind][ALL]["file size"]
        assert cell["low"] < cell["auc"] < cell["high"]
    assert result["clips"] == dict.fromkeys(CATEGORIES, 60)
    assert (result["identities"], result["genuine_clips"]) == (5, 60)


def test_what_differs_from_person_to_person_does_not_carry_over():
    """Forged clips are moved, each person's in a direction of his own: no short cut to others."""
    made = features()
    directions = {f"p{i}": direction for i, direction in enumerate(np.eye(5))}
    extra = np.random.default_rng(1).standard_normal((len(made.rows), 5))
    for row, value in zip(made.rows, extra, strict=True):
        value += 3.0 * directions[row["identity"]]  # a person looks like himself
        if row["category"] != CATEGORIES[0]:
            value += 4.0 * directions[row["identity"]]
    made.values["face"] = extra
    result = probe(made, rounds=50)
    assert auc(result, ALL, "face") > 0.7
    assert auc(result, ALL, "face", ACROSS) < 0.6


def test_two_people_are_too_few_to_go_across(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = features(n=10)
    for i, row in enumerate(made.rows):
        row["identity"] = f"p{i // 4 % 2}"
    result = probe(made, rounds=10)
    assert result[ACROSS] == {}
    assert result[WITHIN]
    print_table(result)
    assert "across people: fewer than 3 people" in capsys.readouterr().out


@pytest.mark.thorough
def test_a_leak_in_one_category_shows_there():
    made = features()
    mask = np.array([r["category"] == CATEGORIES[2] for r in made.rows])
    made.values["file size"][mask] += 3
    result = probe(made, rounds=10)
    assert auc(result, CATEGORIES[2], TOGETHER) > 0.9
    assert abs(auc(result, CATEGORIES[1], TOGETHER) - 0.5) < 0.12


def test_too_few_clips_are_refused():
    with pytest.raises(MediaError, match="needs genuine and forged clips of 5 genuine clips"):
        probe(features(n=4))


def test_a_baseline_is_trained_on_one_part_and_scores_the_other():
    made = features(leak=3.0)
    train = [r["file"] for r in made.rows if r["identity"] != "p4"]
    test = [r["file"] for r in made.rows if r["identity"] == "p4"]
    scores = baseline_scores(made, train, test, "file size")
    assert list(scores) == test
    fakes = np.array([not f.startswith(CATEGORIES[0]) for f in test])
    p = np.array([scores[f] for f in test])
    assert p[fakes].mean() > p[~fakes].mean() + 0.4
    assert ((p >= 0) & (p <= 1)).all()
    by_video = baseline_scores(made, train, test, "file size", "fake_video")
    assert by_video != scores


def test_a_baseline_says_what_it_lacks():
    made = features()
    files = [r["file"] for r in made.rows]
    with pytest.raises(UsageError, match=r"the set has no clip nowhere\.mp4 \(1 missing\)"):
        baseline_scores(made, files, ["nowhere.mp4"], LOG_MEL)
    genuine = [f for f in files if f.startswith(CATEGORIES[0])]
    with pytest.raises(UsageError, match="one class of 'fake'"):
        baseline_scores(made, genuine, files, LOG_MEL)


@pytest.mark.thorough
def test_the_command_reads_a_prepared_set_and_its_exit_code_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("dlib", reason="needs the cpu extra: pip install '.[cpu]'")
    monkeypatch.setattr("trainer.probe.DESCRIPTOR_CROPS", 1)  # a fifth of a second each
    folder = prepared(tmp_path / "prepared", forged_silence=2000)
    out = tmp_path / "probe.json"
    assert main(["--data", str(folder), "--output", str(out), "--max-auc", "0.6"]) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "above 0.6" in said.err
    assert "silence at the start" in said.out
    result = json.loads(out.read_text())
    for kind in (WITHIN, ACROSS):
        assert auc(result, ALL, "silence at the start", kind) > 0.95
        assert abs(auc(result, ALL, "mean brightness", kind) - 0.5) < 0.45
    monkeypatch.setattr("trainer.probe.probe", lambda features, seed: result)  # once more
    assert main(["--data", str(folder), "--max-auc", "1.0"]) == 0


def test_features_of_a_clip_have_their_sizes(tmp_path: Path):
    pytest.importorskip("dlib", reason="needs the cpu extra: pip install '.[cpu]'")
    found = read_features(prepared(tmp_path / "prepared", forged_silence=0, clips=1))
    assert {k: v.shape for k, v in found.values.items()} == {
        "file size": (4, 1),
        "video bit rate": (4, 1),
        "audio bit rate": (4, 1),
        "silence at the start": (4, 1),
        "mean loudness": (4, 1),
        "mean brightness": (4, 1),
        LOG_MEL: (4, 26),
        DESCRIPTOR: (4, 128),
    }


def test_a_folder_that_is_no_prepared_set_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["--data", str(tmp_path)]) == 2
    assert "make the set by trainer.prepare" in capsys.readouterr().err
    (tmp_path / INDEX).write_text('{"version": 1, "clips": []}')
    assert main(["--data", str(tmp_path)]) == 2
    assert "prepare it again" in capsys.readouterr().err


def test_the_descriptor_knows_a_person_again_from_a_crop(grid_dir: Path):
    """dlib's threshold for one person is a distance of 0.6, on chips cut from whole pictures."""
    from runtime.spec import AudioSpec, FaceSpec
    from trainer.data.clips import find_faces, read_clip

    describe = Descriptor()
    people = []
    for path in sorted((grid_dir / "speakers").glob("*.mpg"))[:3]:
        faces = find_faces(read_clip(path, AudioSpec(), duration_s=1.6), FaceSpec())
        people.append([describe(faces[i].crop) for i in (5, 35)])
    for i, mine in enumerate(people):
        assert np.linalg.norm(mine[0] - mine[1]) < 0.4
        for other in people[i + 1 :]:
            assert np.linalg.norm(mine[0] - other[0]) > 0.6
