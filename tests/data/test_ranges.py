"""No token twice: in which order a lineage reads, which blocks it has used up, and what is left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litgpt_warmstart.data.order import BlockOrder
from litgpt_warmstart.data.ranges import ORDER_SEED, BlockRange, first_unread, lineage_seed, take_blocks
from litgpt_warmstart.data.use import DataUse
from litgpt_warmstart.errors import UserError

ORDER = BlockOrder(100, seed=0)


def use(start: int, stop: int, fingerprint: str | None = "a", seed: int | None = 3, block_size: int = 9) -> DataUse:
    return DataUse("x", {}, 0, fingerprint, start, stop, seed, block_size)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 20), st.integers(0, 5))
def test_over_a_lineage_no_block_is_read_twice_however_it_is_cut_into_runs(lengths, block_size, seed):
    order, seen, read = BlockOrder(sum(lengths) + 3, seed), [], []
    for length in lengths:
        first = first_unread(seen, "a", block_size)
        blocks = take_blocks(order, first, length, block_size, 1)
        read += [order[place] for place in range(blocks.first, blocks.stop)]
        seen.append(use(blocks.start_token, blocks.stop_token(length), seed=seed, block_size=block_size))
        assert lineage_seed(seen, "a", block_size, None) == seed
    assert len(set(read)) == len(read) == sum(lengths)  # and nothing in between is left out
    assert read == [order[place] for place in range(len(read))]


def test_the_order_is_the_lineages_else_what_is_asked_for_else_the_same_for_all():
    assert lineage_seed([], "a", 9, None) == ORDER_SEED
    assert lineage_seed([], "a", 9, 7) == lineage_seed([use(0, 10, "b", 1, 5)], "a", 9, 7) == 7  # other data
    assert lineage_seed([use(0, 10)], "a", 9, None) == lineage_seed([use(0, 10)], "a", 9, 3) == 3


@pytest.mark.parametrize(
    ("seen", "block_size", "asked", "told"),
    [
        (use(0, 10), 9, 4, "with --data.order_seed 3, and 4 would repeat some of it: leave"),
        (use(0, 10), 9, 0, "with --data.order_seed 3, and 0 would"),
        (
            use(0, 10),
            8,
            None,
            "in blocks of 9 tokens, and blocks of 8 would repeat some: pass --train",
        ),
        (use(0, 10, seed=None), 9, None, "version 0.1 has read this data for the base as it is stored"),
    ],
)
def test_another_order_or_length_over_data_that_was_read_is_refused(seen, block_size, asked, told):
    with pytest.raises(UserError, match=told):
        lineage_seed([use(0, 10, "b"), seen], "a", block_size, asked)


def test_the_whole_lineage_counts_and_other_data_does_not():
    seen = [use(0, 500), use(500, 700), use(0, 9999, "b"), use(0, 9999, None)]
    assert first_unread(seen, "a", 9) == 70
    assert first_unread([], "a", 9) == 0


def test_a_budget_larger_than_what_is_left_names_both_and_the_largest_that_fits():
    with pytest.raises(UserError) as error:
        take_blocks(ORDER, first=70, needed=40, block_size=1000, blocks_per_step=8)
    assert "40,000 tokens asked, 30,000 left of 100,000" in str(error.value)
    assert "--train.max_tokens 24000 or less" in str(error.value)
    assert take_blocks(ORDER, 70, 24, 1000, 8) == BlockRange(ORDER, 70, 94, 1000)


def test_nothing_left_names_another_remedy():
    with pytest.raises(UserError, match="take other data"):
        take_blocks(ORDER, first=99, needed=8, block_size=1000, blocks_per_step=8)
