"""Run folders in: what each says of its run, and the run's curves."""

import fnmatch
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
from litgpt.config import Config

from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.method.flops import hoffmann_flops_per_token, matmul_parameters
from litgpt_warmstart.method.parametrization import PARAMETRIZATIONS
from litgpt_warmstart.method.scales import read_config, short_name
from litgpt_warmstart.method.schedule import ScheduleOptions
from litgpt_warmstart.parsing import Size, Unreadable, parse, read_yaml
from litgpt_warmstart.run.checkpoint import CONFIG, HYPERPARAMETERS, RECORD
from litgpt_warmstart.run.folder import OUTCOME, trained
from litgpt_warmstart.run.identity import recorded_identity
from litgpt_warmstart.run.metrics import FILE_NAME, Metrics, ended_diverged, read_metrics
from litgpt_warmstart.run.norms import FILE_NAME as NORMS_FILE
from litgpt_warmstart.run.norms import NORMS
from litgpt_warmstart.run.optimizer import ChosenOptimizer
from litgpt_warmstart.run.record import Ancestor, Record

ORDER = "order of blocks"
"""The setting in which seeds may differ: where each is a lineage, its data has an order of its own."""


@dataclass(frozen=True, eq=False)
class Run:
    """A run that can be compared, as its newest checkpoint and its metrics.csv tell of it."""

    name: str
    """What the page calls it."""
    folder: Path
    record: Record
    kind: str
    """scratch (nothing of a base in it), standard (and its rate from no other width), warmstart or continued."""
    status: str
    """finished, not finished or diverged."""
    told: str
    """How far it got, where it did not finish."""
    seed: int
    max_tokens: int
    tokens: int
    """As far as it logged."""
    flops_per_token: float
    """By Hoffmann et al.'s count."""
    matmul_parameters: int
    """All but the embedding, the head included, see :func:`litgpt_warmstart.method.flops.matmul_parameters`."""
    base_tokens: float
    """Of all training that its weights come from; of a run from scratch, shrink 0 included, none; NaN where no record
    tells, as of another program's checkpoint."""
    base_flops: float
    """Hoffmann FLOPs of the same; NaN where its lineage does not tell."""
    val_losses: pd.Series
    """By tokens trained on; the last one may be not finite."""
    losses: pd.Series
    """Training losses by tokens trained on."""
    norms: pd.DataFrame
    """The rows of norms.csv with sizes; none where nothing was tracked."""
    induction: pd.Series
    """Induction scores by tokens, in nats per token."""
    settings: Mapping[str, Any]
    """What two runs must share to be compared, by name, the tellingest first; without the budget and the seed."""
    asked_schedule: Mapping[str, Any] | None
    """A schedule as the run's options have it, which may be parts of a budget; None where not known."""
    settings_key: int = -1
    """The same number for runs of equal settings and budget."""
    comparison_key: int = -1
    """The same also for those that read in another order, as seeds that are lineages do."""
    growth_key: int = -1
    """The same number for runs of equal growth and lineage."""

    @property
    def model(self) -> str:
        return size(self.record)

    @property
    def source(self) -> str:
        """The models that its weights come from, in words."""
        return " → ".join(map(size, self.record.lineage))

    @property
    def from_scratch(self) -> str:
        """What one with its parametrization is called that has nothing of a base in it."""
        return f"from scratch ({PARAMETRIZATIONS[self.record.parametrization].label})"

    @property
    def growth(self) -> str:
        """How it was grown, in words; "" where it was not."""
        return self.record.growth.label if self.record.growth else ""

    @property
    def shrink(self) -> float:
        return self.record.growth.shrink_of("hidden") if self.record.growth else math.nan

    @property
    def tokens_per_param(self) -> float:
        return self.tokens / self.record.parameters

    @property
    def val_loss(self) -> float:
        return float(self.val_losses.iloc[-1])

    @property
    def why_not_counted(self) -> str | None:
        """Why its last loss is not that of its whole budget; None where it is."""
        if self.status != "finished":
            return f"{self.status}: {self.told}"
        if self.val_losses.index[-1] < self.tokens:
            return "was not validated at its end: leave --eval.final_validation on"
        return None

    @property
    def own_flops(self) -> float:
        """Hoffmann FLOPs, as far as it logged."""
        return self.tokens * self.flops_per_token

    @property
    def ancestors(self) -> list[tuple[Any, ...]]:
        """What its ancestors were, whatever their seeds."""
        return [(a.name, a.parameters, a.tokens, a.growth and a.growth.options) for a in self.record.lineage]


