"""Cells of a grid search, from the rows of its grid_search.csv: evaluated, drawn, and as a section of the page."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.report.answers import Names
from litgpt_warmstart.report.groups import size
from litgpt_warmstart.report.html import Section, Table
from litgpt_warmstart.report.old_figures import GREY, drawn
from litgpt_warmstart.report.old_runs import GRID_SEARCH, Run, display_names
from litgpt_warmstart.report.tables import COLORS

CELLS = "cells"
"""Folder of a grid's runs."""
COLUMNS = ("lr", "batch_size", "seed", "status", "first_val_loss", "val_loss", "steps", "tokens", "seconds", "run")
"""Of grid_search.csv."""


@dataclass(frozen=True)
class Cell:
    """A learning rate and a batch size, over all seeds."""

    lr: float
    batch_size: int
    val_losses: tuple[float, ...]
    """Of each seed that did not diverge."""
    diverged: int
    """Seeds that did."""
    runs: tuple[str, ...]

    @property
    def val_loss(self) -> float | None:
        """Mean over seeds; None if one diverged."""
        return fmean(self.val_losses) if not self.diverged else None


def cells(rows: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """The grid's cells, in the order of their first rows.

    Args:
        rows: A run each, with ``lr``, ``batch_size``, ``status``, ``val_loss`` and ``run``, also as a CSV file's text.
    """
    grouped: dict[tuple[float, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((float(row["lr"]), int(row["batch_size"])), []).append(row)
    found = []
    for (lr, batch_size), members in grouped.items():
        good = [float(row["val_loss"]) for row in members if row["status"] == "finished"]
        found.append(Cell(lr, batch_size, tuple(good), len(members) - len(good), tuple(row["run"] for row in members)))
    return found


def winner(found: Sequence[Cell]) -> Cell:
    """The cell with the lowest mean validation loss.

    Raises:
        UserError: All diverged.
    """
    best = min((cell for cell in found if cell.val_loss is not None), key=lambda cell: cell.val_loss, default=None)
    if best is None:
        raise UserError("every cell of the grid diverged: give smaller learning rates in --lrs")
    return best


def at_the_edge(found: Sequence[Cell], best: Cell) -> str | None:
    """What to tell when the winner has a neighbour missing; None if it stands inside the grid."""
    told = []
    for option, value, values in (
        ("--lrs", best.lr, {cell.lr for cell in found}),
        ("--batch_sizes", best.batch_size, {cell.batch_size for cell in found}),
    ):
        if len(values) > 1 and value in (min(values), max(values)):
            told.append(f"{value:g} is the {'smallest' if value == min(values) else 'largest'} of {option}")
    return (
        f"The winner stands at the grid's edge: {' and '.join(told)}; a wider grid may hold a better one"
        if told
        else None
    )


def draw_cells(axes: Any, found: Sequence[Cell], best: Cell) -> None:
    """Validation losses by learning rate and batch size, the winner framed; a diverged cell is left blank."""
    lrs = sorted({cell.lr for cell in found})
    batches = sorted({cell.batch_size for cell in found})
    losses = [cell.val_loss for cell in found if cell.val_loss is not None]
    values = [[float("nan")] * len(batches) for _ in lrs]
    for cell in found:
        if cell.val_loss is not None:
            values[lrs.index(cell.lr)][batches.index(cell.batch_size)] = cell.val_loss
    middle = (min(losses) + max(losses)) / 2
    columns, lines = ([place - 0.5 for place in range(len(values) + 1)] for values in (batches, lrs))
    mesh = axes.pcolormesh(columns, lines, values, cmap="viridis_r")
    for cell in found:
        place = batches.index(cell.batch_size), lrs.index(cell.lr)
        text = "diverged" if cell.val_loss is None else f"{cell.val_loss:.3f}"
        color = GREY if cell.val_loss is None else "black" if cell.val_loss < middle else "white"
        weight = "bold" if cell is best else "normal"
        axes.text(*place, text, ha="center", va="center", color=color, fontweight=weight, fontsize="small")
    x, y = batches.index(best.batch_size), lrs.index(best.lr)
    axes.plot([x - 0.5, x + 0.5, x + 0.5, x - 0.5, x - 0.5], [y - 0.5, y - 0.5, y + 0.5, y + 0.5, y - 0.5],
              color=COLORS[1], linewidth=2.5, clip_on=False)  # fmt: skip
    axes.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    axes.set_yticks(range(len(lrs)), [f"{lr:g}" for lr in lrs])
    axes.set(xlabel="batch (sequences per step)", ylabel="learning rate")
    axes.grid(False)
    axes.figure.colorbar(mesh, ax=axes, label="validation loss (nats per token)")


def grid_searches(folders: Sequence[Path], runs: Sequence[Run], names: Names) -> Section:
    """A heat map for each folder of ``warmstart_grid_search``.

    Args:
        folders: With a grid_search.csv.
        runs: All that were found; those of a grid's cells tell its model.
        names: What runs are called.
    """
    section = Section("Grid searches")
    section.words.append(
        "Last validation loss, mean over seeds, after the same tokens in every cell; the winner is framed. A cell"
        " diverged if a seed's loss was not finite, or ended above its start and a uniform guess."
    )
    called = display_names(folders)
    table = []
    for folder in folders:
        try:
            rows = list(csv.DictReader((folder / GRID_SEARCH).read_text(encoding="utf-8").splitlines()))
            if any(None in row or None in row.values() for row in rows):
                raise ValueError("a row has more or fewer columns than the others")
            found = cells(rows)
            best = winner(found)
            tokens = max(int(row["tokens"]) for row in rows if row["status"] == "finished")
            cell_folders = {(folder / CELLS / Path(row["run"]).name).resolve() for row in rows}
        except (OSError, ValueError, KeyError, TypeError, UserError) as error:
            section.notes.append(f"Left out: {called[folder]}: {one_line(error, 100)}")
            continue
        own = [run for run in runs if run.out_dir.resolve() in cell_folders]
        told = f"{tokens:,} tokens"
        if own:
            told = f"{size(own[0])}, {tokens / own[0].record.parameters:.3g} tokens per parameter"
        listed = f" Runs {', '.join(names[run.out_dir] for run in own)}." if own else ""
        caption = f"{called[folder]}: last validation loss by learning rate and batch. {told}.{listed}"
        height = 1.6 + 0.5 * len({cell.lr for cell in found})
        with drawn(f"grid-search-{len(section.figures) + 1}", caption, height=height) as (axes, made):
            draw_cells(axes, found, best)
            axes.set_title(told, fontsize="small")
        section.figures += made
        sentences = [f"Best: lr {best.lr:g}, batch {best.batch_size}, validation loss {best.val_loss:.4f}."]
        if edge := at_the_edge(found, best):
            sentences.append(f"{edge}.")
        section.answers.append((f"{called[folder]}: {told}", sentences))
        table += [{"grid": called[folder], **{name: row.get(name) for name in COLUMNS}} for row in rows]
    if table:
        section.tables.append(Table("grid_searches", "", table))
    return section
