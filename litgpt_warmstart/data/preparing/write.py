"""Tokens to disk as chunks of litdata's TokensLoader, which stock LitGPT reads with ``--data LitData``.

split/
  index.json            litdata's: the chunks in order, and their format
  chunk-0-0.bin …       one item each: a header, then tokens
  shuffled.bin          of the validation split, in their place
"""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from litgpt_warmstart.data.preparing.index import Chunk
from litgpt_warmstart.data.tokens import HEADER_BYTES
from litgpt_warmstart.files import flush_to_disk, write_whole

INDEX = "index.json"


def write_chunk(path: Path, tokens: np.ndarray) -> Chunk:
    """Write token ids, shape (number of tokens,), as a chunk.

    By hand, as litdata's own writer takes an import of torch in each worker.
    """
    header = np.array([1, HEADER_BYTES, HEADER_BYTES + tokens.nbytes], np.uint32)
    digest = hashlib.sha256(header.data)
    digest.update(tokens.data)
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.write(header.data)
        file.write(tokens.data)
    flush_to_disk(path)
    return Chunk(path.name, len(tokens), digest.hexdigest())


def shuffle_documents(folder: Path, chunks: Sequence[Chunk], dtype: np.dtype, eos_id: int, seed: int) -> Chunk:
    """Write the documents of several chunks, shuffled, as one more; the others stay.

    Args:
        folder: The split's.
        chunks: Their documents, each with the end of text as its last token.
        dtype: Of the stored tokens.
        eos_id: The end of text.
        seed: Of the order.
    """
    parts = [np.fromfile(folder / chunk.name, dtype, offset=HEADER_BYTES) for chunk in chunks]
    tokens = np.concatenate(parts)
    documents = np.split(tokens, np.flatnonzero(tokens == eos_id)[:-1] + 1)
    random = np.random.Philox(np.random.SeedSequence([seed]))
    order = np.argsort(random.random_raw(len(documents)), kind="stable")
    return write_chunk(folder / "shuffled.bin", np.concatenate([documents[place] for place in order]))


def write_index(folder: Path, chunks: Sequence[Chunk], dtype: np.dtype) -> None:
    """Write litdata's index of a split's chunks."""
    import torch
    from litdata.streaming import TokensLoader
    from litdata.streaming.writer import BinaryWriter

    with tempfile.TemporaryDirectory() as elsewhere:
        writer = BinaryWriter(elsewhere, chunk_bytes=2**32 - 1, item_loader=TokensLoader())
        writer.add_item(0, torch.from_numpy(np.zeros(1, dtype)))
        config = writer.get_config()
    entries = [
        {
            "chunk_bytes": HEADER_BYTES + chunk.tokens * dtype.itemsize,
            "chunk_size": 1,
            "dim": chunk.tokens,
            "filename": chunk.name,
        }
        for chunk in chunks
    ]
    # litdata writes the time here, to tell caches of remote folders apart; a digest of the content does so too.
    content = {"chunks": entries, "config": config, "updated_at": combined_digest(chunks)[:16]}
    write_whole(folder / INDEX, json.dumps(content, sort_keys=True))


def combined_digest(chunks: Sequence[Chunk]) -> str:
    """sha256 over the chunks' sha256."""
    return hashlib.sha256("".join(chunk.sha256 for chunk in chunks).encode()).hexdigest()
