# SPDX-License-Identifier: Apache-2.0
"""The whole network: shapes, sizes, every option forwards and backwards, and what must not leak."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from runtime.judging.offset import lag_curve  # noqa: E402
from trainer.config import ABLATION_ARMS, PRESETS, preset  # noqa: E402
from trainer.model.msct import (  # noqa: E402
    MSCT,
    SPREAD_FLOOR,
    Fusion,
    FusionOutput,
    lag_band,
    lag_peaks,
    sinusoids,
)

B, T = 2, 7


def millions(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


def inputs(cfg, b=B, t=T, seed=0):
    generator = torch.manual_seed(seed)
    px = cfg.crop_px
    frames = torch.randint(0, 256, (b, t, px, px, 3), dtype=torch.uint8, generator=generator)
    return frames, torch.randn(b, t, cfg.audio_dim, generator=generator)


def shaken(model):
    """Away from the first weights, where some parts are the identity."""
    generator = torch.manual_seed(9)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return shaken(MSCT(preset("msct-tiny")))


class TestSizes:
    def test_msct_tiny_fits_12_mb_as_an_fp32_pair(self):
        model = MSCT(preset("msct-tiny"))
        assert millions(model) <= 2.75
        assert 4e6 * millions(model) + 400_000 < 12e6  # with the graphs' own bytes

    def test_msct(self):
        model = MSCT(preset("msct"))
        assert millions(model.frame_encoder) == pytest.approx(24.9, abs=0.05)
        blocks = millions(model.fusion.blocks)
        assert blocks == pytest.approx(53.6, rel=5e-3)  # C = 512, six blocks, as computed
        assert millions(model) == pytest.approx(82.8, abs=0.1)

    @pytest.mark.parametrize("attention", ["sa", "mssa"])
    def test_the_matched_control_is_as_large_as_dca(self, attention):
        sizes = {
            arm: millions(MSCT(preset("msct-tiny", **ABLATION_ARMS[f"{arm}+{attention}"])))
            for arm in ("ca", "ca-matched", "dca")
        }
        assert sizes["ca"] < 0.97 * sizes["dca"]
        assert sizes["ca-matched"] == pytest.approx(sizes["dca"], rel=1e-3)


def test_outputs_have_the_designed_shapes(tiny):
    output = tiny(*inputs(tiny.cfg))
    c, e = tiny.cfg.channels, tiny.cfg.align_dim
    assert {k: tuple(v.shape) for k, v in output._asdict().items()} == {
        "logits_av": (B, 2),
        "logits_a": (B, 2),
        "logits_v": (B, 2),
        "sync": (B, T),
        "align_v": (B, T, e),
        "align_a": (B, T, e),
        "embedding": (B, 2 * c),
        "similarity": (B,),
        "lag_peaks": (B, 2),
    }
    for name in ("align_v", "align_a"):
        torch.testing.assert_close(getattr(output, name).norm(dim=-1), torch.ones(B, T))
    assert output.sync.abs().max() <= 1 + 1e-6


def test_the_fusion_graph_gives_the_contracts_seven_outputs(tiny):
    visual, audio = torch.randn(1, 3, 128), torch.randn(1, 3, 104)
    output = tiny.fusion(visual, audio)
    assert type(output) is FusionOutput
    assert FusionOutput._fields == (
        "logits_av", "logits_a", "logits_v", "sync", "align_v", "align_a", "embedding",
    )  # fmt: skip


OPTIONS = {
    **ABLATION_ARMS,
    "subtract then softmax": {"dca_reading": "subtract_then_softmax"},
    "no softmax": {"dca_reading": "no_softmax"},
    "learned lambda": {"lambda_kind": "learned"},
    "other kernels": {"mssa_kernels": (3, 3, 9, 1)},
    "wavelet on RGB": {"backbone": {"wtconv": "rgb"}},
    "no wavelet, no CBAM": {"backbone": {"wtconv": "off", "cbam": False}},
    "mean pooling": {"backbone": {"pooling": "mean"}},
    "no lag evidence": {"lag_evidence": 0},
    "tokens injected, no lags": {"inject_lags": 0, "lag_evidence": 0},
    "nothing injected": {"inject_alignment": False, "inject_lags": 0, "lag_evidence": 0},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_reaches_every_parameter(name):
    torch.manual_seed(0)
    cfg = preset("msct-tiny", blocks=1, dropout=0.0, **OPTIONS[name])
    model = MSCT(cfg)
    output = model(*inputs(cfg, t=4))
    weights = torch.manual_seed(1)
    total = sum((o * torch.randn(o.shape, generator=weights)).sum() for o in output)
    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert [n for n, g in gradients.items() if g is None] == []
    assert [n for n, g in gradients.items() if not g.isfinite().all()] == []
    assert [n for n, g in gradients.items() if not g.any()] == []


@pytest.mark.thorough
def test_the_paper_sized_model_runs_backwards():
    torch.manual_seed(0)
    cfg = preset("msct")
    model = MSCT(cfg)
    output = model(*inputs(cfg, t=2))
    (output.logits_av.sum() + output.similarity.sum()).backward()
    assert model.frame_encoder.backbone.stem.weight.grad.isfinite().all()


class TestNothingLeaks:
    def test_a_window_does_not_depend_on_the_rest_of_its_batch(self, tiny):
        frames, audio = inputs(tiny.cfg, b=3)
        together = tiny(frames, audio)
        for i in range(3):
            alone = tiny(frames[i : i + 1], audio[i : i + 1])
            for got, want in zip(together, alone, strict=True):
                torch.testing.assert_close(got[i : i + 1], want, rtol=1e-4, atol=1e-5)

    def test_frames_encoded_one_by_one_give_the_window(self, tiny):
        frames, audio = inputs(tiny.cfg, b=1)
        features = torch.cat([tiny.frame_encoder(f[None]) for f in frames[0]])
        cached = tiny.fusion(features[None], audio)
        whole = tiny(frames, audio)
        for got, want in zip(cached, whole[: len(cached)], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)

    def test_alignment_is_each_modalitys_own(self, tiny):
        frames, audio = inputs(tiny.cfg)
        before, after = tiny(frames, audio), tiny(frames, torch.randn_like(audio))
        assert torch.equal(before.align_v, after.align_v)
        assert not torch.allclose(before.align_a, after.align_a)

    def test_the_class_token_has_no_position(self, tiny):
        seen = []
        hook = tiny.fusion.blocks[0].register_forward_pre_hook(lambda _m, args: seen.append(args))
        tiny(*inputs(tiny.cfg))
        hook.remove()
        (visual, audio), fusion = seen[0], tiny.fusion
        assert visual.shape == (B, 1 + T, tiny.cfg.channels)
        torch.testing.assert_close(visual[:, :1], fusion.class_visual.expand(B, -1, -1))
        torch.testing.assert_close(audio[:, :1], fusion.class_audio.expand(B, -1, -1))

    @pytest.mark.parametrize("missing", ["visual", "audio"])
    def test_a_missing_modality_of_zeros_is_finite(self, tiny, missing):
        given = {"visual": torch.randn(1, T, 128), "audio": torch.randn(1, T, 104)}
        given[missing] = torch.zeros_like(given[missing])
        assert all(o.isfinite().all() for o in tiny.fusion(**given))


def test_half_precision_stays_within_a_hundredth(tiny):
    visual, audio = torch.randn(4, 51, 128), torch.randn(4, 51, 104)
    want = tiny.fusion(visual, audio)
    half = copy.deepcopy(tiny.fusion).half()
    got = half(visual.half(), audio.half())
    for name in ("logits_av", "logits_a", "logits_v"):
        p_half, p_full = (getattr(o, name).float().softmax(-1) for o in (got, want))
        torch.testing.assert_close(p_half, p_full, rtol=0, atol=0.01)
    torch.testing.assert_close(got.align_v.float(), want.align_v, rtol=0, atol=0.01)


@pytest.mark.parametrize("length", [1, 2, 51, 512, 700])
def test_any_window_length(tiny, length):
    output = tiny.fusion(torch.randn(1, length, 128), torch.randn(1, length, 104))
    assert output.sync.shape == (1, length)
    assert all(o.isfinite().all() for o in output)


def test_positions_are_fixed_sinusoids_in_float32():
    like = torch.zeros(1, dtype=torch.float16)
    got = sinusoids(600, 8, like)
    assert got.dtype == torch.float32
    t = torch.arange(600, dtype=torch.float64)[:, None]
    rate = 10_000.0 ** -(torch.arange(4, dtype=torch.float64) / 4)
    want = torch.cat((torch.sin(t * rate), torch.cos(t * rate)), dim=1)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 5, 20])
@pytest.mark.parametrize("lags", [1, 3, 8])
def test_lag_band_reads_the_diagonals(length, lags):
    similarity = torch.randn(2, length, length)
    band = lag_band(similarity, lags)
    assert band.shape == (2, length, 2 * lags + 1)
    for t in range(length):
        for lag in range(-lags, lags + 1):
            inside = 0 <= t + lag < length
            want = similarity[:, t, t + lag] if inside else torch.zeros(2)
            assert torch.equal(band[:, t, lags + lag], want)


def test_lag_peaks_are_those_of_the_runtimes_lag_curve(tiny):
    """As measured on the device, for windows of any length that has all lags."""
    generator = torch.manual_seed(3)
    v, a = (torch.randn(2, 40, 8, generator=generator) for _ in range(2))
    v, a = v / v.norm(dim=-1, keepdim=True), a / a.norm(dim=-1, keepdim=True)
    a[1, 9:] = v[1, :-9]  # the sound of the second pair comes 9 tokens late
    got = lag_peaks(v @ a.transpose(1, 2), 15, 5)
    for i in range(2):
        curve = lag_curve(v[i].numpy(), a[i].numpy(), 15)
        beyond = np.concatenate((curve[:10], curve[21:]))
        every = v[i].double().numpy() @ a[i].double().numpy().T
        want = np.array([curve[10:21].max(), beyond.max()]) - every.mean()
        want /= np.hypot(every.std(), SPREAD_FLOOR)
        np.testing.assert_allclose(got[i].numpy(), want, rtol=1e-4, atol=1e-5)
    assert got[1, 1] > 2 > got[1, 0]


def test_a_window_whose_tokens_are_all_alike_has_no_peak():
    assert torch.equal(lag_peaks(torch.full((1, 30, 30), 0.5), 15, 5), torch.zeros(1, 2))


def test_the_decision_does_not_bend_the_alignment(tiny):
    """What the lag evidence says of a pair sends no gradient back to the tokens it is read from."""
    fusion = copy.deepcopy(tiny.fusion)
    for head in (fusion.inject_band, fusion.inject):
        torch.nn.init.zeros_(head.weight)
    visual, audio = torch.randn(2, 50, 128), torch.randn(2, 50, 104)
    before = fusion(visual, audio).logits_av
    torch.nn.init.constant_(fusion.head_lags.weight[1], -0.5)
    out = fusion(visual, audio)
    assert not torch.allclose(out.logits_av, before)
    out.logits_av.sum().backward()
    assert fusion.head_lags.weight.grad.any()
    gradients = [p.grad for p in fusion.align_audio.parameters()]
    assert all(g is None or not g.any() for g in gradients)


def test_an_untrained_model_is_undecided():
    torch.manual_seed(0)
    for name in PRESETS:
        cfg = preset(name, blocks=1)
        fusion = Fusion(cfg).eval()
        output = fusion(torch.randn(4, 50, cfg.channels), torch.randn(4, 50, 104))
        p_fake = output.logits_av.softmax(-1)[:, 1]
        assert (p_fake - 0.5).abs().max() < 0.35
