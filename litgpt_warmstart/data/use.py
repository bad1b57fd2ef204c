"""What a run asks of its data, what it has read of it, for its record, and how a DataModule is written down."""

import inspect
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from litgpt.data import DataModule

from litgpt_warmstart.parsing import Count, Size


@dataclass(frozen=True)
class DataUse:
    """What a run reads: the DataModule and, where it is one of ours, the tokens it uses up.

    Positions are those in the order of reading: its block i takes the stored tokens i * (block_size + 1) and so on.
    """

    __pydantic_config__ = {"extra": "forbid"}

    class_path: str
    init_args: dict[str, Any]
    tokens: Count
    """Tokens trained on."""
    fingerprint: str | None = None
    """Identity of the prepared training tokens; None for a DataModule that does not tell."""
    start_token: Count | None = None
    """Where the first block that was read begins."""
    stop_token: Count | None = None
    """One past the end of the last block that was read."""
    order_seed: int | None = None
    """Seed of the order of reading; None in a record of version 0.1, which read blocks as they are stored."""
    block_size: Size | None = None
    """Tokens of a block that count; None in a record of version 0.1."""

    def identity(self, other: "DataUse | None" = None) -> dict[str, Any]:
        """What tells the data of a run from another's, in plain values.

        Where tokens have no fingerprint, only those arguments are told that ``other``, another run's, tells too.
        """
        if self.fingerprint is not None:
            names = ("class_path", "fingerprint", "start_token", "order_seed")
            return {name: getattr(self, name) for name in names}
        told = data_arguments(self.init_args)
        known = data_arguments(other.init_args) if other else told
        return {"class_path": self.class_path} | {name: value for name, value in told.items() if name in known}


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


def data_arguments(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Of a DataModule's arguments those that decide which tokens it gives, as text.

    Without the number of loader processes, and without objects, whose text may be their place in memory.
    """
    plain = (str, int, float, bool, list, tuple, Path, type(None))
    return {name: str(value) for name, value in arguments.items() if name != "num_workers" and isinstance(value, plain)}


def class_path(data: DataModule | type[DataModule]) -> str:
    """Import path of a DataModule's class, shortened where its package exports it."""
    cls = data if isinstance(data, type) else type(data)
    package = cls.__module__.rpartition(".")[0]
    exports = vars(sys.modules[package]) if package in ("litgpt.data", "litgpt_warmstart.data") else {}
    return f"{package if exports.get(cls.__qualname__) is cls else cls.__module__}.{cls.__qualname__}"


def init_args(data: DataModule) -> dict[str, Any]:
    """Arguments that make the DataModule again, as plain values; one that it keeps as an object is left out."""
    found = {}
    for name in list(inspect.signature(type(data).__init__).parameters)[1:]:
        with suppress(AttributeError, TypeError, ValueError):
            found[name] = json.loads(json.dumps(getattr(data, name), default=os.fspath))
    return found
