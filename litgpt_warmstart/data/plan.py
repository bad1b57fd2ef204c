"""Which part of its data a run reads: ours by range of blocks, LitGPT's own and foreign ones as they come."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from litgpt_warmstart.data import tokenizer_files
from litgpt_warmstart.data.blocks import ORDER_SEED, BlockOrder, BlockRange
from litgpt_warmstart.data.checking import ChunkCheck
from litgpt_warmstart.data.loaders import Randomness, TrainLoader, start_method_kept, val_batches
from litgpt_warmstart.data.prepared_text import PreparedText
from litgpt_warmstart.data.preparing.write import INDEX
from litgpt_warmstart.data.use import DataUse, Reading, class_path, init_args
from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.files import entries


@dataclass
class DataPlan:
    """What a run reads: prepared data and the part of it that is the run's."""

    reading: Reading
    blocks: BlockRange | None = None
    """None for a DataModule that does not hand out blocks by number."""
    warnings: list[str] = field(default_factory=list)

    @cached_property
    def tokenizer(self) -> tokenizer_files.TokenizerFiles | None:
        """The files of a tokenizer that go into each checkpoint, read once."""
        return tokenizer_files.read_tokenizer_files(self.tokenizer_dir) if self.tokenizer_dir else None

    @property
    def tokenizer_dir(self) -> Path | None:
        """Where the tokenizer is, if it is anywhere."""
        data = self.reading.data
        return self.reading.tokenizer_dir or (data.tokenizer_dir if isinstance(data, PreparedText) else None)

    @cached_property
    def check(self) -> ChunkCheck:
        """The look at the files of tokens in the background, for a run to begin."""
        data = self.reading.data
        return ChunkCheck(data.sha256, data.fingerprint) if isinstance(data, PreparedText) else ChunkCheck({}, "")

    def use(self, step_count: int) -> DataUse:
        """What has been read after a number of optimizer steps."""
        data, blocks = self.reading.data, self.blocks
        places: dict[str, Any] = {}
        if blocks is not None and isinstance(data, PreparedText):
            places = dict(
                fingerprint=data.fingerprint,
                start_token=blocks.token(0),
                stop_token=blocks.token(step_count * self.reading.global_batch_size),
                order_seed=blocks.order.seed,
                block_size=blocks.block_size,
            )
        return DataUse(class_path(data), init_args(data), step_count * self.reading.tokens_per_step, **places)

    def train_loader(
        self, step_count: int, loader_state: dict[str, Any] | None, rank: int = 0, num_processes: int = 1
    ) -> TrainLoader:
        """A process's training batches after ``step_count`` optimizer steps; ``loader_state`` is what was said then."""
        read = step_count * self.reading.global_batch_size
        if self.blocks is not None:
            left = replace(self.blocks, first=self.blocks.first + read)
            return TrainLoader(self.reading, left, rank, num_processes)
        loader = TrainLoader(self.reading, None, rank, num_processes)
        if step_count:
            loader.go_on(read // self.reading.micro_batch_size, loader_state)
        return loader

    def describe(self) -> str:
        """The data in a few words, for the start of a run."""
        name, blocks = type(self.reading.data).__name__, self.blocks
        return f"{name} blocks {blocks.first:,} to {blocks.stop:,} of {len(blocks.order):,}" if blocks else name


def plan_data(reading: Reading) -> DataPlan:
    """Prepare the data and choose what the run reads of it, after everything in ``reading.seen``."""
    data, seen = reading.data, reading.seen
    prepare_data(reading)
    if isinstance(data, PreparedText):
        return plan_blocks(reading)
    plan = DataPlan(reading)
    with _in_one_line(reading):
        _check_batches(plan)
    if any(use.class_path == class_path(data) and use.init_args == init_args(data) for use in seen):
        plan.warnings.append(
            f"{type(data).__name__} begins at its first token, as did the run that this one takes its settings"
            " from; for a warmstart that repeats no token, give it other data"
        )
    elif seen:
        plan.warnings.append(
            f"{type(data).__name__} does not say which tokens it reads: it may repeat some that the base has read"
        )
    return plan


@contextmanager
def _in_one_line(reading: Reading) -> Iterator[None]:
    """Turn whatever a DataModule raises, for a wrong path or a missing tokenizer, into a UserError."""
    try:
        with Randomness(reading.seed), start_method_kept():
            yield
    except UserError:
        raise
    except Exception as error:
        split_paths = [value for name, value in vars(reading.data).items() if name.endswith(("_train", "_val"))]
        folders = [Path(path) for path in split_paths if isinstance(path, str | Path) and Path(path).is_dir()]
        half = [str(folder) for folder in folders if _holds_chunks_alone(folder)]
        remedy = f": a preparation broke off there: delete {half[0]!r} and give the command again" if half else ""
        raise UserError(f"{reading.option}: {one_line(error)}{remedy}") from error


def _holds_chunks_alone(folder: Path) -> bool:
    """Whether all that is in a folder are litdata's chunks and parts of an index, as where it broke off."""
    names = entries(folder)
    return INDEX not in names and all(name.startswith("chunk-") or name.endswith(INDEX) for name in names)


def prepare_data(reading: Reading) -> None:
    """Prepare a run's data; a DataModule that is not ours is connected and set up, as LitGPT does."""
    data, tokenizer = reading.data, tokenizer_files.given_tokenizer(reading)
    ours = isinstance(data, PreparedText)
    if ours:
        tokenizer_files.check_vocabulary(reading, data)  # before a preparation that may take hours
    with _in_one_line(reading):
        if not ours:
            sizes = dict(batch_size=reading.micro_batch_size, max_seq_length=reading.block_size)
            data.connect(tokenizer=tokenizer, **sizes)
        data.prepare_data()
        data.setup()


def unread_blocks(reading: Reading, data: PreparedText) -> BlockRange:
    """All blocks of prepared data that a lineage has not read, in the order in which it reads.

    That is the order that it has begun with, or what is asked for. Another order, or blocks of another length, would
    read some tokens twice, and is refused.
    """
    seed, block_size, read = data.order_seed, reading.block_size, 0
    for use in reading.seen:
        if use.fingerprint != data.fingerprint:
            continue
        if use.order_seed is None:
            raise UserError(
                "version 0.1 has read this data for the base as it is stored, and no order goes on from there: prepare"
                " it again in another folder"
            )
        if use.block_size != block_size:
            raise UserError(
                f"the base has read this data in blocks of {use.block_size:,} tokens, and blocks of {block_size:,}"
                f" would repeat some: pass --train.max_seq_length {use.block_size}, or other data"
            )
        if seed not in (None, use.order_seed):
            raise UserError(
                f"the base has read this data with --data.order_seed {use.order_seed}, and {seed} would repeat some of"
                " it: leave --data.order_seed out, or take other data"
            )
        seed, read = use.order_seed, max(read, -(-(use.stop_token or 0) // (block_size + 1)))
    order = BlockOrder(data.num_blocks("train", block_size), ORDER_SEED if seed is None else seed)
    return BlockRange(order, min(read, len(order)), len(order), block_size)


def plan_blocks(reading: Reading) -> DataPlan:
    """Choose the blocks that a run reads of prepared data, after everything in ``reading.seen``. Nothing is written."""
    data, plan = reading.data, DataPlan(reading)
    assert isinstance(data, PreparedText)
    tokenizer_files.check_vocabulary(reading, data)
    left, needed = unread_blocks(reading, data), reading.max_steps * reading.global_batch_size
    if needed > len(left):
        whole = len(left.order) * reading.block_size
        found = f"{len(left) * reading.block_size:,} left of {whole:,} after what the base has seen"
        raise _too_short(reading, len(left), found)
    plan.blocks = replace(left, stop=left.first + needed)
    if others := {use.class_path.rpartition(".")[2] for use in reading.seen if use.fingerprint != data.fingerprint}:
        plan.warnings.append(
            f"the base has also read {', '.join(sorted(others))}, which cannot be compared with"
            f" {type(data).__name__} as it is prepared here: tokens may repeat"
        )
    if reading.num_classes >= 2 * data.padded_vocab_size:
        plan.warnings.append(
            f"the model has {reading.num_classes:,} classes and the data's tokenizer {data.vocab_size:,} tokens: the"
            " others learn nothing, and parameters and FLOPs count them; a target's name takes the data's vocabulary"
        )
    if data.num_blocks("val", reading.block_size) == 0:
        raise UserError(f"{reading.option}: the validation split is shorter than one block")
    return plan


def _too_short(reading: Reading, num_blocks: int, found: str) -> UserError:
    """The error for too few blocks, with the largest budget, in whole steps, and the largest target that fit."""
    fits = num_blocks // reading.global_batch_size * reading.tokens_per_step
    remedy = "take other data or a smaller batch"
    if fits:
        remedy = (
            f"pass --train.max_tokens {fits} or less, or a target of at most"
            f" {int(fits / reading.tokens_per_param):,} parameters at {reading.tokens_per_param:g} tokens each"
        )
    return UserError(f"the data is too short: {reading.max_tokens:,} tokens asked, {found}: {remedy}")


def _check_batches(plan: DataPlan) -> None:
    """Raise a UserError where a DataModule that is not ours has too little, or not what a run reads."""
    reading = plan.reading
    with suppress(TypeError):  # no length, as for a mix of streams
        blocks = len(reading.data.train_dataloader()) * reading.micro_batch_size
        if blocks // reading.global_batch_size < reading.max_steps:
            raise _too_short(reading, blocks, f"{blocks * reading.block_size:,} in {type(reading.data).__name__}")
    for batches, split, size in (
        (plan.train_loader(0, None), "training", f"a micro-batch of {reading.micro_batch_size}"),
        (val_batches(reading, 1, torch.device("cpu")), "validation", "one block"),
    ):
        if next(iter(batches), None) is None:
            raise UserError(
                f"{reading.option}: the {split} split is shorter than {size}: take a smaller --train.max_seq_length"
                f" (now {reading.block_size}) or micro-batch, or more data"
            )
