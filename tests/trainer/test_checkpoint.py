# SPDX-License-Identifier: Apache-2.0
"""A checkpoint gives back the model, its configuration and its spec, or says why not."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
from safetensors.torch import save_file  # noqa: E402

from runtime.errors import ModelError  # noqa: E402
from runtime.spec import Calibration, PairSpec  # noqa: E402
from trainer.config import preset  # noqa: E402
from trainer.model.checkpoint import load_checkpoint, save_checkpoint, weights_digest  # noqa: E402
from trainer.model.msct import MSCT  # noqa: E402

CFG = preset("msct-tiny", blocks=1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MSCT(CFG).eval()


@pytest.fixture
def path(model, tmp_path):
    path = tmp_path / "run" / "best.safetensors"
    spec = PairSpec(trained=True, calibration=Calibration(temperature_av=1.5))
    save_checkpoint(path, model, CFG, spec)
    return path


def test_the_model_comes_back_whole(model, path):
    loaded, cfg, spec = load_checkpoint(path)
    assert cfg == CFG
    assert spec == PairSpec(trained=True, calibration=Calibration(temperature_av=1.5))
    assert not loaded.training
    frames = torch.randint(0, 256, (1, 3, 64, 64, 3), dtype=torch.uint8)
    audio = torch.randn(1, 3, 104)
    for got, want in zip(loaded(frames, audio), model(frames, audio), strict=True):
        assert torch.equal(got, want)


def test_a_spec_is_optional(model, tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", model, CFG, None)
    assert load_checkpoint(tmp_path / "a.safetensors", expect=CFG)[2] is None


def test_nothing_is_left_beside_the_file(path):
    assert [p.name for p in path.parent.iterdir()] == ["best.safetensors"]


def test_another_configuration_is_refused_and_named(path):
    other = preset("msct-tiny")
    with pytest.raises(ModelError, match=f"blocks 1 instead of {other.blocks}"):
        load_checkpoint(path, expect=other)


def test_a_configuration_that_is_not_the_models_cannot_be_saved(model, tmp_path):
    with pytest.raises(ModelError, match="not the one"):
        save_checkpoint(tmp_path / "a", model, preset("msct-tiny"), None)


def test_weights_that_do_not_fit_are_refused(model, tmp_path):
    lying = MSCT(CFG)
    lying.fusion.blocks = torch.nn.ModuleList()
    save_checkpoint(tmp_path / "a", lying, CFG, None)
    with pytest.raises(ModelError, match="do not fit"):
        load_checkpoint(tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"\xff" * 100])
def test_a_damaged_file_is_one_clear_line(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot read the checkpoint") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_refused(path):
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot read"):
        load_checkpoint(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(ModelError, match="cannot read"):
        load_checkpoint(tmp_path / "none.safetensors")


def test_safetensors_of_another_origin_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a", {"format": "pt"})
    with pytest.raises(ModelError, match="no checkpoint of this project"):
        load_checkpoint(tmp_path / "a")


def test_an_unwritable_place_is_one_clear_line(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot write"):
        save_checkpoint(tmp_path / "file" / "a", model, CFG, None)


def test_the_specs_shapes_come_from_the_configuration():
    spec = dataclasses.replace(PairSpec(), model=CFG.model_spec())
    assert spec.model.blocks == 1


def test_the_digest_is_of_the_weights_alone(model, path):
    loaded = load_checkpoint(path)[0]
    before = weights_digest(model)
    assert weights_digest(loaded) == before
    with torch.no_grad():
        loaded.fusion.head_both.bias[0] += 1e-7
    assert weights_digest(loaded) != before
