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
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
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
    running: dict[Future, str] = {}
    try:
        pool.submit(int).result()
        for task in tasks:
            running[pool.submit(task.work)] = task.name
            for future in wait(running, timeout=0).done:
                ended(running.pop(future), future.result())
        for future in as_completed(running):
            ended(running[future], future.result())
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


def carry_out_on_ray(
    tasks: Iterable[Task],
    ended: Callable[[str, Any], None],
    before: Mapping[str, Any] | None = None,
    address: str | None = None,
    cpus: int = 1,
    gpus: float | None = 0.0,
) -> dict[str, Any]:
    """Carry out tasks of a Ray cluster, each when those that it comes after have ended.

    Args:
        tasks: Each stands after those that it needs.
        ended: Called with a task's name and result, as each ends.
        before: Results of tasks that have ended before, by name.
        address: Of a running cluster, host:port or auto; None starts one on this machine for as long as it is needed.
        cpus: Cores for each task.
        gpus: GPUs, or a part of one, for each task; None asks for one where the cluster has any.

    Raises:
        UserError: Ray is not installed, does not answer, or has no room; what a task raised, or its worker was lost too
            often. The tasks that have begun save and end.
    """
    ray, before, results = _connected(address), before or {}, {}
    waiting: list[Any] = []
    try:
        gpus = _checked_room(ray, cpus, gpus)
        print(f"On Ray, {cpus} cores and {gpus:g} GPUs for each task")
        of_task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=MAX_RETRIES, retry_exceptions=[OSError])
        remote, references = of_task(work_in_a_worker), {}
        for task in tasks:
            needed = [before[name] if name in before else references[name] for name in task.after]
            references[task.name] = remote.remote(task.work, os.getcwd(), sys.argv, cpus, *needed)
        names = {reference: name for name, reference in references.items()}
        waiting = list(names)
        while waiting:
            (done,), waiting = ray.wait(waiting)
            name = names[done]
            try:
                results[name] = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:
                raise UserError(
                    f"{name!r} was lost by Ray {1 + MAX_RETRIES} times ({type(error).__name__}): look at that node's"
                    " memory and logs; the same command goes on"
                ) from error
            if isinstance(results[name], UserError):
                raise results[name]
            ended(name, results[name])
    except KeyboardInterrupt:
        print("Stopping: what has begun saves first, and the same command goes on; again to stop at once")
        raise
    finally:
        for reference in waiting:  # after Ctrl-C or an error
            ray.cancel(reference)
        if waiting:  # they have two minutes for their last step and checkpoint
            ray.wait(waiting, num_returns=len(waiting), timeout=120)
        ray.shutdown()
    return results


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


def _checked_room(ray: Any, cpus: int, gpus: float | None) -> float:
    """The GPUs of each task; a UserError where no node has room for one, which Ray would wait for."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus is None:
        gpus = float(any(node.get("GPU", 0) > 0 for node in nodes))
        if gpus and not torch.cuda.is_available():
            raise UserError(
                "the Ray cluster has GPUs and this machine none, by which precision and the like were chosen: pass"
                " --gpus_per_run and --precision"
            )
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        raise UserError(
            f"no node of the Ray cluster has {cpus} cores and {gpus:g} GPUs: lower --cpus_per_run or --gpus_per_run"
        )
    return gpus


def _connected(address: str | None) -> Any:
    """The ``ray`` module, connected."""
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("--executor ray needs Ray: pip install 'ray>=2.40'") from None
    try:
        if address not in (None, "auto", "local"):  # ray.init waits for a minute
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        on_sigterm = signal.getsignal(signal.SIGTERM)
        ray.init(address=address or "local", include_dashboard=None if address else False)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's would end the driver without a word
    except (OSError, RuntimeError, ValueError) as error:
        if address in (None, "local"):
            told = f"Ray does not start here ({one_line(error, 200)})"
            raise UserError(f"{told}: give --ray_address of a cluster, or leave --executor out") from error
        raise UserError(
            f"--ray_address {address} does not answer ({one_line(error, 200)}): give host:port of a running head node,"
            " or leave it out to start Ray here"
        ) from error
    return ray
