"""Random tokens as a DataModule that other processes can import."""

import torch
from litgpt.data import DataModule
from torch.utils.data import DataLoader


class RandomTokens(DataModule):
    """So many sequences of ``block_size + 1`` tokens, the same each time."""

    def __init__(self, sequences: int, block_size: int, classes: int = 50257) -> None:
        super().__init__()
        self.sequences, self.block_size, self.classes = sequences, block_size, classes

    def connect(self, tokenizer=None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(self.classes, (self.sequences, self.block_size + 1), generator=generator)
        return DataLoader(list(tokens), self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(2 * self.batch_size, self.block_size + 1, dtype=torch.int64), self.batch_size)
