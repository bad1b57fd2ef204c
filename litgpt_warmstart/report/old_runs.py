"""Run folders in: what a run was, what it measured, and how far it got."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired

from litgpt.config import Config
from typing_extensions import TypedDict

from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.method.flops import hoffmann_flops_per_token
from litgpt_warmstart.method.scales import read_config
from litgpt_warmstart.parsing import Size, Unreadable, parse, read_yaml
from litgpt_warmstart.report.event_files import has_events, read_events
from litgpt_warmstart.run.checkpoint import CONFIG, HYPERPARAMETERS, RECORD, step_folders
from litgpt_warmstart.run.metrics import FILE_NAME, ended_diverged, read_metrics
from litgpt_warmstart.run.norms import FILE_NAME as NORMS
from litgpt_warmstart.run.norms import Norm, read_norms
from litgpt_warmstart.run.ownership import OUTCOME
from litgpt_warmstart.run.record import Ancestor, Record

COORD_CHECK, GRID_SEARCH = "coord_check.csv", "grid_search.csv"
Status = Literal["finished", "not finished", "diverged"]


class AskedEval(TypedDict):
    """Of a hyperparameters.yaml, what a report has a use for."""

    __pydantic_config__ = {"extra": "allow"}

    max_iters: Size


class Asked(TypedDict):
    """A hyperparameters.yaml."""

    __pydantic_config__ = {"extra": "allow"}

    eval: AskedEval
    schedule: NotRequired[str]
    train: NotRequired[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """A run folder, read."""

    out_dir: Path
    record: Record
    """Of its newest checkpoint."""
    config: Config
    hyperparameters: Asked
    val_losses: list[tuple[float, float]]
    """(tokens, validation loss), in the order of tokens."""
    losses: list[tuple[float, float]]
    """(tokens, training loss)."""
    flops_per_token: float
    """Hoffmann et al.'s count."""
    status: Status = "finished"
    told: str = ""
    """How far it got, where it did not finish."""
    norms: list[Norm] = field(default_factory=list)

    @classmethod
    def read(cls, out_dir: Path) -> "Run":
        """Read a run folder.

        Raises:
            UserError: It holds no checkpoint or no validation losses, or one of its files is damaged.
        """
        folder, record = newest_record(out_dir)
        if folder is None:
            raise UserError(f"{str(out_dir)!r} holds no finished run: give the --out_dir of a run")
        rows = read_rows_of(out_dir, record)
        val_losses = [(row["tokens"], row["val_loss"]) for row in rows if "val_loss" in row]
        if not val_losses:
            raise UserError(f"{str(out_dir / FILE_NAME)!r} has no validation losses: set --eval.interval for the run")
        config = read_config(folder / CONFIG)
        try:
            hyperparameters = parse(Asked, read_yaml(folder / HYPERPARAMETERS))
            norms = read_norms(out_dir / NORMS)
        except Unreadable as error:
            raise UserError(f"{str(folder / HYPERPARAMETERS)!r} is damaged: {error.reason}") from error
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{str(out_dir)!r} is damaged: {one_line(error, 80)}") from error
        counted = [row["hoffmann_flops"] / row["tokens"] for row in rows if row.get("hoffmann_flops") and row["tokens"]]
        per_token = counted[-1] if counted else hoffmann_flops_per_token(config, record.training["block_size"])
        losses = [(row["tokens"], row["loss"]) for row in rows if "loss" in row]
        status, told = _status(out_dir, folder, record, int(rows[-1]["step"]))
        at_start = next((row["val_loss"] for row in rows if "val_loss" in row and row["step"] == 0), None)
        last = val_losses[-1][1]
        if status == "finished" and ended_diverged(at_start, last, config.padded_vocab_size):
            began = "" if at_start is None else f", its first was {at_start:.4g}"
            status, told = "diverged", f"its last validation loss is {last:.4g}{began}"
        return cls(out_dir, record, config, hyperparameters, val_losses, losses, per_token, status, told, norms)

    @property
    def tokens(self) -> float:
        """Tokens trained on, as far as it logged."""
        return max(curve[-1][0] for curve in (self.val_losses, self.losses) if curve)

    @property
    def tokens_per_param(self) -> float:
        return self.tokens / self.record.parameters

    @property
    def seed(self) -> int:
        return self.record.training["seed"]

    @property
    def from_scratch(self) -> bool:
        """Whether it is what a warmstart is compared with: muP, and nothing of a base in it."""
        growth = self.record.growth
        if growth:
            return growth.shrink == 0 and growth.perturb == 1
        return self.record.parametrization == "mup" and not self.record.lineage

    @property
    def warmstarted(self) -> bool:
        return bool(self.record.growth and self.record.growth.shrink)

    @property
    def base_flops(self) -> float | None:
        """Hoffmann FLOPs of all training before it; None where a checkpoint in its lineage does not tell."""
        spent = [_flops_of(ancestor, self.record) for ancestor in self.record.lineage]
        return None if None in spent else float(sum(spent))


