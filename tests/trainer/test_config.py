# SPDX-License-Identifier: Apache-2.0
"""The model's configuration: presets, overrides, JSON, and what is refused."""

from __future__ import annotations

import json

import pytest

from runtime.errors import UsageError
from runtime.spec import FaceSpec, ModelSpec
from trainer.config import ABLATION_ARMS, PRESETS, BackboneConfig, ConfigError, ModelConfig, preset


def test_msct_is_the_papers_with_sensible_sizes():
    cfg = preset("msct")
    assert (cfg.channels, cfg.heads, cfg.blocks, cfg.crop_px) == (512, 8, 6, 112)
    assert cfg.backbone.depths == (3, 4, 6, 3)
    assert cfg.backbone.widths == (26, 52, 104, 208)
    assert (cfg.self_attention, cfg.cross_attention) == ("mssa", "dca")
    assert (cfg.lambda_kind, cfg.lambda_value) == ("fixed", 1.0)
    assert not cfg.inject_alignment


def test_msct_tiny_agrees_with_the_runtimes_defaults():
    cfg = preset("msct-tiny")
    assert cfg.model_spec() == ModelSpec()
    assert cfg.crop_px == FaceSpec().crop_px


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_survives_json(name):
    cfg = preset(name)
    assert ModelConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg


def test_overrides_replace_only_what_they_name():
    cfg = preset("msct-tiny", blocks=2, backbone={"cbam": False})
    assert (cfg.blocks, cfg.heads, cfg.backbone.cbam) == (2, 4, False)
    assert cfg.backbone.widths == PRESETS["msct-tiny"].backbone.widths
    whole = preset("msct-tiny", crop_px=64, backbone=BackboneConfig())
    assert whole.backbone == BackboneConfig()


def test_the_arms_are_the_papers_table_and_a_control_of_capacity():
    assert set(ABLATION_ARMS) == {
        "ca+sa", "ca+mssa", "dca+sa", "dca+mssa", "ca-matched+sa", "ca-matched+mssa",
    }  # fmt: skip
    assert preset("msct", **ABLATION_ARMS["dca+mssa"]) == preset("msct")


def test_an_unknown_preset_is_a_usage_error_that_lists_the_known():
    with pytest.raises(UsageError, match=r"msct-huge.*msct, msct-tiny") as error:
        preset("msct-huge")
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"colour": "red"}, "unknown fields colour"),
        ({"backbone": {"colour": "red"}}, "unknown fields colour"),
        ({"self_attention": "msa"}, "not one of mssa, sa"),
        ({"backbone": {"wtconv": "front"}}, "not one of features, rgb, off"),
        ({"heads": 2}, "four groups"),
        ({"heads": 3, "self_attention": "sa"}, "even multiple of heads"),
        ({"mssa_kernels": (1, 3, 5)}, "four odd sizes"),
        ({"mssa_kernels": (1, 2, 3, 5)}, "four odd sizes"),
        ({"match_capacity": True}, "control for cross_attention='ca'"),
        ({"lambda_kind": "learned", "cross_attention": "ca"}, "needs 'dca'"),
        ({"inject_alignment": False}, "inject_lags needs inject_alignment"),
        ({"crop_px": 72}, "multiple of 32"),
        ({"dropout": 1.0}, "dropout"),
        ({"backbone": {"depths": (1, 1)}}, "one entry a stage"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(options, why):
    with pytest.raises(ConfigError, match=why):
        preset("msct-tiny", **options)
