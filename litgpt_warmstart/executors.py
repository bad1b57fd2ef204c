"""Tasks in processes of this machine; or tasks of a Ray cluster, of which some may need the results of others.

On Ray failed ones are tried again. Every node must see the same files at the same paths, as on shared storage, and have
this package installed.
"""

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Literal

import torch

from litgpt_warmstart.errors import UserError, one_line

Executor = Literal["here", "ray"]

MAX_RETRIES = 3


@dataclass(frozen=True)
class Task:
    """A piece of work, one of several."""

    name: str
    work: Callable[..., Any]
    """Called with the results of the tasks in ``after``; calling it again goes on where a lost worker stopped."""
    after: tuple[str, ...] = ()


def carry_out_in_processes(number: int, tasks: Iterable[Task], ended: Callable[[str, Any], None]) -> None:
    """Carry out tasks that need no others, in processes of this machine.

    The processes are forked before the first task is taken: they have what is in memory, and import nothing.

    Tasks are taken as they come, while others are carried out; ``ended`` is called with each one's name and result.
    What one raises is raised; the processes are killed then, as they are after Ctrl-C.

    Raises:
        UserError: A process was killed.
    """
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(number, multiprocessing.get_context("fork"), _begin_process, (os.getpid(),))
    done: SimpleQueue[tuple[str, Future]] = SimpleQueue()
    running = 0
    try:
        pool.submit(int).result()
        for task in tasks:
            running += 1
            pool.submit(task.work).add_done_callback(lambda future, name=task.name: done.put((name, future)))
            while not done.empty():
                name, future = done.get()
                running -= 1
                ended(name, future.result())
        for _ in range(running):
            name, future = done.get()
            ended(name, future.result())
    except BrokenProcessPool as error:
        raise UserError(
            f"one of {number} processes was killed, as the system does where memory is short: give a smaller"
            " --num_workers; the same command goes on"
        ) from error
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        pool.shutdown(cancel_futures=True)


def _begin_process(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)


def end_with(parent: int | None) -> None:
    """Have the kernel end this process with its parent; None where that one's number is not known."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # of <linux/prctl.h>: the kernel sends a signal when the parent is gone
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if parent is not None and os.getppid() != parent:  # gone before it was asked for
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and what each task asks of it."""

    ray: Any
    """The module, connected."""
    cpus: int
    gpus: float

    def carry_out(
        self, tasks: Iterable[Task], results: Mapping[str, Any], ended: Callable[[str, Any], None]
    ) -> dict[str, Any]:
        """Carry out tasks, each when those that it comes after have ended.

        Args:
            tasks: Each stands after those that it needs.
            results: Of tasks that have ended before, by name.
            ended: Called with a task's name and result, as each ends.

        Raises:
            UserError: What a task raised, or its worker was lost too often. The tasks that have begun save and end.
        """
        remote = self.ray.remote(
            num_cpus=self.cpus, num_gpus=self.gpus, max_retries=MAX_RETRIES, retry_exceptions=[OSError]
        )(work_in_a_worker)
        references: dict[str, Any] = {}
        for task in tasks:
            before = [results[name] if name in results else references[name] for name in task.after]
            references[task.name] = remote.remote(task.work, os.getcwd(), sys.argv, self.cpus, *before)
        names = {reference: name for name, reference in references.items()}
        waiting, new = list(names), {}
        try:
            while waiting:
                (done,), waiting = self.ray.wait(waiting)
                new[names[done]] = self._result(done, names[done])
                ended(names[done], new[names[done]])
        except KeyboardInterrupt:
            print("Stopping: what has begun saves first, and the same command goes on; again to stop at once")
            raise
        finally:
            for reference in waiting:  # after Ctrl-C or an error
                self.ray.cancel(reference)
            if waiting:  # they have two minutes for their last step and checkpoint
                self.ray.wait(waiting, num_returns=len(waiting), timeout=120)
        return new

    def _result(self, reference: Any, name: str) -> Any:
        try:
            result = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self.ray.exceptions.RayError as error:
            raise UserError(
                f"{name!r} was lost by Ray {1 + MAX_RETRIES} times ({type(error).__name__}): look at that node's memory"
                " and logs; the same command goes on"
            ) from error
        if isinstance(result, UserError):
            raise result
        return result


def work_in_a_worker(
    work: Callable[..., Any], folder: str, command_line: list[str], cores: int, *before: Any
) -> Any | UserError:
    """The result of a task's work, or what a user can mend: an error that is raised would be retried.

    Relative paths start in the driver's folder, and records tell its command line.
    """
    if mended := next((result for result in before if isinstance(result, UserError)), None):
        return mended
    try:
        os.chdir(folder)
    except OSError as error:
        return UserError(
            f"{folder!r} is not there on the node {socket.gethostname()}: start Ray on storage that all nodes share"
            f" ({error.strerror})"
        )
    sys.argv = command_line
    torch.set_num_threads(cores)
    try:
        return work(*before)
    except UserError as error:
        return error


@contextmanager
def ray_cluster(address: str | None, cpus: int = 1, gpus: float | None = 0.0) -> Iterator[Cluster]:
    """A running Ray cluster, or one of its own on this machine for as long as it is needed.

    Args:
        address: Of a running one, host:port or auto; None starts one here.
        cpus: Cores for each task.
        gpus: GPUs, or a part of one, for each task; None asks for one where the cluster has any.

    Raises:
        UserError: Ray is not installed, does not answer, or has no room for a task.
    """
    ray = _connected(address)
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if gpus is None:
            gpus = float(any(node.get("GPU", 0) > 0 for node in nodes))
            if gpus and not torch.cuda.is_available():
                raise UserError(
                    "the Ray cluster has GPUs and this machine none, by which precision and the like were chosen: pass"
                    " --gpus_per_run and --precision"
                )
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):  # Ray would wait
            largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
            raise UserError(
                f"no node of the Ray cluster has {cpus} cores and {gpus:g} GPUs (the largest:"
                f" {largest.get('CPU', 0):g} and {largest.get('GPU', 0):g}): lower --cpus_per_run or --gpus_per_run"
            )
        yield Cluster(ray, cpus, gpus)
    finally:
        ray.shutdown()


def _connected(address: str | None) -> Any:
    """The ``ray`` module, connected."""
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("--executor ray needs Ray: pip install 'ray>=2.40'") from None
    if address not in (None, "auto", "local"):
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except (OSError, ValueError) as error:
            raise UserError(
                f"--ray_address {address} does not answer ({one_line(error, 80)}): give host:port of a running head"
                " node, or leave it out to start Ray here"
            ) from error
    try:
        ray.init(address=address or "local", include_dashboard=None if address else False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"Ray does not start ({one_line(error, 200)}): check --ray_address, here {address}") from error
    return ray
