"""From a DataModule's loaders to batches on the device: in an order of the run's own, every batch checked."""

import copy
import itertools
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from litgpt_warmstart.data.blocks import BlockRange
from litgpt_warmstart.data.prepared_text import PreparedText
from litgpt_warmstart.data.use import Reading
from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.executors import end_with
from litgpt_warmstart.method.loss import IGNORE_INDEX

STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)  # POSIX
)
"""All that stop a run after the step in hand. A terminal or a scheduler sends them to its loaders' workers too."""


class Randomness:
    """While entered, torch's generator of the CPU, Python's and NumPy's are others, which begin at a seed.

    Entered again, they go on where they were left. So the order of a loader that shuffles depends on the seed alone,
    and starting a loader, reading it or skipping a part of it leaves a run's own random numbers as they are.
    """

    def __init__(self, seed: int) -> None:
        numpy: Any = np.random.RandomState(seed).get_state()
        self._other = torch.Generator().manual_seed(seed).get_state(), random.Random(seed).getstate(), numpy

    def __enter__(self) -> "Randomness":
        self._swap()
        return self

    def __exit__(self, *error: object) -> None:
        self._swap()

    def start(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The loader's batches; these generators begin it, and the run's own make the batches."""
        with self:
            return iter(loader)

    def draw(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The loader's batches, each made with these generators."""
        batches, end = self.start(loader), object()
        while True:
            with self:
                batch = next(batches, end)
            if batch is end:
                return
            yield batch

    def _swap(self) -> None:
        """Put the states of these generators in the place of the global ones, and keep those."""
        cpu, python, numpy = self._other
        self._other = torch.default_generator.get_state(), random.getstate(), np.random.get_state()
        torch.default_generator.set_state(cpu)
        random.setstate(python)
        np.random.set_state(numpy)


class TrainLoader:
    """A run's training batches, shape (B, T + 1), each whole and with ids that the model has.

    The order is that of ``blocks``, those that are left; of a DataModule without numbered blocks it is its own, a
    function of the run's seed. Nothing that the loader draws moves the run's own random numbers.
    """

    def __init__(
        self, reading: Reading, blocks: BlockRange | None = None, rank: int = 0, num_processes: int = 1
    ) -> None:
        self.reading, self.blocks, self._rank, self._num_processes = reading, blocks, rank, num_processes
        self._randomness = Randomness(reading.seed)
        with self._randomness:
            if blocks is not None and isinstance(reading.data, PreparedText):
                self._loader: Any = reading.data.train_batches(blocks, reading.micro_batch_size, rank, num_processes)
            else:
                self._loader = reading.data.train_dataloader()
                _read_alone(self._loader)
        prepare_workers(self._loader)
        self._skip = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        """The batches of this process; of a DataModule without numbered blocks each process reads those of all."""
        if self.blocks is not None or self._num_processes == 1:
            yield from self._whole()
            return
        batches = self._whole()
        while len(of_all := list(itertools.islice(batches, self._num_processes))) == self._num_processes:
            yield of_all[self._rank]

    def _whole(self) -> Iterator[torch.Tensor]:
        wanted, left = self.reading.micro_batch_size, self._skip
        for stored in _drawn(self._loader, self._randomness, self.reading):
            if len(stored) > wanted:
                raise UserError(
                    f"{self.reading.option} gives {len(stored):,} sequences at once, and not the micro-batch of"
                    f" {wanted:,} that it was told in connect()"
                )
            if len(stored) < wanted:
                continue  # a loader's last batch, or a worker's
            if left:
                left -= 1
                continue
            yield stored
        if left:
            raise UserError(
                f"{self.reading.option} has {self._skip - left:,} micro-batches, and the run has read {self._skip:,}:"
                " give it the data that it was started with"
            )

    def state(self) -> dict[str, Any] | None:
        """Where the loader is, in plain values; None where blocks are numbered."""
        if self.blocks is not None:
            return None
        own = self._loader.state_dict() if _knows_its_place(self._loader) else None
        return {"order": self._order(), "loader": own}

    def go_on(self, batches: int, state: dict[str, Any] | None) -> None:
        """Begin after the micro-batches that a run has read, if the order is the one that it told in ``state``."""
        if state is None or "order" not in state:
            raise UserError(
                f"version 0.1 did not keep the order in which this run read {self.reading.option}: start from the"
                " checkpoint's weights with --initial_checkpoint_dir"
            )
        for name, now in self._order().items():
            if (before := state["order"][name]) != now:
                flag = "--data.num_workers" if name == "num_workers" else "--train.micro_batch_size"
                raise UserError(
                    f"the order of {self.reading.option} depends on {flag}, which was {before} and is {now}: pass"
                    f" {flag} {before} to go on"
                )
        if state["loader"] is None or not _knows_its_place(self._loader):
            self._skip = batches
            return
        try:
            self._loader.load_state_dict(state["loader"])
        except Exception as error:
            raise UserError(f"{self.reading.option} cannot go on: {one_line(error)}") from error

    def _order(self) -> dict[str, int]:
        """What decides the order of sequences beside seed and data: of a stream, who reads how many at once."""
        if isinstance(getattr(self._loader, "dataset", None), IterableDataset):
            return {"micro_batch_size": self.reading.micro_batch_size, "num_workers": self._loader.num_workers}
        return {}


def _read_alone(loader: Iterable[Any]) -> None:
    """Have litdata's datasets give all that they hold, in the order of one process, where there are several."""
    dataset = getattr(loader, "dataset", None)
    for each in getattr(dataset, "_datasets", [dataset]):
        if hasattr(each, "distributed_env"):
            each.distributed_env = type(each.distributed_env)(world_size=1, global_rank=0, num_nodes=1)


def _knows_its_place(loader: Iterable[Any]) -> bool:
    """Whether a loader can be put where it was. Several of litdata's datasets as one cannot.

    With two workers or more, litdata takes each to have read as much of each dataset, and repeats some and leaves out
    others (0.2.76).
    """
    dataset = getattr(loader, "dataset", None)
    return hasattr(loader, "load_state_dict") and not hasattr(dataset, "_datasets")


def _undropped(loader: Iterable[torch.Tensor]) -> Iterable[torch.Tensor]:
    """The same loader, but with the last batch, which LitGPT's own leave out where it is not full.

    A stream is read in batches of one: it is spread over workers, and which of its blocks come first would depend on
    the batch.
    """
    if not isinstance(loader, DataLoader) or type(loader.batch_sampler) is not BatchSampler:
        return loader
    loader, size = copy.copy(loader), loader.batch_sampler.batch_size
    changed = vars(loader)  # a DataLoader refuses to have these set by name
    if isinstance(loader.dataset, IterableDataset):
        changed["batch_size"] = size = 1
    if hasattr(loader.dataset, "set_drop_last"):  # litdata's datasets have it too
        dataset: Any = copy.copy(loader.dataset)
        changed["dataset"] = dataset
        dataset.set_drop_last(False)
        dataset.set_batch_size(size)
    changed["drop_last"] = False
    changed["batch_sampler"] = BatchSampler(loader.sampler, size, drop_last=False)
    return loader


def _drawn(loader: Iterable[torch.Tensor], randomness: Randomness, reading: Reading) -> Iterator[torch.Tensor]:
    """A loader's batches, checked; what a worker tells as a UserError is one line."""
    try:
        # Ours draw nothing but their workers' seeds, and a step of a small model is short.
        ours = isinstance(reading.data, PreparedText)
        for stored in randomness.start(loader) if ours else randomness.draw(loader):
            yield _checked(stored, reading)
    except UserError as error:
        raise UserError(one_line(error)) from error


def _checked(stored: object, reading: Reading) -> torch.Tensor:
    """What a loader gave, if it is a batch of the model's token ids, shape (B, T + 1); a UserError if not."""
    name, classes = reading.option, reading.num_classes
    if not isinstance(stored, torch.Tensor) or stored.is_floating_point() or stored.dim() != 2:
        raise UserError(
            f"{name} gives no token tensors of two dimensions, as instruction-tuning DataModules do: take one for"
            " pretraining"
        )
    if stored.shape[1] != reading.block_size + 1:
        raise UserError(
            f"{name} gives sequences of {stored.shape[1]:,} tokens, and not {reading.block_size + 1:,}, --train."
            "max_seq_length and the token after: prepare it for this length"
        )
    ids = stored.cpu().numpy()
    for extreme in (ids.min(initial=0), ids.max(initial=0)):
        if not 0 <= extreme < classes:
            raise UserError(
                f"{name} has the token id {extreme:,}, the model {classes:,} classes: take a model, a base and data"
                " with the same tokenizer"
            )
    return stored


def next_batches(
    loader: Iterable[torch.Tensor], device: torch.device, ahead: bool = False
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and targets on the device, int64, shape (B, T) each, from stored batches of shape (B, T + 1).

    ``ahead`` reads and sends each before the one before it is used. Not for a loader that tells its position.
    """
    sent = (stored.to(device, non_blocking=True).long() for stored in loader)
    batches = ((stored[:, :-1].contiguous(), stored[:, 1:].contiguous()) for stored in sent)
    if not ahead:
        yield from batches
        return
    ready = next(batches, None)
    while ready is not None:
        following = next(batches, None)
        yield ready
        ready = following


def val_batches(
    reading: Reading, max_blocks: int, device: torch.device, rank: int = 0, num_processes: int = 1
) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """Inputs and targets of the first validation blocks, shape (B, T) each, and how many of the B count.

    Every batch has the full micro-batch, so that nothing is compiled anew: the last one is filled with blocks whose
    targets do not count. Each of several processes has as many batches; of its last one perhaps nothing counts.
    """
    size, data, randomness = reading.micro_batch_size, reading.data, Randomness(reading.seed)
    with randomness:
        ours = isinstance(data, PreparedText)
        loader = data.val_batches(reading.block_size, size) if ours else _undropped(data.val_dataloader())
    _read_alone(loader)
    prepare_workers(loader)
    rows = (row for stored in _drawn(loader, randomness, reading) for row in stored)
    rows = itertools.islice(rows, max_blocks)  # the same at each call, each micro-batch and number of processes
    while of_all := list(itertools.islice(rows, size * num_processes)):
        mine = of_all[rank * size : (rank + 1) * size]
        input_ids, targets = next(next_batches([torch.stack(mine or of_all[:1])], device))
        if filling := size - len(input_ids):
            input_ids = torch.cat((input_ids, input_ids[:1].expand(filling, -1)))
            targets = torch.cat((targets, torch.full_like(targets[:1], IGNORE_INDEX).expand(filling, -1)))
        yield input_ids, targets, len(mine)


def first_val_block(reading: Reading, device: torch.device) -> torch.Tensor:
    """Inputs of the first validation block, int64, shape (1, T). Random states are left as they are."""
    batch = next(val_batches(reading, 1, device), None)
    if batch is None:
        raise UserError("--track needs a validation block, and the data has none: leave it out, or take more data")
    return batch[0][:1]


def _start_worker(before: Callable[[int], Any] | None, parent: int | None, worker_id: int) -> None:
    """Ignore the run's signals, end with ``parent``, if that is known, and do what the loader asks for ``before``.

    Else workers of a run that was killed hold its folder's lock until they notice, for seconds.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for_the_loader, daemon=True).start()
    end_with(parent)
    if before is not None:
        before(worker_id)


def _end_for_the_loader() -> None:
    """Obey a SIGTERM from the parent alone: a loader ends with it the workers that have raised an error."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)  # as torch's own handler does: of a worker that is killed the parent tells, even while it ends


def prepare_workers(loader: Iterable[Any]) -> None:
    """Let the workers that a loader will start begin with :func:`_start_worker`."""
    if not isinstance(loader, DataLoader) or getattr(loader.worker_init_fn, "func", None) is _start_worker:
        return
    context = loader.multiprocessing_context or multiprocessing
    served = context.get_start_method() == "forkserver"  # which starts them instead of this process
    loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn, None if served else os.getpid())


@contextmanager
def start_method_kept() -> Iterator[None]:
    """Put back how processes are started: litdata's preparation leaves "spawn", and a worker takes seconds with it."""
    before = multiprocessing.get_start_method(allow_none=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)
