"""litgpt warmstart_grid_search: tune learning rate and batch size where runs are cheap."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

from litgpt.config import Config

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
from litgpt_warmstart.method.parametrization import ParametrizationName
from litgpt_warmstart.method.scales import SCALES, find_scale, resolve_config, short_name
from litgpt_warmstart.run.resolve import resolve
from litgpt_warmstart.run.spec import EvalArgs, RunSpec, TrainArgs
from litgpt_warmstart.study.runner import Executor, Outcome, StudyRun


@checked
def setup(
    target: str | list[str] | None = None,
    lrs: str | float | list[float] = "0.001,0.003,0.01,0.03,0.1",
    batch_sizes: str | int | list[int] = "64,128,256",
    seeds: str | int | list[int] = "42",
    parametrization: ParametrizationName = "mup",
    out_dir: Path = Path("out/warmstart_grid_search"),
    train: TrainArgs = TrainArgs(),
    eval: EvalArgs = EvalArgs(),
    plan: Plan | None = None,
    executor: Executor = "here",
    ray_address: str | None = None,
    cpus_per_run: int | None = None,
    gpus_per_run: float | None = None,
    **kwargs,
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
        parametrization: ``mup`` or ``sp``; the same at the scale itself.
        out_dir: Directory for the runs, grid_search.csv, grid_search.png and best/.
        train: Training-related arguments. The batch size is ``batch_sizes``'.
        eval: Evaluation-related arguments. See ``litgpt_warmstart.run.spec.EvalArgs`` for details.
        plan: Train nothing, and say what the runs take: ``tokens`` and Hoffmann FLOPs, or also ``time`` on this device.
        executor: ``here``, one run after another, or ``ray``, as tasks of a Ray cluster.
        ray_address: Of a running Ray cluster, host:port or auto. Default: Ray is started on this machine.
        cpus_per_run: Cores that Ray gives a run. Default: 1.
        gpus_per_run: GPUs, or a part of one, that Ray gives a run. Default: 1 where this machine has any.
    """
    with told_in_one_line("litgpt warmstart_grid_search"):
        from litgpt_warmstart.report.grids import CELLS, COLUMNS
        from litgpt_warmstart.report.old_runs import GRID_SEARCH
        from litgpt_warmstart.study.grid_search import BEST
        from litgpt_warmstart.study.runner import StudyRun, carry_out

        lr_list = as_list(lrs, float, "--lrs")
        batch_list = as_list(batch_sizes, int, "--batch_sizes")
        seed_list = as_list(seeds, int, "--seeds")
        check_seeds("seeds", *seed_list)
        if not all(0 < value < math.inf for value in (*lr_list, *batch_list)):
            raise UserError("--lrs and --batch_sizes must be above 0")
        check_eval(eval)
        refuse(train, ["global_batch_size"], "give --batch_sizes")
        refuse(train, ["max_steps", "max_time"], "give --train.max_tokens, the same for every cell")
        if target is None:
            raise UserError("--target is missing: give the scale to tune at, e.g. 5M")
        out_dir = Path(out_dir)
        check_out_dir(out_dir)

        def cell(target: str, folder: Path, lr: float, seed: int, **sized: int | None) -> RunSpec:
            own = dict(target=target, parametrization=parametrization, initial_checkpoint_dir=None)
            return resolve(
                "warmstart_scratch", target, None, None, parametrization, folder, own, lr=lr,
                seed=seed, train=replace(train, **sized), mup_base=None, resume="auto", overwrite=False,
                eval=eval, **kwargs,
            )  # fmt: skip

        targets = as_list(target, str, "--target")
        searches: list[tuple[Path, int, list[StudyRun]]] = []
        for target in targets:
            scale = f"{short_name(resolve_config(target).name)}/" if len(targets) > 1 else ""
            folder = out_dir / scale
            check_results(folder / GRID_SEARCH, COLUMNS[:3], "grid_search.png", BEST)
            single = cell(target, folder / CELLS, lr_list[0], seed_list[0], global_batch_size=1, micro_batch_size=1)
            budget = equal_budget(single, batch_list)
            runs = []
            for lr, batch, seed in itertools.product(lr_list, batch_list, seed_list):
                name = f"lr-{lr!r}-batch-{batch}-seed-{seed}"
                sized = dict(global_batch_size=batch, max_tokens=budget)
                spec = cell(target, folder / CELLS / name, lr, seed, **sized)
                runs.append(StudyRun(scale + name, spec, dict(lr=lr, batch_size=batch, seed=seed)))
            searches.append((folder, budget, runs))
            print(
                f"Grid search at {runs[0].spec.config.name}: {len(lr_list)} learning rates x {len(batch_list)} batch"
                f" sizes x {len(seed_list)} seeds, {budget:,} tokens each"
            )
        cells = [run for *_, runs in searches for run in runs]
        if plan:
            return tell_costs(cells, plan)
        with study_folder(out_dir):
            outcomes = carry_out(cells, executor, ray_address, cpus_per_run, gpus_per_run)
            for folder, budget, runs in searches:
                _tell(runs, outcomes, budget, len(seed_list), folder)


def _tell(runs: list[StudyRun], outcomes: dict[str, Outcome], budget: int, num_seeds: int, folder: Path) -> None:
    """Write a grid's table, picture and winner, and print them."""
    from litgpt_warmstart.report.grids import at_the_edge, cells, winner
    from litgpt_warmstart.report.old_runs import GRID_SEARCH
    from litgpt_warmstart.report.tables import write_csv
    from litgpt_warmstart.study import grid_search

    rows = grid_search.rows(runs, outcomes)
    write_csv(folder / GRID_SEARCH, rows)
    found = cells(rows)
    best = winner(found)
    if kept := grid_search.better_before(best, budget, folder):
        base = folder / grid_search.BEST
    else:
        base = grid_search.write_winner(best, found, runs, folder)
    title = f"{runs[0].spec.config.name}, {budget:,} tokens"
    grid_search.heat_map(found, best, title, folder / "grid_search.png")
    print(f"\nValidation loss, {title}, mean of {num_seeds} seeds (< is the best)\n")
    print(grid_search.table(found, best))
    for line in (at_the_edge(found, best), kept):
        if line:
            print(f"\n{line}")
    written = f"{GRID_SEARCH} and grid_search.png" if kept else f"{GRID_SEARCH}, grid_search.png, {base.name}/"
    print(
        f"\nBest: lr {best.lr:g}, batch {best.batch_size}. Wrote {written} to {str(folder)!r}."
        f"\nGrow it: litgpt warmstart --base {base} --target {wider(runs[0].spec.config)}"
    )


def wider(config: Config) -> str:
    """A scale to grow a model into, for the hint."""
    wider = [scale.short_name for scale in SCALES if scale.n_embd > config.n_embd]
    return wider[0] if wider and find_scale(config.name) else "WIDER_MODEL_CONFIG.yaml"


def equal_budget(single: RunSpec, batch_sizes: list[int]) -> int:
    """The largest budget, in tokens, that is whole steps of every batch size.

    Args:
        single: The run in steps of one sequence.
        batch_sizes: Sequences per step.

    Raises:
        UserError: There is none within the run's.
    """
    step = math.lcm(*batch_sizes) * single.block_size
    tokens = single.max_steps * single.block_size
    if tokens < step:
        listed = ", ".join(map(str, batch_sizes))
        raise UserError(
            f"a budget of {tokens:,} tokens has no whole steps of every batch size ({listed}): take at least"
            f" --train.max_tokens {step}, or batch sizes that divide one another"
        )
    return tokens // step * step
