"""No token twice: which blocks a lineage has used up, and what is left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litgpt_warmstart.data.ranges import BlockRange, first_free_block, take_blocks
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.run.record import DataUse


def use(start: int, stop: int, fingerprint: str | None = "a") -> DataUse:
    return DataUse("x", {}, 0, fingerprint, start, stop)


@given(st.integers(0, 50), st.integers(1, 50), st.integers(1, 64), st.integers(1, 64), st.integers(1, 50))
def test_a_run_reads_no_stored_token_of_its_base_whatever_the_block_sizes(first, read, base_block, block, needed):
    base = BlockRange(first, first + read, base_block)
    seen = use(base.start_token(), base.stop_token(read))
    start = first_free_block([seen], "a", block)
    assert start * (block + 1) >= seen.stop_token
    assert (start - 1) * (block + 1) < seen.stop_token  # and wastes less than a block
    assert take_blocks(start, needed, 10**6, block, 1).start_token() >= seen.stop_token


def test_the_whole_lineage_counts_and_other_data_does_not():
    seen = [use(0, 500), use(500, 700), use(0, 9999, "b"), use(0, 9999, None)]
    assert first_free_block(seen, "a", 9) == 70
    assert first_free_block([], "a", 9) == 0


def test_a_budget_larger_than_what_is_left_names_both_and_the_largest_that_fits():
    with pytest.raises(UserError) as error:
        take_blocks(first=70, needed=40, available=100, block_size=1000, blocks_per_step=8)
    assert "40,000 tokens asked, 30,000 left of 100,000" in str(error.value)
    assert "--train.max_tokens 24000 or less" in str(error.value)
    assert take_blocks(70, 24, 100, 1000, 8) == BlockRange(70, 94, 1000)


def test_nothing_left_names_another_remedy():
    with pytest.raises(UserError, match="take other data"):
        take_blocks(first=99, needed=8, available=100, block_size=1000, blocks_per_step=8)
