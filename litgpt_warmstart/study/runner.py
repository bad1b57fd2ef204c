"""Carry out the runs of a study: what is not finished, here or on Ray, each exactly once.

A run's folder gets outcome.json when it has ended; a run that was stopped or killed goes on from its last checkpoint.
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from litgpt_warmstart.data.blocks import BlockDataModule
from litgpt_warmstart.data.plan import plan_blocks, prepare_data
from litgpt_warmstart.data.use import DataUse, class_path, init_args
from litgpt_warmstart.errors import Diverged, UserError, one_line
from litgpt_warmstart.executors import Executor, Task, ray_cluster
from litgpt_warmstart.files import write_whole
from litgpt_warmstart.parsing import Count, Finite, Unreadable, parse
from litgpt_warmstart.run import train as pretrain
from litgpt_warmstart.run.checkpoint import read_header, weights_sha256
from litgpt_warmstart.run.identity import difference_in_words
from litgpt_warmstart.run.metrics import FILE_NAME, read_metrics
from litgpt_warmstart.run.optimizer import recorded_optimizer
from litgpt_warmstart.run.ownership import OUTCOME, check_free
from litgpt_warmstart.run.resume import check_writable
from litgpt_warmstart.run.spec import RunSpec

Status = Literal["finished", "diverged", "skipped"]


@dataclass(frozen=True)
class StudyRun:
    """One run of a study."""

    name: str
    """Tells it from the others; part of its folder's name."""
    spec: RunSpec
    factors: Mapping[str, Any] = field(default_factory=dict)
    """What is varied, by name, for tables."""
    after: tuple[str, ...] = ()
    """Names of the runs that must have ended before, such as the one whose checkpoint it grows."""
    data_after: Path | None = None
    """A checkpoint, perhaps not written yet, whose lineage's tokens this run does not read again."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended, in numbers that tables need; ``None`` where it did not get that far."""

    status: Status
    reason: str | None = None
    """Why, where it did not finish."""
    first_val_loss: Finite | None = None
    """Validation loss before the first step."""
    val_loss: Finite | None = None
    """The last one."""
    step_count: Count = 0
    tokens: Count = 0
    seconds: Finite = 0.0
    """Of training."""
    matmul_flops: Finite = 0.0
    hoffmann_flops: Finite = 0.0
    settings: dict[str, Any] = field(default_factory=dict, compare=False)
    """What decided the run; another run in its place must have the same."""


def carry_out(
    runs: Sequence[StudyRun],
    executor: Executor = "here",
    ray_address: str | None = None,
    cpus_per_run: int | None = None,
    gpus_per_run: float | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Outcome]:
    """Carry out runs in an order that respects ``after``; finished ones are read, not run again.

    Args:
        runs: With different names and folders, each after the ones that it names.
        executor: This process, one run after another, or a Ray cluster.
        ray_address: Of a running cluster; None starts Ray on this machine.
        cpus_per_run: Cores that Ray gives a run. Default: one.
        gpus_per_run: GPUs that Ray gives a run, or a part of one. Default: one where this machine has any.
        say: Takes a line of progress.

    Returns:
        Outcomes by name, in the order of ``runs``.

    Raises:
        UserError: An option without its executor, a folder that holds another run, or a run that cannot start; what
            has ended before stays ended.
        SystemExit: Stopped by a signal, after saving; the same call goes on.
    """
    if executor == "here" and (ray_address, cpus_per_run, gpus_per_run) != (None, None, None):
        raise UserError("--ray_address, --cpus_per_run and --gpus_per_run are for --executor ray: pass that too")
    names = [run.name for run in runs]
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise UserError(f"two runs would both be called {twice!r}: give models, learning rates or folders other names")
    assert all(set(run.after) <= set(names[:i]) for i, run in enumerate(runs)), "a run stands after those it needs"
    ended: dict[str, Outcome] = {}
    for run in runs:
        outcome = None if any(name not in ended for name in run.after) else read_outcome(run)
        if outcome is not None:
            ended[run.name] = outcome
    if ended:
        say(f"{len(ended)} of {len(runs)} runs have ended before")
    if left := [run for run in runs if run.name not in ended]:
        check_data(runs)
        for run in left:
            check_writable(run.spec.out_dir)
            check_free(run.spec.out_dir)
        if executor == "ray":
            cpus = 1 if cpus_per_run is None else cpus_per_run
            ended |= _carry_out_on_ray(left, ended, ray_address, cpus, gpus_per_run, say)
        else:
            for number, run in enumerate(runs, start=1):
                if run.name not in ended:
                    say(f"\n[{number}/{len(runs)}] {run.name}")
                    ended[run.name] = carry_out_one(run, *(ended[name] for name in run.after))
                    say(f"[{number}/{len(runs)}] {run.name}: {in_words(ended[run.name])}")
    return {name: ended[name] for name in names}


