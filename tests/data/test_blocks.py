"""Each block is read once, in an order that is the same everywhere and mixes, by any processes."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from litgpt_warmstart.data.blocks import HEADER_BYTES, BlockBatches, BlockOrder, BlockRange, TokenStream
from litgpt_warmstart.errors import UserError


@given(st.integers(0, 3000), st.integers(-(2**70), 2**70))
def test_each_number_comes_once(num_blocks, seed):
    order = BlockOrder(num_blocks, seed)
    assert len(order) == num_blocks and sorted(order) == list(range(num_blocks))


def test_the_order_is_one_for_ever():
    """A run that was begun by another version goes on with it."""
    assert [BlockOrder(10, 0)[place] for place in range(10)] == [8, 1, 0, 9, 3, 4, 6, 2, 7, 5]
    assert [BlockOrder(5_850_000, 3)[place] for place in (0, 1, 5_849_999)] == [861854, 2470045, 2137560]
    for place in (-1, 10):
        with pytest.raises(IndexError):
            BlockOrder(10, 0)[place]


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


@given(st.integers(0, 300), st.integers(1, 20), st.data())
def test_block_i_holds_the_next_block_size_plus_1_tokens(num_tokens, block_size, draw):
    tokens = np.arange(num_tokens, dtype=np.uint16)
    order = BlockOrder(num_tokens // (block_size + 1), seed=1)
    stop = draw.draw(st.integers(0, len(order)))
    first = draw.draw(st.integers(0, stop))
    batches = BlockBatches(tokens, BlockRange(order, first, stop, block_size), block_size, 1)
    assert len(batches) == stop - first
    for i in range(len(batches)):
        start = order[first + i] * (block_size + 1)
        assert batches[i].tolist() == [list(range(start, start + block_size + 1))]


@settings(max_examples=40)
@given(st.integers(0, 30), st.integers(0, 60), st.integers(1, 7), st.sampled_from([0, 0, 0, 2]), st.integers(1, 3))
@example(5, 30, 4, 2, 3)
def test_processes_and_their_workers_read_each_block_of_a_range_once_in_order(
    first, length, micro_batch_size, num_workers, num_processes
):
    tokens, order = np.arange(130 * 3), BlockOrder(130, seed=0)
    blocks = BlockRange(order, first, first + length, block_size=2)
    loaders = [
        DataLoader(
            BlockBatches(tokens, blocks, 2, micro_batch_size, rank, num_processes), None, num_workers=num_workers
        )
        for rank in range(num_processes)
    ]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*loaders))
    read = [block[0].item() for batch in in_turn if batch is not None for block in batch]
    assert read == [3 * order[place] for place in range(first, first + length)]


def stream(folder: Path, lengths: list[int], dtype: str = "uint16") -> TokenStream:
    """Chunks of these lengths, which count from 0 on over all of them."""
    chunks = []
    for number, (first, stop) in enumerate(itertools.pairwise(itertools.accumulate(lengths, initial=0))):
        path = folder / f"chunk-{number}.bin"
        path.write_bytes(bytes(HEADER_BYTES) + np.arange(first, stop, dtype=dtype).tobytes())
        chunks.append((path, stop - first))
    return TokenStream(chunks, np.dtype(dtype))


@given(
    st.lists(st.integers(0, 30), max_size=6), st.integers(-5, 200), st.integers(-5, 200),
    st.sampled_from(["uint16", "int32"]),
)  # fmt: skip
def test_any_slice_is_that_of_all_tokens_in_a_row(tmp_path_factory, lengths, start, stop, dtype):
    tokens = stream(tmp_path_factory.mktemp("chunks"), lengths, dtype)
    assert len(tokens) == sum(lengths)
    read = tokens[start:stop]
    assert read.dtype == dtype and read.tolist() == list(range(sum(lengths)))[start:stop]
    assert tokens[:].tolist() == list(range(sum(lengths)))


def test_a_file_that_is_cut_off_or_gone_is_named(tmp_path):
    tokens = stream(tmp_path, [10, 10])
    with (tmp_path / "chunk-1.bin").open("r+b") as file:
        file.truncate(HEADER_BYTES + 10)
    assert tokens[5:15].tolist() == list(range(5, 15))  # what is asked for is there
    with pytest.raises(UserError, match="chunk-1.bin' is cut off: prepare the data again"):
        tokens[5:16]
    (tmp_path / "chunk-0.bin").unlink()
    with pytest.raises(UserError, match="chunk-0.bin' cannot be read .No such file.*prepare the data again"):
        tokens[5:6]
