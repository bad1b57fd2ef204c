"""From a DataModule to batches: ours by block range, LitGPT's own and foreign ones as they come."""

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from litgpt.data import DataModule
from litgpt.tokenizer import Tokenizer

from litgpt_warmstart.data.blocks import BlockDataModule
from litgpt_warmstart.data.preparing.chunks import INDEX
from litgpt_warmstart.data.randomness import Randomness
from litgpt_warmstart.data.ranges import BlockRange, first_free_block, take_blocks
from litgpt_warmstart.data.reading import TrainLoader, val_rows
from litgpt_warmstart.data.vocabulary import check_vocabulary, given_tokenizer
from litgpt_warmstart.data.workers import start_method_kept
from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.method.loss import IGNORE_INDEX
from litgpt_warmstart.run.record import DataUse
from litgpt_warmstart.run.spec import RunSpec
from litgpt_warmstart.run.tokenizer_files import TokenizerFiles, read_tokenizer_files


@dataclass
class DataPlan:
    """A prepared DataModule and the part of it that a run reads."""

    spec: RunSpec
    blocks: BlockRange | None = None
    """None for a DataModule that does not hand out blocks by number."""
    warnings: list[str] = field(default_factory=list)

    @cached_property
    def tokenizer(self) -> TokenizerFiles | None:
        """The files of a tokenizer that go into each checkpoint, read once.

        Raises:
            UserError: One is damaged.
        """
        folder = self.spec.tokenizer_dir
        if folder is None and isinstance(self.spec.data, BlockDataModule):
            folder = self.spec.data.tokenizer_dir
        return read_tokenizer_files(folder) if folder else None

    def use(self, step_count: int) -> DataUse:
        """What has been read after a number of optimizer steps."""
        data, read = self.spec.data, step_count * self.spec.train.global_batch_size
        return DataUse(
            class_path=class_path(data),
            init_args=init_args(data),
            tokens=read * self.spec.block_size,
            fingerprint=data.fingerprint if self.blocks else None,
            start_token=self.blocks.start_token() if self.blocks else None,
            stop_token=self.blocks.stop_token(read) if self.blocks else None,
        )

    def train_loader(
        self, step_count: int, loader_state: dict[str, Any] | None, rank: int = 0, num_processes: int = 1
    ) -> TrainLoader:
        """The training batches from the next token on.

        Args:
            step_count: Finished optimizer steps.
            loader_state: What :meth:`loader_state` gave at the last checkpoint.
            rank: Which of the processes this is.
            num_processes: How many share the data.

        Raises:
            UserError: The loader cannot go on from there.
        """
        data, read = self.spec.data, step_count * self.spec.train.global_batch_size
        if self.blocks:
            data.select(self.blocks.first + read, self.blocks.stop, rank, num_processes)
        loader = TrainLoader(self.spec)
        if step_count and not self.blocks:
            loader.go_on(read // self.spec.train.micro_batch_size, loader_state)
        return loader

    def loader_state(self, loader: TrainLoader) -> dict[str, Any] | None:
        """The loader's own word for its position, where blocks are not numbered."""
        return None if self.blocks else loader.state()

    def reconnect(self, spec: RunSpec) -> None:
        """Take another micro-batch size.

        Raises:
            UserError: The data is too short for it.
        """
        if spec.train.micro_batch_size != self.spec.train.micro_batch_size:
            with Randomness(spec.seed):
                _connect(spec, given_tokenizer(spec))
                spec.data.setup()
            if not self.blocks:
                _check_length(spec)
        self.spec = spec

    def describe(self) -> str:
        """The data in a few words, for the start of a run."""
        name = type(self.spec.data).__name__
        if not self.blocks:
            return name
        of = self.spec.data.num_blocks("train")
        return f"{name} blocks {self.blocks.first:,} to {self.blocks.stop:,} of {of:,}"


def plan_data(spec: RunSpec) -> DataPlan:
    """Prepare the data and choose what the run reads of it, after everything in ``spec.seen``.

    Raises:
        UserError: The data is missing, too short, or needs another vocabulary.
    """
    data, seen = spec.data, spec.seen
    prepare_data(spec)
    if isinstance(data, BlockDataModule):
        return plan_blocks(spec)
    plan = DataPlan(spec)
    _check_length(spec)
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


def prepare_data(spec: RunSpec) -> None:
    """Connect a run's DataModule, prepare and set it up.

    Raises:
        UserError: The data is missing, or needs another vocabulary.
    """
    data, tokenizer = spec.data, given_tokenizer(spec)
    if isinstance(data, BlockDataModule):
        check_vocabulary(spec, data)  # before a preparation that may take hours
    try:
        with Randomness(spec.seed), start_method_kept():
            _connect(spec, tokenizer)
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
        raise UserError(f"--data {type(data).__name__} ({given}): {one_line(error)}{remedy}") from error


def plan_blocks(spec: RunSpec) -> DataPlan:
    """Choose the blocks that a run reads of prepared and connected data, after everything in ``spec.seen``.

    Raises:
        UserError: The data is too short, or needs another vocabulary.
    """
    data, plan, batch = spec.data, DataPlan(spec), spec.train.global_batch_size
    check_vocabulary(spec, data)
    first = first_free_block(spec.seen, data.fingerprint, spec.block_size)
    plan.blocks = take_blocks(
        first, spec.max_steps * batch, data.num_blocks("train"), spec.block_size, batch, spec.tokens_per_param
    )
    if others := {use.class_path.rpartition(".")[2] for use in spec.seen if use.fingerprint != data.fingerprint}:
        plan.warnings.append(
            f"the base has also read {', '.join(sorted(others))}, which cannot be compared with"
            f" {type(data).__name__} as it is prepared here: tokens may repeat"
        )
    if (classes := spec.config.padded_vocab_size) >= 2 * data.padded_vocab_size:
        plan.warnings.append(
            f"the model has {classes:,} classes and the data's tokenizer {data.vocab_size:,} tokens: the others learn"
            " nothing, and parameters and FLOPs count them; a target's name takes the data's vocabulary"
        )
    if data.num_blocks("val") == 0:
        raise UserError(f"--data {type(data).__name__}: the validation split is shorter than one block")
    return plan


def _connect(spec: RunSpec, tokenizer: Tokenizer | None) -> None:
    spec.data.connect(tokenizer=tokenizer, batch_size=spec.train.micro_batch_size, max_seq_length=spec.block_size)


def _check_length(spec: RunSpec) -> None:
    """Raise a UserError where a loader knows its length and the budget is longer."""
    try:
        with Randomness(spec.seed):
            batches = len(spec.data.train_dataloader())
    except TypeError:  # no length, as for a mix of streams
        return
    except Exception as error:
        raise UserError(f"--data {type(spec.data).__name__}: {one_line(error)}") from error
    fits = batches // spec.accumulation_iters
    if fits < spec.max_steps:
        remedy = f"pass --train.max_tokens {fits * spec.tokens_per_step} or less" if fits else "take a smaller batch"
        raise UserError(
            f"the data is too short: {spec.max_steps * spec.tokens_per_step:,} tokens asked,"
            f" {batches * spec.train.micro_batch_size * spec.block_size:,} in {type(spec.data).__name__}: {remedy}"
        )


def _check_first_batches(plan: DataPlan) -> None:
    """Raise a UserError where a DataModule that is not ours does not give what training and validation read."""
    spec = plan.spec
    name = f"--data {type(spec.data).__name__}"
    try:
        first = next(iter(plan.train_loader(0, None)), None)
        first_val = next(val_rows(spec), None)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name}: {one_line(error)}") from error
    if first is None:
        raise UserError(
            f"{name}: the training split is shorter than a micro-batch of {spec.train.micro_batch_size}: take a smaller"
            f" one, a smaller --train.max_seq_length (now {spec.block_size}), or more data"
        )
    if first_val is None:
        raise UserError(
            f"{name}: the validation split is shorter than one block: take a smaller --train.max_seq_length (now"
            f" {spec.block_size}), or more data"
        )


