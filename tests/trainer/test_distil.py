# SPDX-License-Identifier: Apache-2.0
"""trainer.distil, from folders of clips and photographs to an encoder and its report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is needed to train")

from runtime.errors import ModelError, UsageError  # noqa: E402
from runtime.spec import FACE_POINTS  # noqa: E402
from tests.trainer.face_double import draw, environment, write_film  # noqa: E402
from trainer import distil as command  # noqa: E402
from trainer.config import ConfigError, ModelConfig, preset  # noqa: E402
from trainer.distil import ENCODER, REPORT, distil, main  # noqa: E402
from trainer.face import learn  # noqa: E402
from trainer.face.checkpoint import load_encoder, save_encoder  # noqa: E402
from trainer.face.learn import DistilConfig, learning_rate  # noqa: E402
from trainer.face.mesh import MOVING  # noqa: E402
from trainer.face.report import correlation  # noqa: E402
from trainer.face.sources import Item, list_items  # noqa: E402
from trainer.loop.state import STATE  # noqa: E402
from trainer.model.msct import FrameEncoder  # noqa: E402

SHORT = DistilConfig(steps=4, batch=16, save_every=2)
SMALL = preset(
    "msct-tiny",
    geometry_dim=6,
    channels=32,
    backbone={"stem_channels": 16, "depths": (1, 1), "widths": (8, 8), "outputs": (32, 48),
              "wtconv": "off"},
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("distil")
    rng = np.random.default_rng(0)
    for number, name in enumerate(("one/ann/a", "one/bob/b", "two/cat/c", "two/dan/d")):
        openings = [float(v) for v in 0.15 + 0.14 * np.sin(np.arange(20) / 2 + number)]
        write_film(root / "clips" / f"{name}.mp4", openings, width=50.0 + 4 * number)
    (root / "clips" / "two" / "list.txt").write_text("x", encoding="utf-8")
    (root / "photos").mkdir()
    for number in range(6):
        picture = draw((90, 90), (45, 45), 50.0, float(rng.uniform(0, 0.3)))
        cv2.imwrite(str(root / "photos" / f"{number}.png"), picture[..., ::-1])
    cv2.imwrite(str(root / "photos" / "wall.png"), np.full((40, 40, 3), 90, np.uint8))
    environment(root / "teacher")
    return {"root": root, "clips": root / "clips", "photos": root / "photos",
            "teacher": root / "teacher", "work": root / "work"}  # fmt: skip


@pytest.fixture(scope="module")
def items(folders: dict[str, Path]) -> list[Item]:
    return list_items(folders["clips"], "clip")[0] + list_items(folders["photos"], "photo")[0]


def run(items, folders, output, **options):
    return distil(
        items, output, work=folders["work"], teacher=folders["teacher"],
        **{"hold_out": ["two"], "config": SHORT, "model": SMALL, **options},
    )  # fmt: skip


class TestCommand:
    @pytest.fixture(scope="class")
    @classmethod
    def output(cls, folders, tmp_path_factory):
        output = tmp_path_factory.mktemp("run")
        arguments = [
            "--clips", folders["clips"], "--photos", folders["photos"], "--output", output,
            "--work", folders["work"], "--teacher-env", folders["teacher"],
            "--hold-out", "two", "--steps", 3, "--batch", 16,
        ]  # fmt: skip
        assert main([str(a) for a in arguments]) == 0
        return output

    def test_its_report_is_about_those_it_never_saw(self, output):
        found = json.loads((output / REPORT).read_text("utf-8"))
        assert found["held_out_sources"]["clips"] == 2
        assert found["held_out_sources"]["people"] == 2
        assert found["held_out_sources"]["pictures"] == 40
        assert found["trained_on"]["clip"] == {"items": 2, "people": 2, "sources": ["one"]}
        assert found["trained_on"]["photo"]["items"] == 6
        assert found["held_out"] == ["two"]

    def test_what_could_not_be_used_is_named_and_stops_nothing(self, output):
        dropped = json.loads((output / REPORT).read_text("utf-8"))["dropped"]
        assert dropped == {"two/list.txt": "not a clip: .txt", "wall.png": "no face found"}

    def test_one_command_prints_it_again(self, output, capsys):
        assert main(["--report", "--output", str(output)]) == 0
        said = capsys.readouterr().out
        assert "sources held out: 2 people, 1 sources, 2 clips, 40 pictures" in said
        assert "1 not used: no face found, e.g. wall.png" in said
        assert "% of the eyes' distance" in said

    def test_the_encoder_gives_the_four_outputs(self, output):
        made = load_encoder(output / ENCODER)
        crops = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8)
        with torch.inference_mode():
            out = made.encoder.follow(crops)
        assert out.visual.shape == (5, 128)
        assert out.geometry.shape == (5, 24)
        assert out.points.shape == (5, len(FACE_POINTS), 2)
        assert out.presence.shape == (5,)
        assert ((out.presence > 0) & (out.presence < 1)).all()
        torch.testing.assert_close(out.visual, made.encoder(crops))
        assert made.basis.components.shape == (24, 3 * len(MOVING))
        assert made.facts["held_out"] == ["two"]

    def test_prepare_only_trains_nothing(self, folders, tmp_path, capsys):
        arguments = [
            "--clips", folders["clips"], "--output", tmp_path / "none", "--prepare-only",
            "--work", folders["work"], "--teacher-env", folders["teacher"],
        ]  # fmt: skip
        assert main([str(a) for a in arguments]) == 0
        assert "4 of 4 files gave 80 crops" in capsys.readouterr().out
        assert not (tmp_path / "none").exists()

    @pytest.mark.parametrize(
        ("extra", "said"),
        [
            (["--hold-out", "three"], "no source named three; there are: one, two"),
            (["--fold", "1"], "--fold 1: none of its sources is in these folders"),
            (["--batch", "4"], "--batch 16"),
        ],
    )
    def test_options_that_cannot_be_are_one_line(self, folders, tmp_path, capsys, extra, said):
        arguments = ["--clips", folders["clips"], "--output", tmp_path, "--work",
                     folders["work"], "--teacher-env", folders["teacher"], *extra]  # fmt: skip
        assert main([str(a) for a in arguments]) == 2
        error = capsys.readouterr().err.strip()
        assert said in error
        assert "\n" not in error

    def test_a_folder_of_text_and_no_report_are_one_line(self, tmp_path, capsys):
        (tmp_path / "a.txt").write_text("x", encoding="utf-8")
        output = tmp_path / "out"
        assert main(["--clips", str(tmp_path), "--output", str(output)]) == 2
        assert "no clip in" in capsys.readouterr().err
        assert main(["--report", "--output", str(output)]) == 2
        assert "distil something first" in capsys.readouterr().err


class TestTraining:
    def test_a_run_that_was_killed_ends_with_the_weights_of_one_that_was_not(
        self, items, folders, tmp_path, monkeypatch
    ):
        run(items, folders, tmp_path / "whole")
        known = learn.losses

        def dies(*arguments):
            if (tmp_path / "killed" / STATE).exists():
                raise KeyboardInterrupt
            return known(*arguments)

        monkeypatch.setattr(learn, "losses", dies)
        with pytest.raises(KeyboardInterrupt):
            run(items, folders, tmp_path / "killed")
        monkeypatch.setattr(learn, "losses", known)
        run(items, folders, tmp_path / "killed")
        whole, killed = (
            load_encoder(tmp_path / name / ENCODER).encoder.state_dict()
            for name in ("whole", "killed")
        )
        for name, value in whole.items():
            torch.testing.assert_close(killed[name], value, rtol=0, atol=0)

    def test_a_folder_with_another_run_is_refused(self, items, folders, tmp_path):
        run(items, folders, tmp_path, config=replace(SHORT, steps=2))
        with pytest.raises(UsageError, match=r"other options \(steps 2 there"):
            run(items, folders, tmp_path)
        with pytest.raises(UsageError, match="a run on another set"):
            run(items, folders, tmp_path, config=replace(SHORT, steps=2), left_out=["one:one/bob"])

    def test_it_learns_the_mouths_opening_the_points_and_whether_there_is_a_face(
        self, items, folders, tmp_path
    ):
        config = DistilConfig(steps=100, batch=24, save_every=100)
        before = run(items, folders, tmp_path / "a", config=replace(config, steps=1))
        after = run(items, folders, tmp_path / "b", config=config)
        error = [r["held_out_sources"]["thrown"]["points"]["median"] for r in (before, after)]
        assert error[1] < 0.6 * error[0]
        opening = after["held_out_sources"]["nominal"]["correlation"]["components"][0]
        assert opening > 0.9
        log = (tmp_path / "b" / "log.jsonl").read_text("utf-8")
        rows = [json.loads(line) for line in log.splitlines()]
        assert [r["presence"] for r in rows if "presence" in r][-1] < 0.5  # undecided: 0.69

    def test_one_cycle_rises_and_falls_to_almost_nothing(self):
        config = DistilConfig(steps=1000, lr=1e-3)
        rates = [learning_rate(step, config) for step in range(1000)]
        assert rates[0] == pytest.approx(4e-5)
        assert int(np.argmax(rates)) == 150
        assert max(rates) == pytest.approx(1e-3)
        assert rates[-1] < 1e-5


class TestReport:
    def test_correlation_is_within_clips(self):
        """What differs between clips alone counts for nothing."""
        rng = np.random.default_rng(0)
        truth = rng.standard_normal((40, 3)).astype(np.float32)
        clip = np.repeat([0, 1], 20)
        person = clip.astype(str)
        far = truth + 50 * clip[:, None].astype(np.float32)
        assert correlation(far, truth, clip, person)["mean"] == pytest.approx(1.0)
        between = (50.0 * clip[:, None] + rng.standard_normal((40, 3))).astype(np.float32)
        both = correlation(between, far, clip, person)
        assert abs(both["mean"]) < 0.4

    def test_every_person_weighs_alike(self):
        rng = np.random.default_rng(1)
        a = rng.standard_normal((110, 3)).astype(np.float32)
        said = a.copy()
        said[:10] *= -1  # one with few pictures, read the wrong way round
        clip = np.repeat([0, 1], [10, 100])
        found = correlation(said, a, clip, clip.astype(str))
        assert abs(found["mean"]) < 0.35
        assert found["mean_over_people"] == [0.0, 0.0, 0.0]

    def test_a_clip_of_few_pictures_says_nothing(self):
        a = np.random.default_rng(2).standard_normal((24, 3)).astype(np.float32)
        clip = np.repeat([0, 1], [20, 4])
        found = correlation(a, a, clip, clip.astype(str))
        assert found["people"] == 1
        assert found["mean"] == pytest.approx(1.0)


class TestHeads:
    def test_they_are_options_of_the_one_configuration(self):
        plain, with_heads = preset("msct-tiny"), preset("msct-tiny", geometry_dim=24)
        assert plain.geometry_dim == 0
        own = set(FrameEncoder(with_heads).state_dict()) - set(FrameEncoder(plain).state_dict())
        assert {name.split(".")[1] for name in own} == {"geometry", "points", "presence"}
        assert ModelConfig.from_dict(json.loads(json.dumps(with_heads.to_dict()))) == with_heads

    def test_an_encoder_without_them_follows_nothing(self):
        with pytest.raises(ConfigError, match="geometry_dim is 0"):
            FrameEncoder(preset("msct-tiny")).follow(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
        with pytest.raises(ConfigError, match="geometry_dim"):
            preset("msct-tiny", geometry_dim=-1)

    def test_a_checkpoint_that_is_none_is_named(self, tmp_path):
        (tmp_path / "x").write_bytes(b"nothing")
        with pytest.raises(ModelError, match="cannot read the encoder"):
            load_encoder(tmp_path / "x")

    def test_other_points_are_refused(self, tmp_path, monkeypatch):
        from trainer.face import checkpoint
        from trainer.face.mesh import GeometryBasis

        model = preset("msct-tiny", geometry_dim=2)
        basis = GeometryBasis(np.zeros((19, 3)), np.zeros(153), np.zeros((2, 153)), np.ones(2))
        monkeypatch.setattr(checkpoint, "FACE_POINTS", FACE_POINTS[::-1])
        save_encoder(tmp_path / "e", FrameEncoder(model), model, basis, {})
        monkeypatch.setattr(checkpoint, "FACE_POINTS", FACE_POINTS)
        with pytest.raises(ModelError, match="other points"):
            load_encoder(tmp_path / "e")


def test_the_committed_folds_leave_people_out_of_every_training(
    items, folders, monkeypatch, tmp_path
):
    seen: dict[str, object] = {}

    def stand_in(items, output, **options):
        seen.update(options)
        return {"dropped": {}, "trained_on": {}, "held_out_sources": {}, "held_out_people": {}}

    monkeypatch.setattr(command, "distil", stand_in)
    main(["--clips", str(folders["clips"]), "--output", str(tmp_path), "--leave-out", "X"])
    folds = command.load_folds()
    assert set(folds.left_out) | set(folds.left_out_files) | {"X"} == set(seen["left_out"])
