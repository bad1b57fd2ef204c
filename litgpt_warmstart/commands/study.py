"""What the commands of the study share: lists as typed, and options that a single run has but a study has not."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import LOCK, entries, locked
from litgpt_warmstart.run.metrics import FILE_NAME
from litgpt_warmstart.run.resume import check_writable
from litgpt_warmstart.run.spec import EvalArgs, TrainArgs
from litgpt_warmstart.study.runner import StudyRun

T = TypeVar("T")
Plan = Literal["tokens", "time"]


def as_list(value: object, kind: Callable[[object], T], option: str, once: bool = True) -> list[T]:
    """The elements of an option's value, ``1,2,3`` as typed, or a list as YAML has it.

    Args:
        value: A string with commas, a number, or a list.
        kind: Makes an element, and raises ValueError or TypeError for what is none.
        option: For messages.
        once: Leave out repeated ones.

    Raises:
        UserError: There is none, or one is of another kind.
    """
    if isinstance(value, str):
        parts: Sequence[object] = [part.strip() for part in value.strip("[] ").split(",") if part.strip()]
    else:
        parts = value if isinstance(value, list | tuple) else [value]
    try:
        elements = [kind(part) for part in parts]
    except (ValueError, TypeError):
        raise UserError(f"{option} {value}: give {kind.__name__} values with commas between them") from None
    if not elements:
        raise UserError(f"{option} is empty: give at least one value")
    return list(dict.fromkeys(elements)) if once else elements


def check_eval(eval: EvalArgs) -> None:
    """Raise a UserError where a run's first or last validation loss would be missing: a study compares them."""
    for name in ("initial_validation", "final_validation"):
        if not getattr(eval, name):
            raise UserError(
                f"--eval.{name} false would leave a study without the losses that it compares: leave it out"
            )


def check_out_dir(out_dir: Path) -> None:
    """Raise a UserError for the folder of a run: a study has folders of runs in its own."""
    if (out_dir / FILE_NAME).exists() or (out_dir / "final").exists():
        raise UserError(f"--out_dir {str(out_dir)!r} is the folder of a run: choose another for the study")


def check_results(table: Path, columns: Sequence[str], *beside: str) -> None:
    """Raise a UserError where a study would write its results over something that is not an earlier study's.

    Args:
        table: The CSV file of the results; an earlier study's begins with ``columns``.
        columns: Its first ones.
        beside: Names of what is written beside it, after it.
    """
    if os.path.lexists(table):
        told = table.read_text(encoding="utf-8", errors="replace") if table.is_file() else ""
        theirs = [] if told.startswith(",".join(columns) + ",") else [table]
    else:
        theirs = [table.parent / name for name in beside if os.path.lexists(table.parent / name)]
    if theirs:
        raise UserError(
            f"{str(theirs[0])!r} was not written by this command, which would write there: move it, or choose another"
            " --out_dir"
        )


@contextmanager
def study_folder(out_dir: Path) -> Iterator[None]:
    """Keep other processes out of a study's folder; one that was made for nothing goes again.

    Raises:
        UserError: One is there already, or the folder cannot be written.
    """
    check_writable(out_dir)
    made = not out_dir.exists()
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write --out_dir {str(out_dir)!r}: {error.strerror}: choose another") from error
    with locked(out_dir, f"another process is at the study in {str(out_dir)!r}: wait for it, or choose another"):
        try:
            yield
        finally:
            if made and entries(out_dir) == [LOCK]:
                (out_dir / LOCK).unlink()
                out_dir.rmdir()


def refuse(train: TrainArgs, names: Sequence[str], remedy: str) -> None:
    """Raise a UserError for training options that would make a study's runs unequal."""
    for name in names:
        if getattr(train, name) is not None:
            raise UserError(f"--train.{name} is not for a study of several runs: {remedy}")


def tell_costs(runs: Sequence[StudyRun], plan: Plan) -> None:
    """Print what runs take."""
    from litgpt_warmstart.study.cost import costs, table

    print(table(costs(runs, measured=plan == "time")))
