"""litgpt warmstart_grid_search: tune learning rate and batch size where runs are cheap."""

import math
from pathlib import Path
from typing import Any

from litgpt_warmstart.commands.study import NOT_FOR_A_STUDY, as_list, check_comparable, from_scratch
from litgpt_warmstart.edge import check_seeds, command, options
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.run.spec import RunArgs, TrainArgs
from litgpt_warmstart.study import StudyArgs


@command
@options(
    "study", "run", without=("lr", "seed", "mup_base", "resume", "overwrite"),
    refused=(*NOT_FOR_A_STUDY[1:], "train.global_batch_size"),
)  # fmt: skip
def setup(
    target: str | list[str] | None = None,
    lrs: str | float | list[float] = "0.001,0.003,0.01,0.03,0.1",
    batch_sizes: str | int | list[int] = "64,128,256",
    seeds: str | int | list[int] = "42",
    vary: dict[str, Any] | None = None,
    out_dir: Path = Path("out/warmstart_grid_search"),
    train: TrainArgs = TrainArgs(),
    study: StudyArgs = StudyArgs(),
    run: RunArgs = RunArgs(),
) -> None:
    """Train a scale from scratch with each learning rate and batch size, and keep the best as a base.

    Every cell of the grid trains on the same tokens. The winner's checkpoint is OUT_DIR/best: ``litgpt warmstart --base
    OUT_DIR/best`` carries its learning rate and batch size on. A stopped search goes on with the same command.

    Arguments:
        target: The scale to tune at: 5M, 10M, 22M, 35M, 70M, a LitGPT name, or the path of a model_config.yaml.
            Several, with commas, have a grid each, in OUT_DIR/SCALE.
        lrs: Learning rates, e.g. ``0.003,0.01,0.03``.
        batch_sizes: Sequences per optimizer step, e.g. ``64,128``.
        seeds: Of the initialization; a cell's loss is the mean over them.
        vary: More to vary, each a value or a list: ``optimizer``, ``beta2``, and arguments of the optimizer such as
            ``optimizer.momentum``, e.g. ``{optimizer: [AdamW, Muon], beta2: [0.95, 0.99]}``. Each combination has a
            grid, in OUT_DIR/COMBINATION where there are several.
        out_dir: Directory for the runs, grid_search.csv, grid_search.png and best/.
        train: Training-related arguments. The batch size is ``batch_sizes``'.
    """
    from litgpt_warmstart.study import grid_search
    from litgpt_warmstart.study.runner import conduct

    lr_list = as_list(lrs, float, "--lrs")
    batch_list = as_list(batch_sizes, int, "--batch_sizes")
    seed_list = as_list(seeds, int, "--seeds")
    check_seeds("seeds", *seed_list)
    if not all(0 < value < math.inf for value in (*lr_list, *batch_list)):
        raise UserError("--lrs and --batch_sizes must be above 0")
    if train.global_batch_size is not None:
        raise UserError("--train.global_batch_size is not for a study of several runs: give --batch_sizes")
    check_comparable(run.eval, train, "max_tokens", "give --train.max_tokens, the same for every cell")
    if target is None:
        raise UserError("--target is missing: give the scale to tune at, e.g. 5M")
    targets = as_list(target, str, "--target")
    make = from_scratch(run)
    optimizers = grid_search.varied(vary or {}, run.optimizer)
    conduct(grid_search.plan(make, targets, lr_list, batch_list, seed_list, train, out_dir, optimizers), study)
