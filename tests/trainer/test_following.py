# SPDX-License-Identifier: Apache-2.0
"""Prepare with an encoder that follows the faces, train on what it cut, export the pair."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra: pip install '.[train]'")
pytest.importorskip("scipy", reason="needs the train extra: pip install '.[train]'")

from runtime.errors import UsageError  # noqa: E402
from runtime.faces.align import template  # noqa: E402
from runtime.spec import FACE_POINTS, AudioSpec, FaceSpec  # noqa: E402
from tests.trainer.prepared import write_noise_set  # noqa: E402
from trainer import evaluate, fit, prepare  # noqa: E402
from trainer.config import preset  # noqa: E402
from trainer.data.clips import read_faces  # noqa: E402
from trainer.data.prepared import INDEX  # noqa: E402
from trainer.face.checkpoint import load_encoder, save_encoder  # noqa: E402
from trainer.face.following import encoder_digest  # noqa: E402
from trainer.face.mesh import GeometryBasis  # noqa: E402
from trainer.model.checkpoint import load_checkpoint  # noqa: E402
from trainer.model.msct import FrameEncoder  # noqa: E402

G = 4
SPLITS = {"a": "train", "b": "train", "c": "val", "d": "test"}
QUICK = ["--align-steps", "1", "--joint-steps", "1", "--batch", "4", "--preset", "msct-tiny"]


def write_encoder(path: Path, seed: int = 0) -> Path:
    """One that says of every crop that its face is where it should be: what the detector has found
    is followed as long as it does not move."""
    config = preset("msct-tiny", geometry_dim=G)
    torch.manual_seed(seed)
    encoder = FrameEncoder(config)
    points = torch.full((len(FACE_POINTS), 2), config.crop_px / 2)
    for name, at in zip(("left_eye", "right_eye", "nose"), template(FaceSpec()), strict=True):
        points[FACE_POINTS.index(name)] = torch.from_numpy(at)
    assert encoder.heads is not None
    encoder.heads.start_at(torch.zeros(G), points)
    torch.nn.init.constant_(encoder.heads.presence.bias, 5.0)
    basis = GeometryBasis(np.zeros((19, 3)), np.zeros(153), np.zeros((G, 153)), np.ones(G))
    save_encoder(path, encoder, config, basis, {})
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "encoder.safetensors")


@pytest.fixture
def followed_set(encoder: Path, tmp_path: Path) -> Path:
    """A set of noise that claims to have been prepared with the encoder."""
    folder = write_noise_set(tmp_path / "set", splits=SPLITS)
    index = json.loads((folder / INDEX).read_text("utf-8"))
    index["faces"] = {"stage": "encoder", "encoder_sha256": encoder_digest(encoder)}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return folder


def said(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


class TestPrepare:
    @pytest.fixture
    def people(self, grid_clip: Path, tmp_path: Path) -> Path:
        (tmp_path / "people" / "ann").mkdir(parents=True)
        shutil.copy(grid_clip, tmp_path / "people" / "ann" / "clip.mpg")
        return tmp_path / "people"

    def test_crops_are_the_followers_and_the_index_says_whose(
        self, people: Path, encoder: Path, tmp_path: Path
    ) -> None:
        arguments = ["--data", str(people), "--output", str(tmp_path / "out"), "--workers", "0"]
        follow = ["--faces", "encoder", "--encoder", str(encoder)]
        assert prepare.main([*arguments, *follow]) == 0
        index, crops = self.made(tmp_path / "out")
        assert index["faces"] == {"stage": "encoder", "encoder_sha256": encoder_digest(encoder)}
        clip = people / "ann" / "clip.mpg"
        seen = read_faces(clip, AudioSpec(), FaceSpec(stage="encoder"), encoder)
        start, wanted = prepare.longest_stretch(seen.crops, 3)
        assert start == 0
        assert len(wanted) > 60
        assert (crops == wanted).all()
        # Another encoder, or dlib, cuts other crops: what is there is made again.
        assert prepare.main(arguments) == 0
        index, others = self.made(tmp_path / "out")
        assert "faces" not in index
        n = min(len(others), len(crops))
        assert not (others[:n] == crops[:n]).all()

    @staticmethod
    def made(folder: Path) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
        index = json.loads((folder / INDEX).read_text("utf-8"))
        (row,) = index["clips"]
        with np.load(folder / row["array"]) as arrays:
            return index, arrays["crops"]

    @pytest.mark.parametrize(
        ("options", "wrong"),
        [
            (["--faces", "encoder"], "go together"),
            (["--encoder", "ENCODER"], "go together"),
            (["--faces", "encoder", "--encoder", "none"], "cannot read the encoder"),
            (["--faces", "encoder", "--encoder", "ENCODER", "--crop-px", "112"], "64 px"),
        ],
    )
    def test_what_cannot_be_is_one_line(
        self,
        options: list[str],
        wrong: str,
        encoder: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        options = [str(encoder) if o == "ENCODER" else o for o in options]
        assert prepare.main(["--data", str(tmp_path), "--output", "out", *options]) in (1, 2)
        assert wrong in said(capsys)


class TestFit:
    def test_the_encoder_stays_as_it_is_and_the_model_follows(
        self, followed_set: Path, encoder: Path, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        arguments = ["--data", str(followed_set), "--output", str(run), *QUICK]
        assert fit.main([*arguments, "--encoder", str(encoder)]) == 0
        model, config, spec = load_checkpoint(run / "checkpoint.safetensors")
        assert spec is not None
        assert (spec.face.stage, config.geometry_dim) == ("encoder", G)
        mine = model.frame_encoder.state_dict()
        for name, value in load_encoder(encoder).encoder.state_dict().items():
            torch.testing.assert_close(mine[name], value, rtol=0, atol=0)
        facts = json.loads((run / "config.json").read_text("utf-8"))
        assert facts["encoder"] == encoder_digest(encoder)
        pytest.importorskip("onnxscript", reason="onnxscript is needed to export")
        from export import build_engine
        from runtime.backends import load_backend

        pair = tmp_path / "pair"
        assert build_engine.main(["--checkpoint", str(run / "checkpoint.safetensors"),
                                  "--backend", "onnx", "--output", str(pair)]) == 0  # fmt: skip
        with load_backend(pair, "onnx") as backend:
            crops = np.zeros((2, 64, 64, 3), np.uint8)
            out = backend.follow(crops)
            wanted = load_encoder(encoder).encoder.follow(torch.from_numpy(crops))
            np.testing.assert_allclose(out.points, wanted.points.detach().numpy(), atol=1e-3)
            assert backend.spec.face.stage == "encoder"

    def test_windows_of_a_clip_are_cut_by_the_pairs_own_encoder(
        self, encoder: Path, grid_clip: Path, tmp_path: Path
    ) -> None:
        """For the checks of an export, its calibration and the benchmarks."""
        pytest.importorskip("onnxscript", reason="onnxscript is needed to export")
        from benchmarks import speakers
        from export import graphs
        from export.pair import clip_windows, encoder_of
        from runtime.backends import load_backend
        from trainer.face.following import encoder_stage

        model, spec = graphs.untrained(preset("msct-tiny", geometry_dim=G))
        model.frame_encoder.load_state_dict(load_encoder(encoder).encoder.state_dict())
        spec = replace(spec, face=FaceSpec(stage="encoder"))
        graphs.export_pair(model, spec, tmp_path / "pair")
        with pytest.raises(UsageError, match="followed by its own encoder"):
            clip_windows(grid_clip, spec, lambda what: None, None)
        with encoder_of(tmp_path / "pair", spec) as follow:
            (window,) = clip_windows(grid_clip, spec, lambda what: None, follow)
        seen = read_faces(grid_clip, AudioSpec(), spec.face, encoder)
        assert any((crop == window.frames[0]).all() for crop in seen.crops if crop is not None)
        with load_backend(tmp_path / "pair", "onnx") as backend:
            shown, _ = speakers.load(grid_clip, backend)
        assert shown.mouths.shape[1:] == (G,)
        assert len(shown.still().features) == len(shown.features)
        stage = encoder_stage(encoder, spec.face)
        stage.reset()
        assert list(stage.update(np.zeros((64, 64, 3), np.uint8), 0)) == []

    @pytest.mark.parametrize(
        ("given", "wrong"),
        [(None, "give its file with --encoder"), ("other", "did not follow the faces")],
    )
    def test_the_set_belongs_to_its_encoder(
        self,
        given: str | None,
        wrong: str,
        followed_set: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        options = [] if given is None else ["--encoder", str(write_encoder(tmp_path / given, 1))]
        arguments = ["--data", str(followed_set), "--output", str(tmp_path / "run"), *QUICK]
        assert fit.main([*arguments, *options]) == 2
        assert wrong in said(capsys)

    def test_dlibs_crops_are_none_for_it(
        self, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = write_noise_set(tmp_path / "set", splits=SPLITS)
        arguments = ["--data", str(folder), "--output", str(tmp_path / "run"), *QUICK]
        assert fit.main([*arguments, "--encoder", str(encoder)]) == 2
        assert "dlib did; prepare with --faces encoder" in said(capsys)
        assert fit.main(["--encoder", str(encoder), "--output", str(tmp_path / "run")]) == 2
        assert "--encoder goes with --data" in said(capsys)

    def test_a_pair_of_dlibs_crops_is_not_judged_on_it(
        self, followed_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["--data", str(followed_set), "--output", str(tmp_path / "evaluation")]
        assert evaluate.main(arguments) == 2
        assert "prepare with --faces dlib" in said(capsys)
