"""Grid search where runs are cheap: learning rate x batch size (x seeds), the same tokens for every cell."""

import itertools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas
from litgpt.config import Config

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import atomic_folder, write_whole
from litgpt_warmstart.method.scales import SCALES, find_scale, resolve_config, short_name
from litgpt_warmstart.report.figures import heat_map
from litgpt_warmstart.report.page import Section, Table, as_text, write_csv
from litgpt_warmstart.report.runs import Found
from litgpt_warmstart.run.checkpoint import FILES, RECORD, foreign_entries
from litgpt_warmstart.run.metrics import ended_diverged
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.spec import RunSpec, TrainArgs
from litgpt_warmstart.study.arms import OF_OPTIMIZER, expand
from litgpt_warmstart.study.folder import check_results, read_table, section_of
from litgpt_warmstart.study.outcomes import Outcome, Study, StudyRun
from litgpt_warmstart.study.outcomes import results as outcomes_of

RESULTS, PICTURE = "grid_search.csv", "grid_search.png"
COLUMNS = ("lr", "batch_size", "seed", "status", "first_val_loss", "val_loss", "steps", "tokens", "seconds", "run")
CELLS = "cells"
"""Folder of a grid's runs."""
BEST = "best"
"""Folder of the winner's checkpoint, which ``warmstart --base`` reads."""

Cell = tuple[float, int]
"""A learning rate and a batch size."""


def plan(
    make: Callable[..., RunSpec],
    targets: Sequence[str],
    lrs: Sequence[float],
    batch_sizes: Sequence[int],
    seeds: Sequence[int],
    train: TrainArgs,
    out_dir: Path,
    optimizers: Mapping[str, str | dict[str, Any]],
) -> Study:
    """A grid for each target and optimizer, several of them in folders of their own, of runs that ``make`` resolves.

    Optimizers are given by what tells each from the others, which its folder is called by.
    """
    grids: list[Study] = []
    for target, (words, optimizer) in itertools.product(targets, optimizers.items()):
        names = [short_name(resolve_config(target).name)] * (len(targets) > 1) + [words] * (len(optimizers) > 1)
        scale = "".join(f"{name}/" for name in names)
        folder = out_dir / scale
        check_results(folder / RESULTS, COLUMNS[:3], PICTURE, BEST)
        settings = dict(target=target, optimizer=optimizer)

        def cell(
            name: str, lr: float, seed: int, settings: dict = settings, folder: Path = folder, **sized: int
        ) -> RunSpec:
            return make(out_dir=folder / CELLS / name, lr=lr, seed=seed, train=replace(train, **sized), **settings)

        single = cell("", lrs[0], seeds[0], global_batch_size=1, micro_batch_size=1)
        budget = equal_budget(single, batch_sizes)
        runs = []
        for lr, batch_size, seed in itertools.product(lrs, batch_sizes, seeds):
            name = f"lr-{lr!r}-batch-{batch_size}-seed-{seed}"
            spec = cell(name, lr, seed, global_batch_size=batch_size, max_tokens=budget)
            runs.append(StudyRun(scale + name, spec, dict(lr=lr, batch_size=batch_size, seed=seed)))
        grids.append(Study(folder, runs, partial(conclude, folder, runs, budget)))
        print(
            f"Grid search at {single.config.name}{f' with {words}' * (len(optimizers) > 1)}:"
            f" {len(lrs)} learning rates x {len(batch_sizes)} batch sizes x {len(seeds)} seeds, {budget:,} tokens each"
        )

    def conclude_all(outcomes: Mapping[str, Outcome]) -> None:
        for grid in grids:
            grid.conclude(outcomes)

    return Study(out_dir, [run for grid in grids for run in grid.runs], conclude_all)


def varied(vary: Mapping[str, Any], optimizer: str | dict[str, Any]) -> dict[str, str | dict[str, Any]]:
    """The optimizers of all combinations of what is varied, by what tells each from the others.

    Raises:
        UserError: Something is no ``optimizer``, ``beta2`` or argument of an optimizer.
    """
    for name in vary:
        if name not in ("optimizer", "beta2") and not str(name).startswith(OF_OPTIMIZER):
            raise UserError(f"--vary has no {name!r}: choose from optimizer, beta2, {OF_OPTIMIZER}ARGUMENT")
    arms = expand([{"shrink": 0.0, **vary}], {"base": "", "target": ""}, "--vary")
    return {"-".join(arm.optimizer_words).replace(" ", "-"): arm.trained_with(optimizer) for arm in arms}