def _flops_of(ancestor: Ancestor, record: Record) -> float | None:
    if ancestor.hoffmann_flops:
        return ancestor.hoffmann_flops
    shape = record.mup_base_config
    if ancestor.tokens and ancestor.name == shape["name"]:  # an older version's record, most often of the muP base
        return ancestor.tokens * hoffmann_flops_per_token(Config(**shape), record.training["block_size"])
    return None


@dataclass(frozen=True)
class Unread:
    """A folder without enough of a run to compare it."""

    out_dir: Path
    status: Literal["not finished", "diverged", "damaged", "empty"]
    told: str
    step_count: int = 0
    tokens: int = 0
    val_loss: float | None = None


@dataclass(frozen=True)
class Found:
    """What lies beneath the folders that were given."""

    runs: tuple[Run, ...]
    unread: tuple[Unread, ...]
    coord_checks: tuple[Path, ...]
    """Folders with a coord_check.csv."""
    grid_searches: tuple[Path, ...]
    """Folders with a grid_search.csv."""


def find(paths: Sequence[Path]) -> Found:
    """Read all runs beneath folders, each once.

    Args:
        paths: Folders of runs, or of folders of runs.

    Raises:
        UserError: One does not exist, or there is nothing to report in all of them.
    """
    runs: dict[Path, Run] = {}
    unread: dict[Path, Unread] = {}
    checks: dict[Path, Path] = {}
    grids: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            raise UserError(f"{str(path)!r} {what}: give the folder of a run, or one with runs in it")
        found = False
        for folder, names in _folders(path):
            key = folder.resolve()
            if COORD_CHECK in names:
                found, checks[key] = True, folder
            if GRID_SEARCH in names:
                found, grids[key] = True, folder
            if not _is_run(folder, names):
                continue
            found = True
            if key in runs or key in unread:
                continue
            read = read_or_say(folder)
            if isinstance(read, Run):
                runs[key] = read
            else:
                unread[key] = read
        if not found:
            unread[path.resolve()] = Unread(path, "empty", "no run in this folder")
    if not runs and not checks and not grids:
        said = "; ".join(f"{str(u.out_dir)!r}: {u.told}" for u in list(unread.values())[:3])
        raise UserError(f"nothing to report: {said}: give the folders of finished runs")
    return Found(tuple(runs.values()), tuple(unread.values()), tuple(checks.values()), tuple(grids.values()))


def _folders(path: Path):
    """Folders at and beneath one, with the names in them, not into runs' own folders."""
    for name, folders, files in os.walk(path):
        folder, names = Path(name), {*folders, *files}
        folders[:] = [] if _is_run(folder, names) else sorted(f for f in folders if not f.startswith("."))
        yield folder, names


def _is_run(folder: Path, names: set[str]) -> bool:
    if FILE_NAME in names or has_events(folder):
        return True
    return any((folder / name / RECORD).is_file() for name in names if name == "final" or name.startswith("step-"))


