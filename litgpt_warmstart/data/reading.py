"""What a run asks of its data, in plain values."""

from dataclasses import dataclass
from pathlib import Path

from litgpt.data import DataModule

from litgpt_warmstart.data.use import DataUse


@dataclass(frozen=True)
class Reading:
    """What a run reads, and what its batches must be."""

    data: DataModule
    block_size: int
    """Tokens of a sequence that count; a stored block has one more."""
    micro_batch_size: int
    """Sequences of a batch."""
    global_batch_size: int
    """Sequences of an optimizer step."""
    max_steps: int
    """Optimizer steps of the whole run."""
    num_classes: int
    """Token ids that the model has a class for."""
    seed: int
    """Of initialization and perturbation, and of the order of a DataModule that shuffles; not of prepared blocks'."""
    seen: tuple[DataUse, ...] = ()
    """What must not be read again, oldest first."""
    tokenizer_dir: Path | None = None
    """What --tokenizer_dir or the base has."""
    tokens_per_param: float = 20.0
    """What the budget is meant to be per parameter, for telling what would fit."""

    @property
    def option(self) -> str:
        """The data as a user names it."""
        return f"--data {type(self.data).__name__}"

    @property
    def tokens_per_step(self) -> int:
        """Tokens that count per optimizer step."""
        return self.global_batch_size * self.block_size

    @property
    def max_tokens(self) -> int:
        """Tokens that count of the whole run."""
        return self.max_steps * self.tokens_per_step
