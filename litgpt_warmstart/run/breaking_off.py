"""A run that something outside it has ended: what failed, in one line, after its last whole step is saved."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from litgpt_warmstart.errors import BrokeOff, Diverged, UserError, one_line
from litgpt_warmstart.run.folder import is_checkpoint, newest_checkpoint
from litgpt_warmstart.run.interrupt import deaf_to_children
from litgpt_warmstart.run.resume import OpenRun, resume_command, save
from litgpt_warmstart.run.tuning import device_failed

T = TypeVar("T")


def end_early(error: Exception, run: OpenRun) -> Path:
    """Save after the last whole step of a run that an error has ended, and raise; after a signal, only save.

    Returns:
        The folder, where a signal came first: what fails after it, a closed terminal or a loader's workers, which it
        may have reached too, is its doing.

    Raises:
        UserError: What has failed, in one line, and the checkpoint to go on from.
        Exception: ``error`` itself, where it is none that is known.
    """
    if failed := device_failed(error, run.spec.micro_batch_size):
        raise failed from error
    if not isinstance(error, UserError) and (lost := run.team.why()):
        error = lost
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):  # told by a signal, wherever the run is
        error = BrokeOff(f"the data failed in mid-run: {one_line(error)}")
    if isinstance(error, UserError) and not isinstance(error, BrokeOff):
        raise error
    saved, note, out_dir = None, "", run.spec.out_dir
    try:
        with deaf_to_children():
            if not run.state.whole or (run.team.size > 1 and not run.team.united):  # the others are elsewhere
                saved, _ = newest_checkpoint(out_dir)
            elif run.state.step_count:
                note = "" if out_dir.is_dir() else ", in a folder made anew"
                saved = run.step_folder if is_checkpoint(run.step_folder) else save(run, run.step_folder)
    except Exception as failed:  # whatever it is, the first one is told
        saved, _ = newest_checkpoint(out_dir)
        note = "" if str(failed) == str(error) else f", saving failed too ({one_line(failed, 150)})"
    if run.stop and saved and isinstance(error, BrokeOff | OSError):
        return saved
    told = f"the last good checkpoint is {str(saved)!r}" if saved else "no checkpoint was saved: give the command again"
    told += f"{note}. Go on with: {resume_command(run.spec)}" if saved else note
    if isinstance(error, UserError):
        raise UserError(f"{error}; {told}") from error
    print(f"At step {run.state.step_count:,} an error of a kind that is not foreseen: {told}", file=sys.stderr)
    raise error


def save_whole(run: OpenRun, folder: Path) -> Path:
    """Write a checkpoint folder, and have the rows that belong to it on disk.

    Raises:
        Diverged: A weight is not finite.
        BrokeOff: Something cannot be written.
    """
    with run.team.agreed():
        for file in filter(None, (run.rows.file, run.tracker and run.tracker.file)):
            file.flush_to_disk()
    try:
        return save(run, folder)
    except Diverged:
        raise
    except UserError as error:
        raise BrokeOff(str(error)) from error


def tell(line: str) -> None:
    """Print a line at once, beside the bar.

    Raises:
        BrokeOff: Nobody reads standard output any more.
    """
    try:
        with tqdm.external_write_mode():
            print(line, flush=True)
    except OSError as error:
        raise BrokeOff(f"standard output cannot be written ({error.strerror})") from error


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Turn any error inside into a :class:`BrokeOff` that names what has failed."""
    try:
        yield
    except BrokeOff:
        raise
    except Exception as error:
        named = one_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
        raise BrokeOff(f"{what} failed in mid-run: {named}") from error


def guarded(batches: Iterator[T], what: str) -> Iterator[T]:
    """The same batches, where an error of the data's breaks the run off.

    Raises:
        BrokeOff: A file is missing, a worker was killed, and whatever else may go wrong there.
    """
    with blaming(what):
        yield from batches
