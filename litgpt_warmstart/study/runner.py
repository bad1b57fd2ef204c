"""Carry out the runs of a study: what is not finished, here or on Ray, each exactly once.

A run's folder gets outcome.json when it has ended; a run that was stopped or killed goes on from its last checkpoint.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from litgpt_warmstart.data.plan import plan_blocks, prepare_data
from litgpt_warmstart.data.prepared_text import PreparedText
from litgpt_warmstart.data.use import DataUse, class_path, init_args
from litgpt_warmstart.errors import Diverged, UserError
from litgpt_warmstart.executors import Task, carry_out_on_ray
from litgpt_warmstart.files import write_whole
from litgpt_warmstart.run import train
from litgpt_warmstart.run.checkpoint import read_header
from litgpt_warmstart.run.folder import FORMATS, check_free, check_writable, newest_checkpoint
from litgpt_warmstart.run.spec import RunSpec
from litgpt_warmstart.study import StudyArgs
from litgpt_warmstart.study.cost import costs, start_afresh, told_costs
from litgpt_warmstart.study.folder import study_folder
from litgpt_warmstart.study.outcomes import Outcome, Study, StudyRun, read_outcome, write_outcome


def conduct(study: Study, args: StudyArgs) -> None:
    """Carry out a study and conclude it, or say what it takes."""
    if args.plan:
        print(told_costs(costs(study.runs), time=args.plan == "time"))
        return
    with study_folder(study.out_dir):
        study.conclude(carry_out(study.runs, args))


def carry_out(
    runs: Sequence[StudyRun], args: StudyArgs = StudyArgs(), say: Callable[[str], None] = print
) -> dict[str, Outcome]:
    """Carry out runs in an order that respects ``after``; finished ones are read, not run again.

    The outcomes come by name, in the order of ``runs``; ``say`` takes a line of progress.
    """
    if args.executor == "here" and (args.ray_address, args.cpus_per_run, args.gpus_per_run) != (None, None, None):
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
        if args.executor == "ray":
            ended |= _carry_out_on_ray(left, ended, args, say)
        else:
            for run in left:
                number = f"[{names.index(run.name) + 1}/{len(runs)}] {run.name}"
                say(f"\n{number}")
                ended[run.name] = carry_out_one(run, *(ended[name] for name in run.after))
                say(f"{number}: {ended[run.name].in_words}")
    return {name: ended[name] for name in names}


def _carry_out_on_ray(
    runs: Sequence[StudyRun], ended: Mapping[str, Outcome], args: StudyArgs, say: Callable[[str], None]
) -> dict[str, Outcome]:
    """Carry out runs, beside those that have ended, as tasks of a Ray cluster; see :func:`carry_out`."""
    devices = max(run.spec.devices for run in runs)
    cpus, gpus = devices if args.cpus_per_run is None else args.cpus_per_run, args.gpus_per_run
    if cpus < 1 or (gpus is not None and not (0 <= gpus <= 1 or (gpus > 1 and gpus == int(gpus)))):
        raise UserError("--cpus_per_run must be 1 or more, --gpus_per_run lie in [0, 1] or be a whole number")
    if gpus is not None and gpus > 1:
        runs = [replace(run, spec=run.spec.on_devices(int(gpus))) for run in runs]
    elif gpus is None and devices > 1 and torch.cuda.is_available():
        gpus = devices
    whole = len(ended) + len(runs)
    numbers = iter(range(len(ended) + 1, whole + 1))

    def tasks() -> Iterator[Task]:  # which are taken when Ray has answered and has room
        for spec in {(class_path(r.spec.data), str(init_args(r.spec.data))): r.spec for r in runs}.values():
            prepare_data(spec)  # once, before several processes would
        for run in runs:
            yield Task(run.name, partial(carry_out_one, run), run.after)

    def told(name: str, outcome: Outcome) -> None:
        say(f"[{next(numbers)}/{whole}] {name}: {outcome.in_words}")

    return carry_out_on_ray(tasks(), told, ended, args.ray_address, cpus, gpus)


def check_data(runs: Sequence[StudyRun]) -> None:
    """Raise a UserError, before anything is trained, where data that is prepared already is too short for a run."""
    used: dict[Path, DataUse] = {}
    for run in runs:
        spec, data = run.spec, run.spec.data
        if not isinstance(data, PreparedText) or not data.is_prepared:
            continue
        seen = spec.seen
        if run.data_after in used:
            seen = (used[run.data_after],)
        elif run.data_after is not None and (record := read_header(run.data_after).record):
            seen = record.data_uses
        try:
            plan = plan_blocks(replace(spec, seen=seen))
        except UserError as error:
            raise UserError(f"{run.name}: {error}") from error
        used[spec.out_dir / "final"] = plan.use(spec.max_steps)


def begun_by_fork(spec: RunSpec, fork_of: Path, forks_at: int) -> RunSpec:
    """A run that goes on from another's last checkpoint up to a step, with that one's rows; from none, from its start.

    So its metrics.csv is that of a run that was its own from the beginning.
    """
    folder, _ = newest_checkpoint(fork_of, forks_at)
    if folder is None:
        return spec
    spec.out_dir.mkdir(parents=True, exist_ok=True)
    for name in FORMATS:
        if (fork_of / name).is_file():
            write_whole(spec.out_dir / name, (fork_of / name).read_bytes())  # of later steps, the run drops the rows
    return replace(spec, args=replace(spec.args, resume=folder))


def carry_out_one(run: StudyRun, *before: Outcome) -> Outcome:
    """Carry out a run in this process, from its last checkpoint if it has one, and write its outcome.

    ``before`` are the outcomes of the runs that it comes after, in their order.
    """
    for name, outcome in zip(run.after, before, strict=True):
        if outcome.status != "finished":
            return Outcome("skipped", f"{name} {outcome.status}")
    start_afresh()
    spec = run.spec
    if run.data_after is not None:
        record = read_header(run.data_after).record
        spec = replace(spec, seen=record.data_uses if record else ())
    try:
        if run.fork_of is not None and newest_checkpoint(spec.out_dir)[0] is None:
            spec = begun_by_fork(spec, run.fork_of, run.forks_at)
        train.setup(spec)
        outcome = write_outcome(run, "finished")
    except Diverged as error:
        outcome = write_outcome(run, "diverged", str(error))
    if wandb := sys.modules.get("wandb"):
        wandb.finish()  # else the next run's metrics would go to this one's page
    return outcome
