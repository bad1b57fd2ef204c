"""A block is a function of tokens, length and number; a range of an order is read once, in order, by any processes."""

import itertools

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from litgpt_warmstart.data.blocks import BlockBatches
from litgpt_warmstart.data.order import BlockOrder


@given(st.integers(0, 300), st.integers(1, 20), st.data())
def test_block_i_holds_the_next_block_size_plus_1_tokens(num_tokens, block_size, draw):
    tokens = np.arange(num_tokens, dtype=np.uint16)
    order = BlockOrder(num_tokens // (block_size + 1), seed=1)
    stop = draw.draw(st.integers(0, len(order)))
    first = draw.draw(st.integers(0, stop))
    batches = BlockBatches(tokens, block_size, order, first, stop)
    assert len(batches) == stop - first
    for i in range(len(batches)):
        start = order[first + i] * (block_size + 1)
        assert batches[i].tolist() == [list(range(start, start + block_size + 1))]


def in_turn(loaders: list) -> list[int]:
    """First tokens of the blocks that processes read, in the order of the micro-batches."""
    batches = itertools.chain.from_iterable(itertools.zip_longest(*loaders))
    return [block[0].item() for batch in batches if batch is not None for block in batch]


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 7), st.integers(1, 3))
def test_processes_read_each_block_of_a_range_once_in_order(first, length, micro_batch_size, num_processes):
    tokens, order = np.arange(130 * 3), BlockOrder(130, seed=0)
    loaders = [
        BlockBatches(tokens, 2, order, first, first + length, micro_batch_size, rank, num_processes)
        for rank in range(num_processes)
    ]
    assert in_turn([[loader[i] for i in range(len(loader))] for loader in loaders]) == [
        3 * order[place] for place in range(first, first + length)
    ]


@given(st.integers(0, 20), st.integers(1, 6), st.integers(0, 6), st.data())
def test_resuming_goes_on_at_the_next_block_for_other_micro_batches_and_processes(first, steps, done, draw):
    batch, tokens, order = 12, np.arange(200 * 3), BlockOrder(200, seed=0)
    stop = first + steps * batch
    done = min(done, steps)
    divisors, processes = st.sampled_from([1, 2, 3, 4, 6, 12]), st.sampled_from([1, 2, 3])
    read = []
    for start, end in ((first, first + done * batch), (first + done * batch, stop)):
        micro_batch_size, num_processes = draw.draw(divisors), draw.draw(processes)
        loaders = [
            BlockBatches(tokens, 2, order, start, stop, micro_batch_size, rank, num_processes)
            for rank in range(num_processes)
        ]
        read += in_turn([[loader[i] for i in range(len(loader))] for loader in loaders])[: end - start]
    assert read == [3 * order[place] for place in range(first, stop)]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 7), st.integers(0, 2), st.integers(1, 3))
@example(5, 30, 4, 2, 3)
def test_workers_of_any_process_change_nothing(first, length, micro_batch_size, num_workers, num_processes):
    tokens, order = np.arange(130 * 3), BlockOrder(130, seed=0)
    loaders = [
        DataLoader(
            BlockBatches(tokens, 2, order, first, first + length, micro_batch_size, rank, num_processes),
            batch_size=None,
            num_workers=num_workers,
        )
        for rank in range(num_processes)
    ]
    assert in_turn([list(loader) for loader in loaders]) == [3 * order[place] for place in range(first, first + length)]
