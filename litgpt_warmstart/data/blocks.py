"""Reading prepared tokens by block: what a block holds is a function of the tokens, its length and its number alone.

tokens      0 . . . . . . . . . . . . . . .
block 0     i i i i                             i: input, and each token's successor is its target:
block 1               i i i i                   a block stores block_size + 1 tokens and counts block_size
block 2                         i i i i

A run reads a range of places in an order of the blocks, its micro-batches in turn by its processes:

places         0 1 2 3   4 5 6 7   8 9 10 11   12 13 14 15
process of 2   0         1         0           1                  at a micro-batch of 4
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from litgpt.data import DataModule
from litgpt.tokenizer import Tokenizer
from torch.utils.data import DataLoader, Dataset

from litgpt_warmstart.data.order import BlockOrder
from litgpt_warmstart.data.ranges import ORDER_SEED, BlockRange
from litgpt_warmstart.data.tokens import TokenStream


class BlockBatches(Dataset):
    """Micro-batches of the blocks at the places first <= i < stop of an order; the last one has what is left.

    ``block_size`` of a block's tokens count, and ``num_processes`` take the micro-batches in turn.
    """

    def __init__(
        self, tokens: TokenStream, block_size: int, order: Sequence[int], first: int, stop: int,
        micro_batch_size: int = 1, rank: int = 0, num_processes: int = 1,
    ) -> None:  # fmt: skip
        assert 0 <= first <= stop <= len(order)
        self.tokens, self.block_size, self.order = tokens, block_size, order
        self.stop, self.micro_batch_size = stop, micro_batch_size
        self.starts = range(first + rank * micro_batch_size, stop, num_processes * micro_batch_size)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> torch.Tensor:
        """The stored tokens of a micro-batch, shape (B, block_size + 1), as they are stored."""
        start, stored = self.starts[index], self.block_size + 1
        places = range(start, min(start + self.micro_batch_size, self.stop))
        numbers = [self.order[place] for place in places]
        return torch.from_numpy(np.stack([self.tokens[n * stored : (n + 1) * stored] for n in numbers]))


class BlockDataModule(DataModule):
    """A LitGPT DataModule of prepared tokens, whose blocks are read by number, each once.

    Subclasses say where the tokens are; what they say of them needs :meth:`prepare_data`, unless it says otherwise. A
    run asks for its blocks and leaves the module as it is. Stock LitGPT reads the whole training split, in order.
    """

    vocab_size: int
    """Tokens of the tokenizer that the data is prepared with; known before."""
    padded_vocab_size: int
    """Classes a model trained from scratch on this data gets; known before."""
    num_workers: int = 0
    """Processes that read ahead. None by default: reading a block is a copy from the page cache."""
    order_seed: int | None = None
    """Seed of the order of reading, if one is asked for."""
    batch_size, block_size = 1, 1  # for stock LitGPT

    @property
    @abstractmethod
    def is_prepared(self) -> bool:
        """Whether the tokens are there, as files alone tell."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Identity of the training tokens."""

    @property
    @abstractmethod
    def tokenizer_dir(self) -> Path:
        """Folder with the tokenizer's files."""

    @property
    @abstractmethod
    def tokenizer_json(self) -> bytes | None:
        """The tokenizer's tokenizer.json; None while it is not known, which may be before."""

    @property
    def sha256(self) -> Mapping[Path, str]:
        """Of each file of tokens, as it was prepared; none where that is not known."""
        return {}

    @abstractmethod
    def tokens(self, split: str) -> TokenStream:
        """Token ids of ``train`` or ``val``."""

    def num_blocks(self, split: str, block_size: int) -> int:
        """Whole blocks of a split."""
        return len(self.tokens(split)) // (block_size + 1)

    def train_batches(
        self, blocks: BlockRange, micro_batch_size: int, rank: int = 0, num_processes: int = 1
    ) -> DataLoader:
        """A loader of a process's share of a range: micro-batches, shape (B, block_size + 1)."""
        share = (blocks.first, blocks.stop, micro_batch_size, rank, num_processes)
        return self._loader(BlockBatches(self.tokens("train"), blocks.block_size, blocks.order, *share))

    def val_batches(self, block_size: int, micro_batch_size: int) -> DataLoader:
        """A loader of the whole validation split, as it is stored."""
        order = range(self.num_blocks("val", block_size))
        return self._loader(BlockBatches(self.tokens("val"), block_size, order, 0, len(order), micro_batch_size))

    def connect(
        self, tokenizer: Tokenizer | None = None, batch_size: int = 1, max_seq_length: int | None = None
    ) -> None:
        self.batch_size, self.block_size = batch_size, max_seq_length or 1024

    def train_dataloader(self) -> DataLoader:
        order = BlockOrder(self.num_blocks("train", self.block_size), self.order_seed or ORDER_SEED)
        whole = len(order) // self.batch_size * self.batch_size
        return self.train_batches(BlockRange(order, 0, whole, self.block_size), self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return self.val_batches(self.block_size, self.batch_size)

    def _loader(self, batches: BlockBatches) -> DataLoader:
        pinned = torch.cuda.is_available()
        return DataLoader(batches, batch_size=None, num_workers=self.num_workers, pin_memory=pinned)
