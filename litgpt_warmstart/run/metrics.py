"""metrics.csv: one row per logged event of a run, readable with any spreadsheet, and files of rows in general."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from litgpt_warmstart.errors import BrokeOff
from litgpt_warmstart.files import free_name, write_whole

Row = dict[str, Any]


@dataclass(frozen=True)
class RowFormat:
    """What a CSV file holds whose rows begin with their optimizer step."""

    columns: Mapping[str, Callable[[str], Any]]
    """By name what makes a value of a cell, None of an empty one, or raises a ValueError where it cannot be one."""
    optional: int = 0
    """How many of the last columns an older version's file may lack."""

    @property
    def headers(self) -> list[str]:
        """What such a file begins with, the present version's first."""
        names = list(self.columns)
        return [",".join(names[: len(names) - lacking]) for lacking in range(1 + self.optional)]

    def read(self, path: Path) -> list[Row]:
        """A file's rows without empty cells. Those that cannot be read are counted in a line; a missing file has none.

        A last row that has no end of line was cut off when the run was killed, and is dropped.
        """
        rows, told = self._read(path)
        if told:
            print(f"Warning: {told}")
        return [row for _, row in rows]

    def keep(self, path: Path, resume_step: int | None) -> list[Row]:
        """Write a file anew with its rows up to a step; None keeps none. One with unreadable rows is kept aside, too.

        Returns:
            The rows that stay.
        """
        rows, told = ([], "") if resume_step is None else self._read(path)
        if told:
            aside = free_name(path, f"{path.name}.damaged")
            write_whole(aside, path.read_bytes())
            print(f"Warning: {told}; the file as it was is {str(aside)!r}")
        kept = [(cells, row) for cells, row in rows if row["step"] <= (resume_step or 0)]
        lines = [self.columns, *([cells.get(column, "") for column in self.columns] for cells, _ in kept)]
        write_whole(path, "".join(map(_line, lines)))
        return [row for _, row in kept]

    def _read(self, path: Path) -> tuple[list[tuple[dict[str, str], Row]], str]:
        """The rows that can be read, as cells and as values, and how many cannot, in words."""
        if not path.is_file():
            return [], ""
        text = path.read_bytes().decode(errors="surrogateescape")  # whose replacements are in no number and no name
        header, *lines = [line.removesuffix("\r") for line in text.split("\n")[:-1]] or [""]
        unread = int(header not in self.headers)
        names = (self.headers[0] if unread else header).split(",")
        rows = []
        for line in lines:
            try:
                cells = dict(zip(names, line.split(","), strict=True))
                values = {name: self.columns[name](cell) for name, cell in cells.items()}
                rows.append((cells, {name: value for name, value in values.items() if value is not None}))
            except ValueError:
                unread += 1
        told = f"{path}: {unread} of {1 + len(lines)} lines could not be read and are left out" if unread else ""
        return rows, told


def whole_number(cell: str) -> int:
    """A count; raises a ValueError where the cell is none."""
    if not (cell.isascii() and cell.isdigit()):
        raise ValueError(f"{cell!r} is no count")
    return int(cell)


def number(cell: str) -> float | None:
    """A number; None where the cell is empty."""
    return float(cell) if cell else None


FILE_NAME = "metrics.csv"
_NUMBERS = ("loss", "val_loss", "learning_rate", "tokens_per_sec", "seconds", "matmul_flops", "hoffmann_flops",
            "grad_norm", "val_perplexity", "val_bits_per_byte")  # fmt: skip
METRICS = RowFormat({"step": whole_number, "tokens": whole_number, **dict.fromkeys(_NUMBERS, number)}, optional=4)
read_metrics = METRICS.read
LOGGED_AS = {
    "loss": "train/loss", "learning_rate": "train/learning_rate", "grad_norm": "train/grad_norm",
    "val_loss": "val/loss", "val_perplexity": "val/perplexity", "val_bits_per_byte": "val/bits_per_byte",
    "tokens": "throughput/tokens", "tokens_per_sec": "throughput/tokens_per_sec", "seconds": "throughput/time",
    "mfu": "throughput/device/mfu", "seconds_left": "throughput/remaining_time",
}  # fmt: skip
"""What loggers get a value as, too: names that LitGPT's and W&B's users know."""


class RowFile:
    """A file of rows that is being written.

    Rows outlive this process when :meth:`append` returns, and a loss of power when :meth:`flush_to_disk` does.

    Args:
        path: The file; a link there is replaced, not followed.
        format: What it holds.
        resume_step: Keep the rows up to this step of an earlier part of the run; None starts anew.
    """

    def __init__(self, path: Path, format: RowFormat, resume_step: int | None = None) -> None:
        self.path, self.columns = path, format.columns
        self.kept = format.keep(path, resume_step)
        """The rows up to ``resume_step``."""
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
        opened, left = os.fstat(self._file.fileno()), text.encode()
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file.fileno(), opened.st_size)
            raise BrokeOff(f"cannot write {str(self.path)!r} ({error.strerror})") from error
        if not (self.path.exists() and os.path.samestat(self.path.stat(), opened)):  # what is written would be lost
            raise BrokeOff(f"{str(self.path)!r} has been removed or renamed in mid-run")

    def flush_to_disk(self) -> None:
        """Have the rows on disk against a loss of power; raises a BrokeOff where they cannot be written."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise BrokeOff(f"cannot write {str(self.path)!r} ({error.strerror})") from error

    def close(self) -> None:
        """Close the file; rows that could not be written were told of before."""
        with suppress(OSError):
            self._file.close()


class Metrics:
    """What a run goes by of its rows; of several processes only the first has a file of them."""

    def __init__(self, kept: Sequence[Row], file: RowFile | None = None) -> None:
        self.file = file
        self.seconds = max((row.get("seconds", 0.0) for row in kept), default=0.0)
        """Training time up to the step that the run goes on from."""
        self.val_losses: dict[float, float] = {}
        """By step, all so far."""
        self._first_train_loss: float | None = None
        for row in kept:
            self._take_in(row)

    @property
    def first_loss(self) -> float | None:
        """Validation loss before the first step, else the training loss of the first row that has one."""
        return self.val_losses.get(0, self._first_train_loss)

    def write(self, **row: float) -> None:
        """Take in one row, and append it to the file; see :meth:`RowFile.append`."""
        self._take_in(row)
        if self.file:
            self.file.append([row])

    def _take_in(self, row: Row) -> None:
        if "val_loss" in row:
            self.val_losses[row["step"]] = row["val_loss"]
        if self._first_train_loss is None:
            self._first_train_loss = row.get("loss")


NOISE = 0.05
"""Nats by which a validation loss may move without a cause."""


def ended_diverged(first_loss: float | None, last_val_loss: float | None, classes: int) -> bool:
    """Whether a run that came to its end is worth nothing: its last loss is not finite, or above its first and chance.

    Above by more than :data:`NOISE`: a run of a step or two, or one that has learnt nothing, has not diverged. All
    ``classes`` alike have a loss of their number's logarithm. Where the first loss is not known, nothing is said.
    """
    if last_val_loss is None or not math.isfinite(last_val_loss):
        return last_val_loss is not None
    return first_loss is not None and last_val_loss > NOISE + max(math.log(classes), first_loss)


def _line(cells: Iterable[str]) -> str:
    """A row as the csv module writes it; our cells hold no commas and no quotes."""
    return ",".join(cells) + "\r\n"


def _cell(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return str(int(value)) if math.isfinite(value) and value == int(value) else f"{value:.8g}"
