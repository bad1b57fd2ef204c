"""Results as CSV, and the colours of pictures."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import write_whole

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, told apart by the colour-blind."""


FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a formula begins with."""


def write_picture(figure: Any, path: Path, dpi: int) -> None:
    """Write a matplotlib figure, whole or not at all and never through a link, in the format that its name says."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:].lower(), dpi=dpi)
    write_whole(path, drawn.getvalue())


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows under the columns of the first; ``None`` is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows({name: _harmless(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as :func:`as_csv` has them, whole or not at all.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, as_csv(rows))
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror}: choose another --out_dir") from error


def _harmless(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: text that begins like one gets an apostrophe; numbers stay."""
    if not isinstance(value, str | Path) or not str(value).startswith(FORMULA) or str(value) == "-":
        return value
    try:
        float(value)
    except (TypeError, ValueError):
        return f"'{value}"
    return value
