"""What a loader's worker processes do first: leave signals to the run, and end with it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

from litgpt_warmstart.executors import end_with

STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)  # POSIX
)
"""All that stop a run after the step in hand. A terminal or a scheduler sends them to its loaders' workers too."""


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
