"""Random numbers that loaders draw, apart from those that training draws."""

import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

_END = object()


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
        batches = self.start(loader)
        while True:
            with self:
                batch = next(batches, _END)
            if batch is _END:
                return
            yield batch

    def _swap(self) -> None:
        """Put the states of these generators in the place of the global ones, and keep those."""
        cpu, python, numpy = self._other
        self._other = torch.default_generator.get_state(), random.getstate(), np.random.get_state()
        torch.default_generator.set_state(cpu)
        random.setstate(python)
        np.random.set_state(numpy)
