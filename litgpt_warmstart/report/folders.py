"""What a run's folder says of the run: its newest record, the rows that it logged, how far it got."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.run.checkpoint import RECORD, step_folders
from litgpt_warmstart.run.metrics import FILE_NAME, read_metrics
from litgpt_warmstart.run.ownership import OUTCOME
from litgpt_warmstart.run.record import Record

LOGS = Path("logs") / "tensorboard"
"""Where LitGPT's TensorBoard logger writes, beneath a run's folder."""


def is_run(folder: Path, names: set[str]) -> bool:
    """Whether a folder, with these names in it, is a run's."""
    if FILE_NAME in names or any(_event_files(folder)):
        return True
    return any((folder / name / RECORD).is_file() for name in names if name == "final" or name.startswith("step-"))


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


def logged_rows(folder: Path, record: Record | None) -> list[dict[str, float]]:
    """The rows of metrics.csv, of TensorBoard's logs where that is missing.

    Raises:
        UserError: The file is damaged.
    """
    try:
        if not (folder / FILE_NAME).is_file() and any(_event_files(folder)):
            return _read_events(folder, record)
        rows = read_metrics(folder / FILE_NAME)
        if any("step" not in row or "tokens" not in row for row in rows):
            raise ValueError("rows without step or tokens")
        return rows
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{str(folder / FILE_NAME)!r} is damaged: {one_line(error, 80)}") from error


def _event_files(folder: Path) -> Iterator[Path]:
    return (folder / LOGS).glob("version_*/events.out.tfevents.*")


def _read_events(folder: Path, record: Record | None) -> list[dict[str, float]]:
    """Rows as metrics.csv has them; of a step that was logged twice, around a resumption, the later version counts.

    Values are single precision: tokens are counted from steps.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    per_step = (record.global_batch_size or 0) * record.training.get("block_size", 0) if record else 0
    steps: dict[int, dict[str, float]] = {}
    versions = {path.parent for path in _event_files(folder)}
    for version in sorted(versions, key=lambda path: int(path.name.removeprefix("version_"))):
        events = EventAccumulator(str(version), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                steps.setdefault(event.step, {})[tag] = event.value
    kept = ("loss", "val_loss", "hoffmann_flops")
    return [
        {"step": step, "tokens": step * per_step, **{tag: row[tag] for tag in kept if tag in row}}
        for step, row in sorted(steps.items())
        if "loss" in row or "val_loss" in row
    ]


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