def read_or_say(out_dir: Path) -> Run | Unread:
    """A run, or why there is none to compare."""
    try:
        folder, record = newest_record(out_dir)
        if folder is not None:
            return Run.read(out_dir)
        rows = read_rows_of(out_dir, None)
        last = rows[-1] if rows else {"step": 0}
        val_loss = next((row["val_loss"] for row in reversed(rows) if "val_loss" in row), None)
        reason = _why_diverged(out_dir)
        told = f"step {last['step']:,.0f}, no checkpoint yet; last written {_when(out_dir)}"
        if reason is None and not rows:
            return Unread(out_dir, "empty", f"no step was logged and nothing saved; last written {_when(out_dir)}")
        return Unread(out_dir, "not finished" if reason is None else "diverged", told if reason is None else reason,
                      int(last["step"]), int(last.get("tokens", 0)), val_loss)  # fmt: skip
    except UserError as error:
        return Unread(out_dir, "damaged", str(error))


def newest_record(out_dir: Path) -> tuple[Path, Record] | tuple[None, None]:
    """The checkpoint folder of a run with the most optimizer steps, and its record; nothing is renamed or mended.

    Raises:
        UserError: No record of the run can be read.
    """
    trained, failed = {}, []
    for folder in (*step_folders(out_dir), out_dir / "final"):
        if not (folder / RECORD).is_file():
            continue
        try:
            record = Record.load(folder / RECORD)
        except UserError as error:
            failed.append(error)
            continue
        if record.training:
            trained[folder] = record
    if not trained:
        if failed:
            raise failed[-1]
        return None, None
    folder = max(trained, key=lambda folder: (trained[folder].step_count, folder.name == "final"))
    return folder, trained[folder]


def read_rows_of(out_dir: Path, record: Record | None) -> list[dict[str, float]]:
    """Rows of metrics.csv, of TensorBoard's logs where that is missing.

    Raises:
        UserError: The file is damaged.
    """
    try:
        if not (out_dir / FILE_NAME).is_file() and has_events(out_dir):
            return exact(read_events(out_dir), record)
        rows = read_metrics(out_dir / FILE_NAME)
        if any("step" not in row or "tokens" not in row for row in rows):
            raise ValueError("rows without step or tokens")
        return rows
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{str(out_dir / FILE_NAME)!r} is damaged: {one_line(error, 80)}") from error


def exact(rows: list[dict[str, float]], record: Record | None) -> list[dict[str, float]]:
    """Rows with tokens counted from steps, which single precision keeps."""
    if record is None or not record.global_batch_size:
        return [{"tokens": 0.0, **row} for row in rows]
    per_step = record.global_batch_size * record.training["block_size"]
    return [{**row, "tokens": row["step"] * per_step} for row in rows]


def _status(out_dir: Path, folder: Path, record: Record, logged: int) -> tuple[Status, str]:
    reason = _why_diverged(out_dir)
    if reason is not None:
        return "diverged", reason
    planned = record.training["max_tokens"] * record.step_count // max(record.tokens, 1)
    if folder.name == "final" and record.step_count >= planned and logged == record.step_count:
        return "finished", ""
    return "not finished", f"step {logged:,} of {planned:,}; last written {_when(out_dir)}"


def _why_diverged(out_dir: Path) -> str | None:
    try:
        outcome = json.loads((out_dir / OUTCOME).read_text(encoding="utf-8"))
        return str(outcome["reason"]) if outcome["status"] == "diverged" else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(out_dir / OUTCOME)!r} is damaged: {one_line(error, 80)}") from error


def _when(out_dir: Path) -> str:
    files = [path for path in (out_dir / FILE_NAME, out_dir) if path.exists()]
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(files[0].stat().st_mtime))


def display_names(folders: Sequence[Path]) -> dict[Path, str]:
    """What to call folders: their paths from the deepest folder that holds them all."""
    if len(folders) == 1:
        return {folders[0]: folders[0].resolve().name}
    whole = {folder: folder.resolve() for folder in folders}
    common = Path(os.path.commonpath([str(path.parent) for path in whole.values()])) if whole else Path()
    return {folder: path.relative_to(common).as_posix() for folder, path in whole.items()}
