"""What a loader's worker processes do first: leave signals to the run, and end with it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from litgpt_warmstart.executors import end_with

STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)  # POSIX
)
"""All that stop a run after the step in hand. A terminal or a scheduler sends them to its loaders' workers too."""


@dataclass
class WorkerStart:
    """A ``worker_init_fn``: the worker ignores the run's signals, dies with its parent, and does what it did before.

    Without the second, workers of a run that was killed hold its folder's lock until they notice, for seconds.
    """

    before: Callable[[int], Any] | None = None
    """The loader's own ``worker_init_fn``."""
    parent: int | None = None
    """The process that starts the worker; None where a server does it for that process."""

    def __call__(self, worker_id: int) -> None:
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)
        if hasattr(signal, "sigwaitinfo"):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_end_for_the_loader, daemon=True).start()
        end_with(self.parent)
        if self.before is not None:
            self.before(worker_id)


def _end_for_the_loader() -> None:
    """Obey a SIGTERM from the parent alone: a loader ends with it the workers that have raised an error."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)  # as torch's own handler does: of a worker that is killed the parent tells, even while it ends


def prepare_workers(loader: Iterable[Any]) -> None:
    """Let the workers that a loader will start begin with :class:`WorkerStart`."""
    if not isinstance(loader, DataLoader) or isinstance(loader.worker_init_fn, WorkerStart):
        return
    context = loader.multiprocessing_context or multiprocessing
    served = context.get_start_method() == "forkserver"
    loader.worker_init_fn = WorkerStart(loader.worker_init_fn, None if served else os.getpid())


@contextmanager
def start_method_kept() -> Iterator[None]:
    """Put back how processes are started: litdata's preparation leaves "spawn", and a worker takes seconds with it."""
    before = multiprocessing.get_start_method(allow_none=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)
