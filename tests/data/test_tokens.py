"""Several files are one array of tokens, and one that is gone or cut off is told when it is read."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from litgpt_warmstart.data.tokens import HEADER_BYTES, TokenStream
from litgpt_warmstart.errors import UserError


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


def test_what_is_read_is_ones_own(tmp_path):
    tokens = stream(tmp_path, [10])
    tokens[0:5][:] = 7
    assert tokens[0:5].tolist() == [0, 1, 2, 3, 4]
