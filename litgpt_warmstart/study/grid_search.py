"""Grid search at the base scale: learning rate x batch size (x seeds), the same tokens for every cell."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from litgpt_warmstart.files import atomic_folder
from litgpt_warmstart.report.grids import Cell, draw_cells
from litgpt_warmstart.run.checkpoint import FILES, RECORD, foreign_entries
from litgpt_warmstart.run.metrics import ended_diverged
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.study.runner import Outcome, StudyRun
from litgpt_warmstart.study.tables import picture

BEST = "best"
"""Folder of the winner's checkpoint, which ``warmstart --base`` reads."""


def diverged(run: StudyRun, outcome: Outcome) -> bool:
    """Whether a run's loss was not finite, or ended above its start and chance, whatever an older version called it."""
    if outcome.status != "finished":
        return True
    return ended_diverged(outcome.first_val_loss, outcome.val_loss, run.spec.config.padded_vocab_size)


def rows(runs: Sequence[StudyRun], outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    """A row a run, as grid_search.csv has them.

    Args:
        runs: Each with factors ``lr``, ``batch_size`` and ``seed``.
        outcomes: By name.
    """
    return [
        {
            **run.factors,
            "status": "diverged" if diverged(run, outcome) else outcome.status,
            "first_val_loss": outcome.first_val_loss,
            "val_loss": outcome.val_loss,
            "steps": outcome.step_count,
            "tokens": outcome.tokens,
            "seconds": round(outcome.seconds, 3),
            "run": run.name,
        }
        for run in runs
        for outcome in (outcomes[run.name],)
    ]


def better_before(best: Cell, tokens: int, out_dir: Path) -> str | None:
    """What to tell where ``best``/ holds a better cell of an earlier grid over the same tokens; None if it does not."""
    path = out_dir / BEST / RECORD
    before = Record.load(path) if path.is_file() else None
    grid = before.training.get("grid_search") if before else None
    if grid is None or before.tokens != tokens or grid["val_loss"] >= best.val_loss:
        return None
    return (
        f"{BEST}/ keeps lr {before.base_lr:g}, batch {before.global_batch_size} of an earlier grid here, which reached"
        f" {grid['val_loss']:.4f}"
    )


def write_winner(best: Cell, found: Sequence[Cell], runs: Sequence[StudyRun], out_dir: Path) -> Path:
    """Copy the winner's checkpoint to ``out_dir``/best, its record telling of the grid.

    Of several seeds the first one's: the best one's loss would be better than what its settings promise.

    Returns:
        The folder.
    """
    run = next(run for run in runs if run.name == best.runs[0])
    source, folder = run.spec.out_dir / "final", out_dir / BEST
    record = Record.load(source / RECORD)
    grid = {
        "lrs": sorted({cell.lr for cell in found}),
        "batch_sizes": sorted({cell.batch_size for cell in found}),
        "seeds": len(best.runs),
        "val_loss": best.val_loss,
        "run": run.name,
    }
    with atomic_folder(folder, foreign_entries) as partial:
        for name in FILES:
            if (source / name).is_file():
                shutil.copy(source / name, partial)
        replace(record, training={**record.training, "grid_search": grid}).save(partial / RECORD)
    return folder


def table(found: Sequence[Cell], best: Cell) -> str:
    """Validation loss by learning rate (rows) and batch size (columns), as text; the winner is marked."""
    batches = sorted({cell.batch_size for cell in found})
    by_place = {(cell.lr, cell.batch_size): cell for cell in found}
    lines = [f"{'lr':>10}" + "".join(f"{f'batch {batch}':>16}" for batch in batches)]
    for lr in sorted({cell.lr for cell in found}):
        line = f"{lr:>10g}"
        for batch in batches:
            cell = by_place[lr, batch]
            text = "diverged" if cell.val_loss is None else f"{cell.val_loss:.4f}"
            line += f"{text + (' <' if cell is best else '  '):>16}"
        lines.append(line)
    return "\n".join(lines)


def heat_map(found: Sequence[Cell], best: Cell, title: str, path: Path) -> None:
    """Draw the cells' validation losses."""
    columns, lines = (len({getattr(cell, name) for cell in found}) for name in ("batch_size", "lr"))
    with picture(path, width=2.4 + 1.1 * columns, height=1.8 + 0.55 * lines) as axes:
        draw_cells(axes, found, best)
        axes.set_title(title, fontsize="medium")
