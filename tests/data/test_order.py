"""The order of reading: a permutation for any number of blocks and seed, which mixes, and is the same everywhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from litgpt_warmstart.data.order import BlockOrder


@given(st.integers(0, 3000), st.integers(-(2**70), 2**70))
def test_each_number_comes_once(num_blocks, seed):
    order = BlockOrder(num_blocks, seed)
    assert len(order) == num_blocks and sorted(order) == list(range(num_blocks))


@given(st.integers(1, 10**12), st.integers(0, 10), st.data())
def test_a_place_gives_the_same_number_whatever_was_read_before(num_blocks, seed, draw):
    places = draw.draw(st.lists(st.integers(0, num_blocks - 1), min_size=1, max_size=20, unique=True))
    numbers = [BlockOrder(num_blocks, seed)[place] for place in places]
    order = BlockOrder(num_blocks, seed)
    assert [order[place] for place in reversed(places)] == numbers[::-1]
    assert len(set(numbers)) == len(places) and all(0 <= number < num_blocks for number in numbers)


def test_the_order_is_one_for_ever():
    """A run that was begun by another version goes on with it."""
    assert [BlockOrder(10, 0)[place] for place in range(10)] == [8, 1, 0, 9, 3, 4, 6, 2, 7, 5]
    assert [BlockOrder(5_850_000, 3)[place] for place in (0, 1, 5_849_999)] == [861854, 2470045, 2137560]


@pytest.mark.parametrize("num_blocks", [1000, 3400, 100_003])
def test_the_order_mixes(num_blocks):
    """Among the first tenth of places all tenths of the data are alike, and neighbours are nothing to each other."""
    for seed in range(5):
        read = np.array([BlockOrder(num_blocks, seed)[place] for place in range(num_blocks // 10)])
        expected = len(read) / 10
        counts, _ = np.histogram(read, 10, (0, num_blocks))
        assert np.square(counts - expected).sum() / expected < 33.7  # chi-squared of 9, but for 1 in 10,000
        assert abs(np.corrcoef(read[:-1], read[1:])[0, 1]) < 5 / len(read) ** 0.5
        other = np.array([BlockOrder(num_blocks, seed + 1)[place] for place in range(num_blocks // 10)])
        assert np.mean(read == other) < 0.02


def test_there_is_nothing_beyond_the_last_place():
    order = BlockOrder(7, 1)
    for place in (-1, 7):
        with pytest.raises(IndexError):
            order[place]
