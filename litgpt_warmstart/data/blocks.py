"""Reading prepared tokens: block i of a split is a pure function of (tokens, block size, i).

tokens      0 . . . . . . . . . . . . . . .
block 0     i i i i                             i: input, and each token's successor is its target:
block 1               i i i i                   a block stores block_size + 1 tokens and counts block_size
block 2                         i i i i

A run reads a range of blocks, its micro-batches in turn by its processes:

blocks         0 1 2 3   4 5 6 7   8 9 10 11   12 13 14 15
process of 2   0         1         0           1                  at a micro-batch of 4
"""

from abc import abstractmethod
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from litgpt.data import DataModule
from litgpt.tokenizer import Tokenizer
from torch.utils.data import DataLoader, Dataset


class Tokens(Protocol):
    """Token ids that can be sliced, each time into an array of their own: a file of them, or several files as one."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice) -> np.ndarray: ...


class BlockBatches(Dataset):
    """Micro-batches of the blocks first <= i < stop of a token array, in order.

    Args:
        tokens: Token ids, shape (number of tokens,).
        block_size: Tokens of a block that count.
        first: First block.
        stop: One past the last block.
        micro_batch_size: Blocks of a micro-batch; the last one has what is left.
        rank: Which of the processes this is.
        num_processes: How many take the micro-batches in turn.
    """

    def __init__(
        self, tokens: Tokens, block_size: int, first: int, stop: int, micro_batch_size: int = 1, rank: int = 0,
        num_processes: int = 1,
    ) -> None:  # fmt: skip
        assert 0 <= first <= stop <= num_blocks(len(tokens), block_size)
        self.tokens, self.block_size = tokens, block_size
        self.first, self.stop, self.micro_batch_size = first, stop, micro_batch_size
        self.starts = range(first + rank * micro_batch_size, stop, num_processes * micro_batch_size)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> torch.Tensor:
        """The stored tokens of a micro-batch, shape (B, block_size + 1), as they are stored."""
        start = self.starts[index]
        stop = min(start + self.micro_batch_size, self.stop)
        stored = self.block_size + 1
        return torch.from_numpy(self.tokens[start * stored : stop * stored]).view(stop - start, stored)


def num_blocks(num_tokens: int, block_size: int) -> int:
    """How many whole blocks a number of stored tokens gives."""
    return num_tokens // (block_size + 1)


class BlockDataModule(DataModule):
    """A LitGPT DataModule that hands out blocks of prepared tokens by number, each once and in order.

    Subclasses say where the tokens are. Stock LitGPT can train on it too; it then reads the whole training split.
    """

    vocab_size: int
    """Tokens of the tokenizer that the data is prepared with; known before :meth:`prepare_data`."""
    padded_vocab_size: int
    """Classes a model trained from scratch on this data gets."""
    num_workers: int = 0
    """Processes that read ahead. None by default: reading a block is a copy from the page cache."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_size, self.block_size = 1, 1
        self.range: tuple[int, int] | None = None
        self.rank, self.num_processes = 0, 1

    @property
    @abstractmethod
    def is_prepared(self) -> bool:
        """Whether the tokens are there, as files alone tell."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Identity of the training tokens; needs :meth:`prepare_data`."""

    @property
    @abstractmethod
    def tokenizer_dir(self) -> Path:
        """Folder with the tokenizer's files; needs :meth:`prepare_data`."""

    @property
    @abstractmethod
    def tokenizer_json(self) -> bytes | None:
        """The tokenizer's tokenizer.json; None while it is not known."""

    @abstractmethod
    def tokens(self, split: str) -> Tokens:
        """Token ids of ``train`` or ``val``; needs :meth:`prepare_data`."""

    def connect(
        self, tokenizer: Tokenizer | None = None, batch_size: int = 1, max_seq_length: int | None = None
    ) -> None:
        self.batch_size, self.block_size = batch_size, max_seq_length or 1024

    def num_blocks(self, split: str) -> int:
        """Whole blocks of a split at the connected block size."""
        return num_blocks(len(self.tokens(split)), self.block_size)

    def select(self, first: int, stop: int, rank: int = 0, num_processes: int = 1) -> None:
        """Restrict the training loader to the blocks first <= i < stop, and of those to this process's share."""
        self.range, self.rank, self.num_processes = (first, stop), rank, num_processes

    def train_dataloader(self) -> DataLoader:
        """Micro-batches, shape (B, block_size + 1): of the selected blocks, else all whole ones of the split."""
        whole = self.num_blocks("train") // self.batch_size * self.batch_size
        return self._dataloader("train", *(self.range or (0, whole)), self.rank, self.num_processes)

    def val_dataloader(self) -> DataLoader:
        """Micro-batches, shape (B, block_size + 1), of the whole validation split."""
        return self._dataloader("val", 0, self.num_blocks("val"))

    def _dataloader(self, split: str, first: int, stop: int, rank: int = 0, num_processes: int = 1) -> DataLoader:
        return DataLoader(
            BlockBatches(self.tokens(split), self.block_size, first, stop, self.batch_size, rank, num_processes),
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )
