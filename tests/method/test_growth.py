"""Growth: where each weight goes, and what it becomes there (eq. 1 of arXiv 2411.07340)."""

import itertools
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from litgpt.config import Config

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method import growth, parametrization
from litgpt_warmstart.method.growth import Grown, Growth
from litgpt_warmstart.method.growth.axis_maps import axes, axis_map, axis_size, heads_reason, is_gain, resolve_alignment
from litgpt_warmstart.parsing import Unreadable, parse
from tests.conftest import FAMILIES, become, build, llama, neox, randomized

# --- the map against a slow reference, written from the definition -------------------------------------------------


def slow_r(j: int, source: Config, target: Config) -> int:
    n_s, n_t = source.rope_n_elem, target.rope_n_elem
    if j < n_s / 2:
        return j
    if j < n_s:
        return j - n_s // 2 + n_t // 2
    return j - n_s + n_t


def slow_heads_map(axis: str, source: Config, target: Config) -> list[int]:
    """Loops over blocks, groups, queries and channels, with no arithmetic shared with the implementation."""
    per_group_s, per_group_t = source.n_head // source.n_query_groups, target.n_head // target.n_query_groups
    groups, channels = range(target.n_query_groups), range(target.head_size)
    # (group, index in group, channel) -> row of the target's block, counted off
    position_q = {place: row for row, place in enumerate(itertools.product(groups, range(per_group_t), channels))}
    position_kv = {place: row for row, place in enumerate(itertools.product(groups, channels))}
    queries, keys, values, heads = [], [], [], []
    for group, index, j in itertools.product(range(source.n_query_groups), range(per_group_s), range(source.head_size)):
        queries.append(position_q[group, index, slow_r(j, source, target)])
        heads.append(position_q[group, index, j])
    for group, j in itertools.product(range(source.n_query_groups), range(source.head_size)):
        keys.append(len(position_q) + position_kv[group, slow_r(j, source, target)])
        values.append(len(position_q) + len(position_kv) + position_kv[group, j])
    return {
        "qkv": queries + keys + values,
        "heads": heads,
        "norm_q": queries,
        "norm_k": [k - len(position_q) for k in keys],
    }[axis]


@st.composite
def config_pairs(draw) -> tuple[Config, Config]:
    """Source and wider target with query groups and head sizes of their own."""
    rotary = draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    small = {k: draw(st.integers(1, high)) for k, high in (("groups", 3), ("per_group", 3), ("head_size", 12))}
    large = {k: v + draw(st.integers(0, 5)) for k, v in small.items()}
    source, target = (
        llama(8 * k, n["groups"] * n["per_group"], n_query_groups=n["groups"], head_size=n["head_size"],
              rotary_percentage=rotary, norm_qk=True, norm_qk_type="olmo2")
        for k, n in ((1, small), (2, large))
    )  # fmt: skip
    return source, target


@settings(max_examples=200, suppress_health_check=[HealthCheck.filter_too_much])
@given(config_pairs())
def test_heads_map_equals_the_definition(pair):
    source, target = pair
    assume(heads_reason(source, target) is None)
    for axis in ("qkv", "heads", "norm_q", "norm_k"):
        assert axis_map(axis, source, target, "heads").tolist() == slow_heads_map(axis, source, target), axis


@settings(max_examples=200)
@given(config_pairs())
def test_every_map_is_injective_and_inside_the_target(pair):
    source, target = pair
    possible, _ = resolve_alignment(source, target, "heads")
    for alignment, axis in itertools.product((possible, "blocks", "literal"), ("qkv", "heads", "norm_q", "norm_k")):
        positions = axis_map(axis, source, target, alignment).tolist()
        assert len(set(positions)) == len(positions) == axis_size(axis, source)
        assert min(positions) >= 0 and max(positions) < axis_size(axis, target)