def equal_budget(single: RunSpec, batch_sizes: Sequence[int]) -> int:
    """The largest budget in tokens, within that of a run in steps of one sequence, of whole steps of every size."""
    step = math.lcm(*batch_sizes) * single.block_size
    tokens = single.max_steps * single.block_size
    if tokens < step:
        listed = ", ".join(map(str, batch_sizes))
        raise UserError(
            f"a budget of {tokens:,} tokens has no whole steps of every batch size ({listed}): take at least"
            f" --train.max_tokens {step}, or batch sizes that divide one another"
        )
    return tokens // step * step


def results(runs: Sequence[StudyRun], outcomes: Mapping[str, Outcome]) -> pandas.DataFrame:
    """A row a run, as grid_search.csv has them."""
    columns = ("status", "first_val_loss", "val_loss", "step_count", "tokens", "seconds")
    rows = outcomes_of(runs, outcomes, columns).rename(columns={"step_count": "steps"}).round({"seconds": 3})
    for place, run in enumerate(runs):  # whatever an older version called it
        outcome, classes = outcomes[run.name], run.spec.config.padded_vocab_size or 0
        if outcome.status == "finished" and ended_diverged(outcome.first_val_loss, outcome.val_loss, classes):
            rows.loc[place, "status"] = "diverged"
    return rows


