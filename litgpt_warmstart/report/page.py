"""One HTML page that needs nothing else: sections of words, tables and figures, put into ``page.html.jinja``.

A section says nothing of HTML; a table's ``frame`` becomes tables/NAME.csv beside the page, and ``shown`` is what the
page has of it. Figures come from :mod:`.figures`, which alone draws. A kind of study is shown by a function ``section``
of its module in ``study/``, which finds its folders in :attr:`.runs.Found.results` by ``RESULTS``, the name of a file
or a pattern.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape, unescape
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import removed_if_empty, write_whole
from litgpt_warmstart.report.figures import Figure
from litgpt_warmstart.report.runs import Found

TEMPLATE = Path(__file__).with_name("page.html.jinja")
MARK = '<meta name="generator" content="litgpt warmstart_report">'
"""Stands in every page, so that a later report knows what it may replace."""
FIGURES, TABLES = "figures", "tables"
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a formula begins with."""
_FILES = "litgpt-warmstart-files"
_FILE = re.compile(rf"{FIGURES}/[A-Za-z0-9_-]+\.(svg|png)|{TABLES}/[A-Za-z0-9_-]+\.csv", re.ASCII)
_UNLINKED = ("gains", "grid_searches", "layer_norms", "norms_over_training", "pairs", "validation_losses")
"""Tables that a page of the first landing did not link to."""


@dataclass(frozen=True)
class Table:
    """A table of the page and of a CSV file."""

    name: str
    """Of the file, tables/NAME.csv."""
    caption: str
    frame: pd.DataFrame
    """As the file has it; its index is left out."""
    shown: pd.DataFrame | None = None
    """As the page has it; None for a table that is only a file. Rows of one ``comparison`` stand below its name."""
    folded: bool = False
    """Whether the page shows it only when asked to."""


@dataclass
class Section:
    """A heading and what stands under it, in this order."""

    title: str
    sentence: str = ""
    """What to look at, and how it was made; only on the page."""
    answers: list[str] = field(default_factory=list)
    """What came out; the terminal says it, too."""
    printed: str = ""
    """What the terminal shows above the answers; not on the page, which has figures."""
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was left out and why; the terminal says it, too."""
    parts: list["Section"] = field(default_factory=list)
    """Sections within it, such as one for each pair."""

    @property
    def anchor(self) -> str:
        return "-".join(re.findall(r"[a-z0-9]+", self.title.lower()))

    @property
    def whole(self) -> list["Section"]:
        """The section and all within it, in reading order."""
        return [self, *(inner for part in self.parts for inner in part.whole)]


Kind = tuple[str, Callable[[Found], Section | None]]
"""A kind of study: the file, or pattern, by which its folders are known, and what the page says of them; None for
nothing."""


def render(title: str, sections: Sequence[Section], below: str, files: Sequence[str] = ()) -> str:
    """The page: sections under a title, a last line on what made it, and, unseen, the files that lie beside it."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    listed = escape(json.dumps(list(files)), quote=True)
    head = Markup(f'{MARK}\n<meta name="{_FILES}" content="{listed}">')
    return template.render(title=title, sections=sections, below=below, head=head)


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """A table as the page has it: numbers to five digits, and a dash where there is nothing."""

    def cell(value: Any) -> Any:
        if isinstance(value, float):
            return "-" if math.isnan(value) else f"{value:.5g}"
        return f"{value:,}" if isinstance(value, int) else value

    return frame.rename(columns=lambda column: str(column).replace("_", " ")).map(cell)


def as_csv(frame: pd.DataFrame) -> str:
    """A table's rows as CSV, without its index; what is missing is an empty cell."""
    return frame.map(_harmless).to_csv(index=False, lineterminator="\r\n")


def as_text(frame: pd.DataFrame) -> str:
    """A table of words in lines, its first column to the left."""
    heading, *_ = frame.columns
    width = max(map(len, (heading, *frame[heading])))
    return frame.rename(columns={heading: heading.ljust(width)}).to_string(
        index=False, formatters={heading.ljust(width): lambda cell: cell.ljust(width)}
    )


@contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """Have what a user named, and cannot be written, told in one line."""
    try:
        with removed_if_empty(path):
            yield
    except OSError as error:
        raise UserError(f"cannot write {option} {str(path)!r}: {error.strerror}: choose another") from error


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as :func:`as_csv` has it, whole or not at all."""
    with writing("--out_dir", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, as_csv(frame))


def _harmless(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: text that begins like one gets an apostrophe; numbers stay."""
    if not isinstance(value, str) or not value.startswith(FORMULA) or value == "-":
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def listed_files(page: str) -> set[str]:
    """The files that a page of ours says it has written: tables/NAME.csv, of older ones figures/NAME.svg and .png, too.

    A page of the first landing, which has no list, links to most of them.
    """
    found = re.search(rf'<meta name="{_FILES}" content="([^"]*)">', page)
    try:
        named = json.loads(unescape(found[1])) if found else re.findall(r'<a href="([^"]*)">', page)
    except ValueError:
        named = []
    if not found:
        named += [f"{TABLES}/{name}.csv" for name in _UNLINKED]
    kept = named if isinstance(named, list) else []
    return {name for name in kept if isinstance(name, str) and _FILE.fullmatch(name)}
