"""Token chunks on disk in the format of litdata's TokensLoader, and reading them as one stream.

split/
  index.json             litdata's: the chunks in order, and their format
  chunk-0-0.bin          one item: a header, then tokens
  chunk-0-1.bin …

Stock LitGPT reads such a folder with ``--data LitData``.
"""

import hashlib
import json
import os
import shutil
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.files import file_sha256, flush_to_disk

CHUNK_TOKENS = 16 * 2**20
"""Tokens of a chunk, about."""
HEADER_BYTES = 12
"""Of a chunk with one item: how many items, where the first begins, where it ends, as uint32."""
INDEX = "index.json"
REMEDY = "prepare the data again in another folder"


def chunk_name(number: int) -> str:
    """File name of a split's n-th chunk."""
    return f"chunk-0-{number}.bin"


def write_chunk(path: Path, tokens: np.ndarray) -> None:
    """Write tokens as a chunk, at once, by litdata's own writer.

    Args:
        path: The chunk's file.
        tokens: Token ids, shape (number of tokens,).
    """
    folder = path.with_name(path.name + ".partial")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        writer = _writer(folder, tokens)
        writer.done()
        (written,) = folder.glob("chunk-*.bin")  # litdata numbers it by the process's rank
        flush_to_disk(written)
        os.replace(written, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _writer(folder: Path, tokens: np.ndarray) -> Any:
    import torch
    from litdata.streaming import TokensLoader
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir(parents=True, exist_ok=True)
    writer = BinaryWriter(str(folder), chunk_bytes=2**32 - 1, item_loader=TokensLoader())
    writer.add_item(0, torch.from_numpy(tokens))
    return writer


def write_index(folder: Path, num_chunks: int, dtype: np.dtype) -> tuple[int, list[str]]:
    """Write litdata's index of a folder of chunks.

    Args:
        folder: The split's folder.
        num_chunks: How many chunks it has.
        dtype: Of the tokens.

    Returns:
        How many tokens there are, and the sha256 of each chunk.
    """
    paths = [folder / chunk_name(number) for number in range(num_chunks)]
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(file_sha256, paths))
    sizes = [path.stat().st_size for path in paths]
    lengths = [(size - HEADER_BYTES) // dtype.itemsize for size in sizes]
    chunks = [
        {"chunk_bytes": size, "chunk_size": 1, "dim": length, "filename": path.name}
        for path, size, length in zip(paths, sizes, lengths, strict=True)
    ]
    # litdata writes the time here, to tell caches of remote folders apart; a digest of the content does so too.
    config = _writer(folder, np.zeros(1, dtype)).get_config()
    for leftover in folder.glob("*.partial"):  # of a kill
        shutil.rmtree(leftover)
    index = {"chunks": chunks, "config": config, "updated_at": combined_digest(digests)[:16]}
    (folder / INDEX).write_text(json.dumps(index, sort_keys=True), encoding="utf-8")
    return sum(lengths), digests


def combined_digest(digests: list[str]) -> str:
    """sha256 over sha256s."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


@dataclass(frozen=True)
class TokenFile:
    """The tokens of a file. Supports ``len`` and slices.

    They are read and not memory-mapped: where a mapped file is cut off, the system ends the process without a word.
    """

    path: Path
    dtype: np.dtype
    num_tokens: int
    first_byte: int = 0

    def __len__(self) -> int:
        return self.num_tokens

    def __getitem__(self, where: slice) -> np.ndarray:
        """Tokens from ``where.start`` up to ``where.stop``, shape (stop - start,).

        Raises:
            UserError: The file is gone, or shorter than it was.
        """
        start, stop, step = where.indices(self.num_tokens)
        assert step == 1
        wanted = max(0, stop - start)
        offset = self.first_byte + start * self.dtype.itemsize
        try:
            tokens = np.fromfile(self.path, self.dtype, wanted, offset=offset)
        except OSError as error:
            raise UserError(f"{str(self.path)!r} cannot be read ({error.strerror or error}): {REMEDY}") from error
        if len(tokens) < wanted:
            raise UserError(f"{str(self.path)!r} is cut off: {REMEDY}")
        return tokens


@dataclass
class TokenStream:
    """The tokens of a split's chunks as one array.

    Supports ``len`` and slices.
    """

    folder: Path
    dtype: np.dtype

    @cached_property
    def _chunks(self) -> list[dict[str, Any]]:
        try:
            return json.loads((self.folder / INDEX).read_text(encoding="utf-8"))["chunks"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{str(self.folder)!r} is damaged ({one_line(error, 100)}): prepare the data again"
            ) from None

    @cached_property
    def _starts(self) -> list[int]:
        starts = [0]
        for chunk in self._chunks:
            starts.append(starts[-1] + chunk["dim"])
        return starts

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, where: slice) -> np.ndarray:
        """Tokens from ``where.start`` up to ``where.stop``, shape (stop - start,)."""
        start, stop, step = where.indices(len(self))
        assert step == 1
        pieces = []
        while start < stop:
            number = bisect_right(self._starts, start) - 1
            end = min(stop, self._starts[number + 1])
            pieces.append(self._chunk(number)[start - self._starts[number] : end - self._starts[number]])
            start = end
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty(0, self.dtype)

    def _chunk(self, number: int) -> TokenFile:
        chunk = self._chunks[number]
        return TokenFile(self.folder / chunk["filename"], np.dtype(self.dtype), chunk["dim"], HEADER_BYTES)

    def check(self) -> None:
        """Raise a UserError where a chunk is missing or has another size than the index says."""
        for chunk in self._chunks:
            path = self.folder / chunk["filename"]
            expected = HEADER_BYTES + chunk["dim"] * self.dtype.itemsize
            if not path.is_file() or path.stat().st_size != expected:
                raise UserError(f"{str(path)!r} is missing or cut off: {REMEDY}")
