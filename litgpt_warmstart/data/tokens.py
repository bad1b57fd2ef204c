"""Reading the chunks of a split as one stream of tokens."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from litgpt_warmstart.errors import UserError

HEADER_BYTES = 12
"""Of a chunk with one item: how many items, where the first begins, where it ends, as uint32."""
REMEDY = "prepare the data again in another folder"


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
