"""What muP changes, folded into plain weights: the same logits, and every bit back."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from litgpt_warmstart.method.folding import Folding, without_attention
from tests.conftest import FAMILIES, logits, made, neox

NORMED = dict(FAMILIES, normed_queries_with_bias=lambda *a: neox(*a, norm_qk=True))


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max())


@pytest.mark.parametrize("family", NORMED)
def test_folded_weights_have_the_logits_without_the_scalar(family):
    config = replace(NORMED[family](48, 4), attention_scores_scalar=36)
    plain, weights, folding = replace(config, attention_scores_scalar=None), made(config), Folding(config)
    folded = {name: folding.fold(name, weight) for name, weight in weights.items()}
    assert close(logits(plain, folded), logits(config, weights))
    assert not close(logits(plain, weights), logits(config, weights))  # it had something to do


@pytest.mark.parametrize("family", NORMED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unfolding_brings_every_bit_back_from_the_rows_as_trained(family, dtype):
    folding = Folding(replace(NORMED[family](48, 4), attention_scores_scalar=7.3), 3.0, 2.2)
    for name, weight in made(folding.config).items():
        weight = weight.to(dtype)
        folded = folding.fold(name, weight)
        assert folded.dtype == torch.float32
        back = folding.unfold(name, folded, folding.rows_as_trained(name, weight))
        assert torch.equal(back.float(), weight.float()), name
        torch.testing.assert_close(folding.unfold(name, folded), weight.float(), rtol=1e-6, atol=0)
        stale = folding.rows_as_trained(name, weight + 1)
        torch.testing.assert_close(folding.unfold(name, folded, stale), weight.float(), rtol=1e-6, atol=0)


@settings(max_examples=20)
@given(st.sampled_from(sorted(NORMED)), *[st.floats(1, 100)] * 2, *[st.floats(0.5, 20)] * 4)
def test_under_another_folding_the_logits_stay(
    family, scalar, other_scalar, width_mult, other_width_mult, divisor, other_divisor
):
    config = replace(NORMED[family](16, 4), attention_scores_scalar=scalar)
    then = Folding(config, width_mult, divisor)
    now = Folding(replace(config, attention_scores_scalar=other_scalar), other_width_mult, other_divisor)
    plain, weights = replace(config, attention_scores_scalar=None), made(config)
    moved = {name: then.under(now, name, weight) for name, weight in weights.items()}
    one, two = ({n: f.fold(n, w) for n, w in ws.items()} for f, ws in ((then, weights), (now, moved)))
    assert close(logits(plain, two), logits(plain, one))


def test_what_has_the_usual_scale_is_left_as_it_is():
    config = neox(48, 4)
    for folding in (Folding(config), without_attention(Folding(replace(config, attention_scores_scalar=36)))):
        for name, weight in made(config).items():
            assert folding.fold(name, weight) is weight and folding.rows_as_trained(name, weight) is None
