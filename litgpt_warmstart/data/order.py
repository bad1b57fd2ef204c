"""The order in which a run reads blocks: a permutation of their numbers that is computed and not stored.

The n numbers fill a grid of about sqrt(n) rows and columns. Four times, every row or every column of it is rotated, by
as much as a hash of the seed and of its own number says (a Feistel network whose halves need not be powers of 2). A
number that comes to a cell beyond the last one goes through again until it comes to one of the n (cycle walking).
"""

import hashlib
import math
from collections.abc import Sequence

_WORD = 2**64 - 1


class BlockOrder(Sequence[int]):
    """The numbers 0 <= i < num_blocks in an order that a seed decides, the same on every machine."""

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
