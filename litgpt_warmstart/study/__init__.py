"""Studies: lists of runs, and what is made of them. A kind of study is a module here and a command."""

from dataclasses import dataclass
from typing import Any, Literal

from litgpt_warmstart.executors import Executor


def kinds() -> list[tuple[str, Any]]:
    """What the report's page looks for: the file of a kind of study's results, and what makes its section of them."""
    from litgpt_warmstart.study import coord_check, grid_search, horizons, law, lr_transfer  # whose modules import this

    return [(module.RESULTS, module.section) for module in (horizons, coord_check, grid_search, lr_transfer, law)]


@dataclass(frozen=True)
class StudyArgs:
    """How a study's runs are carried out, if at all."""

    plan: Literal["tokens", "time"] | None = None
    """Train nothing, and say what the runs take: ``tokens`` and Hoffmann FLOPs, or also ``time`` on this device"""
    executor: Executor = "here"
    """``here``, one run after another, or ``ray``, as tasks of a Ray cluster"""
    ray_address: str | None = None
    """Of a running Ray cluster, host:port or auto. Default: Ray is started on this machine"""
    cpus_per_run: int | None = None
    """Cores that Ray gives a run. Default: 1"""
    gpus_per_run: float | None = None
    """GPUs, or a part of one, that Ray gives a run; a run of several has as many devices. Default: those of
    ``devices`` where this machine has any"""
