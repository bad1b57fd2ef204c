"""Which part of its data a run reads: ours by range of blocks, LitGPT's own and foreign ones as they come."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from litgpt_warmstart.data.blocks import BlockDataModule
from litgpt_warmstart.data.checking import ChunkCheck
from litgpt_warmstart.data.loaders import TrainLoader, val_batches
from litgpt_warmstart.data.order import BlockOrder
from litgpt_warmstart.data.preparing.write import INDEX
from litgpt_warmstart.data.randomness import Randomness
from litgpt_warmstart.data.ranges import BlockRange, first_unread, lineage_seed, take_blocks
from litgpt_warmstart.data.reading import Reading
from litgpt_warmstart.data.tokenizer_files import TokenizerFiles, read_tokenizer_files
from litgpt_warmstart.data.use import DataUse, class_path, init_args
from litgpt_warmstart.data.vocabulary import check_vocabulary, given_tokenizer
from litgpt_warmstart.data.workers import start_method_kept
from litgpt_warmstart.errors import UserError, one_line


@dataclass
class DataPlan:
    """What a run reads: prepared data and the part of it that is the run's."""

    reading: Reading
    blocks: BlockRange | None = None
    """None for a DataModule that does not hand out blocks by number."""
    warnings: list[str] = field(default_factory=list)

    @cached_property
    def tokenizer(self) -> TokenizerFiles | None:
        """The files of a tokenizer that go into each checkpoint, read once."""
        folder, data = self.reading.tokenizer_dir, self.reading.data
        if folder is None and isinstance(data, BlockDataModule):
            folder = data.tokenizer_dir
        return read_tokenizer_files(folder) if folder else None

    @cached_property
    def check(self) -> ChunkCheck:
        """The look at the files of tokens in the background, for a run to begin."""
        data = self.reading.data
        return ChunkCheck(data.sha256, data.fingerprint) if isinstance(data, BlockDataModule) else ChunkCheck({}, "")

    def use(self, step_count: int) -> DataUse:
        """What has been read after a number of optimizer steps."""
        reading, blocks = self.reading, self.blocks
        use = DataUse(class_path(reading.data), init_args(reading.data), step_count * reading.tokens_per_step)
        if blocks is None or not isinstance(reading.data, BlockDataModule):
            return use
        return replace(
            use,
            fingerprint=reading.data.fingerprint,
            start_token=blocks.start_token,
            stop_token=blocks.stop_token(step_count * reading.global_batch_size),
            order_seed=blocks.order.seed,
            block_size=blocks.block_size,
        )

    def train_loader(
        self, step_count: int, loader_state: dict[str, Any] | None, rank: int = 0, num_processes: int = 1
    ) -> TrainLoader:
        """A process's training batches after ``step_count`` optimizer steps; ``loader_state`` is what was said then."""
        read = step_count * self.reading.global_batch_size
        if self.blocks:
            left = replace(self.blocks, first=self.blocks.first + read)
            return TrainLoader(self.reading, left, rank, num_processes)
        loader = TrainLoader(self.reading)
        if step_count:
            loader.go_on(read // self.reading.micro_batch_size, loader_state)
        return loader

    def loader_state(self, loader: TrainLoader) -> dict[str, Any] | None:
        """The loader's own word for its position, where blocks are not numbered."""
        return None if self.blocks else loader.state()

    def describe(self) -> str:
        """The data in a few words, for the start of a run."""
        name = type(self.reading.data).__name__
        if not self.blocks:
            return name
        return f"{name} blocks {self.blocks.first:,} to {self.blocks.stop:,} of {len(self.blocks.order):,}"


def plan_data(reading: Reading) -> DataPlan:
    """Prepare the data and choose what the run reads of it, after everything in ``reading.seen``."""
    data, seen = reading.data, reading.seen
    prepare_data(reading)
    if isinstance(data, BlockDataModule):
        return plan_blocks(reading)
    plan = DataPlan(reading)
    _check_length(reading)
    _check_first_batches(plan)
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


def prepare_data(reading: Reading) -> None:
    """Prepare a run's data; a DataModule that is not ours is connected and set up, as LitGPT does."""
    data, tokenizer = reading.data, given_tokenizer(reading)
    ours = isinstance(data, BlockDataModule)
    if ours:
        check_vocabulary(reading, data)  # before a preparation that may take hours
    try:
        with Randomness(reading.seed), start_method_kept():
            if not ours:
                sizes = dict(batch_size=reading.micro_batch_size, max_seq_length=reading.block_size)
                data.connect(tokenizer=tokenizer, **sizes)
            data.prepare_data()
            data.setup()
    except UserError:
        raise
    except Exception as error:  # whatever a DataModule raises for a wrong path or a missing tokenizer
        given = ", ".join(f"{k} {v}" for k, v in init_args(data).items() if "path" in k and v is not None)
        half = next((str(value) for name, value in vars(data).items() if name.endswith(("_train", "_val"))
                     and isinstance(value, str | Path) and Path(value).is_dir()
                     and not (Path(value) / INDEX).is_file()), None)  # fmt: skip
        remedy = f": a preparation broke off there: delete {half!r} and give the command again" if half else ""
        raise UserError(f"{reading.option} ({given}): {one_line(error)}{remedy}") from error


def unread_blocks(reading: Reading, data: BlockDataModule) -> tuple[BlockOrder, int]:
    """The order in which a lineage reads prepared data, and the first place that it has not read."""
    seed = lineage_seed(reading.seen, data.fingerprint, reading.block_size, data.order_seed)
    order = BlockOrder(data.num_blocks("train", reading.block_size), seed)
    return order, first_unread(reading.seen, data.fingerprint, reading.block_size)


def plan_blocks(reading: Reading) -> DataPlan:
    """Choose the blocks that a run reads of prepared data, after everything in ``reading.seen``. Nothing is written."""
    data, plan = reading.data, DataPlan(reading)
    assert isinstance(data, BlockDataModule)
    check_vocabulary(reading, data)
    order, first = unread_blocks(reading, data)
    needed = reading.max_steps * reading.global_batch_size
    sizes = reading.block_size, reading.global_batch_size, reading.tokens_per_param
    plan.blocks = take_blocks(order, first, needed, *sizes)
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


def _check_length(reading: Reading) -> None:
    """Raise a UserError where a loader knows its length and the budget is longer."""
    try:
        with Randomness(reading.seed):
            batches = len(reading.data.train_dataloader())
    except TypeError:  # no length, as for a mix of streams
        return
    except Exception as error:
        raise UserError(f"{reading.option}: {one_line(error)}") from error
    fits = batches // (reading.global_batch_size // reading.micro_batch_size)
    if fits < reading.max_steps:
        remedy = f"pass --train.max_tokens {fits * reading.tokens_per_step} or less" if fits else "take a smaller batch"
        raise UserError(
            f"the data is too short: {reading.max_tokens:,} tokens asked,"
            f" {batches * reading.micro_batch_size * reading.block_size:,} in {type(reading.data).__name__}: {remedy}"
        )


def _check_first_batches(plan: DataPlan) -> None:
    """Raise a UserError where a DataModule that is not ours does not give what training and validation read."""
    reading = plan.reading
    shorter = f"a smaller --train.max_seq_length (now {reading.block_size}), or more data"
    try:
        if next(iter(plan.train_loader(0, None)), None) is None:
            raise UserError(
                f"{reading.option}: the training split is shorter than a micro-batch of {reading.micro_batch_size}:"
                f" take a smaller one, {shorter}"
            )
        if next(val_batches(reading, 1, torch.device("cpu")), None) is None:
            raise UserError(f"{reading.option}: the validation split is shorter than one block: take {shorter}")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{reading.option}: {one_line(error)}") from error
