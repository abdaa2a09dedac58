# SPDX-License-Identifier: Apache-2.0
"""Counting verdicts: abstentions are no verdicts, identities are counted, nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the train extra: pip install '.[train]'")

from runtime.errors import UsageError
from runtime.spec import AudioSpec
from runtime.verdict import Label, Reason, Verdict
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
