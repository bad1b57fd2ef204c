"""Run folders in: one table of runs, and each run's curves."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
from litgpt.config import Config

from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.method.flops import hoffmann_flops_per_token
from litgpt_warmstart.method.scales import read_config, short_name
from litgpt_warmstart.method.schedule import ScheduleOptions
from litgpt_warmstart.parsing import Size, Unreadable, parse, read_yaml
from litgpt_warmstart.report.folders import is_run, last_written, logged_rows, newest_record, status, why_diverged
from litgpt_warmstart.run.checkpoint import CONFIG, HYPERPARAMETERS
from litgpt_warmstart.run.identity import recorded_identity
from litgpt_warmstart.run.metrics import FILE_NAME, ended_diverged
from litgpt_warmstart.run.norms import FILE_NAME as NORMS_FILE
from litgpt_warmstart.run.norms import NORMS
from litgpt_warmstart.run.optimizer import ChosenOptimizer
from litgpt_warmstart.run.record import Ancestor, Record

COLUMNS = {
    "folder": "str", "status": "str", "told": "str", "kind": "str", "model": "str", "source": "str", "growth": "str",
    "parameters": "int64", "seed": "int64", "learning_rate": "float64", "batch_size": "int64", "schedule": "str",
    "max_tokens": "int64", "tokens": "int64", "tokens_per_param": "float64", "hoffmann_flops_per_token": "float64",
    "base_tokens": "int64", "base_hoffmann_flops": "float64", "first_val_loss": "float64", "val_loss": "float64",
    "shrink": "float64", "settings": "object", "asked_schedule": "object", "settings_key": "int64",
    "growth_key": "int64", "record": "object",
}  # fmt: skip
"""Columns of the table of runs and their types; its index is what a run is called.

status                    finished, not finished or diverged; ``told`` says how far it got where it did not finish
kind                      scratch (muP, nothing of a base in it), standard (the same under SP), warmstart or continued
source, growth            the models that its weights come from, and how it was grown, in words; "" where it was not
base_tokens, base_hoffmann_flops   of all training before it; the latter NaN where its lineage does not tell
settings                  what two runs must share to be compared, by name; without the budget and the seed
asked_schedule            a schedule as its run's options have it, which may be parts of a budget; None where not known
settings_key, growth_key  the same number for runs of equal settings and budget, and of equal growth and lineage
"""
LEFT_OUT = {"folder": "str", "status": "str", "told": "str", "tokens": "int64", "val_loss": "float64"}
"""Columns of the table of folders that have too little of a run to compare it."""
SCHEDULE_OPTIONS = tuple(option.name for option in fields(ScheduleOptions))


@dataclass(frozen=True)
class Runs:
    """What lies beneath the folders that were given."""

    table: pd.DataFrame
    """A row a run that can be read, with :data:`COLUMNS`."""
    curves: dict[str, pd.DataFrame]
    """Of each run: ``loss`` and ``val_loss`` by tokens trained on; NaN where only the other was logged."""
    norms: dict[str, pd.DataFrame]
    """Of each run that tracked them: the columns of norms.csv."""
    left_out: pd.DataFrame
    """Other folders of runs, with :data:`LEFT_OUT`."""
    results: dict[str, tuple[Path, ...]]
    """Folders of studies, by the name of the file that tells their kind."""

    def val_losses(self, run: str) -> pd.Series:
        """Validation losses by tokens trained on."""
        return pd.Series(self.curves[run]["val_loss"]).dropna()

    def losses(self, run: str) -> pd.Series:
        """Training losses by tokens trained on."""
        return pd.Series(self.curves[run]["loss"]).dropna()

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the table as dictionaries, with ``run``."""
        return [dict(row) for row in self.table.reset_index().to_dict("records")]


@dataclass(frozen=True)
class _AskedEval:
    max_iters: Size


@dataclass(frozen=True)
class _Asked:
    """What a report has a use for of a hyperparameters.yaml."""

    eval: _AskedEval
    schedule: str | None = None
    train: dict[str, Any] | None = None