def next_batches(
    loader: Iterable[torch.Tensor], device: torch.device, ahead: bool = False
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and targets on the device, int64, shape (B, T) each, from stored batches of shape (B, T + 1).

    Args:
        loader: The stored batches, pinned where there is a GPU.
        device: Where to.
        ahead: Read and send each batch before the one before it is used. Not for a loader that tells its position.
    """
    ready = None
    for batch in _sent(loader, device):
        if not ahead:
            yield batch
            continue
        if ready is not None:
            yield ready
        ready = batch
    if ready is not None:
        yield ready


def _sent(loader: Iterable[torch.Tensor], device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for stored in loader:
        stored = stored.to(device, non_blocking=True).long()
        yield stored[:, :-1].contiguous(), stored[:, 1:].contiguous()


def val_batches(
    plan: DataPlan, max_blocks: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """The first validation blocks, at most ``max_blocks`` whatever the micro-batch.

    Every batch has the full micro-batch, so that nothing is compiled anew: the last one is filled with blocks whose
    targets do not count.

    Yields:
        Inputs and targets, shape (B, T) each, and how many of the B blocks count.
    """
    size = plan.spec.train.micro_batch_size
    rows = itertools.islice(val_rows(plan.spec), max_blocks)
    batches = iter(lambda: list(itertools.islice(rows, size)), [])
    for input_ids, targets in next_batches(map(torch.stack, batches), device):
        counted = len(input_ids)
        if counted < size:
            filling = size - counted
            input_ids = torch.cat((input_ids, input_ids[:1].expand(filling, -1)))
            targets = torch.cat((targets, torch.full_like(targets[:1], IGNORE_INDEX).expand(filling, -1)))
        yield input_ids, targets, counted


def first_val_block(plan: DataPlan, device: torch.device) -> torch.Tensor:
    """Inputs of the first validation block, int64, shape (1, T). Random states are left as they are.

    Raises:
        UserError: There is none.
    """
    batch = next(val_batches(plan, 1, device), None)
    if batch is None:
        raise UserError("--track needs a validation block, and the data has none: leave it out, or take more data")
    return batch[0][:1]


def data_arguments(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Of a DataModule's arguments those that decide which tokens it gives, as text.

    Without the number of loader processes, and without objects, whose text may be their place in memory.
    """
    plain = (str, int, float, bool, list, tuple, Path, type(None))
    return {name: str(value) for name, value in arguments.items() if name != "num_workers" and isinstance(value, plain)}


def class_path(data: DataModule) -> str:
    """Import path of a DataModule's class, shortened where its package exports it."""
    cls = type(data)
    package = cls.__module__.rpartition(".")[0]
    return f"{package if package in ('litgpt.data', 'litgpt_warmstart.data') else cls.__module__}.{cls.__qualname__}"


def init_args(data: DataModule) -> dict[str, Any]:
    """Arguments that make the DataModule again, as plain values; one that it keeps as an object is left out."""
    found = {}
    for name in list(inspect.signature(type(data).__init__).parameters)[1:]:
        with suppress(AttributeError, TypeError):
            found[name] = _plain(getattr(data, name))
    return found


def _plain(value: Any) -> Any:
    """A value as YAML has it.

    Raises:
        TypeError: It is an object.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Path):
        return str(value)
    if type(value) in (list, tuple):
        return [_plain(element) for element in value]
    if type(value) is dict:
        return {str(key): _plain(element) for key, element in value.items()}
    raise TypeError(f"{type(value).__name__} is no plain value")
