"""Chunks are litdata's, and the same at any time."""

import json

import numpy as np
import pytest
from litdata.streaming import StreamingDataLoader, StreamingDataset, TokensLoader

from litgpt_warmstart.data.blocks import HEADER_BYTES
from litgpt_warmstart.data.preparing.write import write_chunk, write_index
from litgpt_warmstart.files import file_sha256


def write(folder, lengths, dtype="uint16"):
    folder.mkdir(exist_ok=True)
    pieces = np.split(np.arange(sum(lengths)).astype(dtype), np.cumsum(lengths)[:-1])
    chunks = [write_chunk(folder / f"chunk-{number}-0.bin", piece) for number, piece in enumerate(pieces)]
    write_index(folder, chunks, np.dtype(dtype))
    return pieces, chunks


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_litdata_reads_every_whole_block_of_every_chunk(tmp_path, dtype):
    pieces, _ = write(tmp_path / "made", [100, 50, 7, 37], dtype)
    dataset = StreamingDataset(str(tmp_path / "made"), item_loader=TokensLoader(block_size=10), shuffle=True, seed=1)
    read = [block for batch in StreamingDataLoader(dataset, batch_size=2) for block in batch.long().tolist()]
    expected = [piece[i : i + 10].tolist() for piece in pieces for i in range(0, len(piece) - 9, 10)]
    assert sorted(read) == sorted(expected)


def test_the_index_is_the_same_at_any_time_and_counts_each_chunk(tmp_path):
    _, chunks = write(tmp_path / "a", [100, 50])
    write(tmp_path / "b", [100, 50])
    assert (tmp_path / "a/index.json").read_bytes() == (tmp_path / "b/index.json").read_bytes()
    entries = json.loads((tmp_path / "a/index.json").read_text())["chunks"]
    assert [entry["dim"] for entry in entries] == [100, 50] == [chunk.tokens for chunk in chunks]
    assert [entry["chunk_bytes"] for entry in entries] == [HEADER_BYTES + 200, HEADER_BYTES + 100]
    assert [chunk.sha256 for chunk in chunks] == [file_sha256(tmp_path / "a" / chunk.name) for chunk in chunks]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["chunk-0-0.bin", "chunk-1-0.bin", "index.json"]