def _carry_out_on_ray(
    runs: Sequence[StudyRun],
    ended: Mapping[str, Outcome],
    address: str | None,
    cpus: int,
    gpus: float | None,
    say: Callable[[str], None],
) -> dict[str, Outcome]:
    """Carry out runs, beside those that have ended, as tasks of a Ray cluster; see :func:`carry_out`."""
    if cpus < 1 or (gpus is not None and not 0 <= gpus <= 1):
        raise UserError("--cpus_per_run must be 1 or more, --gpus_per_run lie in [0, 1]: a run uses one device")
    with ray_cluster(address, cpus, gpus) as cluster:
        for spec in {(class_path(r.spec.data), str(init_args(r.spec.data))): r.spec for r in runs}.values():
            prepare_data(spec.reading)  # once, before several processes would
        say(f"{len(runs)} runs on Ray, {cpus} cores and {cluster.gpus:g} GPUs each")
        numbers = iter(range(len(ended) + 1, len(ended) + len(runs) + 1))
        return cluster.carry_out(
            [Task(run.name, partial(carry_out_one, run), run.after) for run in runs],
            ended,
            lambda name, outcome: say(f"[{next(numbers)}/{len(ended) + len(runs)}] {name}: {in_words(outcome)}"),
        )


def check_data(runs: Sequence[StudyRun]) -> None:
    """Raise a UserError, before anything is trained, where data that is prepared already is too short for a run."""
    used: dict[Path, DataUse] = {}
    for run in runs:
        spec, data = run.spec, run.spec.data
        if not isinstance(data, BlockDataModule) or not data.is_prepared:
            continue
        seen = spec.seen
        if run.data_after in used:
            seen = (used[run.data_after],)
        elif run.data_after is not None and (record := read_header(run.data_after).record):
            seen = record.data_uses
        try:
            plan = plan_blocks(replace(spec, seen=seen).reading)
        except UserError as error:
            raise UserError(f"{run.name}: {error}") from error
        used[spec.out_dir / "final"] = plan.use(spec.max_steps)


def carry_out_one(run: StudyRun, *before: Outcome) -> Outcome:
    """Carry out a run in this process, from its last checkpoint if it has one, and write its outcome.

    Args:
        run: The run.
        before: Outcomes of the runs that it comes after, in their order.

    Raises:
        UserError: It cannot start.
    """
    for name, outcome in zip(run.after, before, strict=True):
        if outcome.status != "finished":
            return Outcome("skipped", f"{name} {outcome.status}")
    start_afresh()
    spec = replace(run.spec, resume="auto")
    if run.data_after is not None:
        record = read_header(run.data_after).record
        spec = replace(spec, seen=record.data_uses if record else ())
    status: Status = "finished"
    reason = None
    try:
        pretrain.setup(spec)
    except Diverged as error:
        status, reason = "diverged", str(error)
    outcome = _measured(run, status, reason)
    if wandb := sys.modules.get("wandb"):
        wandb.finish()  # else the next run's metrics would go to this one's page
    write_whole(spec.out_dir / OUTCOME, json.dumps({**asdict(outcome), "ended": _now()}, indent=1, default=str) + "\n")
    return outcome


def start_afresh() -> None:
    """Forget the model before, for one process that builds several."""
    torch._dynamo.reset()  # it compiles a code object for a few models only, then goes on eagerly
    gc.collect()
    torch.cuda.empty_cache()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _measured(run: StudyRun, status: Status, reason: str | None) -> Outcome:
    spec = run.spec
    rows = read_metrics(spec.out_dir / FILE_NAME)
    val_losses = [row["val_loss"] for row in rows if "val_loss" in row]
    last = rows[-1] if rows else {}
    return Outcome(
        status,
        reason,
        first_val_loss=val_losses[0] if val_losses and spec.eval.initial_validation else None,
        val_loss=val_losses[-1] if val_losses else None,
        step_count=int(last.get("step", 0)),
        tokens=int(last.get("tokens", 0)),
        seconds=last.get("seconds", 0.0),
        matmul_flops=last.get("matmul_flops", 0.0),
        hoffmann_flops=last.get("hoffmann_flops", 0.0),
        settings=settings(run),
    )


def read_outcome(run: StudyRun) -> Outcome | None:
    """The outcome of a run that has ended; None for one that has not.

    Raises:
        UserError: Its folder holds a run with other settings; names the first one.
    """
    path = run.spec.out_dir / OUTCOME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            content.pop("ended", None)
        outcome = parse(Outcome, content)
        if not outcome.settings or (outcome.status == "finished" and outcome.val_loss is None):
            raise Unreadable("it tells no settings or no loss")
    except (OSError, ValueError, RecursionError, Unreadable) as error:
        raise UserError(
            f"{str(path)!r} is damaged ({one_line(error, 80)}): delete it, and the run is looked at again"
        ) from error
    now = settings(run)
    before = {**outcome.settings}
    if "optimizer" in before:
        before["optimizer"] = recorded_optimizer(before["optimizer"]).plain
    if difference := difference_in_words(before, now):
        name, before, now = difference[0], *(one_line(value, 100) for value in difference[1:])
        raise UserError(
            f"{str(run.spec.out_dir)!r} holds a run with {name} {before}, now {now}: choose another --out_dir, or"
            " delete that run's folder"
        )
    return outcome


def settings(run: StudyRun) -> dict[str, Any]:
    """What decides a run's numbers: its identity, and what it reads on after."""
    after = weights_sha256(run.data_after) if run.data_after else None
    return run.spec.identity() | ({"reads_on_after": after} if after else {})


def in_words(outcome: Outcome) -> str:
    """An outcome in a few words."""
    if outcome.status != "finished":
        return f"{outcome.status}: {outcome.reason}"
    return f"validation loss {outcome.val_loss:.4f}" if outcome.val_loss is not None else "finished"
