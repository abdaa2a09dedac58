# SPDX-License-Identifier: Apache-2.0
"""Counting verdicts: abstentions are no verdicts, identities are counted, nothing is lost."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the train extra: pip install '.[train]'")

from runtime.errors import UsageError
from runtime.judging.verdict import Label, Reason, Verdict
from runtime.spec import AudioSpec
from tests.runtime.doubles import MockBackend
from trainer.data.clips import write_clip
from trainer.evaluate import Row, evaluate, main


def verdict(label: Label, reason: Reason | None = None) -> Verdict:
    return Verdict(
        source="x",
        model_id="m",
        t_start_s=0.0,
        t_end_s=2.0,
        face_id=0,
        p_fake=0.5,
        p_fake_video=None,
        p_fake_audio=None,
        sync=None,
        av_offset_ms=None,
        label=label,
        reason=reason,
        latency_ms=1.0,
    )


def forged_folder(folder: Path) -> Path:
    """Two clips without a face, one of them genuine, and one file that is no video."""
    rng = np.random.default_rng(0)
    rows = []
    for name, fake in (("a", False), ("b", True)):
        frames = [np.full((64, 96, 3), 90, np.uint8) for _ in range(70)]
        sound = rng.normal(0, 0.1, 70 * 640).astype(np.float32)
        write_clip(folder / f"{name}.mp4", frames, sound, AudioSpec())
        rows.append(record(f"{name}.mp4", name, fake))
    (folder / "broken.mp4").write_text("no video")
    rows.append(record("broken.mp4", "b", True))
    (folder / "forge.json").write_text(json.dumps({"clips": rows}))
    return folder


def record(file: str, identity: str, fake: bool) -> dict[str, object]:
    return {
        "file": file,
        "identity": identity,
        "split": "test",
        "category": "RealVideo-FakeAudio" if fake else "RealVideo-RealAudio",
        "method": "none+replaced" if fake else "real",
        "fake_video": False,
        "fake_audio": fake,
    }


def test_shares_are_of_the_judged_windows_and_coverage_says_how_many_those_are():
    row = Row()
    row.add("anna", [verdict(Label.FAKE)] * 3 + [verdict(Label.REAL)])
    row.add("ben", [verdict(Label.ABSTAIN, Reason.OUT_OF_DOMAIN)] * 4)
    assert row.to_dict() == {
        "clips": 2,
        "identities": 2,
        "windows": 8,
        "coverage": 0.5,
        "called_fake": 0.75,
        "abstained": {"out_of_domain": 4},
    }


def test_nothing_judged_is_no_share_at_all():
    row = Row()
    row.add("anna", [verdict(Label.ABSTAIN, Reason.NO_FACE)])
    assert row.to_dict()["called_fake"] is None


def test_a_set_runs_through_the_runtime_and_broken_files_are_named(tmp_path: Path):
    result = evaluate(forged_folder(tmp_path), MockBackend(), "test")
    assert result["clips"] == 2
    assert result["identities"] == 2
    assert result["windows"] > 0
    assert result["coverage"] == 0.0
    assert result["abstained"] == {"no_face": result["windows"]}
    assert set(result["categories"]) == {"RealVideo-RealAudio", "RealVideo-FakeAudio"}
    assert list(result["failed"]) == ["broken.mp4"]
    assert "judged_windows" not in result


def test_an_empty_split_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="no clips in split 'val'"):
        evaluate(forged_folder(tmp_path), MockBackend(), "val")


def test_a_folder_that_is_no_forged_set_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["--clips", str(tmp_path), "--model", "msct-tiny"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_checkpoint_cannot_run_through_the_product(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["--clips", str(tmp_path), "--checkpoint", "x.safetensors"]) == 2
    assert "export.build_engine" in capsys.readouterr().err


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="needs the train extra: pip install '.[train]'")
    from tests.trainer.prepared import write_noise_set

    folder = tmp_path_factory.mktemp("noise")
    splits = {"a": "train", "b": "train", "c": "val", "d": "test", "e": "test"}
    return write_noise_set(folder, splits=splits, tokens=40, crop_px=32, silence_tokens=3)


class TestGraphs:
    """The pair as it ships, on a prepared set; needs no torch."""

    def test_scores_are_what_the_graphs_give(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ):
        pytest.importorskip("onnxruntime", reason="needs the cpu extra: pip install '.[cpu]'")
        from runtime.backends import load_backend
        from tests.trainer.prepared import write_noise_set
        from trainer.data.prepared import PreparedSet
        from trainer.scoring.clips import ClipScores

        monkeypatch.setitem(sys.modules, "torch", None)  # an import of it fails
        monkeypatch.chdir(tmp_path)
        folder = write_noise_set(tmp_path / "set", splits={"d": "test"}, clips=1, tokens=75)
        assert main(["--data", str(folder)]) == 0
        output = tmp_path / "runs" / "evaluation"
        assert str(Path("runs", "evaluation", "report.html")) in capsys.readouterr().out
        found = ClipScores.read(output / "scores-untrimmed.csv")
        assert found.windows.tolist() == [2] * 4
        with load_backend() as backend:
            spec = backend.spec
            for clip, p_fake in zip(PreparedSet(folder).clips, found.p_fake, strict=True):
                visual = backend.encode(clip.crops)
                outs = [
                    backend.fuse(visual[None, i : i + 50], clip.tokens[None, i : i + 50])
                    for i in (0, 25)
                ]
                logit = np.mean([o.logits_av[0, 1] - o.logits_av[0, 0] for o in outs])
                scaled = logit / spec.calibration.temperature_av + spec.calibration.bias_av
                assert p_fake == pytest.approx(1 / (1 + np.exp(-scaled)), abs=1e-6)
        result = json.loads((output / "metrics.json").read_text())
        assert result["about"]["model"] == spec.model_id
        assert result["about"]["provider"] == "CPUExecutionProvider"
        assert result["variants"]["untrimmed"]["threshold"] == spec.calibration.threshold

    def test_crops_of_another_size_are_refused(self, noise: Path, capsys):
        assert main(["--data", str(noise)]) == 2
        assert "--crop-px 64" in capsys.readouterr().err


class TestCheckpoint:
    """A checkpoint on a prepared set; needs torch."""

    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        from runtime.spec import Calibration, FaceSpec, PairSpec, StreamSpec
        from tests.trainer.test_fit import MODEL
        from trainer.model.checkpoint import save_checkpoint
        from trainer.model.msct import MSCT

        spec = PairSpec(
            model=MODEL.model_spec(),
            face=FaceSpec(crop_px=32),
            stream=StreamSpec(window_tokens=30),
            calibration=Calibration(bias_av=0.3, threshold=0.6),
            trained=True,
        )
        path = tmp_path / "run" / "checkpoint.safetensors"
        save_checkpoint(path, MSCT(MODEL), MODEL, spec)
        return path

    def test_both_variants_become_one_report(
        self, noise: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
    ):
        words = ["--data", str(noise), "--checkpoint", str(checkpoint), "--both"]
        assert main(words) == 0
        folder = checkpoint.parent / "evaluation"
        result = json.loads((folder / "metrics.json").read_text())
        assert list(result["variants"]) == ["untrimmed", "trimmed"]
        for variant in result["variants"].values():
            assert variant["clips"] == 16
            assert variant["identities"] == 2
            assert variant["threshold"] == 0.6
        out = re.sub(r"\s+", " ", capsys.readouterr().out)
        assert "balanced_accuracy (the paper's AUC)" in out
        assert "untrimmed, 16 clips, 2 people" in out
        assert (folder / "report.html").is_file()
        assert (folder / "scores-trimmed.npz").is_file()

    @pytest.mark.thorough
    def test_the_floor_is_printed_beside_the_model(
        self,
        tmp_path: Path,
        checkpoint: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ):
        pytest.importorskip("dlib", reason="needs the cpu extra: pip install '.[cpu]'")
        monkeypatch.setattr("trainer.probe.DESCRIPTOR_CROPS", 1)  # a fifth of a second each
        from tests.trainer.prepared import write_noise_set

        people = {"a": "train", "b": "train", "c": "test", "d": "test"}
        folder = write_noise_set(tmp_path / "set", splits=people, clips=3, crop_px=32)
        words = ["--data", str(folder), "--checkpoint", str(checkpoint), "--floor"]
        assert main([*words, "--output", str(tmp_path / "report")]) == 0
        result = json.loads((tmp_path / "report" / "metrics.json").read_text())
        out = re.sub(r"\s+", " ", capsys.readouterr().out)
        assert len(result["floors"]) == 3
        for name, entry in result["floors"].items():
            auc, gain = (entry[k]["value"] for k in ("auc", "gain"))
            assert f"floor, {name}: score AUC {auc:.3f} [" in out
            assert f"the model is {gain:+.3f} [" in out

    def test_argmax_leaves_calibration_and_threshold_aside(self, noise: Path, checkpoint: Path):
        from trainer.data.prepared import PreparedSet
        from trainer.report.scorers import checkpoint_scorer

        calibrated = checkpoint_scorer(checkpoint)
        plain = checkpoint_scorer(checkpoint, argmax=True)
        assert (calibrated.threshold, plain.threshold) == (0.6, 0.5)
        clips = PreparedSet(noise).select("test")[:2]
        p, q = calibrated.score(clips).p_fake, plain.score(clips).p_fake
        np.testing.assert_allclose(np.log(p / (1 - p)), np.log(q / (1 - q)) + 0.3, atol=1e-6)

    def test_a_baseline_is_scored_by_the_same_command(self, noise: Path, tmp_path: Path):
        from trainer.data.prepared import PreparedSet
        from trainer.paper.baselines.fit import BaselineConfig, BaselineTrainer

        config = BaselineConfig("vfd", miniature=True, steps=1, batch=4)
        BaselineTrainer(config, PreparedSet(noise), tmp_path).run()
        path = str(tmp_path / "checkpoint.safetensors")
        words = ["--data", str(noise), "--checkpoint", path, "--output", str(tmp_path / "report")]
        assert main(words) == 0
        result = json.loads((tmp_path / "report" / "metrics.json").read_text())
        assert result["variants"]["untrimmed"]["heads"] == {}

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--checkpoint", "CHECKPOINT", "--protocol", "random"], "no protocol"),
            (["--checkpoint", "missing.safetensors"], "cannot read"),
            (["--checkpoint", "CHECKPOINT", "--provider", "cpu"], "--provider"),
        ],
    )
    def test_what_cannot_be_done_is_one_line(
        self, noise: Path, checkpoint: Path, words: list[str], message: str, capsys
    ):
        given = [str(checkpoint) if w == "CHECKPOINT" else w for w in words]
        assert main(["--data", str(noise), *given]) != 0
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1

    def test_crops_of_another_size_are_refused(self, checkpoint: Path, tmp_path: Path, capsys):
        from tests.trainer.prepared import write_noise_set

        other = write_noise_set(tmp_path / "set", splits={"a": "test"}, clips=1, crop_px=64)
        assert main(["--data", str(other), "--checkpoint", str(checkpoint)]) == 2
        assert "--crop-px 32" in capsys.readouterr().err