def test_blocks_keep_row_r_of_each_of_q_k_and_v_and_literal_pads_the_fused_tensor_as_it_stands():
    source, target = llama(16, 4, n_query_groups=2, head_size=2), llama(32, 4, n_query_groups=2, head_size=3)
    assert axis_map("heads", source, target, "blocks").tolist() == list(range(8))
    blocks = [*range(8), *(12 + row for row in range(4)), *(18 + row for row in range(4))]
    assert axis_map("qkv", source, target, "blocks").tolist() == blocks
    assert axis_map("qkv", source, target, "literal").tolist() == list(range(16))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(head_size=6), "head_size 8 -> 6"),
        (dict(n_query_groups=1), "query groups 2 -> 1"),
        (dict(n_query_groups=4), "queries per group 2 -> 1"),
        (dict(rotary_percentage=0.5, head_size=16), "rotary_percentage 1.0 -> 0.5"),
        (dict(rope_interleave=True), "interleaved"),
        (dict(head_size=9), "odd number of rotary channels 8 -> 9"),
    ],
)
def test_heads_that_cannot_be_kept_give_way_to_blocks_with_the_reason(change, reason):
    source = llama(16, 4, n_query_groups=2, head_size=8)
    target = llama(64, 4, **({"n_query_groups": 2, "head_size": 8} | change))
    assert reason in heads_reason(source, target)
    if target.n_query_groups * target.head_size < 16:  # too few rows even for blocks
        with pytest.raises(UserError, match="does not fit .*more or larger heads"):
            resolve_alignment(source, target, "heads")
    else:
        assert resolve_alignment(source, target, "heads")[0] == "blocks"


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_shrink_0_equals_the_vanilla_mup_init_bit_for_bit(family):
    source, target = FAMILIES[family](16, 4), FAMILIES[family](64, 8)
    vanilla = {name: p.detach() for name, p in build(target, source, seed=3).named_parameters()}
    for name, tensor in become(randomized(build(source)), target, Growth(0.0), source).state_dict().items():
        assert torch.equal(tensor.view(torch.int32), vanilla[name].view(torch.int32)), name


@pytest.mark.parametrize("alignment", ["heads", "blocks", "literal"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(64, 8), (16, 4)])  # to its own size: the identity
def test_shrink_1_without_perturbation_embeds_the_source_where_the_map_says(family, alignment, size):
    source, target = FAMILIES[family](16, 4), FAMILIES[family](*size)
    model = randomized(build(source))
    result = become(model, target, Growth(1.0, alignment, 0.0), source).state_dict()
    assert result.keys() == dict(build(target).named_parameters()).keys()
    for name, p in model.named_parameters():
        index = [axis_map(axis, source, target, alignment) for axis in axes(name)]
        expected = torch.ones(result[name].shape) if is_gain(name) else torch.zeros(result[name].shape)
        for place in itertools.product(*(range(n) for n in p.shape)):
            expected[tuple(index[axis][i] for axis, i in enumerate(place))] = p[place].detach()
        assert torch.equal(result[name], expected), name


def test_a_weight_becomes_shrink_times_source_plus_the_init_and_a_gain_moves_towards_1():
    source, target = neox(16, 2), neox(32, 4)
    model = randomized(build(source))
    result, init = become(model, target, Growth(0.4), source).state_dict(), build(target, source, seed=3)
    fc = "transformer.h.0.mlp.fc.weight"
    torch.testing.assert_close(
        result[fc][:64, :16], init.get_parameter(fc)[:64, :16] + 0.4 * model.get_parameter(fc), rtol=0, atol=1e-7
    )
    assert torch.equal(result[fc][64:], init.get_parameter(fc)[64:])
    gain = "transformer.h.1.norm_1.weight"
    torch.testing.assert_close(result[gain][:16], 0.6 + 0.4 * model.get_parameter(gain), rtol=0, atol=1e-7)
    assert (result[gain][16:] == 1).all()


@pytest.mark.parametrize(
    ("gains", "expected"), [("shrunk", 0.6 + 0.4 * 1.5), ("added", 1 + 0.4 * 1.5), ("copied", 1.5), ("reset", 1.0)]
)
def test_each_way_to_grow_a_gain_by_hand_and_new_channels_get_1(gains, expected):
    name = "transformer.ln_f.weight"
    result = growth.grow_tensor(
        name, torch.full((16,), 1.5), torch.ones(32), neox(16), neox(32, 4), Growth(0.4, gains=gains)
    )
    torch.testing.assert_close(result[:16], torch.full((16,), expected), rtol=0, atol=1e-6)
    assert (result[16:] == 1).all()
    weight = growth.grow_tensor("transformer.wte.weight", torch.ones(96, 16), torch.zeros(96, 32), neox(16),
                                neox(32, 4), Growth(0.4, gains=gains))  # fmt: skip
    assert (weight[:, :16] == 0.4).all() and (weight[:, 16:] == 0).all()


