"""Block i is a pure function of the tokens, the block size and i."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from litgpt_warmstart.data.blocks import BlockDataset, num_blocks


@given(st.integers(0, 300), st.integers(1, 20), st.data())
def test_block_i_holds_the_next_block_size_plus_1_tokens(num_tokens, block_size, draw):
    tokens = np.arange(num_tokens, dtype=np.uint16)
    stop = draw.draw(st.integers(0, num_blocks(num_tokens, block_size)))
    first = draw.draw(st.integers(0, stop))
    dataset = BlockDataset(tokens, block_size, first, stop)
    assert len(dataset) == stop - first
    for i in range(len(dataset)):
        start = (first + i) * (block_size + 1)
        assert dataset[i].dtype == torch.int64
        assert dataset[i].tolist() == list(range(start, start + block_size + 1))
