# SPDX-License-Identifier: Apache-2.0
"""What another precision changes: counted by hand, and on a real clip through the whole stream."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.drift import __main__ as drift
from benchmarks.drift import forms as drift_forms
from benchmarks.drift.compare import Key, compare, false_alarms, key
from runtime.errors import DependencyError, UsageError
from runtime.judging.verdict import Label, Reason, Verdict
from runtime.spec import FRAME_ENCODER_FILE, FUSION_FILE
from tests.runtime.doubles import SPEC, MockBackend

REAL, FAKE, ABSTAIN = Label.REAL, Label.FAKE, Label.ABSTAIN


def verdict(label: Label, p_fake: float | None, t_end_s: float = 2.0, **changes: Any) -> Verdict:
    given: dict[str, Any] = {
        "source": "stream", "model_id": "m", "t_start_s": t_end_s - 2, "t_end_s": t_end_s,
        "face_id": 0, "p_fake": p_fake, "p_fake_video": None, "p_fake_audio": None, "sync": None,
        "av_offset_ms": None, "label": label,
        "reason": Reason.UNCERTAIN if label is ABSTAIN else None, "latency_ms": 0.0,
    }  # fmt: skip
    return Verdict(**{**given, **changes})


def of(clip: str, *verdicts: Verdict) -> dict[Key, Verdict]:
    return {key(clip, v): v for v in verdicts}


def test_changes_of_p_fake_by_hand() -> None:
    times = [2.0, 2.2, 2.4, 2.6]
    before = of("a.mp4", *(verdict(REAL, 0.2, t) for t in times))
    after = of("a.mp4", *(verdict(REAL, p, t) for p, t in zip((0.2, 0.1, 0.5, 0.2), times,
                                                              strict=True)))  # fmt: skip
    found = compare(before, after, ())
    change = found["p_fake"]
    assert (found["windows"], change["windows"], found["judged_in_both"]) == (4, 4, 4)
    assert change["max"] == pytest.approx(0.3)
    assert change["mean"] == pytest.approx(0.1)
    assert change["mean_signed"] == pytest.approx(0.05)
    assert change["p99"] == pytest.approx(0.3 - 0.03 * 0.2)  # a hundredth of three gaps from it
    assert change["worst"] == {"source": "a.mp4", "face_id": 0, "t_end_s": 2.4}
    assert found["false_alarms"] is None


def test_flips_by_hand() -> None:
    rows = [  # before, after
        (REAL, FAKE), (REAL, FAKE), (FAKE, REAL), (REAL, ABSTAIN), (ABSTAIN, FAKE), (REAL, REAL),
        (ABSTAIN, ABSTAIN),
    ]  # fmt: skip
    before = of("a", *(verdict(a, 0.4, float(i)) for i, (a, _) in enumerate(rows)))
    after = of("a", *(verdict(b, 0.4, float(i)) for i, (_, b) in enumerate(rows)))
    found = compare(before, after, ())
    assert found["label_flips"] == {"real_to_fake": 2, "fake_to_real": 1}
    assert found["abstention_flips"] == {"to_abstain": 1, "from_abstain": 1, "other_reason": 0}
    assert found["judged_in_both"] == 4
    turned = {k: dataclasses.replace(v, reason=Reason.FACE_TURNED) if v.reason else v
              for k, v in after.items()}  # fmt: skip
    assert compare(before, turned, ())["abstention_flips"]["other_reason"] == 1


def test_windows_and_scores_that_are_in_one_only_are_counted_not_dropped() -> None:
    before = of("a", verdict(REAL, 0.2, 2.0), verdict(REAL, 0.2, 2.2), verdict(ABSTAIN, None, 2.4))
    after = of("a", verdict(REAL, 0.2, 2.0), verdict(REAL, 0.2, 2.2, face_id=1),
               verdict(ABSTAIN, 0.6, 2.4))  # fmt: skip
    found = compare(before, after, ())
    assert (found["windows"], found["windows_lost"], found["windows_new"]) == (2, 1, 1)
    assert found["scores_without_partner"] == 1
    assert found["p_fake"]["windows"] == 1
    nothing = of("a", verdict(ABSTAIN, None))
    assert compare(nothing, nothing, ())["p_fake"] is None


def test_false_alarms_are_of_judged_windows_of_genuine_clips() -> None:
    genuine = of("a", verdict(REAL, 0.1, 2.0), verdict(FAKE, 0.9, 2.2), verdict(ABSTAIN, 0.9, 2.4),
                 verdict(REAL, 0.1, 2.6), verdict(REAL, 0.1, 2.8))  # fmt: skip
    found = false_alarms({**genuine, **of("b", verdict(FAKE, 0.9))}, {"a"})
    assert (found["windows"], found["judged"], found["fake"], found["rate"]) == (5, 4, 1, 0.25)
    low, high = found["interval"]
    assert low == pytest.approx(0.0063, abs=1e-4)  # Clopper and Pearson's, 1 of 4
    assert high == pytest.approx(0.8059, abs=1e-4)
    none = false_alarms(of("a", verdict(ABSTAIN, 0.9)), {"a"})
    assert (none["judged"], none["rate"], none["interval"]) == (0, None, [0.0, 1.0])


def test_what_cannot_run_here_is_told_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without ONNX Runtime's CUDA and without a GPU the first form alone is left."""

    def opened(folder: Path, provider: str = "cpu") -> MockBackend:
        if provider != "cpu":
            raise DependencyError("this ONNX Runtime has no CUDA")
        return _Closing()

    monkeypatch.setattr(drift_forms, "OnnxBackend", opened)
    monkeypatch.setattr(drift_forms, "_typed", lambda folder, target: folder)
    monkeypatch.setattr("runtime.backends.cuda.device_count", lambda: 0)
    monkeypatch.setattr(
        drift,
        "judge",
        lambda backend, clips, form: of(clips[0], verdict(REAL, 0.1), verdict(FAKE, 0.9, 3)),
    )
    result = drift.measure(tmp_path, ["a.mp4"], ["a.mp4"], [])
    assert [form["form"] for form in result["forms"]] == ["ONNX Runtime CPU, fp16"]
    reasons = {m["form"]: m["reason"] for m in result["missing"]}
    assert list(reasons) == ["ONNX Runtime CUDA, fp32", "ONNX Runtime CUDA, fp16", "TensorRT, fp16"]
    assert reasons["TensorRT, fp16"] == "no NVIDIA GPU here, or no driver for it"
    assert result["forms"][0]["false_alarms"]["after"]["rate"] == 0.5
    table = drift.report({**result, "clips": ["a.mp4"], "machine": {"cores": 2, "processor": "P"}})
    assert "TensorRT, fp16: not here (no NVIDIA GPU here, or no driver for it)" in table
    assert "1 of 2 (50.0%)" in table


