"""Grid search where runs are cheap: learning rate x batch size (x seeds), the same tokens for every cell."""

import itertools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas
from litgpt.config import Config

from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.files import atomic_folder, write_whole
from litgpt_warmstart.method.scales import SCALES, find_scale, resolve_config, short_name
from litgpt_warmstart.report.figures import heat_map
from litgpt_warmstart.report.page import Section, Table, write_csv
from litgpt_warmstart.report.runs import Runs, display_names
from litgpt_warmstart.run.checkpoint import FILES, RECORD, foreign_entries
from litgpt_warmstart.run.metrics import ended_diverged
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.spec import RunSpec, TrainArgs
from litgpt_warmstart.study.folder import as_text, check_results, read_table
from litgpt_warmstart.study.outcomes import Outcome, StudyRun

RESULTS, PICTURE = "grid_search.csv", "grid_search.png"
COLUMNS = ("lr", "batch_size", "seed", "status", "first_val_loss", "val_loss", "steps", "tokens", "seconds", "run")
CELLS = "cells"
"""Folder of a grid's runs."""
BEST = "best"
"""Folder of the winner's checkpoint, which ``warmstart --base`` reads."""

Cell = tuple[float, int]
"""A learning rate and a batch size."""
Cells = dict[Cell, float]
"""Mean validation losses."""


@dataclass(frozen=True)
class Grid:
    """The cells of one scale, over seeds."""

    folder: Path
    budget: int
    """Tokens that each run is trained on."""
    runs: Sequence[StudyRun]
    """Each with factors ``lr``, ``batch_size`` and ``seed``."""

    @property
    def config(self) -> Config:
        """The scale's."""
        return self.runs[0].spec.config

    @property
    def title(self) -> str:
        """For tables and pictures."""
        return f"{self.config.name}, {self.budget:,} tokens"


@dataclass(frozen=True)
class GridSearch:
    """A grid for each of several scales."""

    out_dir: Path
    grids: Sequence[Grid]

    @property
    def runs(self) -> list[StudyRun]:
        """Of all grids."""
        return [run for grid in self.grids for run in grid.runs]

    def conclude(self, outcomes: Mapping[str, Outcome]) -> None:
        """Write each grid's table, picture and winner, and print them."""
        for grid in self.grids:
            _conclude(grid, outcomes)


def plan(
    make: Callable[..., RunSpec],
    targets: Sequence[str],
    lrs: Sequence[float],
    batch_sizes: Sequence[int],
    seeds: Sequence[int],
    train: TrainArgs,
    out_dir: Path,
) -> GridSearch:
    """A grid for each target, several of them in folders of their own; see ``warmstart_grid_search`` for the arguments.

    Args:
        make: Resolves a run from scratch, with changes to what the user asked for.

    Raises:
        UserError: A run cannot be, no budget has whole steps of every batch size, or something of a user's stands where
            results go.
    """
    grids = []
    for target in targets:
        scale = f"{short_name(resolve_config(target).name)}/" if len(targets) > 1 else ""
        folder = out_dir / scale
        check_results(folder / RESULTS, COLUMNS[:3], PICTURE, BEST)

        def cell(name: str, lr: float, seed: int, target: str = target, folder: Path = folder, **sized: int) -> RunSpec:
            return make(target=target, out_dir=folder / CELLS / name, lr=lr, seed=seed, train=replace(train, **sized))

        single = cell("", lrs[0], seeds[0], global_batch_size=1, micro_batch_size=1)
        budget = equal_budget(single, batch_sizes)
        runs = []
        for lr, batch_size, seed in itertools.product(lrs, batch_sizes, seeds):
            name = f"lr-{lr!r}-batch-{batch_size}-seed-{seed}"
            spec = cell(name, lr, seed, global_batch_size=batch_size, max_tokens=budget)
            runs.append(StudyRun(scale + name, spec, dict(lr=lr, batch_size=batch_size, seed=seed)))
        grids.append(Grid(folder, budget, runs))
        print(
            f"Grid search at {single.config.name}: {len(lrs)} learning rates x {len(batch_sizes)} batch sizes x"
            f" {len(seeds)} seeds, {budget:,} tokens each"
        )
    return GridSearch(out_dir, grids)


