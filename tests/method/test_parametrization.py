"""muP's table: initial std, learning rate and multiplier of every parameter; optimizers."""

import math
from dataclasses import replace

import mup
import pytest
import torch

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method import parametrization
from litgpt_warmstart.method.parametrization import Parametrization, Powers
from litgpt_warmstart.method.scales import resolve_config
from litgpt_warmstart.run.optimizer import resolve_optimizer
from tests.conftest import FAMILIES, build, llama, neox


def lr_by_name(model, optimizer) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert names[parameter] not in found, "in two groups"
            found[names[parameter]] = group["lr"]
    return found


def test_lr_over_base_lr_is_1_over_width_mult_for_matrices_that_grow_twice_and_1_elsewhere():
    model = build(neox(48, 6, n_layer=1), neox(16, 2, n_layer=1))
    optimizer = parametrization.build_optimizer(model, torch.optim.AdamW, {}, 0.02)
    matrices = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc.weight", "mlp.proj.weight")
    expected = {name: 0.02 / (3 if name.endswith(matrices) else 1) for name, _ in model.named_parameters()}
    assert lr_by_name(model, optimizer) == pytest.approx(expected) and len(expected) == 16
    parametrization.set_learning_rate(optimizer, 0.02, 0.25)  # a schedule's multiplier is every group's
    assert lr_by_name(model, optimizer) == pytest.approx({name: 0.25 * lr for name, lr in expected.items()})


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_groups_are_those_of_mups_own_optimizer(decay):
    base, target = llama(16, 4, intermediate_size=32), llama(32, 4, head_size=12, intermediate_size=128)
    model, arguments = build(target, base), dict(weight_decay=decay, betas=(0.9, 0.95))
    ours = parametrization.build_optimizer(model, torch.optim.AdamW, arguments, 0.02)
    theirs = mup.MuAdamW(model.parameters(), lr=0.02, **arguments)
    for group, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert group.pop("lr_scale") == other["lr"] / 0.02
        assert all(a is b for a, b in zip(group.pop("params"), other.pop("params"), strict=True))
        assert group == other


def test_a_parametrization_is_an_entry_of_the_table(monkeypatch):
    toy = Parametrization("Toy", matrix=Powers(0.0, 0.5), embedding=Powers(1.0, 0.0), readout=Powers(1.0, 2.0))
    monkeypatch.setitem(parametrization.PARAMETRIZATIONS, "toy", toy)
    base, target = neox(16, 2), neox(64, 2)
    assert parametrization.width_mult(target, base, "toy") == 1
    assert parametrization.mup_config(target, base, "toy").attention_scores_scalar is None
    assert parametrization.mup_config(neox(64, 2), neox(16, 4), "toy").attention_scores_scalar is None
    model = build(target, base)
    weights = dict(parametrization.initial_weights(model, base, 0, parametrization="toy"))
    mup_weights = dict(parametrization.initial_weights(model, base, 0))
    for name, times in (("lm_head.weight", 4), ("transformer.wte.weight", 4), ("transformer.h.0.mlp.fc.weight", 0.5)):
        torch.testing.assert_close(weights[name] * times, mup_weights[name])
    lrs = lr_by_name(model, parametrization.build_optimizer(model, torch.optim.Adam, {}, 1.0, "toy"))
    assert lrs["lm_head.weight"] == 1 / 16 and lrs["transformer.wte.weight"] == 1
    assert lrs["transformer.h.0.mlp.fc.weight"] == lrs["transformer.h.0.attn.qkv.weight"] == 1 / 2


def test_completep_divides_branches_and_eps_by_depth_and_leaves_learning_rates_over_it():
    """arXiv 2505.01618, table 1, at alpha = 1."""
    base, target = neox(16, 2), neox(64, 8, n_layer=6)
    model = build(target, base, parametrization="completep")
    assert parametrization.width_mult(target, base, "completep") == 4
    assert parametrization.branch_divisor(target, base, "completep") == model.depth_mult == 3
    optimizer = parametrization.build_optimizer(model, torch.optim.AdamW, dict(weight_decay=0.1), 0.02, "completep")
    shallow = build(neox(64, 8), base)
    under_mup = lr_by_name(shallow, parametrization.build_optimizer(shallow, torch.optim.AdamW, {}, 0.02))
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        assert group["lr"] * group["weight_decay"] == pytest.approx(0.02 * 0.1)
        for parameter in group["params"]:
            name = names[parameter]
            in_block = name.startswith("transformer.h.")
            assert group["eps"] == pytest.approx(1e-8 / 4 / (3 if in_block else 1)), name
            assert group["lr"] == under_mup[name.replace("h.5.", "h.1.").replace("h.2.", "h.0.")
                                            .replace("h.3.", "h.0.").replace("h.4.", "h.0.")], name  # fmt: skip
    for name, weight in shallow.named_parameters():  # the initial std is the base's over depth
        assert torch.equal(weight, model.get_parameter(name))