@dataclass(frozen=True)
class Found:
    """What lies beneath the folders that were given."""

    runs: list[Run]
    left_out: dict[str, str]
    """Other folders of runs, and why they cannot be compared."""
    results: dict[str, list[Path]]
    """Folders of studies, by the name, or pattern, of the file that tells their kind."""


@dataclass(frozen=True)
class _AskedEval:
    max_iters: Size


@dataclass(frozen=True)
class _Asked:
    """What a report has a use for of a hyperparameters.yaml."""

    eval: _AskedEval
    schedule: str | None = None
    train: dict[str, Any] | None = None


def find(paths: Sequence[Path], results: Sequence[str] = ()) -> Found:
    """Read all runs beneath folders, each once.

    Args:
        paths: Folders of runs, or of folders of runs.
        results: Names of files, or patterns of them, by which the folders of studies are known.

    Raises:
        UserError: One does not exist, or there is nothing to report in all of them.
    """
    folders: dict[Path, Path] = {}
    kinds: dict[str, dict[Path, Path]] = {name: {} for name in results}
    for path in paths:
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            raise UserError(f"{str(path)!r} {what}: give the folder of a run, or one with runs in it")
        anything = False
        for folder, names in _folders(path):
            held = [known for pattern, known in kinds.items() if fnmatch.filter(names, pattern)]
            held += [folders] * is_run(folder, names)
            for known in held:
                known.setdefault(folder.resolve(), folder)
            anything = anything or bool(held)
        if not anything:
            folders[path.resolve()] = path
    runs, left_out = [], {}
    for name, folder in zip(display_names(list(folders)), folders.values(), strict=True):
        try:
            runs.append(_read(name, folder))
        except UserError as error:
            left_out[name] = str(error)
    if not runs and not any(kinds.values()):
        told = zip(folders.values(), left_out.values(), strict=True)
        said = "; ".join([f"{str(path)!r}: {why}" for path, why in told][:3])
        raise UserError(f"nothing to report: {said}: give the folders of finished runs")
    settings = [(run.settings, run.max_tokens) for run in runs]
    in_any_order = [({**run.settings, ORDER: None}, run.max_tokens) for run in runs]
    growths = [(run.record.growth and run.record.growth.options, run.ancestors) for run in runs]
    runs = [
        replace(run, settings_key=settings.index(s), comparison_key=in_any_order.index(o), growth_key=growths.index(g))
        for run, s, o, g in zip(runs, settings, in_any_order, growths, strict=True)
    ]
    return Found(runs, left_out, {name: list(folders.values()) for name, folders in kinds.items()})


def find_all(folders: Sequence[Path]) -> dict[Path, Run]:
    """Read the runs of these folders, by folder.

    Raises:
        UserError: One cannot be read.
    """
    found = find(folders) if folders else Found([], {}, {})
    for name, why in found.left_out.items():
        raise UserError(f"{name}: {why}")
    return {run.folder: run for run in found.runs}


def _folders(path: Path) -> Iterator[tuple[Path, set[str]]]:
    """Folders at and beneath one, with the names in them, not into runs' own folders."""
    for name, folders, files in os.walk(path):
        folder, names = Path(name), {*folders, *files}
        folders[:] = [] if is_run(folder, names) else sorted(f for f in folders if not f.startswith("."))
        yield folder, names


def is_run(folder: Path, names: set[str]) -> bool:
    """Whether a folder, with these names in it, is a run's."""
    saved = [name for name in names if name == "final" or name.startswith("step-")]
    return FILE_NAME in names or any((folder / name / RECORD).is_file() for name in saved)


def _why_diverged(folder: Path) -> str | None:
    try:
        outcome = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
        return str(outcome["reason"]) if outcome["status"] == "diverged" else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(folder / OUTCOME)!r} is damaged: {one_line(error, 80)}") from error


def _written(folder: Path) -> str:
    path = next(path for path in (folder / FILE_NAME, folder) if path.exists())
    return f"; last written {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(path.stat().st_mtime))}"


def curve(rows: Sequence[Mapping[str, float]], column: str) -> pd.Series:
    """A column of metrics.csv by tokens."""
    return pd.Series({row["tokens"]: row[column] for row in rows if column in row}, dtype=float)


