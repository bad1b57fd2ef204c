"""PreparedText and SlimPajama6B: text from the Hub or a folder, tokenized once, read by block."""

from copy import copy
from dataclasses import KW_ONLY, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from litgpt.config import find_multiple
from litgpt.data import DataModule
from litgpt.tokenizer import Tokenizer
from torch.utils.data import DataLoader

from litgpt_warmstart.data.blocks import ORDER_SEED, BlockBatches, BlockOrder, BlockRange, TokenStream
from litgpt_warmstart.data.preparing import hub, request
from litgpt_warmstart.data.preparing.encode import read_tokenizer, vocab_size
from litgpt_warmstart.data.preparing.prepare import prepare
from litgpt_warmstart.data.preparing.read import Split
from litgpt_warmstart.edge import inheriting_docs
from litgpt_warmstart.errors import NotYet, UserError


@inheriting_docs
@dataclass
class PreparedText(request.TextSource, DataModule):
    """Text of a Hub dataset or of a folder (parquet, jsonl, txt), tokenized at first use or by warmstart_prepare_data.

    A run reads a range of blocks, and a warmstart goes on where its base ended. Files are assigned to training,
    validation and test by their names; without validation files, a part of the training documents is held out.
    """

    data_path: Path | None = None
    """Where the prepared tokens are. Default: data/ and the name of the repository or folder."""
    order_seed: int | None = None
    """Of the order in which blocks are read. Default: what the base has read it in, else 0, whatever ``--seed``."""
    num_workers: int = 0
    """Processes that read ahead while training; worth it only where the files are on a slow disk."""

    def __post_init__(self) -> None:
        DataModule.__init__(self)
        self.batch_size, self.block_size = 1, 1024  # for stock LitGPT, which says them later
        self.text_dir = Path(self.text_dir) if self.text_dir else None
        if self.data_path is None and (self.repo_id or self.text_dir):
            self.data_path = request.default_data_path(self.repo_id, self.text_dir)
        self.data_path = Path(self.data_path) if self.data_path else None

    @property
    def tokenizer_dir(self) -> Path:
        """The folder of prepared data; a UserError where nothing says which it is."""
        if self.data_path is None:
            raise UserError(f"--data {type(self).__name__} needs --data.data_path: give the folder of prepared data")
        return self.data_path

    @cached_property
    def index(self) -> request.PreparedIndex:
        """What is prepared; a UserError where nothing is."""
        return request.PreparedIndex.read(self.tokenizer_dir / request.PREPARED)

    @property
    def is_prepared(self) -> bool:
        """Whether the tokens are there; a UserError where not, and nothing says where to take them from."""
        found = (self.tokenizer_dir / request.PREPARED).is_file()
        if not found and not self.repo_id and not self.text_dir:
            raise NotYet(
                f"nothing is prepared in {str(self.data_path)!r}: check --data.data_path, or give --data.text_dir or"
                " --data.repo_id to prepare it"
            )
        return found

    @cached_property
    def _tokenizer_files(self) -> dict[str, bytes]:
        if not self.is_prepared:
            return hub.tokenizer_files(self.tokenizer or request.TOKENIZER)
        files = hub.tokenizer_files(str(self.tokenizer_dir))
        if hub.tokenizer_digest(files) != self.index.tokenizer_sha256:
            raise UserError(
                f"the tokenizer in {str(self.data_path)!r} is not the one that the data was prepared with: restore"
                " tokenizer.json and tokenizer_config.json"
            )
        return files

    @property
    def tokenizer_json(self) -> bytes | None:
        return self._tokenizer_files["tokenizer.json"]

    @property
    def vocab_size(self) -> int:
        if self.is_prepared:
            return self.index.vocab_size
        return vocab_size(read_tokenizer(self._tokenizer_files["tokenizer.json"], self.tokenizer or request.TOKENIZER))

    @property
    def padded_vocab_size(self) -> int:
        return find_multiple(self.vocab_size, 128)  # 50,257 becomes Table 1's 50,304

    @property
    def fingerprint(self) -> str:
        return self.index.fingerprint

    @property
    def sha256(self) -> dict[Path, str]:
        """Of each chunk, as it was prepared."""
        return {path: chunk.sha256 for path, chunk in self.index.chunk_files(self.tokenizer_dir).items()}

    def in_order(self, order_seed: int) -> Self:
        """The same data, read in another order."""
        data = copy(self)
        data.order_seed = order_seed
        return data

    def prepare_data(self) -> None:
        """Prepare the tokens, or check that those there are of what is asked for."""
        self.is_prepared  # noqa: B018  # raises where there is nothing to prepare
        asked = {field.name: getattr(self, field.name) for field in fields(request.TextSource)}
        prepare(request.Preparation(self.tokenizer_dir, **asked))

    def tokens(self, split: Split) -> TokenStream:
        """Token ids of ``train`` or ``val``."""
        if split not in self.index.chunks:
            raise UserError(f"{str(self.data_path)!r} has no {split} split")
        chunks = [(self.tokenizer_dir / split / chunk.name, chunk.tokens) for chunk in self.index.chunks[split]]
        return TokenStream(chunks, np.dtype(self.index.dtype))

    def num_blocks(self, split: Split, block_size: int) -> int:
        """Whole blocks of a split."""
        return len(self.tokens(split)) // (block_size + 1)

    def train_batches(
        self, blocks: BlockRange, micro_batch_size: int, rank: int = 0, num_processes: int = 1
    ) -> DataLoader:
        """A loader of a process's share of a range: micro-batches, shape (B, block_size + 1)."""
        share = (blocks.block_size, micro_batch_size, rank, num_processes)
        return self._loader(BlockBatches(self.tokens("train"), blocks, *share))

    def val_batches(self, block_size: int, micro_batch_size: int) -> DataLoader:
        """A loader of the whole validation split, as it is stored."""
        numbers = range(self.num_blocks("val", block_size))
        return self._loader(BlockBatches(self.tokens("val"), numbers, block_size, micro_batch_size))

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


@dataclass
class SlimPajama6B(PreparedText):
    """SlimPajama-6B from the Hub, about 6 billion tokens of GPT-2's tokenizer: the paper's data.

    Preparing it downloads 14 GB into the Hub's cache, and takes some 12 GB of disk beside that.
    """

    data_path: Path | None = Path("data/slimpajama-6b")
    """Where the prepared tokens are; prepared at first use, or ahead by ``litgpt warmstart_prepare_data``."""
    _: KW_ONLY
    repo_id: str | None = request.SLIMPAJAMA_6B
    """Dataset repository on the Hub."""
    revision: str | None = request.SLIMPAJAMA_6B_COMMIT
    """Its commit."""
