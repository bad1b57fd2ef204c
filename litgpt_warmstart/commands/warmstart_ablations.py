"""litgpt warmstart_ablations: arms over growth and training, over seeds, beside the runs from scratch."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from litgpt.config import Config
from litgpt.utils import extend_checkpoint_dir

from litgpt_warmstart.commands.study import (
    Plan,
    as_list,
    check_eval,
    check_out_dir,
    check_results,
    refuse,
    study_folder,
    tell_costs,
)
from litgpt_warmstart.edge import check_seeds, checked
from litgpt_warmstart.errors import UserError, told_in_one_line
from litgpt_warmstart.method.schedule import ScheduleName
from litgpt_warmstart.run.models import read_base
from litgpt_warmstart.run.optimizer import named
from litgpt_warmstart.run.resolve import resolve
from litgpt_warmstart.run.spec import EvalArgs, TrainArgs
from litgpt_warmstart.study.runner import Executor


@dataclass(frozen=True)
class Source:
    """A base, trained already or by a run of this study."""

    path: Path
    config: Config
    tuned_at: str
    """Where its learning rate was tuned, as ``--mup_base`` takes it."""
    after: tuple[str, ...]
    """The run that trains it."""


ARMS = [{"shrink": [0.2, 0.4, 0.6, 0.8, 1.0]}]


@checked
def setup(
    base: str | list[str] = "5M",
    target: str | list[str] = "22M",
    arms: list[dict[str, Any]] = ARMS,
    seeds: str | int | list[int] = "42,43,44",
    base_tokens_per_param: float = 20.0,
    base_seed: int = 42,
    tokens_per_param: float = 20.0,
    name: str = "ablations",
    out_dir: Path = Path("out/warmstart_ablations"),
    train: TrainArgs = TrainArgs(),
    eval: EvalArgs = EvalArgs(),
    optimizer: str | dict = "AdamW",
    schedule: ScheduleName = "constant",
    plan: Plan | None = None,
    executor: Executor = "here",
    ray_address: str | None = None,
    cpus_per_run: int | None = None,
    gpus_per_run: float | None = None,
    **kwargs,
) -> None:
    """Train arms that differ in how the target is grown or trained, each over seeds, beside runs from scratch.

    Bases are trained first, once. A run that has finished is not run again: the same command goes on, also with more
    arms or seeds.

    Arguments:
        base: Scales to train as bases, or folders of trained checkpoints; with commas.
        target: Scales to grow them into; with commas.
        arms: What is varied: a list of mappings with base, target, shrink, perturb, alignment, gains,
            tokens_per_param, schedule and weight_decay, each a value or a list; all combinations of a mapping's lists
            are run. E.g. ``[{shrink: [0.4, 1]}, {perturb: [0, 0.5]}]``. What a mapping leaves out is as for warmstart.
        seeds: Of the initialization and the perturbation.
        base_tokens_per_param: Tokens to train bases on per parameter.
        base_seed: Of the bases' initialization.
        tokens_per_param: Tokens to train targets on per parameter, where an arm says nothing else.
        name: Of the table and the picture, NAME.csv and NAME.png: studies that share ``out_dir``, and so their
            finished runs, need different ones.
        out_dir: Directory for the runs, the table and the picture.
        train: Training-related arguments. Budgets are ``tokens_per_param``'s.
        eval: Evaluation-related arguments. See ``litgpt_warmstart.run.spec.EvalArgs`` for details.
        optimizer: An Adam-like optimizer's name or config; an arm's weight_decay goes before its own.
        schedule: Of bases, and of targets where an arm says nothing else; each takes of ``train`` what it has a use
            for.
        plan: Train nothing, and say what the runs take: ``tokens`` and Hoffmann FLOPs, or also ``time`` on this device.
        executor: ``here``, one run after another, or ``ray``, as tasks of a Ray cluster.
        ray_address: Of a running Ray cluster, host:port or auto. Default: Ray is started on this machine.
        cpus_per_run: Cores that Ray gives a run. Default: 1.
        gpus_per_run: GPUs, or a part of one, that Ray gives a run. Default: 1 where this machine has any.
    """
    with told_in_one_line("litgpt warmstart_ablations"):
        from litgpt_warmstart.method.growth import check_growable, resolve_alignment
        from litgpt_warmstart.report.tables import write_csv
        from litgpt_warmstart.study import ablations
        from litgpt_warmstart.study.runner import StudyRun, carry_out

        seed_list = as_list(seeds, int, "--seeds")
        check_seeds("seeds", *seed_list)
        check_eval(eval)
        refuse(train, ["max_tokens", "max_steps", "max_time"], "give --tokens_per_param")
        if not 0 < base_tokens_per_param < math.inf:
            raise UserError(f"--base_tokens_per_param must be above 0, got {base_tokens_per_param}")
        if Path(name).name != name:
            raise UserError(f"--name {name!r} is no file's name: the table and the picture lie in --out_dir")
        bases, targets = as_list(base, str, "--base"), as_list(target, str, "--target")
        defaults = dict(base=bases, target=targets, tokens_per_param=tokens_per_param, schedule=schedule)
        expanded = ablations.expand(arms, defaults)
        out_dir = Path(out_dir)
        check_out_dir(out_dir)
        check_results(out_dir / f"{name}.csv", ("base", "target"), f"{name}.png")

        def spec_of(command: str, arm: ablations.Arm, folder: str, own: dict[str, Any], seed: int, tuned_at: str):
            return resolve(
                command, arm.target, None, None, "mup", out_dir / "runs" / folder, own, mup_base=tuned_at, seed=seed,
                train=train.for_schedule(arm.schedule), tokens_per_param=arm.tokens_per_param, schedule=arm.schedule,
                optimizer=with_weight_decay(optimizer, arm.weight_decay), resume="auto", overwrite=False,
                eval=eval, **kwargs,
            )  # fmt: skip

        runs: list[StudyRun] = []
        sources: dict[str, Source] = {}
        for model in dict.fromkeys(arm.base for arm in expanded):
            if is_checkpoint(model):
                header = read_base(Path(model))
                sources[model] = Source(header.path, header.config, str(header.path), ())
                continue
            arm = ablations.Arm.of(model, model, shrink=0.0, tokens_per_param=base_tokens_per_param, schedule=schedule)
            own = dict(target=model, parametrization="mup", initial_checkpoint_dir=None)
            folder = f"base-{ablations.short_name(model)}"
            spec = spec_of("warmstart_scratch", arm, folder, own, base_seed, model)
            sources[model] = Source(spec.out_dir / "final", spec.config, model, (folder,))
            runs.append(StudyRun(folder, spec))
        for arm in expanded:
            source = sources[arm.base]
            for seed in seed_list:
                folder = f"{arm.name}-seed-{seed}"
                own = dict(target=arm.target, parametrization="mup", initial_checkpoint_dir=None)
                command = "warmstart_scratch"
                if not arm.is_scratch:
                    own = dict(base=str(source.path), target=arm.target) | arm.growth.options
                    command = "warmstart"
                spec = spec_of(command, arm, folder, own, seed, source.tuned_at)
                check_growable(source.config, spec.config)
                resolve_alignment(source.config, spec.config, arm.growth.alignment)
                if arm.is_scratch:  # its --config file reads on after the base, too
                    spec = replace(spec, hyperparameters={**spec.hyperparameters, "mup_base": str(source.path)})
                else:
                    spec = replace(spec, source_dir=source.path, growth=arm.growth)
                runs.append(StudyRun(folder, spec, dict(arm=arm, seed=seed), source.after, source.path))
        trained = ""
        if any("arm" not in run.factors for run in runs):
            trained = f"; bases are trained on {base_tokens_per_param:g} tokens per parameter (--base_tokens_per_param)"
        print(
            f"{len(expanded)} arms, {sum(arm.is_scratch for arm in expanded)} of them from scratch, x {len(seed_list)}"
            f" seeds: {len(runs)} runs in {str(out_dir)!r}{trained}"
        )
        if plan:
            return tell_costs(runs, plan)
        with study_folder(out_dir):
            outcomes = carry_out(runs, executor, ray_address, cpus_per_run, gpus_per_run)
            found = ablations.rows(runs, outcomes)
            write_csv(out_dir / f"{name}.csv", found)
            told = ablations.summaries(expanded, found)
            ablations.plot(told, out_dir / f"{name}.png")
            print(f"\n{ablations.table(told)}\nWrote {name}.csv and {name}.png to {str(out_dir)!r}")


def is_checkpoint(base: str) -> bool:
    """Whether a base is a folder, by its whole path or LitGPT's short form; what is none has to be a scale."""
    return extend_checkpoint_dir(Path(base)).is_dir()


def with_weight_decay(optimizer: str | dict, weight_decay: float) -> str | dict:
    """The optimizer with an arm's weight decay; as it is for 0, its default here.

    Raises:
        UserError: The optimizer brings one of its own.
    """
    path, init_args = named(optimizer)
    if "weight_decay" in init_args:
        raise UserError("--optimizer has a weight_decay of its own: vary weight_decay in --arms instead")
    if not weight_decay:
        return optimizer
    return {"class_path": path, "init_args": {**init_args, "weight_decay": weight_decay}}
