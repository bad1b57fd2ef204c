"""A DataModule's loaders as a run reads them: in an order of the run's own, every batch checked."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

from litgpt_warmstart.data.blocks import BlockDataModule
from litgpt_warmstart.data.randomness import Randomness
from litgpt_warmstart.data.vocabulary import check_batch
from litgpt_warmstart.data.workers import prepare_workers
from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.run.spec import RunSpec


class TrainLoader:
    """A DataModule's training loader: micro-batches, shape (B, T + 1), each whole and with ids that the model has.

    Its order is a function of the run's seed, and nothing that it draws moves the run's own random numbers.
    """

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self._randomness = Randomness(spec.seed)
        with self._randomness:
            self._loader = spec.data.train_dataloader()
        prepare_workers(self._loader)
        self._skip = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        left = self._skip
        for stored in drawn(self._loader, self._randomness, self.spec):
            if len(stored) > self.spec.train.micro_batch_size:
                raise UserError(
                    f"--data {type(self.spec.data).__name__} gives {len(stored):,} sequences at once, and not the"
                    f" micro-batch of {self.spec.train.micro_batch_size:,} that it was told in connect()"
                )
            if len(stored) < self.spec.train.micro_batch_size:
                continue  # a loader's last batch, or a worker's
            if left:
                left -= 1
                continue
            yield stored
        if left:
            raise UserError(
                f"--data {type(self.spec.data).__name__} has {self._skip - left:,} micro-batches, and the run has read"
                f" {self._skip:,}: give it the data that it was started with"
            )

    def state(self) -> dict[str, Any]:
        """Where the loader is, in plain values."""
        own = self._loader.state_dict() if _knows_its_place(self._loader) else None
        return {"order": self._order(), "loader": own}

    def go_on(self, batches: int, state: dict[str, Any] | None) -> None:
        """Begin after what a run has read.

        Args:
            batches: How many micro-batches that is.
            state: What :meth:`state` gave then; of a run of the first release, the loader's own state or None.

        Raises:
            UserError: The loader would give another order than the one that the run has begun.
        """
        own = state
        shuffles = isinstance(getattr(self._loader, "sampler", None), RandomSampler)
        if shuffles and (state is None or "order" not in state):
            raise UserError(
                f"version 0.1 did not keep the order in which this run read --data {type(self.spec.data).__name__}:"
                " start from the checkpoint's weights with --initial_checkpoint_dir"
            )
        if state is not None and "order" in state:
            own = state["loader"]
            for name, now in self._order().items():
                if state["order"][name] != now:
                    option = "--data.num_workers" if name == "num_workers" else "--train.micro_batch_size"
                    raise UserError(
                        f"the order of --data {type(self.spec.data).__name__} depends on {option}, which was"
                        f" {state['order'][name]} and is {now}: pass {option} {state['order'][name]} to go on"
                    )
        if own is None or not _knows_its_place(self._loader):
            self._skip = batches
            return
        try:
            self._loader.load_state_dict(own)
        except Exception as error:
            raise UserError(f"--data {type(self.spec.data).__name__} cannot go on: {one_line(error)}") from error

    def _order(self) -> dict[str, int]:
        """What decides the order of sequences beside seed and data: of a stream, who reads how many at once."""
        if isinstance(getattr(self._loader, "dataset", None), IterableDataset):
            return {"micro_batch_size": self.spec.train.micro_batch_size, "num_workers": self._loader.num_workers}
        return {}


def _knows_its_place(loader: Iterable[Any]) -> bool:
    """Whether a loader can be put where it was. Several of litdata's datasets as one cannot.

    With two workers or more, litdata takes each to have read as much of each dataset, and repeats some and leaves out
    others (0.2.76).
    """
    dataset = getattr(loader, "dataset", None)
    return hasattr(loader, "load_state_dict") and not hasattr(dataset, "_datasets")


def val_rows(spec: RunSpec) -> Iterator[torch.Tensor]:
    """The stored validation blocks, shape (T + 1,), in the same order at each call and each micro-batch."""
    randomness = Randomness(spec.seed)
    with randomness:
        loader = undropped(spec.data.val_dataloader())
    prepare_workers(loader)
    for stored in drawn(loader, randomness, spec):
        yield from stored


def undropped(loader: Iterable[torch.Tensor]) -> Iterable[torch.Tensor]:
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
        changed["dataset"] = copy.copy(loader.dataset)
        loader.dataset.set_drop_last(False)
        loader.dataset.set_batch_size(size)
    changed["drop_last"] = False
    changed["batch_sampler"] = BatchSampler(loader.sampler, size, drop_last=False)
    return loader


def drawn(loader: Iterable[torch.Tensor], randomness: Randomness, spec: RunSpec) -> Iterator[torch.Tensor]:
    """A loader's batches, checked.

    Raises:
        UserError: A batch is not one of the model's token ids, or a worker's UserError as one line.
    """
    try:
        # Ours draw nothing but their workers' seeds, and a step of a small model is short.
        ours = isinstance(spec.data, BlockDataModule)
        for stored in randomness.start(loader) if ours else randomness.draw(loader):
            yield check_batch(stored, spec)
    except UserError as error:
        raise UserError(one_line(error)) from error
