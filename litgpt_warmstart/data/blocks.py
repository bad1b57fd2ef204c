"""Reading prepared tokens: block i of a split is a pure function of (tokens, block size, i).

tokens      0 . . . . . . . . . . . . . . .
block 0     i i i i                             i: input, and each token's successor is its target:
block 1               i i i i                   a block stores block_size + 1 tokens and counts block_size
block 2                         i i i i
"""

from abc import abstractmethod
from pathlib import Path

import numpy as np
import torch
from litgpt.data import DataModule
from litgpt.tokenizer import Tokenizer
from torch.utils.data import DataLoader, Dataset


class BlockDataset(Dataset):
    """A half-open range of blocks of a token array, in order.

    Args:
        tokens: Token ids, shape (number of tokens,), e.g. memory-mapped uint16.
        block_size: Tokens of a block that count.
        first: First block.
        stop: One past the last block.
    """

    def __init__(self, tokens: np.ndarray, block_size: int, first: int, stop: int) -> None:
        assert 0 <= first <= stop <= num_blocks(len(tokens), block_size)
        self.tokens, self.block_size, self.first, self.stop = tokens, block_size, first, stop

    def __len__(self) -> int:
        return self.stop - self.first

    def __getitem__(self, index: int) -> torch.Tensor:
        """The tokens of block ``first + index``, int64, shape (block_size + 1,)."""
        stored = self.block_size + 1
        start = (self.first + index) * stored
        return torch.from_numpy(self.tokens[start : start + stored].astype(np.int64))


def num_blocks(num_tokens: int, block_size: int) -> int:
    """How many whole blocks a number of stored tokens gives."""
    return num_tokens // (block_size + 1)


class BlockDataModule(DataModule):
    """A LitGPT DataModule that hands out blocks of prepared tokens by number, each once and in order.

    Subclasses say where the tokens are. Stock LitGPT can train on it too; it then reads the whole training split.
    """

    vocab_size: int
    """Tokens of the tokenizer that the data was prepared with."""
    padded_vocab_size: int
    """Classes a model trained from scratch on this data gets."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_size, self.block_size = 1, 1
        self.range: tuple[int, int] | None = None

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Identity of the training tokens; needs :meth:`prepare_data`."""

    @property
    @abstractmethod
    def tokenizer_dir(self) -> Path:
        """Folder with the tokenizer's files; needs :meth:`prepare_data`."""

    @abstractmethod
    def tokens(self, split: str) -> np.ndarray:
        """Token ids of ``train`` or ``val``, shape (number of tokens,); needs :meth:`prepare_data`."""

    def connect(
        self, tokenizer: Tokenizer | None = None, batch_size: int = 1, max_seq_length: int | None = None
    ) -> None:
        self.batch_size, self.block_size = batch_size, max_seq_length or 1024

    def num_blocks(self, split: str) -> int:
        """Whole blocks of a split at the connected block size."""
        return num_blocks(len(self.tokens(split)), self.block_size)

    def select(self, first: int, stop: int) -> None:
        """Restrict the training loader to the blocks first <= i < stop."""
        self.range = (first, stop)

    def train_dataloader(self) -> DataLoader:
        """Batches of shape (B, block_size + 1), the last one cut off if it is not full."""
        return self._dataloader("train", *(self.range or (0, self.num_blocks("train"))), drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """Batches of shape (B, block_size + 1) of the whole validation split."""
        return self._dataloader("val", 0, self.num_blocks("val"), drop_last=False)

    def _dataloader(self, split: str, first: int, stop: int, drop_last: bool) -> DataLoader:
        dataset = BlockDataset(self.tokens(split), self.block_size, first, stop)
        # Reading a block is a copy from the page cache: worker processes would cost more than they bring.
        return DataLoader(
            dataset, batch_size=self.batch_size, drop_last=drop_last, pin_memory=torch.cuda.is_available()
        )
