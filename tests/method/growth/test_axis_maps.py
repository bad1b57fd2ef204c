"""Attention's rows in the order of LitGPT 0.3, against that order counted off; the other maps holds test_growth."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from litgpt.config import Config

from litgpt_warmstart.method.growth import axis_maps
from litgpt_warmstart.method.scales import resolve_config
from tests.conftest import llama, neox


def rows_of_today(config: Config) -> list[tuple]:
    """Names of the fused tensor's rows: all of q, then all of k, then all of v."""
    groups, channels = range(config.n_query_groups), range(config.head_size)
    queries = range(config.n_head // config.n_query_groups)
    return [
        *(("q", *row) for row in itertools.product(groups, queries, channels)),
        *(("k", *row) for row in itertools.product(groups, channels)),
        *(("v", *row) for row in itertools.product(groups, channels)),
    ]


def rows_by_head(config: Config) -> list[tuple]:
    """The same in LitGPT 0.3's order: of each group its queries, its key, its value."""
    found = []
    for group, channels in itertools.product(range(config.n_query_groups), [range(config.head_size)]):
        for query in range(config.n_head // config.n_query_groups):
            found += [("q", group, query, channel) for channel in channels]
        found += [("k", group, channel) for channel in channels]
        found += [("v", group, channel) for channel in channels]
    return found


@settings(max_examples=100)
@given(st.tuples(*[st.integers(1, 4)] * 3), st.tuples(*[st.integers(0, 3)] * 3), st.sampled_from([0.0, 0.25, 1.0]))
def test_interleaved_pads_the_tensor_as_it_stood_in_litgpt_03(small, more, rotary):
    def config(groups: int, queries: int, head_size: int) -> Config:
        return llama(16, groups * queries, n_query_groups=groups, head_size=head_size, rotary_percentage=rotary)

    source, target = config(*small), config(*(a + b for a, b in zip(small, more, strict=True)))
    padded = dict(enumerate(rows_by_head(target)))  # row n of the old tensor becomes row n of the padded one
    place = {row: number for number, row in enumerate(rows_of_today(target))}
    old = {row: number for number, row in enumerate(rows_by_head(source))}
    expected = [place[padded[old[row]]] for row in rows_of_today(source)]
    assert axis_maps.axis_map("qkv", source, target, "interleaved").tolist() == expected
    rows = axis_maps.axis_size("heads", source)
    assert axis_maps.axis_map("heads", source, target, "interleaved").tolist() == list(range(rows))


def test_interleaved_keeps_heads_where_their_size_stays_and_mixes_q_k_and_v_where_it_does_not():
    five, ten, twenty_two = (resolve_config(name) for name in ("5M", "10M", "22M"))
    same, other = (axis_maps.axis_map("qkv", five, target, "interleaved") for target in (twenty_two, ten))
    assert torch.equal(same, axis_maps.axis_map("qkv", five, neox(192, 8, rotary_percentage=0.25), "heads"))
    assert (other[:48] >= 96).any()  # rows of q among the target's k and v


def test_each_parameter_has_a_class_to_be_shrunk_by():
    names = ("transformer.wte.weight", "lm_head.bias", "transformer.h.1.norm_1.weight", "transformer.h.0.norm_1.bias",
             "transformer.h.0.mlp.fc.weight")  # fmt: skip
    assert [axis_maps.kind_of(name) for name in names] == ["embedding", "readout", "gains", "hidden", "hidden"]
