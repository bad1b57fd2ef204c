"""Muon with AdamW beside it: each has its parameters, and muP's rule keeps an update's spectral norm in its place."""

import copy
import math

import pytest
import torch

from litgpt_warmstart.method import parametrization
from litgpt_warmstart.method.muon import Muon, lr_divisor
from tests.conftest import build, llama, neox

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim has no Muon")
TOKENS = torch.randint(0, 96, (4, 33), generator=torch.Generator().manual_seed(0))


def trained(model, optimizer, steps: int) -> None:
    for _ in range(steps):
        logits = model(TOKENS[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_the_blocks_matrices_are_torchs_muons_and_the_rest_adamws():
    model = build(neox(32, 4), neox(16, 2))
    twin = copy.deepcopy(model)
    ours = parametrization.build_optimizer(model, Muon, dict(weight_decay=0.1), 0.02)
    groups = parametrization.build_optimizer(model, torch.optim.AdamW, dict(weight_decay=0.1), 0.02).param_groups
    matrices = {name for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("transformer.h.")}
    named = {parameter: name for name, parameter in model.named_parameters()}
    assert {named[p] for group in ours.param_groups if group.get("orthogonal") for p in group["params"]} == matrices
    assert sorted(sum(len(g["params"]) for g in gs) for gs in (ours.param_groups, groups)) == [len(named)] * 2
    muon = torch.optim.Muon([twin.get_parameter(name) for name in sorted(matrices)], lr=0.02 / math.sqrt(2),
                            weight_decay=0.1 * math.sqrt(2), adjust_lr_fn="match_rms_adamw")  # fmt: skip
    rest = [p for name, p in twin.named_parameters() if name not in matrices]
    adamw = torch.optim.AdamW(rest, lr=0.02, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(3):
        trained(model, ours, 1)
        torch.nn.functional.cross_entropy(twin(TOKENS[:, :-1]).flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
        for each in (muon, adamw):
            each.step()
            each.zero_grad()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, twin.get_parameter(name), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("wrong", [dict(momentum=1.0), dict(momentum=-0.1), dict(ns_steps=0), dict(ns_steps=2.5)])
def test_an_argument_out_of_its_range_is_refused_before_the_first_step(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} {next(iter(wrong.values()))} must"):
        Muon([torch.nn.Parameter(torch.zeros(2, 2))], **wrong)


def test_going_on_from_its_state_gives_the_same_bits():
    model = build(neox(32, 4), neox(16, 2))
    optimizer = parametrization.build_optimizer(model, Muon, {}, 0.02)
    trained(model, optimizer, 2)
    again, saved = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    parametrization.set_base_shapes(again, neox(16, 2))
    resumed = parametrization.build_optimizer(again, Muon, {}, 0.02)
    resumed.load_state_dict(saved)
    trained(model, optimizer, 2)
    trained(again, resumed, 2)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name


@pytest.mark.parametrize("adjust_lr_fn", ["match_rms_adamw", "original"])
@pytest.mark.parametrize(
    ("base", "target"),
    [
        (neox(16, 2), neox(64, 8)),
        (llama(16, 4, intermediate_size=32), llama(32, 4, head_size=12, intermediate_size=128)),
    ],
)
def test_an_updates_spectral_norm_goes_with_the_root_of_outputs_over_inputs(base, target, adjust_lr_fn):
    """arXiv 2310.17813, eq. (1); the Newton-Schulz iteration leaves singular values near 1, not at it."""
    norms = {}
    for which, config in (("base", base), ("target", target)):
        model = build(config, base)
        before = copy.deepcopy(model)
        trained(model, parametrization.build_optimizer(model, Muon, dict(adjust_lr_fn=adjust_lr_fn), 0.02), 1)
        norms[which] = {
            name: torch.linalg.matrix_norm(p - before.get_parameter(name), 2).item() / math.sqrt(len(p) / p.shape[1])
            for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("transformer.h.")
        }  # fmt: skip
    assert norms["target"] == pytest.approx(norms["base"], rel=0.3)


def test_where_both_sides_grow_alike_the_divisor_is_1_or_the_root_of_the_growth():
    assert lr_divisor((256, 64), (64, 16), "original") == 1
    assert lr_divisor((256, 64), (64, 16), "match_rms_adamw") == 2
