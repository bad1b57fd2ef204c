"""The folder of a study: nothing of a user's is replaced, and one process at a time is at it."""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas

from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.files import LOCK, entries, locked, removed_if_empty
from litgpt_warmstart.report.page import Section, writing
from litgpt_warmstart.report.runs import display_names
from litgpt_warmstart.run.folder import check_writable
from litgpt_warmstart.run.metrics import FILE_NAME


def check_results(table: Path, columns: Sequence[str], *beside: str) -> None:
    """Raise a UserError where a study would write its results over something that is not an earlier study's.

    An earlier study's CSV file begins with ``columns``; what is named in ``beside`` is written beside it, after it.
    """
    if os.path.lexists(table):
        text = table.read_text(encoding="utf-8", errors="replace") if table.is_file() else ""
        theirs = [] if text.startswith(",".join(columns) + ",") else [table]
    else:
        theirs = [table.parent / name for name in beside if os.path.lexists(table.parent / name)]
    if theirs:
        raise UserError(
            f"{str(theirs[0])!r} was not written by this command, which would write there: move it, or choose another"
            " --out_dir"
        )


@contextmanager
def study_folder(out_dir: Path) -> Iterator[None]:
    """Keep other processes out of a study's folder, which is no run's; one that was made for nothing goes again."""
    if (out_dir / FILE_NAME).exists() or (out_dir / "final").exists():
        raise UserError(f"--out_dir {str(out_dir)!r} is the folder of a run: choose another for the study")
    check_writable(out_dir)
    made = not out_dir.exists()
    with removed_if_empty(out_dir.parent):
        with writing("--out_dir", out_dir):
            out_dir.mkdir(parents=True, exist_ok=True)
        with locked(out_dir, f"another process is at the study in {str(out_dir)!r}: wait for it, or choose another"):
            try:
                yield
            finally:
                if made and entries(out_dir) == [LOCK]:
                    (out_dir / LOCK).unlink()
                    out_dir.rmdir()


def read_table(path: Path) -> pandas.DataFrame:
    """A study's results, every cell as text."""
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    if any(None in row or None in row.values() for row in rows):
        raise ValueError("a row has more or fewer columns than the others")
    return pandas.DataFrame(rows)


def section_of(
    title: str, sentence: str, folders: Sequence[Path], part: Callable[[str, Path, int], Section]
) -> Section | None:
    """A section with a part for each folder of a study, made of its name, itself and the part's number; None of none.

    One whose files cannot be read has a note instead.
    """
    section = Section(title, sentence)
    for name, folder in zip(display_names(folders), folders, strict=True):
        try:
            section.parts.append(part(name, folder, len(section.parts) + 1))
        except (OSError, ValueError, KeyError, TypeError, UserError) as error:
            section.notes.append(f"Left out: {name}: damaged or half-written: {one_line(error, 100)}")
    return section if folders else None
