"""Runs as tasks of a Ray cluster: one task a run, its GPUs and cores by request, failed ones retried.

Every node must see the runs' folders, the data and the checkpoints at the same paths, as on shared storage, and have
this package installed. A task whose worker was killed starts again anywhere and goes on from the last checkpoint.
"""

import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from litgpt_warmstart.data.loaders import class_path, init_args, prepare_data
from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.study.runner import Outcome, Run, carry_out_one, in_words

MAX_RETRIES = 3
CONNECT_SECONDS = 5.0
SAVE_SECONDS = 120.0
"""What runs have for their last step and checkpoint when a study is stopped."""


def carry_out_on_ray(
    runs: Sequence[Run],
    ended: dict[str, Outcome],
    address: str | None,
    cpus_per_run: int | None,
    gpus_per_run: float | None,
    say: Callable[[str], None],
) -> None:
    """Carry out the runs that have not ended, as :func:`runner.carry_out` does, and put their outcomes into ``ended``.

    Raises:
        UserError: Ray is not installed, does not answer, has no room for a run; or a run cannot start.
    """
    cpus = 1 if cpus_per_run is None else cpus_per_run
    if cpus < 1 or (gpus_per_run is not None and (gpus_per_run < 0 or gpus_per_run > 1)):
        raise UserError("--cpus_per_run must be 1 or more, --gpus_per_run lie in [0, 1]: a run uses one device")
    ray = connect(address)
    references: dict[str, Any] = {}
    waiting: list[Any] = []
    try:
        gpus = _gpus_per_run(ray, gpus_per_run)
        _check_room(ray, cpus, gpus)
        for spec in {(class_path(r.spec.data), str(init_args(r.spec.data))): r.spec for r in runs}.values():
            prepare_data(spec)  # once, before several processes would
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=MAX_RETRIES, retry_exceptions=[OSError])(
            carry_out_remotely
        )
        here = os.getcwd(), sys.argv
        for run in runs:
            if run.name not in ended:
                before = [ended.get(name) or references[name] for name in run.after]
                references[run.name] = task.remote(run, *here, cpus, *before)
        names = {reference: name for name, reference in references.items()}
        say(f"{len(names)} runs on Ray, {cpus} cores and {gpus:g} GPUs each")
        waiting = list(names)
        while waiting:
            (done,), waiting = ray.wait(waiting, num_returns=1)
            outcome = _outcome(ray, done, names[done])
            if isinstance(outcome, UserError):
                raise outcome
            ended[names[done]] = outcome
            say(f"[{len(ended)}/{len(runs)}] {names[done]}: {in_words(outcome)}")
    except KeyboardInterrupt:
        say("Stopping: runs save first, and the same command goes on; again to stop at once")
        raise
    finally:
        for reference in waiting:  # after Ctrl-C or an error: they save and end
            ray.cancel(reference)
        if waiting:
            ray.wait(waiting, num_returns=len(waiting), timeout=SAVE_SECONDS)
        ray.shutdown()


def _outcome(ray: Any, reference: Any, name: str) -> Outcome | UserError:
    """What a task returned.

    Raises:
        Exception: What it raised, if that is an error of ours.
        UserError: Its worker was lost too often.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise UserError(
            f"{name!r} was lost by Ray {1 + MAX_RETRIES} times ({type(error).__name__}): look at that node's memory and"
            " logs; the same command goes on"
        ) from error


def carry_out_remotely(
    run: Run, folder: str, command_line: list[str], cores: int, *before: Outcome | UserError
) -> Outcome | UserError:
    """A run in a worker, as :func:`runner.carry_out_one`.

    Args:
        run: The run.
        folder: Where the driver stands: relative paths start there.
        command_line: The driver's, for the record.
        cores: Threads of torch.
        before: How the runs that it comes after ended.

    Returns:
        The outcome, or what a user can mend: an error that is raised would be retried.
    """
    if mended := next((outcome for outcome in before if isinstance(outcome, UserError)), None):
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
        return carry_out_one(run, dict(zip(run.after, before, strict=True)))
    except UserError as error:
        return error


def connect(address: str | None) -> Any:
    """The ``ray`` module, connected to a cluster, or to one of its own on this machine.

    Raises:
        UserError: It is not installed, or does not answer.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("--executor ray needs Ray: pip install 'ray>=2.40'") from None
    if address not in (None, "auto", "local"):
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
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


def _gpus_per_run(ray: Any, asked: float | None) -> float:
    """GPUs for a run: what is asked, else 1 on a cluster that has any.

    Raises:
        UserError: This machine has none, so that what was left out, such as the precision, is a CPU's.
    """
    if asked is not None:
        return asked
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    if has_gpus and not torch.cuda.is_available():
        raise UserError(
            "the Ray cluster has GPUs and this machine none, by which precision and the like were chosen: pass"
            " --gpus_per_run and --precision"
        )
    return float(has_gpus)


def _check_room(ray: Any, cpus: int, gpus: float) -> None:
    """Raise a UserError where no node could ever take a run: Ray would wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
        raise UserError(
            f"no node of the Ray cluster has {cpus} cores and {gpus:g} GPUs (the largest: {largest.get('CPU', 0):g} and"
            f" {largest.get('GPU', 0):g}): lower --cpus_per_run or --gpus_per_run"
        )
