"""Folders of runs in, a page with its figures and tables out."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import write_whole
from litgpt_warmstart.report import grids, layers, sections
from litgpt_warmstart.report.chains import chains
from litgpt_warmstart.report.groups import compare_all
from litgpt_warmstart.report.html import FIGURES, MARK, TABLES, Section, listed_files, render
from litgpt_warmstart.report.old_runs import find
from litgpt_warmstart.report.tables import as_csv

PAGE = "index.html"


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
    made: list[Section] = [sections.answer(compared, linked, found.unread, names)]
    if compared.comparisons:
        made += [sections.losses(compared, names), sections.gains(compared)]
        made.append(sections.scale_pairs(compared, names))
    if linked:
        made.append(sections.successive(linked, names))
    if tracked := layers.norms([run for run in found.runs if id(run) not in again], names):
        made.append(tracked)
    answers, notes = list(made[0].answers), list(made[0].notes)
    if found.coord_checks:
        made.append(layers.coordinate_checks(found.coord_checks))
        notes += made[-1].notes
    if found.grid_searches:
        made.append(grids.grid_searches(found.grid_searches, found.runs, names))
        answers, notes = answers + made[-1].answers, notes + made[-1].notes
    if found.runs or found.unread:
        made.append(sections.all_runs(found.runs, found.unread, names))
    files: dict[str, str | bytes] = {}
    for section in made:
        for figure in section.figures:
            files |= {f"{FIGURES}/{figure.slug}.svg": figure.svg_file, f"{FIGURES}/{figure.slug}.png": figure.png}
        files |= {f"{TABLES}/{table.name}.csv": as_csv(table.rows) for table in section.tables}
    given = ", ".join(str(path) for path in paths)
    below = f"Made by litgpt warmstart_report {given}; Python {platform.python_version()}."
    try:
        _replace(out_dir, render("Did the warmstart pay?", made, below, sorted(files)), files)
    except OSError as error:
        raise UserError(f"cannot write --out_dir {str(out_dir)!r}: {error.strerror}: choose another") from error
    return Written(out_dir / PAGE, answers, made[0].words, notes)


def _replace(out_dir: Path, page: str, files: Mapping[str, str | bytes]) -> None:
    """Write a page and its files in the place of an earlier report's, and nothing else's.

    The page goes first: it lists the files, so that the next report knows them whatever happens to this one.

    Raises:
        UserError: The page there is not a report's, or a file of a new one's name is not listed in it.
    """
    before, listed = out_dir / PAGE, set()
    if os.path.lexists(before):
        text = before.read_text(encoding="utf-8", errors="replace") if before.is_file() else ""
        if MARK not in text:
            raise UserError(f"--out_dir {str(out_dir)!r} holds an {PAGE} that is no report: choose another")
        listed = listed_files(text)
    for name in (FIGURES, TABLES):
        if (out_dir / name).is_symlink():
            raise UserError(f"{str(out_dir / name)!r} is a link, which is not followed: choose another --out_dir")
    if theirs := [name for name in files if name not in listed and os.path.lexists(out_dir / name)]:
        raise UserError(
            f"{str(out_dir / theirs[0])!r} is not of the report in --out_dir, and a new one would write there: move it,"
            " or choose another"
        )
    for name in sorted(listed - files.keys()):
        (out_dir / name).unlink(missing_ok=True)
    out_dir.mkdir(parents=True, exist_ok=True)
    write_whole(before, page)
    for name, content in files.items():
        (out_dir / name).parent.mkdir(exist_ok=True)
        write_whole(out_dir / name, content)
    for name in (FIGURES, TABLES):
        if (out_dir / name).is_dir() and not any((out_dir / name).iterdir()):
            (out_dir / name).rmdir()
