# SPDX-License-Identifier: Apache-2.0
"""MSSA, DCA in all its readings, their plain forms, and the order of a block."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from trainer.config import preset  # noqa: E402
from trainer.model import ops  # noqa: E402
from trainer.model.attention import (  # noqa: E402
    Block,
    CrossAttention,
    SelfAttention,
    merge_heads,
    split_heads,
)

B, T, C = 2, 9, 128


def config(**options):
    return preset("msct-tiny", dropout=0.0, **options)


def tokens(seed, dtype=torch.float64):
    return torch.randn(B, T, C, dtype=dtype, generator=torch.manual_seed(seed))


def parts(attention, own, other):
    """Q_self, Q_cross, K, V as [B, h, T, D]."""
    q_cross = split_heads(attention.q_cross(other), 4)
    q_self, k, v = (split_heads(x, 4) for x in attention.own(own).chunk(3, dim=-1))
    return q_self, q_cross, k, v


def attend(scores, v):
    return torch.softmax(scores, -1) @ v


def test_heads_split_and_merge():
    x = tokens(0)
    heads = split_heads(x, 4)
    assert heads.shape == (B, 4, T, 32)
    torch.testing.assert_close(heads[1, 2, 5], x[1, 5, 64:96])
    torch.testing.assert_close(merge_heads(heads), x)


def test_mssa_starts_as_plain_self_attention():
    torch.manual_seed(0)
    mssa = SelfAttention(config()).double()
    plain = SelfAttention(config(self_attention="sa")).double()
    plain.load_state_dict({k: v for k, v in mssa.state_dict().items() if "key_convs" not in k})
    torch.testing.assert_close(mssa(tokens(0)), plain(tokens(0)))


def test_mssa_mixes_the_keys_of_neighbours_by_the_scale_of_their_group():
    attention = SelfAttention(config()).double()
    with torch.no_grad():
        for conv in attention.key_convs:
            conv.weight.fill_(1.0)
    weights = [conv.weight for conv in attention.key_convs]
    biases = [conv.bias for conv in attention.key_convs]
    same = torch.zeros(1, 21, C, dtype=torch.float64)
    other = same.clone()
    other[0, 10] = 1.0  # one token differs
    mixed = [
        ops.multi_scale_key_conv(
            split_heads(attention.qkv(x).chunk(3, dim=-1)[1], 4), weights, biases
        )
        for x in (same, other)
    ]
    changed = ((mixed[1] - mixed[0]).abs() > 1e-9).any(-1)[0]  # [h, T]
    widths = [int(c.nonzero().max() - c.nonzero().min()) + 1 for c in changed]
    assert widths == [1, 3, 5, 7]


class TestReadingsOfDca:
    """The paper does not say where the softmax stands; MODEL.md of the project lists three."""

    def build(self, **options):
        torch.manual_seed(0)
        return CrossAttention(config(**options), depth=0).double()

    def test_softmax_then_subtract(self):
        attention = self.build()
        q_self, q_cross, k, v = parts(attention, tokens(1), tokens(2))
        k_t, scale = k.transpose(-1, -2), 32**-0.5
        want = attend(scale * q_self @ k_t, v) - attend(scale * q_cross @ k_t, v)
        got = attention(tokens(1), tokens(2))
        torch.testing.assert_close(got, attention.out(merge_heads(want)))

    def test_subtract_then_softmax(self):
        attention = self.build(dca_reading="subtract_then_softmax")
        q_self, q_cross, k, v = parts(attention, tokens(1), tokens(2))
        k_t, scale = k.transpose(-1, -2), 32**-0.5
        want = attend(scale * q_self @ k_t - scale * q_cross @ k_t, v)
        got = attention(tokens(1), tokens(2))
        torch.testing.assert_close(got, attention.out(merge_heads(want)))

    def test_no_softmax(self):
        attention = self.build(dca_reading="no_softmax")
        q_self, q_cross, k, v = parts(attention, tokens(1), tokens(2))
        want = 32**-0.5 * (q_self @ k.transpose(-1, -2) - q_cross @ k.transpose(-1, -2)) @ v
        got = attention(tokens(1), tokens(2))
        torch.testing.assert_close(got, attention.out(merge_heads(want)))

    def test_lambda_weighs_the_cross_term(self):
        attention = self.build(lambda_value=0.25)
        assert attention.lam().tolist() == [0.25] * 4
        assert attention.lam().dtype == torch.float32


def test_ca_takes_its_query_from_the_other_and_keys_and_values_from_its_own():
    torch.manual_seed(0)
    attention = CrossAttention(config(cross_attention="ca"), depth=0).double()
    q = split_heads(attention.q_cross(tokens(2)), 4)
    k, v = (split_heads(x, 4) for x in attention.own(tokens(1)).chunk(2, dim=-1))
    want = attend(32**-0.5 * q @ k.transpose(-1, -2), v)
    torch.testing.assert_close(attention(tokens(1), tokens(2)), attention.out(merge_heads(want)))


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_learned_lambda_is_the_differential_transformers(depth):
    torch.manual_seed(0)
    attention = CrossAttention(config(lambda_kind="learned"), depth).double()
    initial = 0.8 - 0.6 * math.exp(-0.3 * depth)
    q1, k1, q2, k2 = attention.lambda_vectors.detach()
    want = math.exp(q1 @ k1) - math.exp(q2 @ k2) + initial
    assert attention.lam().tolist() == pytest.approx([want] * 4, rel=1e-5)

    q_self, q_cross, k, v = parts(attention, tokens(1), tokens(2))
    k_t, scale = k.transpose(-1, -2), 32**-0.5
    y = attend(scale * q_self @ k_t, v) - want * attend(scale * q_cross @ k_t, v)
    y = y / torch.sqrt(y.square().mean(-1, keepdim=True) + 1e-5) * (1 - initial)
    torch.testing.assert_close(
        attention(tokens(1), tokens(2)), attention.out(merge_heads(y)), rtol=1e-5, atol=1e-6
    )


def test_both_streams_read_the_others_state_from_before_the_update():
    torch.manual_seed(0)
    block = Block(config(), depth=0).double()
    visual, audio = tokens(1), tokens(2)
    v, a = block.visual, block.audio
    x_v = visual + v.self_attention(v.self_norm(visual))
    x_a = audio + a.self_attention(a.self_norm(audio))
    y_v = x_v + v.cross_attention(v.own_norm(x_v), v.other_norm(x_a))
    y_a = x_a + a.cross_attention(a.own_norm(x_a), a.other_norm(x_v))  # x_v, not y_v
    got_v, got_a = block(visual, audio)
    torch.testing.assert_close(got_v, y_v + v.ffn(v.ffn_norm(y_v)))
    torch.testing.assert_close(got_a, y_a + a.ffn(a.ffn_norm(y_a)))
