"""The operators: which function the target computes, and each entry against a definition written out."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from litgpt.config import Config

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method import growth, parametrization
from litgpt_warmstart.method.growth import OPERATORS, Growth
from litgpt_warmstart.method.growth.axis_maps import axes, axis_size, is_gain, kind_of
from litgpt_warmstart.method.growth.operators import NEW
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.method.parametrization import PARAMETRIZATIONS
from litgpt_warmstart.method.scales import resolve_config
from tests.conftest import FAMILIES, become, build, llama, neox

WIDER = [name for name, operator in OPERATORS.items() if not operator.pads]
DEEPER = [name for name, operator in OPERATORS.items() if operator.deepens]
EXACT = dict(shrink=1.0, perturb=0.0)


def trained(model: MuGPT, seed: int = 1) -> MuGPT:
    """The same model with every parameter random, large enough for attention and MLP to tell."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=draws) * 0.3 + is_gain(name))
    return model


def gap(one: MuGPT, other: MuGPT) -> float:
    """The largest difference of their logits, in standard deviations of these."""
    tokens = torch.randint(0, 96, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = one(tokens), other(tokens)
    return ((logits[0] - logits[1]).abs().max() / logits[0].std()).item()


def model_of(family: str, factor: int = 1, groups: int = 1, **changes: Any) -> Config:
    """A model ``factor`` times as wide as the family's muP base, with heads as large; ``groups`` where it has some."""
    grouped = {} if family in ("neox", "phi") else dict(n_query_groups=groups)
    n_head = changes.pop("n_head", 2 * factor)
    return FAMILIES[family](8 * factor, n_head, head_size=4, **grouped | changes)


# --- the function ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mup", "sp"])
@pytest.mark.parametrize("operator", WIDER)
@pytest.mark.parametrize(("factor", "groups"), [(4, 2), (4, 4), (6, 6)])  # more queries a group, more groups, thrice
@pytest.mark.parametrize("family", FAMILIES)
def test_copies_of_channels_and_heads_compute_what_the_source_did(family, factor, groups, operator, name):
    if family == "olmo2" and operator == "net2net":
        pytest.skip("norms over all heads, which are drawn with replacement")
    base = model_of(family)
    small = model_of(family, 2, 2)
    source = trained(build(small, small if name == "sp" else base, parametrization=name))
    target = model_of(family, factor, groups)
    assert gap(source, become(source, target, Growth(operator=operator, **EXACT), base, name)) < 1e-5


@pytest.mark.parametrize("operator", ["net2net", "fpi"])
@pytest.mark.parametrize("family", ["neox", "llama", "qwen3"])
def test_any_number_of_heads_and_mlp_channels_computes_the_same_at_the_same_n_embd(family, operator):
    source = trained(build(model_of(family, 2, 2)))
    target = model_of(family, 2, 3, n_head=9, intermediate_size=77)
    assert gap(source, become(source, target, Growth(operator=operator, **EXACT), source.config)) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiled_model_computes_the_same_with_its_noise_which_cancels_over_equal_inputs(family):
    source, target = trained(build(model_of(family, 2, 2), model_of(family))), model_of(family, 4, 4)
    quiet, loud = (become(source, target, Growth(1.0, operator="tile", perturb=p), model_of(family)) for p in (0, 1))
    assert gap(source, loud) < 1e-5
    for name in ("transformer.h.1.mlp.proj.weight", "lm_head.weight"):
        noise = (loud.get_parameter(name) - quiet.get_parameter(name)).detach()
        half = noise.shape[1] // 2
        assert (noise[:, :half] + noise[:, half:]).abs().max() < 1e-6
        sigma = build(target, model_of(family), seed=3).get_parameter(name).detach().std()
        assert abs(noise.std() / sigma - 1) < 0.1
    assert torch.equal(loud.transformer.wte.weight, quiet.transformer.wte.weight)  # nothing that could cancel


def test_larger_heads_compute_the_same_where_their_rotary_channels_stay():
    source = trained(build(neox(16, 2, rotary_percentage=0.5)))  # heads of 8, 4 of them rotated
    for head_size in (16, 40):
        target = neox(32, 2, head_size=head_size, rotary_percentage=4 / head_size)
        assert gap(source, become(source, target, Growth(operator="tile", **EXACT), source.config)) < 1e-5


@pytest.mark.parametrize("perturb_where", ["all", "new"])
@pytest.mark.parametrize("family", FAMILIES)
def test_blank_blocks_add_nothing_whatever_is_perturbed_in_them(family, perturb_where):
    source, target = trained(build(model_of(family, 2, 2))), model_of(family, 2, 2, n_layer=5)
    how = Growth(1.0, operator="blank", perturb_where=perturb_where, perturb=0.0)
    model = become_deeper(source, target, how)
    assert gap(source, model) < 1e-5
    shaken = become_deeper(source, target, Growth(1.0, operator="blank"))
    for position, added in enumerate((False, True, True, False, True)):  # 2 blocks at 0 and 3
        block = shaken.transformer.h[position]
        assert added == (not block.attn.proj.weight.any()) == (not block.mlp.proj.weight.any())
        assert block.attn.qkv.weight.all()  # or nothing would ever reach the projections


@pytest.mark.parametrize("family", FAMILIES)
def test_blank_blocks_add_nothing_where_branches_are_divided_by_depth(family):
    base = model_of(family)
    source = trained(build(model_of(family, 2, 2, n_layer=3), base, parametrization="completep"))
    target = model_of(family, 2, 2, n_layer=7)
    assert gap(source, become(source, target, Growth(operator="blank", **EXACT), base, "completep")) < 1e-5


def become_deeper(source: MuGPT, target: Config, how: Growth) -> MuGPT:
    """A deeper model, whose muP base is as deep."""
    return become(source, target, how, target, "sp")


# --- each entry -----------------------------------------------------------------------------------------------------


@st.composite
def tiled_pairs(draw) -> tuple[Config, Config]:
    """Source and target of integer factors, with query groups and rotary shares."""
    n, groups, queries, half = (draw(st.integers(1, 3)) for _ in range(4))
    times = [draw(st.integers(1, 3)) for _ in range(4)]
    rotary = draw(st.sampled_from([0.0, 0.5, 1.0]))

    def config(a: int, b: int, c: int, d: int) -> Config:
        return llama(4 * n * a, groups * b * queries * c, n_query_groups=groups * b, head_size=2 * half,
                     rotary_percentage=rotary, intermediate_size=5 * d, n_layer=1)  # fmt: skip

    return config(1, 1, 1, 1), config(*times)


def slow_tile(axis: str, source: Config, target: Config) -> list[int]:
    """The source's position of each of the target's, by loops."""
    if axis == "n_embd":
        return [i % source.n_embd for i in range(target.n_embd)]
    if axis == "intermediate":
        return [i % source.intermediate_size for i in range(target.intermediate_size)]
    size, old, new = source.head_size, source.n_query_groups, target.n_query_groups
    queries = source.n_head // old, target.n_head // new
    q, kv = [], []
    for group in range(new):
        for query in range(queries[1]):
            head = (group % old) * queries[0] + query % queries[0]
            q += [head * size + channel for channel in range(size)]
        kv += [(group % old) * size + channel for channel in range(size)]
    if axis == "heads":
        return q
    return [*q, *(source.n_head * size + row for row in kv), *((source.n_head + old) * size + row for row in kv)]


@settings(max_examples=60)
@given(tiled_pairs(), st.sampled_from(["attn.qkv", "attn.proj", "mlp.fc_1", "mlp.proj"]))
def test_a_tiled_matrix_equals_its_definition(pair, module):
    source, target = pair
    name = f"transformer.h.0.{module}.weight"
    rows, columns = axes(name)
    weight = torch.randn(axis_size(rows, source), axis_size(columns, source))
    initial = torch.zeros(axis_size(rows, target), axis_size(columns, target))
    grown = growth.grow_tensor(name, weight, initial, source, target, Growth(operator="tile", **EXACT))
    of_row, of_column = slow_tile(rows, source, target), slow_tile(columns, source, target)
    for i, j in itertools.product(range(len(of_row)), range(len(of_column))):
        expected = weight[of_row[i], of_column[j]] / of_column.count(of_column[j])
        assert abs(grown[i, j] - expected) < 1e-6, (i, j)


@pytest.mark.parametrize(("operator", "even"), [("net2net", False), ("fpi", True)])
def test_new_units_copy_random_ones_whose_number_divides_what_reads_them(operator, even):
    source, target = neox(16, 2, intermediate_size=40), neox(40, 2, head_size=8, intermediate_size=100)
    names = [f"transformer.h.{block}.mlp.{module}.weight" for block in (0, 1) for module in ("fc", "proj")]
    found = [OPERATORS[operator].placement(name, source, target, "heads", seed=5) for name in names]
    fc, proj, other_fc, other_proj = found
    units = fc.origins[0]
    assert units[:40].tolist() == list(range(40)) and torch.equal(units, proj.origins[1])
    assert not torch.equal(units, other_fc.origins[0])  # each block's own
    assert torch.equal(fc.origins[1], other_proj.origins[0])  # one residual stream
    copies = torch.bincount(units)
    assert ((copies.max() - copies.min()) <= 1) == even
    residual = torch.bincount(fc.origins[1])
    assert residual.max() - residual.min() == 1
    taken = proj.taken(torch.ones(16, 40))
    for unit in range(40):  # copies of a unit say together what it said
        assert taken[0, units == unit].sum() == pytest.approx(1)
    again = OPERATORS[operator].placement(names[0], source, target, "heads", seed=6)
    assert not torch.equal(again.origins[0], units)


@pytest.mark.parametrize(
    ("operator", "blocks"), [("stack", [0, 1, 0, 1, 0]), ("interpose", [0, 0, 0, 1, 1]), ("blank", [0, 0, 0, 1, 1])]
)
def test_a_deeper_models_blocks_are_the_sources_and_their_widths_are_padded(operator, blocks):
    source, target = trained(build(neox(16, 2))), neox(32, 4, n_layer=5)
    model = become_deeper(source, target, Growth(operator=operator, **EXACT))
    wide = become_deeper(source, neox(32, 4), Growth(**EXACT))
    for position, origin in enumerate(blocks):
        grown, padded = model.transformer.h[position].mlp.fc.weight, wide.transformer.h[origin].mlp.fc.weight
        assert torch.equal(grown, padded)


@pytest.mark.parametrize("operator", [name for name in OPERATORS if name not in WIDER])
@pytest.mark.parametrize("alignment", ["heads", "blocks", "literal", "interleaved"])
def test_new_perturbs_the_entries_alone_that_hold_no_base_weight(alignment, operator):
    target = llama(32, 8, n_layer=5 if operator in DEEPER else 2)
    source = trained(build(llama(16, 4)))
    how = Growth(0.5, alignment, operator=operator, perturb_where="new")
    with_noise = become_deeper(source, target, how)
    without = become_deeper(source, target, Growth(0.5, alignment, operator=operator, perturb=0.0))
    init = build(target, seed=3)
    for name, p in with_noise.named_parameters():
        if is_gain(name):
            continue
        places = OPERATORS[operator].placement(name, source.config, target, alignment, 3)
        held = torch.zeros(p.shape, dtype=torch.bool)
        held[places.held] = True
        if OPERATORS[operator].is_blank(name, source.config, target):
            assert not p.any()
            continue
        expected = torch.where(held, without.get_parameter(name), init.get_parameter(name))
        assert torch.equal(p, expected), name
        assert any((origin == NEW).any() for origin in places.origins)


def test_each_class_is_shrunk_by_its_own_number():
    source, target = trained(build(neox(16, 2))), neox(32, 4)
    shares = dict(embedding=1.0, hidden=0.5, readout=0.25, gains=0.0)
    model = become_deeper(source, target, Growth(shares, perturb=0.0))
    whole = become_deeper(source, target, Growth(**EXACT))
    for name, p in model.named_parameters():
        share = shares[kind_of(name)]
        expected = torch.ones(32) if is_gain(name) else share * whole.get_parameter(name)
        torch.testing.assert_close(p.detach(), expected.detach(), rtol=0, atol=1e-6)


# --- muP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_grown_model_has_the_multipliers_and_learning_rates_of_one_from_scratch(operator, name):
    deeper = dict(n_layer=4) if operator in DEEPER else {}
    if deeper and name == "mup":
        pytest.skip("it carries a learning rate over width only")
    over_depth = PARAMETRIZATIONS[name].depth is not None
    base, target = neox(16, 2, **{} if over_depth else deeper), neox(32, 4, **deeper)
    model = become(trained(build(neox(16, 2))), target, Growth(operator=operator), base, name)
    scratch = build(target, target if PARAMETRIZATIONS[name].is_own_base else base, parametrization=name)
    assert model.lm_head.width_mult() == scratch.lm_head.width_mult() == (1 if name == "sp" else 2)
    assert model.config.attention_scores_scalar == scratch.config.attention_scores_scalar
    assert model.depth_mult == scratch.depth_mult == (2 if deeper and over_depth else 1)
    groups = [
        [(group["lr"], len(group["params"])) for group in optimizer.param_groups]
        for optimizer in (
            parametrization.build_optimizer(each, torch.optim.AdamW, {}, 0.01, name) for each in (model, scratch)
        )
    ]
    assert groups[0] == groups[1]


# --- what does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "source", "target", "told"),
    [
        ("tile", neox(16, 2), neox(24, 3), "n_embd 24 is no multiple of the base's 16"),
        ("tile", neox(16, 2), neox(32, 4, intermediate_size=100), "intermediate_size 100 is no multiple"),
        ("tile", llama(16, 4), llama(32, 6, head_size=4), "queries_per_group 3 is no multiple of the base's 2"),
        ("fpi", resolve_config("5M"), resolve_config("10M"), "rope_n_elem 6 is 4 in the target"),
        ("fpi", neox(16, 2), neox(32, 2), "rope_n_elem 4 is 8"),
        ("net2net", llama(16, 4), llama(32, 8, n_query_groups=8), "queries_per_group 2 would become 1"),
        ("tile", llama(16, 4, rotary_percentage=0.0), llama(32, 4, norm_eps=1e-6), "norm_eps 1e-05 is 1e-06"),
        ("tile", llama(16, 2, norm_qk=True, rotary_percentage=0.0), llama(32, 2, norm_qk=True, rotary_percentage=0.0),
         "head_size 8 would become 16, and a head has a norm of its own"),
        ("pad", neox(16, 2), neox(16, 2, n_layer=3), "n_layer 2, target 'neox-16' has 3: --operator pad keeps"),
        ("stack", neox(16, 2), neox(32, 4), "--operator stack grows the depth, and base 'neox-16' has n_layer 2"),
        ("blank", neox(16, 2, n_layer=3), neox(16, 2), "--operator blank grows the depth"),
        ("interpose", neox(16, 2), neox(8, 2, n_layer=3), "wider than the target"),
    ],
)  # fmt: skip
def test_a_pair_that_an_operator_does_not_fit_is_refused_in_one_line(operator, source, target, told):
    with pytest.raises(UserError) as error:
        growth.check_growable(source, target, Growth(operator=operator))
    assert told in str(error.value) and "\n" not in str(error.value)
