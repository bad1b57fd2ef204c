"""Folders of runs in, a page and its tables out."""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import write_whole
from litgpt_warmstart.report import sections
from litgpt_warmstart.report.chains import chains, successive
from litgpt_warmstart.report.compare import compare_all
from litgpt_warmstart.report.layers import add_norms
from litgpt_warmstart.report.page import FIGURES, MARK, TABLES, Kind, Section, as_csv, listed_files, render
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
    runs = find(paths, [kind.RESULTS for kind in kinds])
    compared = compare_all(runs)
    linked = chains(runs, compared)
    chained = {stage["run"] for chain in linked for stage in chain.stages if stage["status"] == "finished"}
    compared.notes = [(run, why) for run, why in compared.notes if run["run"] not in chained]
    made = [sections.answer(compared, runs)]
    pairs = sections.pairs(compared, runs)
    add_norms(pairs, compared, runs)
    made += [pairs] if pairs.parts else []
    if linked:
        made.append(successive(linked, runs))
    made += [section for kind in kinds if (section := kind.section(runs))]
    if len(runs.table) or len(runs.left_out):
        made.append(sections.all_runs(runs))
    parts = [part for section in made for part in section.whole]
    files = {f"{TABLES}/{table.name}.csv": as_csv(table.frame) for part in parts for table in part.tables}
    below = f"Made by litgpt warmstart_report {', '.join(map(str, paths))}; Python {platform.python_version()}."
    with _writing("--out_dir", out_dir):
        _replace(out_dir, render("Did the warmstart pay?", made, below, sorted(files)), files)
    if picture:
        if not compared.comparisons:
            raise UserError("--picture shows a warmstart beside its run from scratch, and there is none")
        with _writing("--picture", picture):
            picture.parent.mkdir(parents=True, exist_ok=True)
            write_whole(picture, pairs.parts[0].figures[0].png)
    return made


@contextmanager
def _writing(option: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {option} {str(path)!r}: {error.strerror}: choose another") from error


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
