"""Chunks are litdata's, and read as one stream."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from litdata.streaming import StreamingDataLoader, StreamingDataset, TokensLoader

from litgpt_warmstart.data.preparing.chunks import HEADER_BYTES, TokenStream, chunk_name, write_chunk, write_index
from litgpt_warmstart.errors import UserError


def write(folder, lengths, dtype="uint16"):
    tokens = np.arange(sum(lengths)).astype(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    for number, piece in enumerate(np.split(tokens, np.cumsum(lengths)[:-1])):
        write_chunk(folder / chunk_name(number), piece)
    write_index(folder, len(lengths), np.dtype(dtype))
    return tokens


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    return TokenStream(folder, np.dtype("uint16")), write(folder, [100, 1, 37, 200])


@given(st.integers(0, 340), st.integers(0, 340))
def test_a_stream_slices_as_the_array_of_its_tokens(stream, start, stop):
    read, tokens = stream
    assert len(read) == len(tokens) == 338
    assert read[start:stop].tolist() == tokens[start:stop].tolist()


def test_a_stream_goes_to_a_worker_without_its_tokens(stream):
    read, tokens = stream
    assert len(pickle.dumps(read)) < 1000
    assert pickle.loads(pickle.dumps(read))[90:110].tolist() == tokens[90:110].tolist()


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_litdata_reads_every_whole_block_of_every_chunk(tmp_path, dtype):
    tokens = write(tmp_path, [100, 50, 37], dtype)
    dataset = StreamingDataset(str(tmp_path), item_loader=TokensLoader(block_size=10), shuffle=True, seed=1)
    read = [block for batch in StreamingDataLoader(dataset, batch_size=2) for block in batch.long().tolist()]
    chunks = np.split(tokens, [100, 150])
    expected = [chunk[i : i + 10].tolist() for chunk in chunks for i in range(0, len(chunk) - 9, 10)]
    assert sorted(read) == sorted(expected)


def test_the_index_is_the_same_at_any_time_and_counts_each_chunk(tmp_path):
    write(tmp_path / "a", [100, 50])
    write(tmp_path / "b", [100, 50])
    assert (tmp_path / "a/index.json").read_bytes() == (tmp_path / "b/index.json").read_bytes()
    chunks = json.loads((tmp_path / "a/index.json").read_text())["chunks"]
    assert [chunk["dim"] for chunk in chunks] == [100, 50]
    assert [chunk["chunk_bytes"] for chunk in chunks] == [HEADER_BYTES + 200, HEADER_BYTES + 100]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["chunk-0-0.bin", "chunk-0-1.bin", "index.json"]


def test_a_missing_or_cut_chunk_is_told(tmp_path):
    write(tmp_path, [100, 50])
    stream = TokenStream(tmp_path, np.dtype("uint16"))
    stream.check()
    (tmp_path / "chunk-0-1.bin").write_bytes((tmp_path / "chunk-0-1.bin").read_bytes()[:-1])
    with pytest.raises(UserError, match="chunk-0-1.bin' is missing or cut off"):
        stream.check()
    with pytest.raises(UserError, match="chunk-0-1.bin' is cut off"):
        stream[90:150]
    (tmp_path / "chunk-0-0.bin").unlink()
    with pytest.raises(UserError, match="chunk-0-0.bin' cannot be read .No such file"):
        stream[90:150]
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        len(TokenStream(tmp_path, np.dtype("uint16")))
