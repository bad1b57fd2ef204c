"""litgpt warmstart_lr_transfer: does the best learning rate stay where it is as models get wider?"""

import math
from pathlib import Path

from litgpt_warmstart.commands.study import NOT_FOR_A_STUDY, as_list, check_comparable, from_scratch
from litgpt_warmstart.edge import check_seeds, command, options
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.run.spec import RunArgs, TrainArgs
from litgpt_warmstart.study import StudyArgs


@command
@options(
    "study", "run",
    without=("lr", "seed", "mup_base", "parametrization", "tokens_per_param", "resume", "overwrite"),
    refused=NOT_FOR_A_STUDY[1:],
)  # fmt: skip
def setup(
    scales: str | list[str] | None = None,
    parametrizations: str | list[str] = "mup,sp",
    lrs: str | float | list[float] = "0.001,0.003,0.01,0.03,0.1",
    seeds: str | int | list[int] = "42,43,44",
    out_dir: Path = Path("out/warmstart_lr_transfer"),
    train: TrainArgs = TrainArgs(),
    study: StudyArgs = StudyArgs(),
    run: RunArgs = RunArgs(),
) -> None:
    """Train scales from scratch over learning rates, and say how far the best one moves (arXiv 2203.03466, figure 1).

    All are trained on the same tokens. A run that has finished is not run again: the same command goes on, and one with
    other scales, parametrizations, learning rates or seeds adds them to the table and the picture.

    Arguments:
        scales: The models, narrowest first: 5M, 10M, 22M, 35M, 70M, LitGPT names, or paths of model_config.yaml files,
            with commas. Learning rates are given at the first one, muP's base, whose batch size and sequence length all
            have.
        parametrizations: What carries the learning rate: those of ``warmstart_scratch``, with commas. ``sp`` carries
            nothing: each scale has the rate as it is. At the first scale all are one, and its runs are shared.
        lrs: Learning rates, e.g. ``0.003,0.01,0.03``.
        seeds: Of the initialization; the data and its order are the same for all.
        out_dir: Directory for the runs, lr_transfer.csv, optima.csv and lr_transfer.png.
        train: Training-related arguments. ``max_tokens`` is each run's budget.
    """
    from litgpt_warmstart.study import lr_transfer
    from litgpt_warmstart.study.runner import conduct

    if scales is None:
        raise UserError("--scales is missing: give the models whose learning rates are compared, e.g. 5M,10M,22M")
    scale_list = as_list(scales, str, "--scales", once=False)
    names = as_list(parametrizations, str, "--parametrizations", once=False)
    lr_list = sorted(as_list(lrs, float, "--lrs"))
    seed_list = as_list(seeds, int, "--seeds")
    check_seeds("seeds", *seed_list)
    if not all(0 < lr < math.inf for lr in lr_list):
        raise UserError("--lrs must be above 0")
    if len(lr_list) < 2:
        raise UserError(f"--lrs {lr_list[0]:g}: one learning rate shows no optimum: give several")
    check_comparable(run.eval, train, "max_tokens", "give --train.max_tokens, the same for every scale")
    if train.max_tokens is None:
        raise UserError("--train.max_tokens is missing: give the tokens that every run is trained on")
    conduct(lr_transfer.plan(from_scratch(run), scale_list, names, lr_list, seed_list, train, out_dir), study)
