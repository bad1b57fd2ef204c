"""Folders of runs in, a page with its figures and tables out."""

import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import write_whole
from litgpt_warmstart.report import grids, layers, sections
from litgpt_warmstart.report.chains import chains
from litgpt_warmstart.report.groups import compare_all
from litgpt_warmstart.report.page import MARK, Section, render
from litgpt_warmstart.report.runs import find
from litgpt_warmstart.report.tables import write_csv

PAGE, FIGURES, TABLES = "index.html", "figures", "tables"


@dataclass(frozen=True)
class Written:
    """What the page says first and of grids, what it leaves out, and where it is."""

    page: Path
    answers: list[tuple[str, list[str]]]
    words: list[str]
    notes: list[str]


def write_report(paths: Sequence[Path], out_dir: Path) -> Written:
    """Write the report on all runs beneath folders.

    Args:
        paths: Folders of runs, or of folders of runs.
        out_dir: Gets index.html, figures/ and tables/; an earlier report there is replaced.

    Raises:
        UserError: There is nothing to report, or ``out_dir`` holds another page or cannot be written.
    """
    found = find(paths)
    names = {run.out_dir: f"R{number}" for number, run in enumerate(found.runs, start=1)}
    compared = compare_all(found.runs)
    beside = [run for comparison in compared.comparisons for run in comparison.runs]
    again = {id(run) for run in compared.repetitions}
    linked = chains([run for run in found.runs if id(run) not in again], beside)
    chained = {id(run) for chain in linked for run in chain.stages}
    compared.notes = [(r, why) for r, why in compared.notes if id(r) not in chained or r.status != "finished"]
    try:
        _clear(out_dir)
        figures = out_dir / FIGURES
        made: list[Section] = [sections.answer(compared, linked, found.unread, names)]
        if compared.comparisons:
            made += [sections.losses(compared, names, figures), sections.gains(compared, figures)]
            made.append(sections.scale_pairs(compared, names, figures))
        if linked:
            made.append(sections.successive(linked, names, figures))
        if tracked := layers.norms([run for run in found.runs if id(run) not in again], names, figures):
            made.append(tracked)
        answers, notes = list(made[0].answers), list(made[0].notes)
        if found.coord_checks:
            made.append(layers.coordinate_checks(found.coord_checks, figures))
            notes += made[-1].notes
        if found.grid_searches:
            made.append(grids.grid_searches(found.grid_searches, found.runs, names, figures))
            answers, notes = answers + made[-1].answers, notes + made[-1].notes
        if found.runs or found.unread:
            made.append(sections.all_runs(found.runs, found.unread, names))
        for table in (table for section in made for table in section.tables):
            write_csv(out_dir / TABLES / f"{table.name}.csv", table.rows)
        given = ", ".join(str(path) for path in paths)
        below = f"Made by litgpt warmstart_report {given}; Python {platform.python_version()}."
        write_whole(out_dir / PAGE, render("Did the warmstart pay?", made, below))
    except OSError as error:
        raise UserError(f"cannot write --out_dir {str(out_dir)!r}: {error.strerror}: choose another") from error
    return Written(out_dir / PAGE, answers, made[0].words, notes)


def _clear(out_dir: Path) -> None:
    """Remove an earlier report's figures and tables.

    Raises:
        UserError: The page there is not a report's.
    """
    page = out_dir / PAGE
    if page.is_file():
        if MARK not in page.read_text(encoding="utf-8", errors="replace"):
            raise UserError(f"--out_dir {str(out_dir)!r} holds an {PAGE} that is no report: choose another")
        for name in (FIGURES, TABLES):
            shutil.rmtree(out_dir / name, ignore_errors=True)
    out_dir.mkdir(parents=True, exist_ok=True)
