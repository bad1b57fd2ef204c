"""Work in as many processes as a run has devices.

torchrun or SLURM starts them, or this process does, each with what it is to do. Fabric's own launcher would run the
whole command again in each, which in a study, a worker of Ray or a notebook is more than the run; and where one process
dies, it kills the first one, without a word.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.run.team import Team, open_store

T = TypeVar("T")

BEGIN = (
    "import json, signal, sys; from multiprocessing.reduction import ForkingPickler;"
    " signal.signal(signal.SIGINT, signal.SIG_IGN); stdin = sys.stdin.buffer;"
    " sys.path[:] = json.loads(stdin.readline()); ForkingPickler.loads(stdin.read())()"
)
"""What a process that is started here runs. A terminal's Ctrl-C reaches it too, and is the first one's to answer."""


class Started(LightningEnvironment):
    """Where processes are that :func:`carry_out` has started, or, on other nodes, the same command there."""

    creates_processes_externally = True  # pyright: ignore[reportAssignmentType]  # a property

    def __init__(self, address: str, port: int, node: int, local: int) -> None:
        super().__init__()
        self._where = address, port, node, local

    main_address = property(lambda self: self._where[0])  # pyright: ignore[reportAssignmentType]
    main_port = property(lambda self: self._where[1])  # pyright: ignore[reportAssignmentType]

    def node_rank(self) -> int:
        return self._where[2]

    def local_rank(self) -> int:
        return self._where[3]


def carry_out(work: Callable[[Team], T], devices: int, num_nodes: int) -> T:
    """Carry out work in as many processes as a run has devices, of which this is one.

    Args:
        work: Called with the team in each; it is sent to the processes that are started here.
        devices: Of each node.
        num_nodes: Where there are several, torchrun, SLURM, or MASTER_ADDR, MASTER_PORT and NODE_RANK say where they
            meet.

    Returns:
        What it gives here.

    Raises:
        UserError: What it raised in one process, in the first; or a process does not come, or has died.
        SystemExit: What it raised in another process, in that one.
    """
    size = devices * num_nodes
    outside = _started_outside(size)
    if size == 1:
        return work(Team())
    if outside:
        return _take_part(work, Team(outside.global_rank(), size, outside), devices)
    store, node, (address, port) = None, 0, _meeting_place(num_nodes)
    if num_nodes > 1:
        node = int(os.environ.get("NODE_RANK", 0))
    else:
        store = open_store(address, port, is_master=True)
        port = store.port
    team = Team(node * devices, size, Started(address, port, node, 0), store=store)
    for local in range(1, devices):
        place = team.rank + local, size, Started(address, port, node, local)
        begin = bytes(ForkingPickler.dumps(partial(_begin, work, place, devices, torch.get_float32_matmul_precision())))
        if b"__main__" in begin:
            raise UserError(
                f"--devices {devices}: the run has a DataModule that is defined in the script itself, which other"
                " processes do not import: move it to a module of its own, or start them by torchrun"
            )
        child = subprocess.Popen([sys.executable, "-c", BEGIN], stdin=subprocess.PIPE)
        team.children.append(child)
        assert child.stdin
        with suppress(BrokenPipeError), child.stdin as stdin:  # of one that has ended, who waits for it will tell
            stdin.write(json.dumps(sys.path).encode() + b"\n" + begin)
    return _take_part(work, team, devices)


def _begin(work: Callable[[Team], Any], place: tuple[int, int, Started], devices: int, matmul_precision: str) -> None:
    """What a process does that was started by another."""
    torch.set_float32_matmul_precision(matmul_precision)
    _take_part(work, Team(*place), devices)


def _take_part(work: Callable[[Team], T], team: Team, devices: int) -> T:
    """Meet the others, do the work, and part; see :func:`carry_out`."""
    threads, failed = torch.get_num_threads(), "was interrupted"
    met_before = {name: os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")}  # which Fabric writes
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // devices))
    try:
        team.meet()
        result = work(team)
        failed = None
        return result
    except SystemExit:  # after a signal, which all have heard of
        failed = None
        raise
    except UserError as error:
        failed = one_line(error)
        if team.tells:
            raise
        raise SystemExit(1) from error
    except Exception as error:
        failed = f"{type(error).__name__}: {one_line(error)}"
        if team.is_first and (lost := team.why()):
            raise lost from error
        raise
    finally:
        team.leave(failed)
        for name, value in met_before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        torch.set_num_threads(threads)


def _meeting_place(num_nodes: int) -> tuple[str, int]:
    """Address and port of the first process; port 0 for any that is free."""
    if num_nodes == 1:
        return "127.0.0.1", 0
    try:
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError):
        raise UserError(
            f"--num_nodes {num_nodes}: nothing says where the nodes meet: start the command by torchrun or SLURM, or"
            " set MASTER_ADDR, MASTER_PORT and NODE_RANK on each node"
        ) from None


def _started_outside(size: int) -> ClusterEnvironment | None:
    """What has started this process and others for the run; None where nothing has.

    Raises:
        UserError: It has started another number of processes than the run has devices.
    """
    for kind, name in ((TorchElasticEnvironment, "torchrun"), (SLURMEnvironment, "SLURM")):
        if not kind.detect():
            continue
        environment = kind()
        started = environment.world_size()
        if started not in (1, size) and (size > 1 or name == "torchrun"):  # SLURM may have room for more than a run
            raise UserError(
                f"{name} has started {started} processes, --devices and --num_nodes ask for {size}: give the same"
                " number"
            )
        return environment if started == size > 1 else None
    return None