def mean_losses(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Mean validation loss over seeds by learning rate (rows) and batch size (columns), NaN where one diverged."""
    typed: Any = rows.astype({"lr": float, "batch_size": int, "val_loss": float})
    typed["val_loss"] = typed["val_loss"].where(rows["status"] == "finished")
    return typed.groupby(["lr", "batch_size"])["val_loss"].agg(lambda seeds: seeds.mean(skipna=False)).unstack()


def winner(losses: pandas.DataFrame) -> Cell:
    """The cell with the lowest mean validation loss."""
    good: Any = losses.stack().dropna()
    if good.empty:
        raise UserError("every cell of the grid diverged: give smaller learning rates in --lrs")
    return good.idxmin()


def at_the_edge(losses: pandas.DataFrame, best: Cell) -> str | None:
    """What to tell when the winner has a neighbour missing; None if it stands inside the grid."""
    ends = []
    for option, value, values in zip(("--lrs", "--batch_sizes"), best, losses.axes, strict=True):
        if len(values) > 1 and value in (values[0], values[-1]):
            ends.append(f"{value:g} is the {'smallest' if value == values[0] else 'largest'} of {option}")
    if not ends:
        return None
    return f"The winner stands at the grid's edge: {' and '.join(ends)}; a wider grid may hold a better one"


def table(losses: pandas.DataFrame, best: Cell) -> pandas.DataFrame:
    """Validation loss by learning rate (rows) and batch size (columns), as text; the winner is marked."""
    text = losses.map(lambda loss: "diverged  " if math.isnan(loss) else f"{loss:.4f}  ")
    text.loc[best] = f"{losses.loc[best]:.4f} <"
    text = text.rename(columns="batch {}".format, index="{:g}".format)
    return text.rename_axis("lr").rename_axis(columns=None).reset_index()


def better_before(val_loss: float, tokens: int, folder: Path) -> str | None:
    """What to tell where ``best``/ holds a better cell of an earlier grid over the same tokens; None if it does not."""
    path = folder / BEST / RECORD
    before = Record.load(path) if path.is_file() else None
    grid = before.training.get("grid_search") if before else None
    if before is None or grid is None or before.tokens != tokens or grid["val_loss"] >= val_loss:
        return None
    return (
        f"{BEST}/ keeps lr {before.base_lr:g}, batch {before.global_batch_size} of an earlier grid here, which reached"
        f" {grid['val_loss']:.4f}"
    )


def write_winner(folder: Path, runs: Sequence[StudyRun], losses: pandas.DataFrame, best: Cell) -> None:
    """Copy the winner's checkpoint to ``best``/, its record telling of the grid.

    Of several seeds the first one's: the best one's loss would be better than what its settings promise.
    """
    seeds = [run for run in runs if (run.factors["lr"], run.factors["batch_size"]) == best]
    source = seeds[0].spec.out_dir / "final"
    record = Record.load(source / RECORD)
    searched = {
        "lrs": losses.index.tolist(),
        "batch_sizes": losses.columns.tolist(),
        "seeds": len(seeds),
        "val_loss": float(losses.loc[best]),
        "run": seeds[0].name,
    }
    with atomic_folder(folder / BEST, foreign_entries) as partial:
        for name in FILES:
            if (source / name).is_file():
                shutil.copy(source / name, partial)
        replace(record, training={**record.training, "grid_search": searched}).save(partial / RECORD)


def conclude(folder: Path, runs: Sequence[StudyRun], budget: int, outcomes: Mapping[str, Outcome]) -> None:
    """Write a grid's table, picture and winner, and print them."""
    rows = results(runs, outcomes)
    write_csv(folder / RESULTS, rows)
    losses = mean_losses(rows)
    best = winner(losses)
    kept = better_before(float(losses.loc[best]), budget, folder)
    if not kept:
        write_winner(folder, runs, losses, best)
    config = runs[0].spec.config
    title = f"{config.name}, {budget:,} tokens"
    write_whole(folder / PICTURE, heat_map("grid-search", "", losses, best, title).png)
    print(f"\nValidation loss, {title}, mean of {rows['seed'].nunique()} seeds (< is the best)\n")
    print(as_text(table(losses, best)))
    for line in (at_the_edge(losses, best), kept):
        if line:
            print(f"\n{line}")
    written = f"{RESULTS} and {PICTURE}" if kept else f"{RESULTS}, {PICTURE}, {BEST}/"
    lr, batch_size = best
    print(
        f"\nBest: lr {lr:g}, batch {batch_size}. Wrote {written} to {str(folder)!r}."
        f"\nGrow it: litgpt warmstart --base {folder / BEST} --target {wider(config)}"
    )


def wider(config: Config) -> str:
    """A scale to grow a model into, for the hint."""
    wider = [scale.short_name for scale in SCALES if scale.n_embd > config.n_embd]
    return wider[0] if wider and find_scale(config.name) else "WIDER_MODEL_CONFIG.yaml"


def section(found: Found) -> Section | None:
    """A heat map for each folder of a grid search."""
    sentence = (
        "Last validation loss, mean over seeds, after the same tokens in every cell; the winner is framed. A cell"
        " diverged if a seed's loss was not finite, or ended above its start and a uniform guess."
    )
    tables: list[pandas.DataFrame] = []

    def part(name: str, folder: Path, number: int) -> Section:
        rows: Any = read_table(folder / RESULTS)
        losses = mean_losses(rows)
        lr, batch_size = best = winner(losses)
        tokens = rows["tokens"][rows["status"] == "finished"].astype(int).max()
        inside = (folder / CELLS).resolve()
        told = f"{tokens:,} tokens"
        if own := next((run for run in found.runs if run.folder.resolve().parent == inside), None):
            told = f"{own.model}, {tokens / own.record.parameters:.3g} tokens per parameter"
        edge = at_the_edge(losses, best)
        answers = [
            f"Best: lr {lr:g}, batch {batch_size}, validation loss {losses.loc[best]:.4f}.",
            *([f"{edge}."] if edge else []),
        ]
        caption = f"Last validation loss by learning rate and batch, {told}"
        figure = heat_map(f"grid-search-{number}", caption, losses, best, told)
        tables.append(rows.reindex(columns=COLUMNS).assign(grid=name)[["grid", *COLUMNS]])
        return Section(f"{name}: {told}", answers=answers, figures=[figure])

    whole = section_of("Grid searches", sentence, found.results[RESULTS], part)
    if whole and tables:
        whole.tables.append(Table("grid_searches", "", pandas.concat(tables)))
    return whole