def equal_budget(single: RunSpec, batch_sizes: Sequence[int]) -> int:
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


def results(runs: Sequence[StudyRun], outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    """A row a run, as grid_search.csv has them."""
    rows = []
    for run in runs:
        outcome, classes = outcomes[run.name], run.spec.config.padded_vocab_size or 0
        # whatever an older version called it
        above = ended_diverged(outcome.first_val_loss, outcome.val_loss, classes)
        status = "diverged" if outcome.status == "finished" and above else outcome.status
        told = outcome.first_val_loss, outcome.val_loss, outcome.step_count, outcome.tokens, round(outcome.seconds, 3)
        rows.append(dict(zip(COLUMNS, (*run.factors.values(), status, *told, run.name), strict=True)))
    return rows


def cells(rows: Sequence[Mapping[str, Any]]) -> Cells:
    """The grid's cells: mean validation loss over seeds, NaN where one diverged.

    Args:
        rows: As :func:`results` makes them, or as text.
    """
    seeds: dict[Cell, list[float]] = {}
    for row in rows:
        loss = float(row["val_loss"]) if row["status"] == "finished" else math.nan
        seeds.setdefault((float(row["lr"]), int(row["batch_size"])), []).append(loss)
    return {cell: fmean(losses) for cell, losses in seeds.items()}


def winner(losses: Cells) -> Cell:
    """The cell with the lowest mean validation loss.

    Raises:
        UserError: All diverged.
    """
    good = {loss: cell for cell, loss in reversed(losses.items()) if not math.isnan(loss)}
    if not good:
        raise UserError("every cell of the grid diverged: give smaller learning rates in --lrs")
    return good[min(good)]


def sides(losses: Cells) -> tuple[list[float], list[int]]:
    """The learning rates and the batch sizes of a grid, sorted."""
    return sorted({lr for lr, _ in losses}), sorted({batch_size for _, batch_size in losses})


def at_the_edge(losses: Cells, best: Cell) -> str | None:
    """What to tell when the winner has a neighbour missing; None if it stands inside the grid."""
    ends = []
    for option, value, values in zip(("--lrs", "--batch_sizes"), best, sides(losses), strict=True):
        if len(values) > 1 and value in (values[0], values[-1]):
            ends.append(f"{value:g} is the {'smallest' if value == values[0] else 'largest'} of {option}")
    if not ends:
        return None
    return f"The winner stands at the grid's edge: {' and '.join(ends)}; a wider grid may hold a better one"


def as_frame(losses: Cells) -> pandas.DataFrame:
    """Learning rates down, batch sizes across."""
    lrs, batch_sizes = sides(losses)
    return pandas.DataFrame([[losses[lr, size] for size in batch_sizes] for lr in lrs], lrs, batch_sizes)


def table(losses: Cells, best: Cell) -> pandas.DataFrame:
    """Validation loss by learning rate (rows) and batch size (columns), as text; the winner is marked."""
    lrs, batch_sizes = sides(losses)

    def told(cell: Cell) -> str:
        text = "diverged" if math.isnan(losses[cell]) else f"{losses[cell]:.4f}"
        return f"{text} {'<' if cell == best else ' '}"

    return pandas.DataFrame(
        {"lr": f"{lr:g}", **{f"batch {size}": told((lr, size)) for size in batch_sizes}} for lr in lrs
    )


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


def write_winner(grid: Grid, losses: Cells, best: Cell) -> None:
    """Copy the winner's checkpoint to ``best``/, its record telling of the grid.

    Of several seeds the first one's: the best one's loss would be better than what its settings promise.
    """
    lrs, batch_sizes = sides(losses)
    seeds = [run for run in grid.runs if (run.factors["lr"], run.factors["batch_size"]) == best]
    source = seeds[0].spec.out_dir / "final"
    record = Record.load(source / RECORD)
    searched = {
        "lrs": lrs,
        "batch_sizes": batch_sizes,
        "seeds": len(seeds),
        "val_loss": losses[best],
        "run": seeds[0].name,
    }
    with atomic_folder(grid.folder / BEST, foreign_entries) as partial:
        for name in FILES:
            if (source / name).is_file():
                shutil.copy(source / name, partial)
        replace(record, training={**record.training, "grid_search": searched}).save(partial / RECORD)


def _conclude(grid: Grid, outcomes: Mapping[str, Outcome]) -> None:
    rows = results(grid.runs, outcomes)
    write_csv(grid.folder / RESULTS, pandas.DataFrame(rows))
    losses = cells(rows)
    best = winner(losses)
    kept = better_before(losses[best], grid.budget, grid.folder)
    if not kept:
        write_winner(grid, losses, best)
    picture = heat_map("grid-search", "", as_frame(losses), best, grid.title)
    write_whole(grid.folder / PICTURE, picture.png)
    seeds = len({row["seed"] for row in rows})
    print(f"\nValidation loss, {grid.title}, mean of {seeds} seeds (< is the best)\n")
    print(as_text(table(losses, best)))
    for line in (at_the_edge(losses, best), kept):
        if line:
            print(f"\n{line}")
    written = f"{RESULTS} and {PICTURE}" if kept else f"{RESULTS}, {PICTURE}, {BEST}/"
    lr, batch_size = best
    print(
        f"\nBest: lr {lr:g}, batch {batch_size}. Wrote {written} to {str(grid.folder)!r}."
        f"\nGrow it: litgpt warmstart --base {grid.folder / BEST} --target {wider(grid.config)}"
    )


def wider(config: Config) -> str:
    """A scale to grow a model into, for the hint."""
    wider = [scale.short_name for scale in SCALES if scale.n_embd > config.n_embd]
    return wider[0] if wider and find_scale(config.name) else "WIDER_MODEL_CONFIG.yaml"


def section(runs: Runs) -> Section | None:
    """A heat map for each folder of a grid search."""
    folders = runs.results[RESULTS]
    if not folders:
        return None
    found = Section(
        "Grid searches",
        "Last validation loss, mean over seeds, after the same tokens in every cell; the winner is framed. A cell"
        " diverged if a seed's loss was not finite, or ended above its start and a uniform guess.",
    )
    table = []
    for name, folder in zip(display_names(folders), folders, strict=True):
        try:
            rows = read_table(folder / RESULTS)
            losses = cells(rows)
            best = winner(losses)
            tokens = max(int(row["tokens"]) for row in rows if row["status"] == "finished")
        except (OSError, ValueError, KeyError, TypeError, UserError) as error:
            found.notes.append(f"Left out: {name}: {one_line(error, 100)}")
            continue
        inside = (folder / CELLS).resolve()
        own = [run for run in runs.table.to_dict("records") if Path(run["folder"]).resolve().parent == inside]
        told = f"{tokens:,} tokens"
        if own:
            told = f"{own[0]['model']}, {tokens / own[0]['parameters']:.3g} tokens per parameter"
        part = Section(f"{name}: {told}")
        part.answers.append(f"Best: lr {best[0]:g}, batch {best[1]}, validation loss {losses[best]:.4f}.")
        if edge := at_the_edge(losses, best):
            part.answers.append(f"{edge}.")
        caption = f"Last validation loss by learning rate and batch, {told}"
        figure = f"grid-search-{len(found.parts) + 1}"
        part.figures.append(heat_map(figure, caption, as_frame(losses), best, told))
        found.parts.append(part)
        table += [{"grid": name, **{column: row.get(column) for column in COLUMNS}} for row in rows]
    if table:
        found.tables.append(Table("grid_searches", "All cells and seeds", pandas.DataFrame(table)))
    return found