def _read(name: str, folder: Path) -> Run:
    """A run, by its newest checkpoint, that one's record, and its metrics.

    Raises:
        UserError: It cannot be compared: it saved no checkpoint, holds no validation losses, or a file is damaged.
    """
    found, unread = trained(folder)
    if unread and not found:
        raise UserError(unread[-1][1])
    rows, diverged = read_metrics(folder / FILE_NAME), _why_diverged(folder)
    if not found:
        reached = f"step {rows[-1]['step']:,.0f}, no checkpoint yet" if rows else "no run in this folder"
        raise UserError(diverged or f"{reached}{_written(folder)}")
    val_losses = curve(rows, "val_loss")
    if val_losses.empty:
        raise UserError(f"{str(folder / FILE_NAME)!r} has no validation losses: set --eval.interval for the run")
    checkpoint, record = next(iter(found.items()))
    config = read_config(checkpoint / CONFIG)
    try:
        asked = parse(_Asked, read_yaml(checkpoint / HYPERPARAMETERS))
    except Unreadable as error:
        raise UserError(f"{str(checkpoint / HYPERPARAMETERS)!r} is damaged: {error.reason}") from error
    identity = recorded_identity(record, config)
    counted = [row["hoffmann_flops"] / row["tokens"] for row in rows if row.get("hoffmann_flops") and row["tokens"]]
    per_token = counted[-1] if counted else hoffmann_flops_per_token(config, identity["train.max_seq_length"])
    step, planned = int(rows[-1]["step"]), record.training["max_tokens"] * record.step_count // max(record.tokens, 1)
    at_start, last = Metrics(rows).first_loss, float(val_losses.iloc[-1])
    status, told = "not finished", f"step {step:,} of {planned:,}{_written(folder)}"
    if diverged is not None:
        status, told = "diverged", diverged
    elif checkpoint.name == "final" and step == record.step_count >= planned:
        status, told = "finished", ""
        if ended_diverged(at_start, last, config.padded_vocab_size or 1):
            began = "" if at_start is None else f", its first was {at_start:.4g}"
            status, told = "diverged", f"its last validation loss is {last:.4g}{began}"
    tracked = NORMS.read(folder / NORMS_FILE)
    schedule = None
    if asked.schedule is not None and asked.train is not None:
        options = {option.name: asked.train.get(option.name) for option in fields(ScheduleOptions)}
        schedule = {"name": asked.schedule, **options}
    grown, kind = record.growth, "standard" if PARAMETRIZATIONS[record.parametrization].is_own_base else "scratch"
    if grown:
        kind = "scratch" if grown.from_scratch else "warmstart" if grown.shrink else "continued"
    elif record.lineage:
        kind = "continued"
    lineage = record.lineage if kind != "scratch" else ()
    return Run(
        name=name,
        folder=folder,
        record=record,
        kind=kind,
        status=status,
        told=told,
        seed=identity["seed"],
        max_tokens=record.training["max_tokens"],
        tokens=int(rows[-1]["tokens"]),
        flops_per_token=float(per_token),  # times a column of tokens, whole numbers would end at 2^63
        matmul_parameters=matmul_parameters(config),
        base_tokens=(sum(ancestor.tokens for ancestor in lineage) or math.nan) if lineage else 0,
        base_flops=sum((_flops_of(ancestor, record) for ancestor in lineage), 0.0),
        val_losses=val_losses,
        losses=curve(rows, "loss").dropna(),
        norms=pd.DataFrame([row for row in tracked if "l2" in row]),
        induction=curve(tracked, "score").dropna(),
        settings=_settings(record, config, identity, asked),
        asked_schedule=schedule,
    )


def _flops_of(ancestor: Ancestor, record: Record) -> float:
    """Hoffmann FLOPs of an ancestor's own training; NaN where it does not tell."""
    shape = record.mup_base_config
    if ancestor.tokens and not ancestor.hoffmann_flops and ancestor.name == shape["name"]:  # an older version's record
        return ancestor.tokens * hoffmann_flops_per_token(Config(**shape), record.training.get("block_size", 0))
    return ancestor.hoffmann_flops or math.nan


def _settings(record: Record, config: Config, identity: dict[str, Any], asked: _Asked) -> dict[str, Any]:
    data, mup_base = record.data, identity["mup_base"]
    return {
        "vocabulary": config.padded_vocab_size,
        "model": (record.name, record.parameters, config.n_layer, config.n_embd, config.n_head),
        "data": data and (data.fingerprint or f"{data.class_path} {data.init_args}"),
        "first token": data and data.start_token,
        ORDER: data and data.order_seed,
        "validation blocks": asked.eval.max_iters,
        "block size": identity["train.max_seq_length"],
        "muP base": (PARAMETRIZATIONS[record.parametrization].label, *(mup_base[name] for name in ("name", "n_embd"))),
        "learning rate": identity["lr"],
        "batch size": identity["train.global_batch_size"],
        "schedule": {k: v for k, v in identity["schedule"].items() if k != "total_steps"},
        "optimizer": str(ChosenOptimizer(**identity["optimizer"])),
        "gradient clipping": identity["train.max_norm"],
        "precision": identity["precision"],
    }


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