def test_source_in_bf16_grows_into_fp32():
    model = randomized(build(neox()))
    source = {name: p.detach().bfloat16() for name, p in model.named_parameters()}
    how = Growth(shrink=1.0, perturb=0.0)
    initial = parametrization.initial_weights(build(neox(32, 4), neox()), neox(), 0, how)
    result = dict(growth.grow(source, initial, neox(), neox(32, 4), how))["transformer.wte.weight"]
    assert result.dtype == torch.float32
    assert torch.equal(result[:, :16], source["transformer.wte.weight"].float())


# --- what cannot grow ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "names"),
    [
        (neox(32, 4), neox(16, 2), ["wider", "32 > 16"]),
        (neox(), neox(32, n_layer=3), ["n_layer 2", "depth"]),
        (neox(), neox(32, padded_vocab_size=128), ["padded_vocab_size 96", "tokenizer"]),
        (neox(), llama(32), ["mlp_class_name", "kind of block"]),
        (neox(), neox(32, bias=False), ["bias True"]),
        (llama(16, 4, norm_qk=True), llama(32, 4), ["norm_qk True"]),
        (llama(16, 4, intermediate_size=200), llama(32, 4), ["intermediate_size 200 > 96"]),
    ],
)
def test_a_pair_that_cannot_grow_is_refused_by_name(source, target, names):
    with pytest.raises(UserError) as error:
        growth.check_growable(source, target)
    assert all(name in str(error.value) for name in names) and "\n" not in str(error.value)


def test_weights_of_another_shape_than_their_config_are_refused():
    source = {name: p.detach() for name, p in build(neox(24, 2)).named_parameters()}
    initial = parametrization.initial_weights(build(neox(32, 4), neox()), neox(), 0)
    with pytest.raises(UserError, match="belong to different models"):
        dict(growth.grow(source, initial, neox(), neox(32, 4), Growth(0.4)))


@pytest.mark.parametrize("target", [neox(128, 8), neox(64, 8, intermediate_size=512)], ids=["wider", "of one width"])
def test_the_perturbation_is_independent_of_the_sources_own_init_under_the_same_seed(target):
    source = neox(64, 4)
    grown_init, own = build(target, source, seed=3), build(source, seed=3)
    for name in ("transformer.wte.weight", "lm_head.weight", "transformer.h.0.attn.qkv.weight"):
        a, b = grown_init.get_parameter(name).detach(), own.get_parameter(name).detach()
        rows = min(len(a), len(b))
        for row in (0, 1, rows - 1):  # a shared stream would show in the first row, or in all of them
            pair = torch.stack((a[row, :64], b[row, :64]))
            assert abs(torch.corrcoef(pair)[0, 1]) < 0.6, (name, row)


def test_an_unknown_parameter_raises():
    with pytest.raises(KeyError, match="gate"):
        axes("transformer.h.0.mlp.gate.weight")


# --- what is asked for, and what is told of it ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (dict(shrink=1.1), "--shrink must lie in [0, 1], got 1.1"),
        (dict(shrink="much"), "--shrink 'much': give a number"),
        (dict(shrink={"gains": None}), "--shrink None of gains: give a number"),
        (dict(shrink=-0.1), "--shrink must lie in [0, 1]"),
        (dict(perturb=-1.0), "--perturb must not be negative"),
        (dict(perturb=float("nan")), "--perturb must not be negative"),
        (dict(shrink=0.0, perturb=0.0), "leaves no weights"),
        (dict(shrink={"gains": 0.9}, gains="reset"), "--shrink of gains is nothing to --gains reset: leave"),
        (dict(alignment="rows"), "--alignment 'rows' is none of heads, blocks, literal"),
        (dict(operator="pat"), "--operator 'pat' is none of pad, tile, net2net, fpi, stack, interpose, blank"),
        (dict(shrink={}), "--shrink is an empty mapping: give a number, or one for some of embedding, hidden"),
        (dict(shrink={"hidden": 0.0}, perturb=0.0), "--shrink 0 of hidden with --perturb 0 leaves no weights: change"),
        (dict(perturb_where="some"), "--perturb_where 'some' is none of all, new"),
        (dict(growth="loud"), "--growth 'loud' is none of paper, quiet"),
        (dict(shrink={"heads": 1.0}), "--shrink has no class 'heads': choose from embedding, hidden, readout, gains"),
        (dict(shrink={"hidden": 1.5}), "--shrink must lie in [0, 1], got 1.5 of hidden"),
        (
            dict(shrink=dict.fromkeys(("embedding", "hidden", "readout", "gains"), 0.0), perturb=0.0),
            "leaves no weights",
        ),
        (dict(operator="tile", alignment="blocks"), "--alignment blocks is for operators that pad; --operator tile"),
        (dict(operator="fpi", perturb_where="new"), "--perturb_where new would perturb nothing"),
        (dict(operator="net2net", growth="quiet"), "--growth quiet would perturb nothing"),
    ],
)
def test_a_growth_that_cannot_be_is_refused(options, told):
    with pytest.raises(UserError) as error:
        Growth(**options)
    assert told in str(error.value)


