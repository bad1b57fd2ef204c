"""Carried moments: what a grown model's own gradients are, where growth preserves the function."""

import copy

import pytest
import torch

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method import parametrization
from litgpt_warmstart.method.folding import Folding
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.method.moments import carry
from tests.conftest import FAMILIES, become, build, neox

TOKENS = torch.randint(0, 96, (4, 33), generator=torch.Generator().manual_seed(0))


def gradients(model: MuGPT) -> dict[str, torch.Tensor]:
    logits = model(TOKENS[:, :-1])
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def carried(source: MuGPT, target: MuGPT, growth: Growth, name: str, **state: object) -> dict[str, dict]:
    """A state of the source's gradients and their squares, carried."""
    states = {
        n: {"step": torch.tensor(7.0), "exp_avg": g, "exp_avg_sq": g.square(), **state}
        for n, g in gradients(source).items()
    }
    return dict(carry(states, source, target, growth, name))


def trained(model: MuGPT) -> MuGPT:
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn(p.shape, generator=draws) * 0.1
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("operator", "name", "shape"),
    [("tile", "mup", (48, 12, 2)), ("blank", "completep", (16, 4, 4))],
)
def test_where_the_function_is_preserved_they_are_the_grown_models_own(family, operator, name, shape):
    base, (n_embd, n_head, n_layer) = FAMILIES[family](16, 4), shape
    more = dict(n_query_groups=n_head * base.n_query_groups // 4, n_layer=n_layer)
    source, config = trained(build(base)), FAMILIES[family](n_embd, n_head, **more)
    growth = Growth(1.0, perturb=0.0, gains="copied", operator=operator)
    target = become(source, config, growth, base, name)
    torch.testing.assert_close(target(TOKENS), copy.deepcopy(source)(TOKENS), rtol=1e-4, atol=1e-5)
    states, own = carried(source, target, growth, name), gradients(target)
    for parameter, state in states.items():
        assert state["step"] == 7
        expected = own[parameter]
        if operator == "blank" and not state["exp_avg"].any():
            continue  # what is new begins at 0
        torch.testing.assert_close(state["exp_avg"], expected, rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(state["exp_avg_sq"], expected.square(), rtol=1e-3, atol=1e-12)


def test_padded_entries_begin_at_0_and_the_bases_are_divided_by_the_growth_of_width():
    source = trained(build(neox(16, 2)))
    target = build(neox(48, 6), neox(16, 2))
    states, own = carried(source, target, Growth(), "mup"), gradients(copy.deepcopy(source))
    parametrization.set_base_shapes(source, neox(16, 2))
    name = "transformer.h.1.mlp.fc.weight"
    for what, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
        moment = states[name][what].clone()
        torch.testing.assert_close(moment[:64, :16], own[name] ** power / 3**power)
        moment[:64, :16] = 0
        assert not moment.any()
    assert carried(source, target, Growth({"hidden": 0.0}), "mup")[name]["exp_avg"].count_nonzero() == 0


def test_under_another_mup_base_they_are_those_of_the_same_function():
    own, base = trained(build(neox(16, 2))), neox(8, 2, head_size=4)  # the readout and q are larger under this one
    source, foldings = build(own.config, base), (Folding(own.config), parametrization.folding(own.config, base))
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            parameter.copy_(foldings[0].under(foldings[1], name, own.get_parameter(name)))
    growth = Growth(1.0, perturb=0.0, gains="copied", operator="tile")
    target = become(source, neox(48, 6), growth, base)
    torch.testing.assert_close(target(TOKENS), own(TOKENS), rtol=1e-4, atol=1e-5)
    states = {n: {"exp_avg": g, "exp_avg_sq": g.square()} for n, g in gradients(own).items()}
    found, expected = dict(carry(states, source, target, growth, "mup", foldings=foldings)), gradients(target)
    for name, state in found.items():
        torch.testing.assert_close(state["exp_avg"], expected[name], rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(state["exp_avg_sq"], expected[name].square(), rtol=1e-3, atol=1e-12)


def test_a_state_that_is_not_known_is_refused():
    source, target = build(neox(16, 2)), build(neox(32, 4), neox(16, 2))
    with pytest.raises(UserError, match="hessian of the base's optimizer is not known"):
        carried(source, target, Growth(), "mup", hessian=torch.zeros(3))