def find(paths: Sequence[Path], results: Sequence[str] = ()) -> Runs:
    """Read all runs beneath folders, each once.

    Args:
        paths: Folders of runs, or of folders of runs.
        results: Names of files by which the folders of studies are known.

    Raises:
        UserError: One does not exist, or there is nothing to report in all of them.
    """
    read: dict[Path, dict[str, Any]] = {}
    found: dict[str, dict[Path, Path]] = {name: {} for name in results}
    for path in paths:
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            raise UserError(f"{str(path)!r} {what}: give the folder of a run, or one with runs in it")
        anything = False
        for folder, names in _folders(path):
            for name in found.keys() & names:
                found[name][folder.resolve()], anything = folder, True
            if is_run(folder, names):
                anything = True
                if folder.resolve() not in read:
                    read[folder.resolve()] = _read_or_say(folder)
        if not anything:
            read[path.resolve()] = _unread(path, "empty", "no run in this folder")
    good = [row for row in read.values() if "curve" in row]
    bad = [row for row in read.values() if "curve" not in row]
    if not good and not any(found.values()):
        said = "; ".join(f"{row['folder']!r}: {row['told']}" for row in bad[:3])
        raise UserError(f"nothing to report: {said}: give the folders of finished runs")
    settings = [(row["settings"], row["max_tokens"]) for row in good]
    growths = [(row["growth_options"], ancestors(row["record"])) for row in good]
    for row, its_settings, its_growth in zip(good, settings, growths, strict=True):
        row |= {"settings_key": settings.index(its_settings), "growth_key": growths.index(its_growth)}
    table = _typed(good, COLUMNS)
    return Runs(
        table,
        {name: row["curve"] for name, row in zip(table.index, good, strict=True)},
        {name: row["norms"] for name, row in zip(table.index, good, strict=True) if len(row["norms"])},
        _typed(bad, LEFT_OUT),
        {name: tuple(folders.values()) for name, folders in found.items()},
    )