def test_a_label_tells_shrink_and_what_is_not_as_by_default():
    assert Growth().label == "shrink 0.4"
    assert Growth(0.2, "literal", 0.5, "copied").label == "shrink 0.2, alignment literal, perturb 0.5, gains copied"
    assert Growth(0.0).from_scratch and not Growth(0.0, perturb=0.5).from_scratch


def test_a_preset_fills_in_what_is_not_typed():
    quiet = Growth(growth="quiet")
    assert quiet.perturb_where == "new"
    assert quiet.shrink == {"embedding": 1.0, "hidden": 0.4, "readout": 0.4, "gains": 0.4}
    assert Growth(0.7, growth="quiet").shrink == quiet.shrink | dict.fromkeys(("hidden", "readout", "gains"), 0.7)
    assert Growth(1.0, growth="quiet").shrink == 1.0
    assert Growth({"embedding": 0.5}, growth="quiet").shrink_of("embedding") == 0.5
    assert Growth(growth="quiet", perturb_where="all").perturb_where == "all"
    assert Growth(growth="paper") == Growth() and Growth().perturb_where == "all"
    assert replace(quiet, shrink=0.2) == Growth(0.2, growth="quiet")


def test_one_growth_is_told_in_one_way_however_it_is_typed():
    typed = Growth({"embedding": 1.0}, perturb_where="new")
    assert typed == Growth(growth="quiet") and hash(typed) == hash(Growth(growth="quiet"))
    assert typed.label == "shrink 0.4, growth quiet"
    assert Growth(dict.fromkeys(("embedding", "hidden", "readout", "gains"), 0.4)) == Growth()
    assert Growth({"gains": 0}).label == "shrink 0.4, shrink of gains 0"
    assert Growth(1.0, operator="tile", perturb=0.0).label == "shrink 1, perturb 0, operator tile"
    assert Growth(perturb_where="new").label == "shrink 0.4, perturb_where new"


@pytest.mark.parametrize("options", [dict(growth="quiet"), dict(operator="tile"), dict(perturb_where="new")])
def test_shrink_0_is_a_plain_run_from_scratch_whatever_else_is_asked_for(options):
    assert Growth(0.0, **options).from_scratch
    source, target, how = randomized(build(neox(16, 2))), neox(32, 4), Growth(0.0, **options)
    initial = parametrization.initial_weights(build(target), target, 3, how)
    weights = dict(growth.grow(dict(source.state_dict()), initial, source.config, target, how))
    assert all(torch.equal(weights[name], p) for name, p in build(target, seed=3).named_parameters())


def test_a_record_of_before_there_were_operators_tells_pad_heads_and_noise_everywhere():
    older = dict(shrink=0.4, alignment="heads", perturb=1.0, gains="shrunk", source_dir="base", asked_alignment="heads",
                 alignment_reason=None, seed=7)  # fmt: skip
    assert parse(Grown, older).options == Growth().options
    told = Growth({"hidden": 0.5}, operator="stack", growth="quiet").done(neox(), neox(32, 4), Path("base"), 7)
    assert parse(Grown, asdict(told)) == told and told.asked.operator == "stack"
    assert (
        told.told
        == "shrink 0.5, alignment heads, shrink of readout 0.4, shrink of gains 0.4, operator stack, growth quiet"
    )
    assert Growth(operator="tile").done(neox(), neox(32, 4), Path("base"), 7).told == "shrink 0.4, operator tile"


def test_a_record_tells_the_alignment_that_was_used_and_the_one_asked_for():
    told = Growth(0.2).done(neox(16, 2), neox(32, 8), Path("base"), 7)
    assert (told.alignment, told.asked_alignment, told.seed, told.source_dir) == ("blocks", "heads", 7, "base")
    assert told.asked == Growth(0.2)
    assert told.told == "shrink 0.2, alignment blocks instead of heads (head_size 8 -> 4)"
    assert parse(Grown, asdict(told)) == told
    older = {name: value for name, value in asdict(told).items() if name != "gains"}
    assert parse(Grown, older) == told
    with pytest.raises(Unreadable, match="shrink"):
        parse(Grown, asdict(told) | {"shrink": 3.0})
