"""Blocks of prepared tokens, each read once in a lineage, in an order that is computed and not stored.

tokens      0 . . . . . . . . . . . . . . .
block 0     i i i i                             i: input, and each token's successor is its target:
block 1               i i i i                   a block stores block_size + 1 tokens and counts block_size
block 2                         i i i i

place in the order   0 1 2 3   4 5 6 7   8 9 10 11   12 13 14 15   …     the block there is the stored block order[i]
process of 2         0         1         0           1                   at a micro-batch of 4
a base               |---------------|
its warmstart                            |------------------------|      and so the run that it is compared with
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from litgpt_warmstart.errors import UserError

ORDER_SEED = 0
"""Of the order in which data is read for the first time, where nothing else is asked for.

It is not the run's --seed: runs that are compared, as a warmstart with the one from scratch or one seed with another,
read the same batches in the same order, so that what they differ in is what was meant to differ."""
HEADER_BYTES = 12
"""Of a chunk with one item: how many items, where the first begins, where it ends, as uint32."""
REMEDY = "prepare the data again in another folder"
_WORD = 2**64 - 1


class BlockOrder(Sequence[int]):
    """The numbers 0 <= i < num_blocks in an order that a seed decides, the same on every machine.

    They fill a grid of about sqrt(n) rows and columns. Four times, every row or every column of it is rotated, by as
    much as a hash of the seed and of its own number says (a Feistel network whose halves need not be powers of 2). A
    number that comes to a cell beyond the last one goes through again until it comes to one of the n (cycle walking).
    """

    def __init__(self, num_blocks: int, seed: int) -> None:
        self.num_blocks, self.seed = num_blocks, seed
        self._columns = max(1, math.isqrt(num_blocks))
        self._rows = -(-num_blocks // self._columns)
        digest = hashlib.sha256(str(seed).encode()).digest()
        self._keys = [int.from_bytes(digest[start : start + 8], "little") for start in range(0, 32, 8)]

    def __len__(self) -> int:
        return self.num_blocks

    def __getitem__(self, place):  # pyright: ignore[reportIncompatibleMethodOverride]  # no slices
        """The number at a place, in some 3 microseconds."""
        if not 0 <= place < self.num_blocks:
            raise IndexError(place)
        rows, columns = self._rows, self._columns
        first, second, third, fourth = self._keys
        while True:
            row, column = divmod(place, columns)
            row = (row + _hash(column ^ first)) % rows
            column = (column + _hash(row ^ second)) % columns
            row = (row + _hash(column ^ third)) % rows
            column = (column + _hash(row ^ fourth)) % columns
            place = row * columns + column
            if place < self.num_blocks:
                return place


def _hash(word: int) -> int:
    """A number of 64 bits, each of which depends on every bit of another (the finalizer of splitmix64)."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & _WORD
    return word ^ word >> 31


@dataclass(frozen=True)
class BlockRange(Sequence[int]):
    """The numbers at the places first <= i < stop of an order, of the blocks for one run."""

    order: BlockOrder
    first: int
    stop: int
    block_size: int
    """Tokens of a block that count; it stores one more."""

    def __len__(self) -> int:
        return self.stop - self.first

    def __getitem__(self, place):  # pyright: ignore[reportIncompatibleMethodOverride]  # no slices
        return self.order[range(self.first, self.stop)[place]]

    def token(self, num_blocks: int) -> int:
        """Where the order is after a number of the range's blocks, in stored tokens."""
        return (self.first + num_blocks) * (self.block_size + 1)


class TokenStream:
    """The tokens of several files, each given with their number, as one array. Supports ``len`` and slices.

    They are read and not memory-mapped: where a mapped file is cut off, the system ends the process without a word.
    Each time a file is opened anew, so that one that is gone or was replaced is noticed.
    """

    def __init__(self, chunks: Sequence[tuple[Path, int]], dtype: np.dtype) -> None:
        self.paths = [path for path, _ in chunks]
        self.starts = list(accumulate((tokens for _, tokens in chunks), initial=0))
        self.dtype = dtype

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, where: slice) -> np.ndarray:
        """Tokens from ``where.start`` up to ``where.stop``, shape (stop - start,)."""
        start, stop, step = where.indices(len(self))
        assert step == 1
        tokens = np.empty(max(0, stop - start), self.dtype)
        filled = 0
        while filled < len(tokens):
            number = bisect_right(self.starts, start + filled) - 1
            end = min(stop, self.starts[number + 1]) - start
            self._read(number, start + filled - self.starts[number], tokens[filled:end])
            filled = end
        return tokens

    def _read(self, number: int, first: int, tokens: np.ndarray) -> None:
        """Fill ``tokens`` with those of a file from its ``first`` on."""
        path = self.paths[number]
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(HEADER_BYTES + first * self.dtype.itemsize)
                read = file.readinto(tokens.data.cast("B"))
        except OSError as error:
            raise UserError(f"{str(path)!r} cannot be read ({error.strerror or error}): {REMEDY}") from error
        if read < tokens.nbytes:
            raise UserError(f"{str(path)!r} is cut off: {REMEDY}")


class BlockBatches(Dataset):
    """Micro-batches of the blocks of these numbers; ``num_processes`` take them in turn, the last has what is left."""

    def __init__(
        self, tokens: TokenStream, numbers: Sequence[int], block_size: int, micro_batch_size: int,
        rank: int = 0, num_processes: int = 1,
    ) -> None:  # fmt: skip
        self.tokens, self.numbers, self.stored = tokens, numbers, block_size + 1
        self.micro_batch_size = micro_batch_size
        self.starts = range(rank * micro_batch_size, len(numbers), num_processes * micro_batch_size)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> torch.Tensor:
        """The stored tokens of a micro-batch, shape (B, block_size + 1), as they are stored."""
        start, stored = self.starts[index], self.stored
        places = range(start, min(start + self.micro_batch_size, len(self.numbers)))
        numbers = [self.numbers[place] for place in places]
        return torch.from_numpy(np.stack([self.tokens[n * stored : (n + 1) * stored] for n in numbers]))
