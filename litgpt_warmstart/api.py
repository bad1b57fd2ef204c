"""The commands for callers in Python: the same arguments, and what is wrong with them is raised as a UserError."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from litgpt_warmstart.commands import warmstart as warmstart_command
from litgpt_warmstart.commands import warmstart_export
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.method.scales import SCALES
from litgpt_warmstart.run.checkpoint import RECORD
from litgpt_warmstart.run.grow import grow
from litgpt_warmstart.run.metrics import FILE_NAME, read_metrics
from litgpt_warmstart.run.record import Record

__all__ = ["SCALES", "FinishedRun", "Growth", "UserError", "export", "grow", "warmstart"]


@dataclass(frozen=True)
class FinishedRun:
    """A run that has come to its end."""

    folder: Path
    """The last checkpoint: a LitGPT folder, to grow from or to export."""
    record: Record
    """Where its weights come from and what they have seen."""
    metrics: list[dict[str, float]]
    """The rows of the run's metrics.csv, by column; a row has the columns that were told at its step."""


@functools.wraps(warmstart_command.setup, assigned=())
def warmstart(**arguments: Any) -> FinishedRun:
    """Grow a small trained checkpoint into a wider model and pretrain it.

    Args:
        arguments: Those of ``litgpt warmstart``, by name: ``base``, ``target``, ``shrink``, ``data`` and so on. Of
            their defaults ``keep_memory`` alone is another, false.

    Raises:
        UserError: The run cannot start, broke off, or diverged; what it has saved stays.
        SystemExit: A signal stopped it, after saving.
    """
    arguments = {"keep_memory": False} | arguments  # the process is the caller's
    folder = warmstart_command.setup.__wrapped__(**arguments)
    return FinishedRun(folder, Record.load(folder / RECORD), read_metrics(folder.parent / FILE_NAME))


@functools.wraps(warmstart_export.setup, assigned=())
def export(checkpoint_dir: Path | str, out_dir: Path | str, **arguments: Any) -> Path:
    """Write a checkpoint that transformers loads with the same logits.

    Args:
        checkpoint_dir: A LitGPT checkpoint folder.
        out_dir: The folder to write.
        arguments: ``format``, ``overwrite``, ``license``, ``push_to_hub`` and ``private``, as
            ``litgpt warmstart_export`` has them.

    Returns:
        ``out_dir``.

    Raises:
        UserError: No family of transformers' can hold the model, or something of a user's stands there; or it was
            written and could not be pushed.
    """
    return warmstart_export.setup.__wrapped__(checkpoint_dir=checkpoint_dir, out_dir=out_dir, **arguments)