def _typed(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    """A table of folders by what they are called."""
    names = display_names([Path(row["folder"]) for row in rows])
    return pd.DataFrame(rows, index=pd.Index(names, name="run"), columns=list(columns)).astype(columns)


def ancestors(record: Record) -> list[tuple[Any, ...]]:
    """What a run's ancestors were, whatever their seeds."""
    return [(a.name, a.parameters, a.tokens, a.growth and a.growth.shrink) for a in record.lineage]


def _folders(path: Path) -> Iterator[tuple[Path, set[str]]]:
    """Folders at and beneath one, with the names in them, not into runs' own folders."""
    for name, folders, files in os.walk(path):
        folder, names = Path(name), {*folders, *files}
        folders[:] = [] if is_run(folder, names) else sorted(f for f in folders if not f.startswith("."))
        yield folder, names


def _read_or_say(folder: Path) -> dict[str, Any]:
    """A run, or why there is none to compare, as a row of the folders left out."""
    try:
        checkpoint, record = newest_record(folder)
        if checkpoint is not None and record is not None:
            return read_run(folder, checkpoint, record)
        rows = logged_rows(folder)
        reason = why_diverged(folder)
        if reason is None and not rows:
            told = f"no step was logged and nothing saved; last written {last_written(folder)}"
            return _unread(folder, "empty", told)
        last = rows[-1] if rows else {"step": 0, "tokens": 0}
        told = reason or f"step {last['step']:,.0f}, no checkpoint yet; last written {last_written(folder)}"
        val_loss = next((row["val_loss"] for row in reversed(rows) if "val_loss" in row), math.nan)
        return _unread(folder, "diverged" if reason else "not finished", told, int(last["tokens"]), val_loss)
    except UserError as error:
        return _unread(folder, "damaged", str(error))


def _unread(folder: Path, status: str, told: str, tokens: int = 0, val_loss: float = math.nan) -> dict[str, Any]:
    return {"folder": str(folder), "status": status, "told": told, "tokens": tokens, "val_loss": val_loss}


def read_run(folder: Path, checkpoint: Path, record: Record) -> dict[str, Any]:
    """A run's row, its ``curve`` and its ``norms``, by its newest checkpoint and that one's record.

    Raises:
        UserError: It holds no validation losses, or one of its files is damaged.
    """
    logged = logged_rows(folder)
    curve = pd.DataFrame(logged, columns=["tokens", "loss", "val_loss"]).groupby("tokens").last()
    val_losses = curve["val_loss"].dropna()
    if val_losses.empty:
        raise UserError(f"{str(folder / FILE_NAME)!r} has no validation losses: set --eval.interval for the run")
    config = read_config(checkpoint / CONFIG)
    try:
        asked = parse(_Asked, read_yaml(checkpoint / HYPERPARAMETERS))
        norms = pd.DataFrame([asdict(norm) for norm in NORMS.read(folder / NORMS_FILE)])
    except Unreadable as error:
        raise UserError(f"{str(checkpoint / HYPERPARAMETERS)!r} is damaged: {error.reason}") from error
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{str(folder)!r} is damaged: {one_line(error, 80)}") from error
    identity = recorded_identity(record, config)
    counted = [row["hoffmann_flops"] / row["tokens"] for row in logged if row.get("hoffmann_flops") and row["tokens"]]
    per_token = counted[-1] if counted else hoffmann_flops_per_token(config, identity["train.max_seq_length"])
    last = next(row["val_loss"] for row in reversed(logged) if "val_loss" in row)  # which may be not finite
    at_start = float(val_losses.iloc[0]) if val_losses.index[0] == 0 else None
    state, told = status(folder, checkpoint, record, int(logged[-1]["step"]))
    if state == "finished" and ended_diverged(at_start, last, config.padded_vocab_size or 1):
        began = "" if at_start is None else f", its first was {at_start:.4g}"
        state, told = "diverged", f"its last validation loss is {last:.4g}{began}"
    tokens, grown = int(curve.index[-1]), record.growth
    return {
        "folder": str(folder), "status": state, "told": told, "kind": _kind(record), "model": size(record),
        "source": " → ".join(map(size, record.lineage)), "growth": grown.label if grown else "",
        "parameters": record.parameters, "seed": identity["seed"], "learning_rate": record.base_lr,
        "batch_size": record.global_batch_size, "schedule": identity["schedule"]["name"],
        "max_tokens": record.training.get("max_tokens"),
        "tokens": tokens, "tokens_per_param": tokens / record.parameters, "hoffmann_flops_per_token": per_token,
        "base_tokens": sum(ancestor.tokens for ancestor in record.lineage),
        "base_hoffmann_flops": sum(_flops_of(ancestor, record) for ancestor in record.lineage),
        "first_val_loss": float(val_losses.iloc[0]), "val_loss": last,
        "shrink": grown.shrink if grown else math.nan, "settings": _settings(record, config, identity, asked),
        "asked_schedule": _asked_schedule(asked), "record": record, "curve": curve, "norms": norms,
        "growth_options": grown and tuple(grown.options.values()),
    }  # fmt: skip


def _kind(record: Record) -> str:
    if record.growth:
        return "scratch" if record.growth.from_scratch else "warmstart" if record.growth.shrink else "continued"
    if record.lineage:
        return "continued"
    return "scratch" if record.parametrization == "mup" else "standard"


def _flops_of(ancestor: Ancestor, record: Record) -> float:
    """Hoffmann FLOPs of an ancestor's own training; NaN where it does not tell."""
    if ancestor.hoffmann_flops:
        return ancestor.hoffmann_flops
    shape = record.mup_base_config
    if ancestor.tokens and ancestor.name == shape["name"]:  # an older version's record, most often of the muP base
        return ancestor.tokens * hoffmann_flops_per_token(Config(**shape), record.training.get("block_size", 0))
    return math.nan


def _settings(record: Record, config: Config, identity: dict[str, Any], asked: _Asked) -> dict[str, Any]:
    """What two runs must share to be compared, by name, the tellingest first."""
    data = record.data
    return {
        "vocabulary": config.padded_vocab_size,
        "model": (record.name, record.parameters, config.n_layer, config.n_embd, config.n_head),
        "data": data and (data.fingerprint or f"{data.class_path} {data.init_args}"),
        "first token": data and data.start_token,
        "order of blocks": data and data.order_seed,
        "validation blocks": asked.eval.max_iters,
        "block size": identity["train.max_seq_length"],
        "muP base": (identity["mup_base"]["name"], identity["mup_base"]["n_embd"]),
        "learning rate": identity["lr"],
        "batch size": identity["train.global_batch_size"],
        "schedule": {k: v for k, v in identity["schedule"].items() if k != "total_steps"},
        "optimizer": str(ChosenOptimizer(**identity["optimizer"])),
        "gradient clipping": identity["train.max_norm"],
        "precision": identity["precision"],
    }


def _asked_schedule(asked: _Asked) -> dict[str, Any] | None:
    if asked.schedule is None or asked.train is None:
        return None
    return {"name": asked.schedule, **{name: asked.train.get(name) for name in SCHEDULE_OPTIONS}}


def size(model: Record | Ancestor) -> str:
    """A model's name and size."""
    return f"{short_name(model.name)} ({model.parameters / 1e6:.3g}M)"


def display_names(folders: Sequence[Path]) -> list[str]:
    """What to call folders: their paths from the deepest folder that holds them all."""
    if len(folders) == 1:
        return [folders[0].resolve().name]
    whole = [folder.resolve() for folder in folders]
    common = Path(os.path.commonpath([str(path.parent) for path in whole])) if whole else Path()
    return [path.relative_to(common).as_posix() for path in whole]
