"""litgpt warmstart_ablations: arms over growth and training, over seeds, beside the runs from scratch."""

from pathlib import Path
from typing import Any

from litgpt_warmstart.commands.study import NOT_FOR_A_STUDY, as_list, check_comparable, from_scratch
from litgpt_warmstart.edge import check_seeds, command, options
from litgpt_warmstart.errors import UserError, check_above_zero
from litgpt_warmstart.method.schedule import ScheduleName
from litgpt_warmstart.run.spec import RunArgs, TrainArgs
from litgpt_warmstart.study import StudyArgs

ARMS = [{"shrink": [0.2, 0.4, 0.6, 0.8, 1.0]}]


@command
@options("study", "run", without=("mup_base", "seed", "resume", "overwrite"), refused=NOT_FOR_A_STUDY)
def setup(
    base: str | list[str] = "5M",
    target: str | list[str] = "22M",
    arms: list[dict[str, Any]] = ARMS,
    seeds: str | int | list[int] = "42,43,44",
    base_tokens_per_param: float = 20.0,
    base_seed: int | None = None,
    mup_base: str | None = None,
    lineages: bool = False,
    tokens_per_param: float = 20.0,
    cooldown_at: str | float | list[float] | None = None,
    horizons: str | float | list[float] | None = None,
    name: str = "ablations",
    out_dir: Path = Path("out/warmstart_ablations"),
    train: TrainArgs = TrainArgs(),
    optimizer: str | dict = "AdamW",
    schedule: ScheduleName = "constant",
    study: StudyArgs = StudyArgs(),
    run: RunArgs = RunArgs(),
) -> None:
    """Train arms that differ in how the target is grown or trained, each over seeds, beside runs from scratch.

    Bases are trained first, once. A run that has finished is not run again: the same command goes on, also with more
    arms or seeds.

    Arguments:
        base: Scales to train as bases, or trained checkpoints, as in ``warmstart``; with commas.
        target: Scales to grow them into; with commas.
        arms: What is varied: a list of mappings with base, target, tokens_per_param, schedule, weight_decay, lr_factor
            (times the learning rate that is carried to the target), optimizer, beta2, arguments of the optimizer such
            as ``optimizer.momentum``, and the options of a growth, such as shrink and perturb, each a value or a list;
            all combinations of a mapping's lists are run. E.g. ``[{shrink: [0.4, 1]}, {optimizer: Muon, beta2: [0.95,
            0.99]}]``. What a mapping leaves out is as for warmstart.
        seeds: Of the initialization and the perturbation.
        base_tokens_per_param: Tokens to train bases on per parameter.
        base_seed: Of the bases' initialization. Default: 42.
        mup_base: Where the learning rate of bases that are trained was tuned: a scale, a model_config.yaml or a
            checkpoint folder. Default: each one's own shapes.
        lineages: Whether each seed is a lineage of its own, which begins with a base that is trained with it: base,
            initialization, perturbation and the order of all data differ. Else all seeds share base and order.
        tokens_per_param: Tokens to train targets on per parameter, where an arm says nothing else.
        cooldown_at: Tokens per parameter, with commas: up to each, every run, which must have a constant rate, is also
            cooled down, from its checkpoint before, over a fifth of the steps or as ``train`` says, in a folder of its
            own.
        horizons: Tokens per parameter, with commas, at which NAME-horizons.csv says what is saved, besides those of
            ``cooldown_at`` and the ends of runs.
        name: Of the tables and the picture, NAME.csv, NAME-horizons.csv and NAME.png: studies that share ``out_dir``,
            and so their finished runs, need different ones.
        out_dir: Directory for the runs, the table and the picture.
        train: Training-related arguments. Budgets are ``tokens_per_param``'s.
        optimizer: An Adam-like optimizer's name or config; an arm's weight_decay goes before its own.
        schedule: Of bases, and of targets where an arm says nothing else; each takes of ``train`` what it has a use
            for.
    """
    from litgpt_warmstart.study import ablations
    from litgpt_warmstart.study.arms import expand
    from litgpt_warmstart.study.runner import conduct

    seed_list = as_list(seeds, int, "--seeds")
    check_seeds("seeds", *seed_list)
    check_comparable(run.eval, train, "", "give --tokens_per_param")
    check_above_zero(dict(base_tokens_per_param=base_tokens_per_param))
    if Path(name).name != name:
        raise UserError(f"--name {name!r} is no file's name: the table and the picture lie in --out_dir")
    models = dict(base=as_list(base, str, "--base"), target=as_list(target, str, "--target"))
    expanded = expand(arms, models | dict(tokens_per_param=tokens_per_param, schedule=schedule))
    if lineages and base_seed is not None:
        raise UserError("--base_seed has no meaning with --lineages true, where each seed has a base: leave one out")
    places = {"--cooldown_at": cooldown_at, "--horizons": horizons}
    listed = (as_list(value, float, option) if value is not None else [] for option, value in places.items())
    bases = dict(
        seed=42 if base_seed is None else base_seed, tokens_per_param=base_tokens_per_param, schedule=schedule,
        mup_base=mup_base,
    )  # fmt: skip
    make = from_scratch(run)
    of_runs = (bases, train, optimizer, out_dir, name, lineages, *listed)
    conduct(ablations.plan(make, expanded, seed_list, *of_runs), study)
