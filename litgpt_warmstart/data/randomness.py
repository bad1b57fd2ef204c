"""Random numbers that loaders draw, apart from those that training draws."""

import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

END = object()


class Randomness:
    """While entered, torch's generator of the CPU, Python's and NumPy's are others, which begin at a seed.

    Entered again, they go on where they were left. So the order of a loader that shuffles depends on the seed alone,
    and starting a loader, reading it or skipping a part of it leaves a run's own random numbers as they are.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._own: tuple[Any, ...] | None = None
        self._outer: tuple[Any, ...] | None = None

    def __enter__(self) -> "Randomness":
        self._outer = _states()
        if self._own is None:
            torch.default_generator.manual_seed(self._seed)  # torch.manual_seed would seed the GPUs' too
            random.seed(self._seed)
            np.random.seed(self._seed)
        else:
            _set_states(*self._own)
        return self

    def __exit__(self, *error: object) -> None:
        self._own = _states()
        _set_states(*self._outer)

    def start(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The loader's batches; these generators begin it, and the run's own make the batches."""
        with self:
            return iter(loader)

    def draw(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The loader's batches, each made with these generators."""
        batches = self.start(loader)
        while True:
            with self:
                batch = next(batches, END)
            if batch is END:
                return
            yield batch


def _states() -> tuple[Any, ...]:
    return torch.default_generator.get_state(), random.getstate(), np.random.get_state()


def _set_states(cpu: torch.Tensor, python: tuple[Any, ...], numpy: tuple[Any, ...]) -> None:
    torch.default_generator.set_state(cpu)
    random.setstate(python)
    np.random.set_state(numpy)