class _Closing(MockBackend):
    def __init__(self) -> None:
        super().__init__(dataclasses.replace(SPEC, trained=True))

    def __enter__(self) -> _Closing:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_a_candidate_is_the_same_model_in_another_precision() -> None:
    half = dataclasses.replace(SPEC, precision="fp16", pair_id="mock-fp16", model_id="mock-1-fp16")
    drift_forms.check_same_model(half, SPEC, "candidate half")
    other = dataclasses.replace(half, pair_id="other-fp16")
    calibrated = dataclasses.replace(
        half, calibration=dataclasses.replace(half.calibration, threshold=0.7)
    )
    for wrong in (other, calibrated):
        with pytest.raises(UsageError, match="candidate x is no form of mock-1"):
            drift_forms.check_same_model(wrong, SPEC, "candidate x")


def test_a_reference_of_random_weights_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    untrained = _Closing()
    untrained.spec = dataclasses.replace(SPEC, trained=False)
    monkeypatch.setattr(drift_forms, "OnnxBackend", lambda folder: untrained)
    with pytest.raises(UsageError, match="its weights are random"):
        drift.measure(tmp_path, ["a.mp4"], [], [])


@pytest.mark.thorough
def test_a_real_clip_in_fp16_and_in_fp32_once_more(
    real_pair: Path, grid_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The candidate is the reference itself: not one bit may differ."""
    pytest.importorskip("onnx", reason="typing fp16 needs onnx (.[export])")
    output = tmp_path / "drift.json"
    code = drift.main(
        ["--source", str(grid_clip), "--genuine", str(grid_clip), "--candidate", str(real_pair),
         "--model", str(real_pair), "--output", str(output)]
    )  # fmt: skip
    text = output.read_text(encoding="utf-8")
    result = json.loads(text)
    judged = result["reference"]["windows"] - result["reference"]["labels"]["abstain"]
    assert code == (0 if judged else 3)
    assert result["clips"] == [grid_clip.name]  # given twice, judged once
    assert str(grid_clip.parent) not in text
    half, again = result["forms"][0], result["forms"][-1]
    assert half["precision"] == "fp16"
    assert 0 < half["p_fake"]["max"] <= 0.01  # export.parity's limit
    assert again["p_fake"]["max"] == 0.0
    assert again["windows"] == result["reference"]["windows"] == 6  # 3 s: a window every 0.2 s
    assert again["label_flips"] == {"real_to_fake": 0, "fake_to_real": 0}
    assert "ONNX Runtime CPU, fp16" in capsys.readouterr().out


@pytest.mark.thorough
def test_a_half_pair_is_no_reference(
    real_pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx", reason="typing fp16 needs onnx (.[export])")
    from export.pair import write_pair

    write_pair(real_pair, tmp_path, half=True, clips=None, for_engine=False)
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"")
    assert drift.main(["--model", str(tmp_path), "--source", str(clip)]) == 2
    assert "the reference is an fp32 pair" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "nothing to judge"),
        (["--source", "no-such-clip.mp4"], 2, "no-such-clip.mp4"),
        (["--source", "rtsp://camera/live"], 2, "is live: two runs"),
        (["--source", "{clip}", "--model", "{empty}"], 2, "no model in"),
        (["--source", "{clip}", "--candidate", "{empty}"], 2, "no model in"),
        (["--source", "{clip}", "--candidate", "{broken}"], 1, "is damaged or no ONNX file"),
    ],
)
def test_bad_input_is_one_line_and_a_code(
    arguments: list[str],
    code: int,
    said: str,
    real_pair: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"empty": tmp_path / "empty", "broken": tmp_path / "broken"}
    for folder in places.values():
        folder.mkdir()
    for name in (FRAME_ENCODER_FILE, FUSION_FILE):
        (places["broken"] / name).write_bytes(b"no ONNX file")
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"")
    found = [a.format(clip=clip, **places) for a in arguments]
    assert (
        drift.main([*found, *([] if "--model" in found else ["--model", str(real_pair)])]) == code
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