@pytest.mark.parametrize("name", parametrization.PARAMETRIZATIONS)
def test_eps_is_scaled_with_the_gradients_where_it_is_asked_for(name):
    table, deep = parametrization.PARAMETRIZATIONS[name], dict(lm_head_bias=True, n_layer=8)
    base, target = neox(16, 2, **deep), neox(64, 8, **deep)
    base = target if table.is_own_base else base
    target = replace(target, n_layer=32) if table.depth else target
    model = build(target, base, parametrization=name)

    def eps(scale_eps: bool) -> dict[str, float]:
        arguments = (torch.optim.AdamW, dict(eps=1e-6), 0.02, name, scale_eps)
        names = {parameter: n for n, parameter in model.named_parameters()}
        groups = parametrization.build_optimizer(model, *arguments).param_groups
        return {names[parameter]: group["eps"] for group in groups for parameter in group["params"]}

    assert set(eps(False).values()) == {1e-6}
    tokens = torch.randint(0, 96, (8, 32), generator=torch.Generator().manual_seed(0))
    small = build(base, base, parametrization=name)
    for each in (model, small):
        each.zero_grad()
        torch.nn.functional.cross_entropy(each(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for parameter, scaled in eps(True).items():  # what it is for: as small beside the gradients as at the base
        if parameter in ("lm_head.weight", "lm_head.bias", "transformer.wte.weight", "transformer.h.1.mlp.fc.weight"):
            ratio = model.get_parameter(parameter).grad.norm() / small.get_parameter(parameter).grad.norm()
            entries = (model.get_parameter(parameter).numel() / small.get_parameter(parameter).numel()) ** 0.5
            assert scaled / 1e-6 == pytest.approx((ratio / entries).item(), rel=0.35), parameter


def test_parametrizations_that_differ_in_depth_alone_carry_alike_where_the_depth_is_the_bases():
    assert parametrization.carry_alike("mup", "completep", neox(48, 6), neox(16, 2))
    assert not parametrization.carry_alike("mup", "completep", neox(48, 6, n_layer=4), neox(16, 2))
    assert not parametrization.carry_alike("mup", "sp", neox(48, 6), neox(16, 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_in_exactly_one_group(family):
    model = build(FAMILIES[family](48, 8), FAMILIES[family](16, 4))
    optimizer = parametrization.build_optimizer(model, torch.optim.AdamW, {}, 0.01)
    assert lr_by_name(model, optimizer).keys() == dict(model.named_parameters()).keys()


def test_initial_std_at_the_mup_base_is_gpt_neoxs_and_shrinks_with_width_only_for_growing_matrices():
    base, target = neox(64, 4, padded_vocab_size=512), neox(256, 16, padded_vocab_size=512)
    small, residual = math.sqrt(2 / (5 * 64)), 1 / (math.sqrt(64) * 2)
    for config, width_mult in ((base, 1), (target, 4)):
        weights = dict(build(config, base).named_parameters())
        for name, std in {
            "lm_head.weight": small,
            "transformer.wte.weight": small,
            "transformer.h.0.attn.qkv.weight": small / math.sqrt(width_mult),
            "transformer.h.1.mlp.fc.weight": small / math.sqrt(width_mult),
            "transformer.h.0.attn.proj.weight": residual / math.sqrt(width_mult),
            "transformer.h.1.mlp.proj.weight": residual / math.sqrt(width_mult),
        }.items():
            assert weights[name].std().item() == pytest.approx(std, rel=0.05), (name, width_mult)
        assert all((w == 0).all() for n, w in weights.items() if n.endswith("bias"))


def test_a_parameters_draw_depends_on_seed_name_and_widths_but_not_on_depth():
    deep, shallow = build(neox(n_layer=3), seed=5), build(neox(n_layer=2), seed=5)
    name = "transformer.h.1.attn.qkv.weight"
    assert torch.equal(deep.get_parameter(name), shallow.get_parameter(name))
    assert not torch.equal(build(neox(), seed=6).get_parameter(name), shallow.get_parameter(name))


def test_70m_over_5m_has_the_shapes_that_mup_expects():
    with torch.device("meta"):
        from litgpt_warmstart.method.model import MuGPT

        base, target = resolve_config("5M"), resolve_config("70M")
        model = MuGPT(parametrization.mup_config(target, base), parametrization.width_mult(target, base))
    parametrization.set_base_shapes(model, base)
    assert model.lm_head.width_mult() == pytest.approx(512 / 48)
    assert model.config.attention_scores_scalar == pytest.approx(32**2 / 24)
    assert model.transformer.h[0].attn.qkv.weight.infshape == mup.InfShape([mup.InfDim(144, 1536), mup.InfDim(48, 512)])
    assert not model.transformer.wte.weight.infshape[0].isinf()


def test_mup_base_of_another_depth_is_refused():
    with pytest.raises(UserError, match="over width only; pass --parametrization completep"):
        parametrization.mup_config(neox(n_layer=3), neox())


@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop"])
def test_adam_like_optimizers_are_taken(name):
    chosen = resolve_optimizer(name)
    parametrization.build_optimizer(build(neox()), chosen.cls, chosen.arguments(fused=True), 0.01)


@pytest.mark.parametrize("name", ["math.pi", ""])
def test_what_is_no_optimizer_is_refused_by_name(name):
    """More of them in guards/test_wrong_input.py."""
    with pytest.raises(UserError, match=name or "AdamW"):
        resolve_optimizer(name)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="no such parameter"):
        parametrization.load_weights(build(neox()), iter([("lm_tail.weight", torch.zeros(2))]))
    with pytest.raises(UserError, match="lack"):
        parametrization.load_weights(build(neox()), iter([]))
