"""What a run's folder says of the run: its newest record, the rows that it logged, how far it got."""

import json
import time
from pathlib import Path

from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.run.checkpoint import RECORD, step_folders
from litgpt_warmstart.run.metrics import FILE_NAME, read_metrics
from litgpt_warmstart.run.ownership import OUTCOME
from litgpt_warmstart.run.record import Record


def is_run(folder: Path, names: set[str]) -> bool:
    """Whether a folder, with these names in it, is a run's."""
    saved = [name for name in names if name == "final" or name.startswith("step-")]
    return FILE_NAME in names or any((folder / name / RECORD).is_file() for name in saved)


def newest_record(folder: Path) -> tuple[Path, Record] | tuple[None, None]:
    """The checkpoint folder of a run with the most optimizer steps, and its record; nothing is renamed or mended.

    Raises:
        UserError: No record of the run can be read.
    """
    trained, failed = {}, []
    for checkpoint in (*step_folders(folder), folder / "final"):
        if not (checkpoint / RECORD).is_file():
            continue
        try:
            record = Record.load(checkpoint / RECORD)
        except UserError as error:
            failed.append(error)
            continue
        if record.training:
            trained[checkpoint] = record
    if not trained:
        if failed:
            raise failed[-1]
        return None, None
    newest = max(trained, key=lambda checkpoint: (trained[checkpoint].step_count, checkpoint.name == "final"))
    return newest, trained[newest]


def logged_rows(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv.

    Raises:
        UserError: The file is damaged.
    """
    try:
        rows = read_metrics(folder / FILE_NAME)
        if any("step" not in row or "tokens" not in row for row in rows):
            raise ValueError("rows without step or tokens")
        return rows
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{str(folder / FILE_NAME)!r} is damaged: {one_line(error, 80)}") from error


def status(folder: Path, checkpoint: Path, record: Record, logged: int) -> tuple[str, str]:
    reason = why_diverged(folder)
    if reason is not None:
        return "diverged", reason
    planned = record.training.get("max_tokens", 0) * record.step_count // max(record.tokens, 1)
    if checkpoint.name == "final" and record.step_count >= planned and logged == record.step_count:
        return "finished", ""
    return "not finished", f"step {logged:,} of {planned:,}; last written {last_written(folder)}"


def why_diverged(folder: Path) -> str | None:
    try:
        outcome = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
        return str(outcome["reason"]) if outcome["status"] == "diverged" else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(folder / OUTCOME)!r} is damaged: {one_line(error, 80)}") from error


def last_written(folder: Path) -> str:
    files = [path for path in (folder / FILE_NAME, folder) if path.exists()]
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(files[0].stat().st_mtime))
