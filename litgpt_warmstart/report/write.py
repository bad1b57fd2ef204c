"""Folders of runs in, a page and its tables out."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import write_whole
from litgpt_warmstart.report import sections
from litgpt_warmstart.report.chains import chains, successive
from litgpt_warmstart.report.compare import compare_all
from litgpt_warmstart.report.layers import add_norms
from litgpt_warmstart.report.page import FIGURES, MARK, TABLES, Kind, Section, as_csv, listed_files, render, writing
from litgpt_warmstart.report.runs import find

PAGE = "index.html"


def write_report(
    paths: Sequence[Path], out_dir: Path, kinds: Sequence[Kind] = (), picture: Path | None = None
) -> list[Section]:
    """Write the report on all runs beneath folders.

    Args:
        paths: Folders of runs, or of folders of runs.
        out_dir: Gets index.html and tables/; an earlier report there is replaced.
        kinds: Of studies whose folders are looked for, too.
        picture: Gets the first comparison's losses as a PNG file.

    Returns:
        The page's sections.

    Raises:
        UserError: There is nothing to report, or ``out_dir`` holds another page or cannot be written.
    """
    found = find(paths, [results for results, _ in kinds])
    compared = compare_all(found)
    linked = chains(found, compared)
    chained = [run for chain in linked for run in chain.stages if run.status == "finished"]
    compared.notes = [(run, why) for run, why in compared.notes if run not in chained]
    pairs = sections.pairs(compared)
    add_norms(pairs, compared, found)
    made = [
        sections.answer(compared, found),
        *([pairs] if pairs.parts else []),
        *([successive(linked)] if linked else []),
    ]
    made += filter(None, (section(found) for _, section in kinds))
    made += [sections.all_runs(found)] if found.runs or found.left_out else []
    parts = [part for section in made for part in section.whole]
    files = {f"{TABLES}/{table.name}.csv": as_csv(table.frame) for part in parts for table in part.tables}
    below = f"Made by litgpt warmstart_report {', '.join(map(str, paths))}; Python {platform.python_version()}."
    with writing("--out_dir", out_dir):
        _replace(out_dir, render("Did the warmstart pay?", made, below, sorted(files)), files)
    if picture:
        if not compared.comparisons:
            raise UserError("--picture shows a warmstart beside its run from scratch, and there is none")
        with writing("--picture", picture):
            picture.parent.mkdir(parents=True, exist_ok=True)
            write_whole(picture, pairs.parts[0].figures[0].png)
    return made


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
