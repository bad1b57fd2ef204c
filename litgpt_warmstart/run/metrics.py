"""metrics.csv: one row per logged event of a run, readable with any spreadsheet, and files of rows in general."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from litgpt_warmstart.errors import BrokeOff
from litgpt_warmstart.files import free_name, write_whole

FILE_NAME = "metrics.csv"
COLUMNS = (
    "step", "tokens", "loss", "val_loss", "learning_rate", "tokens_per_sec", "seconds", "matmul_flops", "hoffmann_flops"
)  # fmt: skip
HEADERS = (COLUMNS, COLUMNS[:-1])
"""What a metrics.csv of ours begins with, an older version's too."""

Cells = dict[str, str]


class RowFile:
    """A CSV file of rows that begin with their optimizer step.

    Rows outlive this process when :meth:`append` returns, and a loss of power when :meth:`flush_to_disk` does.

    Args:
        path: The file; a link there is replaced, not followed.
        columns: Its columns.
        check: Raises a ValueError for cells that are no row of such a file.
        resume_step: Keep the rows up to this step of an earlier part of the run; None starts anew.
    """

    def __init__(
        self, path: Path, columns: tuple[str, ...], check: Callable[[Cells], object], resume_step: int | None = None
    ) -> None:
        self.path, self.columns = path, columns
        self.kept = keep_rows(path, columns, check, resume_step)
        """Cells of the rows up to ``resume_step``."""
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
        self._file = os.fdopen(descriptor, "ab", buffering=0)

    def append(self, rows: Iterable[Mapping[str, float | str]]) -> None:
        """Append rows, all of them or none; columns left out stay empty.

        Raises:
            KeyError: A value's name is not one of the columns.
            BrokeOff: They cannot be written, or the file has gone from its place.
        """
        text = ""
        for row in rows:
            if unknown := row.keys() - set(self.columns):
                raise KeyError(f"no column {sorted(unknown)} in {self.path.name}")
            text += _line(_cell(row.get(column)) for column in self.columns)
        size, left = os.fstat(self._file.fileno()).st_size, text.encode()
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file.fileno(), size)
            raise BrokeOff(f"cannot write {str(self.path)!r} ({error.strerror})") from error
        if not self._is_in_place():  # what is written would be lost
            raise BrokeOff(f"{str(self.path)!r} has been removed or renamed in mid-run")

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno()))
        except OSError:
            return False

    def flush_to_disk(self) -> None:
        """Have the rows on disk against a loss of power.

        Raises:
            BrokeOff: They cannot be written.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise BrokeOff(f"cannot write {str(self.path)!r} ({error.strerror})") from error

    def close(self) -> None:
        """Close the file; rows that could not be written were told of before."""
        with suppress(OSError):
            self._file.close()


class MetricsFile(RowFile):
    """metrics.csv.

    Args:
        out_dir: Folder of the run.
        resume_step: Keep the rows up to this step of an earlier part of the run; None starts anew.
    """

    def __init__(self, out_dir: Path, resume_step: int | None = None) -> None:
        super().__init__(out_dir / FILE_NAME, COLUMNS, numbers, resume_step)
        kept = [numbers(row) for row in self.kept]
        self.seconds = max((row.get("seconds", 0.0) for row in kept), default=0.0)
        """Training time up to ``resume_step``."""
        self.val_losses = {row["step"]: row["val_loss"] for row in kept if "val_loss" in row}
        """All so far."""
        self.validated = {int(step) for step in self.val_losses}
        """Steps up to ``resume_step`` that have one."""

    def write(self, **row: float) -> None:
        """Append one row; see :meth:`append`."""
        if "val_loss" in row:
            self.val_losses[row["step"]] = row["val_loss"]
        self.append([row])


def numbers(cells: Cells) -> dict[str, float]:
    """The numbers of a row of metrics.csv, empty cells left out.

    Raises:
        ValueError: A cell is no number, or step or tokens are missing.
    """
    row = {column: float(cell) for column, cell in cells.items() if cell}
    whole_number(cells["step"])
    whole_number(cells["tokens"])
    return row


def whole_number(cell: str) -> int:
    """A count.

    Raises:
        ValueError: The cell is none, or below 0.
    """
    if not (cell.isascii() and cell.isdigit()):
        raise ValueError(f"{cell!r} is no count")
    return int(cell)


def keep_rows(
    path: Path, columns: tuple[str, ...], check: Callable[[Cells], object], resume_step: int | None
) -> list[Cells]:
    """Write a file anew with its rows up to a step; None keeps none. One with rows that cannot be read is kept aside.

    Returns:
        Their cells.
    """
    rows, told = ([], "") if resume_step is None else _read(path, columns, check)
    if told:
        aside = free_name(path, f"{path.name}.damaged")
        write_whole(aside, path.read_bytes())
        print(f"Warning: {told}; the file as it was is {str(aside)!r}")
    kept = [row for row in rows if int(row["step"]) <= (resume_step or 0)]
    write_whole(path, _line(columns) + "".join(_line(row.get(column, "") for column in columns) for row in kept))
    return kept


def read_rows(path: Path, columns: tuple[str, ...], check: Callable[[Cells], object]) -> list[Cells]:
    """Cells of a file's rows by column. Rows that cannot be read are left out, and counted in a line.

    A last row that has no end of line was cut off when the run was killed, and is dropped.

    Args:
        path: The file; a missing one has no rows.
        columns: What its header says where that is damaged; an older version's may say less.
        check: Raises a ValueError for cells that are no row of such a file.
    """
    rows, told = _read(path, columns, check)
    if told:
        print(f"Warning: {told}")
    return rows


def _read(path: Path, columns: tuple[str, ...], check: Callable[[Cells], object]) -> tuple[list[Cells], str]:
    """The rows that can be read, and how many cannot, in words."""
    if not path.is_file():
        return [], ""
    text = path.read_bytes().decode(errors="surrogateescape")  # whose replacements are in no number and no name
    header, *lines = text.split("\n")[:-1] or [""]
    named: Sequence[str] = header.removesuffix("\r").split(",")
    unread = 0
    if "step" not in named or not set(named) <= set(columns):
        named, unread = columns, 1
    rows = []
    for line in lines:
        try:
            row = dict(zip(named, line.removesuffix("\r").split(","), strict=True))
            check(row)
            rows.append(row)
        except (ValueError, KeyError):
            unread += 1
    told = f"{path}: {unread} of {1 + len(lines)} lines could not be read and are left out" if unread else ""
    return rows, told


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv, empty cells left out, without those that cannot be read; see :func:`read_rows`."""
    return [numbers(row) for row in read_rows(path, COLUMNS, numbers)]


NOISE = 0.05
"""Nats by which a validation loss may move without a cause."""


def ended_diverged(first_val_loss: float | None, last_val_loss: float | None, classes: int) -> bool:
    """Whether a run that came to its end is worth nothing: its last loss is not finite, or above its first and chance.

    Above by more than :data:`NOISE`: a run of one step, or one that has learnt nothing, has not diverged.

    Args:
        first_val_loss: The run's first; None where it has none.
        last_val_loss: The run's last.
        classes: Of the model, padded: all alike have a loss of its logarithm.
    """
    if last_val_loss is None:
        return False
    if not math.isfinite(last_val_loss):
        return True
    return last_val_loss > NOISE + max(math.log(classes), -math.inf if first_val_loss is None else first_val_loss)


def _line(cells: Iterable[str]) -> str:
    """A row as the csv module writes it; our cells hold no commas and no quotes."""
    return ",".join(cells) + "\r\n"


def _cell(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return str(int(value)) if math.isfinite(value) and value == int(value) else f"{value:.8g}"
