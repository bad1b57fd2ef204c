"""MuGPT: LitGPT's logits at the muP base, and the same logits in stock LitGPT at every width."""

import copy
from dataclasses import replace

import pytest
import torch
from litgpt.config import Config
from litgpt.model import GPT

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method import parametrization
from litgpt_warmstart.method.folding import Folding
from litgpt_warmstart.method.model import MuGPT
from tests.conftest import FAMILIES, build, llama, made, neox, randomized

TOKENS = torch.randint(0, 96, (2, 48), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_at_the_mup_base_equal_litgpts_bit_for_bit(family):
    model = randomized(build(FAMILIES[family](16, 4)))
    stock = GPT(FAMILIES[family](16, 4))
    stock.load_state_dict(model.state_dict())
    assert torch.equal(model(TOKENS), stock(TOKENS))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("n_embd", "n_head", "head_size"), [(24, 4, 6), (48, 8, 6), (48, 4, 12), (112, 4, 10)])
def test_folded_logits_in_stock_litgpt_equal_mugpts(family, n_embd, n_head, head_size):
    target, base = FAMILIES[family](n_embd, n_head, head_size=head_size), FAMILIES[family](16, 4, head_size=4)
    model = randomized(build(target, base))
    stock = GPT(replace(model.config, attention_scores_scalar=None))
    folding = Folding(model.config, model.lm_head.width_mult())
    stock.load_state_dict({name: folding.fold(name, w) for name, w in model.state_dict().items()})
    expected = model(TOKENS)
    torch.testing.assert_close(stock(TOKENS), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_deeper_models_branches_are_divided_and_folded_logits_equal(family):
    target, base = FAMILIES[family](48, 8, n_layer=6), FAMILIES[family](16, 4)
    model = build(target, base, parametrization="completep")
    model.load_state_dict(made(model.config))
    stock = GPT(replace(model.config, attention_scores_scalar=None))
    folding = parametrization.folding(target, base, "completep")
    assert folding.branch_divisor == 3
    expected = copy.deepcopy(model)(TOKENS)
    stock.load_state_dict({name: folding.fold(name, w) for name, w in model.state_dict().items()})
    torch.testing.assert_close(stock(TOKENS), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    undivided = MuGPT(model.config, folding.width_mult)
    undivided.load_state_dict(model.state_dict())
    assert (undivided(TOKENS) - expected).abs().max() > 1e-3 * expected.abs().max()


def test_attention_scale_is_1_over_d_and_equals_1_over_sqrt_d_at_the_mup_base():
    base = neox(16, 2, head_size=8)
    assert build(base).config.attention_scores_scalar is None
    scalar = build(neox(64, 4, head_size=12), base).config.attention_scores_scalar
    assert scalar == pytest.approx(12**2 / 8)  # 1/sqrt(scalar) = sqrt(8)/12
    assert build(neox(64, 4, head_size=16), base).config.attention_scores_scalar == 32


def test_readout_multiplier_survives_deepcopy_and_assigned_weights():
    model = randomized(build(neox(48, 6), neox(16, 2)))
    expected = model(TOKENS)
    clone = copy.deepcopy(model)
    clone.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(clone(TOKENS), expected)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (llama(mlp_class_name="LLaMAMoE", n_expert=2, n_expert_per_token=1, moe_intermediate_size=8), "mixture"),
        (llama(name="Gemma-tiny"), "Gemma"),
        (llama(scale_embeddings=True), "sqrt"),
    ],
)
def test_families_that_mup_does_not_cover_are_refused_by_name(config: Config, part: str):
    with pytest.raises(UserError, match=part):
        MuGPT(config)
